"""Locks that processes share, and who holds them: the one way to lock a workdir, a cache or a download.

A lock is a file, and the system frees it when a process dies. Where the file system
cannot lock, its text still tells who was there last.
"""

import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainer.store.files import UNSUPPORTED, warn_unsupported

_log = logging.getLogger("trainer")
_MAX_ATTEMPTS = 1000
_ASK_EVERY_SECS = 0.1
_CANNOT_LOCK = {*UNSUPPORTED, errno.ENOLCK}


@dataclass(frozen=True)
class Holder:
    """A process, told from all others: two containers may share the name of a host and the number."""

    host: str
    pid: int
    boot_id: str = ""
    """Of the running kernel; empty where the system does not tell."""
    pid_namespace: str = ""
    """What the number counts in, such as pid:[4026531836]."""
    started: str = ""
    """When it started, in clock ticks since the boot: numbers are used again."""

    @classmethod
    def this_process(cls) -> "Holder":
        """Returns the holder that this process is."""
        pid = os.getpid()
        return cls(socket.gethostname(), pid, _boot_id(), _pid_namespace(), _started(pid))

    @classmethod
    def parse(cls, text: str) -> "Holder | None":
        """Returns the holder that signed a file; None where none of this version did."""
        try:
            return cls(**json.loads(text.splitlines()[1]))
        except (IndexError, ValueError, TypeError):
            return None

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    def signature(self) -> str:
        """Returns what it writes into a lock: a line for people, and one for `parse`."""
        return f"{self}\n{json.dumps(asdict(self))}\n"

    def is_alive(self) -> bool | None:
        """Returns whether the process lives; None where that cannot be told from here."""
        here = Holder.this_process()
        if not (self.boot_id and self.pid_namespace and self.started):
            return None
        if (self.boot_id, self.pid_namespace) != (here.boot_id, here.pid_namespace):
            return None
        return _started(self.pid) == self.started


@dataclass(frozen=True)
class Lock:
    """What became of an attempt: true where it is held.

    Otherwise `holder` says who has it, if known, and `error` why the file cannot be opened, if that is it.
    """

    held: bool
    holder: str = ""
    error: OSError | None = None

    def __bool__(self) -> bool:
        return self.held


@contextlib.contextmanager
def file_lock(
    path: Path,
    *,
    wait: bool = True,
    waiting_for: str = "",
    while_waiting: Callable[[], None] | None = None,
    stays: bool = False,
) -> Iterator[Lock]:
    """Holds a lock, and gives whether it does; not where files cannot be locked or created.

    Args:
      path: the file, which need not exist; its folder does.
      wait: for the one who holds it; otherwise gives who that is.
      waiting_for: logged with the process waited for; empty logs nothing.
      while_waiting: called several times a second meanwhile; it may raise to end that.
      stays: whether the file is left behind, empty; otherwise it is removed.
    """
    lock, handle = _acquire(path, wait=wait, waiting_for=waiting_for, while_waiting=while_waiting)
    if handle is None:
        yield lock
        return
    try:
        yield lock
    finally:
        # While it is held: afterwards it may be another's.
        with contextlib.suppress(OSError):
            os.ftruncate(handle, 0) if stays else os.unlink(path)
        _release(handle)


def held_by(path: Path) -> str:
    """Returns who holds a lock, in words; empty where nobody does, as far as can be told."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return ""
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _signed(handle) or "another process"
    except OSError:
        return _alive(handle)
    finally:
        os.close(handle)
    return ""


def _release(handle: int) -> None:
    # Closing is not enough where a forked process has a copy.
    with contextlib.suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_UN)
    os.close(handle)


def _acquire(path: Path, **waiting: Any) -> tuple[Lock, int | None]:
    """Returns what became of it, and the open file that is to be removed at the end."""
    # Bounded, as there are file systems on which a file is never the same twice.
    for _ in range(_MAX_ATTEMPTS):
        try:
            handle = _open(path)
        except OSError as error:
            return Lock(False, error=error), None
        try:
            _flock(handle, **waiting)
            # It may have been removed before it was locked, and then locks nobody out.
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                _sign(handle)
                return Lock(True), handle
        except FileNotFoundError:
            pass
        except BlockingIOError:
            holder = _signed(handle) or "another process"
            os.close(handle)
            return Lock(False, holder), None
        except OSError as error:
            if error.errno in _CANNOT_LOCK:
                warn_unsupported(path, "lock files", error)
            return _without_lock(handle)
        except BaseException:
            os.close(handle)
            raise
        _release(handle)
    warn_unsupported(path, "lock files", OSError(errno.ENOLCK, "a file is never the same one twice"))
    return Lock(False), None


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except PermissionError:
        # Another user's, which can be locked all the same, but not signed.
        return os.open(path, os.O_RDONLY)


def _without_lock(handle: int) -> tuple[Lock, int | None]:
    """Signs a file that cannot be locked, unless who signed it before is known to live."""
    if holder := _alive(handle):
        os.close(handle)
        return Lock(False, holder), None
    _sign(handle)
    return Lock(False), handle


def _flock(
    handle: int, *, wait: bool, waiting_for: str, while_waiting: Callable[[], None] | None = None
) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if not wait:
            raise
        if waiting_for:
            # Who looks for what the dead left behind holds each lock for a moment: that is not worth a line.
            if _free_soon(handle):
                return
            _log.info("%s: waiting for %s", waiting_for, _signed(handle) or "another process")
        if not while_waiting:
            fcntl.flock(handle, fcntl.LOCK_EX)
            return
        while not _free_after(_ASK_EVERY_SECS, handle):
            while_waiting()


def _free_soon(handle: int) -> bool:
    """Returns whether the lock was had within a fifth of a second."""
    return any(_free_after(0.02, handle) for _ in range(10))


def _free_after(secs: float, handle: int) -> bool:
    """Returns whether the lock was had after so long."""
    time.sleep(secs)
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def _sign(handle: int) -> None:
    # A full disk takes no name, but the lock is held all the same.
    with contextlib.suppress(OSError):
        os.ftruncate(handle, 0)
        os.pwrite(handle, Holder.this_process().signature().encode(), 0)


def _text(handle: int) -> str:
    with contextlib.suppress(OSError):
        return os.pread(handle, 2000, 0).decode(errors="replace")
    return ""


def _signed(handle: int) -> str:
    return _text(handle).partition("\n")[0].strip()


def _alive(handle: int) -> str:
    holder = Holder.parse(_text(handle))
    return str(holder) if holder and holder.is_alive() else ""


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _started(pid: int) -> str:
    """Returns field 22 of /proc/PID/stat; empty where there is no such process, or no /proc."""
    try:
        # The second field is the name of the program, which may hold anything.
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
