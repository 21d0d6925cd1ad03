"""TFLite files in four arithmetics, with the metadata that LiteRT's and MediaPipe's tools read.

The layout is that of metadata_schema.fbs in github.com/tensorflow/tflite-support, whose package with classes
for it is not made for Python 3.12 and later: the few tables that a classifier needs are written here slot by
slot. What is appended is a ZIP archive, which `unzip` finds behind the model.
"""

import io
import shutil
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import flatbuffers
import numpy as np
import tensorflow as tf
from tensorflow.lite.tools import flatbuffer_utils

from trainer.export.metadata import LABELS_NAME, NAME, About
from trainer.export.saved_model import save
from trainer.runtime import quiet_stderr
from trainer.store.files import PART_PREFIX
from trainer.values import TrainerError, told_by_tensorflow

# What the schema numbers.
_LABELS_OF_AN_AXIS, _IMAGE, _RGB, _NORMALIZATION = 2, 2, 1, 1
_ENTRY, _IDENTIFIER, _LEAST_PARSER = b"TFLITE_METADATA", b"M001", "1.0.0"
# So that the same model gives the same bytes.
_ZIP_DATE = (1980, 1, 1, 0, 0, 0)


def with_metadata(model: bytes, about: About, *, name: str, takes_bytes: bool) -> bytes:
    """Returns a .tflite file that says what goes in and what comes out, and holds the class names.

    Args:
      model: one input, pictures; one output, probabilities.
      about: is appended as export.json, and its class names as labels.txt, a line each.
      name: of the model.
      takes_bytes: whether the input is uint8, 0 to 255, instead of float32, 0 to 1.
    """
    content = flatbuffer_utils.convert_bytearray_to_object(bytearray(model))
    schema = flatbuffer_utils.schema_fb
    buffer, entry = schema.BufferT(), schema.MetadataT()
    buffer.data = list(_metadata(about, name=name, takes_bytes=takes_bytes))
    entry.name, entry.buffer = _ENTRY, len(content.buffers)
    content.buffers.append(buffer)
    content.metadata = [*(content.metadata or []), entry]
    content.description = name.encode()
    packed = bytes(flatbuffer_utils.convert_object_to_bytearray(content))
    return packed + _archive({LABELS_NAME: about.labels(), NAME: about.to_json()}, behind=len(packed))


def _archive(files: Mapping[str, str], *, behind: int) -> bytes:
    """Returns a ZIP archive whose offsets count from `behind` bytes before it."""
    out = io.BytesIO()
    out.write(bytes(behind))
    with zipfile.ZipFile(out, "a") as archive:
        for name, text in files.items():
            # Not compressed: readers on phones map the file into memory.
            archive.writestr(zipfile.ZipInfo(name, date_time=_ZIP_DATE), text)
    return out.getvalue()[behind:]


def _metadata(about: About, *, name: str, takes_bytes: bool) -> bytes:
    contract, task, make = about.contract, about.make_task(), _Tables()
    size = f"{contract.height_px}x{contract.width_px} px"
    highest = 255.0 if takes_bytes else 1.0
    # What MediaPipe does to the bytes of a picture: (x - mean) / std.
    normalization = make.table(make.floats([0.0]), make.floats([1.0 if takes_bytes else 255.0]))
    unit = make.table(("Uint8", _NORMALIZATION), normalization)
    image = make.table(
        make.text("image"),
        make.text(f"RGB, {size}, {'bytes 0 to 255' if takes_bytes else 'float32 0 to 1'}"),
        None,
        make.table(("Uint8", _IMAGE), make.table(("Int8", _RGB))),
        make.tables([unit]),
        make.table(make.floats([highest]), make.floats([0.0])),
    )
    labels = make.table(make.text(LABELS_NAME), make.text("class names"), ("Int8", _LABELS_OF_AN_AXIS))
    probability = make.table(
        make.text("probability"),
        make.text("of each class; they add up to 1" if task.excludes else "of each class by itself"),
        None,
        make.table(("Uint8", 1), make.table()),
        None,
        make.table(make.floats([1.0]), make.floats([0.0])),
        make.tables([labels]),
    )
    graph = make.table(None, None, make.tables([image]), make.tables([probability]))
    root = make.table(
        make.text(name),
        make.text(f"Names what is on a picture: {task.one_of.format(count=len(about.class_names))}."),
        None,
        make.tables([graph]),
        None,
        None,
        None,
        make.text(_LEAST_PARSER),
    )
    return make.finished(root)


