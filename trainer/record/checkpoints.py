"""Checkpoints: the latest few and the best, restored strictly. Only user of CheckpointManager."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import tensorflow as tf

from trainer.values import TrainerError, told_by_tensorflow

_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"


@dataclass(frozen=True)
class Base:
    """The variables that do not change from a step on, as long as a phase lasts."""

    name: str
    first_step: int
    variables: Mapping[str, tf.Variable]


class Checkpoints:
    """Saves and restores a flat {name: variable}.

    What a phase leaves as it is, such as a frozen network, is written once for the phase, below base/;
    a checkpoint holds the rest.
    """

    def __init__(self, folder: Path, *, keep: int):
        self.folder, self._keep = folder, keep

    def save(self, variables: Mapping[str, tf.Variable], *, step: int, base: Base | None = None) -> None:
        """Saves as one of the latest; `variables` are all, with those of the base."""
        self._save(self.folder, variables, step, self._keep, base)

    def save_best(self, variables: Mapping[str, tf.Variable], *, step: int, base: Base | None = None) -> None:
        """Saves as the best, in place of the one before."""
        self._save(self.folder / "best", variables, step, 1, base)

    def exist(self) -> bool:
        """Returns whether anything has been saved."""
        return any(self.folder.rglob("ckpt-*.index"))

    def latest(self) -> str | None:
        """Returns the path prefix of the latest checkpoint."""
        return tf.train.latest_checkpoint(str(self.folder))

    def find(self, which: str) -> str:
        """Returns the path prefix of a checkpoint: best, latest or a step number.

        Raises:
          TrainerError: there is no such checkpoint; the message lists those there are.
        """
        if which == "latest":
            path = self.latest()
        elif which == "best":
            path = tf.train.latest_checkpoint(str(self.folder / "best"))
        else:
            names = (self.folder / f"ckpt-{which}", self.folder / "best" / f"ckpt-{which}")
            path = next((str(name) for name in names if _exists(name)), None)
        if path is None:
            steps = ", ".join(map(str, self._steps()))
            has = f"there are those of steps {steps}" if steps else "there is none at all"
            raise TrainerError(f"no {which!r} checkpoint in {self.folder}; {has}")
        return path

    @staticmethod
    def step_of(path: str) -> int:
        """Returns the step of a checkpoint by its name."""
        return _step(path)

    def restore(self, variables: Mapping[str, tf.Variable], path: str, *, base: Base | None = None) -> None:
        """Reads every variable from a checkpoint; nothing may be missing, left over or misshapen.

        Raises:
          TrainerError: it does not match, or is damaged; the message names the first difference.
        """
        _read(_besides(variables, base), path, tf.train.Checkpoint.restore)
        if base and base.variables:
            _read(base.variables, str(self._base_path(base)), tf.train.Checkpoint.read)

    def _steps(self) -> list[int]:
        return sorted({_step(str(path.with_suffix(""))) for path in self.folder.rglob("ckpt-*.index")})

    def _holds(self, base: Base) -> bool:
        """Returns whether a base was written that a checkpoint needs; else it may be of another attempt."""
        return _exists(self._base_path(base)) and any(step >= base.first_step for step in self._steps())

    def _base_path(self, base: Base) -> Path:
        return self.folder / "base" / base.name

    def _save(
        self, folder: Path, variables: Mapping[str, tf.Variable], step: int, keep: int, base: Base | None
    ) -> None:
        checkpoint = tf.train.Checkpoint(variables=dict(_besides(variables, base)))
        # A manager reads its folder when it is made, so a new one each time forgets nothing; the
        # optimizer's variables are others in each phase.
        manager = tf.train.CheckpointManager(
            checkpoint, str(folder), max_to_keep=keep, checkpoint_name="ckpt"
        )
        try:
            # First, so that no checkpoint is ever without its base.
            if base and base.variables and not self._holds(base):
                whole = tf.train.Checkpoint(variables=dict(base.variables))
                whole.write(str(self._base_path(base)))
            manager.save(checkpoint_number=step)
        except tf.errors.OpError as error:
            raise TrainerError(
                f"checkpoint of step {step} was not saved: {told_by_tensorflow(error)}"
            ) from None


def _besides(variables: Mapping[str, tf.Variable], base: Base | None) -> dict[str, tf.Variable]:
    return {name: v for name, v in variables.items() if base is None or name not in base.variables}


def _read(variables: Mapping[str, tf.Variable], path: str, how: Callable) -> None:
    """Reads what `Checkpoint.save` or `write` wrote: `how` is `Checkpoint.restore` or `read`."""
    try:
        found = tf.train.load_checkpoint(path).get_variable_to_shape_map()
    except (tf.errors.OpError, ValueError) as error:
        raise TrainerError(f"checkpoint {path} cannot be read: {told_by_tensorflow(error)}") from None
    shapes = {_unescaped(key): shape for key, shape in found.items() if key.startswith("variables/")}
    wanted = {name: variable.shape.as_list() for name, variable in variables.items()}
    if shapes != wanted:
        name = min(n for n in {*shapes, *wanted} if shapes.get(n) != wanted.get(n))
        raise TrainerError(
            f"checkpoint {path} does not fit this model: {name} is {_told(shapes, name)} in the "
            f"checkpoint, {_told(wanted, name)} in the model"
        )
    checkpoint = tf.train.Checkpoint(variables=dict(variables))
    try:
        how(checkpoint, path).assert_consumed()
    except (tf.errors.OpError, IndexError, RuntimeError) as error:  # IndexError: the data are cut short.
        raise TrainerError(f"checkpoint {path} is damaged: {told_by_tensorflow(error)}") from None


def _exists(prefix: Path) -> bool:
    return os.path.exists(f"{prefix}.index")


def _step(path: str) -> int:
    return int(path.rsplit("-", 1)[1])


def _unescaped(key: str) -> str:
    # TensorFlow writes '/' within a name as '.S' and '.' as '..'.
    name = key.removeprefix("variables/").removesuffix(_VALUE)
    return name.replace("..", "\0").replace(".S", "/").replace("\0", ".")


def _told(shapes: Mapping[str, list[int]], name: str) -> str:
    return f"of shape {shapes[name]}" if name in shapes else "missing"
