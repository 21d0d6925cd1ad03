"""A lock that processes share: a file, there while it is held. The system frees it when a process dies."""

import contextlib
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

_log = logging.getLogger("trainer")
_MAX_ATTEMPTS = 1000


@contextlib.contextmanager
def file_lock(path: Path, *, wait: bool = True, waiting_for: str = "") -> Iterator[bool]:
    """Holds a lock, and gives whether it does; not where files cannot be locked or created.

    Args:
      path: the file, which need not exist; its folder does.
      wait: for the one who holds it; otherwise gives False.
      waiting_for: logged with the process waited for; empty logs nothing.
    """
    handle = _acquire(path, wait=wait, waiting_for=waiting_for)
    if handle is None:
        yield False
        return
    try:
        yield True
    finally:
        # While it is held: afterwards it may be another's.
        with contextlib.suppress(OSError):
            os.unlink(path)
        _release(handle)


def _release(handle: int) -> None:
    # Closing is not enough where a forked process has a copy.
    with contextlib.suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_UN)
    os.close(handle)


def _acquire(path: Path, *, wait: bool, waiting_for: str) -> int | None:
    # Bounded, as there are file systems on which a file is never the same twice.
    for _ in range(_MAX_ATTEMPTS):
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError:
            return None
        try:
            _flock(handle, wait=wait, waiting_for=waiting_for)
            # It may have been removed before it was locked, and then locks nobody out.
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                _sign(handle)
                return handle
        except FileNotFoundError:
            pass
        except BlockingIOError:
            os.close(handle)
            return None
        except OSError:
            # Nobody can lock it here, so nobody misses it.
            with contextlib.suppress(OSError):
                os.unlink(path)
            os.close(handle)
            return None
        except BaseException:
            os.close(handle)
            raise
        _release(handle)
    return None


def _flock(handle: int, *, wait: bool, waiting_for: str) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if not wait:
            raise
        if waiting_for:
            holder = os.pread(handle, 200, 0).decode(errors="replace").strip() or "another process"
            _log.info("%s: waiting for %s", waiting_for, holder)
        fcntl.flock(handle, fcntl.LOCK_EX)


def _sign(handle: int) -> None:
    # A full disk takes no name, but the lock is held all the same.
    with contextlib.suppress(OSError):
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
