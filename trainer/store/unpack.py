"""Archives of unknown origin unpacked: regular files alone, in one folder alone, and not too much of it.

Reading goes through a tar twice, first for names and sizes: links would otherwise lead back and forth in
what is packed, and each way back unpacks all from the beginning.
"""

import bz2
import contextlib
import errno
import gzip
import itertools
import logging
import lzma
import os
import posixpath
import re
import shutil
import stat
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from trainer.store.files import PART_PREFIX, move, require_room, set_mode
from trainer.store.lock import file_lock
from trainer.store.system_names import is_system
from trainer.values import TrainerError

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
    """The files of an archive. Folders are left out, and what is hidden or of a system.

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
    """Returns whether an entry is left out, as hidden files are and what systems leave behind."""
    return not parts or any(map(is_system, parts))


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


# Also the longest header that is read: tarfile searches headers in a time that is quadratic.
_TAR_CHUNK_BYTES = 1 << 15
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
        if not 0 <= size <= _TAR_CHUNK_BYTES:
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
    while chunk := stream.read(_TAR_CHUNK_BYTES):
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
                yield contents.targets[number], _tar_parts(stream, member.size)


def _tar_parts(stream: _Forwards, size: int) -> Iterator[bytes]:
    while size:
        chunk = stream.read(min(size, _TAR_CHUNK_BYTES))
        if not chunk:
            raise EOFError("it ends in the middle of a file")
        size -= len(chunk)
        yield chunk


_log = logging.getLogger("trainer")
_ZIP_CHUNK_BYTES = 1 << 20
_IS_ENCRYPTED = 1
_IS_UTF8 = 0x800
_UNICODE_PATH = 0x7075
# In code page 437 half of the upper bytes draw boxes and formulas, which nobody calls a folder.
_BOXES = re.compile("[\u2310\u2500-\u259f\u25a0\u2190-\u22ff\u2320\u2321]")
# What the standard library unpacks; each of the others has a number, and some of them a name.
_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA}
_OTHER_METHODS = {1: "Shrink", 6: "Implode", 9: "Deflate64", 93: "Zstandard", 95: "XZ", 98: "PPMd"}


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
        paths = _paths(packed.infolist())
        for number, (info, path) in enumerate(zip(packed.infolist(), paths, strict=True)):
            parts = tree.parts(path)
            if stat.S_ISLNK(info.external_attr >> 16):
                raise UnsafeError(f"{shown(path)} is a link")
            if path.endswith("/") or is_hidden(parts):
                continue
            if info.flag_bits & _IS_ENCRYPTED:
                raise UnreadableError(f"{shown(path)} is encrypted")
            if info.compress_type not in _METHODS:
                method = _OTHER_METHODS.get(info.compress_type, f"method {info.compress_type}")
                raise UnreadableError(f"{shown(path)} is compressed with {method}, which Python cannot read")
            contents.targets[number] = [tree.add(parts)]
            contents.num_bytes += info.file_size
        # The reader stops at the size that is declared.
        check_size(archive, contents.num_bytes)
        for one, next_one in itertools.pairwise(
            sorted(packed.infolist(), key=lambda info: info.header_offset)
        ):
            if one.header_offset + one.compress_size > next_one.header_offset:
                raise UnsafeError(f"{shown(one.filename)} and {shown(next_one.filename)} share bytes")
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
                    yield contents.targets[number], _zip_parts(stream)


def _zip_parts(stream: IO[bytes]) -> Iterator[bytes]:
    while chunk := stream.read(_ZIP_CHUNK_BYTES):
        yield chunk


def _paths(infos: list[zipfile.ZipInfo]) -> list[str]:
    """Returns the paths in a zip, with the names that they had where it was packed.

    Of names that do not say so, those are UTF-8 that can be; the rest is code page 437 by the standard, which
    tools on Windows keep to where that is the code page of the system, and nowhere else.

    Raises:
      UnreadableError: names of folders, which may be those of classes, are neither.
    """
    raw = [_raw_name(info) for info in infos]
    unknown = [name for name, known in raw if not known and not name.isascii()]
    try:
        for name in unknown:
            name.decode("utf-8")
        encoding = "utf-8"
    except UnicodeDecodeError:
        encoding = "cp437"
    paths = []
    for name, known in raw:
        # Some Windows tools write backslashes, against the standard.
        path = (known or name.decode(encoding)).replace("\\", "/")
        folder = path.rpartition("/")[0]
        if not known and encoding == "cp437" and _BOXES.search(folder):
            raise UnreadableError(
                f"{shown(path)} is a name in an encoding that the zip does not tell, such as GBK or Shift "
                "JIS (unzip -O gbk unpacks such)"
            )
        paths.append(path)
    folders = {path.rpartition("/")[0] for path, (name, known) in zip(paths, raw, strict=True) if not known}
    strange = sorted(folder for folder in folders if not folder.isascii()) if encoding == "cp437" else []
    if strange:
        _log.warning(
            "names in the zip do not tell their encoding and are read as code page 437, such as %s: if that "
            "is wrong, unpack it by hand",
            shown(strange[0]),
        )
    return paths


def _raw_name(info: zipfile.ZipInfo) -> tuple[bytes, str]:
    """Returns the bytes of a name, and the name where its encoding is known, or else ''."""
    if info.flag_bits & _IS_UTF8:
        return b"", info.orig_filename
    raw = info.orig_filename.encode("cp437")
    extra = info.extra
    # Records of two bytes that say what it is, two with its length, and so many bytes.
    while len(extra) >= 4:
        kind, size = struct.unpack("<HH", extra[:4])
        # A version, the CRC-32 of the name that it stands for, and the name.
        if kind == _UNICODE_PATH and size > 5 and struct.unpack("<L", extra[5:9]) == (zlib.crc32(raw),):
            return raw, extra[9 : 4 + size].decode("utf-8")
        extra = extra[4 + size :]
    return raw, ""


UNPACKING_PREFIX = ".unpacking-"
# What a process that died left behind. The groups are the keys, under whose locks it was made.
_LEFT_OVER = re.compile(
    rf"(?:{re.escape(PART_PREFIX)}|{re.escape(UNPACKING_PREFIX)})([0-9a-f]{{16}})-.*|([0-9a-f]{{16}})\.lock"
)
# What a file system says of a name that it cannot take, or that it takes for another one's.
_NAME_ERRORS = (errno.EEXIST, errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ, errno.ENOTDIR, errno.EISDIR)


class BadArchiveError(TrainerError):
    """The archive itself is damaged or unsafe: no other place or permission helps."""


def unpack(
    archive: Path,
    target: Path,
    *,
    flag: str,
    by_hand: str,
    what: str = "",
    key: str = "",
    check: Callable[[Path], Path] | None = None,
) -> None:
    """Unpacks a .tar (also .gz, .bz2, .xz) or .zip; `target` appears at the end, whole, or not at all.

    Links to files inside a tar become copies; no link is ever made. What is hidden or of a system is left
    out. The limits on sizes are checked before anything is written, and again with every part that is.

    Args:
      archive: the file; its kind is told by its content.
      target: a folder that does not exist yet, or is empty; its parent does.
      flag: what messages begin with, such as `--source=archive:x.tgz`.
      by_hand: what to give instead for what was unpacked by hand, such as `--source=folder:PATH`.
      what: what messages call the archive; by default its path.
      key: a part of the temporary name; see `remove_left_overs`.
      check: maps the folder that was unpacked to the one below or at it that becomes `target`; raises
        BadArchiveError where the archive holds something else.

    Raises:
      BadArchiveError: the archive is damaged, unsafe or too large.
      TrainerError: the disk cannot take it.
    """
    what = what or str(archive)
    scratch: Path | None = None
    try:
        scratch = Path(tempfile.mkdtemp(prefix=f"{UNPACKING_PREFIX}{key}-", dir=target.parent))
        set_mode(scratch, 0o755)
        _write_all(archive, scratch, flag=flag, what=what)
        wanted = check(scratch) if check else scratch
        # A folder that is there counts as whole, so its files must reach the disk before its name.
        os.sync()
        with contextlib.suppress(FileExistsError):
            _rename(wanted, target)
    except UnsafeError as error:
        raise BadArchiveError(
            f"{flag}: {what} is not unpacked: {error}. "
            f"{'Unpack' if isinstance(error, UnreadableError) else 'If you trust it, unpack'} it by hand and "
            f"give {by_hand}"
        ) from None
    except OSError as error:
        # gzip and bz2 say so that the data are wrong; a zip may lead to before its beginning.
        if error.errno in (None, errno.EINVAL):
            raise _damaged(what, flag, error) from None
        raise TrainerError(
            f"{flag}: cannot unpack {what} into {target.parent}: {error.strerror}; --cache_dir "
            "chooses another place"
        ) from None
    except DAMAGE as error:
        raise _damaged(what, flag, error) from None
    finally:
        if scratch:
            shutil.rmtree(scratch, ignore_errors=True)


def _rename(scratch: Path, target: Path) -> None:
    try:
        move(scratch, target)
    except OSError:
        if not target.is_dir():  # Otherwise another process was faster, with the same content.
            raise


def _damaged(what: str, flag: str, error: Exception) -> BadArchiveError:
    ended = "it ends too early" if isinstance(error, EOFError) else type(error).__name__
    reason = " ".join(str(error).split()) or ended
    return BadArchiveError(
        f"{flag}: {what} is damaged or no .tgz, .tar or .zip: {reason[:300]}; get it anew, or give another "
        f"{flag.partition('=')[0]}"
    )


def _write_all(archive: Path, folder: Path, *, flag: str, what: str) -> None:
    zipped = is_zip(archive)
    contents = look_through_zip(archive) if zipped else look_through_tar(archive)
    try:
        require_room(folder.parent, contents.num_bytes, what=f"{what}, unpacked,")
    except TrainerError as error:
        raise TrainerError(f"{flag}: {error}; make room there, or set --cache_dir") from None
    left = contents.num_bytes
    for (first, *others), chunks in (zip_files if zipped else tar_files)(archive, contents):
        left = write_file(folder, first, chunks, limit_bytes=left)
        for path in others:
            left = write_file(folder, path, _chunks_of(folder / first), limit_bytes=left)


def write_file(folder: Path, path: str, chunks: Iterable[bytes], *, limit_bytes: int) -> int:
    """Writes a file and returns what is left of the limit.

    Raises:
      UnsafeError: there is no such file here, or it would be larger than the limit.
    """
    file = folder / path
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        out = open(file, "xb")  # noqa: SIM115 - only to open it may fail in these ways
    except OSError as error:
        if error.errno in _NAME_ERRORS:
            raise UnsafeError(f"{shown(path)} cannot be a file here ({error.strerror})") from None
        raise
    with out:
        for chunk in chunks:
            limit_bytes -= len(chunk)
            # What was looked through may be exchanged before it is read again.
            if limit_bytes < 0:
                raise UnsafeError(f"{shown(path)} is larger than the archive says")
            out.write(chunk)
    return limit_bytes


def _chunks_of(file: Path) -> Iterable[bytes]:
    with open(file, "rb") as stream:
        while chunk := stream.read(1 << 20):
            yield chunk


def remove_left_overs(folder: Path) -> None:
    """Removes what downloads and unpackings with a `key` of hex digits left that were killed.

    What others are at is under a lock, `KEY.lock`, and stays.
    """
    # Nobody need be able to write here, or to list it.
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if match := _LEFT_OVER.fullmatch(path.name):
                with file_lock(folder / f"{match[1] or match[2]}.lock", wait=False) as dead:
                    if dead and path.is_dir():
                        shutil.rmtree(path, ignore_errors=True)
                    elif dead and match[1]:
                        path.unlink(missing_ok=True)
