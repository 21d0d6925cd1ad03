"""Networks of keras-hub as backbones: DINOv2, DINOv3, SigLIP, ViT, Swin, EfficientNetV2, MobileNet, ....

They are networks of Keras 3. Nothing here is of tf_keras, whose layers they cannot be mixed with: what both
have in common are TensorFlow's operations and variables.
"""

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import tensorflow as tf

from trainer.model import kerashub_presets as presets
from trainer.model.backbones.base import require_variables
from trainer.model.cuts import Cut, network_cut, whole_cut, why_no_cut
from trainer.model.folding import Inference
from trainer.model.keras3 import Libraries, building, keras3
from trainer.model.keras3_graphs import Keras3Graph, named_variables
from trainer.model.keras3_layers import pool_batch_norm, seed_dropout
from trainer.model.kerashub_presets import NETWORKS, Preprocessing, Preset, build, own_size, vision_part
from trainer.model.layers import Layer
from trainer.paths import local_path
from trainer.values import Contract, TrainerError, UsageError

CLASS_TOKEN, PATCH_MEAN, BOTH = "cls", "mean", "cls+mean"


class KerasHubBackbone:
    """A network of keras-hub from images to features; see the Backbone protocol."""

    def __init__(
        self,
        name: str,
        network: Any,
        preprocessing: Preprocessing,
        *,
        libraries: Libraries,
        size_px: int,
        value_range: tuple[float, float],
        features: str,
    ) -> None:
        """Takes the network as it is; its dropout is made to draw by the seed of a step.

        Args:
          name: what the user called it, for messages.
          network: of Keras 3, one of `kerashub_presets.NETWORKS`.
          preprocessing: what comes before it.
          libraries: Keras 3 and keras-hub.
          size_px: H and W.
          value_range: of the pixels that the preprocessing takes.
          features: CLASS_TOKEN, PATCH_MEAN, BOTH, or empty for what the network has.

        Raises:
          UsageError: the network has no such features.
        """
        keras = libraries.keras
        self.name, self.libraries = name, libraries.versions()
        self._leading = NETWORKS[type(network).__name__](network)
        self._features = _checked_features(name, features, network, leading=self._leading)
        self._preprocessing, self._config = preprocessing, network.get_config()
        self._kind, self._versions = type(network).__name__, keras.__version__
        self.variables = named_variables(network)
        seed_dropout(keras, network)
        self.batch_norms: tuple[Any, ...] = pool_batch_norm(keras, network)
        self._network = network
        self._graph = Keras3Graph(keras, network)
        self._run = self._graph.part(self._graph.input, self._graph.output)
        width = int(network.outputs[0].shape[-1])
        self.contract = Contract(
            height_px=size_px,
            width_px=size_px,
            value_range=value_range,
            feature_width=2 * width if self._features == BOTH else width,
            any_size=True,
            resize=preprocessing.resize,
            fit=preprocessing.fit,
            antialias=preprocessing.antialias,
            resizes_bytes=preprocessing.antialias,
        )
        self._infer = Inference(
            lambda x: self._pooled(self._run(self._preprocess(x), training=False)),
            shape=(size_px, size_px, 3),
        )
        self._trains = False

    def __call__(self, images: tf.Tensor, *, training: bool, bn_batch: bool) -> tf.Tensor:
        """See the Backbone protocol."""
        self._trains = training
        # As with tf_keras: dropout and stochastic depth come with bn=batch.
        if training and bn_batch:
            return self._pooled(self._run(self._preprocess(images), training=True))
        return self._infer(images)

    def _preprocess(self, images: tf.Tensor) -> tf.Tensor:
        return images * tf.constant(self._preprocessing.scale) + tf.constant(self._preprocessing.offset)

    def _pooled(self, outputs: tf.Tensor) -> tf.Tensor:
        """Maps [B, D], maps [B, h, w, D] or tokens [B, T, D] to features [B, D], of both kinds [B, 2 D]."""
        if outputs.shape.rank == 2:
            return outputs
        if outputs.shape.rank == 4:
            return tf.reduce_mean(outputs, [1, 2])
        kinds = {
            CLASS_TOKEN: lambda: outputs[:, 0],
            PATCH_MEAN: lambda: tf.reduce_mean(outputs[:, self._leading :], 1),
        }
        return tf.concat([kinds[kind]() for kind in self._features.split("+")], -1)

    def regularization_losses(self) -> list[tf.Tensor]:
        """Returns the penalties some networks bring; none while the last call was a frozen one."""
        weights = self._network.trainable_weights if self._trains else []
        return [weight.regularizer(weight.value) for weight in weights if weight.regularizer is not None]

    @functools.cached_property
    def fingerprint(self) -> str:
        """See the Backbone protocol. The versions count, since layers may change with them."""
        config = {key: value for key, value in self._config.items() if key not in ("name", "dtype")}
        parts = [self._versions, self._kind, config, dataclasses.asdict(self._preprocessing), self._features]
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()

    @functools.cached_property
    def layers(self) -> tuple[Layer, ...]:
        """The layers of the network, those inside of a transformer's encoder one by one."""
        return self._graph.layers(self.variables)

    def check_training(self, trained: Collection[str], *, bn_batch: bool) -> None:
        """See the Backbone protocol: all of them can."""
        require_variables(self)

    def cut(self, trained: Collection[str], *, bn_batch: bool) -> Cut | None:
        """See the Backbone protocol; `network_cut` has the rule."""
        if bn_batch or not trained:
            width = self.contract.feature_width
            return whole_cut(self, trained, bn_batch=bn_batch, feature_width=width, variables=self.variables)
        cut = network_cut(self._graph, trained, variables=self.variables, preprocess=self._preprocess)
        return cut and dataclasses.replace(cut, above=functools.partial(self._above, cut))

    def why_no_cut(self, trained: Collection[str]) -> str:
        """See the Backbone protocol."""
        return why_no_cut(self._graph, trained, variables=self.variables)

    def feature_maps(self) -> Callable[[tf.Tensor], tf.Tensor] | None:
        """See the Backbone protocol: of a transformer, the tokens of the patches where they are averaged."""
        shape = self._graph.output.shape
        if len(shape) == 2 or (len(shape) == 3 and self._features != PATCH_MEAN):
            return None
        side = math.isqrt((shape[1] or 0) - self._leading) if len(shape) == 3 else 0
        if len(shape) == 3 and side * side != (shape[1] or 0) - self._leading:
            return None

        def maps(images: tf.Tensor) -> tf.Tensor:
            outputs = self._run(self._preprocess(images), training=False)
            if outputs.shape.rank == 4:
                return outputs
            return tf.reshape(outputs[:, self._leading :], [-1, side, side, outputs.shape[-1]])

        return maps

    def _above(self, cut: Cut, x: tf.Tensor, *, training: bool, bn_batch: bool) -> tf.Tensor:
        self._trains = training
        return self._pooled(cut.above(x, training=training, bn_batch=bn_batch))


