"""Scans and their records: what is taken from a record, and what makes a scan necessary again."""

import errno
import hashlib
import logging
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.pictures import blocks, encode, jpeg
from tests.data.trees import FILES, LONG_AGO, age, write_tree
from trainer.data.inspect import scan as scans
from trainer.data.inspect import stamps
from trainer.data.inspect.bad_pictures import BadPictureError
from trainer.data.inspect.scan import scan
from trainer.data.inspect.trial import Trial
from trainer.data.sources import MemorySource
from trainer.data.sources.folder import FolderSource, open_folder
from trainer.data.sources.synthetic.source import open_synthetic
from trainer.store import provenance
from trainer.values import TrainerError


@pytest.fixture
def photos(tmp_path) -> Path:
    return age(write_tree(tmp_path / "photos", FILES))


@pytest.fixture
def looked(monkeypatch) -> list[str]:
    """The ids of pictures that a scan looked at."""
    names: list[str] = []
    real = Trial.check

    def check(self, data, *, name, **options):
        names.append(name)
        return real(self, data, name=name, **options)

    monkeypatch.setattr(Trial, "check", check)
    return names


@pytest.fixture
def records(tmp_path) -> Path:
    return tmp_path / "cache/scans"


def open_photos(photos: Path) -> FolderSource:
    return open_folder(str(photos), name="folder:photos")


def expected() -> list[str]:
    return [hashlib.sha256(FILES[file]).hexdigest() for file in sorted(FILES)]


