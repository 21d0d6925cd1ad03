"""Tars, packed or not, read forwards only.

Reading goes through a tar twice, first for names and sizes: links would otherwise lead back and forth in
what is packed, and each way back unpacks all from the beginning.
"""

import bz2
import contextlib
import gzip
import lzma
import posixpath
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from trainer.archives.packed import Contents, Tree, UnsafeError, check_size, is_hidden, shown

# Also the longest header that is read: tarfile searches headers in a time that is quadratic.
_CHUNK = 1 << 15
_PACKERS: dict[bytes, Callable[[IO[bytes]], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
}
_PAGES = (b"<!doctype", b"<html", b"<?xml")


class _Forwards:
    """What tarfile reads from. A header that leads backwards would be read for ever."""

    def __init__(self, stream: IO[bytes]):
        self._stream = stream
        self.last = b""

    def tell(self) -> int:
        return self._stream.tell()

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _CHUNK:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        self.last = self._stream.read(size)
        return self.last

    def seek(self, position: int) -> None:
        if position < self._stream.tell():
            raise tarfile.ReadError("a header that leads backwards")
        self._stream.seek(position)


@contextlib.contextmanager
def _opened_tar(archive: Path) -> Iterator[tuple[tarfile.TarFile, _Forwards]]:
    with open(archive, "rb") as file:
        start = file.read(1000)
        file.seek(0)
        if not start:
            raise tarfile.ReadError("it is empty (0 bytes)")
        if start.lstrip().lower().startswith(_PAGES):
            raise tarfile.ReadError("it is a web page, perhaps one to sign in on")
        opened = next((unpack for magic, unpack in _PACKERS.items() if start.startswith(magic)), None)
        with opened(file) if opened else contextlib.nullcontext(file) as stream:
            forwards = _Forwards(stream)
            with tarfile.open(fileobj=forwards, mode="r:") as packed:  # type: ignore[call-overload]
                yield packed, forwards


def _members(archive: Path, packed: tarfile.TarFile, stream: _Forwards) -> Iterator[tarfile.TarInfo]:
    while (member := packed.next()) is not None:
        # It keeps them all, which for a million files is a gigabyte.
        packed.members.clear()  # type: ignore[attr-defined]
        # Before what lies in between is unpacked, only to be skipped.
        check_size(archive, member.offset_data + member.size)
        yield member
    # To tarfile, a damaged header and the end of the file are ends like any other.
    if not stream.last:
        raise tarfile.ReadError("it ends too early")
    if stream.last.strip(b"\0"):
        raise tarfile.ReadError("a header in it is damaged")
    # The checksum of what is packed comes behind it.
    while chunk := stream.read(_CHUNK):
        check_size(archive, stream.tell())
        if chunk.strip(b"\0"):
            raise tarfile.ReadError("something comes after its end")


def look_through_tar(archive: Path) -> Contents:
    """Reads a .tar, .tgz, .tar.bz2 or .tar.xz to its end and checks all names and sizes.

    Raises:
      UnsafeError: it is not safe to unpack, or a bomb.
      OSError: it cannot be read; without errno, it is damaged.
      DAMAGE: it is damaged, or something else.
    """
    contents, tree = Contents(), Tree()
    files: dict[str, tuple[int, int]] = {}
    links: dict[str, tuple[str, str]] = {}
    wanted: list[str] = []
    with _opened_tar(archive) as (packed, stream):
        for number, member in enumerate(_members(archive, packed, stream)):
            parts = tree.parts(member.name)
            if member.isdir():
                continue
            if member.issparse() or not (member.isreg() or member.issym() or member.islnk()):
                raise UnsafeError(f"{shown(member.name)} is a device, a pipe or stored with holes")
            path = "/".join(parts)
            if member.isreg():
                files[path] = number, member.size
            else:
                # A symbolic link is read from where it lies, a hard one from the top.
                start = posixpath.dirname(path) if member.issym() else ""
                links[path] = posixpath.normpath(posixpath.join(start, member.linkname)), member.linkname
            if not is_hidden(parts):
                wanted.append(tree.add(parts))
    for path in wanted:
        number, size = files[_followed(path, files, links)]
        contents.targets.setdefault(number, []).append(path)
        contents.num_bytes += size
    check_size(archive, contents.num_bytes)
    return contents


def _followed(
    path: str, files: dict[str, tuple[int, int]], links: dict[str, tuple[str, str]], limit: int = 40
) -> str:
    """Returns the file of an archive that a path leads to, over as many links as Linux would follow."""
    at = path
    for _ in range(limit):
        if at in files:
            return at
        if at not in links:
            break
        at = links[at][0]
    raise UnsafeError(f"{shown(path)} links to no file in it: {shown(links[path][1])}")


def tar_files(archive: Path, contents: Contents) -> Iterator[tuple[list[str], Iterable[bytes]]]:
    """Yields (paths, bytes in parts) of the files that `look_through_tar` found, one after the other.

    Raises:
      As `look_through_tar`.
    """
    with _opened_tar(archive) as (packed, stream):
        for number, member in enumerate(_members(archive, packed, stream)):
            if number in contents.targets:
                stream.seek(member.offset_data)
                yield contents.targets[number], _parts(stream, member.size)


def _parts(stream: _Forwards, size: int) -> Iterator[bytes]:
    while size:
        chunk = stream.read(min(size, _CHUNK))
        if not chunk:
            raise EOFError("it ends in the middle of a file")
        size -= len(chunk)
        yield chunk
