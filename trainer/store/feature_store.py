"""What frozen networks computed, or decoders, kept on disk for later runs and shared by processes.

    <root>/<digest of the key>/features.npy   the numbers
                               entry.json     the key, and what the numbers must be
           <digest of the key>.lock           held by the process that computes them
           .<digest of the key>.*.tmp         being written, or being removed

An entry appears whole, by a rename, and is removed by one, so that nobody sees half of it.
"""

import contextlib
import datetime
import errno
import hashlib
import json
import logging
import math
import os
import re
import reprlib
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainer.store.array_file import (
    DTYPE,
    Damaged,
    FeatureCacheError,
    NotWritten,
    StoredFeatures,
    array_bytes,
    file_bytes,
    unreadable,
    write_array,
    writing,
)
from trainer.store.files import move, sync, sync_file
from trainer.store.lock import file_lock

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


__all__ = ["Entry", "FeatureCacheError", "FeatureStore", "StoredFeatures"]

_OURS = re.compile(r"[0-9a-f]{64}")
_LEFT_OVER = re.compile(r"\.?([0-9a-f]{64})(\.lock|\.[0-9a-f]{8}\.tmp)")
# For entry.json, the folder, and what file systems need for themselves.
_SPARE_BYTES = 1 << 16
_log = logging.getLogger("trainer")


