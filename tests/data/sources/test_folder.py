"""Class folders: their order, and what is said of folders that are none."""

import logging
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.data.trees import FILES, ORDER, write_tree
from trainer.data.sources import Source, SourceOptions, open_source
from trainer.values import TrainerError


def open_tree(tmp_path: Path, files: dict[str, bytes]) -> Source:
    return open_source(f"folder:{write_tree(tmp_path / 'photos', files)}", SourceOptions())


def fails(tmp_path: Path, line: str, kind=TrainerError):
    """Expects one line; PATH stands for the folder of the pictures."""
    line = line.replace("PATH", str(tmp_path / "photos"))
    return pytest.raises(kind, match=f"^--source=\\S+: {re.escape(line)}$")


def test_folder_order_is_that_of_code_points_whatever_the_file_system_says(tmp_path, monkeypatch):
    source = open_tree(tmp_path, dict(sorted(FILES.items())))
    assert source.ids == ORDER
    assert source.class_names == ("daisy", "roses", "tulips")
    assert source.labels.tolist() == [0, 0, 1, 1, 1, 1, 2]
    assert source.sorted_by_class
    assert source.native_splits == {}
    assert [source.read(k) for k in range(len(ORDER))] == [FILES[path] for path in ORDER]
    write_tree(tmp_path / "other/photos", dict(sorted(FILES.items(), reverse=True)))
    assert open_source(f"folder:{tmp_path}/other/photos", SourceOptions()).ids == ORDER


def test_files_left_out_are_counted_in_the_log(tmp_path, caplog):
    caplog.set_level(logging.INFO, "trainer")
    others = {
        "LICENSE.txt": b"",
        "roses/a.txt": b"",
        "roses/Makefile": b"",
        "roses/b.TXT": b"",
        ".git/x": b"",
    }
    assert open_tree(tmp_path, {**FILES, **others}).ids == ORDER
    assert "left out 1 (no ending), 3 .txt: no pictures, or other forms of those beside them" in caplog.text


def test_runs_beside_the_pictures_are_no_classes(tmp_path, caplog):
    caplog.set_level(logging.INFO, "trainer")
    shown = FILES[ORDER[0]]
    results = {
        "runs/mine/run.json": b"{}",
        "runs/mine/report/worst.png": shown,
        "runs/searched/sweep.flags": b"",
        "runs/searched/trials/0001/drawn.png": shown,
        "runs/divided/cross_validation.json": b"{}",
        "runs/divided/report/worst.png": shown,
        "runs/sub/other/run.json": b"{}",
        "roses/old/run.json": b"{}",
        "roses/old/train/1.jpg": shown,
    }
    assert open_tree(tmp_path, {**FILES, **results}).ids == ORDER
    photos = tmp_path / "photos"
    assert (
        f"left out {photos}/roses/old/, {photos}/runs/: results of this program, no pictures" in caplog.text
    )
    # Where a command is about to write, there is nothing yet to know it by.
    write_tree(photos, {"new/run/lock": b"", "cache/scans/x": b""})
    own = SourceOptions(results=(photos / "new/run", photos / "cache"))
    assert open_source(f"folder:{photos}", own).ids == ORDER
    with pytest.raises(
        TrainerError, match=r"class folder \S+/cache holds no picture \(but 1 \(no ending\)\)"
    ):
        open_source(f"folder:{photos}", SourceOptions())


def test_a_class_of_folders_stays_whatever_lies_beside_them(tmp_path):
    picture = FILES[ORDER[0]]
    files = {
        "a/run/run.json": b"",
        "a/in/1.jpg": picture,
        "b/1.jpg": picture,
        "c/empty/run.json": b"",
        "c/notes.txt": b"",
    }
    source = open_tree(tmp_path, files)
    assert source.ids == ["a/in/1.jpg", "b/1.jpg"]


