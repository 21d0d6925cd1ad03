"""Callbacks of every run: the guard, Log, Save, Evaluate and Stop. Their order is in `callbacks`."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from trainer.loop.callbacks import Callback, Every
from trainer.loop.state import TrainState
from trainer.loop.stopwatch import Stopwatch
from trainer.values import CommonError, Interrupted

EXAMPLES_SHOWN = 64


class NonFinite(CommonError):
    """An update made numbers that nobody can go on with; nothing was saved from there.

    `step` is the number of updates before it, `examples` the ids of its batch.
    """

    def __init__(self, what: str, state: TrainState, *, step: int, examples: Sequence[str]):
        self.what, self.step, self.examples = what, step, list(examples)
        phase = state.plan.phase_at(step)
        self.phase, self.learning_rate = phase.spec.name, phase.learning_rate(step)
        shown = ", ".join(self.examples[:EXAMPLES_SHOWN])
        more = len(self.examples) - EXAMPLES_SHOWN
        super().__init__(
            f"{what} at step {step} (phase {self.phase}, learning rate {self.learning_rate:g}); nothing was "
            f"saved from there. The batch: {shown}{f' and {more} more' if more > 0 else ''}. A lower "
            "learning rate or a warm-up may help; --on_nonfinite=rollback goes on without that batch"
        )


class Guard(Callback):
    """Stops a run whose numbers have become unfit to go on with, before anything is saved from it.

    Never due by itself: a call for many updates ends where something is wrong.
    """

    def __init__(
        self,
        *,
        examples: Callable[[int], Sequence[str]],
        max_loss: float = math.inf,
    ):
        """Notes what to tell.

        Args:
          examples: step -> ids of the batch of the update to step + 1.
          max_loss: what the step functions of this run take for too much.
        """
        self._examples, self._max_loss = examples, max_loss

    def __call__(self, state: TrainState) -> None:
        if what := state.unfit.describe(max_loss=self._max_loss):
            step = int(state.unfit.step.numpy())
            raise NonFinite(what, state, step=step, examples=self._examples(step))

    def check_weights(self, state: TrainState) -> None:
        """Makes sure that what is about to be saved is finite; the last update may have ruined it."""
        if name := state.find_nonfinite():
            step = state.step - 1
            what = f"{name} is not finite after the update"
            raise NonFinite(what, state, step=step, examples=self._examples(step))


class Writer(Protocol):
    """Where numbers go; `record.summaries.Summaries` is one."""

    def scalars(
        self, split: str, step: int, values: Mapping[str, float], timing: Mapping[str, float] = ...
    ) -> None: ...


class Progress(Protocol):
    """Who is told how far a run is; `record.progress` has them."""

    def at(self, step: int, train: Mapping[str, float]) -> None: ...
    def evaluated(self, step: int, validation: Mapping[str, float]) -> None: ...


class Judge(Protocol):
    """A callback that goes by the numbers of evaluations; `best_and_stop` has them."""

    def offer(self, values: Mapping[str, float]) -> None: ...


class Log(Callback):
    """Writes loss, accuracy, rates and times since the last log, and moves the progress on."""

    def __init__(self, every: Every, *, writer: Writer, progress: Progress):
        self._every, self._writer, self._progress = every, writer, progress

    def next_due(self, step: int) -> int:
        return self._every.next(step)

    def __call__(self, state: TrainState) -> None:
        step, watch = state.step, state.stopwatch
        values, timing = state.metrics.read(), {}
        if watch.num_steps:
            timing = {
                "images_per_second": watch.num_examples / watch.seconds,
                "input_wait_share": watch.waiting_secs / watch.seconds,
            }
        self._progress.at(step, {**values, **timing})
        if not self._every.now(step):
            return
        norm = values.pop("gradient_norm")
        values |= {"learning_rate": state.learning_rate(), "gradient_norm": norm}
        self._writer.scalars("train", step, values, timing)
        state.metrics.reset()
        state.stopwatch = Stopwatch()


class Save(Callback):
    """Writes a checkpoint when one is due, by steps or because the last one is old."""

    def __init__(
        self,
        every: Every,
        *,
        save: Callable[[TrainState], None],
        every_secs: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._every, self._save, self._every_secs, self._clock = every, save, every_secs, clock
        self._saved_at = clock()

    def next_due(self, step: int) -> int:
        # By time, one is written when the loop comes back for another reason: Stop sees to that.
        return self._every.next(step)

    def __call__(self, state: TrainState) -> None:
        is_old = self._every_secs and self._clock() - self._saved_at >= self._every_secs
        if self._every.now(state.step) or is_old:
            self._save(state)
            self._saved_at = self._clock()


class Evaluate(Callback):
    """Scores the validation split, and hands its numbers on to the callbacks after it that go by them."""

    def __init__(
        self,
        every: Every,
        *,
        evaluate: Callable[[], Mapping[str, float]],
        writer: Writer,
        progress: Progress,
        then: Sequence[Judge],
    ):
        self._every, self._evaluate, self._writer = every, evaluate, writer
        self._progress, self._then = progress, then

    def next_due(self, step: int) -> int:
        return self._every.next(step)

    def __call__(self, state: TrainState) -> None:
        if self._every.now(state.step):
            values = self._evaluate()
            self._writer.scalars("validation", state.step, values)
            self._progress.evaluated(state.step, values)
            for judge in self._then:
                judge.offer(values)

    def resume(self, state: TrainState) -> None:
        # The checkpoint was made before the evaluation of its step, which is lost with the process.
        self(state)


class Stop(Callback):
    """Ends the run when asked to: looks once a second, saves, and raises `Interrupted`."""

    def __init__(
        self,
        *,
        requested: Callable[[], str],
        save: Callable[[TrainState], None],
        clock: Callable[[], float] = time.monotonic,
        look_every_secs: float = 1.0,
    ):
        self._requested, self._save, self._clock = requested, save, clock
        self._look_every_secs = look_every_secs
        self._last: tuple[int, float] | None = None
        self._steps = 1

    def next_due(self, step: int) -> int:
        # No signal reaches Python while TensorFlow runs: as many steps as fit into the interval.
        now = self._clock()
        if self._last is not None and step > self._last[0]:
            per_step = (now - self._last[1]) / (step - self._last[0])
            # Growing at most tenfold a time, because the first steps are not like the others.
            fitting = int(self._look_every_secs / max(per_step, 1e-9))
            self._steps = max(1, min(fitting, 10 * self._steps))
        self._last = (step, now)
        return step + self._steps

    def __call__(self, state: TrainState) -> None:
        if why := self._requested():
            self._save(state)
            raise stopped(why, state)


def stopped(why: str, state: TrainState) -> Interrupted:
    """Returns what a run ends with that was asked to, and is saved."""
    return Interrupted(
        f"{why}: stopped at step {state.step:,} of {state.plan.total_steps:,}; everything is saved. Run the "
        "same command to continue"
    )
