"""Random changes of training pictures: what is drawn for a picture, and what is done to a batch.

Drawing is a pure function of a seed, doing a pure function of pictures and draws: the same pixels
eagerly, in a pipeline, and in a kept view. A new change is a function here and a line in `AUGMENTATIONS`.
"""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from trainer.values import UsageError, parse_calls


class Change(NamedTuple):
    """One kind of random change.

    `num_draws` is P; `apply` maps images [B, H, W, 3] float32 in [0, 1] and draws [B, P] float32 in
    [0, 1) to images of the same shape and range.
    """

    num_draws: int
    apply: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def flip() -> Change:
    """Mirrors half of the pictures left to right."""

    def apply(images: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
        return tf.where(draws[:, :, None, None] < 0.5, tf.reverse(images, [2]), images)

    return Change(1, apply)


def crop(min_area: float = 0.5) -> Change:
    """Cuts out a random part with `min_area` to 1 of the area and the same shape, and enlarges it."""
    if not 0 < min_area <= 1:
        raise UsageError(f"crop({min_area:g}): the smallest share of the area must be in (0, 1]")

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


AUGMENTATIONS: dict[str, Callable[..., Change]] = {"flip": flip, "crop": crop}


class Augment:
    """Changes one after another."""

    def __init__(self, changes: list[Change]):
        self._changes = changes

    def draw(self, seed: tf.Tensor) -> tf.Tensor:
        """Returns [P] float32 in [0, 1), all that chance decides for one picture; seed is [2] int32."""
        # Each change draws from a seed of its own, or flip and crop would go together.
        seeds = [tf.random.experimental.stateless_fold_in(seed, i) for i in range(len(self._changes))]
        draws = [
            tf.random.stateless_uniform([change.num_draws], one)
            for change, one in zip(self._changes, seeds, strict=True)
        ]
        return tf.concat(draws, axis=0)

    def apply(self, images: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
        """Changes images [B, H, W, 3] float32 in [0, 1] as draws [B, P] say; shape and range stay."""
        shape = images.shape
        parts = tf.split(draws, [change.num_draws for change in self._changes], axis=1)
        for change, part in zip(self._changes, parts, strict=True):
            images = change.apply(images, part)
        return tf.ensure_shape(images, shape)

    def __call__(self, image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Changes one picture [H, W, 3] as a pipeline does."""
        return self.apply(image[None], self.draw(seed)[None])[0]


def make_augment(text: str) -> Augment | None:
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
    return Augment(chain) if chain else None
