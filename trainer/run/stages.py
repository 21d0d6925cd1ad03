"""What a phase runs on, and in which arithmetic: pictures, or features computed once.

Whoever trains, evaluates or measures asks `Stages` for the stage of the current phase, and cannot
tell pictures from features.
"""

import contextlib
import functools
import logging
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from trainer.data.features import FeatureBatches, compute_features, digest_variables
from trainer.data.pipeline import OrderedBatches, with_weights
from trainer.loop.evaluator import Evaluation, Evaluator
from trainer.loop.phases import Phase
from trainer.loop.state import TrainState
from trainer.loop.step import Run, make_train_run
from trainer.model.cuts import WHOLE, Cut
from trainer.model.graphs import report_random_ops
from trainer.precision import in_precision, openvino, require_rewritten
from trainer.run.arithmetic import (
    Arithmetic,
    forward_pictures,
    forward_step,
    speed_key,
    timed_step,
    train_step,
)
from trainer.run.engines import Engines, compiled, over_devices, precision_of, tell_unusable
from trainer.run.experiment import Experiment
from trainer.run.feature_cache import FeatureCache, Network, cut_of_features, keeps, why_uncached
from trainer.runtime import endless, share_of
from trainer.values import TENSORFLOW, UsageError

_log = logging.getLogger("trainer")
# Of steps, to say how long a run takes.
ENOUGH_SECS = 2.0


class Counting(Protocol):
    """Shows how far long work is, as `record.progress.counting` does."""

    def __call__(
        self, what: str, total: int, *, tells_end: bool = True
    ) -> AbstractContextManager[Callable[[int], None]]: ...


