"""Heads fitted before the first update: the run's own, and those that its report is compared with.

What is fitted are features of the network as the run begins, so that the comparison says what training has
bought. It is made once, when nothing is trained yet, and recorded: an interrupted run has the same.
"""

import functools
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.loop.phases import Phase
from trainer.model.fits import Labelled, most_pictures
from trainer.model.heads import Head, NeighbourHead, make_head
from trainer.record.workdir import Workdir
from trainer.run.experiment import Experiment
from trainer.run.feature_cache import keeps
from trainer.run.kept_probes import find_or_fit
from trainer.run.stages import Stages
from trainer.run.team import team
from trainer.tasks import Task
from trainer.values import UsageError, failure_in_words

_log = logging.getLogger("trainer")
COMPARED = {"linear_probe": "probe", "knn": "knn(20)"}
"""{key in metrics.json: the head}."""
MOST_FITTED = 10_000
"""Pictures of train that these are fitted to, evenly over the split."""
MOST_WORK = 2e9
"""Pictures times features times classes that the probe is fitted to: some ten seconds on one core."""
ALWAYS_CHEAP = 1_000
"""Pictures whose features are computed for the comparison alone, however short the training is."""
CHEAP_SHARE = 0.25
"""Of what training computes, beyond which nothing is computed for the comparison alone."""
# With each picture the network computes gradients besides, which takes twice as long as the features.
_PASSES_OF_AN_UPDATE = 3
_BATCH_SIZE = 256


