"""Keras networks as backbones, and `keras:NAME`: every image model of tf_keras.applications.

The latter take pixels 0 to 255, have their own preprocessing inside, and average their last feature maps.
"""

import contextlib
import dataclasses
import functools
import logging
import re
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import h5py
import tensorflow as tf
import tf_keras

from trainer.applications import application_names, check_application, known_application
from trainer.model.backbones.base import BACKBONES
from trainer.model.batch_norm import pool_batch_norm
from trainer.model.cuts import Cut, KerasGraph, network_cut, whole_cut, why_no_cut
from trainer.model.dropout import seed_dropout
from trainer.model.fingerprints import network_fingerprint
from trainer.model.folding import Inference
from trainer.model.initializers import reseed
from trainer.model.layers import Layer, network_layers
from trainer.model.variable_names import lasting_names, unique_names
from trainer.model.weight_files import load_weights, weights_path
from trainer.store.places import keras_folder
from trainer.values import Contract, TrainerError, UsageError, told_by_tensorflow

logger = logging.getLogger("trainer")

# Sides in px of the models' default inputs with their classifier on, where not 224. Source: the
# constructors in tf_keras/src/applications; a slow test compares them with the models built.
DEFAULT_SIZES_PX = {
    "EfficientNetB1": 240, "EfficientNetB2": 260, "EfficientNetB3": 300, "EfficientNetB4": 380,
    "EfficientNetB5": 456, "EfficientNetB6": 528, "EfficientNetB7": 600,
    "EfficientNetV2B1": 240, "EfficientNetV2B2": 260, "EfficientNetV2B3": 300,
    "EfficientNetV2S": 384, "EfficientNetV2M": 480, "EfficientNetV2L": 480,
    "InceptionResNetV2": 299, "InceptionV3": 299, "NASNetLarge": 331, "Xception": 299,
}  # fmt: skip


class KerasBackbone:
    """A functional Keras network from pictures to features; see the Backbone protocol."""

    def __init__(
        self,
        name: str,
        network: tf_keras.Model,
        preprocess: Callable[[tf.Tensor], tf.Tensor],
        *,
        size_px: int,
        value_range: tuple[float, float] = (0.0, 255.0),
    ) -> None:
        """Takes the network as it is; dropout layers in it are made to draw by the seed of a step.

        Args:
          name: what the user called it, for messages.
          network: one input, what `preprocess` makes of images [B, H, W, 3]; one output, features [B, D].
          preprocess: what comes before it.
          size_px: H and W.
          value_range: of the pixels that `preprocess` takes.
        """
        self.name = name
        self.variables = unique_names(network.variables, names=lasting_names(network))
        self.contract = Contract(
            height_px=size_px,
            width_px=size_px,
            value_range=value_range,
            feature_width=int(network.output_shape[-1]),
            any_size=True,
        )
        seed_dropout(network)
        self.batch_norms = pool_batch_norm(network)
        self._network, self._preprocess = network, preprocess
        self._infer = Inference(lambda x: network(preprocess(x), training=False), shape=(size_px, size_px, 3))
        self._trains = False

    def __call__(self, images: tf.Tensor, *, training: bool, bn_batch: bool) -> tf.Tensor:
        """See the Backbone protocol."""
        self._trains = training
        # training=True would also switch on the stochastic depth some of them have: it comes with bn=batch.
        if training and bn_batch:
            return self._network(self._preprocess(images), training=True)
        return self._infer(images)

    def regularization_losses(self) -> list[tf.Tensor]:
        """Returns the penalties some of the models bring; none while the last call was a frozen one."""
        return list(self._network.losses) if self._trains else []

    @functools.cached_property
    def fingerprint(self) -> str:
        """See the Backbone protocol."""
        return network_fingerprint(self._network, name=self.name)

    @functools.cached_property
    def layers(self) -> tuple[Layer, ...]:
        """All layers of Keras's network, its input and the pooling among them."""
        return network_layers(self._network, variables=self.variables)

    def check_training(self, trained: Collection[str], *, bn_batch: bool) -> None:
        """See the Backbone protocol: all of them can."""

    def cut(self, trained: Collection[str], *, bn_batch: bool) -> Cut | None:
        """See the Backbone protocol; `network_cut` has the rule."""
        if bn_batch or not trained:
            width = self.contract.feature_width
            return whole_cut(self, trained, bn_batch=bn_batch, feature_width=width, variables=self.variables)
        graph = KerasGraph(self._network)
        cut = network_cut(graph, trained, variables=self.variables, preprocess=self._preprocess)
        return cut and dataclasses.replace(cut, above=functools.partial(self._above, cut))

    def why_no_cut(self, trained: Collection[str]) -> str:
        """See the Backbone protocol."""
        return why_no_cut(KerasGraph(self._network), trained, variables=self.variables)

    def feature_maps(self) -> Callable[[tf.Tensor], tf.Tensor] | None:
        """See the Backbone protocol: what goes into the pooling that the network ends with."""
        last = self._network.output.node
        if not isinstance(last.layer, tf_keras.layers.GlobalAveragePooling2D):
            return None
        network = tf_keras.Model(self._network.input, last.keras_inputs[0])
        return lambda images: network(self._preprocess(images), training=False)

    def _above(self, cut: Cut, x: tf.Tensor, *, training: bool, bn_batch: bool) -> tf.Tensor:
        self._trains = training
        return cut.above(x, training=training, bn_batch=bn_batch)


