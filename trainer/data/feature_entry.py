"""One entry of the feature store: a folder with the numbers and, beside them, what they must be."""

import datetime
import hashlib
import json
import os
import reprlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainer.data.array_file import (
    DTYPE,
    Damaged,
    StoredFeatures,
    array_bytes,
    file_bytes,
    unreadable,
    write_array,
    writing,
)
from trainer.files import sync, sync_file

FORMAT = 1
FEATURES, ENTRY = "features.npy", "entry.json"


class Wanted:
    """What a caller of the store asks for.

    Attributes:
      digest: SHA-256 of the key, the name of the entry's folder.
      shape: (n, *shape).
      num_bytes: size of features.npy.
      facts: what entry.json must say.
      describe: one line for people.
    """

    def __init__(self, key: Mapping[str, Any], *, shape: tuple[int, ...], describe: str):
        """Makes the digest.

        Raises:
          TypeError: the key holds what JSON cannot say.
          ValueError: the key holds a number that JSON cannot say.
        """
        text = _canonical(key)
        self.digest, self.describe = _digest(text), describe
        self.shape = tuple(int(size) for size in shape)
        self.num_bytes = file_bytes(self.shape)
        self.facts = {
            "format": FORMAT,
            "key": json.loads(text),
            "shape": list(self.shape),
            "dtype": DTYPE.name,
            "bytes": array_bytes(self.shape),
        }


@dataclass(frozen=True)
class Entry:
    """What is known of an entry without reading its numbers; `num_bytes` is the size of features.npy."""

    digest: str
    key: dict[str, Any]
    describe: str
    num_bytes: int
    created: datetime.datetime
    last_used: datetime.datetime


def write_entry(folder: Path, wanted: Wanted, compute: Callable[[], Iterator[np.ndarray]]) -> StoredFeatures:
    """Writes an entry into a folder that does not exist yet, syncs and opens it.

    Raises:
      Damaged: the disk does not give back what was written.
      NotWritten: the disk cannot take it.
      ValueError: what is computed is not of the shape or type.
    """
    with writing():
        folder.mkdir()
    sha256 = write_array(folder / FEATURES, compute(), shape=wanted.shape)
    created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    facts = {"describe": wanted.describe, "created": created, **wanted.facts, "sha256": sha256}
    with writing():
        with open(folder / ENTRY, "x", encoding="utf-8") as file:
            file.write(json.dumps(facts, indent=2) + "\n")
            sync_file(file, folder / ENTRY)
        sync(folder)
    return open_entry(folder, wanted)


def open_entry(folder: Path, wanted: Wanted) -> StoredFeatures:
    """Opens an entry after verifying all of it.

    Raises:
      Damaged: it is not what was written, or another.
      FeatureCacheError: it cannot be opened for a reason that says nothing about it.
    """
    try:
        text = (folder / ENTRY).read_bytes()
    except OSError as error:
        raise unreadable(folder / ENTRY, error) from None
    try:
        facts = json.loads(text)
        if not isinstance(facts, dict):
            raise Damaged(f"{ENTRY} is no JSON object")
        for name, value in wanted.facts.items():
            # As text: Python takes 1, 1.0 and True for the same.
            if _canonical(facts.get(name)) != _canonical(value):
                found, expected = reprlib.repr(facts.get(name)), reprlib.repr(value)
                raise Damaged(f"{ENTRY} has {name} {found}, expected {expected}")
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{ENTRY} is no JSON: {error}") from None
    return StoredFeatures(folder / FEATURES, shape=wanted.shape, sha256=str(facts.get("sha256")))


def read_entry(folder: Path) -> Entry | None:
    """Returns what is known of an entry; None if entry.json is not that of this folder."""
    try:
        facts = json.loads((folder / ENTRY).read_bytes())
        if facts["format"] != FORMAT or _digest(_canonical(facts["key"])) != folder.name:
            return None
        return Entry(
            digest=folder.name,
            key=facts["key"],
            describe=str(facts["describe"]),
            num_bytes=(folder / FEATURES).stat().st_size,
            created=datetime.datetime.fromisoformat(facts["created"]),
            last_used=datetime.datetime.fromtimestamp((folder / ENTRY).stat().st_mtime, datetime.UTC),
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def last_use_and_size(folder: Path) -> tuple[int, int]:
    """Returns when an entry was last used, in nanoseconds, and the size of features.npy; 0 for what lacks."""

    def stat(name: str) -> os.stat_result | None:
        try:
            return os.stat(folder / name)
        except OSError:
            return None

    entry, features = stat(ENTRY), stat(FEATURES)
    return (entry.st_mtime_ns if entry else 0), (features.st_size if features else 0)


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
