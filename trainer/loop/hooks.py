"""What happens between updates, and when.

The order is a contract: Profile > Guard > Log > Histograms > Save > Evaluate > Best > Plateau > EarlyStop >
Figures > Stop. A state is checked before it is saved, and saved before anything costly is done with it. What
train's event files hold of a step is written before Save, so that a checkpoint counts it; what comes after is
made again when a run goes on from there. `judges` has those that go by evaluations, `watching` those that
show how a run is doing.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from trainer.loop.phases import Plan
from trainer.loop.state import Stopwatch, TrainState
from trainer.values import Duration, Interrupted


class Hook(Protocol):
    """Something that is due at some steps."""

    def next_due(self, step: int) -> int:
        """Returns the first step after `step` at which the loop must come back to this hook."""
        ...

    def __call__(self, state: TrainState) -> None:
        """Acts if it is due at the state's step. Called whenever the loop comes back."""
        ...

    def resume(self, state: TrainState) -> None:
        """Makes up for what comes after Save at the step of the restored checkpoint."""
        ...


class Writer(Protocol):
    """Where numbers go; `record.summaries.Summaries` is one."""

    def scalars(
        self, split: str, step: int, values: Mapping[str, float], timing: Mapping[str, float] = ...
    ) -> None: ...


class Progress(Protocol):
    """Who is told how far a run is; `record.progress` has them."""

    def at(self, step: int, train: Mapping[str, float]) -> None: ...
    def evaluated(self, step: int, validation: Mapping[str, float]) -> None: ...


class Judge(Hook, Protocol):
    """A hook that goes by the numbers of evaluations; `judges` has them."""

    def offer(self, values: Mapping[str, float]) -> None: ...


class Every:
    """Steps that are multiples of a duration, and the last step of each phase."""

    def __init__(self, every: Duration, plan: Plan, *, num_examples: int, batch_size: int):
        self.interval_steps = every.to_steps(
            num_examples=num_examples, batch_size=batch_size, total_steps=plan.total_steps
        )
        self._ends = {phase.stop_step for phase in plan.phases}

    def next(self, step: int) -> int:
        """Returns the first due step after `step`."""
        multiple = (step // self.interval_steps + 1) * self.interval_steps
        return min([multiple, *(end for end in self._ends if end > step)])

    def last(self, step: int) -> int:
        """Returns the last due step before `step`; 0 where there is none."""
        multiple = (step - 1) // self.interval_steps * self.interval_steps
        return max([multiple, *(end for end in self._ends if end < step)])

    def count(self, start: int, stop: int) -> int:
        """Returns how many due steps there are after `start` up to `stop`."""
        ends = sum(start < end <= stop and end % self.interval_steps > 0 for end in self._ends)
        return max(stop // self.interval_steps - start // self.interval_steps, 0) + ends

    def now(self, step: int) -> bool:
        """Returns whether something is due at `step`; nothing is before the first update."""
        return step > 0 and (self.is_multiple(step) or step in self._ends)

    def is_multiple(self, step: int) -> bool:
        """Returns whether something is due at `step`, or would be, not only because a phase ends there."""
        return step % self.interval_steps == 0


class QuietHook:
    """Never due by itself, and with nothing to make up for."""

    def next_due(self, step: int) -> int:
        return 2**62

    def resume(self, state: TrainState) -> None:
        pass


class Log(QuietHook):
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


class Save(QuietHook):
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


class Evaluate(QuietHook):
    """Scores the validation split, and hands its numbers on to the hooks after it that go by them."""

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


class Stop(QuietHook):
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