@BACKBONES.register("keras", address="NAME", check=check_application, names=application_names)
def open_keras_application(model: str, *, weights: str = "imagenet", image_size: int = 0) -> KerasBackbone:
    """An image model of tf_keras.applications; the case of NAME does not matter.

    Weights that are fetched stay in Keras's own folder, ~/.keras/models, which checks them by hash.

    Args:
      model: a class of tf_keras.applications, e.g. MobileNetV2.
      weights: `imagenet`, `none` (random, the same each time) or a .h5, .weights.h5 or .keras file.
      image_size: side in px; 0: the model's own.

    Raises:
      UsageError: there is no such model, or it cannot take that size.
      TrainerError: the weights cannot be had or do not fit.
    """
    constructor: Any = getattr(tf_keras.applications, known_application(model))
    full_name = f"keras:{constructor.__name__}"
    size = image_size or DEFAULT_SIZES_PX.get(constructor.__name__, 224)
    path = weights_path(weights)
    network = _build(constructor, full_name, size, fetch=weights == "imagenet")
    if weights == "none":
        reseed(network, seed=0)
    if path is not None:
        load_weights(network, path=path, name=full_name)
    preprocess = sys.modules[constructor.__module__].preprocess_input
    return KerasBackbone(full_name, network, preprocess, size_px=size)


def _build(constructor: Any, name: str, size: int, *, fetch: bool) -> tf_keras.Model:
    def construct() -> tf_keras.Model:
        return constructor(
            include_top=False,
            weights="imagenet" if fetch else None,
            input_shape=(size, size, 3),
            pooling="avg",
        )

    if fetch:
        # Where it is missing, Keras takes another.
        with contextlib.suppress(OSError):
            _downloads().mkdir(parents=True, exist_ok=True)
    try:
        try:
            return construct()
        except OSError:
            # h5py cannot open a file that is cut short; not all files of Keras have a known hash.
            if not (fetch and _drop_broken_downloads()):
                raise
            return construct()
    except ValueError as error:
        least = re.search(r"size must be at least (\d+)", str(error))
        if least:
            raise UsageError(f"--image_size={size}: {name} takes {least[1]} px or more") from error
        raise TrainerError(f"{name} at {size} px: {told_by_tensorflow(error)}") from error
    except Exception as error:  # tf_keras raises plain Exception when a download fails.
        if not fetch:
            raise
        raise TrainerError(
            f"cannot get the ImageNet weights of {name} ({told_by_tensorflow(error)}); they are not in "
            f"{_downloads()} either. Ways out: (1) run once where there is network and copy that folder "
            "here; (2) name a weights file with --weights=PATH; (3) --backbone=efficientnet_lite0 needs no "
            "network"
        ) from error


def _downloads() -> Path:
    return keras_folder() / "models"


def _drop_broken_downloads() -> bool:
    """Moves weights files that cannot be opened aside; returns whether there were any."""
    broken = [path for path in _downloads().glob("*.h5") if not _opens(path)]
    for path in broken:
        logger.warning("%s is cut short: moved to %s.broken, fetching again", path, path.name)
        with contextlib.suppress(OSError):
            path.replace(f"{path}.broken")
    return bool(broken)


def _opens(path: Path) -> bool:
    try:
        with h5py.File(path, "r"):
            return True
    except OSError:
        return False
