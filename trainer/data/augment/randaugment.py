"""RandAugment: a few of fourteen operations, drawn for each picture."""

from collections.abc import Callable
from typing import Annotated, Any

import tensorflow as tf

from trainer.data.augment import change as levels
from trainer.data.augment import colors
from trainer.data.augment.change import AUGMENTATIONS, Change
from trainer.data.augment.geometry import Row, rotated, transform
from trainer.registry import Bounds

_GREY = 128 / 255


@AUGMENTATIONS.register("randaugment", source="arXiv 1909.13719")
def randaugment(
    num_layers: Annotated[int, Bounds(at_least=1, at_most=10)] = 2,
    magnitude: Annotated[float, Bounds(at_least=0, at_most=10)] = 9.0,
) -> Change:
    """Does `num_layers` operations one after another, each drawn evenly from the fourteen of the paper.

    RandAugment (Cubuk et al. 2019, arXiv 1909.13719), with the largest magnitudes of AutoAugment (Cubuk et
    al. 2018, arXiv 1805.09501, table 6). All grow from none at magnitude 0, to these at 10: rotate 30
    degrees, shear 0.3, translate 150/331 of the side, color, contrast, brightness and sharpness 1 +- 0.9,
    posterize to 4 bits, solarize from level 0 on. Half of the signs are drawn to be negative.
    What comes in from outside is grey, as in the authors' code.

    Args:
      num_layers: operations a picture, a whole number from 1 to 10.
      magnitude: how strong they are, 0 to 10.
    """

    def apply(images: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
        columns = tf.unstack(draws, axis=1)
        for chance, sign in zip(columns[::2], columns[1::2], strict=True):
            strength = tf.where(sign < 0.5, -magnitude / 10, magnitude / 10)
            images = _each_its_own(images, tf.cast(chance * len(OPERATIONS), tf.int32), strength)
        return images

    return Change(2 * num_layers, apply)


def _each_its_own(images: tf.Tensor, chosen: tf.Tensor, strength: tf.Tensor) -> tf.Tensor:
    """Does to each picture the operation of its number in `chosen` [B] int32, each picture once."""
    count = len(OPERATIONS)
    places = tf.dynamic_partition(tf.range(tf.shape(images)[0]), chosen, count)
    parts = tf.dynamic_partition(images, chosen, count)
    strengths = tf.dynamic_partition(strength, chosen, count)
    done = [
        operation(part, strong)
        for operation, part, strong in zip(OPERATIONS.values(), parts, strengths, strict=True)
    ]
    return tf.reshape(tf.dynamic_stitch(places, done), tf.shape(images))


def _identity(images: tf.Tensor, strength: tf.Tensor) -> tf.Tensor:
    return images


def _auto_contrast(images: tf.Tensor, strength: tf.Tensor) -> tf.Tensor:
    return levels.auto_contrast(images)


def _equalize(images: tf.Tensor, strength: tf.Tensor) -> tf.Tensor:
    return levels.equalize(images)


def _rotate(images: tf.Tensor, strength: tf.Tensor) -> tf.Tensor:
    return rotated(images, tf.cast(strength, tf.float64) * (30 / 360), fill=_GREY)


def _solarize(images: tf.Tensor, strength: tf.Tensor) -> tf.Tensor:
    return levels.solarize(images, 256.0 * (1.0 - tf.abs(strength)))


def _posterize(images: tf.Tensor, strength: tf.Tensor) -> tf.Tensor:
    return levels.posterize(images, 8 - tf.cast(tf.round(4.0 * tf.abs(strength)), tf.int32))


def _shear_x(images: tf.Tensor, strength: tf.Tensor) -> tf.Tensor:
    return transform(images, x=(1.0, 0.3 * tf.cast(strength, tf.float64)), y=(0.0, 1.0), fill=_GREY)


def _shear_y(images: tf.Tensor, strength: tf.Tensor) -> tf.Tensor:
    return transform(images, x=(1.0, 0.0), y=(0.3 * tf.cast(strength, tf.float64), 1.0), fill=_GREY)


def _translate_x(images: tf.Tensor, strength: tf.Tensor) -> tf.Tensor:
    width = tf.cast(tf.shape(images)[2], tf.float64)
    return _moved(images, shift=(-150 / 331 * width * tf.cast(strength, tf.float64), 0.0))


def _translate_y(images: tf.Tensor, strength: tf.Tensor) -> tf.Tensor:
    height = tf.cast(tf.shape(images)[1], tf.float64)
    return _moved(images, shift=(0.0, -150 / 331 * height * tf.cast(strength, tf.float64)))


def _moved(images: tf.Tensor, *, shift: Row) -> tf.Tensor:
    return transform(images, x=(1.0, 0.0), y=(0.0, 1.0), shift=shift, fill=_GREY)


def _by_factor(change: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]) -> Callable[..., Any]:
    return lambda images, strength: change(images, 1.0 + 0.9 * strength)


OPERATIONS: dict[str, Callable[[tf.Tensor, tf.Tensor], tf.Tensor]] = {
    "identity": _identity,
    "auto_contrast": _auto_contrast,
    "equalize": _equalize,
    "rotate": _rotate,
    "solarize": _solarize,
    "color": _by_factor(colors.saturation),
    "posterize": _posterize,
    "contrast": _by_factor(colors.contrast),
    "brightness": _by_factor(colors.brightness),
    "sharpness": _by_factor(colors.sharpness),
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
}
"""What each does to images [n, H, W, 3] float32 in [0, 1]; of strength [n] float32, the magnitude by 10
with its sign: 0 does nothing, except for auto_contrast and equalize, which know no strength."""
