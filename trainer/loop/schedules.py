"""Courses of the learning rate along a phase. A new one is a function here and a line in `SCHEDULES`."""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from trainer.values import Call, UsageError, call_of

Course = Callable[[tf.Tensor, int], tf.Tensor]
"""(updates since the warm-up, [] float32, below 0 in it; their number at the end, 1 or more) -> factor, []
float32."""

Schedule = Callable[[tf.Tensor | int | float], tf.Tensor]
"""Number of earlier updates of the phase, [] -> factor on its learning rate, [] float32."""

# Beyond these, a factor times a learning rate is no longer safe in float32.
SMALLEST, LARGEST = 1e-30, 1e30


def constant() -> Course:
    """The rate stays as it is."""
    return lambda step, num_steps: tf.ones_like(step)


def cosine(final: float = 0.0) -> Course:
    """Half a wave from 1 to `final` at the end (Loshchilov & Hutter, 2017, arXiv 1608.03983, without
    restarts)."""
    _require(0 <= final <= 1, "what is left at the end must be from 0 to 1")
    return lambda step, num_steps: _anneal(1.0, final, _share(step, num_steps))


def linear(final: float = 0.0) -> Course:
    """A straight line from 1 to `final` at the end."""
    _require(0 <= final <= 1, "what is left at the end must be from 0 to 1")
    return lambda step, num_steps: 1.0 + (final - 1.0) * _share(step, num_steps)


def stepwise(*falls: float) -> Course:
    """A tenth of what was before, at each of these shares of the way; 1/3 and 2/3 where none are given.

    As He et al. (2016, arXiv 1512.03385, section 4.2) train, at 1/2 and 3/4.
    """
    falls = falls or (1 / 3, 2 / 3)
    between = all(0 < fall < 1 for fall in falls)
    _require(
        between and list(falls) == sorted(set(falls)), "shares must be between 0 and 1, each above the last"
    )

    def course(step: tf.Tensor, num_steps: int) -> tf.Tensor:
        # Whole updates, since a graph divides by a constant with another rounding. 0.28 * 25 is above 7.
        firsts = [math.ceil(fall * num_steps - 1e-6) for fall in falls]
        return tf.pow(0.1, tf.add_n([tf.cast(step >= first, tf.float32) for first in firsts]))

    return course


def exponential(final: float = 0.01) -> Course:
    """The same factor from each update to the next, from 1 to `final` at the end, which may be above 1.

    Rising, it is the range test of Smith (2017, arXiv 1506.01186) with steps even in the logarithm.
    """
    _require(
        SMALLEST <= final <= LARGEST, f"what is left at the end must be from {SMALLEST:g} to {LARGEST:g}"
    )
    return lambda step, num_steps: tf.pow(float(final), _share(step, num_steps))


def one_cycle(rise: float = 0.3, div: float = 25.0, final_div: float = 1e4) -> Course:
    """Up from 1/div to 1, then down to 1/(div * final_div) (Smith & Topin, 2018, arXiv 1708.07120).

    The momentum stays as it is. Half a cosine wave both ways, with the numbers of
    torch.optim.lr_scheduler.OneCycleLR: of n updates the peak is number rise * n, counted from 1, and the
    last has the lowest rate. A phase so short that this comes before the first starts at the peak.

    Args:
      rise: share of the updates up to the peak.
      div: the peak divided by the start.
      final_div: the start divided by the end.
    """
    _require(0 < rise < 1, "the share of the rise must be between 0 and 1")
    _require(div >= 1 and final_div >= 1, "the divisors must be 1 or more")
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

    def __post_init__(self) -> None:
        _require(0 < self.factor < 1, "the factor must be between 0 and 1")
        _require(isinstance(self.patience, int) and self.patience >= 1, "the patience must be 1, 2, ...")


