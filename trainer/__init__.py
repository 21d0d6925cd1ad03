"""Transfer-learning image classification with the training loop in the open."""

__version__ = "0.1.0"
