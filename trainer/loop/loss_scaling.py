"""Dynamic loss scaling, which float16 needs: its smallest number is 6e-8, and gradients are smaller.

After Micikevicius et al., 2018 (arXiv 1710.03740), with the constants of tf_keras's LossScaleOptimizer,
whose scale is no public variable and could not be part of a strict checkpoint.
"""

import tensorflow as tf

INITIAL_SCALE = 2.0**15
GOOD_STEPS_TO_DOUBLE = 2000
LARGEST_SCALE = 2.0**127  # Twice that is infinite, and so would be half of it for ever.


class LossScale:
    """What a loss is multiplied with before, and gradients divided by after they are computed.

    It halves when a gradient is not finite, and that update is left out; it doubles after 2,000 updates
    in a row that were good. It never falls below 1.
    """

    def __init__(self) -> None:
        self.scale = tf.Variable(INITIAL_SCALE, trainable=False, name="loss_scale")
        self.good_steps = tf.Variable(0, trainable=False, dtype=tf.int64, name="good_steps")

    def variables(self) -> dict[str, tf.Variable]:
        return {"scale": self.scale, "good_steps": self.good_steps}

    def note(self, finite: tf.Tensor) -> None:
        """Moves the scale after an update, [] bool saying whether its gradients were finite."""
        good = tf.where(finite, self.good_steps + 1, 0)
        doubles = good >= GOOD_STEPS_TO_DOUBLE
        halved = tf.maximum(self.scale / 2.0, 1.0)
        doubled = tf.minimum(self.scale * 2.0, LARGEST_SCALE)
        self.scale.assign(tf.where(finite, tf.where(doubles, doubled, self.scale), halved))
        self.good_steps.assign(tf.where(doubles, tf.zeros_like(good), good))
