"""Which pictures to look at first."""

import numpy as np

from trainer.measures.probabilities import predicted, softmax


def worst_mistakes(labels: np.ndarray, logits: np.ndarray, *, count: int) -> list[int]:
    """Returns the rows that are wrong, by the probability of the predicted class, the highest first.

    Args:
      labels: [N] int.
      logits: [N, K].
      count: how many at most. Of equal probabilities the earlier row comes first; rows without
        probabilities are left out.
    """
    confidence = softmax(logits).max(axis=1)
    wrong = (predicted(logits) != labels) & np.isfinite(confidence)
    return [int(i) for i in np.argsort(-confidence, kind="stable") if wrong[i]][:count]


def least_certain(logits: np.ndarray, *, count: int) -> list[int]:
    """Returns the rows, right or wrong, by the probability of the predicted class, the lowest first.

    Args:
      logits: [N, K].
      count: how many at most. Of equal probabilities the earlier row comes first; rows without
        probabilities are left out.
    """
    confidence = softmax(logits).max(axis=1)
    return [int(i) for i in np.argsort(confidence, kind="stable") if np.isfinite(confidence[i])][:count]
