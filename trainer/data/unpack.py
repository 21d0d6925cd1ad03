"""Unpacks an archive of unknown origin: nothing but regular files, nowhere but in one folder."""

import contextlib
import lzma
import os
import re
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from trainer.values import TrainerError

MAX_BYTES = 20 * 10**9
MAX_FILES = 1_000_000
# Pictures hardly shrink when packed; what grows more than this beyond a free gigabyte is a bomb.
MAX_RATIO = 100
FREE_BYTES = 10**9
_CHUNK = 1 << 20
_DAMAGE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, ValueError, KeyError)


class _Unsafe(Exception):
    """The archive holds what an archive of pictures has no need of."""


def unpack(archive: Path, target: Path, *, name: str) -> None:
    """Unpacks a .tar (also .gz, .bz2, .xz) or .zip; `target` appears at the end, whole, or not at all.

    Links to files inside a tar become copies; no link is ever made. Hidden files are left out.

    Args:
      archive: the file; its kind is told by its content.
      target: a folder that does not exist yet; its parent does.
      name: what messages call the source.

    Raises:
      TrainerError: the archive is damaged, unsafe or too large, or the disk cannot take it.
    """
    try:
        scratch = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=target.parent))
    except OSError as error:
        raise TrainerError(
            f"--source={name}: cannot write to {target.parent}: {error.strerror}; set --cache_dir"
        ) from None
    try:
        os.chmod(scratch, 0o755)
        _write_all(archive, scratch)
        # A folder that is there counts as whole, so its files must reach the disk before its name.
        os.sync()
        with contextlib.suppress(FileExistsError):
            _rename(scratch, target)
    except _Unsafe as error:
        raise TrainerError(f"--source={name}: {archive} is not safe to unpack: {error}") from None
    except OSError as error:
        if error.errno is None:  # gzip and bz2 say so that the data are wrong.
            raise _damaged(archive, name, error) from None
        raise TrainerError(
            f"--source={name}: cannot unpack {archive} into {target.parent}: {error.strerror}; "
            "--cache_dir chooses another place"
        ) from None
    except (*_DAMAGE, RuntimeError) as error:
        raise _damaged(archive, name, error) from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _rename(scratch: Path, target: Path) -> None:
    try:
        scratch.rename(target)
    except OSError:
        if not target.is_dir():  # Otherwise another process was faster, with the same content.
            raise


def _damaged(archive: Path, name: str, error: Exception) -> TrainerError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return TrainerError(f"--source={name}: {archive} is damaged or no .tgz, .tar or .zip: {reason}")


def _write_all(archive: Path, folder: Path) -> None:
    packed = archive.stat().st_size
    limit = min(MAX_BYTES, max(FREE_BYTES, MAX_RATIO * packed))
    total = 0
    for number, (path, stream) in enumerate(_files(archive), start=1):
        if number > MAX_FILES:
            raise _Unsafe(f"more than {MAX_FILES:,} files")
        parts = _safe_parts(path)
        if not parts or any(part.startswith(".") or part == "__MACOSX" for part in parts):
            continue
        file = folder.joinpath(*parts)
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(file, "wb") as out:
            while chunk := stream.read(_CHUNK):
                total += len(chunk)
                # Counted as it comes: the sizes that headers declare may lie.
                if total > limit:
                    raise _Unsafe(f"more than {limit:,} bytes come out of {packed:,}")
                out.write(chunk)


def _safe_parts(path: str) -> list[str]:
    if path.startswith("/") or re.match(r"[A-Za-z]:", path) or "\0" in path:
        raise _Unsafe(f"{path!r} is an absolute path")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise _Unsafe(f"{path!r} leads out of the folder")
    return parts


def _files(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    if zipfile.is_zipfile(archive) and not tarfile.is_tarfile(archive):
        yield from _zip_files(archive)
    else:
        yield from _tar_files(archive)


def _zip_files(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    with zipfile.ZipFile(archive) as packed:
        for info in packed.infolist():
            # Some Windows tools write backslashes, against the standard.
            path = info.filename.replace("\\", "/")
            if stat.S_ISLNK(info.external_attr >> 16):
                raise _Unsafe(f"{path!r} is a link")
            if not path.endswith("/"):
                with packed.open(info) as stream:
                    yield path, stream


def _tar_files(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    with tarfile.open(archive) as packed:
        for member in packed:
            if member.isdir():
                _safe_parts(member.name)
                continue
            if not (member.isreg() or member.issym() or member.islnk()):
                raise _Unsafe(f"{member.name!r} is a device or pipe")
            try:
                stream = packed.extractfile(member)
            except KeyError:
                stream = None
            if stream is None:
                raise _Unsafe(f"{member.name!r} links to no file in it: {member.linkname!r}")
            with stream:
                yield member.name, stream
        _check_rest(packed)


def _check_rest(packed: tarfile.TarFile) -> None:
    """tarfile takes a damaged header for the end, and never reaches the checksum behind the data."""
    assert packed.fileobj is not None
    packed.fileobj.seek(packed.offset)
    left = FREE_BYTES
    while chunk := packed.fileobj.read(_CHUNK):
        left -= len(chunk)
        if left < 0 or chunk.strip(b"\0"):
            raise tarfile.ReadError("data after the end")
