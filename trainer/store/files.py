"""Files that are there whole or not at all: written to a temporary name, synced, renamed.

Standard library only. A crash, or a loss of power, leaves the old file or the new one.
"""

import contextlib
import errno
import json
import logging
import math
import os
import reprlib
import shutil
import tempfile
from pathlib import Path
from typing import IO, Any

from trainer.values import MachineError, TrainerError

_log = logging.getLogger("trainer")
# What file systems answer that do not do what they are asked for: SMB, FUSE and some NFS, each its own.
UNSUPPORTED = frozenset({errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.EPERM})
warned: set[int] = set()
"""Devices of the file systems that a line has been logged of."""
# Names that begin so are of files in the middle of being written; whoever owns a folder may remove them.
PART_PREFIX = ".part-"


Shape = Any
"""What a JSON value must look like, for `require_shape`:

    int, float, str, bool, str | None   that type; float takes whole numbers, too
    object                              anything
    [shape]                             a list of such values
    (shape, shape)                      a list of just these
    {"name": shape, "name?": shape}     an object that has at least these names, or may have them
    {str: shape}                        an object of any names
"""


def read_json(path: Path, shape: Shape = object) -> Any:
    """Reads a JSON file.

    Args:
      path: of the file.
      shape: what it must hold.

    Raises:
      TrainerError: it is not whole, or holds something else.
    """
    try:
        found = json.loads(path.read_bytes())
        require_shape(found, shape)
    except (ValueError, RecursionError) as error:
        raise TrainerError(f"{path} is damaged: {error}") from None
    return found


def require_shape(value: Any, shape: Shape, *, name: str = "") -> None:
    """Makes sure that a value read from JSON has a shape.

    Args:
      value: as `json.loads` returns it.
      shape: see `Shape`.
      name: of the value within the file, for messages.

    Raises:
      ValueError: it has another; the message names the first place.
    """
    if isinstance(shape, list | tuple):
        if not isinstance(value, list) or (isinstance(shape, tuple) and len(value) != len(shape)):
            raise _misshapen(value, name, "a list" if isinstance(shape, list) else f"a list of {len(shape)}")
        shapes = shape * len(value) if isinstance(shape, list) else shape
        for i, (item, wanted) in enumerate(zip(value, shapes, strict=True)):
            require_shape(item, wanted, name=f"{name}[{i}]")
    elif isinstance(shape, dict):
        if not isinstance(value, dict):
            raise _misshapen(value, name, "an object")
        every = shape.get(str)
        for key, item in value.items() if every else ():
            require_shape(item, every, name=f"{name}.{key}" if name else key)
        for key, wanted in shape.items() if not every else ():
            key, needed = key.removesuffix("?"), not key.endswith("?")
            if key in value:
                require_shape(value[key], wanted, name=f"{name}.{key}" if name else key)
            elif needed:
                raise ValueError(f"it has no {f'{name}.{key}' if name else key}")
    else:
        # Python takes True for 1.
        fits = isinstance(value, shape) and (shape in (object, bool) or not isinstance(value, bool))
        if not fits and not (shape is float and type(value) is int):
            raise _misshapen(value, name, getattr(shape, "__name__", str(shape)))
        if isinstance(value, float) and not math.isfinite(value):
            raise _misshapen(value, name, "a finite number")
        if isinstance(value, int) and shape is not object and abs(value) >= 2**63:
            raise _misshapen(value, name, "a number below 2**63")


def _misshapen(value: Any, name: str, wanted: str) -> ValueError:
    words = {"int": "a whole number", "float": "a number", "str": "a text", "bool": "true or false"}
    of = f"{name} is {reprlib.repr(value)}" if name else f"it holds {reprlib.repr(value)}"
    return ValueError(f"{of}, expected {words.get(wanted, wanted)}")