class PretrainedFeatures:
    """What the network makes of the splits of a run that has not begun, each computed once."""

    def __init__(self, stages: Stages):
        self.stages, self._found = stages, dict[tuple[str, int], Labelled]()

    def of(self, split: str, *, most: int = 0) -> Labelled:
        """Returns features and labels of a split, of `most` of its pictures where that is not 0."""
        experiment = self.stages.experiment
        indices = experiment.splits.indices[split]
        if most and most < len(indices):
            indices = indices[np.arange(most) * len(indices) // most]
        key = (split, len(indices))
        if key not in self._found:
            self._found[key] = Labelled(self._compute(split, indices), experiment.source.labels[indices])
        return self._found[key]

    def _compute(self, split: str, indices: np.ndarray) -> np.ndarray:
        stages, experiment = self.stages, self.stages.experiment
        stage = stages.stage_of(experiment.plan.phases[0])
        if stage.keeps(split):
            return stage.features(split, indices)
        what = f"{split} through the pretrained network"
        with stages.watched(what, len(indices)) as done:
            experiment.source.load()
            return stage.features(split, indices, done=done)


def fit_head(features: PretrainedFeatures) -> None:
    """Fits the head of a run that has not begun, where it is one that is fitted.

    One of another run, which training goes on from, stays as it is.

    Raises:
      UsageError: it cannot be; the message says why.
    """
    experiment, state = features.stages.experiment, features.stages.state
    head, config = experiment.classifier.head, experiment.config
    text = config.model.head
    if not head.fits or (config.takes_head and not config.fits):
        return
    try:
        train, validation = features.of("train"), features.of("validation")
        begun = time.perf_counter()
        cache_dir = experiment.config.run.cache_dir
        found = _fit(head, train, validation, task=experiment.task, cache_dir=cache_dir)
    except UsageError as error:
        raise UsageError(f"--head={text}: {error}") from None
    for variable in head.named_variables().values():
        # Another processor may round otherwise, or choose another strength.
        variable.assign(team().agree_array("the fitted head", variable.numpy()))
    if state.shadows:
        # Of the weights that training begins with.
        state.shadows.start()
    _log.info("head:        %s; fitted in %.1f s", found, time.perf_counter() - begun)


def _fit(
    head: Head | NeighbourHead, train: Labelled, validation: Labelled, *, task: Task, cache_dir: str
) -> str:
    """Fits a head, or finds what the same fit has come to before."""
    if isinstance(head, NeighbourHead):
        return head.fit(train, validation, task=task)
    return head.fit(train, validation, task=task, fit=functools.partial(find_or_fit, cache_dir=cache_dir))


def compare_pretrained(features: PretrainedFeatures) -> dict[str, Any]:
    """Fits the heads of `COMPARED` to what the network makes of train, and scores the other splits.

    Returns:
      What run.json holds as `pretrained`: {key of `COMPARED`: {"head", "how", "num_fitted", "scores": {split:
      {"num_correct", "num_examples", "loss", "right"}}}, or {"why_not": why there are none}}. `right` is a
      bit for each picture of the split, in hex, where a picture has one label.
    """
    stages, experiment = features.stages, features.stages.experiment
    try:
        _require_cheap(experiment, experiment.plan.phases)
        train = features.of("train", most=MOST_FITTED)
        others = {split: features.of(split) for split in experiment.splits.indices if split != "train"}
    except (UsageError, tf.errors.OpError) as error:
        if team().count > 1 and not isinstance(error, UsageError):
            # The others wait for what this one was to give.
            raise
        # What fails in training, too, is told there, with what was reached by then.
        why = str(error) if isinstance(error, UsageError) else failure_in_words(error)
        return {key: {"why_not": why} for key in COMPARED}
    with stages.once():
        return {key: _scored(experiment, text, train, others) for key, text in COMPARED.items()}


def _scored(
    experiment: Experiment, text: str, train: Labelled, others: Mapping[str, Labelled]
) -> dict[str, Any]:
    """Returns what is recorded of a head."""
    task, num_classes = experiment.task, len(experiment.source.class_names)
    try:
        if text == COMPARED["linear_probe"]:
            train = train.spread(most_pictures(num_classes, train.features.shape[1], work=MOST_WORK))
        given: dict[str, Any] = {"num_classes": num_classes, "task": task}
        cache_dir = experiment.config.run.cache_dir
        head, how = fitted_head(text, train, others["validation"], cache_dir=cache_dir, **given)
    except UsageError as error:
        return {"why_not": str(error)}
    names = experiment.source.class_names
    scores = {split: _score(head, one, task, names) for split, one in others.items()}
    return {"head": text, "how": how, "num_fitted": len(train.labels), "scores": scores}


def fitted_head(
    text: str, train: Labelled, validation: Labelled, *, num_classes: int, task: Task, cache_dir: str
) -> tuple[Head | NeighbourHead, str]:
    """Fits a head of its own to features, beside whatever head a run has.

    Args:
      text: such as `probe`.
      train: what is fitted.
      validation: what chooses how closely, where the head leaves that open.
      num_classes: K.
      task: what labels mean.
      cache_dir: the value of --cache_dir, where a probe is kept for the next time.

    Returns:
      The head, and in words how it was found.

    Raises:
      UsageError: it cannot be fitted to them; the message says why.
    """
    width = train.features.shape[1]
    head = make_head(
        text,
        num_classes=num_classes,
        num_logits=task.num_logits(num_classes, asked="per_class"),
        dropout=0.0,
        seed=0,
        num_examples=len(train.labels),
        width=width,
        task=task,
    )
    head.build(tf.TensorShape([None, width]))
    return head, _fit(head, train, validation, task=task, cache_dir=cache_dir)


def logits_of(head: Head | NeighbourHead, features: np.ndarray) -> np.ndarray:
    """Returns what a fitted head makes of features [N, D]: logits [N, K] float32."""
    return np.concatenate([head(part).numpy() for part in _parts(features)])


def _score(head: Any, given: Labelled, task: Task, class_names: Sequence[str]) -> dict[str, Any]:
    task, logits = task.plain(), logits_of(head, given.features)
    right = task.right(task.predicted(logits), given.labels)
    loss = task.means(given.labels, logits)["loss"]
    found: dict[str, Any] = {
        "num_correct": int(right.sum()),
        "num_examples": len(given.labels),
        "loss": float(loss),
    }
    if task.excludes:
        found["right"] = np.packbits(right).tobytes().hex()
    else:
        of_split = task.split_metrics(given.labels, logits, class_names)
        found |= {name: of_split[name] for name in ("map", "macro_f1") if name in of_split}
    return found


def _parts(features: np.ndarray) -> Iterator[tf.Tensor]:
    for start in range(0, len(features), _BATCH_SIZE):
        yield tf.constant(features[start : start + _BATCH_SIZE])


def _require_cheap(experiment: Experiment, phases: Sequence[Phase]) -> None:
    """Makes sure that training needs the features, too, or that they cost little beside it.

    Raises:
      UsageError: they would cost more than `CHEAP_SHARE` of it.
    """
    # What a later phase makes of test takes its own pass.
    count = sum(
        number
        for split, number in _fitted_and_scored(experiment).items()
        if not keeps(experiment, phases[0].spec, split) or (split == "test" and len(phases) > 1)
    )
    training = sum(_passes(experiment, phase) for phase in phases)
    if count > max(ALWAYS_CHEAP, CHEAP_SHARE * training):
        raise UsageError(
            f"training does not need the features of {count:,} pictures, and to compute them takes more than "
            f"{CHEAP_SHARE:.0%} of it"
        )


def compared_alone(experiment: Experiment, phases: Sequence[Phase]) -> int:
    """Returns how many pictures go through the network for the comparison alone, and are kept by no phase."""
    try:
        _require_cheap(experiment, phases)
    except UsageError:
        return 0
    counts, first = _fitted_and_scored(experiment), phases[0].spec
    return sum(number for split, number in counts.items() if not keeps(experiment, first, split))


def _fitted_and_scored(experiment: Experiment) -> dict[str, int]:
    """Returns {split: how many of its pictures the comparison takes}."""
    counts = {split: len(at) for split, at in experiment.splits.indices.items()}
    return counts | {"train": min(counts["train"], MOST_FITTED)}


def _passes(experiment: Experiment, phase: Phase) -> int:
    """Returns how many pictures go through the network in a phase, if it keeps no features."""
    passes = _PASSES_OF_AN_UPDATE if experiment.trained_in_backbone(phase.spec) else 1
    return passes * phase.num_steps * experiment.config.plan.batch_size


def record_pretrained(features: PretrainedFeatures, workdir: Workdir) -> None:
    """Makes the comparison of a run that has not begun, unless an earlier start has recorded it."""
    if "pretrained" in workdir.read_facts():
        return
    begun = time.perf_counter()
    found = compare_pretrained(features)
    workdir.amend_run(pretrained=found)
    values = compared(workdir, "validation")
    what = " of validation without training" if any("accuracy" in one for one in values.values()) else ""
    _log.info("pretrained:  %s%s (%.1f s)", told_compared(values), what, time.perf_counter() - begun)


def compared(workdir: Workdir, split: str, *, right: np.ndarray | None = None) -> dict[str, Any]:
    """Returns what metrics.json holds as `pretrained` of a split: what the network reaches as it began.

    Args:
      workdir: of the run.
      split: which has been scored.
      right: [N] bool, what the run has right of the split, in its order; None: it is not known.

    Returns:
      {key of `COMPARED`: {"accuracy", "num_correct", "num_examples", "loss", "num_fitted", "head", "how"}, or
      {"why_not": why there is none}}; of any number of labels also "map" and "macro_f1", decided at 0.5. Of
      one label, with `right`, also "only_run", "only_this" and "p_value" of McNemar's test.
    """
    from trainer.metrics.significance import mcnemar  # Late: scipy takes a second to import.

    recorded = workdir.read_facts().get("pretrained", {})
    found = {}
    for key in COMPARED:
        one = recorded.get(key, {"why_not": "the version that began this run made none"})
        if split == "train" and "scores" in one:
            one = {"why_not": "these are the pictures that it was fitted to"}
        if "scores" in one:
            score = dict(one["scores"][split])
            bits = score.pop("right", None)
            if bits is not None and right is not None:
                theirs = np.unpackbits(np.frombuffer(bytes.fromhex(bits), np.uint8), count=len(right))
                only_run, only_this, p_value = mcnemar(right, theirs)
                score |= {"only_run": only_run, "only_this": only_this, "p_value": p_value}
            about = {name: one[name] for name in ("num_fitted", "head", "how")}
            one = {"accuracy": score["num_correct"] / score["num_examples"], **score, **about}
        found[key] = one
    return found


def told_compared(values: Mapping[str, Any]) -> str:
    """Returns e.g. 'linear probe 92.37 %, knn(20) 91.01 % (339 and 334 of 367 right)'."""
    known = {key: one for key, one in values.items() if "accuracy" in one}
    if not known:
        return f"no linear probe: {values['linear_probe']['why_not']}"
    names = {"linear_probe": "linear probe", "knn": "20 nearest neighbours"}
    if any("map" in one for one in known.values()):
        parts = [
            f"{names[key]} mAP {one['map']:.4f}, macro F1 {one['macro_f1']:.3f}" for key, one in known.items()
        ]
        return ", ".join(parts)
    parts = [
        f"{names[key]} {100 * one['accuracy']:.2f} % ({one['num_correct']:,} of {one['num_examples']:,})"
        for key, one in known.items()
    ]
    parts += [f"no {names[key]}: {one['why_not']}" for key, one in values.items() if key not in known]
    return ", ".join(parts)
