"""What files are, by their first bytes, and which of a folder are taken."""

import logging
import os
import struct
import threading

import numpy as np
import pytest
from PIL import Image

from tests.data.pictures import blocks, encode, jpeg
from tests.data.trees import write_tgz, write_tree
from trainer.data.class_folders import UndecodableError
from trainer.data.inspect.kinds import HEAD_BYTES, kind_of
from trainer.data.picture_files import Found, find_pictures
from trainer.data.sources import SourceOptions, open_source
from trainer.values import TrainerError


def iso(*brands: bytes) -> bytes:
    return struct.pack(">I", 16 + 4 * len(brands[1:])) + b"ftyp" + brands[0] + bytes(4) + b"".join(brands[1:])


HEIC = iso(b"heic", b"mif1", b"heic") + bytes(100)
TIFF = encode(blocks(), "TIFF")
KINDS = {
    "JPEG": jpeg(),
    "PNG": encode(blocks(), "PNG"),
    "GIF": encode(blocks(), "GIF"),
    "BMP": encode(blocks(), "BMP"),
    "WebP": encode(blocks(), "WEBP"),
    "HEIC": HEIC,
    "HEIC of another brand first": iso(b"mif1", b"mif1", b"heic"),
    "AVIF": iso(b"avif", b"avif", b"mif1"),
    "AVIF of another brand first": iso(b"mif1", b"miaf", b"avif"),
    "RAW (CR3)": iso(b"crx ", b"crx ", b"isom"),
    "RAW (CR2)": b"II*\0\x10\0\0\0CR\x02\0" + bytes(50),
    "RAW (RAF)": b"FUJIFILMCCD-RAW 0201",
    "TIFF": TIFF,
    "JPEG XL": b"\xff\x0a" + bytes(20),
    "JPEG 2000": encode(blocks(), "JPEG2000"),
    "SVG": b'<?xml version="1.0"?>\n<!-- drawn -->\n<svg xmlns="http://www.w3.org/2000/svg"/>',
    "PNM": encode(blocks(), "PPM"),
}
NO_KIND = [b"", b"BMW and Audi", b"BMW, Audi and others of " * 9, b"text", b"\xff\xd8", iso(b"mp42", b"isom")]
NO_KIND += [b"<html><body>404", b"RIFF\0\0\0\0WAVE", b"GIFT", b"P1 is a name"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_bytes_tell_the_kind(kind):
    assert kind_of(KINDS[kind][:HEAD_BYTES]) == kind.split(" of")[0].split(" (")[0]


@pytest.mark.parametrize("data", NO_KIND)
def test_what_is_no_picture_is_of_no_kind(data):
    assert kind_of(data[:HEAD_BYTES]) == ""


def opened(tmp_path, files, **options):
    write_tree(tmp_path / "photos", files)
    return open_source(f"folder:{tmp_path}/photos", SourceOptions(**options))


TAKEN = [
    "a/0.jpg",
    "a/1",
    "a/2.jpg?w=640",
    "a/3.JPG",
    "a/4.png",
    "a/5.dat",
    "a/6.heic",
    "a/7.jpg.1",
    "b/0.jpg",
]
LEFT = {
    "a/notes": b"no picture",
    "a/list.TXT": jpeg(),  # Not looked into: there may be one for each picture.
    "a/0.jpg_original": jpeg(),
    "b/0.jpg~": jpeg(),
    "b/Makefile": b"all:",
    "b/clip.mp4": b"",
    "README": b"",
}


def test_pictures_are_taken_whatever_their_names_end_in_by_all_who_read_folders(tmp_path, caplog):
    caplog.set_level(logging.INFO, "trainer")
    source = opened(tmp_path, {**dict.fromkeys(TAKEN, jpeg()), **LEFT})
    assert source.ids == TAKEN
    [record] = caplog.records
    assert record.levelno == logging.INFO
    assert "left out 3 (no ending), 1 .jpg_original, 1 .jpg~, 1 .mp4, 1 .txt: no pict" in record.getMessage()
    assert list(find_pictures([str(tmp_path / "photos")])) == [
        Found(f"{tmp_path}/photos/{name}") for name in TAKEN
    ]


def test_what_is_in_a_pipe_is_not_waited_for(tmp_path):
    write_tree(tmp_path / "photos", {"a/1.jpg": b"", "b/2": jpeg()})
    for name in ("a/pipe", "a/pipe.dat", "pipe"):
        os.mkfifo(tmp_path / "photos" / name)
    found = []

    def look() -> None:
        found.extend(open_source(f"folder:{tmp_path}/photos", SourceOptions()).ids)
        found.extend(os.path.basename(one.path) for one in find_pictures([str(tmp_path / "photos" / "b")]))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(20)
    assert found == ["a/1.jpg", "a/pipe", "b/2", "2"]


def many(heic: int, jpegs: int) -> dict[str, bytes]:
    files = {f"a/{k:03d}.jpg": jpeg(k) for k in range(jpegs - 1)}
    return {**files, "b/0.jpg": jpeg(), **{f"a/IMG_{k:03d}.HEIC": HEIC for k in range(heic)}}


WAY_OUT = "Convert them to JPEG or PNG, as with magick mogrify -format jpg FILES"


def test_a_few_that_cannot_be_decoded_are_a_warning_by_kind(tmp_path, caplog):
    files = {**many(1, 19), "b/scan.tif": TIFF, "b/cut.jpg": b""}
    source = opened(tmp_path, files)
    assert len(source.ids) == 20
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    told = "left out 2 of 22 pictures, which cannot be decoded: 1 HEIC, 1 TIFF. " + WAY_OUT
    assert told in record.getMessage()
    assert record.getMessage().endswith("or heif-convert FILE FILE.jpg for HEIC")


def test_more_than_a_tenth_is_an_error_unless_they_may_be_left_out(tmp_path, caplog):
    line = r": 3 of 27 pictures cannot be decoded: 3 HEIC. Convert .* --on_bad_image=skip leaves them out$"
    with pytest.raises(UndecodableError, match=line):
        opened(tmp_path, many(3, 24))
    assert len(opened(tmp_path, {}, on_bad_image="skip").ids) == 24
    assert "left out 3 of 27 pictures" in caplog.text


def test_an_archive_of_them_is_kept(tmp_path, server):
    server.files["/x.tgz"] = write_tgz(tmp_path / "x.tgz", many(3, 24)).read_bytes()
    options = {"cache_dir": str(tmp_path / "cache")}
    for _ in range(2):
        with pytest.raises(UndecodableError):
            open_source(f"archive:{server.url}/x.tgz", SourceOptions(**options))
    assert (
        len(open_source(f"archive:{server.url}/x.tgz", SourceOptions(**options, on_bad_image="skip")).ids)
        == 24
    )
    assert server.asked == ["/x.tgz"]


def test_other_forms_of_pictures_beside_them_are_no_loss(tmp_path, caplog):
    caplog.set_level(logging.INFO, "trainer")
    files = {
        "a/1.jpg": jpeg(),
        "a/1.CR2": TIFF,
        "a/2.heic": HEIC,
        "a/2.heic.jpg": jpeg(2),
        "b/3.JPG": jpeg(3),
    }
    files |= {"b/3.dng": TIFF}
    assert opened(tmp_path, files).ids == ["a/1.jpg", "a/2.heic.jpg", "b/3.JPG"]
    [record] = caplog.records
    assert "left out 1 .cr2, 1 .dng, 1 .heic: no pictures, or other forms" in record.getMessage()


def test_a_list_of_files_names_what_cannot_be_decoded(tmp_path):
    write_tree(tmp_path, {"1.jpg": jpeg(), "2.NEF": TIFF, "3": HEIC, "4.heic": b""})
    found = list(find_pictures([str(tmp_path)]))
    assert [os.path.basename(one.path) for one in found] == ["1.jpg", "2.NEF", "3", "4.heic"]
    assert found[0].problem == ""
    for one, kind in zip(found[1:], ("RAW", "HEIC", "HEIC"), strict=True):
        assert one.problem.startswith(f"it is none of JPEG, PNG, GIF, BMP and WebP, but {kind}: convert it")


def test_a_class_of_them_alone_names_them(tmp_path):
    with pytest.raises(TrainerError, match=r"/b holds no picture that can be decoded, but 1 HEIC\. Convert"):
        opened(tmp_path, {"a/1.jpg": jpeg(), "b/1": HEIC}, on_bad_image="skip")


def test_a_picture_is_decoded_whatever_it_is_called(tmp_path, run_main, tiny_backbone):
    for k, name in enumerate(("a/1", "a/2.jpg?w=640", "a/3.png", "b/4.HEIC", "b/5.txt.bin", "b/6.JPEG")):
        pixels = np.full((9, 9, 3), 200 if name[0] == "a" else 20, np.uint8) + k
        write_tree(tmp_path / "photos", {name: encode(Image.fromarray(pixels.astype(np.uint8)), "JPEG")})
    status, out, err = run_main(
        "inspect", f"--source=folder:{tmp_path}/photos", f"--backbone=savedmodel:{tiny_backbone}",
        "--splits=4,2", "--batch_size=2", "--image_size=8", "--schedule=frozen", "--split_seed=1",
    )  # fmt: skip
    assert status == 0, err
    assert "of 6" in out
