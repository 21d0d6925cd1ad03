"""Dropout by the seed of a step, and BatchNorm by the batch of all devices, in networks of Keras 3."""

import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from trainer.model.batch_norm import pooled_batch
from trainer.model.dropout import drop

# Stochastic depth: whole examples are left out of a branch (Huang et al., 2016, arXiv 1603.09382).
DROP_PATHS = {"DropPath": ("drop_prob", "rate"), "DINOV2DropPath": ("rate",), "DINOV3DropPath": ("rate",)}


def seed_dropout(keras: Any, network: Any) -> None:
    """Has the layers of a network that draw do so as `dropout.drawing_from` says, each for itself.

    They would draw from generators whose state no checkpoint holds.
    """
    index = 0
    for layer in network._flatten_layers(include_self=False):
        if isinstance(layer, keras.layers.Dropout):
            layer.call = types.MethodType(_dropout(index), layer)
            index += 1
        elif type(layer).__name__ in DROP_PATHS:
            rates = [getattr(layer, name, None) for name in DROP_PATHS[type(layer).__name__]]
            layer.call = types.MethodType(_drop_path(index, next(r for r in rates if r is not None)), layer)
            index += 1


def _dropout(index: int) -> Callable[..., Any]:
    def call(self: Any, inputs: Any, training: bool = False) -> Any:
        if not training or not self.rate:
            return inputs
        shape = self.noise_shape
        if shape is None:
            return drop(inputs, rate=self.rate, index=index)
        sizes = tf.shape(inputs)
        noise_shape = [sizes[i] if size is None else size for i, size in enumerate(shape)]
        return drop(inputs, rate=self.rate, index=index, noise_shape=noise_shape, whole_batch=shape[0] == 1)

    return call


def _drop_path(index: int, rate: float) -> Callable[..., Any]:
    def call(self: Any, x: Any, training: bool = False) -> Any:
        if not training or not rate:
            return x
        return drop(x, rate=rate, index=index, noise_shape=[None, *[1] * (len(x.shape) - 1)])

    return call


@dataclass(frozen=True, eq=False)
class Norm:
    """What `batch_norm` needs to know of a BatchNorm layer of Keras 3."""

    moving_mean: tf.Variable
    moving_variance: tf.Variable
    gamma: tf.Variable | None
    beta: tf.Variable | None
    epsilon: float
    momentum: float
    fused: bool = False
    """Keras 3 moves the stored variance towards the biased one."""

    @property
    def scale(self) -> bool:
        return self.gamma is not None

    @property
    def center(self) -> bool:
        return self.beta is not None


def pool_batch_norm(keras: Any, network: Any) -> tuple[Norm, ...]:
    """Returns the BatchNorm layers of a network, changed so that `batch_norm.pooling` reaches them.

    With stored statistics they become TensorFlow's one operation, which `folding` moves into convolutions.
    Those that normalise by more than the moments of a batch, or over another axis, are left as they are.
    """
    found = []
    for layer in network._flatten_layers(include_self=False):
        if isinstance(layer, keras.layers.BatchNormalization) and _is_plain(layer):
            found.append(
                Norm(
                    layer.moving_mean.value,
                    layer.moving_variance.value,
                    layer.gamma.value if layer.scale else None,
                    layer.beta.value if layer.center else None,
                    layer.epsilon,
                    layer.momentum,
                )
            )
            layer.call = types.MethodType(_normalise(found[-1]), layer)
    return tuple(found)


def _is_plain(layer: Any) -> bool:
    axis = layer.axis[0] if isinstance(layer.axis, list | tuple) else layer.axis
    # That of the input, which its specification fixes once the layer is built, counts from 0.
    last = max(layer.input_spec.axes) if layer.input_spec.axes else -1
    return axis in (-1, last) and not getattr(layer, "renorm", False)


def _normalise(norm: Norm) -> Callable[..., Any]:
    def call(self: Any, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        if not tf.is_tensor(inputs) or mask is not None:
            return type(self).call(self, inputs, training=training, mask=mask)
        if training and self.trainable:
            outputs = pooled_batch(norm, inputs)
            return type(self).call(self, inputs, training=True) if outputs is None else outputs
        if len(inputs.shape) != 4:
            return type(self).call(self, inputs, training=False)
        ones, zeros = tf.ones(inputs.shape[-1:]), tf.zeros(inputs.shape[-1:])
        outputs, _, _ = tf.compat.v1.nn.fused_batch_norm(
            inputs,
            ones if norm.gamma is None else norm.gamma,
            zeros if norm.beta is None else norm.beta,
            norm.moving_mean,
            norm.moving_variance,
            epsilon=norm.epsilon,
            is_training=False,
        )
        return outputs

    return call
