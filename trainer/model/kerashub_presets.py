"""Presets of keras-hub: where their files are, and which network and preprocessing these describe.

A preset is a folder with `config.json` (a class of keras-hub and its arguments), `model.weights.h5` and
`image_converter.json`. Only numbers and names of known classes are taken from it: nothing in it is run.
"""

import contextlib
import difflib
import inspect
import json
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.model.keras3 import Libraries
from trainer.paths import local_path
from trainer.values import TrainerError, UsageError, told_by_tensorflow

CONFIG, WEIGHTS, SHARDS = "config.json", "model.weights.h5", "model.weights.json"
CONVERTER, PREPROCESSOR = "image_converter.json", "preprocessor.json"


def _no_tokens(network: Any) -> int:
    return 0


def _registers(network: Any) -> int:
    return 1 + int(network.num_register_tokens)


NETWORKS: dict[str, Callable[[Any], int]] = {
    "CLIPVisionEncoder": lambda network: 1,
    "CSPNetBackbone": _no_tokens,
    "DINOV2Backbone": _registers,
    "DINOV3Backbone": _registers,
    "DeiTBackbone": lambda network: 2,  # Class and distillation.
    "DenseNetBackbone": _no_tokens,
    "EfficientNetBackbone": _no_tokens,
    "HGNetV2Backbone": _no_tokens,
    "MetaCLIP2VisionEncoder": lambda network: 1,
    "MiTBackbone": _no_tokens,
    "MobileNetBackbone": _no_tokens,
    "MobileNetV5Backbone": _no_tokens,
    "ResNetBackbone": _no_tokens,
    "SigLIPVisionEncoder": _no_tokens,
    "SwinTransformerBackbone": _no_tokens,
    "VGGBackbone": _no_tokens,
    "ViTBackbone": lambda network: int(network.use_class_token),
    "XceptionBackbone": _no_tokens,
}
"""{class of keras-hub that maps images to features: function from such a network to the number of tokens
before those of the patches}. The class token is the first."""
WITH_TEXT = ("CLIPBackbone", "MetaCLIP2Backbone", "SigLIPBackbone")
"""Classes whose `vision_encoder` is one of those."""
# What may stand in a config besides them: their other half, and precisions.
OTHER_CLASSES = {"CLIPTextEncoder", "MetaCLIP2TextEncoder", "SigLIPTextEncoder", "DTypePolicy"}

INTERPOLATIONS = ("bilinear", "bicubic", "nearest", "lanczos3", "lanczos5")


@dataclass(frozen=True)
class Preprocessing:
    """What comes before a network, as its preset says: pixels from 0 to 255, times `scale`, plus `offset`."""

    size_px: int = 0
    """0: not said."""
    scale: tuple[float, ...] = (1.0,)
    """One for all channels, or one for each."""
    offset: tuple[float, ...] = (0.0,)
    fit: str = "stretch"
    """As of `Contract`."""
    resize: str = "bilinear"
    antialias: bool = False


