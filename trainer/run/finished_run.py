"""The network of a finished run, from its workdir alone, and --init_from, which begins with it."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.cli.config import Config
from trainer.loop.phases import make_plan
from trainer.model.backbones import Backbone, keep_rounding, open_for_checkpoint
from trainer.model.classifier import Classifier
from trainer.model.cuts import WHOLE, Cut, whole_cut
from trainer.model.weights import assign_weights, scored_weights
from trainer.precision import Choice, in_precision, openvino, supported
from trainer.record.calibration import settled_task
from trainer.record.checkpoints import Checkpoints
from trainer.record.workdir import Workdir
from trainer.run.engines import asked_engine, compiled, is_left, tell_unusable, usable
from trainer.run.experiment import Experiment, make_classifier
from trainer.tasks import Task, make_task
from trainer.values import OPENVINO, TENSORFLOW, Contract, TrainerError, composed, failure_in_words

_log = logging.getLogger("trainer")


def take_weights(experiment: Experiment) -> dict[str, Any]:
    """Puts the best weights of the run in --init_from into the network, and returns what was taken.

    Every variable of --init_part is matched by name and shape, or none is taken.

    Raises:
      TrainerError: there is no such run, it has no whole best checkpoint, or it does not fit.
    """
    model = experiment.config.model
    flag, part = f"--init_from={model.init_from}", model.init_part
    other = Workdir(model.init_from)
    theirs, ours = other.read_facts(), experiment.source.class_names
    if not theirs:
        raise TrainerError(f"{flag} holds no run (no {other.run_json.name} in it)")
    if part == "all" and [*map(composed, theirs["class_names"])] != [*map(composed, ours)]:
        raise TrainerError(
            f"{flag} tells {_told(theirs['class_names'])} apart, this run {_told(ours)}: its head means "
            "something else; --init_part=backbone takes the network alone"
        )
    checkpoints = Checkpoints(other.checkpoints, keep=1)
    path = checkpoints.find("best")
    prefix = "" if part == "all" else "backbone/"
    values = scored_weights(checkpoints.values(path))
    found = {name: value for name, value in values.items() if name.startswith(prefix)}
    variables = experiment.classifier.named_variables
    wanted = {name: variable for name, variable in variables.items() if name.startswith(prefix)}
    for name in sorted({*found, *wanted}):
        was = list(found[name].shape) if name in found else "missing"
        now = wanted[name].shape.as_list() if name in wanted else "missing"
        if was != now:
            raise TrainerError(
                f"{flag} does not fit: {name} is {was} there and {now} here; "
                + ("--init_part=backbone takes the network alone" if part == "all" else "the networks differ")
            )
    for name, variable in wanted.items():
        variable.assign(found[name])
    step = checkpoints.step_of(path)
    _log.info("weights:     %s of %s, step %s", part, other.root, f"{step:,}")
    seen = seen_before(other, experiment.split_record())
    noted = {"workdir": str(other.root), "identity": theirs["identity"], "step": step, "part": part}
    return {**noted, **({"seen_before": seen} if seen else {})}


def seen_before(
    other: Workdir, splits: Mapping[str, Sequence[tuple[str, str, str]]]
) -> dict[str, dict[str, int]]:
    """Counts by split how many pictures another run learnt from, by the SHA-256 of their bytes.

    Args:
      other: the run that this one begins with.
      splits: {split: [(id, class name, SHA-256)]} of this one.

    Returns:
      {split: {split of the other: count}}, of those that score and that it trained with or chose by.
    """
    if not other.splits_json.exists():
        return {}
    theirs = {name: {row[2] for row in rows} for name, rows in other.read_splits().items()}
    counts = {}
    # By validation weights are chosen here, too: that the other's were adds nothing.
    for split, learnt in (("validation", ["train"]), ("test", ["train", "validation"])):
        digests = [row[2] for row in splits.get(split, ()) if row[2]]
        found = {name: sum(digest in theirs.get(name, ()) for digest in digests) for name in learnt}
        if any(found.values()):
            counts[split] = found
    return counts


def tell_seen_before(taken: Mapping[str, Any], *, scored: str) -> None:
    """Warns where the run that this one begins with has learnt from what will score this one.

    Args:
      taken: what `take_weights` returned.
      scored: the split that the report is of.
    """
    if seen := taken.get("seen_before", {}).get(scored):
        _log.warning("%s", told_learnt_before(seen, scored))


def told_learnt_before(seen: Mapping[str, int], scored: str) -> str:
    """Returns in words what `seen_before` counted of the split `scored`."""
    return (
        f"{seen.get('train', 0)} of the {scored} pictures are among those that the run in --init_from was "
        f"trained with, and {seen.get('validation', 0)} among those that its best weights were chosen by: "
        "read the score as too good"
    )


def _told(names: Any) -> str:
    shown = ", ".join(list(names)[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"


@dataclass(frozen=True)
class Network:
    """A classifier with the weights of a checkpoint.

    `class_names` are in the order of its logits, `step` is that of the checkpoint, and `precision` the
    arithmetic that its backbone is to be run in by TensorFlow. `engine` is what runs it: `tensorflow`, or
    such as `openvino-float32`.
    """

    classifier: Classifier
    class_names: tuple[str, ...]
    step: int
    precision: str
    engine: str = TENSORFLOW

    @property
    def contract(self) -> Contract:
        """What `logits` wants to be fed."""
        return self.classifier.backbone.contract

    @property
    def task(self) -> Task:
        """What the logits mean."""
        return self.classifier.task

    def logits(self, images: np.ndarray, *, batch_size: int = 0) -> np.ndarray:
        """Maps images [B, H, W, 3] float32 in `contract.value_range` to logits [B, K] float32.

        The backbone computes in `precision`, or as `engine` says, the head in float32. How many pictures
        there are in a batch may change the last bits.

        Args:
          images: B of them.
          batch_size: fewer are filled up to as many, as far as it matters for speed and for those bits.

        Raises:
          TrainerError: TensorFlow or OpenVINO fails, as where memory is short.
        """
        missing = max(batch_size - len(images), 0)
        below, is_of_any_size = self._below
        try:
            features = below(images if is_of_any_size else _filled_up(images, missing))
            features = _filled_up(features, missing) if is_of_any_size else features
            return self._above(tf.constant(features)).numpy()[: len(images)]
        except tf.errors.OpError as error:
            raise TrainerError(failure_in_words(error)) from None

    @functools.cached_property
    def _cut(self) -> Cut:
        backbone = self.classifier.backbone
        width = self.contract.feature_width
        # There is one, as nothing trains.
        cut = whole_cut(backbone, (), bn_batch=False, feature_width=width, variables=backbone.variables)
        assert cut
        return cut

    @functools.cached_property
    def _below(self) -> tuple[Callable[[np.ndarray], Any], bool]:
        """Pictures -> features, and whether it takes any number of pictures without being traced again."""
        contract = self.contract
        if self.engine != TENSORFLOW:
            try:
                shape, value_range = contract.image_shape, contract.value_range
                return compiled(self._cut.below, self.engine, shape=shape, value_range=value_range), True
            except openvino.UnusableError as error:
                tell_unusable(error)
        spec = tf.TensorSpec([None, *contract.image_shape], tf.float32)
        below = tf.function(self._cut.below, autograph=False, input_signature=[spec])
        in_tensorflow = in_precision(below, self.precision)
        return lambda images: in_tensorflow(tf.constant(images)), False

    @functools.cached_property
    def _above(self) -> Callable[[tf.Tensor], tf.Tensor]:
        return tf.function(lambda features: self.classifier(features, cut=self._cut), autograph=False)


def _filled_up(values: np.ndarray, missing: int) -> np.ndarray:
    return np.pad(values, [(0, missing), *[(0, 0)] * (values.ndim - 1)]) if missing else values


class RunModel:
    """The network of a run, for `Inference`: it always gets batches of one size, as in an evaluation."""

    def __init__(self, network: Network, *, batch_size: int):
        self.class_names, self.contract, self.task = network.class_names, network.contract, network.task
        self._network, self._batch_size = network, batch_size

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Maps images [B, H, W, 3] float32 in `contract.value_range` to probabilities [B, K] float64."""
        return self.task.probabilities(self._network.logits(images, batch_size=self._batch_size))


