"""Courses of the learning rate along a phase."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import tensorflow as tf

from trainer.registry import Bounds, Choice, Registry
from trainer.values import Call, UsageError

Course = Callable[[tf.Tensor, int], tf.Tensor]
"""(updates since the warm-up, [] float32, below 0 in it; their number at the end, 1 or more) -> factor, []
float32."""

Schedule = Callable[[tf.Tensor | int | float], tf.Tensor]
"""Number of earlier updates of the phase, [] -> factor on its learning rate, [] float32."""

SCHEDULES: Registry[Course] = Registry("schedule of the learning rate", flag="lr_schedule")

_Share = Annotated[float, Bounds(at_least=0, at_most=1)]
_Inner = Annotated[float, Bounds(above=0, below=1)]
_Divisor = Annotated[float, Bounds(at_least=1)]
# Beyond these, a factor times a learning rate is no longer safe in float32.
_Factor = Annotated[float, Bounds(at_least=1e-30, at_most=1e30)]


@SCHEDULES.register("constant")
def constant() -> Course:
    """The rate stays as it is."""
    return lambda step, num_steps: tf.ones_like(step)


@SCHEDULES.register("cosine", source="arXiv 1608.03983")
def cosine(final: _Share = 0.0) -> Course:
    """Half a wave from 1 to `final` at the end (Loshchilov & Hutter, 2017), without restarts."""
    return lambda step, num_steps: _anneal(1.0, final, _share(step, num_steps))


@SCHEDULES.register("linear")
def linear(final: _Share = 0.0) -> Course:
    """A straight line from 1 to `final` at the end."""
    return lambda step, num_steps: 1.0 + (final - 1.0) * _share(step, num_steps)


@SCHEDULES.register("step", source="arXiv 1512.03385, section 4.2")
def stepwise(*falls: _Inner) -> Course:
    """A tenth of what was before, at each of these shares of the way; 1/3 and 2/3 where none are given.

    As He et al. (2016, arXiv 1512.03385, section 4.2) train, at 1/2 and 3/4.
    """
    falls = falls or (1 / 3, 2 / 3)
    if list(falls) != sorted(set(falls)):
        raise UsageError("each share must be above the last")

    def course(step: tf.Tensor, num_steps: int) -> tf.Tensor:
        # Whole updates, since a graph divides by a constant with another rounding. 0.28 * 25 is above 7.
        firsts = [math.ceil(fall * num_steps - 1e-6) for fall in falls]
        return tf.pow(0.1, tf.add_n([tf.cast(step >= first, tf.float32) for first in firsts]))

    return course


@SCHEDULES.register("exponential", source="arXiv 1506.01186")
def exponential(final: _Factor = 0.01) -> Course:
    """The same factor from each update to the next, from 1 to `final` at the end, which may be above 1.

    Rising, it is the range test of Smith (2017, arXiv 1506.01186) with steps even in the logarithm.
    """
    return lambda step, num_steps: tf.pow(float(final), _share(step, num_steps))


@SCHEDULES.register("one_cycle", source="arXiv 1708.07120", rises=True)
def one_cycle(rise: _Inner = 0.3, div: _Divisor = 25.0, final_div: _Divisor = 1e4) -> Course:
    """Up from 1/div to 1, then down to 1/(div * final_div) (Smith & Topin, 2018, arXiv 1708.07120).

    The momentum stays as it is. Half a cosine wave both ways, with the numbers of
    torch.optim.lr_scheduler.OneCycleLR: of n updates the peak is number rise * n, counted from 1, and the
    last has the lowest rate. A phase so short that this comes before the first starts at the peak.

    Args:
      rise: share of the updates up to the peak.
      div: the peak divided by the start.
      final_div: the start divided by the end.
    """
    start, end = 1.0 / div, 1.0 / div / final_div

    def course(step: tf.Tensor, num_steps: int) -> tf.Tensor:
        last = float(num_steps - 1)
        peak = min(max(rise * num_steps - 1.0, 0.0), last)
        step = tf.minimum(step, last)
        rising = _anneal(start, 1.0, tf.math.divide_no_nan(step, peak))
        falling = _anneal(1.0, end, tf.math.divide_no_nan(step - peak, last - peak))
        return tf.where(step < peak, rising, falling)

    return course


@dataclass(frozen=True)
class Plateau:
    """What the rate is multiplied with, after how many evaluations without a lower validation loss."""

    factor: float = 0.1
    patience: int = 5


@SCHEDULES.register("plateau")
def plateau(factor: _Inner = 0.1, patience: Annotated[int, Bounds(at_least=1)] = 5) -> Course:
    """Constant by itself; how evaluations lower the rate, see `Plateau`, belongs to the state of the run.

    As torch.optim.lr_scheduler.ReduceLROnPlateau and Keras's ReduceLROnPlateau.
    """
    return constant()


def choose_schedule(text: str | Call, *, warmup: bool) -> Choice[Course]:
    """Returns the schedule that a text names.

    Args:
      text: of `SCHEDULES`, such as `cosine` or `step(0.5,0.8)`.
      warmup: whether the phase has a warm-up.

    Raises:
      UsageError: there is none, its numbers are wrong, or it has a warm-up where there can be none.
    """
    choice = SCHEDULES.choose(text)
    if warmup and _rises(choice):
        raise UsageError(f"{choice.said} rises by itself: leave the warm-up away, as by warmup=0steps")
    choice()  # Of some, the numbers must go together.
    return choice


def rises_by_itself(text: str | Call) -> bool:
    """Returns whether the schedule that a text names begins low, so that there can be no warm-up.

    Raises:
      UsageError: there is none, or its numbers are wrong.
    """
    return _rises(SCHEDULES.choose(text))


def _rises(choice: Choice[Course]) -> bool:
    return bool(choice.entry.facts.get("rises"))


def along(choice: Choice[Course], *, warmup_steps: int, num_steps: int) -> Schedule:
    """Returns the factor on the learning rate by the number of earlier updates of a phase.

    The first update of a warm-up of n has 1/n of the rate, the last all of it; then the course begins.

    Args:
      choice: of `choose_schedule`.
      warmup_steps: updates of the warm-up, at most `num_steps`.
      num_steps: updates of the phase.
    """
    course = choice()
    num_after = max(1, num_steps - warmup_steps)

    def factor(step: tf.Tensor | int | float) -> tf.Tensor:
        step = tf.minimum(tf.cast(step, tf.float32), float(num_steps))
        value = course(step - warmup_steps, num_after)
        return tf.where(step < warmup_steps, (step + 1.0) / warmup_steps, value) if warmup_steps else value

    return factor


def plateau_of(choice: Choice[Course]) -> Plateau | None:
    """Returns how evaluations lower the rate under a schedule; None where they do not."""
    return Plateau(**dict(choice.named)) if choice.name == "plateau" else None


def _share(step: tf.Tensor, num_steps: int) -> tf.Tensor:
    """Returns how much of the way is done, from 0 to 1."""
    return tf.clip_by_value(step / num_steps, 0.0, 1.0)


def _anneal(start: float, end: float, share: tf.Tensor) -> tf.Tensor:
    """Returns half a cosine wave from `start` to `end`, as `share` goes from 0 to 1."""
    return end + (start - end) * (0.5 * (1.0 + tf.cos(math.pi * share)))
