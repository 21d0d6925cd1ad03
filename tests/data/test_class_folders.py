"""Entries of class folders that no picture can be read from: each has its place, and is never opened."""

import errno
import os
import re
import socket
import subprocess
import threading
from pathlib import Path

import pytest

from tests.data.trees import age, write_tree
from trainer.data.inspect.bad_pictures import BadPictureError, name_problem, shown_name
from trainer.data.sources.folder import FolderSource, open_folder
from trainer.values import TrainerError


@pytest.fixture
def photos(tmp_path) -> Path:
    return write_tree(tmp_path / "photos", {"a/0.jpg": b"zero", "a/n/9.jpg": b"nine", "b/0.jpg": b"zero b"})


def open_photos(photos: Path) -> FolderSource:
    return open_folder(str(photos), name="folder:photos")


def add(folder: Path, name: str | bytes, data: bytes = b"new") -> None:
    path = os.path.join(os.fsencode(folder), os.fsencode(name))
    try:
        with open(path, "wb") as file:
            file.write(data)
    except OSError as error:
        if error.errno != errno.EILSEQ:
            raise
        pytest.skip("this file system takes UTF-8 only")


def make_socket(path: Path) -> None:
    # The path of a socket may have 108 bytes.
    here = os.getcwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def make_broken(photos: Path) -> dict[str, str]:
    """Puts an entry of every kind into the class a; returns {id: reason}."""
    a = photos / "a"
    (a / "gone.jpg").symlink_to(photos / "nowhere")
    (a / "gone_folder").symlink_to(photos / "nowhere")
    (a / "self.jpg").symlink_to("self.jpg")
    (a / "one.jpg").symlink_to("two.jpg")
    (a / "two.jpg").symlink_to("one.jpg")
    (a / "up").symlink_to("..")
    (a / "here").symlink_to(".")
    (a / "n" / "back").symlink_to(photos / "a", target_is_directory=True)
    (a / "folder.jpg").mkdir()
    (a / "folder.jpg" / "1.jpg").write_bytes(b"inside")
    (a / "linked.jpg").symlink_to(photos / "b", target_is_directory=True)
    os.mkfifo(a / "pipe.jpg")
    (a / "to_pipe.png").symlink_to("pipe.jpg")
    (a / "null.gif").symlink_to("/dev/null")
    make_socket(a / "socket.jpg")
    add(a, "two\nlines.jpg")
    add(a, "tab\t.jpg")
    add(a, "it's \\ a\r.jpg")
    add(a, b"\xff\xfe.jpg")
    add(a, "separated\u2028.jpg")
    (a / "folder\n").mkdir()
    (a / "folder\n" / "1.jpg").write_bytes(b"inside")
    loop = "a link to a folder that it lies in"
    circle = f"a link that leads nowhere ({os.strerror(errno.ELOOP)})"
    return {
        "a/gone.jpg": "a link to nothing",
        "a/gone_folder": "a link to nothing",
        "a/self.jpg": circle,
        "a/one.jpg": circle,
        "a/two.jpg": circle,
        "a/up": loop,
        "a/here": loop,
        "a/n/back": loop,
        "a/folder.jpg": "a folder, not a picture",
        "a/linked.jpg": "a folder, not a picture",
        "a/pipe.jpg": "not a regular file",
        "a/to_pipe.png": "not a regular file",
        "a/null.gif": "not a regular file",
        "a/socket.jpg": "not a regular file",
        r"a/$'two\nlines.jpg'": "its name holds a line break: rename it",
        r"a/$'tab\t.jpg'": "its name holds a control character: rename it",
        r"a/$'it\'s \\ a\r.jpg'": "its name holds a line break: rename it",
        r"a/$'\xff\xfe.jpg'": "its name is not UTF-8: rename it",
        r"a/$'separated\u2028.jpg'": "its name holds a line break: rename it",
        r"a/$'folder\n'": "the name of this folder holds a line break: rename it",
    }


