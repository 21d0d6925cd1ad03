"""Dropout by the seed of a step, in the head and inside Keras networks: a resumed run drops the same."""

import contextlib
import types
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

import tensorflow as tf
import tf_keras

from trainer.values import Dial, rest_of, turned


class Draws(NamedTuple):
    """What dropout draws from in one update, for some of the examples of its batch.

    Draws are made for the whole batch, and each example takes those of its place. So it loses the same
    whichever device, and whichever part of the batch, it is computed in.
    """

    seed: tf.Tensor
    """[2] int32, of the update."""
    places: tf.Tensor
    """[b] int32: where in the whole batch each of the examples is."""
    batch_size: tf.Tensor | int
    """[] int32: of the whole batch."""


# A strategy traces each replica in a thread of its own, and each thread has its own value.
_draws: ContextVar[Draws | None] = ContextVar("draws", default=None)


def dropout(
    x: tf.Tensor, *, rate: float, draws: Draws, noise_shape: tf.Tensor | Sequence[Any] | None = None
) -> tf.Tensor:
    """Zeroes a share of [b, ...] and scales up the rest (Srivastava et al., 2014).

    Args:
      x: of some of the examples of a batch.
      rate: the share.
      draws: their seed and places.
      noise_shape: [b, ...] with 1 where a draw holds for all of a dimension; None: each number has its own.
    """
    others = (tf.shape(x) if noise_shape is None else noise_shape)[1:]
    draw = tf.random.stateless_uniform(tf.concat([[draws.batch_size], others], 0), draws.seed)
    keep, rest = tf.gather(draw, draws.places) >= turned(rate), rest_of(rate)
    # What a dial says is multiplied with, as TensorFlow does where a graph divides by a constant.
    scaled = x * tf.math.reciprocal(rest) if isinstance(rate, Dial) else x / rest
    return tf.where(keep, scaled, 0.0)


def drop(
    x: tf.Tensor,
    *,
    rate: float,
    index: int,
    noise_shape: tf.Tensor | Sequence[Any] | None = None,
    whole_batch: bool = False,
) -> tf.Tensor:
    """Returns what a dropout layer inside of a network gives while it trains, as `drawing_from` says.

    Args:
      x: as of `dropout`.
      rate: as of `dropout`.
      index: tells the draws of the layer from those of the others.
      noise_shape: as of `dropout`.
      whole_batch: whether a draw holds for the whole batch.
    """
    draws = _draws.get()
    if draws is None:
        return x
    draws = draws._replace(seed=tf.random.experimental.stateless_fold_in(draws.seed, index))
    if whole_batch:
        draws = draws._replace(places=tf.zeros_like(draws.places), batch_size=1)
    return dropout(x, rate=rate, draws=draws, noise_shape=noise_shape)


@contextlib.contextmanager
def drawing_from(draws: Draws | None) -> Iterator[None]:
    """Has the networks of `seed_dropout` draw from `draws` in a block; None: no dropout."""
    token = _draws.set(draws)
    try:
        yield
    finally:
        _draws.reset(token)


def seed_dropout(network: tf_keras.Model) -> None:
    """Has the dropout layers of a network draw as `drawing_from` says, each for itself.

    They would draw from generators whose state no checkpoint holds. Names, variables and configuration
    of the network stay. The networks of tf_keras.applications draw in dropout alone (ConvNeXt's
    stochastic depth is off); other layers with random numbers are left to `random_operations` to find.
    """
    layers = [part for outer in network.layers for part in (outer, *outer.submodules)]
    drawing = [layer for layer in layers if isinstance(layer, tf_keras.layers.Dropout)]
    for index, layer in enumerate(drawing):
        # A method, as Keras takes it for one when it saves a network.
        layer.call = types.MethodType(_call_of(index), layer)


def _call_of(index: int) -> Callable[..., tf.Tensor]:
    """Returns what a dropout layer does; `index` tells its draws from those of the others."""

    def call(self: Any, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        if not training:
            return inputs
        return drop(
            inputs,
            rate=self.rate,
            index=index,
            noise_shape=self._get_noise_shape(inputs),
            whole_batch=bool(self.noise_shape) and self.noise_shape[0] == 1,
        )

    return call
