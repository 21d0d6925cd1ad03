"""Zips."""

import itertools
import logging
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from trainer.archives.packed import Contents, Tree, UnreadableError, UnsafeError, check_size, is_hidden, shown

_log = logging.getLogger("trainer")
_CHUNK = 1 << 20
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
                    yield contents.targets[number], _parts(stream)


def _parts(stream: IO[bytes]) -> Iterator[bytes]:
    while chunk := stream.read(_CHUNK):
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
