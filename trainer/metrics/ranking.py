"""What the order of the logits says, wherever the line between the classes is drawn."""

import numpy as np
from scipy import stats
from sklearn import metrics as sk_metrics

from trainer.metrics.probabilities import log_odds

TOP_K = (1, 2, 3, 5)


def top_k_accuracies(labels: np.ndarray, logits: np.ndarray) -> dict[int, float]:
    """Returns {k: share of pictures whose true class is among the k most probable ones}.

    Of equal logits the first class counts as the higher one, so that k = 1 is the accuracy; scikit-learn
    takes the last.

    Args:
      labels: [N] int.
      logits: [N, K].

    Returns:
      k = 1, 2, 3, 5, as far as it is below the number of classes.
    """
    order = np.argsort(-np.where(np.isnan(logits), -np.inf, logits), axis=1, kind="stable")
    hits = order == np.asarray(labels)[:, None]
    return {k: float(hits[:, :k].any(axis=1).mean()) for k in TOP_K if k < logits.shape[1]}


def roc_auc(labels: np.ndarray, logits: np.ndarray) -> float | None:
    """Returns the area under the receiver operating characteristic of two classes.

    It is the chance that a picture of the second class has a higher probability of that class than one of
    the first (Hanley and McNeil, 1982, Radiology 143, 29-36), and does not depend on where the line between
    the classes is drawn.

    Args:
      labels: [N] int.
      logits: [N, K].

    Returns:
      None where there is no such thing: K is not 2, a class has no picture, or a logit is no finite number.
    """
    return class_roc_aucs(labels, logits)[1] if logits.shape[1] == 2 else None


def class_roc_aucs(labels: np.ndarray, logits: np.ndarray) -> list[float | None]:
    """Returns, of each class, the area under the receiver operating characteristic against all others.

    Args:
      labels: [N] int.
      logits: [N, K].

    Returns:
      [K]. None where there is no such thing: no picture is of the class, or all are, or a logit is no
      finite number.
    """
    if not np.isfinite(logits).all():
        return [None] * logits.shape[1]
    # A class is a row, and contiguous: sorting a column of thousands of classes waits for memory.
    scores = np.ascontiguousarray(log_odds(logits).T)
    return [area(np.asarray(labels) == k, row) for k, row in enumerate(scores)]


def roc_curve(labels: np.ndarray, logits: np.ndarray, *, positive: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the curve whose area `class_roc_aucs` gives.

    Args:
      labels: [N] int; some of the class `positive`, some of others.
      logits: [N, K], finite.
      positive: the class that is looked for.

    Returns:
      [T] share of the others that is taken for it and [T] share of it that is found, for thresholds from
      the highest to the lowest.
    """
    scores = log_odds(logits)[:, positive]
    false_rates, true_rates, _ = sk_metrics.roc_curve(labels == positive, scores, drop_intermediate=False)
    return false_rates, true_rates


def area(is_positive: np.ndarray, scores: np.ndarray) -> float | None:
    """Returns the share of pairs in the right order; equal scores count half (Mann and Whitney, 1947).

    None where all are positive, or none.
    """
    count = int(is_positive.sum())
    others = len(scores) - count
    if not count or not others:
        return None
    # scikit-learn's own gives the same and takes half a minute for a thousand classes.
    ranks = stats.rankdata(scores)[is_positive].sum()
    return float((ranks - count * (count + 1) / 2) / (count * others))
