"""The workers of a run that trains on several machines: what they agree on, and how they end together.

Each worker runs the whole program, in a folder of its own: nothing but the chief's is kept. So all make the
same calls in the same order, as TensorFlow's collective operations want it, and only what comes from outside,
such as the time, a signal, or what a cache holds, must be agreed on: by `Team.agree`, also in the same order.
"""

import base64
import contextlib
import functools
import hashlib
import json
import logging
import os
import queue
import re
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from trainer.cli.config import Config
from trainer.plugins import load_plugins
from trainer.run.links import Broken, Link, meet, tell_all
from trainer.runtime import Cluster, Stopping, has_joined, join, leave, named_cluster
from trainer.store.files import make_folder
from trainer.store.lock import Holder, file_lock
from trainer.store.places import cache_root
from trainer.store.provenance import code, versions
from trainer.values import CommonError, Interrupted, TrainerError, UsageError, in_words

_log = logging.getLogger("trainer")
SILENCE_SECS = 20.0
"""After which a worker that says nothing counts as gone."""
_BEAT_SECS = 1.0
# How long a worker that is told to end is given to come to the same end by itself.
_GRACE_SECS = 3.0
# Of a file, as it is sent: a third longer, in a message.
_PART_BYTES = 2**18
# Each worker may have its own.
_OF_A_WORKER = {"workdir", "cache_dir", "data_dir", "progress", "stop_signals", "plugin", "strategy"}
# The same for all, and a machine may lack what it asks for.
_OF_A_MACHINE = {"engine", "precision"}
# What decides by times of one machine before all is made, and would have to be agreed on.
REFUSED = {"budget": ""}
"""{option: its value without effect} of those that one worker alone may use."""


class Team:
    """The workers of this process's run: one by default, with which all is as if there were no teams."""

    index, count = 0, 1
    is_chief = True
    asked_workdir = ""
    """The --workdir that a worker with a folder of its own was started with."""

    def agree(self, what: str, value: Any) -> Any:
        """Returns the chief's value, which JSON must be able to say.

        Args:
          what: is agreed on, the same at all workers at this moment.
          value: of this worker.
        """
        return value

    def exchange(self, what: str, value: Any) -> list[Any]:
        """Returns the values of all workers, in order."""
        return [value]

    def agree_array(self, what: str, value: np.ndarray) -> np.ndarray:
        """Returns the chief's array, which has the shape and type of this worker's."""
        if self.count == 1:
            return value
        data = np.ascontiguousarray(value).tobytes()
        parts = [data[at : at + _PART_BYTES] for at in range(0, len(data), _PART_BYTES)]
        told = [self.agree(what, base64.b64encode(part).decode()) for part in parts]
        return np.frombuffer(b"".join(map(base64.b64decode, told)), value.dtype).reshape(value.shape)

    def clock(self) -> float:
        """Returns the seconds of a clock that shows the same to all: that of the chief."""
        return time.monotonic()

    def require_same(self, what: str, value: str) -> None:
        """Makes sure that all workers have the same.

        Raises:
          CommonError: one has not; the message names it.
        """
        for index, other in enumerate(found := self.exchange(what, value)):
            if other != found[0]:
                raise CommonError(
                    f"{self.name(index)} has other {what} than worker 0 ({other[:12]}, {found[0][:12]}): all "
                    "workers need the same"
                )

    def name(self, index: int) -> str:
        return f"worker {index}"

    def share(self, folder: Path) -> None:
        """Brings the files of the chief's folder to the folders of the others, before anything is read."""

    def stop(self, stop: Any) -> Any:
        """Returns a `StopSignal` that is seen by all workers at the same step."""
        return stop


_team = Team()


def team() -> Team:
    """Returns the workers of the run of this process."""
    return _team


