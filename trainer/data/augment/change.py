"""What a kind of change is."""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from trainer.registry import Registry


class Change(NamedTuple):
    """One kind of random change of a picture by itself.

    `num_draws` is P; `apply` maps images [B, H, W, 3] float32 in [0, 1] and draws [B, P] float32 in
    [0, 1) to images of the same shape and range.
    """

    num_draws: int
    apply: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


class Mixing(NamedTuple):
    """One way to mix a picture with another.

    `draw` maps a seed [2] int32 to draws [P] float32, `num_draws` is P. `mix` maps images and the other
    pictures, both [B, H, W, 3] float32 in [0, 1], and draws [B, P] to images of the same shape and range
    and to the share [B] float32 in [0.5, 1] that is left of the first.
    """

    num_draws: int
    draw: Callable[[tf.Tensor], tf.Tensor]
    mix: Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]


AUGMENTATIONS: Registry[Change | Mixing] = Registry("augmentation", flag="augment")


def evenly(draws: tf.Tensor, low: tf.Tensor | float, high: tf.Tensor | float) -> tf.Tensor:
    """Maps draws in [0, 1) evenly to [low, high).

    Args:
      draws: [B] float32.
      low: a number, or [B] float64.
      high: a number, or [B] float64.

    Returns:
      [B] float64. Sines and exponentials of float32 differ in the last bit with the place in a batch,
      as the end of a vector is computed in another way; rounded from float64 they do not.
    """
    return low + (high - low) * tf.cast(draws, tf.float64)