class Stages:
    """Makes the stage of each phase, and keeps what phases share."""

    def __init__(self, experiment: Experiment, state: TrainState, *, arithmetic: Arithmetic, watch: Counting):
        """Notes what to do.

        Args:
          experiment: pictures, network and plan.
          state: tells the current phase; its variables are those that train.
          arithmetic: decides the precision of each phase.
          watch: shows how far long work is.

        Raises:
          UsageError: --feature_cache=require, and no phase of the plan could use it; or --precision=float16,
            and a phase updates more than a head on several devices.
        """
        self.experiment, self.state, self.arithmetic = experiment, state, arithmetic
        self.engines = Engines(
            experiment.config,
            arithmetic=arithmetic,
            several_devices=experiment.strategy.num_replicas_in_sync > 1,
        )
        # Called after each batch that is scored, or whose features are computed: it may raise to end that.
        self.between_batches: Callable[[], None] = lambda: None
        self.left_out: Collection[int] = ()
        self._watch = watch
        self.cache = FeatureCache(
            experiment, watch=self.watched, between_batches=lambda: self.between_batches()
        )
        self.once_secs = 0.0
        """How long has been worked on what another run finds done: features, and measurements of speed."""
        self.picture_secs: float | None = None
        """How long the features of a picture took that were computed last; None where there were none."""
        self.best_scored: tuple[int, Evaluation] | None = None
        """The step whose weights were best, and validation scored with them, if training did it here."""
        self._evaluators: dict[tuple[str, str], Evaluator] = {}
        self._stage: Stage | None = None
        if experiment.config.speed.feature_cache == "require":
            reasons = [why_uncached(experiment, phase.spec) for phase in experiment.plan.phases]
            if all(reasons):
                raise UsageError(f"--feature_cache=require: {'; '.join(reasons)}")
        self._check_float16()

    def _check_float16(self) -> None:
        experiment = self.experiment
        if self.arithmetic.asked != "float16" or experiment.strategy.num_replicas_in_sync == 1:
            return
        for phase in experiment.plan.phases:
            cut = cut_of_features(experiment, phase.spec)
            # An update of a head alone is float32.
            if cut is None or cut.name != WHOLE:
                raise UsageError(
                    f"--precision=float16 scales the loss on one device only, and phase {phase.spec.name} "
                    "runs the network in its updates: use --strategy=one, or float32"
                )

    def take(self, decided: Mapping[str, Any], *, picture_secs: float | None) -> None:
        """Takes what was measured before: precisions, and how long the features of a picture take."""
        self.arithmetic.take(decided)
        self.picture_secs = picture_secs

    def current(self) -> "Stage":
        """Returns the stage of the next update."""
        return self.stage_of(self.state.phase)

    def scoring(self) -> "Stage":
        """Returns the stage of the last update: at the last step of a phase, that of the phase."""
        return self.stage_of(self.experiment.plan.phase_at(max(self.state.step - 1, 0)))

    def once_secs_left(self) -> float:
        """Returns about how long it takes to compute the features that the phase is still to ask for."""
        stage, plan = self._stage, self.experiment.plan
        if stage is None or self.picture_secs is None:
            return 0.0
        splits = self.experiment.splits.indices
        awaited = {"validation", *(splits if stage.phase is plan.phases[-1] else ())}
        return self.picture_secs * stage.missing(*(split for split in awaited if stage.awaits(split)))

    @contextlib.contextmanager
    def once(self) -> Iterator[None]:
        """Notes the time of a block as that of something which another run finds done."""
        begun = time.monotonic()
        try:
            yield
        finally:
            self.once_secs += time.monotonic() - begun

    @contextlib.contextmanager
    def counted(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """Shows how far something is that another run finds done; see `Counting`."""
        with self.once(), self._watch(what, total) as done:
            yield done

    @contextlib.contextmanager
    def watched(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """Shows how far features are computed, and notes how long that takes."""
        ends: list[tuple[float, int]] = []
        with self.counted(what, total) as done:

            def more(count: int) -> None:
                done(count)
                ends.append((time.monotonic(), count))

            yield more
        if len(ends) > 1:
            # The first batch traces.
            self.picture_secs = (ends[-1][0] - ends[0][0]) / sum(count for _, count in ends[1:])

    def evaluate(self, split: str) -> Evaluation:
        """Scores a split as the phase does that made the state."""
        with self.state.averaged():
            return self.scoring().evaluate(split)

    def evaluate_at_end(self, split: str) -> Evaluation:
        """Scores a split with the weights that a run keeps, and shows how far it is.

        Validation is not scored again where it was when these weights turned out to be the best ones.
        """
        if split == "validation" and self.best_scored and self.best_scored[0] == self.state.step:
            return self.best_scored[1]
        stage, total = self.scoring(), len(self.experiment.splits.indices[split])
        if stage.scored_cut(split):
            return self.evaluate(split)
        with self.state.averaged(), self._watch(f"scoring {split}", total, tells_end=False) as done:
            return stage.evaluate(split, done=done)

    def stage_of(self, phase: Phase) -> "Stage":
        if self._stage is None or self._stage.phase is not phase:
            self._stage = Stage(self, phase)
        return self._stage

    def evaluator(self, cut: Cut | None, precision: str) -> Evaluator:
        """Returns the evaluator for batches of pictures, or of what is at a cut."""
        key = (cut.name if cut else "", precision)
        if key not in self._evaluators:
            self._evaluators[key] = Evaluator(
                self.experiment.classifier,
                strategy=self.experiment.strategy,
                cut=cut,
                metrics=self.experiment.recipe.metrics,
            )
        return self._evaluators[key]


class Stage:
    """One phase, made ready.

    `cut` is where the part of the network ends that is computed once, or None; `precision` is the
    arithmetic of the network, and `engine` what runs the part below the cut: `tensorflow`, or such as
    `openvino-float32`.
    """

    def __init__(self, stages: Stages, phase: Phase):
        self._all, self.phase = stages, phase
        self._experiment = stages.experiment
        self.cut = self._find_cut()
        self._below = self._make_below(self.cut)
        self._checked = False
        self._runs: dict[tuple[object, ...], tf.types.experimental.PolymorphicFunction] = {}
        self._once: dict[str, tf.data.Dataset] = {}
        # What `training` is asked for next, by its steps: to make it takes a tenth of a second.
        self._ready: dict[tuple[int, int], Any] = {}
        self._features: dict[str, FeatureBatches | None] = {}
        self._missing: dict[tuple[str, ...], int] = {}
        self._rest: dict[bool, tf.types.experimental.PolymorphicFunction] = {}
        self.precision = self.decide_precision()
        self._compiled: tuple[str, Callable[[Any], Any]] | None = None
        self.engine = self._decide_engine(self.cut) if self.cut else TENSORFLOW

    @property
    def only_head(self) -> bool:
        """Whether an update begins at the features of the whole network."""
        return self.cut is not None and self.cut.name == WHOLE

    @property
    def step_precision(self) -> str:
        """The arithmetic of an update: that of a head alone is bound by memory, and stays float32."""
        return "float32" if self.only_head else self.precision

    def batches(self, split: str) -> OrderedBatches:
        """Returns the features of a split, computed now if they are not kept, or else its pictures."""
        if self.cut is not None and split not in self._features:
            try:
                self._features[split] = self._kept(split, self.cut)
            except openvino.UnusableError as error:
                # What was measured with other weights, or asked for, and never tried.
                self._fall_back(self.cut, error)
                self._features[split] = self._kept(split, self.cut)
            if split == "train" and self._features[split] is None and self.engine != TENSORFLOW:
                self._leave_engine(self.cut)
        return self._features.get(split) or self._experiment.pipeline

    def _fall_back(self, cut: Cut, error: openvino.UnusableError) -> None:
        self._all.engines.fall_back(self.phase, cut.name, error)
        self.engine = TENSORFLOW

    def _leave_engine(self, cut: Cut) -> None:
        """Has TensorFlow compute all features where it runs the network in every update."""
        _log.info("engine:      tensorflow, which runs the network in updates, computes validation as well")
        self._all.engines.leave(self.phase, cut.name)
        self.engine = TENSORFLOW
        self._features = {"train": None}
        self._once.clear()
        self._missing.clear()

    def _kept(self, split: str, cut: Cut) -> FeatureBatches | None:
        """Returns the features of a split by the engine, computed now if they are not kept."""
        return self._all.cache.batches(split, self.phase.spec, self._network(cut))

    def _network(self, cut: Cut) -> Network:
        is_ours = self.engine == TENSORFLOW
        return Network(
            cut,
            below=self._run_below,
            precision=self.precision if is_ours else precision_of(self.engine),
            weights=self._weights,
            engine="" if is_ours else f"{openvino.NAME} {openvino.version()}",
        )

    def require_room(self, *splits: str) -> None:
        """Makes sure that the features of splits can be kept; see `FeatureCache.require_room`.

        Raises:
          FeatureCacheError: they cannot.
        """
        assert self.cut
        self._all.cache.require_room(splits, self.phase.spec, self._network(self.cut))

    def compute_shard(self, split: str, *, number: int, count: int) -> tuple[int, int]:
        """Computes a part of the features of a split; see `FeatureCache.compute_shard`.

        Raises:
          FeatureCacheError: they cannot be kept.
        """
        assert self.cut
        shard = {"number": number, "count": count}
        try:
            return self._all.cache.compute_shard(split, self.phase.spec, self._network(self.cut), **shard)
        except openvino.UnusableError as error:
            self._fall_back(self.cut, error)
            return self._all.cache.compute_shard(split, self.phase.spec, self._network(self.cut), **shard)

    def awaits(self, split: str) -> bool:
        """Returns whether the features of a split are wanted, and nobody has asked for them."""
        return self.cut is not None and split not in self._features

    def missing(self, *splits: str) -> int:
        """Returns how many pictures go through the network for the features of splits that are not kept."""
        if self.cut is None:
            return 0
        key = tuple(sorted(splits))
        if key not in self._missing:
            # Of many pictures, to know what they are takes a second.
            self._missing[key] = self._all.cache.missing(key, self.phase.spec, self._network(self.cut))
        return self._missing[key]

    @functools.cached_property
    def _weights(self) -> str:
        # Once a phase: below the cut nothing changes as long as it lasts.
        return digest_variables(self.cut.variables) if self.cut else ""

    def _run_below(self, images: tf.Tensor) -> tf.Tensor:
        if self.engine != TENSORFLOW:
            assert self.cut
            return self._compile(self.cut, self.engine, weights=self._weights)(images)
        if self._all.arithmetic.asked == self.precision and not self._checked:
            require_rewritten(self._below, images, precision=self.precision)
            self._checked = True
        return in_precision(self._below, self.precision)(images)

    def _compile(self, cut: Cut, engine: str, *, weights: str) -> Callable[[Any], Any]:
        """Returns what is below a cut, whose weights have a digest; compiled once for each.

        Raises:
          UnusableError: the engine cannot run it.
        """
        made_for = f"{engine} {weights}"
        if self._compiled is None or self._compiled[0] != made_for:
            contract = self._experiment.backbone.contract
            made = compiled(cut.below, engine, shape=contract.image_shape, value_range=contract.value_range)
            self._compiled = (made_for, over_devices(made, self._experiment.strategy))
        return self._compiled[1]

    def _decide_engine(self, cut: Cut) -> str:
        """Returns what is to run the part of the network below a cut."""
        with contextlib.ExitStack() as stack:

            def make(engine: str) -> Callable[[], object] | None:
                if engine.startswith(TENSORFLOW):
                    forward = in_precision(self._below, self.precision)
                else:
                    try:
                        # They may be restored only later.
                        weights = digest_variables(cut.variables)
                        forward = self._compile(cut, engine, weights=weights)
                    except openvino.UnusableError as error:
                        if self._all.engines.asked == "auto":
                            tell_unusable(error)
                        return None
                return stack.enter_context(forward_step(self._experiment, forward))

            key = speed_key(self._experiment, self.phase, self.cut)
            with self._all.once():
                return self._all.engines.decide(
                    self.phase, cut.name, precision=self.precision, make=make, key=key
                )

    def cut_of(self, split: str) -> Cut | None:
        """Returns what the batches of a split begin at; None: at pictures."""
        return self.cut if self.batches(split) is not self._experiment.pipeline else None

    def scored_cut(self, split: str) -> Cut | None:
        """Returns what a split is scored from, its pictures as they are; None: from pictures."""
        return self.cut_of(split) if self.keeps(split) else None

    def training(self, start_step: int, stop_step: int | None = None) -> tf.data.Dataset:
        """Returns the batches from a step to the end of the phase, distributed over the devices."""
        stop_step = self.phase.stop_step if stop_step is None else stop_step
        if (ready := self._ready.pop((start_step, stop_step), None)) is not None:
            return ready
        batches = self.batches("train")
        if batches is self._experiment.pipeline:
            self._experiment.source.load()
        dataset = self._own(batches).training(
            self._experiment.splits.indices["train"],
            start_step=start_step,
            stop_step=stop_step,
            augment=self._experiment.augment(self.phase.spec),
            num_shares=self._experiment.num_shares(self.phase.spec),
        )
        if (weights := getattr(self._experiment.source, "weights", None)) is not None:
            dataset = with_weights(dataset, weights)
        return endless(self._experiment.strategy, dataset)

    def _own(self, batches: OrderedBatches) -> OrderedBatches:
        """Returns batches of the rows that this worker has in each."""
        index, count = share_of(self._experiment.strategy)
        return batches if count == 1 else batches.of_worker(index, count)

    def make_run(self) -> Run:
        """Makes the function that does updates."""
        cut = self.cut_of("train")
        precision = self.step_precision if cut else self.precision
        run = self._make_run(cut, precision)
        phase, step = self.phase, self._all.state.step
        begins = step if phase.start_step <= step < phase.stop_step else phase.start_step
        batches = self.training(begins)
        is_plain = isinstance(batches, tf.data.Dataset)
        # To begin a dataset takes some hundredths of a second, and the loop begins this one anyway.
        first: Any = tf.data.IteratorSpec(batches.element_spec) if is_plain else iter(batches)
        graph = run.get_concrete_function(first, tf.constant(0)).graph
        report_random_ops(graph, self.phase.spec, has_plugins=bool(self._experiment.config.run.plugin))
        if self._all.arithmetic.asked == precision != "float32":
            # With no step to do, nothing but the graph is made.
            require_rewritten(run, iter(batches), tf.constant(0), precision=precision)
        self._ready = {(begins, phase.stop_step): batches}
        return in_precision(run, precision)

    def evaluate(self, split: str, *, done: Callable[[int], None] = lambda count: None) -> Evaluation:
        """Scores a split with the current weights; `done` is told how many pictures each batch had."""
        cut = self.scored_cut(split)
        batches: OrderedBatches = self.batches(split) if cut else self._experiment.pipeline
        precision = self.step_precision if cut else self.precision
        if split not in self._once:
            # Making a dataset takes longer than going through one of features.
            self._once[split] = self._own(batches).once(self._experiment.splits.indices[split])
        left, most = len(self._experiment.splits.indices[split]), self._experiment.config.plan.batch_size

        def between_batches() -> None:
            nonlocal left
            done(min(left, most))
            left -= most
            self._all.between_batches()

        return in_precision(self._all.evaluator(cut, precision), precision)(
            self._once[split], between_batches=between_batches
        )

    def scorer(self, split: str) -> Callable[[], Evaluation]:
        """Returns what scores a split with the weights as they are then; features on one device at once."""
        if self.scored_cut(split) is None or self._experiment.strategy.num_replicas_in_sync > 1:
            return lambda: self.evaluate(split)
        dataset = self.batches(split).once(self._experiment.splits.indices[split])
        score = self._all.evaluator(self.cut, self.step_precision).held(dataset)
        return in_precision(score, self.step_precision)

    def keeps(self, split: str) -> bool:
        """Returns whether the phase is to keep, of a split's pictures as they are, what is below the cut."""
        return keeps(self._experiment, self.phase.spec, split)

    def features(
        self, split: str, chosen: np.ndarray, *, done: Callable[[int], None] = lambda count: None
    ) -> np.ndarray:
        """Returns what the network, as it is now, makes of pictures before its head: [n, D] float32.

        From what is kept of them, as far as that goes.

        Args:
          split: that the pictures are of.
          chosen: [n] their positions in the source.
          done: told how many pictures each batch had.
        """
        experiment = self._experiment
        cut = self.scored_cut(split)
        batches: OrderedBatches = self.batches(split) if cut else experiment.pipeline
        network = cut.above if cut else experiment.backbone

        def rest(inputs: tf.Tensor) -> tf.Tensor:
            return tf.cast(network(inputs, training=False, bn_batch=False), tf.float32)

        if (has_cut := cut is not None) not in self._rest:
            strategy = experiment.strategy
            self._rest[has_cut] = tf.function(lambda x: strategy.run(rest, args=(x,)), autograph=False)
        run = in_precision(self._rest[has_cut], self.precision)
        pictures = self._own(batches).once(chosen)
        rows = compute_features(pictures, run, strategy=experiment.strategy, done=done)
        found = []
        for part in rows:
            found.append(part)
            self._all.between_batches()
        return np.concatenate(found)

    def graph(self) -> tf.Graph:
        """Returns the graph that scores a batch; the evaluations of the phase use the same trace."""
        size, task = self._experiment.config.plan.batch_size, self._experiment.task
        size //= share_of(self._experiment.strategy)[1]
        shape = self.cut.shape if self.cut else self._experiment.backbone.contract.image_shape
        spec = {
            "image": tf.TensorSpec([size, *shape], tf.float32),
            "label": task.label_spec(size, len(self._experiment.source.class_names)),
            "mask": tf.TensorSpec([size], tf.float32),
            "id": tf.TensorSpec([size], tf.int64),
        }
        return self._all.evaluator(self.cut, self.step_precision).step.get_concrete_function(spec).graph

    def _make_run(self, cut: Cut | None, precision: str) -> tf.types.experimental.PolymorphicFunction:
        """Makes the function that does updates; what measured the precision is not traced again."""
        config, state = self._experiment.config, self._all.state
        # Which live as long as the function that was made for them.
        made_for = (id(cut), precision, id(state.optimizer))
        if made_for in self._runs:
            return self._runs[made_for]
        self._runs[made_for] = make_train_run(
            state,
            self._experiment.recipe,
            strategy=self._experiment.strategy,
            cut=cut,
            precision=precision,
            max_loss=config.guard.max_loss or math.inf,
            left_out=self._all.left_out,
        )
        return self._runs[made_for]

    def _make_below(self, cut: Cut | None) -> Callable[..., Any]:
        """Makes the function from pictures to what crosses the cut, on all devices."""
        strategy, backbone = self._experiment.strategy, self._experiment.backbone
        below = cut.below if cut else functools.partial(backbone, training=False, bn_batch=False)
        # One trace for batches of any size; what several devices get has no such signature.
        images = tf.TensorSpec([None, *backbone.contract.image_shape])
        return tf.function(
            lambda images: strategy.run(below, args=(images,)),
            autograph=False,
            input_signature=[images] if strategy.num_replicas_in_sync == 1 else None,
        )

    def decide_precision(self) -> str:
        """Returns the arithmetic that is asked for, or that the phase's own step is fastest in."""
        key = speed_key(self._experiment, self.phase, self.cut)
        step = self._noted(self._measured_step())
        # Of the updates of a network, float16 scales the loss on one device only.
        several = self._experiment.strategy.num_replicas_in_sync > 1 and not self.only_head
        never = ("float16",) if several else ()
        return self._all.arithmetic.decide(self.phase, self.kind, step=step, key=key, never=never)

    @property
    def kind(self) -> str:
        """What is measured of the phase, for people: a forward is all that a head needs of the network."""
        return "forward" if self.only_head else "train step"

    @contextlib.contextmanager
    def _measured_step(self) -> Iterator[Callable[[], object]]:
        if self.only_head:
            step = forward_step(self._experiment, self._below)
        else:
            # Measured in each precision: one trace for all, as it is for those of 16 bits.
            run = self._make_run(self.cut, "bfloat16")
            step = train_step(self._experiment, self._all.state, run, self.cut)
        with step as do:
            yield do

    @property
    def pictures_a_step(self) -> int:
        """How many pictures a step sees that is measured."""
        batch_size = self._experiment.config.plan.batch_size
        return self._forward_pictures if self.only_head else batch_size

    @property
    def _forward_pictures(self) -> int:
        replicas = self._experiment.strategy.num_replicas_in_sync
        return forward_pictures(self._experiment.config.plan.batch_size, replicas=replicas)

    def picture_secs(self) -> float:
        """Returns how long a picture takes through the network, to the cut if there is one."""
        if (secs := self._engine_secs()) is not None:
            return secs / self._forward_pictures
        with forward_step(self._experiment, in_precision(self._below, self.precision)) as do:
            return timed_step(do, enough_secs=ENOUGH_SECS) / self._forward_pictures

    def _engine_secs(self) -> float | None:
        """Returns how long another engine takes for a forward step, known or measured; None: TensorFlow runs.

        What the engine turns out to be unable to run is TensorFlow's from then on.
        """
        cut = self.cut
        if cut is None or self.engine == TENSORFLOW:
            return None
        if known := self._all.engines.step_secs(self.phase, cut.name, self.engine):
            return known
        try:
            forward = self._compile(cut, self.engine, weights=digest_variables(cut.variables))
        except openvino.UnusableError as error:
            self._fall_back(cut, error)
            return None
        with forward_step(self._experiment, forward) as do:
            return timed_step(do, enough_secs=ENOUGH_SECS)

    def step_secs(self) -> float:
        """Returns how long such a step takes: known since the precision was chosen, or measured now."""
        arithmetic = self._all.arithmetic
        if self.only_head and (secs := self._engine_secs()) is not None:
            return secs
        key = speed_key(self._experiment, self.phase, self.cut)
        choice = arithmetic.known(self.phase, self.kind, key=key)
        if choice and choice.precision in choice.step_secs:
            return choice.step_secs[choice.precision]
        with self._measured_step() as do:
            return timed_step(in_precision(do, self.precision), enough_secs=ENOUGH_SECS)

    @contextlib.contextmanager
    def _noted(self, step: AbstractContextManager[Callable[[], object]]) -> Iterator[Callable[[], object]]:
        """Gives a step to measure. Its first call traces, which every run does; the others are done once."""
        with step as do:
            is_traced = False

            def call() -> None:
                nonlocal is_traced
                with self._all.once() if is_traced else contextlib.nullcontext():
                    do()
                is_traced = True

            yield call

    def _find_cut(self) -> Cut | None:
        experiment, spec = self._experiment, self.phase.spec
        cut = cut_of_features(experiment, spec)
        if cut is None and experiment.config.speed.feature_cache != "off" and experiment.cut(spec):
            _log.info("features:    %s", why_uncached(experiment, spec))
        return cut