def settled(config: Config) -> Cluster | None:
    """Returns the workers that are to train together; None: this process trains alone.

    Raises:
      UsageError: the environment and --strategy do not go together, or an option works with one worker only.
    """
    asked, cluster = config.run.strategy, named_cluster()
    if cluster is None:
        if asked == "multi_worker" and not _names_one():
            raise UsageError(
                "--strategy=multi_worker: nothing says which workers there are. Set TF_CONFIG for each, or "
                "start them by srun: see docs/cluster.md"
            )
        return None
    count = len(cluster.addresses)
    if asked not in ("auto", "multi_worker"):
        if cluster.named_by == "SLURM":
            # Many runs, one a task: what --strategy=one is for.
            return None
        raise UsageError(
            f"TF_CONFIG lists {count} workers, and --strategy={asked} trains with one: use "
            "--strategy=multi_worker, or unset it (env -u TF_CONFIG ...)"
        )
    flat = config.flat()
    for name, off in REFUSED.items():
        if flat[name] != off:
            raise UsageError(
                f"--{name}={flat[name]} works with one worker, and there are {count}: leave it out, or use "
                "--strategy=one"
            )
    return cluster


def _names_one() -> bool:
    """Returns whether a cluster of one is named, as services do that start one worker or more."""
    if os.environ.get("SLURM_STEP_NUM_TASKS") == "1":
        return True
    with contextlib.suppress(ValueError, AttributeError):
        return bool(json.loads(os.environ.get("TF_CONFIG", "")).get("cluster"))
    return False


@contextlib.contextmanager
def together(config: Config, stop: Stopping) -> Iterator[Config]:
    """Joins the other workers for a block, where there are any, and parts from them at its end.

    Gives the options of this worker: of one that is not the chief with a --workdir of its own, which is
    removed in the end. Where another worker ends before, this one does, too, whatever it is at: with one line
    that names it, and status 75 where a checkpoint stands.

    Raises:
      UsageError: the workers are not about to do the same, or options do not fit several.
      TrainerError: one did not come, or cannot be reached.
    """
    global _team
    cluster = settled(config)
    if cluster is None:
        yield config
        return
    if has_joined():
        raise UsageError(
            "this process has trained with several workers, which TensorFlow allows once: start another one"
        )
    count = len(cluster.addresses)
    _log.info("workers:     %s of %d, by %s", cluster.told(cluster.index), count, cluster.named_by)
    facts = facts_of(config)
    links = meet(cluster, facts=facts, limit_secs=config.run.wait_for_workers_secs)
    own_options = _OF_A_MACHINE | {name for name in config.flat() if f"--{name}" not in facts}
    joined = Joined(cluster, links, own_options=own_options)
    with contextlib.ExitStack() as stack:
        stack.enter_context(joined.leaving())
        # As long as no worker has what the chief shares, only that one knows.
        begun = joined.agree("the newest checkpoint", _stands(Path(config.run.workdir) / "checkpoints"))
        joined.stands = lambda: begun
        join(cluster)
        _team = joined
        stack.callback(_forget)
        if not joined.is_chief:
            joined.asked_workdir = config.run.workdir
            config = config.replace(workdir=str(stack.enter_context(_own_folder(config, cluster))))
            config = config.replace(progress="plain")
            _log.info("workers:     %s tells how the run goes", cluster.told(0))
            stack.enter_context(_quiet())
        joined.stands = functools.partial(_stands, Path(config.run.workdir) / "checkpoints", begun=begun)
        stack.callback(joined.note_stand)
        yield config


def _forget() -> None:
    global _team
    _team = Team()


def facts_of(config: Config) -> dict[str, Any]:
    """Returns what must be the same at all workers, by names for people."""
    import tensorflow as tf

    names = Config.naming()
    facts: dict[str, Any] = {}
    for name, value in config.flat().items():
        # What has a path may be elsewhere; whether it holds the same shows when it is opened.
        is_place = name in names and _is_path(str(value))
        if name not in _OF_A_WORKER and not is_place:
            facts[f"--{name}"] = value
    for plugin in load_plugins(config.run.plugin):
        facts[f"the SHA-256 of the plugin {plugin.name}"] = plugin.sha256
    facts |= {f"the version of {name}": version for name, version in versions().items()}
    facts["the SHA-256 of this program's code"] = code()["source_sha256"]
    facts["the number of GPUs"] = len(tf.config.list_physical_devices("GPU"))
    return facts


