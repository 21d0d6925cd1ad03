"""Unpacks an archive of unknown origin: nothing but regular files, nowhere but in one folder."""

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from trainer.data.packed import DAMAGE, UnsafeError, shown
from trainer.data.tars import look_through_tar, tar_files
from trainer.data.zips import is_zip, look_through_zip, zip_files
from trainer.files import require_room
from trainer.values import TrainerError

UNPACKING_PREFIX = ".unpacking-"
# What a file system says of a name that it cannot take, or that it takes for another one's.
_NAME_ERRORS = (errno.EEXIST, errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ, errno.ENOTDIR, errno.EISDIR)


class BadArchiveError(TrainerError):
    """The archive itself is damaged or unsafe: no other place or permission helps."""


def unpack(archive: Path, target: Path, *, name: str, what: str = "", key: str = "") -> None:
    """Unpacks a .tar (also .gz, .bz2, .xz) or .zip; `target` appears at the end, whole, or not at all.

    Links to files inside a tar become copies; no link is ever made. Hidden files are left out.

    Args:
      archive: the file; its kind is told by its content.
      target: a folder that does not exist yet; its parent does.
      name: what messages call the source.
      what: what messages call the archive; by default its path.
      key: a part of the temporary name.

    Raises:
      BadArchiveError: the archive is damaged, unsafe or too large.
      TrainerError: the disk cannot take it.
    """
    what = what or str(archive)
    scratch: Path | None = None
    try:
        scratch = Path(tempfile.mkdtemp(prefix=f"{UNPACKING_PREFIX}{key}-", dir=target.parent))
        os.chmod(scratch, 0o755)
        _write_all(archive, scratch, name=name, what=what)
        # A folder that is there counts as whole, so its files must reach the disk before its name.
        os.sync()
        with contextlib.suppress(FileExistsError):
            _rename(scratch, target)
    except UnsafeError as error:
        raise BadArchiveError(
            f"--source={name}: {what} is not unpacked: {error}. If you trust it, unpack it by hand and give "
            "--source=folder:PATH"
        ) from None
    except OSError as error:
        # gzip and bz2 say so that the data are wrong; a zip may lead to before its beginning.
        if error.errno in (None, errno.EINVAL):
            raise _damaged(what, name, error) from None
        raise TrainerError(
            f"--source={name}: cannot unpack {what} into {target.parent}: {error.strerror}; --cache_dir "
            "chooses another place"
        ) from None
    except DAMAGE as error:
        raise _damaged(what, name, error) from None
    finally:
        if scratch:
            shutil.rmtree(scratch, ignore_errors=True)


def _rename(scratch: Path, target: Path) -> None:
    try:
        scratch.rename(target)
    except OSError:
        if not target.is_dir():  # Otherwise another process was faster, with the same content.
            raise


def _damaged(what: str, name: str, error: Exception) -> BadArchiveError:
    ended = "it ends too early" if isinstance(error, EOFError) else type(error).__name__
    reason = " ".join(str(error).split()) or ended
    return BadArchiveError(
        f"--source={name}: {what} is damaged or no .tgz, .tar or .zip: {reason[:300]}; get it anew, or give "
        "another --source"
    )


def _write_all(archive: Path, folder: Path, *, name: str, what: str) -> None:
    zipped = is_zip(archive)
    contents = look_through_zip(archive) if zipped else look_through_tar(archive)
    try:
        require_room(folder.parent, contents.num_bytes, what=f"{what}, unpacked,")
    except TrainerError as error:
        raise TrainerError(f"--source={name}: {error}; make room there, or set --cache_dir") from None
    for (first, *others), chunks in (zip_files if zipped else tar_files)(archive, contents):
        _write(folder, first, chunks)
        for path in others:
            _write(folder, path, _chunks_of(folder / first))


def _write(folder: Path, path: str, chunks: Iterable[bytes]) -> None:
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
            out.write(chunk)


def _chunks_of(file: Path) -> Iterable[bytes]:
    with open(file, "rb") as stream:
        while chunk := stream.read(1 << 20):
            yield chunk