def test_what_cannot_be_read_has_an_id_a_place_and_a_reason(photos):
    expected = make_broken(photos)
    source = open_photos(photos)
    assert {source.ids[at]: reason for at, reason in source.unreadable.items()} == expected
    assert source.ids == [*sorted([*expected, "a/0.jpg", "a/n/9.jpg"]), "b/0.jpg"]
    assert source.labels.tolist() == [0] * (len(expected) + 2) + [1]
    assert len(set(source.ids)) == len(source.ids)
    assert all(name.isprintable() and name.encode() for name in source.ids)
    for at, reason in source.unreadable.items():
        with pytest.raises(BadPictureError) as caught:
            source.read(at)
        assert caught.value.reason == reason
        assert caught.value.lasting
        assert str(caught.value) == f"{source.ids[at]} is not a picture that can be read: {reason}"
    assert source.read(source.ids.index("a/n/9.jpg")) == b"nine"
    assert source.read(len(source.ids) - 1) == b"zero b"


def test_a_pipe_stops_nobody(photos):
    os.mkfifo(photos / "a" / "pipe.jpg")
    done = threading.Event()

    def read() -> None:
        source = open_photos(photos)
        with pytest.raises(BadPictureError):
            source.read(source.ids.index("a/pipe.jpg"))
        done.set()

    threading.Thread(target=read, daemon=True).start()
    assert done.wait(20)


def test_nobody_moves_when_a_link_is_repaired(photos):
    (photos / "a" / "1.jpg").symlink_to(photos / "nowhere")
    before = open_photos(photos)
    (photos / "nowhere").write_bytes(b"there")
    after = open_photos(photos)
    assert after.ids == before.ids
    assert (before.unreadable, after.unreadable) == ({1: "a link to nothing"}, {})
    assert after.read(1) == b"there"


def test_names_that_many_would_call_odd_are_fine(photos):
    names = [
        "Bildschirmfoto um 3.45\u202fPM.jpg",
        "ü ö.jpg",
        "家族👨\u200d👩\u200d👧.jpg",
        "it's $HOME.jpg",
        "\\n.jpg",
    ]
    names += ["a,b;c.jpg", '"quoted".jpg', "\xa0.jpg", "-rf.jpg", "#1.jpg", "e\u0301.jpg"]
    for name in names:
        add(photos / "a", name, name.encode())
    source = open_photos(photos)
    assert source.unreadable == {}
    assert set(source.ids) == {"a/0.jpg", "a/n/9.jpg", "b/0.jpg", *(f"a/{name}" for name in names)}
    for name in names:
        assert source.read(source.ids.index(f"a/{name}")) == name.encode()


def test_shown_names_are_all_different_and_bash_reads_them():
    names = [
        "a\nb",
        r"a\nb",
        "a\n'b'",
        "a\rb",
        "a\x85b",
        os.fsdecode(b"a\xffb"),
        r"a\xffb",
        "a\u2028b",
        "ü\t",
    ]
    shown = [shown_name(name) for name in names]
    assert len(set(shown)) == len(names)
    assert shown[0] == r"$'a\nb'"
    assert shown[1] == r"a\nb"
    assert [name for name in names if not name_problem(name)] == [r"a\nb", r"a\xffb"]
    assert all(name.isprintable() for name in shown)
    quoted = [name for name in shown if name.startswith("$")]
    script = "printf '%s\\0' " + " ".join(quoted)
    done = subprocess.run(["bash", "-c", script], env={"LC_ALL": "C.UTF-8"}, capture_output=True, check=True)
    assert done.stdout.split(b"\0")[:-1] == [os.fsencode(name) for name in names if name_problem(name)]