def plateau(factor: float = 0.1, patience: int = 5) -> Course:
    """Constant by itself; how evaluations lower the rate, see `Plateau`, belongs to the state of the run.

    As torch.optim.lr_scheduler.ReduceLROnPlateau and Keras's ReduceLROnPlateau.
    """
    Plateau(factor, patience)
    return constant()


SCHEDULES: dict[str, Callable[..., Course]] = {
    "constant": constant,
    "cosine": cosine,
    "linear": linear,
    "step": stepwise,
    "exponential": exponential,
    "one_cycle": one_cycle,
    "plateau": plateau,
}
WITHOUT_WARMUP = ("one_cycle",)
"""Those that begin low by themselves."""


def make_schedule(text: str, *, warmup_steps: int, num_steps: int) -> Schedule:
    """Returns the factor on a phase's learning rate as a function of the step since its start.

    Warm-up rises linearly, the first update having 1/warmup_steps of the rate; the course that `text`
    names goes from there to the end of the phase, and stays as it was at the end.

    Args:
      text: a name of `SCHEDULES`, with numbers or without, such as `cosine` or `step(0.5,0.8)`.
      warmup_steps: updates of the warm-up, at most `num_steps`.
      num_steps: updates of the phase.

    Raises:
      UsageError: see `check_schedule`.
    """
    check_schedule(text, warmup=warmup_steps > 0)
    course = _read(text)[1]
    num_after = max(1, num_steps - warmup_steps)

    def factor(step: tf.Tensor | int | float) -> tf.Tensor:
        step = tf.minimum(tf.cast(step, tf.float32), float(num_steps))
        value = course(step - warmup_steps, num_after)
        return tf.where(step < warmup_steps, (step + 1.0) / warmup_steps, value) if warmup_steps else value

    return factor


def check_schedule(text: str, *, warmup: bool) -> None:
    """Makes sure that there is such a schedule.

    Args:
      text: as of `make_schedule`.
      warmup: whether the phase has a warm-up.

    Raises:
      UsageError: an unknown name, wrong numbers, or a warm-up where there can be none.
    """
    name = _read(text)[0].name
    if warmup and name in WITHOUT_WARMUP:
        raise UsageError(f"lr_schedule={text} rises by itself: leave the warm-up away, as by warmup=0steps")


def plateau_of(text: str) -> Plateau | None:
    """Returns how evaluations lower the rate under a schedule; None where they do not.

    Raises:
      UsageError: there is no such schedule.
    """
    call = _read(text)[0]
    return Plateau(*call.args) if call.name == "plateau" else None


def _share(step: tf.Tensor, num_steps: int) -> tf.Tensor:
    """Returns how much of the way is done, from 0 to 1."""
    return tf.clip_by_value(step / num_steps, 0.0, 1.0)


def _anneal(start: float, end: float, share: tf.Tensor) -> tf.Tensor:
    """Returns half a cosine wave from `start` to `end`, as `share` goes from 0 to 1."""
    return end + (start - end) * (0.5 * (1.0 + tf.cos(math.pi * share)))


def _read(text: str) -> tuple[Call, Course]:
    such_as = ", with numbers or without, such as step(0.5,0.8)"
    call = call_of(text, SCHEDULES, flag="lr_schedule", such_as=such_as)
    make = SCHEDULES[call.name]
    signature = inspect.signature(make)
    if not _fits(signature, call.args):
        takes = [str(one.replace(annotation=one.empty)) for one in signature.parameters.values()]
        raise UsageError(f"lr_schedule={text}: the numbers it takes are {', '.join(takes) or 'none'}")
    try:
        return call, make(*call.args)
    except UsageError as error:
        raise UsageError(f"lr_schedule={text}: {error}") from None


def _fits(signature: inspect.Signature, values: Sequence[Any]) -> bool:
    """Returns whether values are numbers, and as many as a function takes."""
    try:
        signature.bind(*values)
    except TypeError:
        return False
    # A bool is an int to Python, and no number to a reader.
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    return numbers and all(abs(value) <= LARGEST for value in values)


def _require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise UsageError(otherwise)
