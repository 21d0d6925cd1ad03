"""The layers of EfficientNet-Lite0.

EfficientNet (arXiv 1905.11946) in its "lite" variant: no squeeze-and-excitation, ReLU6 in place of
swish, stem and head of fixed width. "same" padding and BatchNorm epsilon 1e-3 as in TensorFlow,
where the weights were trained.
"""

from typing import Any, NamedTuple

import tensorflow as tf
import tf_keras
from tf_keras import layers


class Stage(NamedTuple):
    repeats: int
    kernel: int
    stride: int
    expansion: int
    filters: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


class DepthwiseConv2D(tf_keras.layers.DepthwiseConv2D):
    """Calls its variable `kernel`, like every other convolution, for regexes over names."""

    def add_weight(self, name: str | None = None, **kwargs: Any) -> tf.Variable:
        return super().add_weight(name="kernel" if name == "depthwise_kernel" else name, **kwargs)


def build_network(size_px: int | None = None) -> tf_keras.Model:
    """Returns the network [B, H, W, 3] -> [B, 1280], with variables such as `blocks_3/expand/kernel`.

    Args:
      size_px: H and W; None leaves them open, so that the network has no places to be cut at.
    """
    images = tf_keras.Input([size_px, size_px, 3])
    x = _activated(_conv(images, 32, kernel=3, stride=2, name="stem/conv", norm_name="stem/bn"), "stem/relu")
    number = 0
    for stage in STAGES:
        for repeat in range(stage.repeats):
            x = _block(x, stage, stride=stage.stride if repeat == 0 else 1, name=f"blocks_{number}")
            number += 1
    x = _activated(_conv(x, 1280, name="head_conv", norm_name="head_bn"), "head_relu")
    return tf_keras.Model(images, layers.GlobalAveragePooling2D(name="pooling")(x))


def _block(inputs: Any, stage: Stage, *, stride: int, name: str) -> Any:
    x = inputs
    if stage.expansion != 1:
        width = x.shape[-1] * stage.expansion
        x = _activated(_conv(x, width, name=f"{name}/expand"), f"{name}/expand_relu")
    depthwise = DepthwiseConv2D(
        stage.kernel, stride, padding="same", use_bias=False, depthwise_initializer="he_normal",
        name=f"{name}/depthwise",
    )  # fmt: skip
    x = _activated(_normalized(depthwise(x), f"{name}/depthwise_bn"), f"{name}/depthwise_relu")
    x = _conv(x, stage.filters, name=f"{name}/project")
    adds = stride == 1 and inputs.shape[-1] == stage.filters
    return layers.Add(name=f"{name}/add")([x, inputs]) if adds else x


def _conv(
    x: Any, filters: int, *, kernel: int = 1, stride: int = 1, name: str, norm_name: str | None = None
) -> Any:
    """A convolution and its BatchNorm, called `NAME_bn` where nothing else is said."""
    conv = layers.Conv2D(
        filters, kernel, stride, padding="same", use_bias=False, kernel_initializer="he_normal", name=name
    )
    return _normalized(conv(x), norm_name or f"{name}_bn")


def _normalized(x: Any, name: str) -> Any:
    # The momentum of the paper's code; it acts only with bn=batch.
    return layers.BatchNormalization(epsilon=1e-3, momentum=0.99, name=name)(x)


def _activated(x: Any, name: str) -> Any:
    return layers.ReLU(6.0, name=name)(x)
