"""Labels that are probably wrong: confident learning (Northcutt et al., 2021, arXiv 1911.00068).

A few lines instead of cleanlab, which brings pandas: the count of their confident joint, and the ranking by
self-confidence, each probability in proportion to what is usual for its class.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LabelIssues:
    """What probabilities say of labels.

    `order` holds places of pictures whose label is not the most likely one, the least likely label first. Of
    the first `num_probable` of them the label is probably wrong. `suggested` is [N] int64, the class that is
    more likely instead, or the label. `confidence` is [N], the probability of the label over the mean of that
    of pictures with the same label.
    """

    order: np.ndarray
    num_probable: int
    suggested: np.ndarray
    confidence: np.ndarray


def find_label_issues(probabilities: np.ndarray, labels: np.ndarray) -> LabelIssues:
    """Finds labels that are probably wrong.

    Args:
      probabilities: [N, K], each row from a classifier that has not seen this picture.
      labels: [N] int64, one class each, of which each that appears is known to the classifier.
    """
    rows = np.arange(len(labels))
    of_label = probabilities[rows, labels]
    counts = np.bincount(labels, minlength=probabilities.shape[1])
    usual = np.bincount(labels, of_label, minlength=len(counts)) / np.maximum(counts, 1)
    # A class without a picture is nobody's other class.
    usual = np.where(counts > 0, np.maximum(usual, 1e-9), np.inf)
    ratios = probabilities / usual
    # Counted are those that another class claims with at least its usual confidence.
    confident = np.where(ratios >= 1, probabilities, -1.0)
    others = confident.argmax(axis=1)
    is_counted = (confident.max(axis=1) > 0) & (others != labels)
    suggested = probabilities.argmax(axis=1)
    suggested = np.where(is_counted, others, suggested)
    confidence = of_label / usual[labels]
    doubted = np.flatnonzero(suggested != labels)
    order = doubted[np.argsort(confidence[doubted], kind="stable")]
    return LabelIssues(order, int(is_counted.sum()), suggested, confidence)
