"""The lock between processes; what it is for is tested with the feature store."""

import errno
import fcntl
import os
import threading

import pytest

from trainer import file_lock as module
from trainer.file_lock import file_lock


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


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_where_files_cannot_be_locked_it_is_not_held_and_leaves_nothing(path, monkeypatch, number):
    def fail(*args):
        raise OSError(number, "no locks")

    monkeypatch.setattr(module.fcntl, "flock", fail)
    with file_lock(path) as held:
        assert not held
    assert not path.exists()


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
