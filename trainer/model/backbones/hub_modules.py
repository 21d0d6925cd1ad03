"""`hub:` and `savedmodel:`: SavedModels through hub.KerasLayer, with the contract read from them."""

import logging
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow as tf

from trainer.model.backbones.base import LEAVE_FROZEN, require_variables
from trainer.model.cuts import Cut, whole_cut
from trainer.model.folding import Inference
from trainer.model.hub import hub
from trainer.model.hub_cache import module_digest, module_folder
from trainer.model.hub_handles import published_size
from trainer.model.layers import Layer
from trainer.model.variable_names import unique_names
from trainer.values import Contract, TrainerError, UsageError, failure_in_words, told_by_tensorflow

logger = logging.getLogger("trainer")

SERVING_SIGNATURE = "serving_default"
# How many classes there are in ImageNet and ImageNet-21k, without and with one for the background.
CLASS_COUNTS = {1000: "ImageNet", 1001: "ImageNet", 21_841: "ImageNet-21k", 21_843: "ImageNet-21k"}
CLASSIFIER_NAMES = re.compile(
    r"(?<![a-z])(classification|classifier|logits|predictions|probabilities)(?![a-z])"
)


class _Interface(NamedTuple):
    """How a module is called: its picture input, and a signature with its output key, or ''.

    `knows_training` is whether it has an argument `training`, which BatchNorm and dropout go by.
    """

    images: tf.TensorSpec
    signature: str = ""
    output_key: str = ""
    knows_training: bool = False