def write_json(path: Path, value: Any, *, indent: int | None = 2) -> None:
    """Writes JSON atomically."""
    write_text(path, json.dumps(value, indent=indent) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically, in UTF-8."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file atomically; makes its folder if there is none.

    Raises:
      OSError: it cannot be written; `filename` is set. The old file, if any, is as it was.
    """
    part = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(prefix=PART_PREFIX, dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            sync_file(file, path)
        set_mode(part, 0o666 & ~_umask())
        move(part, path)
        part = ""
        sync(path.parent)
    except OSError as error:
        # A full disk does not say which file it was.
        error.filename = str(path)
        raise
    finally:
        if part:
            Path(part).unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on disk, as far as the file system can do that.

    Raises:
      OSError: they do not get there; `filename` is set.
    """
    is_folder = path.is_dir()
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError as error:
        # Not every file system opens folders.
        if not is_folder:
            raise
        warn_unsupported(path, "sync folders", error)
        return
    try:
        sync_handle(handle, path, what="sync folders" if is_folder else "sync files")
    finally:
        os.close(handle)


def sync_file(file: IO[Any], path: Path) -> None:
    """Flushes an open file, and waits as `sync_handle` does."""
    file.flush()
    sync_handle(file.fileno(), path)


def sync_handle(handle: int, path: Path, *, what: str = "sync files") -> None:
    """Waits until what was written to a descriptor is on disk, as far as the file system can do that.

    Args:
      handle: the descriptor.
      path: what messages call it.
      what: what the file system cannot do where it cannot.

    Raises:
      OSError: it does not get there; `filename` is set.
    """
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            error.filename = str(path)
            raise
        warn_unsupported(path, what, error)


def set_mode(path: str | Path, mode: int) -> None:
    """Sets the permissions of a file or folder of ours, as far as the file system can do that.

    Raises:
      OSError: it fails for another reason.
    """
    try:
        os.chmod(path, mode)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        warn_unsupported(path, "set permissions", error)


def move(source: str | Path, target: str | Path) -> None:
    """Renames a file or folder, in place of a file or an empty folder; copies it where that cannot be done.

    To copy is not done in one step: whoever reads `target` meanwhile sees a part of it.

    Raises:
      OSError: as os.replace.
    """
    try:
        os.replace(source, target)
    except OSError as error:
        # EXDEV: of a folder in a lower layer of a container's image.
        if error.errno not in {*UNSUPPORTED, errno.EXDEV}:
            raise
        _copy(Path(source), Path(target), instead=error)
        if error.errno != errno.EXDEV:
            warn_unsupported(target, "rename", error)


def _copy(source: Path, target: Path, *, instead: OSError) -> None:
    """Copies a file or folder and removes `source`; fails with the error it is done instead of."""
    is_folder = source.is_dir()
    if is_folder and target.is_dir() and any(target.iterdir()):
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(target))
    try:
        if is_folder:
            _copy_folder(source, target)
        else:
            shutil.copyfile(source, target)
            sync(target)
    except OSError:
        if is_folder:
            shutil.rmtree(target, ignore_errors=True)
        raise instead from None
    # FUSE renames a file that is removed while it is open, which is what could not be done.
    with contextlib.suppress(OSError):
        shutil.rmtree(source) if is_folder else source.unlink()


def _copy_folder(source: Path, target: Path) -> None:
    # Not shutil.copytree, which fails where permissions and times cannot be set.
    target.mkdir(exist_ok=True)
    for path in source.iterdir():
        if path.is_dir():
            _copy_folder(path, target / path.name)
        else:
            shutil.copyfile(path, target / path.name)


def warn_unsupported(path: str | Path, what: str, error: OSError) -> None:
    """Logs that a file system does not do what it is asked for: once for each, whatever it is.

    Args:
      path: where it was asked for; in a folder that exists.
      what: it was, such as `lock files`.
      error: what it answered.
    """
    try:
        device = os.stat(os.path.dirname(os.path.abspath(path))).st_dev
    except OSError:
        device = -1
    if device not in warned:
        warned.add(device)
        _log.warning(
            "%s: this file system cannot %s (%s); continuing without. Do not run two commands in the same "
            "folder at once, and after a power failure check what was written last",
            path,
            what,
            error.strerror,
        )


def remove_parts(folder: Path) -> None:
    """Removes what a process that died left behind in the middle of writing.

    Only for folders that one process writes to at a time, such as a locked workdir.
    """
    for part in folder.glob(f"{PART_PREFIX}*"):
        shutil.rmtree(part) if part.is_dir() else part.unlink()


def make_folder(folder: Path, *, flag: str, wrong: str) -> None:
    """Makes a folder, with those above it, unless it is there.

    Args:
      folder: where.
      flag: what messages begin with, such as `--workdir=x`.
      wrong: how they go on where a file is in the way.

    Raises:
      TrainerError: it cannot be made, or nothing can be written into it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise TrainerError(f"{flag} {wrong}") from None
    except OSError as error:
        raise TrainerError(f"{flag} cannot be written: {error.strerror}") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise TrainerError(f"{flag} cannot be written: permission denied")


def require_place(path: Path, *, flag: str) -> None:
    """Makes the folder of a file that is to be written: better told before the work than after it.

    Args:
      path: of the file, which may be there.
      flag: what messages begin with, such as `--output=x.json`.

    Raises:
      TrainerError: no file can be written there.
    """
    make_folder(path.parent, flag=flag, wrong="lies below a file: it must be a file in a folder")
    if path.exists() and not path.is_file():
        raise TrainerError(
            f"{flag} is {'a folder' if path.is_dir() else 'no regular file'}: it must be a file"
        )


def require_room(folder: Path, num_bytes: int, *, what: str) -> None:
    """Makes sure that a disk can take something before it is begun.

    Args:
      folder: where it is to be written; it must exist.
      num_bytes: how much.
      what: begins the message, e.g. `the checkpoint of step 100`.

    Raises:
      MachineError: there is less room; the message says how much is missing.
    """
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise MachineError(
            f"{what} needs {told_size(num_bytes)} and {folder} has {told_size(free)} left: "
            f"{told_size(num_bytes - free)} are missing"
        )


def told_size(num_bytes: int) -> str:
    """Returns a size as people read it, such as 12.3 MB."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:.1f} {unit}"
    return f"{num_bytes} bytes"


def _umask() -> int:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("Umask:")).split()[1], 8)
    # Elsewhere than on Linux there is no way to look at it but setting it.
    mask = os.umask(0)
    os.umask(mask)
    return mask