def _is_path(text: str) -> bool:
    """Returns whether a text is a path, or has one behind its scheme, as folder:photos has."""
    return "/" in text or any(one and os.path.exists(one) for one in (text, text.partition(":")[2]))


@contextlib.contextmanager
def _own_folder(config: Config, cluster: Cluster) -> Iterator[Path]:
    """Makes the folder of a worker that is not the chief, empty: one that was killed has left its own."""
    named = json.dumps([cluster.addresses, str(Path(config.run.workdir).absolute())])
    name = f"{hashlib.sha256(named.encode()).hexdigest()[:16]}-{cluster.index}"
    root = cache_root(config.run.cache_dir) / "workers"
    make_folder(root, flag=f"--cache_dir={config.run.cache_dir}", wrong="is a file, or lies below one")
    with contextlib.ExitStack() as stack:
        # One at a time: who looks for what the dead left behind holds the lock of each for a moment.
        with file_lock(root / "start.lock"):
            lock = stack.enter_context(file_lock(root / f"{name}.lock", wait=False))
            if lock.holder:
                raise TrainerError(f"{root / name} is in use by {lock.holder}")
            _remove_lost(root)
        shutil.rmtree(root / name, ignore_errors=True)
        try:
            yield root / name
        finally:
            shutil.rmtree(root / name, ignore_errors=True)


