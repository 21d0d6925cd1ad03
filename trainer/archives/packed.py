"""What an archive of unknown origin may hold: names that stay in one folder, and not too much of it."""

import lzma
import re
import struct
import tarfile
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path

MAX_BYTES = 20 * 10**9
MAX_FILES = 1_000_000
# Pictures hardly shrink when packed; what grows more than this beyond a free gigabyte is a bomb.
MAX_RATIO = 100
FREE_BYTES = 10**9

DAMAGE = (
    tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, RuntimeError,
    ValueError, LookupError, ArithmeticError,
)  # fmt: skip
"""What the readers of the standard library raise where an archive is damaged; or OSError without errno."""


class UnsafeError(Exception):
    """The archive holds what an archive of pictures has no need of."""


class UnreadableError(UnsafeError):
    """The archive is in order, and this program cannot read it."""


@dataclass
class Contents:
    """The files of an archive. Entries that are hidden, folders and copies of resource forks are left out.

    `targets` is {number of an entry: the paths that its bytes are for}, more than one where links lead
    to it; `num_bytes` is the size of all these files.
    """

    targets: dict[int, list[str]] = field(default_factory=dict)
    num_bytes: int = 0


def shown(path: str) -> str:
    """Returns a name as it can be printed, and not too long."""
    return repr(path) if len(path) <= 100 else repr(path[:90]) + f"... ({len(path):,} characters)"


class Tree:
    """The names of an archive, checked one by one and against one another."""

    def __init__(self) -> None:
        self.entries = 0
        self._files: set[str] = set()
        self._folders: set[str] = set()

    def parts(self, path: str) -> list[str]:
        """Returns the names in the path of an entry.

        Raises:
          UnsafeError: it leads out of the folder, or there are too many entries.
        """
        self.entries += 1
        if self.entries > MAX_FILES:
            raise UnsafeError(f"it holds more than {MAX_FILES:,} files")
        if path.startswith("/") or re.match(r"[A-Za-z]:", path):
            raise UnsafeError(f"{shown(path)} is an absolute path")
        parts = [part for part in path.split("/") if part not in ("", ".")]
        if ".." in parts:
            raise UnsafeError(f"{shown(path)} leads out of the folder")
        if "\0" in path:
            raise UnsafeError(f"{shown(path)} is no name of a file")
        return parts

    def add(self, parts: list[str]) -> str:
        """Returns the path of a file that is to be written.

        Raises:
          UnsafeError: there is another one of this name.
        """
        path = "/".join(parts)
        if path in self._files:
            raise UnsafeError(f"{shown(path)} is in it twice")
        above = ["/".join(parts[:depth]) for depth in range(1, len(parts))]
        for folder in above:
            if folder in self._files:
                raise UnsafeError(f"{shown(folder)} is both a file and a folder")
        if path in self._folders:
            raise UnsafeError(f"{shown(path)} is both a file and a folder")
        self._files.add(path)
        self._folders.update(above)
        return path


def is_hidden(parts: list[str]) -> bool:
    """Returns whether an entry is left out, as hidden files and copies of resource forks are."""
    return not parts or any(part.startswith(".") or part == "__MACOSX" for part in parts)


def check_size(archive: Path, num_bytes: int) -> None:
    """Makes sure that an archive is no bomb.

    Args:
      archive: the file.
      num_bytes: what comes, or is said to come, out of it.

    Raises:
      UnsafeError: that is too much for its size.
    """
    packed = archive.stat().st_size
    limit = min(MAX_BYTES, max(FREE_BYTES, MAX_RATIO * packed))
    if num_bytes > limit:
        raise UnsafeError(f"its {packed:,} bytes unpack to more than {limit:,}")
