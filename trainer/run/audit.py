"""Which pictures to look at before believing a number: labels, copies, what is odd, blurred, dark or tiny."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trainer import plugins
from trainer.data.near_duplicates import Pair, find_near_duplicates, group_keys
from trainer.data.picture_quality import Quality, measure_quality
from trainer.metrics.label_noise import find_label_issues
from trainer.metrics.outliers import far_out, neighbour_distances
from trainer.model.fits import Labelled
from trainer.record.progress import counting
from trainer.run.experiment import Experiment
from trainer.run.fitting import PretrainedFeatures, fitted_head, logits_of
from trainer.store.places import cache_root
from trainer.values import UsageError

_log = logging.getLogger("trainer")
HEADS = ("probe", "knn(20)")
"""What labels are judged by, all together: their errors differ, and neighbours bear wrong labels well."""
PERHAPS = 1.5
"""How many times as many labels are listed as are probably wrong: the rest is perhaps wrong."""
TINY = 0.5
"""Share of the side that the network sees, below which a picture is tiny."""
BLURRED, DARK = 0.06, 0.2
"""Sharpness and brightness below which a picture is blurred or dark; see `data.picture_quality`.

Of 321 photos of flowers none is less sharp; blurred by a Gaussian of 3 px at 224 px, nine of ten are.
"""
WRONG, DOUBTFUL, DISPUTED = "label is probably wrong", "label is perhaps wrong", "copy with another label"
ODD, IS_BLURRED, IS_DARK, IS_TINY = "unlike the others", "blurred", "dark", "tiny"
REASONS = (DISPUTED, WRONG, DOUBTFUL, ODD, IS_BLURRED, IS_DARK, IS_TINY)


@dataclass(frozen=True)
class Finding:
    """Why a picture should be looked at.

    `at` is its position in the source, `reason` one of `REASONS`, `score` the lower the worse; of a label,
    `suggested` is the class that is more likely.
    """

    at: int
    reason: str
    score: float
    suggested: str = ""


@dataclass(frozen=True)
class Audit:
    """What was found: `findings` by reason, the worst first, and `pairs` of near duplicates."""

    num_pictures: int
    num_judged: int
    findings: list[Finding]
    pairs: list[Pair]
    split_of: dict[int, str] = field(default_factory=dict)

    def of(self, reason: str) -> list[Finding]:
        """Returns the findings of one reason."""
        return [one for one in self.findings if one.reason == reason]


def audit(features: PretrainedFeatures, *, folds: int, progress: str) -> Audit:
    """Looks at all pictures of all splits.

    Labels are judged by heads that were fitted to other pictures: those of the other folds, and copies of a
    picture are in its fold.

    Args:
      features: of the splits.
      folds: how many.
      progress: value of --progress.

    Raises:
      UsageError: labels are not one class each, or there are too few pictures.
    """
    experiment = features.stages.experiment
    split_of = {at: split for split, part in experiment.splits.indices.items() for at in part.tolist()}
    parts = [features.of(split) for split in experiment.splits.indices]
    indices = np.concatenate(list(experiment.splits.indices.values()))
    every = Labelled(np.concatenate([p.features for p in parts]), np.concatenate([p.labels for p in parts]))
    if len(indices) < 2 * folds:
        raise UsageError(
            f"--audit_folds={folds} needs {2 * folds} pictures or more, and there are {len(indices)}"
        )
    recorded = cache_root(experiment.config.run.cache_dir) / "near_duplicates"
    source, scan = experiment.source, experiment.scan
    pairs = find_near_duplicates(
        source, scan, task=experiment.task, recorded=recorded, plugins=plugins.sources("source")
    )
    pairs = [pair for pair in pairs if pair.first in split_of and pair.second in split_of]
    keys = np.array(group_keys(pairs, len(source.ids)))[indices]
    fold_of = fold_numbers(every.labels, keys, folds, seed=experiment.config.run.seed)
    probabilities, judged = judge_labels(every, fold_of, experiment, progress)
    findings = [
        *_disputed(pairs, experiment),
        *_labels(probabilities, judged, every.labels, indices, experiment),
        *_unlike(every.features, indices),
        *_poor(measure_quality(source, scan, indices, task=experiment.task), indices, experiment),
    ]
    return Audit(len(indices), int(judged.sum()), findings, pairs, split_of)


def fold_numbers(labels: np.ndarray, keys: np.ndarray, folds: int, *, seed: int) -> np.ndarray:
    """Returns the fold of each picture, [N] int64 from 0: each fold has its share of every class.

    Args:
      labels: [N] int64.
      keys: [N] int64, alike for pictures that are to be in one fold.
      folds: how many.
      seed: of the order that they are dealt in.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    fold_of_key: dict[int, int] = {}
    dealt = np.zeros(int(labels.max()) + 1, np.int64)
    for at in order.tolist():
        if (key := int(keys[at])) not in fold_of_key:
            # Each class begins at another fold: the only keys of several are not all in the first.
            fold_of_key[key] = int((dealt[labels[at]] + labels[at]) % folds)
            dealt[labels[at]] += 1
    return np.array([fold_of_key[key] for key in keys.tolist()], np.int64)


