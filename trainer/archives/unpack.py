"""Unpacks an archive of unknown origin: nothing but regular files, nowhere but in one folder."""

import contextlib
import errno
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from trainer.archives.packed import DAMAGE, UnreadableError, UnsafeError, shown
from trainer.archives.tars import look_through_tar, tar_files
from trainer.archives.zips import is_zip, look_through_zip, zip_files
from trainer.file_lock import file_lock
from trainer.files import PART_PREFIX, move, require_room, set_mode
from trainer.values import TrainerError

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

    Links to files inside a tar become copies; no link is ever made. Hidden files are left out. The limits
    on sizes are checked before anything is written, and again with every part that is.

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
        left = _write(folder, first, chunks, limit_bytes=left)
        for path in others:
            left = _write(folder, path, _chunks_of(folder / first), limit_bytes=left)


def _write(folder: Path, path: str, chunks: Iterable[bytes], *, limit_bytes: int) -> int:
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
