"""What a kind of change is, and what changes share: 8-bit levels, random boxes.

Changes in levels round to the nearest of 256, other than `auto_contrast`.
"""

import math
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


AUGMENTATIONS: Registry[Change | Mixing] = Registry("augmentation", flag="augment", may_be_none=True)


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


def auto_contrast(images: tf.Tensor) -> tf.Tensor:
    """Stretches each channel of each picture to [0, 1]; one of a single value stays."""
    low = tf.reduce_min(images, [1, 2], keepdims=True)
    high = tf.reduce_max(images, [1, 2], keepdims=True)
    is_flat = high == low
    stretched = (images - low) / tf.where(is_flat, 1.0, high - low)
    return tf.where(is_flat, images, stretched)


def equalize(images: tf.Tensor) -> tf.Tensor:
    """Maps the levels of each channel of each picture so that each is about as frequent as the others."""
    height, width = tf.unstack(tf.shape(images)[1:3])
    pixels = tf.reshape(tf.cast(_levels(images), tf.int32), [-1, height * width, 3])
    # A row is a channel of a picture. No transpose: oneDNN complains of those of integers on some machines.
    rows = tf.concat(tf.unstack(pixels, num=3, axis=2), axis=0)
    counts = tf.math.bincount(rows, minlength=256, maxlength=256, axis=-1)
    up_to = tf.cumsum(counts, axis=1)
    # Pixels of the brightest level do not count, as in Pillow.
    brightest = tf.gather(counts, tf.reduce_max(rows, axis=1), batch_dims=1)
    step = (height * width - brightest)[:, None] // 255
    table = (up_to - counts + step // 2) // tf.maximum(step, 1)
    table = tf.where(step == 0, tf.range(256)[None], tf.minimum(table, 255))
    mapped = tf.split(tf.gather(table, rows, batch_dims=1), 3, axis=0)
    return _from_levels(tf.reshape(tf.stack(mapped, axis=2), tf.shape(images)))


def posterize(images: tf.Tensor, bits: tf.Tensor) -> tf.Tensor:
    """Keeps the highest `bits` [B] int32, 0 to 8, of the levels; the others become zero."""
    step = tf.cast(tf.bitwise.left_shift(tf.ones_like(bits), 8 - bits), tf.float32)[:, None, None, None]
    return _from_levels(tf.floor(_levels(images) / step) * step)


def solarize(images: tf.Tensor, threshold: tf.Tensor) -> tf.Tensor:
    """Turns levels from `threshold` [B] float32, 0 to 256, on into their negative."""
    levels = _levels(images)
    return _from_levels(tf.where(levels >= threshold[:, None, None, None], 255.0 - levels, levels))


def _levels(images: tf.Tensor) -> tf.Tensor:
    """Returns the nearest levels, float32, 0 to 255, also where resizing has overshot."""
    return tf.clip_by_value(tf.round(images * 255.0), 0.0, 255.0)


def _from_levels(levels: tf.Tensor) -> tf.Tensor:
    return tf.cast(levels, tf.float32) / 255.0


def shape_that_fits(area: tf.Tensor, draws: tf.Tensor, *, max_aspect: float) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns height and width [B] float64 in (0, 1] of boxes, as shares of the picture's.

    Args:
      area: [B] float64 in (0, 1], shares of the picture's area.
      draws: [B] float32 in [0, 1), of the shape. The logarithm of width by height is even between those
        of 1 / max_aspect and max_aspect, as far as neither side is longer than the picture's.
      max_aspect: from 1 on; that of the picture counts as 1.
    """
    limit = tf.minimum(tf.cast(math.log(max_aspect), tf.float64), -tf.math.log(area))
    aspect = tf.exp(evenly(draws, -limit, limit))
    return (
        tf.minimum(tf.sqrt(area / aspect), tf.ones([], tf.float64)),
        tf.minimum(tf.sqrt(area * aspect), tf.ones([], tf.float64)),
    )


def inside(
    images: tf.Tensor, *, top: tf.Tensor, left: tf.Tensor, height: tf.Tensor, width: tf.Tensor
) -> tf.Tensor:
    """Returns [B, H, W, 1] bool, whether a pixel is in its picture's box; all are [B], whole pixels."""
    rows, columns = tf.range(tf.shape(images)[1])[None], tf.range(tf.shape(images)[2])[None]
    top, left, height, width = (tf.cast(side, tf.int32)[:, None] for side in (top, left, height, width))
    in_rows = (rows >= top) & (rows < top + height)
    in_columns = (columns >= left) & (columns < left + width)
    return (in_rows[:, :, None] & in_columns[:, None, :])[..., None]
