"""Whether a measure of the validation split has stopped getting better: for plateaus and early stopping."""

import math
from collections.abc import Mapping

import tensorflow as tf


class Standstill:
    """The best value of a phase so far, and how many evaluations have passed since.

    Part of the state of a run: a checkpoint holds it.
    """

    def __init__(self, name: str) -> None:
        # float64, so that what is compared after a restore is what was measured.
        self.best = tf.Variable(-math.inf, trainable=False, dtype=tf.float64, name=f"{name}_best")
        self.count = tf.Variable(0, trainable=False, dtype=tf.int64, name=f"{name}_count")
        self.step = tf.Variable(-1, trainable=False, dtype=tf.int64, name=f"{name}_step")

    def variables(self) -> dict[str, tf.Variable]:
        return {"best": self.best, "count": self.count, "step": self.step}

    def reset(self) -> None:
        self.best.assign(-math.inf)
        self.count.assign(0)
        self.step.assign(-1)

    def offer(self, values: Mapping[str, float], *, step: int, metric: str, min_change: float = 0.0) -> bool:
        """Takes the numbers of an evaluation; `count` then says how many there were since the best.

        Args:
          values: {measure: value}.
          step: of the evaluation. One that is made again after a restart counts once.
          metric: which measure; a loss is the better the lower it is. No number is never better.
          min_change: a change for the better counts if it is larger than this.

        Returns:
          Whether it was new.
        """
        if step <= int(self.step.numpy()):
            return False
        self.step.assign(step)
        # Of logits that are not finite there is, for example, no area under a curve.
        measured = values.get(metric, math.nan)
        value = -measured if metric == "loss" else measured
        if value > float(self.best.numpy()) + min_change:
            self.best.assign(value)
            self.count.assign(0)
        else:
            self.count.assign_add(1)
        return True
