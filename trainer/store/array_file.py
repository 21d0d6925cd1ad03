"""One array of float32 in a .npy file: written block by block, verified, read row by row."""

import contextlib
import errno
import hashlib
import math
import os
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from trainer.store.files import sync_handle
from trainer.values import TrainerError

DTYPE = np.dtype("<f4")
_CHUNK_BYTES = 1 << 18
# What reading gives where a file is not there, not a file, or on a bad disk: computing anew helps.
_DAMAGE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EIO, errno.EBADMSG}
if hasattr(errno, "EUCLEAN"):  # Not on macOS.
    _DAMAGE.add(errno.EUCLEAN)


class FeatureCacheError(TrainerError):
    """Features, or pictures, cannot be kept on disk, or be read from it."""


class NotWritten(Exception):
    """The disk does not take what is written; the message is that of the system."""


class Damaged(Exception):
    """A file is not what was written, or not there."""


@contextlib.contextmanager
def writing() -> Iterator[None]:
    """Tells the errors of a disk from those of the one who computes what goes there.

    Raises:
      NotWritten: for an OSError.
    """
    try:
        yield
    except OSError as error:
        raise NotWritten(error.strerror or str(error)) from None


def npy_header(shape: tuple[int, ...]) -> bytes:
    """Returns what a .npy file of version 1.0 begins with.

    Made here, not by NumPy, so that it is the same bytes under every version of NumPy, and reading
    compares instead of parsing. Format: numpy.lib.format, "Format Version 1.0".

    Args:
      shape: [n, *shape] of the whole array.
    """
    numbers = tuple(int(size) for size in shape)
    text = f"{{'descr': '{DTYPE.str}', 'fortran_order': False, 'shape': {numbers}, }}".encode()
    text += b" " * (-(10 + len(text) + 1) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def array_bytes(shape: tuple[int, ...]) -> int:
    """Returns the size of the numbers alone."""
    return math.prod(shape) * DTYPE.itemsize


def file_bytes(shape: tuple[int, ...]) -> int:
    """Returns the size of the file."""
    return len(npy_header(shape)) + array_bytes(shape)


def write_array(path: Path, blocks: Iterator[np.ndarray], *, shape: tuple[int, ...]) -> str:
    """Writes a file that does not exist yet, and syncs it.

    Args:
      path: the file.
      blocks: [b, *shape[1:]] float32 each, shape[0] rows in all.
      shape: of the whole array.

    Returns:
      SHA-256 of the numbers, in hexadecimal.

    Raises:
      NotWritten: the disk cannot take it.
      ValueError: the blocks are not of this shape or type.
    """
    digest = hashlib.sha256()
    with writing():
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        _write(handle, npy_header(shape))
        for block in _checked(blocks, shape):
            data = _bytes_of(block)
            digest.update(data)
            _write(handle, data)
        with writing():
            sync_handle(handle, path)
    finally:
        os.close(handle)
    return digest.hexdigest()


def _checked(blocks: Iterator[np.ndarray], shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    rows = 0
    for block in blocks:
        if block.dtype != DTYPE or block.shape[1:] != shape[1:] or not block.ndim:
            raise ValueError(f"a block is {block.dtype} {block.shape}, expected float32 [b, *{shape[1:]}]")
        rows += len(block)
        if rows > shape[0]:
            break
        yield block
    if rows != shape[0]:
        raise ValueError(f"{rows} rows or more were computed, expected {shape[0]}")


def _bytes_of(array: np.ndarray) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _write(handle: int, data: bytes | memoryview) -> None:
    # Through a map of the file a full disk would be a SIGBUS.
    rest = memoryview(data)
    with writing():
        while rest:
            rest = rest[os.write(handle, rest) :]


class StoredFeatures:
    """An array [n, *shape] float32 in an open file, which may be unlinked meanwhile. Thread-safe.

    Attributes:
      shape: (n, *shape).
      dtype: float32.
      nbytes: the size of the numbers.
    """

    def __init__(self, path: Path, *, shape: tuple[int, ...], sha256: str):
        """Opens and verifies all of a file.

        That takes as long as SHA-256 does: 1.3 GB a second were measured on a Xeon with SHA instructions, the
        file being in the page cache.

        Args:
          path: the file.
          shape: what it is expected to hold.
          sha256: of its numbers, in hexadecimal.

        Raises:
          Damaged: it is not there, or holds anything else.
          FeatureCacheError: it cannot be opened for a reason that says nothing about the file.
        """
        self.shape, self.dtype, self.nbytes = shape, DTYPE, array_bytes(shape)
        self._path, self._row_bytes = path, array_bytes(shape[1:])
        self._start = len(npy_header(shape))
        try:
            self._handle = os.open(path, os.O_RDONLY)
            self._close = weakref.finalize(self, os.close, self._handle)
            self._verify(sha256)
        except OSError as error:
            raise unreadable(path, error) from None

    def rows(self, positions: np.ndarray) -> np.ndarray:
        """Returns some rows.

        Args:
          positions: [b] int64 in [0, n).

        Returns:
          [b, *shape] float32.

        Raises:
          FeatureCacheError: the disk no longer gives them.
          IndexError: a position is none of the array.
          ValueError: closed.
        """
        out = np.empty((len(positions), *self.shape[1:]), DTYPE)
        view, size = _bytes_of(out), self._row_bytes
        for number, position in enumerate(positions.tolist()):
            if not 0 <= position < self.shape[0]:
                raise IndexError(f"row {position} of {self.shape[0]}")
            self._read(view[number * size : (number + 1) * size], self._start + position * size)
        return out

    def whole(self) -> np.ndarray:
        """Returns the array [n, *shape] float32, in memory.

        Raises:
          FeatureCacheError: the disk no longer gives it.
          ValueError: closed.
        """
        out = np.empty(self.shape, DTYPE)
        self._read(_bytes_of(out), self._start)
        return out

    def close(self) -> None:
        """Closes the file, which otherwise happens with the last reference; nobody may be reading."""
        # The number may soon be that of another file.
        self._handle = -1
        self._close()

    def _read(self, view: memoryview, at: int) -> None:
        if self._handle < 0:
            raise ValueError(f"{self._path} is closed")
        try:
            # Not through a map: its pages would count as memory of this process.
            while view:
                count = os.preadv(self._handle, [view], at)
                if not count:
                    raise FeatureCacheError(f"{self._path} was cut short while in use")
                view, at = view[count:], at + count
        except OSError as error:
            raise FeatureCacheError(f"{self._path} cannot be read: {error.strerror}") from None

    def _verify(self, sha256: str) -> None:
        header, size = npy_header(self.shape), os.fstat(self._handle).st_size
        if size != len(header) + self.nbytes:
            raise Damaged(f"{self._path.name} has {size:,} bytes, expected {len(header) + self.nbytes:,}")
        if os.pread(self._handle, len(header), 0) != header:
            raise Damaged(f"{self._path.name} does not begin as an array of float32 {list(self.shape)} does")
        digest, chunk, at = hashlib.sha256(), bytearray(_CHUNK_BYTES), len(header)
        while count := os.preadv(self._handle, [chunk], at):
            digest.update(memoryview(chunk)[:count])
            at += count
        if digest.hexdigest() != sha256:
            raise Damaged(f"the numbers in {self._path.name} are not those that were written")


def unreadable(path: Path, error: OSError) -> Damaged | FeatureCacheError:
    """Returns what to raise when a file could not be read: the first where computing anew helps."""
    if error.errno in _DAMAGE:
        return Damaged(f"{path.name}: {error.strerror}")
    return FeatureCacheError(f"{path} cannot be read: {error.strerror}")
