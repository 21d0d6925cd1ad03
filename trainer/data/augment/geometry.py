"""Changes of where things are in a picture, all by one projective transform."""

import math
from typing import Annotated

import tensorflow as tf

from trainer.data.augment.change import AUGMENTATIONS, Change, evenly, shape_that_fits
from trainer.registry import Bounds

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


_Area = Annotated[float, Bounds(above=0, at_most=1)]
_Share = Annotated[float, Bounds(at_least=0, at_most=1)]


@AUGMENTATIONS.register("flip")
def flip() -> Change:
    """Mirrors half of the pictures left to right."""

    def apply(images: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
        return tf.where(draws[:, :, None, None] < 0.5, tf.reverse(images, [2]), images)

    return Change(1, apply)


@AUGMENTATIONS.register("crop")
def crop(min_area: _Area = 0.5) -> Change:
    """Cuts out a random part with `min_area` to 1 of the area and the same shape, and enlarges it."""

    def apply(images: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
        area, top, left = tf.unstack(draws, axis=1)
        side = tf.sqrt(min_area + (1.0 - min_area) * area)
        top, left = top * (1 - side), left * (1 - side)
        boxes = tf.stack([top, left, top + side, left + side], axis=1)
        size = tf.shape(images)[1:3]
        cut = tf.image.crop_and_resize(images, boxes, tf.range(tf.shape(images)[0]), size)
        # Interpolation weights can overshoot by an ulp.
        return tf.clip_by_value(cut, 0.0, 1.0)

    return Change(3, apply)


@AUGMENTATIONS.register("random_resized_crop", source="arXiv 1409.4842, section 6")
def random_resized_crop(
    min_area: _Area = 0.08, max_aspect: Annotated[float, Bounds(at_least=1, at_most=100)] = 4 / 3
) -> Change:
    """Cuts out a random part of random area and shape, and stretches it to the picture's size.

    The augmentation of Inception (Szegedy et al. 2015, arXiv 1409.4842, section 6). The area is even in
    [min_area, 1]. A box that does not fit is not drawn again: its shape is drawn from those that do.

    Args:
      min_area: the smallest share of the picture's area.
      max_aspect: width by height of the widest box, and height by width of the tallest, where the
        picture itself, which has the network's shape by now, counts as 1.
    """

    def apply(images: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
        area, aspect, top, left = tf.unstack(draws, axis=1)
        tall, wide = shape_that_fits(evenly(area, min_area, 1.0), aspect, max_aspect=max_aspect)
        height, width = tf.unstack(tf.cast(tf.shape(images)[1:3], tf.float64))
        # From the middle of the picture to that of the box.
        shift = width * evenly(left, wide - 1, 1 - wide) / 2, height * evenly(top, tall - 1, 1 - tall) / 2
        return transform(images, x=(wide, 0.0), y=(0.0, tall), shift=shift)

    return Change(4, apply)


@AUGMENTATIONS.register("rotate")
def rotate(max_turn: _Share = 0.2) -> Change:
    """Turns pictures by up to `max_turn` of a full turn to either side, with their edges reflected.

    As the Keras layer RandomRotation(max_turn).
    """

    def apply(images: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
        return rotated(images, evenly(draws[:, 0], -max_turn, max_turn))

    return Change(1, apply)


@AUGMENTATIONS.register("zoom")
def zoom(max_share: Annotated[float, Bounds(at_least=0, below=1)] = 0.2) -> Change:
    """Shows 1 - max_share to 1 + max_share of height and width, alike; beyond the edges it is reflected.

    As the Keras layer RandomZoom(max_share).
    """

    def apply(images: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
        shown = evenly(draws[:, 0], 1 - max_share, 1 + max_share)
        return transform(images, x=(shown, 0.0), y=(0.0, shown))

    return Change(1, apply)


@AUGMENTATIONS.register("translate")
def translate(max_share: _Share = 0.1) -> Change:
    """Moves pictures by up to `max_share` of height and of width to either side, with edges reflected.

    As the Keras layer RandomTranslation(max_share, max_share).
    """

    def apply(images: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
        height, width = tf.unstack(tf.cast(tf.shape(images)[1:3], tf.float64))
        down, right = (evenly(draws[:, i], -max_share, max_share) for i in (0, 1))
        return transform(images, x=(1.0, 0.0), y=(0.0, 1.0), shift=(-right * width, -down * height))

    return Change(2, apply)
