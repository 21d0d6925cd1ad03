"""Files with the weights of a network: Keras's for `--weights=PATH`, torch's old format without torch.

torch's layout: three pickles (magic number, protocol, system), the pickle of the state dict, whose tensors
name their storages by persistent ids, the pickled list of storage keys, and then for each key an
8-byte little-endian count followed by the raw numbers.
"""

import io
import logging
import pickle
import struct
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import tf_keras

from trainer.paths import local_path
from trainer.values import TrainerError, UsageError, told_by_tensorflow

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


logger = logging.getLogger("trainer")

WEIGHTS_ENDINGS = (".h5", ".hdf5", ".keras")


def weights_path(weights: str) -> Path | None:
    """Returns the file that `--weights` names; None for `imagenet` and `none`.

    Raises:
      UsageError: it does not end like a weights file.
      TrainerError: there is no such file.
    """
    if weights in ("imagenet", "none"):
        return None
    path = local_path(weights, flag=f"--weights={weights}")
    if not path.name.endswith(WEIGHTS_ENDINGS):
        raise UsageError(
            f"--weights={weights} is neither imagenet, none, nor a file that ends with "
            f"{', '.join(WEIGHTS_ENDINGS)}"
        )
    if not path.is_file():
        raise TrainerError(f"--weights={weights}: there is no file {path}")
    return path


def load_weights(network: tf_keras.Model, *, path: Path, name: str) -> None:
    """Fills a network from a file; one that has the classifier, too, is read by layer names.

    Args:
      network: what is filled.
      path: a .h5, .weights.h5 or .keras file.
      name: of the network, for messages.

    Raises:
      TrainerError: the file does not fit the network.
    """
    try:
        extra = _unknown_layers(network, path)
        if extra:
            logger.info("%s: left out %s", path, ", ".join(extra))
            network.load_weights(str(path), by_name=True)
        else:
            network.load_weights(str(path))
    except Exception as error:  # h5py, zipfile, KeyError and ValueError, by what is wrong with it.
        raise TrainerError(
            f"--weights={path} does not fit {name}: {told_by_tensorflow(error)}; expected weights of this "
            "very model, saved with or without its classifier"
        ) from error


def _unknown_layers(network: tf_keras.Model, path: Path) -> list[str]:
    """Returns the layers with weights that only a legacy .h5 file has; [] for other files.

    Raises:
      ValueError: layers of the network are missing in the file, so that names cannot tell.
    """
    if path.name.endswith((".weights.h5", ".keras")):
        return []
    with h5py.File(path, "r") as file:
        group = file.get("model_weights", file)
        names = [n.decode() if isinstance(n, bytes) else n for n in group.attrs["layer_names"]]
        stored = {n for n in names if len(group[n].attrs["weight_names"])}
    wanted = {layer.name for layer in network.layers if layer.weights}
    if len(stored) == len(wanted):
        return []  # Keras matches them by order, as names given automatically differ.
    if missing := sorted(wanted - stored):
        raise ValueError(f"{len(missing)} layers are not in it, such as {missing[0]}")
    return sorted(stored - wanted)
