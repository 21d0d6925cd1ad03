"""The lock between processes; what it is for is tested with the feature store."""

import dataclasses
import errno
import fcntl
import os
import shutil
import subprocess
import sys
import threading

import pytest

from trainer.store import files
from trainer.store import lock as module
from trainer.store.files import PART_PREFIX
from trainer.store.lock import Holder, file_lock, held_by
from trainer.store.unpack import remove_left_overs


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x.lock"


def taken(path):
    with file_lock(path, wait=False) as held:
        return not held


def test_it_is_held_by_one_and_gone_afterwards(path):
    with file_lock(path) as held:
        assert held
        assert path.read_text().startswith(f"process {os.getpid()} on ")
        assert taken(path)
        assert path.exists()
    assert not path.exists()
    assert not taken(path)


def test_an_error_frees_it(path):
    def fail():
        with file_lock(path):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert not path.exists()


def test_a_file_removed_between_opening_and_locking_locks_nobody_out(path, monkeypatch):
    flock, calls = fcntl.flock, []

    def flock_too_late(handle, operation):
        calls.append(handle)
        if len(calls) == 1:
            path.unlink()
        return flock(handle, operation)

    monkeypatch.setattr(module.fcntl, "flock", flock_too_late)
    with file_lock(path) as held:
        assert held
        assert taken(path)


def test_its_file_goes_while_it_is_held(path, monkeypatch):
    flock, there = fcntl.flock, []

    def tell(handle, operation):
        if operation == fcntl.LOCK_UN:
            there.append(path.exists())
        return flock(handle, operation)

    monkeypatch.setattr(module.fcntl, "flock", tell)
    with file_lock(path):
        pass
    assert there == [False]


def test_many_never_hold_it_together(path):
    inside, most = [], []

    def work():
        for _ in range(50):
            with file_lock(path) as held:
                inside.append(held)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert most == [1] * 400
    assert not path.exists()


def test_where_nothing_can_be_created_it_is_not_held(tmp_path):
    with file_lock(tmp_path / "none" / "x.lock") as held:
        assert not held


@pytest.fixture
def no_locks(monkeypatch):
    """no_locks(number): from now on flock fails with an error; nothing was warned of before."""

    def begin(number=errno.ENOSYS):
        def fail(*args):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(module.fcntl, "flock", fail)
        monkeypatch.setattr(files, "warned", set())

    return begin


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EPERM])
def test_where_files_cannot_be_locked_it_is_not_held_and_leaves_nothing(path, no_locks, number, caplog):
    no_locks(number)
    for _ in range(2):
        with file_lock(path) as held:
            assert not held
            assert held.holder == ""
        assert not path.exists()
    [line] = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"{path}: this file system cannot lock files ({os.strerror(number)}); continuing")


def test_where_files_cannot_be_locked_one_that_lives_is_known_by_its_text(path, no_locks):
    no_locks()
    with file_lock(path):
        with file_lock(path, wait=False) as held:
            assert not held
            assert held.holder == f"process {os.getpid()} on {os.uname().nodename}"
        assert held_by(path) == held.holder
    assert held_by(path) == ""
    here = Holder.this_process()
    assert here.is_alive() is True
    for another in (
        # Its number was used again, its machine was started again, it counts in another container.
        dataclasses.replace(here, started="1"),
        dataclasses.replace(here, pid=2**22 + 1),
        dataclasses.replace(here, boot_id="another"),
        dataclasses.replace(here, pid_namespace="pid:[1]"),
        Holder(here.host, here.pid),
    ):
        assert not another.is_alive()
        path.write_text(another.signature())
        assert Holder.parse(path.read_text()) == another
        with file_lock(path, wait=False) as held:
            assert not held.holder
    path.write_text("process 1 on elsewhere")
    assert Holder.parse(path.read_text()) is None


HOLD = """
import sys, time
from pathlib import Path
from trainer.store.lock import file_lock
with file_lock(Path(sys.argv[1])) as held:
    print(bool(held), flush=True)
    sys.stdin.read()
"""
CONTAINER = ["unshare", "--pid", "--fork", "--mount-proc", "--uts", "--kill-child"]


@pytest.fixture
def container():
    """hold(path) -> a process that is number 1, in a container of this host's name and files, with a lock."""
    tried = shutil.which("unshare") and subprocess.run([*CONTAINER, "true"], capture_output=True)
    if not tried or tried.returncode:
        pytest.skip("to make a namespace takes more rights than this user has")
    begun = []

    def hold(path):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        begun.append(subprocess.Popen([*CONTAINER, sys.executable, "-c", HOLD, str(path)], **pipes))
        return begun[-1]

    yield hold
    for process in begun:
        process.kill()
        process.communicate()


