"""Callbacks that show how a run is doing: distributions of the weights, figures of evaluations, a profile."""

import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from trainer.loop.callbacks import Callback, Every
from trainer.loop.evaluator import Evaluation
from trainer.loop.state import TrainState
from trainer.loop.step import Run
from trainer.values import UsageError, of_one_device


class Histograms(Callback):
    """Writes the distributions of all variables. Before Save: see `callbacks`."""

    def __init__(self, every: Every, *, write: Callable[[int, Mapping[str, np.ndarray]], None]):
        """Notes what to do.

        Args:
          every: when.
          write: is given the step and {name: values}.
        """
        self._every, self._write = every, write

    def next_due(self, step: int) -> int:
        return self._every.next(step)

    def __call__(self, state: TrainState) -> None:
        if self._every.now(state.step):
            self._write(state.step, real_values(state.classifier.named_variables))


def real_values(variables: Mapping[str, tf.Variable]) -> dict[str, np.ndarray]:
    """Returns {name: values} of the variables that hold real numbers; counters and texts do not."""
    return {
        name: of_one_device(variable).numpy()
        for name, variable in variables.items()
        if variable.dtype.is_floating
    }


class Figures(Callback):
    """Draws the first evaluation at or after each due step, and the last one of each phase.

    After the callbacks that may end a phase early: what they end it after is the last one.
    """

    def __init__(self, every: Every, *, evaluations: Every, draw: Callable[[Evaluation, int], None]):
        """Notes what to do.

        Args:
          every: when figures are due.
          evaluations: when there are evaluations.
          draw: is given one, and its step.
        """
        self._every, self._evaluations, self._draw = every, evaluations, draw
        self._kept: tuple[Evaluation, int] | None = None

    def keep(self, scored: Evaluation, *, step: int) -> None:
        """Takes the evaluation of a step."""
        self._kept = (scored, step)

    def __call__(self, state: TrainState) -> None:
        kept, self._kept = self._kept, None
        if kept is None:
            return
        scored, step = kept
        ended_early = state.step > step
        if ended_early or self._every.next(self._evaluations.last(step)) <= step:
            self._draw(scored, step)

    def resume(self, state: TrainState) -> None:
        # Evaluate has made the evaluation of the step again.
        self(state)


class Profiler(Protocol):
    """What watches updates; `record.profile.Profiler` is one."""

    def start(self) -> None: ...
    def update(self, step: int) -> AbstractContextManager[Any]: ...
    def stop(self, name: str) -> None: ...
    def discard(self) -> None: ...


class Profile(Callback):
    """Has a profiler watch the updates from `first` to `last`, both of them, each in a call of its own.

    Of a run that goes on in the middle of them, those that are left. Before all other callbacks: what
    these do is not part of it.
    """

    def __init__(self, first: int, last: int, *, profiler: Profiler):
        self._first, self._last, self._profiler = first, last, profiler
        # The update that was watched first, as long as the profiler is on.
        self._begun = 0

    def next_due(self, step: int) -> int:
        if step < self._first - 1:
            return self._first - 1
        return step + 1 if step < self._last else super().next_due(step)

    def around(self, run: Run, state: TrainState) -> Run:
        """Returns a `run` that has its updates watched, if they are to be.

        The profiler starts with the first of them, and not when the update before is done: a phase may begin
        in between, which takes its time.
        """

        def watched(iterator: Any, num_steps: tf.Tensor) -> tf.Tensor:
            step = state.step
            if not self._first <= step + 1 <= self._last:
                return run(iterator, num_steps)
            if not self._begun:
                self._profiler.start()
                self._begun = step + 1
            with self._profiler.update(step + 1):
                waiting_secs = run(iterator, num_steps)
                waiting_secs.numpy()  # Of a GPU, too, the update is done then.
            return waiting_secs

        return watched

    def __call__(self, state: TrainState) -> None:
        if self._begun and state.step >= self._last:
            name = f"updates_{self._begun}-{self._last}"
            self._begun = 0
            self._profiler.stop(name)

    def close(self) -> None:
        """Ends a profile that is not finished, of which nothing is kept."""
        if self._begun:
            self._begun = 0
            self._profiler.discard()


def profile_range(text: str, *, total_steps: int) -> tuple[int, int]:
    """Reads the updates that --profile_steps names, `100-110` or `100`; the first of a run is 1.

    Args:
      text: of the option.
      total_steps: how many there are.

    Raises:
      UsageError: the text is something else, or goes beyond the plan.
    """
    match = re.fullmatch("([0-9]{1,18})(?:-([0-9]{1,18}))?", text)
    if not match:
        raise UsageError(f"--profile_steps={text} is not the number of an update, or two such as 100-110")
    first, last = int(match[1]), int(match[2] or match[1])
    if not 1 <= first <= last:
        raise UsageError(f"--profile_steps={text}: updates count from 1, and the first comes before the last")
    if last > total_steps:
        raise UsageError(f"--profile_steps={text}: the run has only {total_steps:,} updates")
    return first, last