def turned_jpeg(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(blocks(), "JPEG", exif=exif)


def test_more_pictures_than_one_task_takes_stay_in_order(looked):
    count = 2 * scans.TASK_EXAMPLES + 3
    encoded = [turned_jpeg(k % 8 + 1) for k in range(count)]
    ids = [f"{k}" for k in range(count)]
    source = MemorySource("memory:x", ("a",), ids, np.zeros(count, np.int64), encoded)
    found = scan(source)
    assert found.digests == [hashlib.sha256(data).hexdigest() for data in encoded]
    assert found.orientations.tolist() == [k % 8 + 1 for k in range(count)]
    assert found.orientations.dtype == np.int32
    assert sorted(looked, key=int) == ids
    assert scan(source, exif="ignore").orientations.tolist() == [1] * count


def test_what_was_found_is_not_looked_for_again(photos, records, looked):
    (photos / "roses/9.jpg").write_bytes(turned_jpeg(6)[:-2])
    age(photos)
    first = scan(open_photos(photos), recorded=records)
    assert len(looked) == 7
    assert first.orientations.tolist() == [1, 1, 1, 6, 1, 1, 1]
    again = scan(open_photos(photos), recorded=records)
    assert len(looked) == 7
    assert again.digests == first.digests
    assert list(again.used) == [3]
    assert again.used == first.used
    assert (again.known, again.known.is_upright) == (first.known, False)
    assert again.orientations.tolist() == first.orientations.tolist()
    assert again.orientations.dtype == first.orientations.dtype
    assert scan(open_photos(photos), exif="ignore", recorded=records).orientations.tolist() == [1] * 7
    assert len(looked) == 14


def test_without_a_folder_nothing_is_recorded(photos, looked):
    for _ in range(2):
        assert scan(open_photos(photos)).digests == expected()
    assert len(looked) == 14


def change_bytes(photos: Path) -> None:
    path = photos / "roses/9.jpg"
    path.write_bytes(path.read_bytes()[:-3] + b"0" + path.read_bytes()[-2:])
    os.utime(path, ns=(LONG_AGO + 1, LONG_AGO + 1))


def touch(photos: Path) -> None:
    os.utime(photos / "roses/9.jpg", ns=(LONG_AGO - 1, LONG_AGO - 1))


def lengthen(photos: Path) -> None:
    path = photos / "roses/9.jpg"
    path.write_bytes(jpeg(2) + jpeg(2))
    os.utime(path, ns=(LONG_AGO, LONG_AGO))


def add(photos: Path) -> None:
    (photos / "roses/new.jpg").write_bytes(jpeg(1))
    age(photos)


def rename(photos: Path) -> None:
    (photos / "roses/9.jpg").rename(photos / "roses/99.jpg")


def remove(photos: Path) -> None:
    (photos / "roses/9.jpg").unlink()


def swap(photos: Path) -> None:
    (photos / "roses/9.jpg").rename(photos / "x")
    (photos / "roses/10.jpg").rename(photos / "roses/9.jpg")
    (photos / "x").rename(photos / "roses/10.jpg")
    touch(photos)


@pytest.mark.parametrize("change", [change_bytes, touch, lengthen, add, rename, remove, swap])
def test_a_change_makes_a_scan_necessary(photos, records, looked, change):
    scan(open_photos(photos), recorded=records)
    change(photos)
    source = open_photos(photos)
    found = scan(source, recorded=records)
    assert len(looked) == 7 + len(source.ids)
    assert found.digests == [hashlib.sha256((photos / name).read_bytes()).hexdigest() for name in source.ids]


def test_a_copy_of_a_folder_has_a_record_of_its_own(photos, records, looked, tmp_path):
    scan(open_photos(photos), recorded=records)
    shutil.copytree(photos, tmp_path / "copy")
    scan(open_photos(tmp_path / "copy"), recorded=records)
    assert len(looked) == 14


def test_a_file_that_was_just_written_is_not_trusted(photos, records, looked, monkeypatch):
    assert stamps.SETTLED_NS == 2 * 10**9
    monkeypatch.setattr(stamps, "SETTLED_NS", 1000 * 10**9)  # A slow machine makes no difference to these.
    now = time.time_ns()
    os.utime(photos / "roses/9.jpg", ns=(now - 500 * 10**9, now - 500 * 10**9))
    for seen in (7, 14):
        scan(open_photos(photos), recorded=records)
        assert len(looked) == seen
    assert not records.exists()
    os.utime(photos / "roses/9.jpg", ns=(now - 2000 * 10**9, now - 2000 * 10**9))
    for _ in range(2):
        scan(open_photos(photos), recorded=records)
        assert len(looked) == 21


def test_pictures_that_change_during_a_scan_are_not_recorded(photos, records, looked, monkeypatch):
    source = open_photos(photos)
    real = source.read

    def read(index):
        if index == 6:
            touch(photos)
        return real(index)

    monkeypatch.setattr(source, "read", read)
    scan(source, recorded=records)
    assert not records.exists()


@pytest.fixture
def other_code(tmp_path, monkeypatch):
    """Puts a copy of the source of this project in the place of it, with a line more in one file."""

    def change(file: str) -> None:
        package = tmp_path / "other" / "trainer"
        shutil.copytree(provenance._PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
        with open(package / file, "a") as out:
            out.write("# other")
        monkeypatch.setattr(provenance, "_PACKAGE", package)

    return change


@pytest.mark.parametrize(
    "module",
    [
        "inspect/bad_pictures",
        "decode",
        "inspect/headers",
        "inspect/jpeg_check",
        "inspect/scan",
        "inspect/trial",
        "../values",
    ],
)
def test_other_code_looks_again(photos, records, looked, other_code, module):
    scan(open_photos(photos), recorded=records)
    other_code(f"data/{module}.py")
    scan(open_photos(photos), recorded=records)
    assert len(looked) == 14


def test_code_that_does_not_look_at_pictures_makes_no_difference(photos, records, looked, other_code):
    scan(open_photos(photos), recorded=records)
    other_code("loop/losses.py")
    scan(open_photos(photos), recorded=records)
    assert len(looked) == 7


@pytest.mark.parametrize("library", ["tensorflow.__version__", "PIL.__version__", "simplejpeg.__version__"])
def test_another_decoder_looks_again(photos, records, looked, monkeypatch, library):
    scan(open_photos(photos), recorded=records)
    monkeypatch.setattr(library, "0.0")
    scan(open_photos(photos), recorded=records)
    assert len(looked) == 14


def spoil(photos: Path) -> dict[str, str]:
    """Spoils four of seven pictures, and returns {id: reason}."""
    turned = turned_jpeg(6)
    (photos / "roses/9.jpg").write_bytes(turned[:-60] + b"\xff\xd9")
    (photos / "daisy/0.jpg").write_bytes(b"")
    (photos / "roses/a.Jpeg").write_bytes(encode(blocks(), "PNG")[:50])
    (photos / "tulips/ü.jpg").unlink()
    (photos / "tulips/1.jpg").write_bytes(turned)
    age(photos)
    (photos / "tulips/ü.jpg").symlink_to("gone")
    return {
        "daisy/0.jpg": "it is empty (0 bytes)",
        "roses/9.jpg": "it is damaged inside: Corrupt JPEG data: premature end of data segment",
        "roses/a.Jpeg": "it ends in the middle",
        "tulips/ü.jpg": "a link to nothing",
    }


def test_all_bad_pictures_are_found_and_recorded_with_their_reasons(photos, records, looked, capfd):
    expected = spoil(photos)
    source = open_photos(photos)
    first = scan(source, recorded=records)
    assert {source.ids[at]: reason for at, reason in first.bad.items()} == expected
    assert list(first.bad) == sorted(first.bad)
    assert len(looked) == 7
    again = scan(open_photos(photos), recorded=records)
    assert len(looked) == 7
    for found in (first, again):
        assert found.bad == first.bad
        for at, name in enumerate(source.ids):
            digest = hashlib.sha256((photos / name).read_bytes()).hexdigest() if at not in found.bad else ""
            assert found.digests[at] == digest
        assert found.orientations.tolist() == [6 if name == "tulips/1.jpg" else 1 for name in source.ids]
        assert found.orientations.dtype == np.int32
    assert capfd.readouterr().err == ""


def test_a_repaired_picture_is_looked_at(photos, records, looked):
    spoil(photos)
    bad = scan(open_photos(photos), recorded=records).bad
    (photos / "tulips/ü.jpg").unlink()
    (photos / "tulips/ü.jpg").write_bytes(jpeg(7))
    age(photos)
    source = open_photos(photos)
    assert set(bad) - set(scan(source, recorded=records).bad) == {source.ids.index("tulips/ü.jpg")}


def test_another_limit_of_pixels_is_another_scan(photos, records, looked):
    assert scan(open_photos(photos), max_pixels=16 * 12, recorded=records).bad == {}
    found = scan(open_photos(photos), max_pixels=16 * 12 - 1, recorded=records)
    assert len(looked) == 14
    assert found.bad == dict.fromkeys(range(7), "16x12 px are more than --max_pixels=191")
    assert scan(open_photos(photos), max_pixels=16 * 12, recorded=records).bad == {}
    assert len(looked) == 14


def test_a_missing_permission_is_not_recorded(photos, records, monkeypatch):
    real = os.open

    def refuse(path, flags, *rest, **options):
        if str(path).endswith("roses/9.jpg"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return real(path, flags, *rest, **options)

    # Root may read everything.
    monkeypatch.setattr(os, "open", refuse)
    source = open_photos(photos)
    assert scan(source, recorded=records).bad == {source.ids.index("roses/9.jpg"): "Permission denied"}
    monkeypatch.setattr(os, "open", real)
    assert not records.exists()
    assert scan(open_photos(photos), recorded=records).bad == {}


def test_a_picture_that_vanishes_meanwhile_is_an_error_of_the_moment(photos, records):
    source = open_photos(photos)
    (photos / "roses/9.jpg").unlink()
    with pytest.raises(TrainerError) as caught:
        scan(source, recorded=records)
    assert not isinstance(caught.value, BadPictureError)
    assert str(caught.value) == (
        f"--source=folder:photos: cannot read {photos}/roses/9.jpg: No such file or directory"
    )


def test_an_error_leaves_the_rest_undone(monkeypatch):
    count = 100 * scans.TASK_EXAMPLES
    asked: list[int] = []

    class Failing(MemorySource):
        def read(self, index: int) -> bytes:
            asked.append(index)
            if index == 3:
                raise TrainerError("the moment has come")
            return jpeg()

    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    source = Failing("memory:x", ("a",), [str(k) for k in range(count)], np.zeros(count, np.int64), [])
    with pytest.raises(TrainerError, match="the moment has come"):
        scan(source)
    assert len(asked) < count / 2


def test_many_pictures_are_announced(monkeypatch, caplog):
    caplog.set_level(logging.INFO, "trainer")
    monkeypatch.setattr(scans, "_MANY_EXAMPLES", 3)
    for count in (2, 3):
        scan(open_synthetic("flowers", name="synthetic:flowers", num_examples=count, seed=0))
    assert caplog.messages == ["synthetic:flowers: decoding 3 pictures once, to see that each can be"]


@pytest.mark.parametrize("damage", ["a bit", "cut", "longer", "empty", "of another"])
def test_a_damaged_record_is_made_anew(photos, records, looked, damage, caplog):
    caplog.set_level(logging.INFO, "trainer")
    scan(open_photos(photos), exif="ignore", recorded=records)
    (other,) = records.iterdir()
    scan(open_photos(photos), recorded=records)
    (record,) = set(records.iterdir()) - {other}
    data = record.read_bytes()
    bit = data[:100] + bytes([data[100] ^ 1]) + data[101:]
    others = {"a bit": bit, "cut": data[:-1], "longer": data + b"0", "empty": b""}
    record.write_bytes(others.get(damage, other.read_bytes()))
    assert scan(open_photos(photos), recorded=records).digests == expected()
    assert len(looked) == 21
    assert f"{record}, is damaged: the pictures are looked at anew" in caplog.text
    assert record.read_bytes() == data


def test_a_place_that_takes_no_record_costs_a_line(photos, records, looked, caplog):
    caplog.set_level(logging.INFO, "trainer")
    records.parent.mkdir()
    records.write_bytes(b"a file")
    assert scan(open_photos(photos), recorded=records).digests == expected()
    assert f"the scan is not recorded in {records}: " in caplog.text
    assert records.read_bytes() == b"a file"


def test_the_records_used_last_are_kept(photos, records, looked, monkeypatch):
    monkeypatch.setattr(scans, "RECORDS_KEPT", 3)
    scan(open_photos(photos), recorded=records)
    (first,) = records.iterdir()
    age(records)
    for k in range(4):
        scan(open_photos(photos), recorded=records)  # Used, so that it stays.
        touched = LONG_AGO + k + 1
        scan(open_synthetic("flowers", name="x", num_examples=2, seed=k), recorded=records)
        for path in set(records.iterdir()) - {first}:
            os.utime(path, ns=(touched, touched))
    assert len(list(records.iterdir())) == 3
    assert looked.count("roses/9.jpg") == 1


def test_what_else_is_in_the_folder_of_records_stays(records, monkeypatch):
    """As where --cache_dir is somebody's folder, with scans of theirs in scans/."""
    monkeypatch.setattr(scans, "RECORDS_KEPT", 1)
    records.mkdir(parents=True, exist_ok=True)
    mine = {"page 1.jpg", "notes.scan"}
    for name in (*mine, ".part-left"):
        (records / name).write_text(name)
        os.utime(records / name, ns=(LONG_AGO, LONG_AGO))
    for k in range(3):
        scan(open_synthetic("flowers", name="x", num_examples=2, seed=k), recorded=records)
    assert {path.name for path in records.iterdir()} > mine
    assert not (records / ".part-left").exists()
    assert len(list(records.iterdir())) == len(mine) + 1


def test_drawn_pictures_with_a_record_are_not_drawn(records):
    def source(seed=3):
        return open_synthetic("flowers", name="synthetic:flowers", num_examples=6, seed=seed)

    first, again = source(), source()
    found = scan(first, recorded=records)
    assert len(first.encoded.store) == 6
    assert scan(again, recorded=records).digests == found.digests
    assert len(again.encoded.store) == 0
    assert hashlib.sha256(again.read(4)).hexdigest() == found.digests[4]
    other = source(seed=4)
    assert other.stamp() != first.stamp()
    assert not set(scan(other, recorded=records).digests) & set(found.digests)
