"""Metadata inside of a .tflite file, and files appended to it, as LiteRT's and MediaPipe's tools read them.

The layout is that of metadata_schema.fbs in github.com/tensorflow/tflite-support, whose package with classes
for it is not made for Python 3.12 and later: the few tables that a classifier needs are written here slot by
slot. What is appended is a ZIP archive, which `unzip` finds behind the model.
"""

import io
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import flatbuffers
from tensorflow.lite.tools import flatbuffer_utils

from trainer.export.about import LABELS_NAME, NAME, About

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
    contract, make = about.contract, _Tables()
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
        make.text("of each class; they add up to 1"),
        None,
        make.table(("Uint8", 1), make.table()),
        None,
        make.table(make.floats([1.0]), make.floats([0.0])),
        make.tables([labels]),
    )
    graph = make.table(None, None, make.tables([image]), make.tables([probability]))
    root = make.table(
        make.text(name),
        make.text(f"Names what is on a picture: one of {len(about.class_names)} classes."),
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
