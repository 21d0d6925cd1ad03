"""Probabilities, predictions and losses from logits. NumPy only.

Of classes of which exactly one is true; in `sigmoid` and `binary_cross_entropies` each is true or not.
"""

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


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Returns the probability of every class, in 64 bits whatever the logits have; NaN of what is NaN."""
    wide = logits.astype(np.float64)
    # Of two forms that which does not overflow.
    small = np.exp(-np.abs(wide))
    return np.where(wide >= 0, 1.0, small) / (1.0 + small)


def binary_cross_entropies(labels: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Returns -log of the probability that each class is what it is in nats, [N, K] float64.

    Args:
      labels: [N, K] 0 or 1.
      logits: [N, K].
    """
    wide = logits.astype(np.float64)
    return np.logaddexp(0.0, wide) - labels * wide
