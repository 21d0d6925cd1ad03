"""BatchNorm of a batch that several devices share, or that is computed in parts.

On one device, and as a whole, a batch goes through the layers as they are.
"""

import contextlib
import types
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, NamedTuple

import tensorflow as tf
import tf_keras
from tf_keras.layers import BatchNormalization


class Moments(NamedTuple):
    """What is known of the numbers of each of C channels."""

    count: tf.Tensor
    """[] float32, how many there are of a channel."""
    mean: tf.Tensor
    """[C] float32."""
    squares: tf.Tensor
    """[C] float32, the sum of the squared deviations from the mean."""


def no_moments(layer: BatchNormalization) -> Moments:
    """Returns those of no numbers at all."""
    zeros = tf.zeros(layer.moving_mean.shape)
    return Moments(tf.zeros([]), zeros, zeros)


def pooled(one: Moments, other: Moments) -> Moments:
    """Returns the moments of both together (Chan et al., 1979, STAN-CS-79-773)."""
    count = one.count + other.count
    share = other.count / tf.maximum(count, 1.0)
    away = other.mean - one.mean
    squares = one.squares + other.squares + away**2 * one.count * share
    return Moments(count, one.mean + away * share, squares)


def over_devices(moments: Moments) -> Moments:
    """Returns the moments of what all devices have; in replica context. Gradients go through it."""
    replica = tf.distribute.get_replica_context()

    def total(values: Any) -> Any:
        return replica.all_reduce(tf.distribute.ReduceOp.SUM, values)

    count, mean = total([moments.count, moments.count * moments.mean])
    mean /= tf.maximum(count, 1.0)
    # Where it is the smallest, the sum of squares does not change with the mean: no gradient goes that way.
    away = moments.mean - tf.stop_gradient(mean)
    return Moments(count, mean, total(moments.squares + moments.count * away**2))


class Pool:
    """What the BatchNorm layers of a network saw in one call of it."""

    def __init__(self, is_real: tf.Tensor, *, together: bool):
        """Begins with nothing.

        Args:
          is_real: [] float32, 1 if the examples are real, 0 if they only stand where there are none.
          together: whether the numbers are normalised by the moments of what all devices have.
        """
        self.is_real, self.together = is_real, together
        self._seen: dict[int, Moments] = {}

    def add(self, layer: BatchNormalization, moments: Moments) -> None:
        before = self._seen.get(id(layer))
        self._seen[id(layer)] = pooled(before, moments) if before else moments

    def moments(self, layer: BatchNormalization) -> Moments:
        """Returns what a layer saw, the numbers of all devices if they are `together`."""
        return self._seen.get(id(layer)) or no_moments(layer)


# A strategy traces each replica in a thread of its own, and each thread has its own value.
_pool: ContextVar[Pool | None] = ContextVar("batch_norm_pool", default=None)


@contextlib.contextmanager
def pooling(pool: Pool | None) -> Iterator[None]:
    """Has the layers of `pool_batch_norm`, called with training=True in a block, tell a pool what they see.

    Their stored statistics do not move then: `move` does that. None: they are as Keras made them.
    """
    token = _pool.set(pool)
    try:
        yield
    finally:
        _pool.reset(token)


def pool_batch_norm(network: tf_keras.Model) -> tuple[BatchNormalization, ...]:
    """Returns the BatchNorm layers of a network, changed so that `pooling` reaches them.

    Names, variables and configuration of the network stay. Those that normalise by more than the moments
    of a batch, or over another axis than the last, are left as they are.
    """
    layers = [part for outer in network.layers for part in (outer, *outer.submodules)]
    found = {
        id(layer): layer for layer in layers if isinstance(layer, BatchNormalization) and _is_plain(layer)
    }
    for layer in found.values():
        # A method, as Keras takes it for one when it saves a network.
        layer.call = types.MethodType(_call, layer)
    return tuple(found.values())


def move(layer: BatchNormalization, moments: Moments) -> None:
    """Moves the stored statistics of a layer towards moments, as Keras does; in replica context."""
    # Keras's kernel for feature maps takes the unbiased variance, its other way the biased one.
    divisor = moments.count - 1.0 if layer.fused else moments.count
    seen = (moments.mean, moments.squares / tf.maximum(divisor, 1.0))
    share = tf.where(moments.count > 0, 1.0 - layer.momentum, 0.0)
    for variable, value in zip((layer.moving_mean, layer.moving_variance), seen, strict=True):
        before = tf.raw_ops.ReadVariableOp(resource=variable.handle, dtype=variable.dtype)
        after = before + (value - before) * share
        tf.raw_ops.AssignVariableOp(resource=variable.handle, value=after)


def _is_plain(layer: BatchNormalization) -> bool:
    last = layer.input_spec.ndim - 1 if layer.built else -1
    axes = layer.axis if isinstance(layer.axis, list | tuple) else [layer.axis]
    return list(axes) == [last] and not layer.renorm and layer.virtual_batch_size is None


def _call(
    self: Any, inputs: tf.Tensor, training: bool | None = None, mask: tf.Tensor | None = None
) -> tf.Tensor:
    outputs = pooled_batch(self, inputs) if training and self.trainable else None
    return type(self).call(self, inputs, training=training, mask=mask) if outputs is None else outputs


def pooled_batch(layer: BatchNormalization, x: tf.Tensor) -> tf.Tensor | None:
    """Returns numbers normalised by their batch, and tells the pool of `pooling` of them; None: no pool.

    Args:
      layer: any object with those attributes of a BatchNorm layer that this file uses.
      x: [..., C] float32.
    """
    pool = _pool.get()
    if pool is None:
        return None
    outputs, moments = (_together if pool.together else _alone)(layer, x, pool.is_real)
    pool.add(layer, moments)
    return outputs


def _alone(layer: BatchNormalization, x: tf.Tensor, is_real: tf.Tensor) -> tuple[tf.Tensor, Moments]:
    """Normalises by what is here."""
    count = _count(x)
    if layer.fused:
        gamma = layer.gamma if layer.scale else tf.ones(x.shape[-1:])
        beta = layer.beta if layer.center else tf.zeros(x.shape[-1:])
        outputs, mean, unbiased = tf.compat.v1.nn.fused_batch_norm(x, gamma, beta, epsilon=layer.epsilon)
        squares = unbiased * tf.maximum(count - 1.0, 1.0)
    else:
        mean, variance = tf.nn.moments(x, list(range(x.shape.rank - 1)))
        outputs, squares = _normalised(layer, x, mean, variance), variance * count
    return outputs, Moments(count * is_real, mean, squares * is_real)


def _together(layer: BatchNormalization, x: tf.Tensor, is_real: tf.Tensor) -> tuple[tf.Tensor, Moments]:
    """Normalises by what all devices have."""
    count = _count(x)
    mean, variance = tf.nn.moments(x, list(range(x.shape.rank - 1)))
    moments = over_devices(Moments(count * is_real, mean, variance * count * is_real))
    variance = moments.squares / tf.maximum(moments.count, 1.0)
    return _normalised(layer, x, moments.mean, variance), moments


def _count(x: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.size(x) // x.shape[-1], tf.float32)


def _normalised(layer: BatchNormalization, x: tf.Tensor, mean: tf.Tensor, variance: tf.Tensor) -> tf.Tensor:
    gamma, beta = (layer.gamma if layer.scale else None), (layer.beta if layer.center else None)
    return tf.nn.batch_normalization(x, mean, variance, beta, gamma, layer.epsilon)
