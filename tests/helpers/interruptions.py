"""What a kill leaves: the disk as it is right before each side effect of a run, and half-written files."""

import contextlib
import dataclasses
import hashlib
import itertools
import os
import random
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest
import tensorflow as tf
from tensorflow.python.ops import summary_ops_v2

Disk = Mapping[str, bytes | None]
"""{root/path: content of the file, None for a folder}"""

_CHANGES = {
    "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink", "os.chmod",
    "os.utime",
}  # fmt: skip
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
TRAINER = f"{os.sep}trainer{os.sep}"


@dataclasses.dataclass(frozen=True)
class Kill:
    """A moment, and the disk as a process leaves it that dies then."""

    when: str
    disk: Disk

    @property
    def digest(self) -> str:
        return digest_of(self.disk)


def digest_of(disk: Disk) -> str:
    digest = hashlib.sha256()
    for name, content in sorted(disk.items()):
        digest.update(f"{name}\0{-1 if content is None else len(content)}\0".encode() + (content or b""))
    return digest.hexdigest()


def read_disk(roots: Mapping[str, Path]) -> dict[str, bytes | None]:
    """Reads folders; what vanishes meanwhile is left out."""
    found: dict[str, bytes | None] = {}
    for name, root in roots.items():
        for folder, _, files in os.walk(root):
            at = name + folder.removeprefix(str(root))
            found[at] = None
            for file in files:
                with contextlib.suppress(FileNotFoundError), open(os.path.join(folder, file), "rb") as opened:
                    found[f"{at}/{file}"] = opened.read()
    return found


def write_disk(disk: Disk, roots: Mapping[str, Path]) -> None:
    """Makes folders what `read_disk` read."""
    for name, root in roots.items():
        shutil.rmtree(root, ignore_errors=True)
        for at, content in sorted(disk.items()):
            if at == name or at.startswith(f"{name}/"):
                path = Path(f"{root}{at.removeprefix(name)}")
                if content is None:
                    path.mkdir(parents=True)
                else:
                    path.write_bytes(content)


class Observer:
    """Reads folders right before each side effect within them. SIGKILL at that moment leaves just that.

    What Python does to files it tells an audit hook of; what it writes into open ones gets there when they
    are flushed, synced or closed. What TensorFlow writes is seen before and after its calls.
    """

    def __init__(self, roots: Mapping[str, Path]):
        self.kills: list[Kill] = []
        self.num_side_effects = 0
        self._roots = roots
        self._seen: set[str] = set()
        self._lock = threading.RLock()

    @contextlib.contextmanager
    def observing(self) -> Iterator[None]:
        _install()
        with pytest.MonkeyPatch.context() as patch:
            self._look_before(patch, os, "fsync")
            self._look_before(patch, tf.train.Checkpoint, "write")
            self._look_before(patch, tf.raw_ops, "SaveV2")
            self._look_before(patch, tf.raw_ops, "ImportEvent")
            self._look_before(patch, tf.summary, "create_file_writer")
            for name in ("flush", "close"):
                self._look_before(patch, summary_ops_v2._ResourceSummaryWriter, name)
            _observers.append(self)
            try:
                yield
            finally:
                _observers.remove(self)
        self.look("at the end")

    def look(self, what: str) -> None:
        with self._lock:
            self.num_side_effects += 1
            kill = Kill(f"{self.num_side_effects}: {what}, {_place()}", read_disk(self._roots))
            if kill.digest not in self._seen:
                self._seen.add(kill.digest)
                self.kills.append(kill)

    def _look_before(self, patch: pytest.MonkeyPatch, where: object, name: str) -> None:
        original: Callable = getattr(where, name)

        def looking(*args: object, **kwargs: object) -> object:
            self.look(name)
            result = original(*args, **kwargs)
            self.look(f"after {name}")
            return result

        patch.setattr(where, name, looking)

    def audit(self, event: str, args: tuple) -> None:
        if event == "open":
            path, _, flags = args
            if not isinstance(flags, int) or not flags & _WRITES:
                return
        elif event in _CHANGES:
            path = args[0]
        else:
            return
        if isinstance(path, int):
            path = ""
        path = os.fsdecode(path)
        # Relative ones are of shutil, which removes folders by their handles.
        if not os.path.isabs(path) or any(path.startswith(str(root)) for root in self._roots.values()):
            self.look(f"before {event} {os.path.basename(path)}")


_observers: list[Observer] = []


def _install(done: list = []) -> None:  # noqa: B006
    # There is no way to take one away.
    if not done:
        done.append(sys.addaudithook(lambda event, args: [o.audit(event, args) for o in _observers]))


def _place() -> str:
    """Returns the line of the program that is being executed."""
    frame = sys._getframe()
    while frame and TRAINER not in frame.f_code.co_filename:
        frame = frame.f_back
    return f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}" if frame else "elsewhere"


def torn(kills: Sequence[Kill], *, seed: int) -> list[Kill]:
    """Returns the disks that a kill in the middle of a write leaves, cut at a random place.

    What was moved into place was whole before. So this is for event files and metrics.jsonl, which grow, for
    files that do not yet have their lasting names, and for whatever is written where it is to stay. Of what
    one call of TensorFlow writes, some may not be there yet.
    """
    chance, found = random.Random(seed), []
    for before, after in itertools.pairwise(kills):
        gone = [content for name, content in before.disk.items() if name not in after.disk]
        written = {}
        for name, content in after.disk.items():
            old = before.disk.get(name) or b""
            if content and content != old and content not in gone:
                written[name] = (content, len(old) if content.startswith(old) else 0)
        for name, (content, start) in written.items():
            disk, others = dict(after.disk), [other for other in written if other not in (name, *before.disk)]
            for other in others:
                if chance.random() < 0.5:
                    del disk[other]
            # An empty file that is moved later differs in nothing from one with a few bytes.
            cuts = {chance.randrange(start, len(content))}
            cuts |= {start} if os.path.basename(name).startswith(("events.", "metrics.")) else set()
            for cut in sorted(cuts):
                if content[:cut] != before.disk.get(name):
                    when = f"{after.when}, {name} having {cut} of {len(content)} bytes"
                    found.append(Kill(when, {**disk, name: content[:cut]}))
    return found


def changed(before: Disk, after: Disk) -> set[str]:
    """Returns the files and folders that are not what they were; one that was moved counts once."""
    names = {name for name in {*before, *after} if before.get(name, 0) != after.get(name, 0)}
    gone = {before[name]: name for name in names if name not in after and before[name] is not None}
    moved = {gone[after[name]] for name in names if after.get(name) in gone}
    return names - moved