def test_split_folders_become_native_splits(tmp_path):
    source = open_tree(
        tmp_path,
        {
            "test/b/1.jpg": b"t",
            "Valid/a/1.jpg": b"v",
            "train/b/1.jpg": b"1",
            "train/a/1.jpg": b"2",
            "train/a/0.jpg": b"3",
        },
    )
    assert source.ids == ["train/a/0.jpg", "train/a/1.jpg", "train/b/1.jpg", "Valid/a/1.jpg", "test/b/1.jpg"]
    assert source.native_splits == {"train": (0, 3), "validation": (3, 4), "test": (4, 5)}
    assert source.labels.tolist() == [0, 0, 1, 0, 1]
    assert source.class_names == ("a", "b")


def test_classes_may_be_called_like_splits_where_it_is_clear(tmp_path):
    source = open_tree(tmp_path, {"train/1.jpg": b"", "bus/1.jpg": b"", "car/1.jpg": b""})
    assert source.class_names == ("bus", "car", "train")


def test_links_are_followed(tmp_path):
    outside = write_tree(tmp_path / "outside", {"1.jpg": b"one", "x/2.jpg": b"two"})
    photos = write_tree(tmp_path / "photos", {"a/0.jpg": b"zero", "b/0.jpg": b""})
    (photos / "a/1.jpg").symlink_to(outside / "1.jpg")
    (photos / "c").symlink_to(outside)
    source = open_source(f"folder:{photos}", SourceOptions())
    assert source.ids == ["a/0.jpg", "a/1.jpg", "b/0.jpg", "c/1.jpg", "c/x/2.jpg"]
    assert source.read(1) == b"one"


EXPECTED = "expected JPEG, PNG, GIF, BMP or WebP files"
BAD_TREES = {
    "only pictures": (
        {"1.jpg": b"", "2.jpg": b""},
        "PATH has 2 pictures but no class folders: pictures must be in one folder a class, as in roses/1.jpg",
    ),
    "nothing": (
        {".hidden/1.jpg": b""},
        "PATH has no class folders: pictures must be in one folder a class, as in roses/1.jpg",
    ),
    "one class": (
        {"a/1.jpg": b""},
        "PATH has only one class, a: to tell pictures apart takes two folders of pictures at least",
    ),
    "empty class": (
        {"a/1.jpg": b"", "b/.hidden.jpg": b""},
        f"the class folder PATH/b holds no picture: {EXPECTED}. Remove the folder, or put pictures into it",
    ),
    "class of other files": (
        {"a/1.jpg": b"", "b/1.heic": b"", "b/2.HEIC": b""},
        "the class folder PATH/b holds no picture that can be decoded, but 2 HEIC. Convert them to JPEG or "
        "PNG, as with magick mogrify -format jpg FILES or heif-convert FILE FILE.jpg for HEIC",
    ),
    "class that is not in train": (
        {"train/a/1.jpg": b"", "train/b/1.jpg": b"", "test/c/1.jpg": b""},
        "PATH/test has the class c, which train/ has not: every class must have pictures to learn from",
    ),
    "two validation folders": (
        {"train/a/1.jpg": b"", "val/a/1.jpg": b"", "valid/a/1.jpg": b""},
        "PATH has both val/ and valid/: keep one validation folder, or say --splits=train,val,valid",
    ),
    "a class beside the splits": (
        {"train/a/1.jpg": b"", "test/a/1.jpg": b"", "new/1.jpg": b""},
        "PATH has new/ beside train/: expected either class folders, or only train, validation and test "
        "folders",
    ),
    "no train": ({"test/a/1.jpg": b"", "val/a/1.jpg": b""}, "PATH has test, val but no train folder"),
}