def test_links_to_folders_elsewhere_are_followed_and_those_in_circles_end(photos, tmp_path):
    outside = write_tree(tmp_path / "outside", {"1.jpg": b"one", "x/2.jpg": b"two"})
    (photos / "a" / "more").symlink_to(outside)
    (outside / "x" / "round").symlink_to(photos / "a")
    (outside / "x" / "again").symlink_to(outside)
    source = open_photos(photos)
    assert [name for name in source.ids if "more" in name] == [
        "a/more/1.jpg", "a/more/x/2.jpg", "a/more/x/again", "a/more/x/round",
    ]  # fmt: skip
    assert list(source.unreadable.values()) == ["a link to a folder that it lies in"] * 2


def test_a_link_out_of_a_split_leads_into_no_other_class(tmp_path):
    root = write_tree(tmp_path / "photos", {"train/a/0.jpg": b"", "train/b/0.jpg": b"", "test/a/0.jpg": b""})
    (root / "train" / "a" / "up").symlink_to(root)
    source = open_photos(root)
    assert source.ids == ["train/a/0.jpg", "train/a/up", "train/b/0.jpg", "test/a/0.jpg"]
    assert source.unreadable == {1: "a link to a folder that it lies in"}
    assert source.native_splits == {"train": (0, 3), "test": (3, 4)}


CLASSES = {
    "a link to nothing": (
        lambda root: (root / "c").symlink_to("gone"),
        "PATH/c cannot be used: a link to nothing",
    ),
    "a link to itself": (
        lambda root: (root / "c").symlink_to("c"),
        f"PATH/c cannot be used: a link that leads nowhere ({os.strerror(errno.ELOOP)})",
    ),
    "a name of two lines": (
        lambda root: (root / "c\nd").mkdir(),
        r"PATH/$'c\nd' cannot be used: its name holds a line break: rename it",
    ),
    "a name that is not UTF-8": (
        lambda root: os.mkdir(os.fsencode(root) + b"/\xff"),
        r"PATH/$'\xff' cannot be used: its name is not UTF-8: rename it",
    ),
    "a link to all classes": (
        lambda root: (root / "c").symlink_to(root),
        "PATH/c cannot be used: a link to a folder that it lies in",
    ),
}


@pytest.mark.parametrize("kind", CLASSES)
def test_a_class_is_never_left_out(photos, kind):
    make, line = CLASSES[kind]
    make(photos)
    expected = re.escape(f"--source=folder:photos: the class folder {line.replace('PATH', str(photos))}")
    with pytest.raises(TrainerError, match=f"^{expected}$"):
        open_photos(photos)


def test_what_is_beside_the_classes_may_be_broken(photos):
    (photos / "LICENSE.txt").symlink_to("gone")
    (photos / "b" / "notes.txt").symlink_to("gone")
    add(photos, "Icon\r.txt")
    add(photos / "b", b"\xff.txt")
    os.mkfifo(photos / "pipe")
    assert open_photos(photos).ids == ["a/0.jpg", "a/n/9.jpg", "b/0.jpg"]


def test_a_class_of_broken_entries_is_a_class(photos):
    (photos / "c").mkdir()
    (photos / "c" / "1.jpg").symlink_to("gone")
    source = open_photos(photos)
    assert source.class_names == ("a", "b", "c")
    assert source.unreadable == {3: "a link to nothing"}


def test_a_file_with_a_large_hole_is_not_read(photos):
    with open(photos / "a" / "1.jpg", "wb") as file:
        file.truncate(2**31)
    source = open_photos(photos)
    with pytest.raises(BadPictureError, match=r": a file of 2147483648 bytes$"):
        source.read(1)


def test_a_stamp_is_of_what_cannot_be_read_too(photos):
    age(photos)
    make_broken(photos)
    first = open_photos(photos).stamp()
    assert first is not None
    assert open_photos(photos).stamp() == first
    (photos / "a" / "pipe.jpg").unlink()
    (photos / "a" / "pipe.jpg").symlink_to("gone")
    second = open_photos(photos).stamp()
    (photos / "a" / "pipe.jpg").unlink()
    third = open_photos(photos).stamp()
    assert len({first, second, third, None}) == 4
