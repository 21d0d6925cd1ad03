"""Limits on gradients. A new one is a function here and a line in `make_limit`."""

from collections.abc import Callable, Sequence

import tensorflow as tf

Limit = Callable[[Sequence[tf.Tensor], tf.Tensor], list[tf.Tensor]]
"""(gradients, their global norm []) -> gradients of the same shapes."""


def clip_norm(largest: float) -> Limit:
    """Scales all gradients together so that their norm is at most `largest` (Pascanu et al., 2013,
    arXiv 1211.5063)."""

    def limit(gradients: Sequence[tf.Tensor], norm: tf.Tensor) -> list[tf.Tensor]:
        return tf.clip_by_global_norm(gradients, largest, use_norm=norm)[0]

    return limit


def clip_value(largest: float) -> Limit:
    """Moves every number of a gradient into [-largest, largest]."""

    def limit(gradients: Sequence[tf.Tensor], norm: tf.Tensor) -> list[tf.Tensor]:
        return [tf.clip_by_value(gradient, -largest, largest) for gradient in gradients]

    return limit


def make_limit(*, norm: float, value: float) -> Limit | None:
    """Returns what --clip_norm or --clip_value asks for; None where both are 0."""
    if norm:
        return clip_norm(norm)
    return clip_value(value) if value else None
