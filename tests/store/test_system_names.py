"""What systems leave among the pictures of people, in folders, archives and lists of files."""

import pytest

from tests.data.trees import write_tgz, write_tree, write_zip
from trainer.data.picture_files import find_pictures
from trainer.data.sources import SourceOptions, open_source
from trainer.store.system_names import is_system

PICTURES = {"cats/1.jpg": b"", "dogs/2.jpg": b"", "dogs/eaDir/3.jpg": b""}
LEFT = {
    "__MACOSX/cats/1.jpg": b"",
    "__MACOSX/._cats": b"",
    "lost+found/#123.jpg": b"",
    "@eaDir/cats/1.jpg": b"",
    "cats/@eaDir/1.jpg/SYNOFILE_THUMB_M.jpg": b"",
    "$RECYCLE.BIN/S-1-5-21/$R1.jpg": b"",
    "$Recycle.Bin/S-1-5-21/$R2.jpg": b"",
    ".Trash-1000/files/1.jpg": b"",
    "System Volume Information/1.jpg": b"",
    "#recycle/1.jpg": b"",
    "@Recycle/1.jpg": b"",
    "dogs/.@__thumb/2.jpg": b"",
    "dogs/Thumbs.db": b"",
    "dogs/._2.jpg": b"",
    "dogs/desktop.ini": b"",
    "cats/Icon\r": b"",
}


@pytest.mark.parametrize("top", ["", "photos/"])
def test_they_are_no_classes_and_no_pictures(tmp_path, options, caplog, top):
    files = {f"{top}{path}": data for path, data in {**PICTURES, **LEFT}.items()}
    write_tree(tmp_path / "folder", files)
    (tmp_path / "folder" / top / "lost+found").chmod(0)
    packed = write_tgz(tmp_path / "x.tgz", files, "")
    zipped = write_zip(tmp_path / "x.zip", files)
    for address in (f"folder:{tmp_path}/folder", f"archive:{packed}", f"archive:{zipped}"):
        assert open_source(address, options).ids == list(PICTURES)
    (tmp_path / "folder" / top / "lost+found").chmod(0o700)
    assert [found.path for found in find_pictures([str(tmp_path / "folder")])] == [
        f"{tmp_path}/folder/{top}{path}" for path in PICTURES
    ]
    assert "left out" not in caplog.text


def test_what_was_unpacked_before_is_listed_by_the_same_rule(tmp_path):
    write_tree(tmp_path / "photos", {**PICTURES, "@eaDir/1.jpg": b""})
    assert open_source(f"folder:{tmp_path}/photos", SourceOptions()).class_names == ("cats", "dogs")


@pytest.mark.parametrize("name", ["cats", "lost", "recycle", "thumbs", "eaDir", "tmp", "found.jpg", "Icon"])
def test_names_that_people_give(name):
    assert not is_system(name)