class Preset:
    """The files of a preset. What is asked for first is fetched then."""

    def __init__(self, name: str, fetch: Callable[[str], Path | None], *, said: str) -> None:
        """Reads the config.

        Args:
          name: of the preset, or its path.
          fetch: name of a file -> where it is; None: the preset has none of that name.
          said: what messages begin with, such as `--backbone=kerashub:mine`.

        Raises:
          UsageError: it is no preset of a network that takes images.
          TrainerError: it cannot be read, or names what no such preset has.
        """
        self.name, self.said, self._fetch = name, said, fetch
        config = self._json(CONFIG)
        if config is None:
            raise TrainerError(f"{said} has no {CONFIG}: expected a folder that save_to_preset() made")
        if "class_name" not in config:
            raise UsageError(
                f"{said} is no preset in keras-hub's own format: open it with keras-hub once, and use the "
                "folder that save_to_preset() makes"
            )
        self.kind = str(config["class_name"])
        _check_classes(config, said=said)
        self.config: dict[str, Any] = config.get("config") or {}
        if self.kind not in NETWORKS and self.kind not in WITH_TEXT:
            known = ", ".join(sorted((*NETWORKS, *WITH_TEXT)))
            raise UsageError(f"{said} is a {self.kind}, no network from images to features: {known}")

    def _json(self, file: str) -> dict[str, Any] | None:
        path = self._fetch(file)
        if path is None:
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise TrainerError(f"{self.said}: {path} cannot be read: {error}") from error
        if not isinstance(content, dict):
            raise TrainerError(f"{self.said}: {path} is no description of a network")
        return content

    def preprocessing(self) -> Preprocessing | None:
        """Returns what comes before the network; None: the preset does not say.

        Raises:
          TrainerError: it says what cannot be done.
        """
        content = self._json(CONVERTER)
        if content is None:
            outer = (self._json(PREPROCESSOR) or {}).get("config") or {}
            content = outer.get("image_converter")
        if content is None:
            return None
        try:
            return _preprocessing(content["config"])
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            raise TrainerError(f"{self.said}: its {CONVERTER} is none that is known: {error}") from error

    def weights(self) -> Path:
        """Returns the file of the weights, or the list of those they are in.

        Raises:
          TrainerError: there is none.
        """
        path = self._fetch(WEIGHTS)
        if path is None and (path := self._fetch(SHARDS)):
            listed = (self._json(SHARDS) or {}).get("weight_map") or {}
            for value in listed.values():
                for file in value if isinstance(value, list) else [value]:
                    if Path(str(file)).name != file or self._fetch(str(file)) is None:
                        raise TrainerError(f"{self.said}: {file}, which {SHARDS} names, is missing")
        if path is None:
            raise TrainerError(f"{self.said} has no {WEIGHTS}; --weights=none draws random ones")
        return path


def _check_classes(content: Any, *, said: str) -> None:
    """Raises TrainerError where a config names a class or function that no preset of a network has."""
    if isinstance(content, list):
        for one in content:
            _check_classes(one, said=said)
    if not isinstance(content, dict):
        return
    name = content.get("class_name")
    if name is not None and name not in OTHER_CLASSES | set(NETWORKS) | set(WITH_TEXT):
        # Another kind of network is told so by its name; anything else may be code.
        if content.get("registered_name") != f"keras_hub>{name}":
            raise TrainerError(
                f"{said}: its {CONFIG} names {name!r}, which no preset of an image network needs"
            )
        raise UsageError(
            f"{said} is a {name}, no network from images to features: "
            f"{', '.join(sorted((*NETWORKS, *WITH_TEXT)))}"
        )
    for value in content.values():
        _check_classes(value, said=said)


def _preprocessing(config: dict[str, Any]) -> Preprocessing:
    size = config.get("image_size") or (config.get("height"), config.get("width"))
    if size[0] != size[1]:
        raise ValueError(f"it makes images of {size[0]}x{size[1]} px, which is no square")
    scale, offset = config.get("scale"), config.get("offset")
    if "variance" in config and "mean" in config:
        deviations = [float(variance) ** 0.5 for variance in config["variance"]]
        scale = [float(scale or 1.0) / one for one in deviations]
        offset = [-float(mean) / one for mean, one in zip(config["mean"], deviations, strict=True)]
    resize = str(config.get("interpolation", "bilinear"))
    if resize not in INTERPOLATIONS:
        raise ValueError(f"interpolation {resize!r} is none of {', '.join(INTERPOLATIONS)}")
    # The defaults are those of keras-hub's ImageConverter.
    is_padded, is_cropped = config.get("pad_to_aspect_ratio", False), config.get("crop_to_aspect_ratio", True)
    return Preprocessing(
        size_px=int(size[0] or 0),
        scale=_by_channel(1.0 if scale is None else scale),
        offset=_by_channel(0.0 if offset is None else offset),
        fit="pad" if is_padded else "crop" if is_cropped else "stretch",
        resize=resize,
        antialias=bool(config.get("antialias", False)),
    )


def _by_channel(value: Any) -> tuple[float, ...]:
    values = tuple(float(one) for one in (value if isinstance(value, list | tuple) else [value]))
    if len(values) not in (1, 3):
        raise ValueError(f"expected a number, or one for each of 3 channels, not {values}")
    return values


