"""Dropout by the seed of a step, in the head and inside Keras networks: a resumed run drops the same."""

import contextlib
import types
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import tensorflow as tf
import tf_keras

# A strategy traces each replica in a thread of its own, and each thread has its own value.
_step_seed: ContextVar[tf.Tensor | None] = ContextVar("step_seed", default=None)


def dropout(
    x: tf.Tensor, *, rate: float, seed: tf.Tensor, noise_shape: tf.Tensor | Sequence | None = None
) -> tf.Tensor:
    """Zeroes a share of [b, ...] and scales up the rest (Srivastava et al., 2014).

    The draw is made for the whole global batch and each replica takes its rows, so that the
    result is the same on any number of devices.

    Args:
      x: one replica's part of a batch.
      rate: the share.
      seed: [2] int32.
      noise_shape: [b, ...] with 1 where a draw holds for all of a dimension; None: each number has its own.
    """
    shape = tf.shape(x) if noise_shape is None else noise_shape
    replica = tf.distribute.get_replica_context()
    rows, others = shape[0], shape[1:]
    draw = tf.random.stateless_uniform(tf.concat([[rows * replica.num_replicas_in_sync], others], 0), seed)
    first = rows * tf.cast(replica.replica_id_in_sync_group, tf.int32)
    keep = draw[first : first + rows] >= rate
    return tf.where(keep, x / (1.0 - rate), 0.0)


@contextlib.contextmanager
def drawing_from(seed: tf.Tensor | None) -> Iterator[None]:
    """Has the networks of `seed_dropout` draw from `seed`, [2] int32, in a block; None: no dropout."""
    token = _step_seed.set(seed)
    try:
        yield
    finally:
        _step_seed.reset(token)


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
        step_seed = _step_seed.get()
        if not training or step_seed is None:
            return inputs
        seed = tf.random.experimental.stateless_fold_in(step_seed, index)
        return dropout(inputs, rate=self.rate, seed=seed, noise_shape=self._get_noise_shape(inputs))

    return call