class FeatureStore:
    """A folder of arrays of at most `limit_bytes` together; those used longest ago go first.

    Those that it gave by `get`, or is told of by `note_use`, are in use, and go last.
    """

    def __init__(
        self,
        root: Path,
        *,
        limit_bytes: int,
        name: str = "feature cache",
        while_waiting: Callable[[], None] | None = None,
    ):
        """Names the folder, which is created when something is written, and what messages call it.

        While another process computes what is wanted, `while_waiting` is called: it may raise to end that.
        """
        self._root, self._limit_bytes, self._name = root, limit_bytes, name
        self._while_waiting = while_waiting
        # It goes last, however long ago it was opened.
        self._in_use: set[str] = set()

    def get(
        self,
        key: Mapping[str, Any],
        *,
        num_rows: int,
        shape: tuple[int, ...],
        compute: Callable[[], Iterator[np.ndarray]],
        describe: str,
    ) -> StoredFeatures:
        """Returns the features [n, *shape] of a key, computed where they are not kept.

        All of a kept entry is verified. A damaged one is named in a warning and replaced. Where
        another process is computing the same, this one waits and reads what that one wrote.

        Args:
          key: everything that the features depend on, as JSON can say it.
          num_rows: n.
          shape: of the features of one picture.
          compute: yields blocks [b, *shape] float32, in order, n rows in all.
          describe: one line for people.

        Raises:
          FeatureCacheError: they cannot be kept: too large, no space, no permission, a disk that fails.
          TypeError: the key holds what JSON cannot say.
          ValueError: `compute` yields something else, or the key holds a number that JSON cannot say.
        """
        wanted = Wanted(key, shape=(num_rows, *shape), describe=describe)
        self._in_use.add(wanted.digest)
        # Without a lock first, which a folder that is only readable does not give.
        if kept := self.find(key, num_rows=num_rows, shape=shape):
            return kept
        self.require_limit(wanted.num_bytes, describe=describe)
        try:
            with writing():
                self._root.mkdir(parents=True, exist_ok=True)
            return self._get_locked(wanted, compute)
        except NotWritten as error:
            raise FeatureCacheError(
                f"{describe}: the {self._name} cannot write {wanted.num_bytes:,} bytes to {self._root}: "
                f"{error}; --cache_dir chooses another place"
            ) from None

    def require_limit(self, num_bytes: int, *, describe: str) -> None:
        """Makes sure that something of this size may be kept at all; `describe` says what it is, for people.

        Raises:
          FeatureCacheError: it alone is larger than the limit.
        """
        if num_bytes > self._limit_bytes:
            raise FeatureCacheError(
                f"{describe}: {num_bytes:,} bytes are more than the {self._name} "
                f"may hold ({self._limit_bytes:,} bytes, --cache_limit_gb={self._limit_bytes / 1e9:g})"
            )

    def find(self, key: Mapping[str, Any], *, num_rows: int, shape: tuple[int, ...]) -> StoredFeatures | None:
        """Returns what `get` has kept; None where there is nothing, or what cannot be read."""
        with contextlib.suppress(Damaged, FeatureCacheError):
            return self._open(Wanted(key, shape=(num_rows, *shape), describe=""))
        return None

    def note_use(self, key: Mapping[str, Any]) -> None:
        """Notes that what belongs to a key is in use, as what `get` gave is, wherever it comes from."""
        self._in_use.add(_digest(_canonical(key)))

    def has(self, key: Mapping[str, Any]) -> bool:
        """Returns whether there is an entry of a key; it is not read, and may be damaged."""
        return (self._root / _digest(_canonical(key)) / ENTRY).is_file()

    @contextlib.contextmanager
    def scratch(self, blocks: Iterator[np.ndarray]) -> Iterator[Callable[[], Iterator[np.ndarray]]]:
        """Keeps blocks [b, *shape] float32 in a file without a name for as long as a block of code lasts.

        Gives a function that yields them again, so that `get` may be told what took others to compute: no
        lock is held meanwhile.

        Raises:
          FeatureCacheError: there is no room for it, or no permission.
        """
        with contextlib.ExitStack() as stack:
            shapes: list[tuple[int, ...]] = []
            file: Any = None
            for block in blocks:
                try:
                    if file is None:
                        self._root.mkdir(parents=True, exist_ok=True)
                        file = stack.enter_context(tempfile.TemporaryFile(dir=self._root))
                    file.write(np.ascontiguousarray(block, DTYPE).data)
                except OSError as error:
                    raise FeatureCacheError(f"{self._root} takes no features: {error.strerror}") from None
                shapes.append(block.shape)

            def again() -> Iterator[np.ndarray]:
                file.seek(0)
                for shape in shapes:
                    data = file.read(DTYPE.itemsize * math.prod(shape))
                    yield np.frombuffer(data, DTYPE).reshape(shape)

            yield again

    def require_room(self, num_bytes: int, *, missing_bytes: int, describe: str) -> None:
        """Makes sure that several entries have room together, before the first of them is computed.

        Args:
          num_bytes: of all of them.
          missing_bytes: of those that are not there.
          describe: what they are, for people.

        Raises:
          FeatureCacheError: they are more than the limit, or than the disk takes.
        """
        self.require_limit(num_bytes, describe=describe)
        try:
            free = shutil.disk_usage(_existing(self._root)).free
        except OSError:
            return
        kept = sum(last_use_and_size(folder)[1] for folder in self._folders())
        # Beyond the limit, others go anyway.
        room = free + max(kept + missing_bytes - self._limit_bytes, 0)
        if room < missing_bytes:
            raise self._no_space(describe, missing_bytes, free)

    def mark(self, key: Mapping[str, Any]) -> None:
        """Notes that there may be pieces of what belongs to a key, for `is_marked`.

        Raises:
          FeatureCacheError: the folder cannot be written to.
        """
        try:
            with writing():
                self._root.mkdir(parents=True, exist_ok=True)
                self._mark(key).touch()
        except NotWritten as error:
            raise FeatureCacheError(f"the feature cache cannot write to {self._root}: {error}") from None

    def is_marked(self, key: Mapping[str, Any]) -> bool:
        """Returns whether there may be pieces of what belongs to a key."""
        return self._mark(key).exists()

    def _mark(self, key: Mapping[str, Any]) -> Path:
        return self._root / f"{_digest(_canonical(key))}.pieces"

    def entries(self) -> list[Entry]:
        """Returns what is kept, the last used first; files of others and damaged entries are left out."""
        found = [entry for folder in self._folders() if (entry := read_entry(folder))]
        return sorted(found, key=lambda entry: entry.last_used, reverse=True)

    def _get_locked(self, wanted: Wanted, compute: Callable[[], Iterator[np.ndarray]]) -> StoredFeatures:
        lock, doing = self._root / f"{wanted.digest}.lock", f"{self._name}, {wanted.describe}"
        with file_lock(lock, waiting_for=doing, while_waiting=self._while_waiting) as locked:
            self._remove_left_overs(wanted.digest if locked else "")
            try:
                if kept := self._open(wanted):
                    return kept
            except Damaged as damage:
                _log.warning(
                    "%s: %s is damaged, computing it anew: %s", doing, self._root / wanted.digest, damage
                )
                self._remove(wanted.digest)
            self._check_space(wanted)
            return self._write(wanted, compute)

    def _open(self, wanted: Wanted) -> StoredFeatures | None:
        folder = self._root / wanted.digest
        if not os.path.lexists(folder):
            return None
        try:
            kept = open_entry(folder, wanted)
        except Damaged:
            # Another process may have removed it meanwhile, to make room.
            if not os.path.lexists(folder):
                return None
            raise
        with contextlib.suppress(OSError):
            os.utime(folder / ENTRY)
        return kept

    def _write(self, wanted: Wanted, compute: Callable[[], Iterator[np.ndarray]]) -> StoredFeatures:
        scratch = self._new_name(wanted.digest)
        try:
            # Opened before it has its name: after that another process may remove it to make room.
            written = write_entry(scratch, wanted, compute)
            return self._publish(scratch, wanted) or written
        except Damaged as damage:
            raise FeatureCacheError(f"{self._root} does not give back what was written: {damage}") from None
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _publish(self, scratch: Path, wanted: Wanted) -> StoredFeatures | None:
        """Gives an entry its name, or returns the one that has it already: locks do not work everywhere."""
        # One at a time, or several together would exceed the limit.
        with file_lock(self._root / "commit.lock"), writing():
            for digest, _ in self._surplus(wanted):
                self._remove_to_make_room(digest)
            try:
                move(scratch, self._root / wanted.digest)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                with contextlib.suppress(Damaged):
                    return self._open(wanted)
            sync(self._root)
        return None

    def _check_space(self, wanted: Wanted) -> None:
        """Makes sure that a file fits on the disk, by removing what must go anyway if need be."""
        try:
            free = shutil.disk_usage(self._root).free
        except OSError:
            return
        needed, surplus = wanted.num_bytes + _SPARE_BYTES, self._surplus(wanted)
        if free >= needed:
            return
        if free + sum(size for _, size in surplus) < needed:
            raise self._no_space(wanted.describe, needed, free)
        for digest, _ in surplus:
            self._remove_to_make_room(digest)

    def _no_space(self, describe: str, needed: int, free: int) -> FeatureCacheError:
        return FeatureCacheError(
            f"{describe}: the {self._name} needs {needed:,} bytes in {self._root}, {free:,} are "
            "free; make room, or choose another place with --cache_dir"
        )

    def _surplus(self, wanted: Wanted) -> list[tuple[str, int]]:
        """Returns [(digest, bytes)] of those that must go for the limit to be kept."""
        folders = [folder for folder in self._folders() if folder.name != wanted.digest]
        kept = sorted((one.name in self._in_use, *last_use_and_size(one), one.name) for one in folders)
        over = wanted.num_bytes + sum(size for _, _, size, _ in kept) - self._limit_bytes
        surplus = []
        for _, _, size, digest in kept:
            if over <= 0:
                break
            surplus.append((digest, size))
            over -= size
        return surplus

    def _folders(self) -> list[Path]:
        try:
            return [path for path in self._root.iterdir() if _OURS.fullmatch(path.name)]
        except OSError:
            return []

    def _remove_to_make_room(self, digest: str) -> None:
        _log.info(
            "%s: removing %s to make room, it was not used for longest", self._name, self._root / digest
        )
        self._remove(digest)

    def _remove(self, digest: str) -> None:
        """Removes an entry. Those who read it have its file open, and go on."""
        aside = self._new_name(digest)
        with writing(), contextlib.suppress(FileNotFoundError):
            move(self._root / digest, aside)
        _delete(aside)

    def _remove_left_overs(self, locked: str) -> None:
        """Removes what dead processes left: a living one holds the lock of what it writes.

        Args:
          locked: the digest whose lock this process holds, or none.
        """
        try:
            found = [match for name in os.listdir(self._root) if (match := _LEFT_OVER.fullmatch(name))]
        except OSError:
            return
        for digest in {match[1] for match in found}:
            ours = contextlib.nullcontext(True)
            with ours if digest == locked else file_lock(self._root / f"{digest}.lock", wait=False) as dead:
                for match in found:
                    if dead and match[1] == digest and match[2] != ".lock":
                        _delete(self._root / match[0])

    def _new_name(self, digest: str) -> Path:
        return self._root / f".{digest}.{secrets.token_hex(4)}.tmp"


def _existing(path: Path) -> Path:
    """Returns the folder, or the nearest one above it that there is."""
    return next(place for place in (path, *path.absolute().parents) if place.exists())


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    with contextlib.suppress(OSError):
        path.unlink()
