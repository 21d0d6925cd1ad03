"""Random changes of training pictures: pure functions of (image, seed).

A new one is a function here and a line in `AUGMENTATIONS`.
"""

from collections.abc import Callable

import tensorflow as tf

from trainer.values import UsageError, parse_calls

Augmentation = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
"""(image [H, W, 3] float32 in [0, 1], seed [2] int32) -> image of the same shape and range."""


def flip() -> Augmentation:
    """Mirrors half of the pictures left to right."""
    return lambda image, seed: tf.image.stateless_random_flip_left_right(image, seed)


def crop(min_area: float = 0.5) -> Augmentation:
    """Cuts out a random part with `min_area` to 1 of the area and the same shape, and enlarges it."""
    if not 0 < min_area <= 1:
        raise UsageError(f"crop({min_area:g}): the smallest share of the area must be in (0, 1]")

    def apply(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        area, top, left = tf.unstack(tf.random.stateless_uniform([3], seed))
        side = tf.sqrt(min_area + (1.0 - min_area) * area)
        top, left = top * (1 - side), left * (1 - side)
        box = tf.stack([top, left, top + side, left + side])
        size = tf.shape(image)[:2]
        cut = tf.image.crop_and_resize(image[None], box[None], [0], size)[0]
        # Interpolation weights can overshoot by an ulp.
        return tf.clip_by_value(cut, 0.0, 1.0)

    return apply


AUGMENTATIONS: dict[str, Callable[..., Augmentation]] = {"flip": flip, "crop": crop}


def make_augment(text: str) -> Augmentation | None:
    """Returns the composition that e.g. `flip,crop(0.6)` names; None for an empty text.

    Raises:
      UsageError: an unknown name or wrong arguments.
    """
    chain = []
    for call in parse_calls(text):
        if call.name not in AUGMENTATIONS:
            raise UsageError(f"augment: {call.name!r} is not one of {', '.join(AUGMENTATIONS)}")
        try:
            chain.append(AUGMENTATIONS[call.name](*call.args))
        except TypeError:
            raise UsageError(f"augment: {call} has the wrong number or kind of arguments") from None
    if not chain:
        return None

    def augment(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        for i, change in enumerate(chain):
            # Each change draws from a seed of its own, or flip and crop would go together.
            image = change(image, tf.random.experimental.stateless_fold_in(seed, i))
        return image

    return augment
