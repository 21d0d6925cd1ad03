"""Whether a run under a longer plan begins with the very updates that were made under a shorter one."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from trainer.loop.callbacks import Every
from trainer.loop.phases import Phase, PhaseSchedule, Plan


def why_other_updates(old: Plan, new: Plan, *, step: int) -> str:
    """Returns why the first `step` updates of two plans are not the same; '' where they are.

    What a phase computes from its length is compared by its values, update by update: the learning rate, and
    what an average keeps.

    Args:
      old: the plan under which the updates were made.
      new: of the same phases but for their lengths.
      step: how many updates were made.
    """
    for was, now in zip(old.phases, new.phases, strict=True):
        name = was.spec.name
        if now.num_steps < was.num_steps:
            return f"phase {name} would have {now.num_steps:,} steps instead of {was.num_steps:,}"
        has_ended = was.stop_step <= step and was is not old.phases[-1]
        if has_ended and now.num_steps != was.num_steps:
            return f"phase {name} ended at step {was.stop_step:,}, and the run is at step {step:,}"
        for what, values in (("learning rate", _rates), ("share that the average keeps", _kept)):
            count = min(step, was.stop_step) - was.start_step
            if count <= 0:
                continue
            before, after = values(was, count), values(now, count)
            differs = np.flatnonzero(before != after)
            if len(differs):
                first = int(differs[0])
                return (
                    f"phase {name}: the {what} depends on the length of the phase; at step "
                    f"{was.start_step + first:,} it was {before[first]:g}, and would be {after[first]:g}"
                )
    return ""


def first_other_step(old: Every, new: Every, *, step: int) -> int | None:
    """Returns the first step, up to `step`, at which something is due under only one of two plans."""
    at = 0
    while at < step:
        was, now = old.next(at), new.next(at)
        if was != now:
            first = min(was, now)
            return first if first <= step else None
        at = was
    return None


def _rates(phase: Phase, count: int) -> np.ndarray:
    return _values(PhaseSchedule(phase), count)


def _kept(phase: Phase, count: int) -> np.ndarray:
    return _values(phase.average, count) if phase.average else np.zeros(count)


def _values(of_step: Callable[[tf.Tensor], tf.Tensor], count: int) -> np.ndarray:
    """Returns what a function gives for each of the first `count` updates of a phase, [count] float32.

    It is called with one step, [] int64, in a graph, as an update calls it: that of a plugin may ask for it.
    """

    def of_one(step: tf.Tensor) -> tf.Tensor:
        return tf.cast(of_step(step), tf.float32)

    @tf.function
    def of_all() -> tf.Tensor:
        return tf.map_fn(of_one, tf.range(count, dtype=tf.int64), fn_output_signature=tf.float32)

    # A GPU would start each operation of each step by itself.
    with tf.device("CPU:0"):
        found: np.ndarray = of_all().numpy()
    return found
