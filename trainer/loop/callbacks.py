"""What happens between updates, and when.

The order is a contract: Profile > Guard > Log > Histograms > registered ones that come before Save > Save >
Evaluate > Best > Plateau > EarlyStop > Figures > other registered ones > Stop. A state is checked before it
is saved, and saved before anything costly is done with it. What train's event files hold of a step is written
before Save, so that a checkpoint counts it; what comes after is made again when a run goes on from there.
`standard_callbacks` has those of every run, `best_and_stop` those that go by evaluations, `monitoring` those
that show how a run is doing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from trainer.loop.phases import Plan
from trainer.loop.state import TrainState
from trainer.registry import Registry
from trainer.values import Duration, UsageError


class Callback:
    """Something that is due at some steps."""

    def next_due(self, step: int) -> int:
        """Returns the first step after `step` at which the loop must come back to this one; here, never."""
        return 2**62

    def __call__(self, state: TrainState) -> None:
        """Acts if it is due at the state's step. Called whenever the loop comes back."""
        raise NotImplementedError

    def resume(self, state: TrainState) -> None:
        """Makes up for what comes after Save at the step of the restored checkpoint; here, nothing."""


def next_due(callback: Callback, step: int) -> int:
    """Returns when a callback is due next, of which the loop must be sure that it is later than `step`.

    Raises:
      UsageError: it is no whole number above `step`: the loop would stand still.
    """
    due: Any = callback.next_due(step)
    if isinstance(due, bool) or not isinstance(due, Integral) or due <= step:
        name = type(callback).__name__
        raise UsageError(
            f"next_due({step}) of the callback {name} must be an int above {step}; it is {due!r}"
        )
    return int(due)


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


@dataclass(frozen=True)
class RunView:
    """What a callback that is registered may use of the run."""

    experiment: Any
    """Pictures, splits, network and plan."""
    every: Callable[[str], Every]
    """Text of a duration, such as `2epochs` -> when it is due."""
    scalar: Callable[[str, float, int], None]
    """(name, value, step): writes a number into the event files, of train before Save, else of validation."""
    evaluate: Callable[[], Any]
    """Scores the validation split with the current weights; returns an `Evaluation`."""
    say: Callable[[str], None]
    """Shows a line to the user."""


CALLBACKS: Registry[Callback] = Registry("callback", flag="--callbacks", may_be_none=True)
