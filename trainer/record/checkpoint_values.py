"""What is in TensorFlow's files of a checkpoint: a flat {name: value}, as `tf.train.Checkpoint` wrote it."""

import contextlib
import errno
import math
import os
import shutil
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf

from trainer.store.files import require_room, told_size
from trainer.values import MachineError, TrainerError, of_one_device, told_by_tensorflow

_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
_PREFIX = "variables/"
_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
# What `tf.train.Checkpoint` writes of the objects that variables belong to, by the names of these. Few are
# kept: some hundred kilobytes each, and a run has one or two a phase.
_GRAPHS_KEPT = 8
_graphs: dict[tuple[tuple[str, str], ...], bytes] = {}
# Of several threads, each may train a run of its own.
_keeping = threading.Lock()
# Blocks of files that are not full, the record, the list.
_OVERHEAD_BYTES = 32_768
_NO_ROOM = [os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)]


@dataclass(frozen=True)
class Base:
    """The variables that do not change from a step on, as long as a phase lasts.

    `name` is a word, a hyphen and a number, such as phase-0.
    """

    name: str
    first_step: int
    variables: Mapping[str, tf.Variable]


def write_values(variables: Mapping[str, tf.Variable], prefix: str) -> None:
    """Writes a checkpoint; the same values give the same bytes, in any process.

    They are those that `tf.train.Checkpoint` writes. It is asked the first time: with 750 variables it takes
    half a second, as it looks at all objects anew. What it has found out stays true of the same variables.

    Raises:
      tf.errors.OpError: the disk does not take it.
    """
    named = tuple((name, variable.name) for name, variable in variables.items())
    is_divided = any(isinstance(one, tf.distribute.DistributedValues) for one in variables.values())
    # Taken once: while this one writes, another thread may drop it.
    graph = None if is_divided else _graphs.get(named)
    if graph is None:
        own = {name: of_one_device(variable) for name, variable in variables.items()}
        tf.train.Checkpoint(variables=own).write(prefix)
        _keep(named, tf.train.load_checkpoint(prefix).get_tensor(_GRAPH))
        return
    tf.raw_ops.SaveV2(
        prefix=prefix,
        tensor_names=[*map(_escaped, variables), _GRAPH],
        shape_and_slices=[""] * (len(variables) + 1),
        tensors=[*(variable.read_value() for variable in variables.values()), tf.constant(graph)],
    )


def _keep(named: tuple[tuple[str, str], ...], graph: bytes) -> None:
    with _keeping:
        while len(_graphs) >= _GRAPHS_KEPT:
            _graphs.pop(next(iter(_graphs)))
        _graphs[named] = graph


def bytes_of(variables: Mapping[str, tf.Variable]) -> int:
    """Returns how much room `write_values` takes at most."""
    # Each name is in the index and twice in the graph of objects, with numbers around it.
    named = sum(4 * len(name) + 300 for name in variables)
    return _OVERHEAD_BYTES + named + sum(math.prod(v.shape) * v.dtype.size for v in variables.values())


@contextlib.contextmanager
def told_failure(what: str, *, folder: Path, num_bytes: int, safe: str) -> Iterator[None]:
    """Makes sure that there is room for a block that writes, and tells why if it fails all the same.

    Args:
      what: begins the message, e.g. `checkpoint of step 100`.
      folder: where it is written; it is made.
      num_bytes: how much room it takes.
      safe: says what is not lost.

    Raises:
      MachineError: there is no room, or the block failed to write.
    """
    ways_on = f"{safe}; make room and run the same command again"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            require_room(folder, num_bytes, what=f"the {what}")
        except MachineError as error:
            raise MachineError(f"{error}; {ways_on}") from None
        yield
    except (tf.errors.OpError, OSError) as error:
        if isinstance(error, OSError):
            told = f"{error.strerror}: {error.filename}"
        else:
            told = told_by_tensorflow(error)
        for reason in _NO_ROOM:
            if reason in told:
                missing = num_bytes - shutil.disk_usage(folder).free
                much = f": {told_size(missing)} are missing" if missing > 0 else ""
                told = f"{reason} in {folder}{much}; {ways_on}"
        raise MachineError(f"{what} was not saved: {told}") from None


def read_values(prefix: Path, wanted: Mapping[str, tf.Variable] | None = None) -> dict[str, np.ndarray]:
    """Reads all of a checkpoint.

    Args:
      prefix: the path that the names of its files begin with.
      wanted: variables of just these names, shapes and types must be in it; None: whatever is.

    Raises:
      TrainerError: it cannot be read, or does not match; the message names the first difference.
    """
    try:
        reader = tf.train.load_checkpoint(str(prefix))
        shapes, types = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()
        keys = {_unescaped(key): key for key in shapes if key.startswith(_PREFIX)}
        if wanted is not None:
            there = {name: f"{types[key].name} {shapes[key]}" for name, key in keys.items()}
            here = {name: f"{v.dtype.name} {v.shape.as_list()}" for name, v in wanted.items()}
            if there != here:
                name = min(n for n in {*there, *here} if there.get(n) != here.get(n))
                raise TrainerError(
                    f"checkpoint {prefix} does not fit this model: {name} is {there.get(name, 'missing')} in "
                    f"the checkpoint, {here.get(name, 'missing')} in the model"
                )
        return {name: reader.get_tensor(key) for name, key in keys.items()}
    except (tf.errors.OpError, ValueError, IndexError, RuntimeError) as error:
        raise TrainerError(f"checkpoint {prefix} cannot be read: {told_by_tensorflow(error)}") from None


def _escaped(name: str) -> str:
    # TensorFlow writes '/' within a name as '.S' and '.' as '..'.
    return f"{_PREFIX}{name.replace('.', '..').replace('/', '.S')}{_VALUE}"


def _unescaped(key: str) -> str:
    name = key.removeprefix(_PREFIX).removesuffix(_VALUE)
    return name.replace("..", "\0").replace(".S", "/").replace("\0", ".")
