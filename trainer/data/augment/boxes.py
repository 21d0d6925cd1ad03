"""Random boxes in pictures."""

import math

import tensorflow as tf

from trainer.data.augment.change import evenly


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
