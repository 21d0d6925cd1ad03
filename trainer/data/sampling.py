"""How often each training picture is seen: as it comes, or rare classes more often than frequent ones."""

from collections.abc import Sequence

import numpy as np

from trainer.tasks import Task

SAMPLINGS = {"balanced": 1.0, "sqrt": 0.5}
"""{value of --sampling: the power of how frequent a class is that it takes away}."""


def chances(text: str, labels: np.ndarray, *, task: Task, num_classes: int) -> np.ndarray | None:
    """Returns how often each of N training examples is to be seen beside the others: [N] float64 above 0.

    By one over the number of examples of its class, or over the root of that. Of an example with several
    labels, by that of the rarest one (as repeat factors are: Gupta, Dollar and Girshick, 2019, LVIS, arXiv
    1908.03195); one without labels counts as one of the most frequent label.

    Args:
      text: of --sampling.
      labels: [N, ...], as the task has them.
      task: says which classes they are.
      num_classes: K.

    Returns:
      None where each is seen once an epoch.
    """
    if text not in SAMPLINGS:
        return None
    present = task.indicators(labels, num_classes)
    counts = np.maximum(present.sum(axis=0), 1)
    of_class = counts.astype(np.float64) ** -SAMPLINGS[text]
    found = np.where(present, of_class, 0.0).max(axis=1)
    return np.where(found > 0, found, of_class.min())


def assumed_shares(
    labels: np.ndarray,
    weights: np.ndarray,
    *,
    task: Task,
    class_names: Sequence[str],
) -> dict[str, dict[str, float]]:
    """Returns {class: {"train", "assumed"}}: its share of the examples, and of what training was told.

    Args:
      labels: [N, ...] of train.
      weights: [N], how much each counts in training: how often it is seen times its weight in the loss.
      task: says which classes they are.
      class_names: [K].
    """
    present = task.indicators(labels, len(class_names))
    assumed = weights @ present / weights.sum()
    return {
        name: {"train": float(share), "assumed": float(other)}
        for name, share, other in zip(class_names, present.mean(axis=0), assumed, strict=True)
    }