class HubBackbone:
    """A SavedModel from pictures to features; see the Backbone protocol.

    Feature maps [B, h, w, D] are averaged over h and w. A module records no order of layers.
    """

    layers: tuple[Layer, ...] = ()

    def __init__(
        self,
        name: str,
        folder: Path,
        *,
        image_size: int = 0,
        value_range: tuple[float, float] | None = None,
        default_size: int = 0,
    ) -> None:
        """Loads the module and reads its contract.

        Args:
          name: what the user called it, for messages.
          folder: a whole SavedModel.
          image_size: side in px; 0: the module's own.
          value_range: of the pixels it wants; None: (0, 1), the convention of TF Hub for images.
          default_size: side in px where neither the module nor `image_size` says one; 0: unknown.

        Raises:
          UsageError: the size is wrong, or missing.
          TrainerError: it is no module from pictures to features.
        """
        self.name = name
        self.fingerprint = module_digest(folder)
        module = _load(name, folder)
        interface = _read_interface(name, module)
        height, width, any_size = _choose_size(name, interface.images, image_size, default_size)
        self._interface = interface
        if interface.signature:
            module = _Served(module, interface.signature, interface.output_key)
        self._layer = _make_layer(name, module)
        output = self._probe(height, width)
        self._pool = output.shape.rank == 4
        if self._pool:
            logger.info("%s gives maps %s: averaged over height and width", name, output.shape[1:])
        feature_width = int(output.shape[-1])
        _warn_of_classes(name, interface, feature_width)
        # Functions of a SavedModel may not tell their shapes, which layers after this one need.
        shape: list[int | None] = [None, None, feature_width] if self._pool else [feature_width]
        self._layer = _make_layer(name, module, shape)
        self.variables = unique_names(list(getattr(module, "variables", None) or []))
        self.batch_norms: tuple[Any, ...] = ()
        self.contract = Contract(
            height_px=height,
            width_px=width,
            value_range=value_range or (0.0, 1.0),
            feature_width=feature_width,
            any_size=any_size,
        )
        self._infer = Inference(
            lambda images: self._layer(images, training=False), shape=self.contract.image_shape
        )

    def __call__(self, images: tf.Tensor, *, training: bool, bn_batch: bool) -> tf.Tensor:
        """See the Backbone protocol. Trace a new function for each `training`, `bn_batch`.

        Raises:
          UsageError: `training` for a module that can only be used frozen.
        """
        if training and self._interface.signature:
            raise UsageError(f"{self.name} cannot be trained: it has only a signature: use --schedule=frozen")
        # KerasLayer hands training=True to the module only when it is trainable as well. So kernels,
        # gammas and betas train with the stored BatchNorm statistics when bn_batch is False.
        self._layer.trainable = training
        features = self._layer(images, training=True) if bn_batch else self._infer(images)
        return tf.reduce_mean(features, [1, 2]) if self._pool else features

    def regularization_losses(self) -> list[tf.Tensor]:
        """Returns the module's own penalties; none while the last call was a frozen one."""
        return list(self._layer.losses) if self._layer.trainable else []

    def check_training(self, trained: Collection[str], *, bn_batch: bool) -> None:
        """See the Backbone protocol. The gradient is traced, which takes seconds for a large module."""
        if self._interface.signature:
            raise UsageError(
                f"{self.name} cannot be trained: it has only the signature {self._interface.signature!r}, as "
                f"modules of TensorFlow 1 and of model.export() in Keras have; {LEAVE_FROZEN}"
            )
        require_variables(self)
        if bn_batch and not self._interface.knows_training:
            raise UsageError(
                f"{self.name} has no argument `training`, so bn=batch would change nothing: use bn=frozen"
            )
        unreached = self._unreached(trained, bn_batch=bn_batch) if trained else []
        if unreached and len(unreached) == len(trained):
            raise UsageError(
                f"{self.name} cannot be trained: no gradient reaches its variables, such as {unreached[0]}; "
                f"{LEAVE_FROZEN}"
            )
        if unreached:
            logger.warning(
                "%s: no gradient reaches %d of the %d variables that are to train, such as %s: they stay as "
                "they are",
                self.name, len(unreached), len(trained), unreached[0],
            )  # fmt: skip

    def _unreached(self, trained: Collection[str], *, bn_batch: bool) -> list[str]:
        """Returns which variables the features do not depend on in a way that can be differentiated."""
        variables = [self.variables[name] for name in trained]
        missing: list[bool] = []

        def gradients(images: tf.Tensor) -> None:
            with tf.GradientTape() as tape:
                features = self(images, training=True, bn_batch=bn_batch)
            missing[:] = [gradient is None for gradient in tape.gradient(features, variables)]

        # Loaded for several devices, a module cannot be called outside of them.
        run = tf.distribute.get_strategy().run
        traced = tf.function(lambda images: run(gradients, args=(images,)), autograph=False)
        # Nothing is computed; the first picture's shape is all that counts.
        traced.get_concrete_function(tf.TensorSpec([1, *self.contract.image_shape], tf.float32))
        self._layer.trainable = False
        return [name for name, is_missing in zip(trained, missing, strict=True) if is_missing]

    def cut(self, trained: Collection[str], *, bn_batch: bool) -> Cut | None:
        """See the Backbone protocol. A module shows no layers, so all of it is below or nothing."""
        width = self.contract.feature_width
        return whole_cut(self, trained, bn_batch=bn_batch, feature_width=width, variables=self.variables)

    def why_no_cut(self, trained: Collection[str]) -> str:
        """See the Backbone protocol."""
        if all(name in trained for name, variable in self.variables.items() if variable.trainable):
            return "trains the network from its first layers on"
        return "trains a part of a SavedModel, which is one block: it shows no layers to cut it between"

    def feature_maps(self) -> Callable[[tf.Tensor], tf.Tensor] | None:
        """See the Backbone protocol."""
        return self._infer if self._pool else None

    def _probe(self, height: int, width: int) -> tf.Tensor:
        """Returns the output for one black picture, so that a wrong size or output shows now."""
        strategy = tf.distribute.get_strategy()
        try:
            # Loaded for several devices, a module cannot be called outside of them.
            outputs = strategy.run(self._layer, args=(tf.zeros([1, height, width, 3]),))
            output = tf.nest.map_structure(lambda v: strategy.experimental_local_results(v)[0], outputs)
        except tf.errors.ResourceExhaustedError as error:
            raise TrainerError(failure_in_words(error)) from error
        except (tf.errors.OpError, ValueError, TypeError) as error:
            raise UsageError(
                f"{self.name} cannot take pictures of {height}x{width} px ({told_by_tensorflow(error)}): "
                "give the size it was made for with --image_size"
            ) from error
        if isinstance(output, dict):
            raise TrainerError(
                f"{self.name} returns a dict of {', '.join(sorted(map(str, output)))}; expected one tensor "
                "of features: use a feature_vector module with --backbone"
            )
        if not tf.is_tensor(output) or output.shape.rank not in (2, 4) or not output.dtype.is_floating:
            what = f"{output.dtype.name} {output.shape}" if tf.is_tensor(output) else type(output).__name__
            raise TrainerError(
                f"{self.name} returns {what}; expected features [B, D] or feature maps [B, h, w, D]: use "
                "another module with --backbone"
            )
        return output


def open_module(
    handle: str,
    *,
    name: str,
    image_size: int,
    value_range: tuple[float, float] | None,
    cache_dir: str,
    remote: bool = True,
) -> HubBackbone:
    """Opens a SavedModel, which is fetched or unpacked where it has to be.

    Args:
      handle: see `hub_cache.module_folder`.
      name: what the user called it, for messages.
      image_size: see `HubBackbone`.
      value_range: see there.
      cache_dir: the value of --cache_dir.
      remote: whether addresses and Kaggle handles are meant, too.

    Raises:
      UsageError: `handle` is of a kind that holds no SavedModel, or the size is wrong or missing.
      TrainerError: it cannot be had, or is no module from pictures to features.
    """
    folder = module_folder(handle, flag=f"--backbone={name}", cache_dir=cache_dir, remote=remote)
    return HubBackbone(
        name,
        folder,
        image_size=image_size,
        value_range=value_range,
        default_size=published_size(handle),
    )