def _checked_features(name: str, features: str, network: Any, *, leading: int) -> str:
    """Returns which features a network gives; those that it has where none are asked for."""
    rank = len(network.outputs[0].shape)
    has_both = rank == 3 and leading > 0
    own = CLASS_TOKEN if has_both else "" if rank == 2 else PATCH_MEAN
    if features and not has_both and features != own:
        has = "averages its features over the image: mean" if own else "pools its features itself"
        raise UsageError(f"--features={features}: {name} has no class token; it {has}. Leave --features away")
    return features or own


def open_preset(
    address: str,
    *,
    name: str,
    weights: str,
    image_size: int,
    value_range: tuple[float, float] | None,
    features: str,
) -> KerasHubBackbone:
    """Opens a network of keras-hub.

    Args:
      address: see `kerashub_presets.find_preset`.
      name: what the user called it, for messages.
      weights: `imagenet` stands for those of the preset, `none` for random ones, the same each time; or a
        .weights.h5 file.
      image_size: side in px; 0: the preset's own.
      value_range: of the pixels, where the preset has no preprocessing; None: (0, 1).
      features: see `KerasHubBackbone`.

    Raises:
      UsageError: there is no such preset, or it does not go with another option.
      TrainerError: it, or its weights, cannot be had.
    """
    said = f"--backbone={name}"
    libraries = keras3(said)
    preset = presets.find_preset(libraries, address, said=said)
    preprocessing = preset.preprocessing()
    if preprocessing is not None and value_range is not None:
        raise UsageError(f"--value_range: {name} has its own preprocessing; leave --value_range away")
    size_px = image_size or (preprocessing.size_px if preprocessing else 0) or own_size(preset)
    if not size_px:
        raise UsageError(f"{name} takes images of any size: say how many px with --image_size")
    with building(libraries.keras):
        network = _with_weights(libraries, preset, weights, size_px)
        return KerasHubBackbone(
            name,
            network,
            preprocessing or Preprocessing(size_px=size_px),
            libraries=libraries,
            size_px=size_px,
            value_range=(0.0, 255.0) if preprocessing else value_range or (0.0, 1.0),
            features=features,
        )


def _with_weights(libraries: Libraries, preset: Preset, weights: str, size_px: int) -> Any:
    """Returns the network of a preset from images on."""
    path = _weights_file(preset, weights)
    network = build(libraries, preset, size_px=size_px)
    if path is None:
        return vision_part(network)
    own = own_size(preset)
    if own in (0, size_px):
        with presets.telling(preset, path):
            presets.load(network, path)
        return vision_part(network)
    try:
        # Some networks bring what depends on the size to theirs by themselves.
        presets.load(network, path)
    except ValueError:
        smaller = build(libraries, preset, size_px=own)
        with presets.telling(preset, path):
            presets.load(smaller, path)
        presets.transfer(vision_part(smaller), vision_part(network), preset=preset, size_px=size_px)
    return vision_part(network)


def _weights_file(preset: Preset, weights: str) -> Path | None:
    if weights == "none":
        return None
    if weights == "imagenet":
        return preset.weights()
    path = local_path(weights, flag=f"--weights={weights}")
    if not path.name.endswith(".weights.h5"):
        raise UsageError(
            f"--weights={weights}: {preset.said} takes imagenet (its own), none or a .weights.h5 file"
        )
    if not path.is_file():
        raise TrainerError(f"--weights={weights}: there is no file {path}")
    return path
