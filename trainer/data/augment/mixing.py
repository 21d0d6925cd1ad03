"""Pictures mixed with others of their batch, and how much of its own is left in each."""

from typing import Annotated

import tensorflow as tf

from trainer.data.augment.change import AUGMENTATIONS, Mixing, inside
from trainer.registry import Bounds

_Alpha = Annotated[float, Bounds(at_least=0.01, at_most=100)]


@AUGMENTATIONS.register("mixup", source="arXiv 1710.09412")
def mixup(alpha: _Alpha = 0.2) -> Mixing:
    """Adds another picture, faintly.

    mixup (Zhang et al. 2018, arXiv 1710.09412). A picture keeps the share max(l, 1 - l), l drawn for each
    from Beta(alpha, alpha), so that its own label stays the dominant one.

    Args:
      alpha: 0.01 to 100. Small ones leave most pictures nearly as they are, 1 makes every l as likely.
    """

    def mix(images: tf.Tensor, others: tf.Tensor, draws: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        share = draws[:, 0]
        own = share[:, None, None, None]
        # The two can overshoot by an ulp.
        return tf.clip_by_value(own * images + (1.0 - own) * others, 0.0, 1.0), share

    return Mixing(1, lambda seed: _share(seed, alpha)[None], mix)


@AUGMENTATIONS.register("cutmix", source="arXiv 1905.04899")
def cutmix(alpha: _Alpha = 1.0) -> Mixing:
    """Pastes a box of another picture over the same place.

    CutMix (Yun et al. 2019, arXiv 1905.04899). The box has the share 1 - max(l, 1 - l) of the area, l drawn
    for each picture from Beta(alpha, alpha), and its middle anywhere; what is beyond the edges is cut
    off. The share that a picture keeps is that of its pixels that are left.

    Args:
      alpha: 0.01 to 100. Small ones make most boxes small, 1 makes every l as likely.
    """

    def draw(seed: tf.Tensor) -> tf.Tensor:
        middle = tf.random.stateless_uniform([2], tf.random.experimental.stateless_fold_in(seed, 1))
        return tf.concat([_share(seed, alpha)[None], middle], axis=0)

    def mix(images: tf.Tensor, others: tf.Tensor, draws: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        share, middle_y, middle_x = tf.unstack(draws, axis=1)
        height, width = tf.unstack(tf.cast(tf.shape(images)[1:3], tf.float32))
        side = tf.sqrt(1.0 - share)
        # Rounded down, a box has at most the area that was drawn.
        tall, wide = tf.floor(side * height), tf.floor(side * width)
        box = inside(
            images,
            top=tf.floor(middle_y * height) - tf.floor(tall / 2),
            left=tf.floor(middle_x * width) - tf.floor(wide / 2),
            height=tall,
            width=wide,
        )
        left = 1.0 - tf.reduce_mean(tf.cast(box, tf.float32), [1, 2, 3])
        return tf.where(box, others, images), left

    return Mixing(3, draw, mix)


def partners(mask: tf.Tensor) -> tf.Tensor:
    """Returns [B] int64, for each real row of a batch the next real one, for the last the first.

    Args:
      mask: [B] float32, 0 for padding, which is its own partner.
    """
    real = tf.where(mask > 0)
    rows = tf.range(tf.shape(mask, tf.int64)[0])
    return tf.tensor_scatter_nd_update(rows, real, tf.roll(real[:, 0], -1, axis=0))


def _share(seed: tf.Tensor, alpha: float) -> tf.Tensor:
    """Returns max(l, 1 - l), [] float32 in [0.5, 1], where l is from Beta(alpha, alpha)."""
    # l is x / (x + y) for two of Gamma(alpha). Of a small alpha, both would often be the smallest number that
    # float32 has, which would make l a half.
    seeds = (tf.random.experimental.stateless_fold_in(seed, i) for i in (2, 3))
    one, other = (tf.random.stateless_gamma([], each, alpha, dtype=tf.float64) for each in seeds)
    return tf.cast(tf.maximum(one, other) / (one + other), tf.float32)
