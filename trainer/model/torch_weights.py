"""Reads a legacy torch weights file (the format before zip files) without torch.

Layout: three pickles (magic number, protocol, system), the pickle of the state dict, whose tensors
name their storages by persistent ids, the pickled list of storage keys, and then for each key an
8-byte little-endian count followed by the raw numbers.
"""

import io
import pickle
import struct
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001


def read_state_dict(data: bytes) -> dict[str, np.ndarray]:
    """Returns {name: array} of the tensors in a legacy torch file.

    Only what a state dict needs is unpickled, so a file cannot run code.

    Raises:
      ValueError: the bytes are no such file, are cut short, or name anything but tensors.
    """
    file = io.BytesIO(data)
    storages: dict[str, _Storage] = {}
    try:
        header = [_Unpickler(file, storages).load() for _ in range(3)]
        if header[:2] != [MAGIC_NUMBER, PROTOCOL] or not header[2].get("little_endian"):
            raise ValueError("not a little-endian legacy torch file")
        tensors = _Unpickler(file, storages).load()
        for key in _Unpickler(file, storages).load():
            storages[key].read(file)
    except ValueError:
        raise
    except Exception as error:  # A pickle of anything else fails in any way it likes.
        raise ValueError(f"not a legacy torch file ({type(error).__name__}: {error})") from error
    return {name: tensor.to_numpy() for name, tensor in tensors.items()}


class _Storage:
    """The numbers that one or more tensors are views of."""

    def __init__(self, dtype: np.dtype) -> None:
        self.numbers = np.empty(0, dtype)

    def read(self, file: io.BytesIO) -> None:
        (count,) = struct.unpack("<q", file.read(8))
        raw = file.read(count * self.numbers.itemsize)
        if count < 0 or len(raw) != count * self.numbers.itemsize:
            raise ValueError("the torch file is cut short")
        self.numbers = np.frombuffer(raw, self.numbers.dtype)


@dataclass(frozen=True)
class _Tensor:
    """A strided view of a storage, which is read later than the tensor is named."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def to_numpy(self) -> np.ndarray:
        numbers = self.storage.numbers
        last = self.offset + sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True))
        if not 0 <= self.offset <= last < len(numbers) or min(self.strides, default=0) < 0:
            raise ValueError("a tensor reaches outside its storage")
        steps = [step * numbers.itemsize for step in self.strides]
        view = np.lib.stride_tricks.as_strided(numbers[self.offset :], self.shape, steps, writeable=False)
        return view.copy()


def _rebuild_tensor(storage: _Storage, offset: int, shape: Any, strides: Any, *_: Any) -> _Tensor:
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch", "FloatStorage"): np.dtype("<f4"),
    ("torch", "LongStorage"): np.dtype("<i8"),
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, storages: dict[str, _Storage]) -> None:
        super().__init__(file)
        self._storages = storages

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise ValueError(f"the torch file names {module}.{name}, which no weights need: refused")
        return _ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key = pid[:3]
        if kind != "storage":
            raise ValueError(f"the torch file refers to {kind!r}, not to a storage")
        return self._storages.setdefault(key, _Storage(dtype))
