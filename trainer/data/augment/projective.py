"""The transform that all geometric changes share: where each pixel comes from, and what is there."""

import math

import tensorflow as tf

Row = tuple[tf.Tensor | float, tf.Tensor | float]


def transform(
    images: tf.Tensor, *, x: Row, y: Row, shift: Row = (0.0, 0.0), fill: float | None = None
) -> tf.Tensor:
    """Fetches each pixel from elsewhere, around the middle of the picture, with bilinear interpolation.

    The pixel at (u, v) pixels right of and below the middle shows what is at (x[0] u + x[1] v + shift[0],
    y[0] u + y[1] v + shift[1]). Around the middle, as the Keras layers RandomRotation and RandomZoom do.

    Args:
      images: [B, H, W, 3] float32 in [0, 1].
      x: two numbers or [B] float64.
      y: two numbers or [B] float64.
      shift: two numbers or [B] float64, pixels.
      fill: the value outside of the picture; None reflects it about its edges.
    """
    height, width = tf.unstack(tf.cast(tf.shape(images)[1:3], tf.float64))
    middle_x, middle_y = (width - 1) / 2, (height - 1) / 2
    matrix = [
        *x,
        middle_x - x[0] * middle_x - x[1] * middle_y + shift[0],
        *y,
        middle_y - y[0] * middle_x - y[1] * middle_y + shift[1],
        0.0,
        0.0,
    ]
    rows = [tf.broadcast_to(tf.cast(entry, tf.float32), tf.shape(images)[:1]) for entry in matrix]
    moved = tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=tf.stack(rows, axis=1),
        output_shape=tf.shape(images)[1:3],
        fill_value=fill or 0.0,
        fill_mode="REFLECT" if fill is None else "CONSTANT",
        interpolation="BILINEAR",
    )
    # Interpolation weights can overshoot by an ulp.
    return tf.clip_by_value(moved, 0.0, 1.0)


def rotated(images: tf.Tensor, turns: tf.Tensor, *, fill: float | None = None) -> tf.Tensor:
    """Turns pictures anticlockwise; `turns` is [B] float64 in full turns, for the rest see `transform`."""
    angle = turns * math.tau
    return transform(images, x=(tf.cos(angle), -tf.sin(angle)), y=(tf.sin(angle), tf.cos(angle)), fill=fill)
