"""Which files make up a table: one, the shards in a folder or of a pattern, or those beside pictures."""

import glob
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.data.class_folders import holds_results
from trainer.data.layouts import usual_split
from trainer.store.system_names import is_system
from trainer.values import TrainerError, UsageError

TEXT_ENDINGS = {".csv": ",", ".tsv": "\t"}
JSON_ENDINGS = (".jsonl", ".ndjson", ".json")
PARQUET_ENDINGS = (".parquet", ".pq")
ARROW_ENDING = ".arrow"
ENDINGS = (ARROW_ENDING, *TEXT_ENDINGS, *JSON_ENDINGS, *PARQUET_ENDINGS)
EXPECTED = "expected a .csv, .tsv, .jsonl or .parquet file, a pattern of such, or a folder with them"
# As the ImageFolder of Hugging Face's `datasets` calls the table beside the pictures.
_BESIDE_PICTURES = re.compile(r"metadata\.(csv|jsonl|parquet)")
# As `datasets` calls shards: train-00000-of-00002.parquet; others write train.parquet or train_0.parquet.
_OF_SPLIT = re.compile(r"([A-Za-z]+)(?:[-_.]?\d+)*(?:[-_.]of[-_.]\d+)?")
_SHOWN = 5


@dataclass(frozen=True)
class TableFile:
    """A file of a table.

    Attributes:
      path: absolute.
      name: its path below the folder that `Files.top` is, for people and for ids.
      split: of all its rows, train, validation or test by its name or its folder; empty: unknown.
    """

    path: Path
    name: str
    split: str = ""


@dataclass(frozen=True)
class Files:
    """The files of a table, in the order of their rows; `top` is the folder that ids are paths below."""

    top: Path
    files: tuple[TableFile, ...]


def find_files(top: Path, *, name: str, results: Sequence[Path] = ()) -> Files:
    """Returns the files that an address means.

    Of a folder these are the `metadata` files in it and in its folders, else all tables of one format in it
    and below. Hidden files are passed over, and what this program has written.

    Args:
      top: a file, a folder, or a pattern.
      name: what messages call the source.
      results: folders that this program writes to; those of earlier runs are known by their files.

    Raises:
      UsageError: it is a file of another kind.
      TrainerError: there is no such file, or no table in the folder.
    """
    if top.is_dir():
        paths = _in_folder(top, name=name, results=results)
        root = top
    elif top.exists() or not glob.has_magic(str(top)):
        paths, root = [top], top.parent
        if not top.exists():
            raise TrainerError(f"--source={name}: {top} does not exist: {EXPECTED}")
        if not top.is_file():
            raise TrainerError(f"--source={name}: {top} is no regular file: {EXPECTED}")
    else:
        paths = [Path(found) for found in sorted(glob.glob(str(top), recursive=True))]
        paths = [path for path in paths if path.is_file()]
        if not paths:
            raise TrainerError(f"--source={name}: no file has a name like {top}: {EXPECTED}")
        root = Path(os.path.commonpath([path.parent for path in paths]))
    for path in paths:
        if path.suffix.lower() not in ENDINGS:
            raise UsageError(f"--source={name}: {path} is no table that can be read: {EXPECTED}")
    names = [path.relative_to(root).as_posix() for path in paths]
    splits = _splits_of(names) if len(paths) > 1 else [""]
    return Files(root, tuple(map(TableFile, paths, names, splits)))


def _in_folder(folder: Path, *, name: str, results: Sequence[Path]) -> list[Path]:
    """Returns the tables in a folder, in code-point order of their paths."""
    found: list[Path] = []
    ours = {os.path.realpath(one) for one in results}
    for place, folders, files in os.walk(folder):
        inside = [one for one in folders if not is_system(one)]
        folders[:] = sorted(
            one
            for one in inside
            if not holds_results(path := os.path.join(place, one)) and os.path.realpath(path) not in ours
        )
        found += [Path(place, one) for one in files if not is_system(one)]
    tables = [path for path in found if path.suffix.lower() in ENDINGS]
    beside = [path for path in tables if _BESIDE_PICTURES.fullmatch(path.name)]
    if beside:
        tables = beside
    elif parquet := [path for path in tables if path.suffix.lower() in PARQUET_ENDINGS]:
        # What lies beside shards, such as dataset_info.json, tells about them.
        tables = parquet
    elif arrow := [path for path in tables if path.suffix.lower() == ARROW_ENDING]:
        # Beside them `datasets` keeps results of its own, cache-....arrow.
        tables = [path for path in arrow if not path.name.startswith("cache-")] or arrow
    else:
        lines = [path for path in tables if path.suffix.lower() != ".json"]
        tables = lines or tables
    if not tables:
        hint = f": of class folders, write --source=folder:{folder}" if found else ""
        raise TrainerError(f"--source={name}: {folder} holds no table ({EXPECTED}){hint}")
    kinds = sorted({path.suffix.lower() for path in tables})
    if len(kinds) > 1:
        raise UsageError(
            f"--source={name}: {folder} holds tables of several formats ({', '.join(kinds)}): name one "
            f"file, or a pattern such as {folder}/*{kinds[0]}"
        )
    return sorted(tables, key=lambda path: path.relative_to(folder).as_posix())


def _splits_of(names: Sequence[str]) -> list[str]:
    """Returns the split that each file is of by its name or its folder; all empty where one is of none."""
    found = []
    for name in names:
        *folders, file = name.split("/")
        stem = file.rpartition(".")[0]
        match = _OF_SPLIT.fullmatch(stem)
        by_name = usual_split(match[1]) if match else ""
        by_folder = next(filter(None, map(usual_split, reversed(folders))), "")
        found.append(by_name or by_folder)
    return found if all(found) else [""] * len(names)
