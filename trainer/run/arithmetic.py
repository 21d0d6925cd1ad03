"""The precision of each phase: as asked for, as an earlier start decided, or measured on its own step."""

import contextlib
import dataclasses
import functools
import logging
import math
import statistics
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import tensorflow as tf

from trainer import plugins, register
from trainer.loop.phases import Phase
from trainer.loop.state import TrainState
from trainer.loop.step import Run
from trainer.model.cuts import Cut
from trainer.precision import (
    Choice,
    choose,
    openvino_version,
    remembered,
    require_supported,
    supported,
)
from trainer.run.experiment import Experiment
from trainer.run.team import team
from trainer.runtime import divided, endless, share_of
from trainer.store.provenance import code_digest
from trainer.values import TrainerError

_log = logging.getLogger("trainer")
# What a step is made of.
MEASURED = ("trainer.loop.step", "trainer.model.classifier", "trainer.precision.rewriter")
# Of the updates that a measurement asks for, more than these in a row are not left out.
MOST_LEFT_OUT = 100
TIMED_STEPS = 3


class Arithmetic:
    """Decides, and remembers for a resumed run.

    `decided` is {phase: a Choice as JSON}, what the manifest of a run records under auto. Under the name of a
    phase and, behind a slash, of the cut there is what `engines` has chosen.
    """

    def __init__(
        self,
        asked: str,
        *,
        decided: Mapping[str, Any],
        cache_dir: str,
        on_decision: Callable[[dict[str, Any]], None],
    ):
        """Notes what was asked for.

        Args:
          asked: the value of --precision.
          decided: what an earlier start of the same run decided.
          cache_dir: the value of --cache_dir, where measurements are kept.
          on_decision: told `decided` whenever a phase is added.

        Raises:
          UsageError: this machine does not compute in the precision asked for.
        """
        if asked != "auto":
            require_supported(asked)
        self.asked, self.decided = asked, dict(decided)
        self._cache_dir, self._on_decision = cache_dir, on_decision
        self._told = set[str]()

    def take(self, decided: Mapping[str, Any]) -> None:
        """Takes what another one has decided of the same phases."""
        if any(name not in self.decided for name in decided):
            self.decided |= decided
            self._on_decision(self.decided)

    def known(self, phase: Phase, kind: str, *, key: Mapping[str, Any]) -> Choice | None:
        """Returns what has been measured of a phase, by this run or another; None: nothing. See `decide`."""
        if self.asked != "auto":
            return None
        if recorded := self.decided.get(f"{phase.index}-{phase.spec.name}"):
            return Choice.from_json(recorded)
        return remembered({"kind": kind, **key}, cache_dir=self._cache_dir)

    def decide(
        self,
        phase: Phase,
        kind: str,
        *,
        step: AbstractContextManager[Callable[[], object]],
        key: Mapping[str, Any],
        never: Collection[str] = (),
    ) -> str:
        """Returns the precision of a phase.

        Args:
          phase: which.
          kind: what a step is, for people.
          step: gives a function that does one and returns when it is done; entered only if nothing is
            known yet, and left when all is measured.
          key: everything of the run that the speed depends on.
          never: precisions that cannot be chosen here.
        """
        if self.asked != "auto":
            return self.asked
        name = f"{phase.index}-{phase.spec.name}"
        if name in self.decided:
            recorded = Choice.recorded(self.decided[name]).precision
            if recorded in self._computable(never):
                return recorded
            _log.warning(
                "precision:   phase %s began in %s, which this machine does not compute in; it goes on in "
                "float32, to slightly other numbers",
                phase.spec.name, recorded,
            )  # fmt: skip
            return "float32"
        with contextlib.ExitStack() as stack:
            # One function for every arithmetic: it is traced once, and optimized for each.
            once = functools.cache(lambda: stack.enter_context(step))
            choice = choose(
                lambda precision: once(),
                what=f"{kind} of phase {phase.spec.name}",
                key={"kind": kind, **key},
                cache_dir=self._cache_dir,
                **self._as_all(never),
            )
        if (told := choice.describe()) not in self._told:
            self._told.add(told)
            _log.info("precision:   %s", told)
        # Whether there was another engine tells a later start whether the run may choose it.
        self.note(name, dataclasses.replace(choice, machine={**choice.machine, **openvino_version()}))
        return choice.precision

    def note(self, name: str, choice: Choice) -> None:
        """Records a choice."""
        self.decided[name] = choice.to_json()
        self._on_decision(self.decided)

    def _computable(self, never: Collection[str]) -> list[str]:
        """Returns the precisions that all workers can compute in."""
        of_all = team().exchange("precisions", [one for one in supported() if one not in never])
        return [precision for precision in of_all[0] if all(precision in of for of in of_all)]

    def _as_all(self, never: Collection[str]) -> dict[str, Any]:
        """Returns what makes `choose` come to the same at all workers."""
        found: dict[str, Any] = {"candidates": self._computable(never)}
        return found if team().count == 1 else {**found, "clock": team().clock, "agree": team().agree}


