"""Boxes of a picture painted over."""

from typing import Annotated

import tensorflow as tf

from trainer.data.augment.change import AUGMENTATIONS, Change, evenly, inside, shape_that_fits
from trainer.registry import Bounds
from trainer.values import UsageError

_GREY = 0.5
_MAX_ASPECT = 1 / 0.3
_Share = Annotated[float, Bounds(at_least=0, at_most=1)]
_Area = Annotated[float, Bounds(above=0, at_most=1)]


@AUGMENTATIONS.register("erase", source="arXiv 1708.04896")
def erase(probability: _Share = 0.25, min_area: _Area = 0.02, max_area: _Area = 0.33) -> Change:
    """Paints a random box of some pictures grey.

    Random erasing (Zhong et al. 2017, arXiv 1708.04896). The area is even between the two, the sides
    differ by up to 10 to 3 (the paper's r1 = 0.3). A box that does not fit is not drawn again: its shape is
    drawn from those that do. The grey is the middle of the range: near the mean of photographs, and 0
    where a network wants [-1, 1], so that statistics of the picture change less than by black.

    Args:
      probability: share of the pictures, 0 to 1.
      min_area: smallest share of the picture's area.
      max_area: largest share of the picture's area.
    """
    if min_area > max_area:
        raise UsageError("min_area must be max_area or less")

    def apply(images: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
        chosen, area, aspect, top, left = tf.unstack(draws, axis=1)
        sides = shape_that_fits(evenly(area, min_area, max_area), aspect, max_aspect=_MAX_ASPECT)
        sizes = tf.unstack(tf.cast(tf.shape(images)[1:3], tf.float64))
        height, width = (
            tf.maximum(tf.round(part * whole), 1) for part, whole in zip(sides, sizes, strict=True)
        )
        box = inside(
            images,
            top=tf.floor(evenly(top, 0.0, sizes[0] - height + 1)),
            left=tf.floor(evenly(left, 0.0, sizes[1] - width + 1)),
            height=height,
            width=width,
        )
        return tf.where(box & (chosen < probability)[:, None, None, None], _GREY, images)

    return Change(5, apply)
