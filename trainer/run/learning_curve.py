"""How good a head is that is fitted to parts of train, and what more pictures would buy."""

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainer.data.strata import stratify
from trainer.metrics.sample_size import Outlook, outlook
from trainer.model.fits import Labelled, most_pictures
from trainer.record.progress import counting
from trainer.run.fitting import PretrainedFeatures, fitted_head, logits_of
from trainer.run.scoring import main_split
from trainer.tasks import Task
from trainer.values import UsageError

_log = logging.getLogger("trainer")
PROBE = "probe"
LEAST_SIZES = 3
MOST_WORK = 4e9
"""Pictures times features times classes of one size, all its draws together: half a minute on one core."""


@dataclass(frozen=True)
class LearningCurve:
    """What was found.

    `right[i]` is [draws, M] bool: which of the M pictures of `split` were right after a fit to each draw of
    `sizes[i]` training pictures; `head` is what was fitted.
    """

    head: str
    split: str
    sizes: list[int]
    right: list[np.ndarray]
    outlook: Outlook

    def accuracies(self, i: int) -> np.ndarray:
        """Returns the accuracy after each draw of size i, [draws] float64."""
        return self.right[i].mean(axis=1)

    def to_json(self) -> dict[str, Any]:
        """Returns what learning_curve.json holds."""
        of = [self.accuracies(i) for i in range(len(self.sizes))]
        points = [
            {"pictures": size, "accuracy": float(values.mean()), "draws": values.tolist()}
            for size, values in zip(self.sizes, of, strict=True)
        ]
        ahead = self.outlook
        twice = {
            "pictures": ahead.num_train,
            "gain": ahead.gain,
            "gain_95_percent_interval": [ahead.low, ahead.high],
        }
        num_scored = self.right[0].shape[1]
        return {
            "head": self.head,
            "split": self.split,
            "num_scored": num_scored,
            "points": points,
            "twice": twice,
        }


def learning_curve(
    features: PretrainedFeatures, *, shares: list[float], draws: int, progress: str
) -> LearningCurve:
    """Fits a head to shares of train, and scores the split that runs are judged by.

    Each draw shuffles train and takes the first share, class by class, the second one with the first in it,
    and so on. The head is --head where that is fitted, else a linear probe, whose strength validation chooses
    anew for each draw.

    Args:
      features: of the splits.
      shares: of train, rising.
      draws: of each share; fewer where a fit takes long, and one of all of train.
      progress: value of --progress.

    Raises:
      UsageError: train is too small for so many different sizes, or the head cannot be fitted to it.
    """
    experiment = features.stages.experiment
    config, task, num_classes = experiment.config, experiment.task, len(experiment.source.class_names)
    split = main_split(experiment.splits.indices)
    train, validation, scored = features.of("train"), features.of("validation"), features.of(split)
    count, width = train.features.shape
    sizes = sorted({round(share * count) for share in shares} - {0})
    if len(sizes) < LEAST_SIZES:
        raise UsageError(
            f"a curve needs {LEAST_SIZES} sizes, and shares of {count:,} training pictures are of "
            f"{len(sizes)}: take more pictures, or other --curve_shares"
        )
    if count > (most := most_pictures(num_classes, width)):
        raise UsageError(f"train has {count:,} pictures, and a fit to more than {most:,} takes too long here")
    text = config.model.head if config.fitted_head else PROBE
    cache_dir = config.run.cache_dir
    given: dict[str, Any] = {"num_classes": num_classes, "task": task, "cache_dir": cache_dir}
    times = [_draws_of(size, count, draws, num_classes * width) for size in sizes]
    right: list[list[np.ndarray]] = [[] for _ in sizes]
    with counting(progress, "learning curve", sum(times), unit="fits") as done:
        for draw in range(max(times)):
            parts = _parts(train, sizes, task, seed=[config.run.seed, draw])
            for i, part in enumerate(parts):
                if draw < times[i]:
                    head, _ = fitted_head(text, part, validation, **given)
                    right[i].append(_right(head, scored, task))
                    done(1)
    found = [np.array(of) for of in right]
    return LearningCurve(text, split, sizes, found, outlook(sizes, found, seed=config.run.seed))


def _draws_of(size: int, count: int, draws: int, work: int) -> int:
    """Returns how often a size is drawn; what is all of train is the same each time."""
    return 1 if size == count else min(draws, max(2, int(MOST_WORK / (size * work))))


def _parts(train: Labelled, sizes: list[int], task: Task, *, seed: list[int]) -> list[Labelled]:
    """Returns parts of train, each with those before it in it, with the shares of classes that train has."""
    order = np.random.default_rng(seed).permutation(len(train.labels))
    steps = [*np.diff([0, *sizes]).tolist(), len(order) - sizes[-1]]
    pieces = stratify(task.groups(train.labels[order]), steps, order=range(len(steps)))
    taken = [np.sort(order[np.concatenate(pieces[: i + 1])]) for i in range(len(sizes))]
    return [Labelled(train.features[at], train.labels[at]) for at in taken]


def _right(head: Any, scored: Labelled, task: Task) -> np.ndarray:
    """Returns which pictures a head is right on, [M] bool."""
    return task.right(task.plain().predicted(logits_of(head, scored.features)), scored.labels)
