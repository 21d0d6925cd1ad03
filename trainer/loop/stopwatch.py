"""How long updates take, and what is done in that time."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tensorflow as tf


@dataclass
class Stopwatch:
    """Time since the last log, and what was done in it: examples without padding.

    Not part of the state: no number of a run depends on it.
    """

    seconds: float = 0.0
    waiting_secs: float = 0.0
    num_steps: int = 0
    num_examples: int = 0

    def add(self, *, seconds: float, waiting_secs: float, num_steps: int, num_examples: int) -> None:
        self.seconds += seconds
        self.waiting_secs += waiting_secs
        self.num_steps += num_steps
        self.num_examples += num_examples


def timed(run: Callable[..., tf.Tensor], state: Any, iterator: tf.data.Iterator, num_steps: int) -> None:
    """Calls a `Run` for a number of updates, and adds its time to the stopwatch of a `TrainState`."""
    step, examples, start = state.step, state.metrics.count("loss"), time.perf_counter()
    waiting_secs = float(run(iterator, tf.constant(num_steps)))
    state.stopwatch.add(
        seconds=time.perf_counter() - start,
        waiting_secs=waiting_secs,
        num_steps=state.step - step,
        num_examples=state.metrics.count("loss") - examples,
    )
