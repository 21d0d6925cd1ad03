"""Probabilities and predictions from logits of classes of which exactly one is true. NumPy only."""

import numpy as np


def softmax(logits: np.ndarray) -> np.ndarray:
    """Returns probabilities, in 64 bits whatever the logits have.

    Args:
      logits: [N, K].

    Returns:
      [N, K] float64. A row with NaN or +inf in it is NaN as a whole.
    """
    wide = logits.astype(np.float64)
    with np.errstate(invalid="ignore"):
        shifted = np.exp(wide - wide.max(axis=1, keepdims=True))
        return shifted / shifted.sum(axis=1, keepdims=True)


def predicted(logits: np.ndarray) -> np.ndarray:
    """Returns the class of each picture, [N] int: that of the highest logit, the first of equal ones.

    A NaN is never the highest.
    """
    return np.where(np.isnan(logits), -np.inf, logits).argmax(axis=1)


def cross_entropies(labels: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Returns -log of the true class's probability in nats, [N] float64.

    Args:
      labels: [N] int.
      logits: [N, K].
    """
    wide = logits.astype(np.float64)
    largest = wide.max(axis=1)
    normalizers = largest + np.log(np.exp(wide - largest[:, None]).sum(axis=1))
    return normalizers - wide[np.arange(len(labels)), labels]