def _load(name: str, folder: Path) -> Any:
    try:
        return hub.load(str(folder))
    except Exception as error:  # Unknown ops, missing custom kernels, newer formats: anything.
        raise TrainerError(f"{name}: TensorFlow cannot load {folder}: {told_by_tensorflow(error)}") from error


class _Served:
    """A signature as a callable: hub.KerasLayer would load the folder a second time to find it."""

    def __init__(self, module: Any, signature: str, output_key: str) -> None:
        self.variables = list(getattr(module, "variables", None) or [])
        self._module = module  # Its variables live as long as it does.
        self._function = module.signatures[signature]
        self._output_key = output_key

    def __call__(self, images: tf.Tensor) -> tf.Tensor:
        return self._function(images)[self._output_key]


def _make_layer(name: str, module: Any, output_shape: list[int | None] | None = None) -> hub.KerasLayer:
    try:
        return hub.KerasLayer(module, trainable=False, output_shape=output_shape)
    except (ValueError, TypeError) as error:
        raise TrainerError(f"{name} is no module for hub.KerasLayer: {told_by_tensorflow(error)}") from error


def _read_interface(name: str, module: Any) -> _Interface:
    """Finds the picture input among what the module was traced for."""
    function = getattr(module, "__call__", None)  # noqa: B004 (its traces are wanted, not whether it is there)
    functions = getattr(function, "concrete_functions", None)
    if functions:
        # Arguments besides the first one, such as `training`, have defaults.
        return _Interface(
            _best_spec(name, [_first_input(f) for f in functions]),
            knows_training=any("training" in f.function_type.parameters for f in functions),
        )
    signatures = dict(getattr(module, "signatures", None) or {})
    key = "default" if getattr(module, "_is_hub_module_v1", False) else SERVING_SIGNATURE
    if key not in signatures:
        raise TrainerError(
            f"{name} can neither be called nor has a signature {key!r} "
            f"(it has: {', '.join(sorted(signatures)) or 'none'}): use another module with --backbone"
        )
    inputs = signatures[key].structured_input_signature[1]
    outputs = signatures[key].structured_outputs
    if len(inputs) != 1 or ("default" not in outputs and len(outputs) != 1):
        raise TrainerError(
            f"{name}: signature {key!r} has inputs {', '.join(sorted(inputs))} and outputs "
            f"{', '.join(sorted(outputs))}; expected one of each: use another module with --backbone"
        )
    output_key = "default" if "default" in outputs else next(iter(outputs))
    return _Interface(_best_spec(name, list(inputs.values())), key, output_key)


def _warn_of_classes(name: str, interface: _Interface, width: int) -> None:
    """Says so where what a module gives are scores of classes by its name or by their number."""
    # Folders are named by people, who classify all kinds of things.
    handle = name if "://" in name else ""
    said = CLASSIFIER_NAMES.search(" ".join((handle, interface.signature, interface.output_key)).lower())
    if said or width in CLASS_COUNTS:
        why = f"it is called {said[1]!r}" if said else f"{CLASS_COUNTS[width]} has as many classes"
        logger.warning(
            "%s: its %s outputs look like scores of classes, not features (%s): the head on top of them "
            "learns less; use the feature_vector module of the same network",
            name, f"{width:,}", why,
        )  # fmt: skip


def _first_input(function: Any) -> Any:
    args, kwargs = function.structured_input_signature
    return args[0] if args else next(iter(kwargs.values()), None)


def _best_spec(name: str, specs: list[Any]) -> tf.TensorSpec:
    fitting = [spec for spec in specs if isinstance(spec, tf.TensorSpec) and _takes_pictures(spec)]
    if not fitting:
        wants = "; ".join(sorted({_describe_spec(spec) for spec in specs}))
        raise TrainerError(
            f"{name} wants {wants}; expected batches of any number of float32 pictures [B, H, W, 3]: use "
            "another module with --backbone"
        )
    return fitting[0]


def _describe_spec(spec: Any) -> str:
    return f"{spec.dtype.name} {spec.shape}" if isinstance(spec, tf.TensorSpec) else type(spec).__name__


def _takes_pictures(spec: tf.TensorSpec) -> bool:
    if spec.dtype != tf.float32:
        return False
    shape = spec.shape
    return shape.rank is None or (shape.rank == 4 and shape[0] is None and shape[-1] in (3, None))


def _choose_size(name: str, spec: tf.TensorSpec, asked: int, default: int) -> tuple[int, int, bool]:
    """Returns (height, width, whether another size is possible) in px."""
    rows, columns = (None, None) if spec.shape.rank is None else spec.shape[1:3]
    if rows and columns:
        if asked and (asked, asked) != (rows, columns):
            raise UsageError(
                f"--image_size={asked}: {name} takes only {rows}x{columns} px, not {asked}x{asked}; leave "
                "--image_size away"
            )
        return rows, columns, False
    size = asked or default
    if not size:
        raise UsageError(
            f"{name} takes pictures of any size: say how many px with --image_size, best those "
            "it was trained on"
        )
    return size, size, True
