"""Zips."""

import itertools
import stat
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from trainer.archives.packed import Contents, Tree, UnsafeError, check_size, is_hidden, shown

_CHUNK = 1 << 20
_IS_ENCRYPTED = 1


def is_zip(archive: Path) -> bool:
    """Returns whether a file is a zip; a tar that ends in one is none.

    Raises:
      OSError: it cannot be read.
    """
    if not zipfile.is_zipfile(archive):
        return False
    with open(archive, "rb") as file:
        try:
            tarfile.TarInfo.frombuf(file.read(tarfile.BLOCKSIZE), "utf-8", "surrogateescape")
        except tarfile.HeaderError:
            return True
    return False


def look_through_zip(archive: Path) -> Contents:
    """Checks the names and sizes in the directory of a zip.

    Raises:
      UnsafeError: it is not safe to unpack, or a bomb.
      OSError: it cannot be read.
      DAMAGE: it is damaged.
    """
    contents, tree = Contents(), Tree()
    with zipfile.ZipFile(archive) as packed:
        for number, info in enumerate(packed.infolist()):
            path = _path(info)
            parts = tree.parts(path)
            if stat.S_ISLNK(info.external_attr >> 16):
                raise UnsafeError(f"{shown(path)} is a link")
            if path.endswith("/") or is_hidden(parts):
                continue
            if info.flag_bits & _IS_ENCRYPTED:
                raise UnsafeError(f"{shown(path)} is encrypted")
            contents.targets[number] = [tree.add(parts)]
            contents.num_bytes += info.file_size
        # The reader stops at the size that is declared.
        check_size(archive, contents.num_bytes)
        for one, next_one in itertools.pairwise(
            sorted(packed.infolist(), key=lambda info: info.header_offset)
        ):
            if one.header_offset + one.compress_size > next_one.header_offset:
                raise UnsafeError(f"{shown(_path(one))} and {shown(_path(next_one))} share bytes")
    return contents


def zip_files(archive: Path, contents: Contents) -> Iterator[tuple[list[str], Iterable[bytes]]]:
    """Yields (paths, bytes in parts) of the files that `look_through_zip` found, one after the other.

    Raises:
      As `look_through_zip`.
    """
    with zipfile.ZipFile(archive) as packed:
        for number, info in enumerate(packed.infolist()):
            if number in contents.targets:
                with packed.open(info) as stream:
                    yield contents.targets[number], _parts(stream)


def _parts(stream: IO[bytes]) -> Iterator[bytes]:
    while chunk := stream.read(_CHUNK):
        yield chunk


def _path(info: zipfile.ZipInfo) -> str:
    # Some Windows tools write backslashes, against the standard.
    return info.filename.replace("\\", "/")