def _remove_lost(root: Path) -> None:
    """Removes what killed workers of this machine left: a living one holds the lock of its folder."""
    for folder in root.glob("*-*/"):
        lock, holder = root / f"{folder.name}.lock", None
        with contextlib.suppress(OSError):
            holder = Holder.parse(lock.read_text())
        # Whether a lock of another machine is seen here depends on the file system.
        if holder and holder.host != socket.gethostname():
            continue
        with file_lock(lock, wait=False) as is_lost:
            if is_lost:
                shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Leaves what is said to the chief, but for warnings."""
    before = _log.level
    _log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        _log.setLevel(before)


def _stands(folder: Path, *, begun: int | None = None) -> int | None:
    """Returns the step of the newest checkpoint in a folder; `begun` where there is none."""
    steps = [int(path.stem.rpartition("-")[2]) for path in folder.glob("ckpt-*.index")]
    return max(steps, default=begun)


def _way_on(step: int | None) -> str:
    if step is None:
        return "Nothing was saved; run the same command on all workers to start again"
    return f"Run the same command on all workers to continue from step {step:,}"


class Joined(Team):
    """Several workers, of whom this process is one."""

    def __init__(self, cluster: Cluster, links: list[Link], *, own_options: Collection[str] = ()):
        """Begins to hear the others; `own_options` are those that may be wrong at one worker alone."""
        self._cluster, self._links, self._own_options = cluster, links, frozenset(own_options)
        self.index, self.count = cluster.index, len(cluster.addresses)
        self.is_chief = cluster.index == 0
        self.stands: Callable[[], int | None] = lambda: None
        self._asked = ""
        self._has_asked = self._is_stopping = self._is_parting = False
        self._is_over = threading.Event()
        self._ends = threading.Lock()
        for link in links:
            threading.Thread(target=self._hear, args=(link,), daemon=True).start()
        threading.Thread(target=self._beat, daemon=True).start()

    def note_stand(self) -> None:
        """Keeps in mind what `stands` says: the folder of a worker goes before all have parted."""
        step = self.stands()
        self.stands = lambda: step

    def name(self, index: int) -> str:
        return self._cluster.told(index)

    def agree(self, what: str, value: Any) -> Any:
        if self.is_chief:
            self._send_all(agreed=what, value=value)
            return json.loads(json.dumps(value))
        return self._next(self._links[0], "agreed", what)["value"]

    def exchange(self, what: str, value: Any) -> list[Any]:
        if self.is_chief:
            values = [value, *(self._next(link, "given", what)["value"] for link in self._links)]
            return list(self.agree(what, values))
        self._send_all(given=what, value=value)
        return list(self._next(self._links[0], "agreed", what)["value"])

    def clock(self) -> float:
        return float(self.agree("clock", time.monotonic()))

    def share(self, folder: Path) -> None:
        if self.is_chief:
            for path in sorted(folder.rglob("*")):
                if path.is_file() and path.name != "lock":
                    self._send_file(path, str(path.relative_to(folder)))
            self._send_all(file="", parts=0)
            return
        while name := (head := self._next(self._links[0], "file", None))["file"]:
            path = (folder / name).resolve()
            if not path.is_relative_to(folder.resolve()):
                raise TrainerError(f"{self.name(0)} sends a file for {name!r}, which is outside of the run")
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "wb") as file:
                for _ in range(head["parts"]):
                    file.write(base64.b64decode(self._next(self._links[0], "part", None)["part"]))

    def _send_file(self, path: Path, name: str) -> None:
        parts = -(-path.stat().st_size // _PART_BYTES)
        self._send_all(file=name, parts=parts)
        with open(path, "rb") as file:
            for _ in range(parts):
                self._send_all(part=base64.b64encode(file.read(_PART_BYTES)).decode())

    def stop(self, stop: Stopping) -> "_AgreedStop":
        return _AgreedStop(self, stop)

    def stopping(self, why: str, received: str) -> str:
        """Returns why all workers are to stop now; empty if they are not.

        Args:
          why: this one is asked to, if it is the chief.
          received: the signal that this one has got.
        """
        if received and not self.is_chief and not self._has_asked:
            self._has_asked = True
            self._send_all(asked=f"{received} to {self.name(self.index)}")
        told = str(self.agree("stop", why or self._asked))
        self._is_stopping = self._is_stopping or bool(told)
        return told

    @contextlib.contextmanager
    def leaving(self) -> Iterator[None]:
        """Parts from the others at the end of a block: together, or, where it fails, by telling them."""
        try:
            yield
        except BaseException as error:
            if self._is_stopping and isinstance(error, Interrupted):
                self._part()
            else:
                self._fail(error)
            raise
        self._part()

    def _part(self) -> None:
        """Waits until all others are done, too: without one, TensorFlow's operations fail in the others."""
        self._is_parting = True
        if self.is_chief:
            for link in self._links:
                self._next(link, "done", None, may_be_gone=True)
            self._is_over.set()
            tell_all(self._links, bye=True)
        else:
            self._send_all(done=True)
            self._next(self._links[0], "bye", None)
            self._is_over.set()
        self._close()

    def _fail(self, error: BaseException) -> None:
        """Tells the others why this one leaves; who fails for want of another is ended by `_hear`."""
        if _may_be_of_another(error):
            # TensorFlow notices first, and does not know who it was.
            self._is_over.wait(SILENCE_SECS + 2 * _BEAT_SECS)
        self._is_over.set()
        told = in_words(error) if isinstance(error, Exception) else str(error)
        status = getattr(error, "exit_status", 1)
        of_all = self._is_of_all(error)
        tell_all(self._links, leaving=told or type(error).__name__, status=status, of_all=of_all)
        self._close()

    def _is_of_all(self, error: BaseException) -> bool:
        """Returns whether all workers come to an error, as they do the same with the same options."""
        if isinstance(error, UsageError):
            return self._own_options.isdisjoint(re.findall(r"--(\w+)", str(error)))
        return isinstance(error, CommonError)

    def _close(self) -> None:
        for link in self._links:
            link.close()

    def _send_all(self, **message: Any) -> None:
        for link in self._links:
            try:
                link.send(**message)
            except Broken as error:
                self._lost(link, f"is gone: {error}")

    def _next(self, link: Link, kind: str, what: str | None, *, may_be_gone: bool = False) -> dict[str, Any]:
        """Returns the next message of a worker, which must be of a kind."""
        while True:
            try:
                # In parts, so that signals are heard.
                message = link.inbox.get(timeout=0.5)
            except queue.Empty:
                continue
            if may_be_gone and "gone" in message:
                return message
            if kind not in message or (what is not None and message[kind] != what):
                raise TrainerError(
                    f"the workers came apart: {link.name} is at {json.dumps(message)[:80]}, and this one at "
                    f"{what or kind}. Run the same command again on all"
                )
            return message

    def _beat(self) -> None:
        while not self._is_over.wait(_BEAT_SECS):
            tell_all(self._links, beat=True)

    def _hear(self, link: Link) -> None:
        """Takes what a worker sends, in a thread, until it is gone."""
        link.heard_at = time.monotonic()
        while not self._is_over.is_set():
            try:
                message = link.receive(1.0)
            except Broken as error:
                self._miss(link, f"is gone: {error}")
                return
            if message is None:
                if time.monotonic() - link.heard_at > SILENCE_SECS:
                    self._miss(link, f"has said nothing for {SILENCE_SECS:g} s")
                    return
            elif "asked" in message:
                self._asked = self._asked or str(message["asked"])
            elif "leaving" in message:
                why, of_all = str(message["leaving"]), bool(message["of_all"])
                end = {"status": message["status"], "of_all": of_all, "grace": _GRACE_SECS}
                self._miss(link, why if of_all else f"has ended: {why}", **end)
                return
            elif "lost" in message:
                end = {name: message[name] for name in ("status", "of_all", "grace")}
                self._end(str(message["lost"]), **end)
                return
            elif "beat" not in message:
                link.inbox.put(message)
                if "bye" in message:
                    # What follows is the end of the connection.
                    return

    def _miss(self, link: Link, why: str, **end: Any) -> None:
        """Does what follows when a worker has gone: the arguments are those of `_lost`."""
        if self._is_parting and self.is_chief:
            # All is written: that the other did not part is no failure of the run.
            link.inbox.put({"gone": True})
        elif not self._is_over.is_set():
            self._lost(link, why, **end)

    def _lost(
        self, link: Link, why: str, *, status: int = 1, of_all: bool = False, grace: float = 0.0
    ) -> None:
        told = why if of_all else f"{link.name} {why}"
        end = {"status": status, "of_all": of_all, "grace": grace}
        tell_all([other for other in self._links if other is not link], lost=told, **end)
        self._end(told, status=status, of_all=of_all, grace=grace)

    def _end(self, told: str, *, status: int, of_all: bool, grace: float) -> None:
        """Ends this process: nothing else gets the main thread out of an operation that waits for another.

        What is `of_all` is said as this worker would have said it, had it come to it in that time.
        """
        if self._is_over.wait(grace):
            return None
        with self._ends:
            if self._is_over.is_set():
                return None
            way_on = ""
            # To what all have come, all would come again.
            if not of_all and status != UsageError.exit_status:
                step = self.stands()
                status = 75 if status == 1 and step is not None else status
                way_on = f". {_way_on(step)}"
            with contextlib.suppress(OSError):
                sys.stdout.flush()
                print(f"trainer: {told}{way_on}", file=sys.stderr, flush=True)
            leave(status)


class _AgreedStop:
    """What `StopSignal` tells of the wish to stop, to all workers at once."""

    def __init__(self, team: Joined, stop: Stopping):
        self._team, self._stop = team, stop

    def received(self) -> str:
        received = self._stop.received()
        return self._team.stopping(received, received)

    def requested(self) -> str:
        return self._team.stopping(self._stop.requested(), self._stop.received())


def _may_be_of_another(error: BaseException) -> bool:
    """Returns whether an error may be that an operation misses a worker, as TensorFlow tells it."""
    import tensorflow as tf

    kinds = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError)
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, kinds) or (isinstance(found, tf.errors.OpError) and "ollective" in str(found)):
            return True
        # Where it was put into words on its way.
        found = found.__context__
    return False
