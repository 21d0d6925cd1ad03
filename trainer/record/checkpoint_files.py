"""Checkpoints as files: those that TensorFlow writes, and a record beside them that makes them count.

    ckpt-9.data-00000-of-00001, ckpt-9.index   as TensorFlow writes them
    ckpt-9.json                                the record: their sizes and SHA-256, and those of the base
    checkpoint                                 TensorFlow's list of the checkpoints in the folder
    .part-*                                    being written
    .whole-ckpt-9                              written, and not yet in place of another one of step 9

The record comes last and goes first: what a process leaves behind that dies in the middle of anything has
none, or one that does not match. Standard library only.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import reprlib
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.store.files import PART_PREFIX, move, remove_parts, sync, write_json, write_text
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


_log = logging.getLogger("trainer")
_LIST = "checkpoint"
_WHOLE_PREFIX = ".whole-"
# Within a step of a file system's clock, a file may change and keep its time. FAT counts in 2 s and exFAT in
# 10 ms, of which all times are multiples; others go by the ticks of the system, of 10 ms at most.
_COARSE_NS, _STEP_OF_COARSE_NS, _STEP_NS = 10_000_000, 2_000_000_000, 50_000_000


class CheckpointFolder:
    """Checkpoints side by side, each under a name such as ckpt-9. One process writes at a time."""

    def __init__(self, path: Path):
        self.path = path
        self._digests: dict[str, tuple[tuple[int, ...], str]] = {}

    def names(self) -> list[str]:
        """Returns the names of the checkpoints that were finished, by number, damaged since or not."""
        listed = self._listed()
        found = [name for name, endings in self._found().items() if "json" in endings or name in listed]
        return sorted(found, key=lambda name: int(name.rsplit("-", 1)[1]))

    def read(self, name: str) -> Record:
        """Returns the record of a checkpoint.

        Raises:
          Damaged, OtherFormat, TrainerError: as `read_record`.
        """
        return read_record(self.path / f"{name}.json")

    def check(self, name: str) -> Record:
        """Returns the record of a checkpoint after comparing all its files with it.

        Raises:
          Damaged, OtherFormat, TrainerError: as `read_record` and `check_files`.
        """
        record = self.read(name)
        self.check_files(record.files)
        return record

    def check_files(self, files: Files) -> None:
        """Compares files with what a record says of them.

        Raises:
          Damaged: one differs; the message names it.
          TrainerError: one cannot be read for a reason that says nothing about it.
        """
        for file, expected in files.items():
            path = self.path / file
            try:
                found = os.stat(path)
                if not stat.S_ISREG(found.st_mode):
                    raise Damaged(f"{file} is no file")
                if found.st_size != expected["bytes"]:
                    raise Damaged(f"{file} has {found.st_size:,} bytes, {expected['bytes']:,} were written")
                if self._digest(path) != expected["sha256"]:
                    raise Damaged(f"the bytes of {file} are not those that were written")
            except OSError as error:
                raise unreadable(path, error) from None

    def write(
        self, name: str, how: Callable[[str], Any], *, step: int, base: tuple[str, Files] | None = None
    ) -> Files:
        """Writes a checkpoint, so that a process that dies meanwhile leaves no less than there was.

        Everything is written, synced and recorded in a folder of its own. If what is in place is whole and
        the very same, that is all: an update made twice gives the same bytes. If it is damaged, or there is
        none, the files take their places, the record last. If it is whole but another, it is not touched
        before the new one is safe under a lasting name, from where `tidy` would finish it.

        Args:
          name: of the checkpoint.
          how: writes TensorFlow's files, given the path that their names begin with.
          step: see `Record`.
          base: name and files of the checkpoint that holds the rest.

        Returns:
          Its files.

        Raises:
          OSError: the disk cannot take it.
          OtherFormat: in its place is one of another version, which is left alone.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        folder = part = Path(tempfile.mkdtemp(prefix=PART_PREFIX, dir=self.path))
        try:
            old = None
            with contextlib.suppress(Damaged):
                old = self.check(name)
            how(str(part / name))
            files = {file: _synced(part / file) for file in sorted(filter(FILE.fullmatch, os.listdir(part)))}
            new = Record(step, files, *(base or (None, {})))
            if new != old:
                write_json(part / f"{name}.json", new.to_json())
                if old is not None:
                    folder = self.path / f"{_WHOLE_PREFIX}{name}"
                    move(part, folder)
                    sync(self.path)
                self._put_in_place(folder, name)
            return files
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def keep(self, names: Collection[str], *, among: Collection[str]) -> None:
        """Lists `names`, the newest last, for TensorFlow, and removes the others of `among`.

        What is of another version of the program stays.
        """
        newest = list(names)[-1]
        lines = [f'model_checkpoint_path: "{newest}"', *(f'all_model_checkpoint_paths: "{n}"' for n in names)]
        # First, so that nothing is listed that is no longer there.
        write_text(self.path / _LIST, "\n".join(lines) + "\n")
        for name in {*among} - {*names}:
            with contextlib.suppress(OtherFormat):
                with contextlib.suppress(Damaged):
                    self.read(name)
                self._remove(name)

    def tidy(self, *, spare: Collection[str] | None = ()) -> None:
        """Finishes or removes what a process left behind that died while it was writing.

        Args:
          spare: checkpoints without a record that are not to be removed; None: none is.
        """
        for whole in self.path.glob(f"{_WHOLE_PREFIX}*"):
            self._put_in_place(whole, whole.name.removeprefix(_WHOLE_PREFIX))
        remove_parts(self.path)
        if spare is not None:
            for name in sorted(self._found().keys() - {*self.names(), *spare}):
                self._remove(name)
                _log.info("removed %s, which was not finished", self.path / name)

    def _put_in_place(self, folder: Path, name: str) -> None:
        record = f"{name}.json"
        # Without it, all had been moved when a process died here. Halfway, files and record do not match,
        # which is noticed as any damage is.
        if (folder / record).exists():
            for file in sorted(os.listdir(folder)):
                if file != record:
                    move(folder / file, self.path / file)
            sync(self.path)
            move(folder / record, self.path / record)
            # The first checkpoint's folder is new itself.
            sync(self.path)
            sync(self.path.parent)
        shutil.rmtree(folder)

    def _remove(self, name: str) -> None:
        for ending in sorted(self._found().get(name, ()), key=lambda ending: ending != "json"):
            (self.path / f"{name}.{ending}").unlink(missing_ok=True)

    def _found(self) -> dict[str, set[str]]:
        """Returns {name: endings of its files}."""
        found: dict[str, set[str]] = {}
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            for match in filter(None, map(FILE.fullmatch, os.listdir(self.path))):
                found.setdefault(match[1], set()).add(match[2])
        return found

    def _listed(self) -> set[str]:
        """Returns the names in TensorFlow's list, which come there after their records.

        One that is listed without a record has lost it, or is of the first version of the program, which
        wrote none: it was finished all the same.
        """
        try:
            text = (self.path / _LIST).read_bytes().decode(errors="replace")
        except OSError:
            return set()
        return set(re.findall(rf'"(?:[^"\n]*/)?({NAME})"', text))

    def _digest(self, path: Path) -> str:
        """Returns the SHA-256 of a file; it is read once as long as it is the same by its stamp."""
        with open(path, "rb") as file:
            found = os.fstat(file.fileno())
            # A time that is set does not change when it was set, which is st_ctime.
            stamp = (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
            if path.name not in self._digests or self._digests[path.name][0] != stamp:
                may_change_unseen = not _is_settled(found)
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                if may_change_unseen:
                    return digest
                self._digests[path.name] = (stamp, digest)
        return self._digests[path.name][1]


def _is_settled(found: os.stat_result) -> bool:
    """Returns whether a file that changes from now on has another time than that of its last change."""
    changed = max(found.st_mtime_ns, found.st_ctime_ns)
    step = _STEP_NS if changed % _COARSE_NS else _STEP_OF_COARSE_NS
    return changed < time.time_ns() - step


def _synced(path: Path) -> dict[str, Any]:
    """Makes sure that a file is on disk, and returns what a record says of it."""
    sync(path)
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}