def test_two_containers_with_one_host_name_know_of_each_other(path, container):
    first = container(path)
    assert first.stdout.readline() == "True\n"
    # Both are process 1 on the same host, so that this text is no help.
    assert path.read_text().startswith(f"process 1 on {os.uname().nodename}\n")
    assert taken(path)
    assert held_by(path) == f"process 1 on {os.uname().nodename}"
    second = container(path)
    assert path.exists()
    first.communicate("")
    assert second.stdout.readline() == "True\n"
    assert taken(path)
    second.kill()
    # What is in a container ends a moment after it.
    with file_lock(path) as held:
        assert held


def test_what_another_container_is_downloading_is_not_left_over(tmp_path, container):
    key = "0123456789abcdef"
    part = tmp_path / f"{PART_PREFIX}{key}-abc"
    part.write_text("half")
    holder = container(tmp_path / f"{key}.lock")
    assert holder.stdout.readline() == "True\n"
    remove_left_overs(tmp_path)
    assert part.exists()
    holder.kill()
    with file_lock(tmp_path / f"{key}.lock") as held:
        assert held
    remove_left_overs(tmp_path)
    assert os.listdir(tmp_path) == []


def test_one_that_stays_is_empty_afterwards(path):
    with file_lock(path, stays=True) as held:
        assert held
        assert path.read_text()
    assert path.read_text() == ""
    assert not taken(path)


def test_a_lock_that_is_another_users_locks_out_as_well(path, monkeypatch):
    real = os.open
    path.write_text("process 7 on elsewhere")

    def only_to_read(name, flags, *mode):
        if flags & os.O_RDWR:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), name)
        return real(name, flags, *mode)

    monkeypatch.setattr(module.os, "open", only_to_read)
    with file_lock(path, stays=True) as held:
        assert held
        with file_lock(path, wait=False) as second:
            assert second.holder == "process 7 on elsewhere"
    path.unlink()
    with file_lock(path) as held:
        assert (held.held, held.error.errno) == (False, errno.ENOENT)


def test_a_file_system_without_lasting_files_does_not_hold_it_up(path, monkeypatch):
    monkeypatch.setattr(module.os.path, "samestat", lambda one, other: False)
    with file_lock(path) as held:
        assert not held


def test_a_full_disk_does_not_matter(path, monkeypatch):
    def fail(*args):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(module.os, "pwrite", fail)
    with file_lock(path) as held:
        assert held
        assert taken(path)


@pytest.mark.parametrize("tries", [1, 10**6])
def test_only_who_holds_it_for_longer_is_waited_for_aloud(path, tries, monkeypatch, caplog):
    """It is given back when the other one has slept so many times, or not before it waits without end."""
    caplog.set_level("INFO", "trainer")
    handle, slept = os.open(path, os.O_RDWR | os.O_CREAT), []
    fcntl.flock(handle, fcntl.LOCK_EX)
    real = fcntl.flock

    def sleep(secs):
        slept.append(secs)
        if len(slept) == tries:
            real(handle, fcntl.LOCK_UN)

    def flock(asking, operation):
        if operation == fcntl.LOCK_EX:  # Now it is waited for without end.
            real(handle, fcntl.LOCK_UN)
        real(asking, operation)

    monkeypatch.setattr(module.time, "sleep", sleep)
    monkeypatch.setattr(module.fcntl, "flock", flock)
    with file_lock(path, waiting_for="features") as held:
        assert held
    os.close(handle)
    assert ("features: waiting for another process" in caplog.text) == (tries > 1)


@pytest.mark.parametrize("waiting_for", ["", "features"])
def test_who_waits_may_leave(path, waiting_for):
    """A run that notes signals without being interrupted looks whether there was one."""

    def leave():
        raise KeyboardInterrupt

    waiting = file_lock(path, waiting_for=waiting_for, while_waiting=leave)
    with file_lock(path), pytest.raises(KeyboardInterrupt), waiting:
        pass


def test_who_is_asked_meanwhile_gets_the_lock_in_the_end(path):
    first = os.open(path, os.O_RDWR | os.O_CREAT)
    fcntl.flock(first, fcntl.LOCK_EX)
    with file_lock(path, while_waiting=lambda: fcntl.flock(first, fcntl.LOCK_UN)) as held:
        assert held
    os.close(first)
