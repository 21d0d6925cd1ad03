"""What frozen networks computed, kept on disk for later runs and shared by processes.

    <root>/<digest of the key>/features.npy   the numbers
                               entry.json     the key, and what the numbers must be
           <digest of the key>.lock           held by the process that computes them
           .<digest of the key>.*.tmp         being written, or being removed

An entry appears whole, by a rename, and is removed by one, so that nobody sees half of it.
"""

import contextlib
import errno
import logging
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trainer.data.array_file import Damaged, FeatureCacheError, NotWritten, StoredFeatures, writing
from trainer.data.feature_entry import (
    ENTRY,
    Entry,
    Wanted,
    last_use_and_size,
    open_entry,
    read_entry,
    write_entry,
)
from trainer.file_lock import file_lock
from trainer.files import move, sync

__all__ = ["Entry", "FeatureCacheError", "FeatureStore", "StoredFeatures"]

_OURS = re.compile(r"[0-9a-f]{64}")
_LEFT_OVER = re.compile(r"\.?([0-9a-f]{64})(\.lock|\.[0-9a-f]{8}\.tmp)")
# For entry.json, the folder, and what file systems need for themselves.
_SPARE_BYTES = 1 << 16
_log = logging.getLogger("trainer")


class FeatureStore:
    """A folder of arrays of at most `limit_bytes` together; those used longest ago go first."""

    def __init__(self, root: Path, *, limit_bytes: int):
        """Names the folder, which is created when something is written."""
        self._root, self._limit_bytes = root, limit_bytes

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
        # Without a lock first, which a folder that is only readable does not give.
        with contextlib.suppress(Damaged):
            if kept := self._open(wanted):
                return kept
        self._check_limit(wanted)
        try:
            with writing():
                self._root.mkdir(parents=True, exist_ok=True)
            return self._get_locked(wanted, compute)
        except NotWritten as error:
            raise FeatureCacheError(
                f"{describe}: the feature cache cannot write {wanted.num_bytes:,} bytes to {self._root}: "
                f"{error}; --cache_dir chooses another place"
            ) from None

    def entries(self) -> list[Entry]:
        """Returns what is kept, the last used first; files of others and damaged entries are left out."""
        found = [entry for folder in self._folders() if (entry := read_entry(folder))]
        return sorted(found, key=lambda entry: entry.last_used, reverse=True)

    def _get_locked(self, wanted: Wanted, compute: Callable[[], Iterator[np.ndarray]]) -> StoredFeatures:
        lock, doing = self._root / f"{wanted.digest}.lock", f"feature cache, {wanted.describe}"
        with file_lock(lock, waiting_for=doing) as locked:
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

    def _check_limit(self, wanted: Wanted) -> None:
        if wanted.num_bytes > self._limit_bytes:
            raise FeatureCacheError(
                f"{wanted.describe}: {wanted.num_bytes:,} bytes of features are more than the feature cache "
                f"may hold ({self._limit_bytes:,} bytes, --cache_limit_gb={self._limit_bytes / 1e9:g})"
            )

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
            raise FeatureCacheError(
                f"{wanted.describe}: the feature cache needs {needed:,} bytes in {self._root}, {free:,} are "
                "free; make room, or choose another place with --cache_dir"
            )
        for digest, _ in surplus:
            self._remove_to_make_room(digest)

    def _surplus(self, wanted: Wanted) -> list[tuple[str, int]]:
        """Returns [(digest, bytes)] of those that must go for the limit to be kept."""
        folders = [folder for folder in self._folders() if folder.name != wanted.digest]
        kept = sorted((*last_use_and_size(folder), folder.name) for folder in folders)
        over = wanted.num_bytes + sum(size for _, size, _ in kept) - self._limit_bytes
        surplus = []
        for _, size, digest in kept:
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
        _log.info("feature cache: removing %s to make room, it was not used for longest", self._root / digest)
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


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    with contextlib.suppress(OSError):
        path.unlink()
