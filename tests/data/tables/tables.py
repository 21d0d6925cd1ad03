"""Tables of tiny pictures, as they are written by hand, by spreadsheets and by the `datasets` package."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from tests.data.pictures import jpeg

PICTURES = {f"{k}.jpg": jpeg(k) for k in range(1, 7)}
"""1.jpg to 6.jpg."""


def write_pictures(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in PICTURES.items():
        (folder / name).write_bytes(data)
    return folder


def write_table(folder: Path, text: str | bytes, name: str = "photos.csv") -> str:
    """Writes a table beside the six pictures; returns the address of the source."""
    write_pictures(folder)
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return f"table:{folder / name}"


def features(**of_columns: Mapping[str, Any]) -> dict[bytes, bytes]:
    """Returns the metadata that `datasets` 5.2 writes into a schema."""
    return {b"huggingface": json.dumps({"info": {"features": of_columns}}).encode()}


def class_label(*names: str) -> dict[str, Any]:
    return {"names": list(names), "_type": "ClassLabel"}


def write_parquet(
    path: Path,
    pictures: Sequence[bytes | None],
    *,
    paths: Sequence[str | None] | None = None,
    group_rows: int = 2,
    names: Sequence[str] = ("daisy", "roses"),
    **columns: Sequence[Any],
) -> Path:
    """Writes a shard as `datasets` does: {bytes, path} structs, and the names of classes in the metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    paths = [None] * len(pictures) if paths is None else paths
    rows = [{"bytes": data, "path": name} for data, name in zip(pictures, paths, strict=True)]
    table = pa.table({"image": pa.array(rows, image), **columns})
    table = table.replace_schema_metadata(features(image={"_type": "Image"}, label=class_label(*names)))
    parquet.write_table(table, path, row_group_size=group_rows)
    return path
