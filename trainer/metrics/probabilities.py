"""Probabilities from logits, what scores them as a whole, and which pictures to look at first."""

import numpy as np
from sklearn import metrics as sk_metrics


def log_odds(logits: np.ndarray) -> np.ndarray:
    """Returns log(p / (1 - p)) of every class, which rises with p and, unlike that, never rounds to 1.

    Args:
      logits: [N, K], finite, K at least 2.

    Returns:
      [N, K] float64.
    """
    wide = logits.astype(np.float64)
    wide = wide - wide.max(axis=1, keepdims=True)
    powers = np.exp(wide)
    rows, best = np.arange(len(wide)), wide.argmax(axis=1)
    # Of the highest logit this difference could be all rounding: its others are summed without it.
    rest = np.maximum(powers.sum(axis=1, keepdims=True) - powers, np.finfo(np.float64).tiny)
    others = np.log(rest)
    wide_others = wide.copy()
    wide_others[rows, best] = -np.inf
    second = wide_others.max(axis=1, keepdims=True)
    others[rows, best] = second[:, 0] + np.log(np.exp(wide_others - second).sum(axis=1))
    return wide - others


def why_undefined(logits: np.ndarray) -> str:
    """Returns why there are no probabilities of all pictures: what to say of it; empty where there are."""
    bad = int((~np.isfinite(logits)).any(axis=1).sum())
    if not bad:
        return ""
    return f"a logit of {bad:,} of {len(logits):,} pictures is no finite number"


def log_loss(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Returns the mean of -log of the true class's probability, in nats.

    As scikit-learn defines it: a probability counts as at least 2.2e-16, so that one confident mistake
    costs no more than 36.

    Args:
      labels: [N] int.
      probabilities: [N, K], K at least 2.
    """
    classes = np.arange(probabilities.shape[1])
    return float(sk_metrics.log_loss(labels, probabilities, labels=classes))


def brier_score(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Returns the mean squared error of the probabilities (Brier, 1950, Monthly Weather Review 78, 1-3).

    Summed over the classes, from 0 to 2; of two classes that of the second one alone, from 0 to 1, as is
    usual and as scikit-learn has it.

    Args:
      labels: [N] int.
      probabilities: [N, K].
    """
    errors = probabilities - np.eye(probabilities.shape[1])[labels]
    score = float((errors**2).sum(axis=1).mean())
    return score / 2 if probabilities.shape[1] == 2 else score


def worst_mistakes(wrong: np.ndarray, confidence: np.ndarray, *, count: int) -> list[int]:
    """Returns the rows that are wrong, by the probability of what was predicted, the highest first.

    Args:
      wrong: [N] bool.
      confidence: [N] that probability.
      count: how many at most. Of equal probabilities the earlier row comes first; rows without one are left
        out.
    """
    found = wrong & np.isfinite(confidence)
    return [int(i) for i in np.argsort(-confidence, kind="stable") if found[i]][:count]


def least_certain(confidence: np.ndarray, *, count: int) -> list[int]:
    """Returns the rows, right or wrong, by the probability of what was predicted, the lowest first.

    Args:
      confidence: [N] that probability.
      count: how many at most. Of equal probabilities the earlier row comes first; rows without one are left
        out.
    """
    return [int(i) for i in np.argsort(confidence, kind="stable") if np.isfinite(confidence[i])][:count]
