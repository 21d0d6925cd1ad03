"""Encoded pictures in memory up to a budget, and beyond it in a file that no crash leaves behind."""

import os
import tempfile
import threading
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, overload

from trainer.values import TrainerError

DEFAULT_BUDGET_BYTES = 256 * 2**20


class EncodedStore(Sequence[bytes]):
    """Pictures by position: the first ones in memory, what would exceed the budget in one temporary file.

    The file has no name: nothing of it is left when the process ends, however it ends. Positions may
    be filled in any order with `put`, or from 0 on with `append`. Safe to use from several threads.
    """

    def __init__(self, *, budget_bytes: int = DEFAULT_BUDGET_BYTES, spill_folder: Path | None = None):
        """Starts empty.

        Args:
          budget_bytes: how much is held in memory, counted in bytes of pictures.
          spill_folder: where the file goes; made when first needed. None means that pictures beyond
            the budget are not kept.
        """
        self.budget_bytes, self.spill_folder = budget_bytes, spill_folder
        self.memory_bytes = self.spilled_bytes = 0
        self._held: dict[int, bytes] = {}
        # Two numbers a picture: tuples in a dictionary would take ten times the memory.
        self._offsets, self._sizes = array("q"), array("q")
        self._spilled = self._end = 0
        self._file: IO[bytes] | None = None
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._held) + self._spilled

    @property
    def nbytes(self) -> int:
        """Bytes of all pictures kept, in memory and in the file."""
        return self.memory_bytes + self.spilled_bytes

    @property
    def in_memory(self) -> bool:
        """Whether all that is kept is held in memory."""
        return not self._spilled

    def append(self, data: bytes) -> None:
        """Keeps the next picture. For stores with a `spill_folder` that `append` alone fills.

        Raises:
          TrainerError: the file cannot be made or written.
        """
        self.put(len(self), data)

    def put(self, index: int, data: bytes) -> bool:
        """Keeps the picture of a position unless there is one; returns whether there is one afterwards.

        Raises:
          TrainerError: the file cannot be made or written.
        """
        with self._lock:
            if index in self._held or self._is_spilled(index):
                return True
            if self.memory_bytes + len(data) <= self.budget_bytes:
                self._held[index] = data
                self.memory_bytes += len(data)
                return True
            if self.spill_folder is None:
                return False
            self._spill(index, data, self.spill_folder)
            return True

    def get(self, index: int) -> bytes | None:
        """Returns the picture of a position, None where there is none.

        Raises:
          TrainerError: the file cannot be read.
        """
        data = self._held.get(index)
        if data is None and self._is_spilled(index):
            return self._read_back(self._offsets[index], self._sizes[index])
        return data

    def read(self, index: int) -> bytes:
        """Returns the picture of a position.

        Raises:
          IndexError: there is none.
          TrainerError: the file cannot be read.
        """
        data = self.get(index)
        if data is None:
            raise IndexError(index)
        return data

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> list[bytes]: ...
    def __getitem__(self, index: int | slice) -> bytes | list[bytes]:
        if isinstance(index, slice):
            return [self.read(at) for at in range(*index.indices(len(self)))]
        return self.read(index)

    def truncate(self, count: int) -> None:
        """Forgets the positions from `count` on; what they took of the file is not given back."""
        with self._lock:
            for index in [at for at in self._held if at >= count]:
                self.memory_bytes -= len(self._held.pop(index))
            forgotten = [size for size in self._sizes[count:] if size >= 0]
            self._spilled -= len(forgotten)
            self.spilled_bytes -= sum(forgotten)
            del self._offsets[count:], self._sizes[count:]

    def __str__(self) -> str:
        text = f"{self.memory_bytes / 1e6:.0f} MB in memory"
        return text + (
            f", {self.spilled_bytes / 1e6:.0f} MB in {self.spill_folder}" if self.spilled_bytes else ""
        )

    def _is_spilled(self, index: int) -> bool:
        return 0 <= index < len(self._sizes) and self._sizes[index] >= 0

    def _spill(self, index: int, data: bytes, folder: Path) -> None:
        offset = self._end
        try:
            if self._file is None:
                folder.mkdir(parents=True, exist_ok=True)
                self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - lives as long
            done = 0
            while done < len(data):
                done += os.pwrite(self._file.fileno(), memoryview(data)[done:], offset + done)
        except OSError as error:
            raise TrainerError(
                f"cannot keep pictures beyond {self.budget_bytes / 2**20:.0f} MiB of memory in a temporary "
                f"file in {folder}: {error.strerror} after {offset / 1e6:.0f} MB; make room there, set "
                "--cache_dir or raise --memory_budget_mb"
            ) from None
        missing = index + 1 - len(self._sizes)
        self._offsets.extend([-1] * missing)
        # Readers take no lock: a size counts as written only when its offset is.
        self._sizes.extend([-1] * missing)
        self._offsets[index] = offset
        self._sizes[index] = len(data)
        self._end += len(data)
        self.spilled_bytes += len(data)
        self._spilled += 1

    def _read_back(self, offset: int, size: int) -> bytes:
        # Not a mapped file: pages read through a mapping would count as memory of the process.
        assert self._file is not None
        parts = b""
        try:
            while len(parts) < size:
                part = os.pread(self._file.fileno(), size - len(parts), offset + len(parts))
                if not part:
                    raise OSError(0, "it is shorter than what was written")
                parts = parts + part if parts else part
        except OSError as error:
            raise TrainerError(
                f"cannot read pictures back from the temporary file in {self.spill_folder}: {error.strerror}"
            ) from None
        return parts


class Kept(Sequence[bytes]):
    """Pictures that are read or drawn when first asked for, and kept as far as a store takes them."""

    def __init__(self, make: Callable[[int], bytes], count: int, store: EncodedStore):
        """Asks `make(index)` for a picture that `store` does not have, 0 <= index < count."""
        self.store = store
        self._make, self._count = make, count

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> list[bytes]: ...
    def __getitem__(self, index: int | slice) -> bytes | list[bytes]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(self._count))]
        if not 0 <= index < self._count:
            raise IndexError(index)
        data = self.store.get(index)
        if data is None:
            data = self._make(index)
            self.store.put(index, data)
        return data
