"""Callbacks of every run: Log, Save, Evaluate and Stop. Their order is in `callbacks`."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from trainer.loop.callbacks import Callback, Every
from trainer.loop.state import TrainState
from trainer.loop.stopwatch import Stopwatch
from trainer.values import Interrupted


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
    """A callback that goes by the numbers of evaluations; `judges` has them."""

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
            raise Interrupted(
                f"{why}: stopped at step {state.step:,} of {state.plan.total_steps:,} and saved; the same "
                "command goes on from there"
            )
