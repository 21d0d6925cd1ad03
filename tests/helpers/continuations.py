"""Kills a run of this process between all its side effects, and goes on from there with the same command."""

import contextlib
import io
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import call_main
from tests.helpers.interruptions import Kill, Observer, write_disk
from tests.helpers.run_results import differences, kept_features, results, without_older
from tests.helpers.warm_runs import Warm

CODE = {"trainer": "1", "git_commit": None, "source_sha256": "2"}


class Killed:
    """A run that is started again and again in one workdir, with a cache folder of its own.

    Args:
      arguments: its options, but for these two.
      folder: where it works.
      warm: what the first run makes is kept for those that go on. Then something should go on with nothing
        kept, too: that it is the same run is what the rest is worth.
    """

    def __init__(self, arguments: Sequence[object], folder: Path, *, warm: bool = False):
        self.workdir, self.cache = folder / "run", folder / "cache"
        self.arguments = (*arguments, f"--workdir={self.workdir}", f"--cache_dir={self.cache}")
        self.roots = {"run": self.workdir, "cache": self.cache}
        self._warm = Warm()
        self.num_side_effects = 0
        self.kills = self.observe(warm=warm)
        self.expected = self.left()

    def start(self, *changes: object) -> int:
        """Calls the program and returns its status; what it prints is thrown away."""
        # The code is not read anew each time, and somebody may be working on it.
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
            for name in ("commands.train.code", "run.introduction.code", "run.introduction.versions"):
                patch.setattr(f"trainer.{name}", lambda: CODE)
            return call_main(*self.arguments, *changes)

    def left(self) -> dict[str, Any]:
        """Returns all that the run has left, which must not depend on interruptions."""
        return results(self.workdir) | kept_features(self.cache)

    @contextlib.contextmanager
    def warm(self) -> Iterator[None]:
        with self._warm.runs():
            yield

    def put_back(self, kill: Kill | None) -> None:
        """Makes the disk what it was when the run was killed; None: before it was started."""
        write_disk(kill.disk if kill else {}, self.roots)

    def observe(self, kill: Kill | None = None, *, warm: bool = True) -> list[Kill]:
        """Goes on to the end, and returns how the disk was before each side effect."""
        self.put_back(kill)
        observer = Observer(self.roots)
        with self.warm() if warm else contextlib.nullcontext(), observer.observing():
            assert self.start() == 0
        self.num_side_effects = observer.num_side_effects
        return observer.kills

    def faults(self, kills: Iterable[Kill], *, warm: bool = True, asked: bool = False) -> list[str]:
        """Goes on from each kill to the end, and returns, in words, what differs from the unbroken run.

        Args:
          kills: from where.
          warm: as fast as it goes; otherwise as a new process does.
          asked: the run was asked to stop, so that its older checkpoints are others.
        """
        found = []
        with self.warm() if warm else contextlib.nullcontext():
            for kill in kills:
                self.put_back(kill)
                try:
                    status = self.start()
                    wrong = self.differences(asked=asked) if status == 0 else [f"status {status}"]
                except Exception as error:
                    wrong = [repr(error)]
                found += [f"killed at {kill.when}: {fault}" for fault in wrong]
        return found

    def differences(self, *, asked: bool = False) -> list[str]:
        """Returns, in words, how what the finished run has left differs from the unbroken one."""
        got, expected = self.left(), self.expected
        return (
            differences(without_older(got), without_older(expected)) if asked else differences(got, expected)
        )


def while_recovering(kills: Sequence[Kill]) -> list[Kill]:
    """Returns those before a new point is in metrics.jsonl, or a new checkpoint is begun."""
    begun = re.compile(r"mkdir \.part-.* checkpoint_files|open metrics\.jsonl")
    end = next((at for at, kill in enumerate(kills) if begun.search(kill.when)), len(kills))
    return list(kills[: end + 1])


def told_faults(run: Killed, kills: Sequence[Kill], **how: Any) -> None:
    """Fails with all that differs, whatever it was killed at."""
    start = time.perf_counter()
    faults = run.faults(kills, **how)
    print(f"{len(kills)} kills, {len(faults)} faults, {time.perf_counter() - start:.1f} s", end=" ")
    if faults:
        pytest.fail("\n".join(faults), pytrace=False)