def judge_labels(
    every: Labelled, fold_of: np.ndarray, experiment: Experiment, progress: str
) -> tuple[np.ndarray, np.ndarray]:
    """Returns probabilities by what was fitted to other folds, [N, K], and which labels they judge, [N] bool.

    Those are not judged of whose class no other fold has a picture, or where the others have one class alone.
    """
    task, num_classes = experiment.task, len(experiment.source.class_names)
    cache_dir = experiment.config.run.cache_dir
    given: dict[str, Any] = {"num_classes": num_classes, "task": task, "cache_dir": cache_dir}
    found = np.zeros((len(fold_of), num_classes))
    judged = np.zeros(len(fold_of), bool)
    numbers = np.unique(fold_of).tolist()
    probe, unjudged = "", 0
    with counting(progress, "labels", len(numbers), unit="folds") as done:
        for number in numbers:
            inside = fold_of == number
            rest, part = _taken(every, ~inside), _taken(every, inside)
            if len(np.unique(rest.labels)) < 2:
                unjudged += len(part.labels)
                done(1)
                continue
            if not probe:
                # One strength for all folds: it is chosen by those that it is not fitted to.
                probe = _with_strength(rest, part, given)
            for text in (probe, *HEADS[1:]):
                head, _ = fitted_head(text, rest, part, **given)
                found[inside] += task.plain().probabilities(logits_of(head, part.features)) / len(HEADS)
            judged[inside] = np.isin(part.labels, rest.labels)
            done(1)
    if unjudged:
        _log.warning(
            "labels of %d pictures are not judged: the pictures outside of their fold are of one class, or "
            "there are none, as near duplicates are in one fold", unjudged,
        )  # fmt: skip
    return found, judged


def _with_strength(rest: Labelled, part: Labelled, given: Mapping[str, Any]) -> str:
    """Returns such as probe(0.001), of the strength that a probe fitted to `rest` chooses by `part`."""
    _, how = fitted_head(HEADS[0], rest, part, **given)
    return f"probe({how.partition('C=')[2].partition(',')[0]})"


def _taken(every: Labelled, which: np.ndarray) -> Labelled:
    return Labelled(every.features[which], every.labels[which])


def _labels(
    probabilities: np.ndarray,
    judged: np.ndarray,
    labels: np.ndarray,
    indices: np.ndarray,
    experiment: Experiment,
) -> list[Finding]:
    """Returns the labels that are probably or perhaps wrong."""
    if not judged.any():
        return []
    places = np.flatnonzero(judged)
    issues = find_label_issues(probabilities[places], labels[places])
    names, found = experiment.source.class_names, []
    for rank, place in enumerate(issues.order[: round(PERHAPS * issues.num_probable)].tolist()):
        reason = WRONG if rank < issues.num_probable else DOUBTFUL
        suggested = names[int(issues.suggested[place])]
        found.append(Finding(int(indices[places[place]]), reason, float(issues.confidence[place]), suggested))
    return found


def _disputed(pairs: Sequence[Pair], experiment: Experiment) -> list[Finding]:
    """Returns near duplicates that have different labels: at least one of them is wrong."""
    source, task = experiment.source, experiment.task
    words = {
        at: task.label_words(source.labels[at], source.class_names)
        for p in pairs
        for at in (p.first, p.second)
    }
    found: dict[int, Finding] = {}
    for pair in pairs:
        for at, other in ((pair.first, pair.second), (pair.second, pair.first)):
            if words[at] != words[other]:
                found.setdefault(at, Finding(at, DISPUTED, float(pair.bits), words[other]))
    return list(found.values())


def _unlike(features: np.ndarray, indices: np.ndarray) -> list[Finding]:
    distances = neighbour_distances(features)
    places = np.flatnonzero(far_out(distances))
    ranked = places[np.argsort(-distances[places], kind="stable")].tolist()
    return [Finding(int(indices[place]), ODD, float(1 - distances[place])) for place in ranked]


def _poor(quality: Quality, indices: np.ndarray, experiment: Experiment) -> list[Finding]:
    contract = experiment.backbone.contract
    side = min(contract.height_px, contract.width_px)
    found = []
    for reason, values, least in (
        (IS_BLURRED, quality.sharpness, BLURRED),
        (IS_DARK, quality.brightness, DARK),
        (IS_TINY, quality.short_px / side, TINY),
    ):
        places = np.flatnonzero(values < least)
        ranked = places[np.argsort(values[places], kind="stable")].tolist()
        found += [Finding(int(indices[place]), reason, float(values[place])) for place in ranked]
    return found