def open_network(workdir: Workdir, config: Config) -> Network:
    """Opens the network that a run recorded, and gives it the weights of --checkpoint.

    Args:
      workdir: of the run.
      config: what it was started with.

    Raises:
      TrainerError: there is no such run or checkpoint, or the network is not what it was.
    """
    facts = workdir.read_facts()
    checkpoints = Checkpoints(workdir.checkpoints, keep=config.run.keep_checkpoints)
    path = checkpoints.find(config.evaluate.checkpoint)
    step, class_names = checkpoints.step_of(path), tuple(facts["class_names"])
    try:
        contract = Contract.from_json(facts["contract"])
    except ValueError as error:
        raise TrainerError(f"{workdir.run_json} is damaged: {error}") from None
    backbone = _open_backbone(config, contract, function=workdir.network_function())
    workdir.check_network(config, {"function": backbone.fingerprint})
    # Of those that a head keeps.
    num_examples = len(workdir.read_splits()["train"]) if config.fitted_head else 0
    task = settled_task(workdir, make_task(config.data.task), step=step)
    classifier = make_classifier(
        config, backbone, num_classes=len(class_names), num_examples=num_examples, task=task
    )
    assign_weights(classifier, checkpoints.values(path))
    precision, engine = precision_at(config, workdir, step), engine_at(config, workdir, step)
    return Network(classifier, class_names, step, precision, engine)