def find_preset(libraries: Libraries, address: str, *, said: str) -> Preset:
    """Finds a preset by its name, its address or its folder.

    Args:
      libraries: Keras 3 and keras-hub.
      address: a name that keras-hub knows, kaggle://..., hf://..., or a path.
      said: what messages begin with.

    Raises:
      UsageError: there is no such preset.
      TrainerError: it cannot be had; the message says what was tried.
    """
    models = libraries.keras_hub.models
    known = {
        name: fact for kind in (*NETWORKS, *WITH_TEXT) for name, fact in getattr(models, kind).presets.items()
    }
    if address in models.Backbone.presets and address not in known:
        raise UsageError(f"{said} is a preset of no network from images to features")
    if address in known:
        address = known[address]["kaggle_handle"]
    if address.startswith("kaggle://"):
        return Preset(address, _from_kaggle(address.removeprefix("kaggle://"), said=said), said=said)
    if address.startswith("hf://"):
        return Preset(address, _from_hugging_face(address.removeprefix("hf://"), said=said), said=said)
    folder = local_path(address, flag=said)
    if not folder.is_dir():
        near = difflib.get_close_matches(address, known, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "--helpfull says what kerashub: takes"
        raise UsageError(f"{said}: keras-hub has no such preset, and there is no folder {folder}; {hint}")

    def fetch(file: str) -> Path | None:
        return folder / file if (folder / file).is_file() else None

    return Preset(str(folder), fetch, said=said)


def _from_kaggle(handle: str, *, said: str) -> Callable[[str], Path | None]:
    def fetch(file: str) -> Path | None:
        try:
            import kagglehub
            from kagglehub.exceptions import KaggleApiHTTPError
        except ImportError as error:
            raise _cannot_get(file, handle, error, said=said) from error
        try:
            return Path(kagglehub.model_download(handle, file))
        except KaggleApiHTTPError as error:
            # A file that a preset does not have.
            if getattr(error.response, "status_code", 0) == 404 and file != CONFIG:
                return None
            raise _cannot_get(file, handle, error, said=said) from error
        except ValueError as error:
            if "is not present in the model files" in str(error):
                return None
            raise _cannot_get(file, handle, error, said=said) from error
        except Exception as error:  # It raises what requests does, and others.
            raise _cannot_get(file, handle, error, said=said) from error

    return fetch


def _from_hugging_face(handle: str, *, said: str) -> Callable[[str], Path | None]:
    def fetch(file: str) -> Path | None:
        try:
            import huggingface_hub
            from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
        except ImportError as error:
            raise _cannot_get(file, f"hf://{handle}", error, said=said) from error
        try:
            return Path(huggingface_hub.hf_hub_download(repo_id=handle, filename=file))
        except LocalEntryNotFoundError as error:  # Neither here, nor is there network.
            raise _cannot_get(file, f"hf://{handle}", error, said=said) from error
        except EntryNotFoundError:
            return None
        except Exception as error:
            raise _cannot_get(file, f"hf://{handle}", error, said=said) from error

    return fetch


def _cannot_get(file: str, handle: str, error: Exception, *, said: str) -> TrainerError:
    told = told_by_tensorflow(error)[:160]
    return TrainerError(
        f"{said}: cannot get {file} of {handle} ({type(error).__name__}: {told}). keras-hub holds no "
        "configuration of its presets: --weights=none needs this, too. Ways out: (1) run once where there is "
        "network, and copy the cache of kagglehub (~/.cache/kagglehub) here; (2) save the preset there with "
        "save_to_preset(FOLDER), and use --backbone=kerashub:FOLDER; (3) --backbone=efficientnet_lite0 needs "
        "no network"
    )


def build(libraries: Libraries, preset: Preset, *, size_px: int) -> Any:
    """Returns the network of a preset, with random weights.

    Args:
      libraries: Keras 3 and keras-hub.
      preset: which.
      size_px: H and W of the images.

    Raises:
      UsageError: it cannot take that size.
      TrainerError: the preset does not fit the class it names.
    """
    models = libraries.keras_hub.models
    kind, config = preset.kind, _float32(preset.config)
    try:
        if kind in WITH_TEXT:
            part = config["vision_encoder"]["config"]
            part.update(_sized(getattr(models, config["vision_encoder"]["class_name"]), part, size_px))
        else:
            config.update(_sized(getattr(models, kind), config, size_px))
        return getattr(models, kind).from_config(config)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UsageError(
            f"{preset.said} cannot be built for images of {size_px}x{size_px} px: {told_by_tensorflow(error)}"
        ) from error


def vision_part(network: Any) -> Any:
    """Returns the half of a network that takes images."""
    return network.vision_encoder if type(network).__name__ in WITH_TEXT else network


def own_size(preset: Preset) -> int:
    """Returns the side of the images that a preset's network was made for, in px; 0: any."""
    config = preset.config
    if preset.kind in WITH_TEXT:
        config = (config.get("vision_encoder") or {}).get("config") or {}
    shape = config.get("image_shape") or config.get("input_shape") or [None]
    return int(shape[0] or 0)


def _sized(kind: Any, config: dict[str, Any], size_px: int) -> dict[str, Any]:
    """Returns the argument that says the size of images, whatever a class calls it."""
    names = inspect.signature(kind.__init__).parameters
    name = "image_shape" if "image_shape" in names else "input_shape"
    return {name: (size_px, size_px, 3)}


def _float32(config: Any) -> Any:
    """Returns a copy of a config in which all computes in float32, and trains where it can."""
    if isinstance(config, list):
        return [_float32(one) for one in config]
    if not isinstance(config, dict):
        return config
    changed = {key: _float32(value) for key, value in config.items()}
    if "dtype" in changed and "name" in changed:
        changed.update(dtype="float32", trainable=True)
    return changed


def transfer(source: Any, target: Any, *, preset: Preset, size_px: int) -> None:
    """Copies weights to the same network for images of another size; embeddings of positions are resized.

    Args:
      source: has the weights.
      target: gets them.
      preset: of both, for messages.
      size_px: H and W that the target was built for.

    Raises:
      UsageError: others depend on the size, too.
    """
    leading = NETWORKS[type(source).__name__](source)
    for one, other in zip(source.weights, target.weights, strict=True):
        value = one.value.numpy()
        if value.dtype.kind != "f":
            continue  # Constants of the class.
        if tuple(one.shape) != tuple(other.shape):
            if "position" not in one.path:
                raise UsageError(
                    f"--image_size={size_px}: {preset.said} has weights for {own_size(preset)} px alone: "
                    f"{one.path} is {tuple(one.shape)}, and {tuple(other.shape)} there"
                )
            value = _resized_positions(value, other.shape, leading=leading)
        other.assign(value)


def _resized_positions(value: np.ndarray, shape: Sequence[int], *, leading: int) -> np.ndarray:
    """Returns embeddings of positions for another grid of patches, bicubic (Dosovitskiy et al., 2020).

    Args:
      value: [..., leading + n * n, D].
      shape: [..., leading + m * m, D].
      leading: how many tokens before those of the patches have a position.
    """
    width = value.shape[-1]
    # Of some tokens before those of the patches, none has a position.
    for count in (leading, 1, 0):
        sides = [math.isqrt(max(size - count, 0)) for size in (value.shape[-2], shape[-2])]
        if all(
            side**2 + count == size for side, size in zip(sides, (value.shape[-2], shape[-2]), strict=True)
        ):
            break
    else:
        raise ValueError(f"positions {value.shape} are no square of patches")
    tokens = value.reshape(-1, width)
    grid = tf.image.resize(
        tokens[count:].reshape(1, sides[0], sides[0], width), [sides[1]] * 2, method="bicubic"
    )
    return np.concatenate([tokens[:count], np.reshape(grid, [-1, width])]).reshape(shape)


def load(network: Any, path: Path) -> None:
    """Gives a network the weights of a file.

    Raises:
      ValueError: they do not fit, or the file has not all of them, of which Keras would only warn.
    """
    weights = [weight for weight in network.weights if tf.as_dtype(weight.dtype).is_floating]
    for weight in weights:
        weight.assign(tf.fill(weight.shape, np.float32(np.nan)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network.load_weights(str(path))
    missing = [weight.path for weight in weights if np.isnan(weight.value.numpy()).any()]
    if missing:
        raise ValueError(f"{len(missing)} weights are not in it, such as {missing[0]}")


@contextlib.contextmanager
def telling(preset: Preset, path: Path) -> Iterator[None]:
    """Has errors of reading weights be told in a line."""
    try:
        yield
    except Exception as error:  # h5py, KeyError and ValueError, by what is wrong with the file.
        raise TrainerError(
            f"{preset.said}: {path} does not fit the network: {told_by_tensorflow(error)}"
        ) from error