def forward_pictures(batch_size: int, *, replicas: int) -> int:
    """Returns how many pictures a `forward_step` sees."""
    return max(batch_size // 4 // replicas, 1) * replicas


def timed_step(step: Callable[[], object], *, enough_secs: float = math.inf) -> float:
    """Returns the seconds of a step, of which the first one traces.

    Once the others have taken `enough_secs`, no more are timed: for an estimate, which nothing is chosen by.
    """
    step()
    taken: list[float] = []
    while len(taken) < TIMED_STEPS and sum(taken) < enough_secs:
        begun = time.perf_counter()
        step()
        taken.append(time.perf_counter() - begun)
    return statistics.median_low(taken)


@contextlib.contextmanager
def forward_step(experiment: Experiment, forward: Callable[..., Any]) -> Iterator[Callable[[], object]]:
    """Gives a step that runs a network on the first training pictures, a quarter of a batch of them."""
    batch_size, replicas = experiment.config.plan.batch_size, experiment.strategy.num_replicas_in_sync
    first = experiment.pipeline.once(experiment.splits.indices["train"][:batch_size]).unbatch()
    of_all = forward_pictures(batch_size, replicas=replicas)
    # Which pictures each worker takes does not matter for the time.
    few = first.batch(of_all // share_of(experiment.strategy)[1], drop_remainder=True).take(1)
    images = next(iter(divided(experiment.strategy, few)))["image"]
    local = experiment.strategy.experimental_local_results
    yield lambda: [part.numpy() for part in local(forward(images))]


@contextlib.contextmanager
def train_step(
    experiment: Experiment, state: TrainState, run: Run, cut: Cut | None
) -> Iterator[Callable[[], object]]:
    """Gives a step that does an update of the current phase, and takes all of them back in the end.

    Whether training would go on after such an update does not matter here: the features may be random, and
    so may the loss.

    Raises:
      TrainerError: from the step, no update was made.
    """
    first = experiment.splits.indices["train"]
    shares = experiment.num_shares(state.phase.spec)
    pipeline, (index, count) = experiment.pipeline, share_of(experiment.strategy)
    pipeline = pipeline if count == 1 else pipeline.of_worker(index, count)
    batch = next(iter(pipeline.training(first, start_step=0, stop_step=1, num_shares=shares)))
    if cut is not None:
        # The time does not depend on the numbers, and the features are computed later.
        batch["image"] = tf.random.stateless_uniform([len(batch["id"]), *cut.shape], [0, 0])
    iterator = iter(endless(experiment.strategy, tf.data.Dataset.from_tensors(batch).repeat()))
    variables = [*state.variables().values(), *state.unfit.variables()]
    # Each device's own: what is a sum over them would come back as equal shares of it.
    parts = [part for one in variables for part in experiment.strategy.experimental_local_results(one)]
    before = [part.numpy() for part in parts]
    made = state.optimizer.iterations

    def step() -> float:
        # Batches that are left out pass first; where an update came to numbers that are unfit, the next is
        # made only if that is forgotten.
        state.unfit.step.assign(-1)
        before, waited_secs = int(made.numpy()), 0.0
        for _ in range(MOST_LEFT_OUT + 1):
            waited_secs += float(run(iterator, tf.constant(1)))
            if int(made.numpy()) > before:
                return waited_secs
        raise TrainerError(f"no update of phase {state.phase.spec.name} was made, so none can be measured")

    try:
        yield step
    finally:
        for part, value in zip(parts, before, strict=True):
            part.assign(value)


def speed_key(experiment: Experiment, phase: Phase, cut: Cut | None) -> dict[str, Any]:
    """Returns what the speed of a phase's step depends on, besides the machine."""
    config = experiment.config
    return {
        "network": experiment.backbone.fingerprint,
        "contract": str(experiment.backbone.contract),
        "head": [config.model.head, len(experiment.source.class_names)],
        "batch_size": config.plan.batch_size,
        "replicas": experiment.strategy.num_replicas_in_sync,
        "train": phase.spec.train,
        "optimizer": str(phase.spec.optimizer),
        "update": [
            config.update.accumulate,
            config.update.objective,
            config.update.gradient_rule,
            config.update.loss,
            str(phase.spec.average or ""),
        ],
        "bn": phase.spec.bn,
        "cut": cut.name if cut else "",
        "code": code_digest(*MEASURED, plugins=plugins.sources(*register.KINDS)),
    }
