"""A learning-rate range test: the loss while the rate rises from update to update, and what it says.

Smith, 2017, "Cyclical learning rates for training neural networks", arXiv 1506.01186, section 3.3.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

from trainer.cli.phase_specs import PhaseSpec
from trainer.loop.state import TrainState
from trainer.loop.step import Run
from trainer.values import Call, Duration

# Losses are smoothed as an exponential average with this share of the last value, without its bias.
SMOOTHING = 0.9
# Beyond this multiple of the lowest smoothed loss, the rate is too high for anything to come.
HOPELESS = 4.0
# Width of the stretch whose slope counts, in powers of ten.
WINDOW_DECADES = 1.0


def range_spec(spec: PhaseSpec, *, low: float, high: float, num_steps: int) -> PhaseSpec:
    """Returns a phase that trains the same with a rate that rises from `low` to `high`, geometrically."""
    return dataclasses.replace(
        spec,
        duration=Duration(num_steps, "steps"),
        learning_rate=low,
        lr_schedule=Call("exponential", (high / low,)),
        warmup=Duration(0, "steps"),
        average=None,
    )


def rising(state: TrainState, run: Run, iterator: tf.data.Iterator) -> Iterator[tuple[float, float]]:
    """Yields (rate, loss) of one update after another, as long as the loss is a number and not hopeless."""
    losses: list[float] = []
    while state.step < state.plan.total_steps:
        rate = state.phase.learning_rate(state.step)
        run(iterator, tf.constant(1))
        if int(state.unfit.step.numpy()) >= 0:
            return
        losses.append(state.metrics.read()["loss"])
        state.metrics.reset()
        yield rate, losses[-1]
        means = smoothed(losses)
        if means[-1] > HOPELESS * means.min():
            return


def smoothed(losses: Sequence[float]) -> np.ndarray:
    """Returns the exponential average of losses, [N] float64, each without the bias of its start."""
    means, mean = [], 0.0
    for number, loss in enumerate(losses, 1):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        means.append(mean / (1 - SMOOTHING**number))
    return np.array(means)


def propose(rates: Sequence[float], losses: Sequence[float]) -> float:
    """Returns the rate at which the smoothed loss falls fastest, over the logarithm of the rate.

    How fast is the slope of a straight line through what lies within half a decade to either side, as
    single updates are noisy. Only what comes before the lowest point counts.

    Raises:
      ValueError: the loss falls nowhere, or not over as much as a decade of rates.
    """
    means, decades = smoothed(losses), np.log10(rates)
    lowest = int(means.argmin())
    best, proposed = 0.0, math.nan
    for at in range(lowest + 1):
        near = np.abs(decades[: lowest + 1] - decades[at]) <= WINDOW_DECADES / 2 + 1e-9
        is_whole = decades[at] - decades[0] >= WINDOW_DECADES / 2 - 1e-9 <= decades[lowest] - decades[at]
        if not is_whole or near.sum() < 3:
            continue
        slope = np.polyfit(decades[: lowest + 1][near], means[: lowest + 1][near], 1)[0]
        if slope < best:
            best, proposed = slope, rates[at]
    if math.isnan(proposed):
        raise ValueError("the loss does not fall over a decade of rates")
    return float(proposed)
