"""Exported models opened again, for whoever predicts with one in this package."""

import contextlib
import dataclasses
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.export.metadata import About, read_about
from trainer.model.hub_cache import find_defect
from trainer.paths import local_path
from trainer.values import Contract, TrainerError, told_by_tensorflow


class ExportedModel:
    """A model that `export` wrote, of either kind."""

    def __init__(self, about: About, probabilities: Callable[[np.ndarray], np.ndarray]):
        self.about = about
        self.class_names, self.task = about.class_names, about.make_task()
        self._probabilities = probabilities

    @property
    def contract(self) -> Contract:
        """What `probabilities` wants to be fed: the network's size, and pixels in [0, 1]."""
        return dataclasses.replace(self.about.contract, value_range=(0.0, 1.0))

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Maps images [B, H, W, 3] float32 in [0, 1] to probabilities [B, K] float64.

        Raises:
          TrainerError: the model fails.
        """
        return self._probabilities(images).astype(np.float64)


def open_model(path: str | os.PathLike[str], *, flag: str = "") -> ExportedModel:
    """Opens a SavedModel folder or a .tflite file that `export` wrote.

    Args:
      path: of the model.
      flag: what messages begin with; default the path.

    Raises:
      UsageError: it is no such thing.
      TrainerError: it is damaged.
    """
    flag = flag or os.fspath(path)
    model = local_path(path, flag=flag)
    if model.is_dir():
        local_path(path, flag=flag, for_tensorflow=True)
    about = read_about(model, flag=flag)
    return ExportedModel(about, (_saved_model if model.is_dir() else _tflite)(model, flag))


def _saved_model(folder: Path, flag: str) -> Callable[[np.ndarray], np.ndarray]:
    if defect := find_defect(folder):
        raise TrainerError(f"{flag} is damaged: {defect}")
    try:
        model = tf.saved_model.load(str(folder))
        model.signatures["images"]
    except Exception as error:  # What a damaged graph raises is of many kinds.
        raise TrainerError(f"{flag}: TensorFlow cannot load it: {told_by_tensorflow(error)}") from None

    def probabilities(images: np.ndarray) -> np.ndarray:
        with _told(flag):
            # Looked up here: its functions live as long as the model does.
            return model.signatures["images"](images=tf.constant(images))["probabilities"].numpy()

    return probabilities


def _tflite(file: Path, flag: str) -> Callable[[np.ndarray], np.ndarray]:
    try:
        # Not on every system; and a model is opened rarely.
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        raise TrainerError(
            f"{flag} needs the package ai-edge-litert, which is not installed here: pip install it, or take "
            "the SavedModel"
        ) from None
    with _told(flag):
        interpreter: Any = Interpreter(model_path=str(file), num_threads=os.cpu_count())
        interpreter.allocate_tensors()
    [taken], [given] = interpreter.get_input_details(), interpreter.get_output_details()

    # An interpreter has one place for pictures.
    alone = threading.Lock()

    def probabilities(images: np.ndarray) -> np.ndarray:
        rows = []
        for image in images:
            with alone, _told(flag):
                interpreter.set_tensor(taken["index"], quantized(image[None], taken))
                interpreter.invoke()
                rows.append(dequantized(interpreter.get_tensor(given["index"]), given)[0])
        return np.array(rows)

    return probabilities


def quantized(values: np.ndarray, tensor: dict[str, Any]) -> np.ndarray:
    """Returns float32 values as a tensor of the LiteRT interpreter holds them."""
    scale, zero = tensor["quantization"]
    if not scale:
        return values
    bounds = np.iinfo(tensor["dtype"])
    return np.clip(np.round(values / scale) + zero, bounds.min, bounds.max).astype(tensor["dtype"])


def dequantized(values: np.ndarray, tensor: dict[str, Any]) -> np.ndarray:
    """Returns as float32 what a tensor of the LiteRT interpreter holds."""
    scale, zero = tensor["quantization"]
    return (values.astype(np.float32) - zero) * np.float32(scale) if scale else values


@contextlib.contextmanager
def _told(flag: str) -> Iterator[None]:
    try:
        yield
    except (tf.errors.OpError, ValueError, RuntimeError) as error:
        raise TrainerError(f"{flag} cannot be run: {told_by_tensorflow(error)}") from None