def _open_backbone(config: Config, recorded: Contract, *, function: str) -> Backbone:
    """Opens the network of a run, at the size and range of pixels that it was trained with."""
    model = config.model
    backbone = open_for_checkpoint(
        model.backbone,
        weights=model.weights,
        function=function,
        # What had a choice of sizes took one that is square.
        image_size=recorded.height_px if recorded.any_size else model.image_size,
        value_range=recorded.value_range if model.value_range else None,
        cache_dir=config.run.cache_dir,
        features=model.features,
        resize=recorded.fit,
        antialias=recorded.antialias,
    )
    keep_rounding(backbone, recorded)
    was, now = dataclasses.asdict(recorded), dataclasses.asdict(backbone.contract)
    for name in now:
        if now[name] != was[name]:
            raise TrainerError(
                f"--backbone={model.backbone} is not the network this run was trained with: {name} was "
                f"{was[name]} and is {now[name]}"
            )
    return backbone


def precision_at(config: Config, workdir: Workdir, step: int) -> str:
    """Returns the arithmetic of the phase that made the weights, where this machine has it; else float32."""
    asked = config.speed.precision
    if asked == "auto":
        decided = {
            phase: Choice.recorded(choice).precision
            for phase, choice in workdir.read_facts().get("precision", {}).items()
            if "/" not in phase  # Others are of engines.
        }
        asked = next(iter(decided.values()), "float32")
        if len(set(decided.values())) > 1:
            asked = decided.get(_phase_at(config, workdir, step), "float32")
    if asked not in supported():
        _log.warning("the run computed in %s, which this machine does not; it is float32 now", asked)
        return "float32"
    return asked


def engine_at(config: Config, workdir: Workdir, step: int) -> str:
    """Returns what is to run the network: what is asked for, or what ran all of it in the phase of a step.

    Where OpenVINO is asked for, it is in the precision that is asked for or that the run chose for it, else
    in float32; TensorFlow, where it has taken over in the run.

    Raises:
      UsageError: it is asked for, not by the run, and cannot be had.
    """
    asked, precision = asked_engine(config, workdir), config.speed.precision
    decided = workdir.read_facts().get("precision", {})
    if asked == TENSORFLOW or not (decided or asked == OPENVINO):
        return TENSORFLOW
    recorded = decided.get(f"{_phase_at(config, workdir, step)}/{WHOLE}")
    choice = Choice.recorded(recorded) if recorded else None
    engine = usable(choice, what="the run") if choice else TENSORFLOW
    if asked == "auto" or engine != TENSORFLOW or (choice and is_left(choice)):
        return engine
    return f"{OPENVINO}-{'float32' if precision == 'auto' else precision}"


def _phase_at(config: Config, workdir: Workdir, step: int) -> str:
    """Returns under which name the run records the phase that made the weights of a step; empty: none."""
    if not config.phases:
        # That of --schedule=auto depends on the pictures; it is the only one.
        return next((name.partition("/")[0] for name in workdir.read_facts().get("precision", {})), "")
    num_examples = len(workdir.read_splits().get("train", []))
    plan = make_plan(config.phases, num_examples=num_examples, batch_size=config.plan.batch_size)
    phase = plan.phase_at(max(step - 1, 0))
    return f"{phase.index}-{phase.spec.name}"