class _Tables:
    """FlatBuffers tables by the places of their fields."""

    def __init__(self) -> None:
        self._builder = flatbuffers.Builder(1024)

    def text(self, text: str) -> int:
        return self._builder.CreateString(text)

    def floats(self, values: Sequence[float]) -> int:
        self._builder.StartVector(4, len(values), 4)
        for value in reversed(values):
            self._builder.PrependFloat32(value)
        return self._builder.EndVector()

    def tables(self, tables: Sequence[int]) -> int:
        self._builder.StartVector(4, len(tables), 4)
        for table in reversed(tables):
            self._builder.PrependUOffsetTRelative(table)
        return self._builder.EndVector()

    def table(self, *fields: Any) -> int:
        """Makes a table of fields in their order: what this class made, ('Uint8', number) or None."""
        builder = self._builder
        builder.StartObject(len(fields))
        for slot, field in enumerate(fields):
            if isinstance(field, tuple):
                kind, number = field
                getattr(builder, f"Prepend{kind}Slot")(slot, number, 0)
            elif field is not None:
                builder.PrependUOffsetTRelativeSlot(slot, field, 0)
        return builder.EndObject()

    def finished(self, root: int) -> bytes:
        self._builder.Finish(root, file_identifier=_IDENTIFIER)
        return bytes(self._builder.Output())


# The converter uses an interpreter that it tells others not to use. For good, and not around each conversion:
# filters are of the process.
warnings.filterwarnings("ignore", message=r"\s*Warning: tf\.lite\.Interpreter is deprecated")
INPUT, OUTPUT, SIGNATURE = "images", "probabilities", "images"

Pictures = Callable[[], Iterable[np.ndarray]]
"""Gives pictures [H, W, 3] float32 in [0, 1], anew with each call."""


def _float32(converter: Any, pictures: Pictures) -> None:
    """As trained."""


def _float16(converter: Any, pictures: Pictures) -> None:
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_types = [tf.float16]


def _dynamic_range(converter: Any, pictures: Pictures) -> None:
    converter.optimizations = [tf.lite.Optimize.DEFAULT]


def _int8(converter: Any, pictures: Pictures) -> None:
    """Makes pixels and probabilities bytes, too.

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
            with quiet_stderr():
                model = converter.convert()
        except Exception as error:  # Of many kinds, some of them without a public name.
            raise TrainerError(
                f"--formats={form}: TensorFlow cannot convert this network: {_reason(error)}; leave {form} "
                "out"
            ) from None
        name = f"{len(self._about.class_names)} classes, {form}"
        return with_metadata(model, self._about, name=name, takes_bytes=form == "int8")


def _whole_range(images: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Puts black and white into corners of the first picture: 0 and 255 are then just 0 and 1.

    Bicubic and Lanczos go beyond these at edges, where bytes cannot follow.
    """
    for i, image in enumerate(images):
        inside = np.clip(image, 0.0, 1.0)
        if i == 0:
            inside[0, 0], inside[-1, -1] = 0.0, 1.0
        yield inside


def _reason(error: Exception) -> str:
    """Returns the line that says what it is about; the converter's come over many lines."""
    told = [line.strip() for line in str(error).splitlines() if "error:" in line or "ops:" in line]
    return told[0][:300] if told else told_by_tensorflow(error)
