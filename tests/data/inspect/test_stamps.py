"""Stamps: what tells files apart without reading them."""

import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.data.trees import LONG_AGO, age, prepare_tiny, write_tree
from trainer.data.inspect import stamps
from trainer.data.inspect.stamps import stamp_files
from trainer.data.sources import open_source
from trainer.data.sources.folder import open_folder
from trainer.doctor.storage import file_system


def test_the_stamp_of_a_tfds_data_set_is_that_of_its_files(options):
    prepare_tiny(options.data_dir)
    age(Path(options.data_dir), time.time_ns() + 10**11)  # As if just written, however slow this machine is.
    assert open_source("tfds:tiny_blooms:plain", options).stamp() is None
    age(Path(options.data_dir))
    source = open_source("tfds:tiny_blooms:plain", options)
    again = open_source("tfds:tiny_blooms:plain", options)
    assert again.stamp() == source.stamp() is not None
    for name in ("features.json", "tiny_blooms-test.tfrecord-00000-of-00001"):
        path = Path(options.data_dir, "tiny_blooms/plain/1.0.0", name)
        os.utime(path, ns=(LONG_AGO + 1, LONG_AGO + 1))
        changed = open_source("tfds:tiny_blooms:plain", options)
        assert changed.stamp() not in (None, again.stamp())
        again = changed


def test_stamps_of_files_tell_names_apart_from_what_follows(tmp_path):
    age(write_tree(tmp_path, {"a": b"1", "b": b"1"}))
    root = str(tmp_path)
    stamps = [stamp_files(root, names) for names in (["a", "b"], ["b", "a"], ["a"], [])]
    stamps += [stamp_files(root, ["a"], extra="x"), stamp_files(f"{root}/.", ["a"])]
    assert len(set(stamps)) == 6
    assert stamp_files(root, ["a", "gone"]) is None


def exchange(one: Path, other: Path) -> None:
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


def exchange_folders(root: Path) -> None:
    exchange(root / "cats", root / "dogs")


def exchange_files(root: Path) -> None:
    exchange(root / "cats" / "1.jpg", root / "dogs" / "1.jpg")


def rewrite(root: Path) -> None:
    (root / "cats" / "1.jpg").write_bytes(b"dog")


def replace_by_a_copy(root: Path) -> None:
    shutil.copy(root / "dogs" / "1.jpg", root / "new.jpg")
    (root / "new.jpg").rename(root / "cats" / "1.jpg")


def lead_a_link_elsewhere(root: Path) -> None:
    (root / "cats" / "2.jpg").unlink()
    (root / "cats" / "2.jpg").symlink_to("../dogs/1.jpg")


CHANGES = (exchange_folders, exchange_files, rewrite, replace_by_a_copy, lead_a_link_elsewhere)


@pytest.mark.parametrize("change", CHANGES)
def test_what_has_other_contents_shows_whatever_its_size_and_time(change, tmp_path):
    age(write_tree(tmp_path, {"cats/1.jpg": b"cat", "dogs/1.jpg": b"dog"}))
    for name in ("cats", "dogs"):
        (tmp_path / name / "2.jpg").symlink_to("1.jpg")
    before = open_folder(str(tmp_path), name="x").stamp()
    assert before is not None
    assert open_folder(str(tmp_path), name="x").stamp() == before
    change(tmp_path)
    age(tmp_path)
    assert open_folder(str(tmp_path), name="x").stamp() not in (None, before)


MOUNTINFO = """\
21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
40 21 8:17 / {} rw,relatime shared:9 - {} /dev/sdb1 rw
"""


@pytest.mark.parametrize(
    ("kind", "is_trusted"),
    [("vfat", False), ("exfat", False), ("fuse.sshfs", False), ("xfs", True), ("nfs4", True)],
)
def test_a_file_system_that_numbers_files_anew_is_not_trusted(kind, is_trusted, tmp_path, monkeypatch):
    root = age(write_tree(tmp_path / "a stick", {"a": b"1"}))
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTINFO.format(str(root).replace(" ", "\\040"), kind))
    monkeypatch.setattr(stamps, "MOUNTS", mounts)
    assert (stamp_files(str(root), ["a"]) is not None) is is_trusted
    (tmp_path / "inside").symlink_to(root)
    assert (stamp_files(str(tmp_path / "inside"), ["a"]) is not None) is is_trusted
    age(write_tree(tmp_path / "a sticker", {"a": b"1"}))
    assert stamp_files(str(tmp_path / "a sticker"), ["a"]) is not None
    monkeypatch.setattr(stamps, "MOUNTS", tmp_path / "none")
    assert stamp_files(str(root), ["a"]) is not None


def test_folders_whose_names_are_no_utf8(tmp_path, monkeypatch):
    root = os.fsdecode(bytes(tmp_path) + b"/caf\xe9")
    os.mkdir(root)
    (Path(root) / "a").write_bytes(b"1")
    age(Path(root))
    mounts = tmp_path / "mountinfo"
    monkeypatch.setattr(stamps, "MOUNTS", mounts)
    for kind, is_trusted in (("xfs", True), ("vfat", False)):
        mounts.write_bytes(MOUNTINFO.format(root, kind).encode(errors="surrogateescape"))
        assert (stamp_files(root, ["a"]) is not None) is is_trusted
        assert file_system(Path(root) / "a", mounts=mounts) == kind


def test_files_without_a_number_are_not_trusted(tmp_path, monkeypatch):
    age(write_tree(tmp_path, {"a": b"1"}))
    numbers = {"st_size": 1, "st_mtime_ns": LONG_AGO, "st_ctime_ns": LONG_AGO}
    for number, is_trusted in ((7, True), (0, False)):
        monkeypatch.setattr(os, "stat", lambda path, n=number: SimpleNamespace(st_ino=n, **numbers))
        assert (stamp_files(str(tmp_path), ["a"]) is not None) is is_trusted
