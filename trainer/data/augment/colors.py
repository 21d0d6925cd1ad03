"""Changes of the colours of pictures [B, H, W, 3] float32 in [0, 1].

Factors are [B] float32 from 0 on, where 1 leaves a picture as it is, as in the ImageEnhance of Pillow.
"""

from typing import Annotated

import tensorflow as tf

from trainer.data.augment.change import AUGMENTATIONS, Change
from trainer.registry import Bounds

_LUMA = (0.299, 0.587, 0.114)
_Most = Annotated[float, Bounds(at_least=0, at_most=10)]


def grey(images: tf.Tensor) -> tf.Tensor:
    """Returns [B, H, W, 1], the luma of ITU-R BT.601."""
    # Not as a sum of three: the graph rewriter would turn it into one of another order.
    return tf.reduce_sum(images * _LUMA, axis=3, keepdims=True)


def brightness(images: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Multiplies pixels; 0 is black."""
    return tf.clip_by_value(images * _wide(factor), 0.0, 1.0)


def contrast(images: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Moves pixels away from the mean luma of their picture; 0 is that grey."""
    return _away(images, tf.reduce_mean(grey(images), [1, 2, 3], keepdims=True), factor)


def saturation(images: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Moves pixels away from their own luma; 0 is a grey picture."""
    return _away(images, grey(images), factor)


def sharpness(images: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Moves pixels away from the mean over 3x3 of them, with weight 5 in the middle; 0 is that mean.

    Pixels at the border stay, as in Pillow.
    """
    middle = images[:, 1:-1, 1:-1]
    smooth = (9.0 * tf.nn.avg_pool2d(images, 3, 1, "VALID") + 4.0 * middle) * (1 / 13)
    changed = _away(middle, smooth, factor)
    between = tf.concat([images[:, 1:-1, :1], changed, images[:, 1:-1, -1:]], axis=2)
    return tf.concat([images[:, :1], between, images[:, -1:]], axis=1)


def hue(images: tf.Tensor, turns: tf.Tensor) -> tf.Tensor:
    """Turns the hue of HSV by [B] float32 in full circles."""
    angle, rest = tf.split(tf.image.rgb_to_hsv(images), [1, 2], axis=3)
    turned = tf.math.floormod(angle + _wide(turns), 1.0)
    return tf.clip_by_value(tf.image.hsv_to_rgb(tf.concat([turned, rest], axis=3)), 0.0, 1.0)


@AUGMENTATIONS.register("color_jitter", source="torchvision")
def color_jitter(
    brightness: _Most = 0.4,
    contrast: _Most = 0.4,
    saturation: _Most = 0.4,
    hue: Annotated[float, Bounds(at_least=0, at_most=0.5)] = 0.1,
) -> Change:
    """Changes brightness, contrast, saturation and hue by random amounts.

    Ranges and definitions of ColorJitter in torchvision; the four are done in the order above instead of
    a random one. What has a range of 0 is left out.

    Args:
      brightness: largest difference of the factor from 1; the factor is even, and 0 or above.
      contrast: the same of contrast.
      saturation: the same of saturation.
      hue: largest turn of the hue to either side, in full circles, 0 to 0.5.
    """
    factors = [(max(0.0, 1.0 - most), 1.0 + most) for most in (brightness, contrast, saturation)]
    ranges = [*factors, (-hue, hue)]

    def apply(images: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
        for i, ((low, high), change) in enumerate(zip(ranges, _JITTERED, strict=True)):
            if low < high:
                images = change(images, low + (high - low) * draws[:, i])
        return images

    return Change(4, apply)


# By another name: the arguments of color_jitter hide them.
_JITTERED = (brightness, contrast, saturation, hue)


def _wide(values: tf.Tensor) -> tf.Tensor:
    return values[:, None, None, None]


def _away(images: tf.Tensor, base: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    return tf.clip_by_value(base + _wide(factor) * (images - base), 0.0, 1.0)