# Trees, the folder in them that is named as the source, and what the message ends with.
MEANT = {
    "a table beside the folder": (
        {"train/a1.jpg": b"", "train.csv": b"id,label\na1,x\n", "submission.csv": b"id,label\na1,x\n"},
        "train",
        "as in roses/1.jpg. If train.csv says what is on them: --source=table:PATH/train.csv "
        "--image_root=PATH/train",
    ),
    "a table in the folder": (
        {"photos/1x.jpg": b"", "photos/of all.tsv": b"file\tlabel\n1x.jpg\ta\n"},
        "photos",
        "of all.tsv says what is on them: --source=table:'PATH/photos/of all.tsv' --image_root=PATH/photos",
    ),
    "one folder with its table": (
        {"photos/pictures/1x.jpg": b"", "photos/t.csv": b"file;label\n1x.jpg;a\n"},
        "photos",
        "at least. If t.csv says what is on them: --source=table:PATH/photos/t.csv "
        "--image_root=PATH/photos/pictures",
    ),
    "a table about others": (
        {"photos/1x.jpg": b"", "costs.csv": b"a,b\n1,2\n"},
        "photos",
        "as in roses/1.jpg",
    ),
    "one level too low": (
        {"photos/ants/1.jpg": b"", "photos/bees/1.jpg": b"", "photos/notes/a.txt": b""},
        "photos/ants",
        "If ants is a class itself: --source=folder:PATH/photos",
    ),
    "nothing beside": ({"photos/1.jpg": b"", "notes/a.txt": b""}, "photos", "as in roses/1.jpg"),
    "an archive": (
        {"photos/b.zip": b"", "photos/a.tar.gz": b""},
        "photos",
        "For those in a.tar.gz: --source=archive:PATH/photos/a.tar.gz",
    ),
}


@pytest.mark.parametrize("kind", MEANT)
def test_what_was_meant_instead_is_said(tmp_path, kind):
    files, folder, end = MEANT[kind]
    write_tree(tmp_path, files)
    with pytest.raises(TrainerError) as error:
        open_source(f"folder:{tmp_path / folder}", SourceOptions())
    assert str(error.value).endswith(end.replace("PATH", str(tmp_path)))


@pytest.mark.parametrize("kind", BAD_TREES)
def test_bad_folders_are_named(tmp_path, kind):
    files, line = BAD_TREES[kind]
    with fails(tmp_path, line):
        open_tree(tmp_path, files)


def test_a_folder_that_is_none(tmp_path):
    with fails(tmp_path, "PATH does not exist: expected a folder of class folders"):
        open_source(f"folder:{tmp_path}/photos", SourceOptions())
    (tmp_path / "photos").write_bytes(b"")
    with fails(tmp_path, "PATH is a file: expected a folder of class folders"):
        open_source(f"folder:{tmp_path}/photos", SourceOptions())


def test_a_picture_that_vanished_is_named_when_read(tmp_path):
    source = open_tree(tmp_path, FILES)
    (tmp_path / "photos/roses/9.jpg").unlink()
    with fails(tmp_path, "cannot read PATH/roses/9.jpg: No such file or directory"):
        source.read(3)


AS_NOBODY = """
import os, sys
sys.path.insert(0, sys.argv[1])
# Imported before the rights are given up: the interpreter's own files may be root's only.
from trainer.data.sources.folder import open_folder
from trainer.values import TrainerError
if os.getuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    open_folder(sys.argv[2], name="folder:x").read(0)
except TrainerError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("closed", "line"),
    [
        (".", "--source=folder:x: cannot list the folder PATH: Permission denied"),
        ("a", "--source=folder:x: cannot list the folder PATH/a: Permission denied"),
        ("a/x", "--source=folder:x: cannot list the folder PATH/a/x: Permission denied"),
        ("a/0.jpg", "a/0.jpg is not a picture that can be read: Permission denied"),
    ],
)
def test_no_permission(tmp_path, closed, line):
    # pytest's own folders are closed to other users, so the pictures lie elsewhere.
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        photos = write_tree(Path(folder) / "photos", {"a/0.jpg": b"", "a/x/1.jpg": b"", "b/0.jpg": b""})
        os.chmod(photos / closed, 0)
        root = str(Path(__file__).parents[3])
        run = [sys.executable, "-c", AS_NOBODY, root, str(photos)]
        done = subprocess.run(run, capture_output=True, text=True, timeout=60)
        os.chmod(photos / closed, 0o755)
    assert (done.stdout, done.stderr) == (line.replace("PATH", str(photos)) + "\n", "")
