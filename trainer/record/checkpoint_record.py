"""The record of a checkpoint: what its files must be. Standard library only."""

import errno
import json
import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.values import TrainerError

FORMAT = 2
NAME = r"[a-z]+-(?:0|[1-9]\d{0,17})"
FILE = re.compile(rf"({NAME})\.(json|index|data-\d{{5}}-of-\d{{5}})")
# What reading gives where a file is not a file, or on a bad disk.
_DAMAGE = {errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EIO, errno.EBADMSG}
if hasattr(errno, "EUCLEAN"):  # Not on macOS.
    _DAMAGE.add(errno.EUCLEAN)

Files = Mapping[str, Mapping[str, Any]]
"""{name of a file: {"bytes": its size, "sha256": 64 hex digits}}"""


class Damaged(Exception):
    """A checkpoint is not what was written; the message says which of its files, and how."""


class OtherFormat(TrainerError):
    """A checkpoint is of another version of the program."""


@dataclass(frozen=True)
class Record:
    """What a checkpoint must be. Without times, so that the same run leaves the same bytes.

    Attributes:
      step: number of updates; of a base, the first at which it is one.
      files: all but the record.
      base_name, base_files: the checkpoint that holds the rest; None and {} if there is none.
    """

    step: int
    files: Files
    base_name: str | None
    base_files: Files

    def to_json(self) -> dict[str, Any]:
        """Returns what goes into the file."""
        base = self.base_name and {"name": self.base_name, "files": self.base_files}
        return {"format": FORMAT, "step": self.step, "files": self.files, "base": base}


def read_record(path: Path) -> Record:
    """Reads NAME.json, the record of the checkpoint NAME.

    Raises:
      Damaged: it is missing, or is not one.
      OtherFormat: it is of another version.
      TrainerError: it cannot be read for a reason that says nothing about it.
    """
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise unreadable(path, error) from None
    except (ValueError, RecursionError):
        raise Damaged(f"{path.name} is no JSON") from None
    number = found.get("format") if isinstance(found, dict) else None
    if type(number) is int and number != FORMAT:
        age = "newer" if number > FORMAT else "older"
        raise OtherFormat(
            f"checkpoint {path} has format {reprlib.repr(number)}, {age} than the {FORMAT} that this version "
            "reads: use the version that wrote it, or another --workdir"
        )
    try:
        return _checked(found, path.stem)
    except ValueError as error:
        raise Damaged(f"{path.name} is not as it was written: {error}") from None


def unreadable(path: Path, error: OSError) -> Damaged | TrainerError:
    """Returns what to raise when a file could not be read: the first where it is the file's fault."""
    if error.errno == errno.ENOENT:
        return Damaged(f"{path.name} is missing")
    if error.errno in _DAMAGE:
        return Damaged(f"{path.name}: {error.strerror}")
    return TrainerError(f"checkpoint {path} cannot be read: {error.strerror}")


def _checked(found: Any, name: str) -> Record:
    if not isinstance(found, dict) or found.keys() != {"format", "step", "files", "base"}:
        raise ValueError("it does not hold format, step, files and base")
    step, base = found["step"], found["base"]
    # Python takes True for 1.
    if type(found["format"]) is not int:
        raise ValueError(f"format {reprlib.repr(found['format'])}")
    if type(step) is not int or step < 0 or (name.startswith("ckpt-") and name != f"ckpt-{step}"):
        raise ValueError(f"step {reprlib.repr(step)}")
    files = _checked_files(found["files"], name)
    if base is None:
        return Record(step, files, None, {})
    if not isinstance(base, dict) or base.keys() != {"name", "files"}:
        raise ValueError("it does not hold name and files of the base")
    if not isinstance(base["name"], str) or not re.fullmatch(NAME, base["name"]):
        raise ValueError(f"a base called {reprlib.repr(base['name'])}")
    return Record(step, files, base["name"], _checked_files(base["files"], base["name"]))


def _checked_files(found: Any, name: str) -> Files:
    if not isinstance(found, dict) or f"{name}.index" not in found or len(found) < 2:
        raise ValueError(f"it does not list the files of {name}")
    for file, facts in found.items():
        match = FILE.fullmatch(file)
        if not match or match[1] != name or match[2] == "json":
            raise ValueError(f"{reprlib.repr(file)} is no file of {name}")
        if not isinstance(facts, dict) or facts.keys() != {"bytes", "sha256"}:
            raise ValueError(f"it does not hold bytes and SHA-256 of {file}")
        is_digest = isinstance(facts["sha256"], str) and re.fullmatch("[0-9a-f]{64}", facts["sha256"])
        if type(facts["bytes"]) is not int or not is_digest:
            raise ValueError(f"bytes or SHA-256 of {file}")
    return found
