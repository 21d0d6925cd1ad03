"""Averages of the weights along a phase: one mechanism, and what share of the old each update keeps."""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any

import tensorflow as tf

from trainer.registry import Bounds, Registry
from trainer.values import Call, UsageError

Average = Callable[[tf.Tensor | int], tf.Tensor]
"""Number of earlier updates of the phase -> share d of the average that the update keeps, [] float32.

The average becomes d * average + (1 - d) * weight.
"""

AVERAGES: Registry[Average] = Registry("average of the weights", flag="average", may_be_none=True)


@AVERAGES.register("ema", source="Polyak & Juditsky, 1992, SIAM J. Control Optim. 30(4)")
def ema(decay: Annotated[float, Bounds(above=0, below=1)] = 0.999) -> Average:
    """An exponential average (Polyak & Juditsky, 1992, SIAM J. Control Optim. 30(4)).

    After n earlier updates the share is min(decay, (1 + n) / (10 + n)), as in
    tf.train.ExponentialMovingAverage with `num_updates`: a short phase forgets its start, too.
    """

    def share(step: tf.Tensor | int) -> tf.Tensor:
        earlier = tf.cast(step, tf.float32)
        return tf.minimum(tf.constant(decay, tf.float32), (1.0 + earlier) / (10.0 + earlier))

    return share


@AVERAGES.register("swa", source="arXiv 1803.05407, algorithm 1", over_weights=True)
def swa(
    last: Annotated[float, Bounds(above=0, at_most=1)] = 0.25, *, num_steps: int, steps_per_epoch: int
) -> Average:
    """The mean of the weights at the ends of epochs (Izmailov et al., 2018, arXiv 1803.05407, algorithm 1).

    It begins where the last share of the phase does, rounded half up to the end of an epoch, with the
    weights of that moment. Up to there the average is the weights themselves. Epochs count from the start
    of the phase.
    """
    epochs = num_steps // steps_per_epoch
    first = max(1, math.floor((1 - last) * num_steps / steps_per_epoch + 0.5))
    ends = max(0, epochs - first + 1)
    if ends < 2:
        raise UsageError(
            f"the last {last:.0%} of a phase of {num_steps} steps hold {ends} ends of epochs of "
            f"{steps_per_epoch} steps, and a mean needs 2: train longer, or give a larger share"
        )

    def share(step: tf.Tensor | int) -> tf.Tensor:
        done = tf.cast(step, tf.int64) + 1
        count = tf.maximum(done // steps_per_epoch - first + 1, 1)
        kept = tf.cast(count - 1, tf.float32) / tf.cast(count, tf.float32)
        at_end = tf.equal(done % steps_per_epoch, 0)
        return tf.where(done <= first * steps_per_epoch, 0.0, tf.where(at_end, kept, 1.0))

    return share


def make_average(text: str | Call | None, *, num_steps: int, steps_per_epoch: int) -> Average | None:
    """Makes the average that a text names; None for an empty one.

    Args:
      text: of `AVERAGES`, such as `ema(0.999)`.
      num_steps: updates of the phase.
      steps_per_epoch: updates of an epoch.

    Raises:
      UsageError: there is no such average, or the phase is too short for it.
    """
    if not text:
        return None
    return AVERAGES.choose(text)(num_steps=num_steps, steps_per_epoch=steps_per_epoch)


class Shadows:
    """The averages of variables, each in a variable of its own, which begins with the weights.

    Variables that do not hold real numbers, such as counters, have none.
    """

    def __init__(self, average: Average, weights: Mapping[str, tf.Variable]):
        """Makes the averages; in the scope of the strategy that holds the weights.

        Args:
          average: what each update keeps of them.
          weights: {name: variable} of all that updates change.
        """
        self._average, self._strategy = average, tf.distribute.get_strategy()
        self._weights = {name: weight for name, weight in weights.items() if weight.dtype.is_floating}
        self._shadows = {
            name: tf.Variable(weight.read_value(), trainable=False, name=f"average/{name}")
            for name, weight in self._weights.items()
        }

    def variables(self) -> dict[str, tf.Variable]:
        """Returns {name of the weight: its average}."""
        return dict(self._shadows)

    def start(self) -> None:
        """Sets the averages to the weights, when these were changed by something else than updates."""
        for name, shadow in self._shadows.items():
            shadow.assign(self._weights[name].read_value())

    def update(self, step_in_phase: tf.Tensor) -> None:
        """Takes the weights after an update in. For the cross-replica context of a train step.

        Args:
          step_in_phase: [] int64, number of updates of the phase before that one.
        """
        share = self._average(step_in_phase)

        def move(shadow: tf.Variable, weight: tf.Tensor) -> None:
            kept = tf.cast(share, shadow.dtype)
            shadow.assign(kept * shadow + (1.0 - kept) * weight)

        def move_all() -> None:
            for name, shadow in self._shadows.items():
                weight = self._weights[name]
                if weight.synchronization == tf.VariableSynchronization.ON_READ:
                    # Statistics of BatchNorm differ between devices; read here, they are their mean.
                    weight = weight.read_value()
                self._strategy.extended.update(shadow, move, args=(weight,), group=False)

        tf.cond(share < 1.0, move_all, lambda: None)

    @contextlib.contextmanager
    def swapped(self) -> Iterator[None]:
        """Puts the averages into the weights for a block, and afterwards the very same weights back."""
        before = [[part.read_value() for part in self._parts(weight)] for weight in self._weights.values()]
        try:
            self.commit()
            yield
        finally:
            for weight, values in zip(self._weights.values(), before, strict=True):
                for part, value in zip(self._parts(weight), values, strict=True):
                    part.assign(value)

    def commit(self) -> None:
        """Sets the weights to the averages."""
        for name, weight in self._weights.items():
            for part, shadow in zip(self._parts(weight), self._parts(self._shadows[name]), strict=True):
                part.assign(shadow.read_value())

    def _parts(self, variable: tf.Variable) -> tuple[Any, ...]:
        """Returns the variable of each device."""
        return self._strategy.experimental_local_results(variable)
