"""Checkpoints: the latest few and the best, written whole, restored whole and strictly."""

import contextlib
import functools
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from trainer.record.checkpoint_files import CheckpointFolder, Damaged, Files, OtherFormat, Record
from trainer.record.checkpoint_values import Base, bytes_of, read_values, told_failure, write_values
from trainer.values import TrainerError, put

_log = logging.getLogger("trainer")


class Checkpoints:
    """Saves and restores a flat {name: variable}.

    What a phase leaves as it is, such as a frozen network, is written once for the phase, below base/;
    a checkpoint holds the rest. One is whole if all its files, and those of its base, are to the last byte
    what was written; see `checkpoint_files`. Only one process may save at a time; any may read.
    """

    def __init__(self, folder: Path, *, keep: int):
        self.folder, self._keep = folder, keep
        self._latest = CheckpointFolder(folder)
        self._best = CheckpointFolder(folder / "best")
        self._bases = CheckpointFolder(folder / "base")
        self._ways_on = f"Restore the files from a copy, or remove {folder} to start over"
        # {path prefix of one of the latest: what is wrong with it}
        self._faults: dict[str, str] = {}

    def remove_unfinished(self) -> None:
        """Removes, or finishes, what a process left that died while it saved. Not while another one saves."""
        for folder in (self._latest, self._best):
            folder.tidy()
        records = self._records()
        # A record that cannot be read may be of a checkpoint that needs any of them.
        self._bases.tidy(spare=None if None in records else {str(r.base_name) for r in records if r})

    def save(self, variables: Mapping[str, tf.Variable], *, step: int, base: Base | None = None) -> None:
        """Saves as one of the latest, and removes the oldest when there are more than are to be kept.

        Args:
          variables: all, with those of the base.
          step: number of updates.
          base: what has not changed since an earlier checkpoint, if anything.

        Raises:
          TrainerError: there is no room, or it cannot be written. What was saved before is untouched.
        """
        name = self._save(self._latest, variables, step, base)
        self._faults.pop(str(self.folder / name), None)
        self.remove_old(step)

    def remove_old(self, step: int) -> None:
        """Removes all but the latest few up to a step, which a process may have died before it did."""
        # Later ones can only be damaged: the run is about to come by there again.
        names = [name for name in self._latest.names() if self.step_of(name) <= step]
        self._latest.keep([n for n in self._not_faulty() if n in names][-self._keep :], among=names)

    def whole_steps(self) -> list[int]:
        """Returns the steps of the latest checkpoints that are whole, the newest last."""
        found = []
        for name in self._latest.names():
            with contextlib.suppress(Damaged, OtherFormat):
                self._check(self._latest, name)
                found.append(self.step_of(name))
        return found

    def go_back(self, step: int) -> None:
        """Removes the checkpoints after that of a step, which must be there."""
        names = self._latest.names()
        if any(self.step_of(name) > step for name in names):
            self._latest.keep([name for name in names if self.step_of(name) <= step], among=names)

    def save_best(
        self,
        variables: Mapping[str, tf.Variable],
        *,
        step: int,
        base: Base | None = None,
        in_place: bool = True,
    ) -> None:
        """Saves as the best, in place of the one before, or beside it.

        Arguments and errors are those of `save`.
        """
        name = self._save(self._best, variables, step, base)
        names = self._best.names()
        before = [] if in_place else [other for other in names if self.step_of(other) < step][-1:]
        self._best.keep([*before, name], among=names)

    def best_steps(self) -> list[int]:
        """Returns the steps of the best checkpoint and of those beside it, the newest last."""
        return [self.step_of(name) for name in self._best.names()]

    def keep_best(self, steps: Sequence[int]) -> None:
        """Removes the best checkpoints of all but one or more steps; the newest of these is the best one."""
        names = self._best.names()
        self._best.keep([name for name in names if self.step_of(name) in steps], among=names)

    def exist(self) -> bool:
        """Returns whether anything has been saved, damaged since or not."""
        return bool(self._latest.names() or self._best.names())

    def latest(self) -> str | None:
        """Returns the path prefix of the newest whole checkpoint; None if nothing has been saved.

        Those that are damaged are named in the log, and passed over.

        Raises:
          TrainerError: all are damaged, or the newest is of another version of the program.
        """
        path, faults = self._first_whole((self._latest, name) for name in reversed(self._latest.names()))
        if path is None and faults:
            newest, fault = next(iter(faults.items()))
            raise TrainerError(
                f"no checkpoint in {self.folder} is whole; the newest, {Path(newest).name}, is damaged: "
                f"{fault}. {self._ways_on}"
            )
        for damaged, fault in faults.items():
            if damaged not in self._faults:
                _log.warning("checkpoint %s is damaged and passed over: %s", damaged, fault)
        self._faults = faults
        return path

    def check_best(self, step: int) -> None:
        """Makes sure, when a run goes on, that the best checkpoint it knows of is there.

        Args:
          step: of the best according to the state; negative if there is none yet. A later one will do: a
            process that died had gone further, and the run comes by there again.

        Raises:
          TrainerError: there is none, or it is damaged.
        """
        names = [name for name in reversed(self._best.names()) if self.step_of(name) >= step]
        path, faults = self._first_whole((self._best, name) for name in names)
        if step >= 0 and path is None:
            fault = next(iter(faults.values()), f"there is none in {self._best.path}")
            raise TrainerError(f"the best checkpoint, that of step {step}, is lost: {fault}. {self._ways_on}")

    def find(self, which: str) -> str:
        """Returns the path prefix of a whole checkpoint: best, latest or a step number.

        Raises:
          TrainerError: there is no such checkpoint, or it is damaged; the message lists those there are.
        """
        if which == "latest" and (path := self.latest()):
            return path
        if which == "best":
            candidates = [(self._best, name) for name in self._best.names()[-1:]]
        else:
            both, name = (self._latest, self._best), f"ckpt-{which}"
            candidates = [(folder, name) for folder in both if name in folder.names()]
        path, faults = self._first_whole(candidates)
        if path is None:
            told = [f"checkpoint {damaged} is damaged: {fault}" for damaged, fault in faults.items()]
            there = next(iter(told), f"no {which!r} checkpoint in {self.folder}")
            raise TrainerError(f"{there}; {self._told_whole('whole' if faults else 'there')}")
        return path

    @staticmethod
    def step_of(path: str) -> int:
        """Returns the step of a checkpoint by its name."""
        return int(path.rsplit("-", 1)[1])

    def restore(self, variables: Mapping[str, tf.Variable], path: str, *, base: Base | None = None) -> None:
        """Reads every variable from a checkpoint; nothing may be missing, left over or misshapen.

        Raises:
          TrainerError: it is damaged, or does not match; the message names the first difference. No variable
            has changed.
        """
        folder, record = self._checked(path)
        bases = base.variables if base else {}
        rest = {name: variable for name, variable in variables.items() if name not in bases}
        found = [(rest, read_values(folder.path / Path(path).name, rest))]
        if base and bases and record.base_name:
            if record.base_name != base.name:
                raise TrainerError(f"checkpoint {path} is based on {record.base_name}, not on {base.name}")
            found.append((dict(bases), read_values(self._bases.path / base.name, bases)))
        for wanted, values in found:
            for name, variable in wanted.items():
                put(variable, values[name])

    def values(self, path: str) -> dict[str, np.ndarray]:
        """Returns {name: value} of all that a checkpoint and its base hold.

        Raises:
          TrainerError: it is damaged.
        """
        folder, record = self._checked(path)
        values = read_values(folder.path / Path(path).name)
        return values | (read_values(self._bases.path / record.base_name) if record.base_name else {})

    def _checked(self, path: str) -> tuple[CheckpointFolder, Record]:
        folder = self._best if Path(path).parent == self._best.path else self._latest
        try:
            return folder, self._check(folder, Path(path).name)
        except Damaged as damage:
            raise TrainerError(f"checkpoint {path} is damaged: {damage}") from None

    def _not_faulty(self) -> list[str]:
        return [name for name in self._latest.names() if str(self.folder / name) not in self._faults]

    def _first_whole(
        self, candidates: Iterable[tuple[CheckpointFolder, str]]
    ) -> tuple[str | None, dict[str, str]]:
        """Returns the path prefix of the first that is whole, and {path prefix: fault} of those before it."""
        faults: dict[str, str] = {}
        for folder, name in candidates:
            try:
                self._check(folder, name)
                return str(folder.path / name), faults
            except Damaged as damage:
                faults[str(folder.path / name)] = str(damage)
        return None, faults

    def _check(self, folder: CheckpointFolder, name: str) -> Record:
        record = folder.check(name)
        try:
            self._bases.check_files(record.base_files)
        except Damaged as damage:
            raise Damaged(f"of what it is based on, {damage}") from None
        return record

    def _records(self) -> list[Record | None]:
        """Returns the records of all checkpoints; None for one that cannot be read."""
        found: list[Record | None] = []
        for folder in (self._latest, self._best):
            for name in folder.names():
                try:
                    found.append(folder.read(name))
                except (Damaged, OtherFormat):
                    found.append(None)
        return found

    def _whole_base(self, base: Base) -> Files | None:
        """Returns the files of a base that a checkpoint needs; any other may be of another attempt."""
        for record in self._records():
            if record and record.base_name == base.name:
                try:
                    self._bases.check_files(record.base_files)
                    return record.base_files
                except Damaged:
                    pass
        return None

    def _save(
        self, folder: CheckpointFolder, variables: Mapping[str, tf.Variable], step: int, base: Base | None
    ) -> str:
        """Writes a checkpoint, after its base if there is none yet, and returns its name."""
        # It may be in the way, and takes room.
        self.remove_unfinished()
        name, bases = f"ckpt-{step}", base.variables if base else {}
        rest = {name: variable for name, variable in variables.items() if name not in bases}
        files = self._whole_base(base) if base and bases else None
        num_bytes = bytes_of(rest) + (bytes_of(bases) if bases and files is None else 0)
        what = f"checkpoint of step {step}" if folder is self._latest else f"best checkpoint (step {step})"
        whole = self._not_faulty()
        safe = f"the one of step {self.step_of(whole[-1])} is intact" if whole else "none was saved before"
        with told_failure(what, folder=folder.path, num_bytes=num_bytes, safe=safe):
            # First, so that no checkpoint is ever without its base.
            if base and bases and files is None:
                how = functools.partial(write_values, bases)
                files = self._bases.write(base.name, how, step=base.first_step)
            based_on = (base.name, files) if base and files else None
            folder.write(name, functools.partial(write_values, rest), step=step, base=based_on)
        return name

    def _told_whole(self, begin: str) -> str:
        steps = set()
        for folder in (self._latest, self._best):
            for name in folder.names():
                with contextlib.suppress(Damaged, OtherFormat):
                    self._check(folder, name)
                    steps.add(self.step_of(name))
        if steps:
            return f"{begin} are those of steps {', '.join(map(str, sorted(steps)))}"
        if self.exist():
            return "none is whole"
        return "there is none at all: of a run that was stopped before its first step, run the command again"
