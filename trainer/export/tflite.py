"""TFLite files: the network from pixels to probabilities in four arithmetics, for the LiteRT runtime."""

import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import tensorflow as tf

from trainer.export.about import About
from trainer.export.saved_model import save
from trainer.export.tflite_metadata import with_metadata
from trainer.files import PART_PREFIX
from trainer.model.saved_models import first_line
from trainer.values import TrainerError

# The converter uses an interpreter that it tells others not to use. For good, and not around each conversion:
# filters are of the process.
warnings.filterwarnings("ignore", message=r"\s*Warning: tf\.lite\.Interpreter is deprecated")
INPUT, OUTPUT, SIGNATURE = "images", "probabilities", "images"

Pictures = Callable[[], Iterable[np.ndarray]]
"""Gives pictures [H, W, 3] float32 in [0, 1], anew with each call."""


def _float32(converter: Any, pictures: Pictures) -> None:
    """As trained."""


def _float16(converter: Any, pictures: Pictures) -> None:
    """Weights in 16 bits: half the size."""
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_types = [tf.float16]


def _dynamic_range(converter: Any, pictures: Pictures) -> None:
    """Weights in 8 bits: a quarter of the size; activations are rounded as they come, or stay float32."""
    converter.optimizations = [tf.lite.Optimize.DEFAULT]


def _int8(converter: Any, pictures: Pictures) -> None:
    """Everything in 8 bits, kernels with a scale for each channel; bytes in, bytes out.

    Ranges of activations are those seen on representative pictures (Jacob et al., 2017, arXiv 1712.05877).
    """
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ({INPUT: image[None]} for image in _whole_range(pictures()))
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = tf.uint8
    converter.inference_output_type = tf.uint8


FORMATS: dict[str, Callable[[Any, Pictures], None]] = {
    "float32": _float32,
    "float16": _float16,
    "dynamic_range": _dynamic_range,
    "int8": _int8,
}


class Converter:
    """Converts one network to any of `FORMATS`. To be used as a context."""

    def __init__(self, network: Callable[[tf.Tensor], tf.Tensor], *, about: About, folder: Path):
        """Writes the network down, as the converter wants it.

        Args:
          network: images [1, H, W, 3] float32 in [0, 1] -> probabilities [1, K] float32, no variables.
          about: goes into each file.
          folder: where that may lie until the context ends.

        Raises:
          OSError: it cannot be written.
        """
        self._about, self._folder = about, folder / f"{PART_PREFIX}network"
        spec = tf.TensorSpec([1, *about.contract.image_shape], tf.float32, name=INPUT)
        served = tf.function(lambda images: {OUTPUT: network(images)}, autograph=False)
        signatures = {SIGNATURE: served.get_concrete_function(spec)}
        save(tf.Module(), self._folder, signatures=signatures)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        shutil.rmtree(self._folder)

    def convert(self, form: str, *, pictures: Pictures) -> bytes:
        """Returns a .tflite file with metadata. TensorFlow writes to standard error what it cannot convert.

        Args:
          form: one of `FORMATS`.
          pictures: representative ones, for int8.

        Raises:
          TrainerError: the network cannot be had in this format.
        """
        try:
            converter = tf.lite.TFLiteConverter.from_saved_model(
                str(self._folder), signature_keys=[SIGNATURE]
            )
            FORMATS[form](converter, pictures)
            model = converter.convert()
        except Exception as error:  # Of many kinds, some of them without a public name.
            raise TrainerError(
                f"--formats={form}: TensorFlow cannot convert this network: {_reason(error)}; leave {form} "
                "out"
            ) from None
        name = f"{len(self._about.class_names)} classes, {form}"
        return with_metadata(model, self._about, name=name, takes_bytes=form == "int8")


def _whole_range(images: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Puts black and white into corners of the first picture: 0 and 255 are then just 0 and 1."""
    for i, image in enumerate(images):
        if i == 0:
            image = image.copy()
            image[0, 0], image[-1, -1] = 0.0, 1.0
        yield image


def _reason(error: Exception) -> str:
    """Returns the line that says what it is about; the converter's come over many lines."""
    told = [line.strip() for line in str(error).splitlines() if "error:" in line or "ops:" in line]
    return told[0][:300] if told else first_line(error)
