"""An export folder is there whole, or as it was."""

import os

import pytest

from trainer.export.folder import put_in_place, require_export_place
from trainer.values import TrainerError


def tree(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def put_new(folder, error=None):
    with put_in_place(folder) as part:
        (part / "parity.json").write_text("new")
        if error:
            raise error


def test_a_new_folder_takes_the_place_of_an_older_one(tmp_path):
    folder = tmp_path / "export"
    for names in (["parity.json", "old"], ["parity.json", "new"]):
        require_export_place(folder, num_bytes=10)
        with put_in_place(folder) as part:
            for name in names:
                (part / name).write_text(name)
            (part / "inner").mkdir()
        assert tree(folder) == {*names, "inner"}
        assert os.stat(folder).st_mode & 0o777 == 0o755
        assert os.listdir(tmp_path) == ["export"]


def test_an_error_leaves_the_older_one(tmp_path, monkeypatch):
    folder = tmp_path / "export"
    with put_in_place(folder) as part:
        (part / "parity.json").write_text("old")
    full = OSError(28, "No space left on device", "x")
    with pytest.raises(ValueError, match="the middle"):
        put_new(folder, ValueError("the middle"))
    with pytest.raises(TrainerError) as error:
        put_new(folder, full)
    assert str(error.value).startswith(
        f"the export cannot be written to {folder}: No space left on device; the earlier"
    )
    rename = os.rename

    def fail_at_the_second(old, new):
        if new == folder and "-old" not in str(old):
            raise OSError(5, "Input/output error")
        rename(old, new)

    monkeypatch.setattr(os, "rename", fail_at_the_second)
    with pytest.raises(TrainerError, match="Input/output error"):
        put_new(folder)
    assert ((folder / "parity.json").read_text(), os.listdir(tmp_path)) == ("old", ["export"])


def test_places_that_are_none(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    for name, message in (
        ("file", "is a link or a file"),
        ("link", "is a link or a file"),
        ("file/below", "lies below a file"),
        ("photos", "holds something else than an export"),
    ):
        with pytest.raises(TrainerError, match=message):
            require_export_place(tmp_path / name, num_bytes=0)
    with pytest.raises(TrainerError, match="are missing"):
        require_export_place(tmp_path / "new", num_bytes=10**18)
    (tmp_path / "empty").mkdir()
    require_export_place(tmp_path / "empty", num_bytes=0)
    require_export_place(tmp_path / "deep" / "new", num_bytes=0)
    assert (tmp_path / "photos" / "a.jpg").exists()
