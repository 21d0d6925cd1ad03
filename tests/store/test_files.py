"""Files on file systems that do not do all that is asked of them; see also test_cli_surroundings.py."""

import errno
import os
import shutil
import stat

import pytest

from trainer.store import files
from trainer.store.files import move, set_mode, sync, write_bytes


@pytest.fixture
def failing(monkeypatch):
    """failing(name, number, only=...): os.NAME fails with an error, where only(first argument) is true."""
    monkeypatch.setattr(files, "warned", set())

    def begin(name, number, only=lambda argument: True):
        real = getattr(os, name)

        def call(argument, *rest, **options):
            if only(argument):
                raise OSError(number, os.strerror(number))
            return real(argument, *rest, **options)

        monkeypatch.setattr(os, name, call)

    return begin


@pytest.fixture
def warned(caplog):
    """warned() -> what was logged since it was last called."""

    def take():
        found = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return found

    return take


UNSUPPORTED = [errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM]


@pytest.mark.parametrize("number", UNSUPPORTED)
@pytest.mark.parametrize("name", ["chmod", "fsync", "replace"])
def test_a_file_is_written_with_one_warning(name, number, failing, warned, tmp_path):
    failing(name, number)
    for data in (b"one", b"two"):
        write_bytes(tmp_path / "file", data)
        assert (tmp_path / "file").read_bytes() == data
    assert os.listdir(tmp_path) == ["file"]
    [line] = warned()
    what = {"chmod": "set permissions", "fsync": "sync files", "replace": "rename"}[name]
    assert f"this file system cannot {what} ({os.strerror(number)}); continuing without" in line
    assert str(tmp_path) in line


@pytest.mark.parametrize("name", ["chmod", "fsync", "replace"])
def test_another_error_is_one_and_names_the_file(name, failing, warned, tmp_path):
    (tmp_path / "file").write_bytes(b"old")
    failing(name, errno.EIO)
    with pytest.raises(OSError, match="Input/output error") as caught:
        write_bytes(tmp_path / "file", b"new")
    assert caught.value.filename == str(tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]
    assert warned() == []


def test_a_file_system_is_warned_of_once_and_another_again(failing, warned, tmp_path, monkeypatch):
    failing("chmod", errno.EPERM)
    failing("fsync", errno.EINVAL, only=lambda handle: stat.S_ISDIR(os.fstat(handle).st_mode))
    set_mode(tmp_path, 0o755)
    sync(tmp_path)
    assert len(warned()) == 1
    if not os.path.isdir("/dev/shm") or os.stat("/dev/shm").st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system")
    set_mode("/dev/shm/x", 0o755)
    assert len(warned()) == 1


def test_a_folder_that_cannot_be_opened_is_not_synced(failing, warned, tmp_path):
    (tmp_path / "file").write_text("")
    failing("open", errno.EISDIR)
    sync(tmp_path)
    assert len(warned()) == 1
    with pytest.raises(OSError, match="Is a directory"):
        sync(tmp_path / "file")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_text("new")
    return tmp_path / "a"


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EXDEV])
def test_a_folder_that_cannot_be_renamed_is_copied(number, folder, failing, warned, tmp_path):
    failing("replace", number)
    move(folder, tmp_path / "target")
    assert (tmp_path / "target" / "b" / "file").read_text() == "new"
    assert not folder.exists()
    # A layer of a container's image is no file system to be wary of.
    assert len(warned()) == (number == errno.EOPNOTSUPP)


def test_a_folder_that_is_there_is_not_replaced(folder, failing, tmp_path):
    failing("replace", errno.EOPNOTSUPP)
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "file").write_text("old")
    with pytest.raises(OSError, match="not empty"):
        move(folder, tmp_path / "target")
    assert os.listdir(tmp_path / "target") == ["file"]
    assert (folder / "b" / "file").exists()


def test_where_it_can_neither_be_renamed_nor_copied_it_stays(folder, failing, warned, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "full")

    failing("replace", errno.EPERM)
    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(OSError, match="not permitted"):
        move(folder, tmp_path / "target")
    assert (folder / "b" / "file").read_text() == "new"
    assert not (tmp_path / "target").exists()
    assert warned() == []
