"""Decoding for trial: damage that only the decoder sees, who is to blame, and what it must leave alone."""

import itertools
import os
import re
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests.data.kinds import JPEGS, KINDS, LOSSLESS, behind_start, chunk, exif, png
from tests.data.pictures import blocks, encode, noise
from trainer.data.inspect import jpeg_check, trial
from trainer.data.inspect.bad_pictures import BadPictureError
from trainer.data.inspect.headers import inspect_picture
from trainer.data.inspect.scan import scan
from trainer.data.inspect.trial import Trial
from trainer.data.loading import Loader
from trainer.data.pipeline import Pipeline
from trainer.data.sources import MemorySource
from trainer.values import Contract, TrainerError

PHOTO = encode(noise(301, 203), "JPEG", quality=90)
TABLES = PHOTO.index(b"\xff\xc4") + 5
PIXELS = PHOTO.index(b"\xff\xda") + 12


def reason_by(tried: Trial, data: bytes, **options) -> str:
    """Why a picture is bad; empty if it is not."""
    try:
        tried.check(data, name="a.jpg", **options)
    except BadPictureError as error:
        return error.reason
    return ""


def reason(data: bytes, **options) -> str:
    return reason_by(Trial(), data, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_that_is_taken_is_found_whole(kind):
    info = inspect_picture(KINDS[kind], name=kind)
    assert Trial().check(KINDS[kind], name=kind) == info


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_is_the_one_to_apply(orientation):
    data = encode(blocks(), "JPEG", exif=exif(orientation))
    assert Trial().check(data, name="x").orientation == orientation
    assert Trial().check(data, name="x", exif="ignore").orientation == 1


def put(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def with_wrong_colour_index() -> bytes:
    """A GIF of which a pixel has the 200th of two colours: a code of 8 bits between clear and end."""
    codes = sum(code << 9 * place for place, code in enumerate((256, 200, 257))).to_bytes(4, "little")
    head = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + bytes(6)
    return head + b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x08\x04" + codes + b"\0;"


def png_with(body: bytes) -> bytes:
    """A PNG of 40 x 24 px with something else for its pixels."""
    return png(np.zeros((24, 40, 3), np.uint8))[:33] + chunk(b"IDAT", body) + chunk(b"IEND", b"")


JPEG_DAMAGE = "it is damaged inside: Corrupt JPEG data: "
ANOTHER_SIZE = "it cannot be decoded: 40x24 px come out, not 60x50: save it as PNG"
DAMAGED = {
    "huffman codes that cannot be": (
        put(PHOTO, TABLES, b"\xff" * 16),
        "it cannot be decoded: ",
    ),
    "zeros in the middle": (put(PHOTO, PIXELS + 3000, bytes(2000)), JPEG_DAMAGE),
    "garbage in the middle": (put(PHOTO, PIXELS + 3000, np.random.default_rng(0).bytes(2000)), "it "),
    "of another picture": (put(PHOTO, PIXELS + 3000, PHOTO[PIXELS:][:2000]), JPEG_DAMAGE),
    "a hole": (PHOTO[: PIXELS + 3000] + PHOTO[PIXELS + 4000 :], JPEG_DAMAGE),
    "cut off, with a new end": (PHOTO[: PIXELS + 5000] + b"\xff\xd9", JPEG_DAMAGE),
    "restarts in another order": (
        JPEGS["with restarts"].replace(b"\xff\xd1", b"\xff\xd4", 1),
        JPEG_DAMAGE,
    ),
    "arithmetic coding": (PHOTO.replace(b"\xff\xc0", b"\xff\xc9", 1), ""),
    "lossless jpeg": (PHOTO.replace(b"\xff\xc0", b"\xff\xc3", 1), "it cannot be decoded: "),
    "no pixels in a png": (png_with(b""), "it cannot be decoded: Invalid PNG data, size 57"),
    "too few in a png": (png_with(b"x\x9cc`\x18X\0\0"), "it cannot be decoded: Invalid PNG data, size 65"),
    "a wrong checksum": (
        LOSSLESS["png rgb"].replace(b"IDAT", b"IDAT\0", 1),
        "it cannot be decoded: Invalid PNG data, size ",
    ),
    "a colour a gif has not": (with_wrong_colour_index(), "it cannot be decoded: Invalid GIF data"),
    "half of a webp lost": (put(LOSSLESS["webp lossless"], 30, b"\xff" * 30), "it cannot be decoded: "),
    "a gif smaller than its canvas": (put(LOSSLESS["gif"], 6, struct.pack("<HH", 60, 50)), ANOTHER_SIZE),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damage_that_no_header_shows_is_found(kind):
    data, expected = DAMAGED[kind]
    inspect_picture(data, name=kind)
    found = reason(data)
    assert found
    assert found.startswith(expected)
    assert found.isprintable()


def test_what_tensorflow_says_of_a_damaged_jpeg_is_that_it_is_fine():
    # Or there would be no need to listen to libjpeg.
    for kind in ("zeros in the middle", "a hole", "cut off, with a new end"):
        assert tf.io.decode_jpeg(DAMAGED[kind][0]).shape == (203, 301, 3)


MIDDLE = "it ends in the middle"


@pytest.mark.parametrize(
    "kind", ["baseline", "progressive", "with restarts", "grey", "large exif", "turned jpeg"]
)
def test_a_jpeg_that_is_cut_off_anywhere_is_refused(kind):
    data = KINDS[kind]
    for end in (*range(60, len(data) - 4, 97), len(data) - 4, len(data) - 3):
        assert reason(data[:end]) == MIDDLE, f"{end} of {len(data)} bytes"


def test_a_jpeg_is_cut_off_where_its_own_pixels_are_missing():
    preview = encode(noise(16, 12), "JPEG")
    held = behind_start(PHOTO, b"\xff\xe5" + (len(preview) + 2).to_bytes(2, "big") + preview)
    assert reason(held) == reason(held + b"\xff\xda\xff\xd8 \xff") == ""
    # The end of the preview is not that of the picture.
    assert reason(held[: len(held) // 2]) == MIDDLE


def test_a_jpeg_that_is_cut_off_between_two_passes_over_it_is_refused():
    data = JPEGS["progressive"]
    passes = [found.start() for found in re.finditer(rb"\xff\xda", data)]
    tables = [data.rfind(b"\xff\xc4", before, at) for before, at in itertools.pairwise(passes)]
    ends = [table if table > 0 else at for table, at in zip(tables, passes[1:], strict=True)]
    assert len(ends) > 5
    assert {reason(data[:end]) for end in ends} == {MIDDLE}
    # Whoever ends it there has said so.
    assert reason(data[: ends[-1]] + b"\xff\xd9") == ""


def left_over(data: bytes, junk: bytes) -> bytes:
    """A JPEG with more bytes between its last pixel and its end."""
    return data[:-2] + junk + b"\xff\xd9"


RANDOM = np.random.default_rng(0).bytes(5000).replace(b"\xff", b"\xfe")
HARMLESS = {
    "a few bytes before the end, as webcams write them": left_over(PHOTO, bytes(32)),
    "65 zeros before the end": left_over(PHOTO, bytes(65)),
    "random bytes before the end": left_over(PHOTO, RANDOM),
    "text before the end": left_over(PHOTO, b"made by a camera of some kind " * 9),
    "ones before the end": left_over(PHOTO, b"\xff\0" * 70),
    "bytes between the tables": PHOTO[:20] + bytes(500) + PHOTO[20:],
    "no end": PHOTO[:-2],
    "half of the end": PHOTO[:-1],
    "left-over bytes instead of the end": PHOTO[:-2] + RANDOM[:200],
    "an unknown revision": PHOTO.replace(b"JFIF\0\x01\x01", b"JFIF\0\x09\x09"),
    "bytes everywhere, and a film behind": left_over(PHOTO[:20] + bytes(500) + PHOTO[20:], RANDOM[:99])
    + RANDOM,
}


@pytest.mark.parametrize("kind", HARMLESS)
def test_what_costs_no_pixel_is_no_damage(kind):
    assert reason(HARMLESS[kind]) == ""


@pytest.mark.parametrize("decoding", ["exact", "scaled"])
def test_harmless_jpegs_are_trained_on_and_predicted_in_silence_and_as_they_are(decoding, capfd):
    contract = Contract(40, 60, value_range=(0.0, 1.0), feature_width=1, any_size=True)
    encoded = [PHOTO, *HARMLESS.values(), *(data[:-2] for data in JPEGS.values())]
    whole = [PHOTO] * (1 + len(HARMLESS)) + list(JPEGS.values())

    def images(encoded: list[bytes]) -> np.ndarray:
        ids = [str(k) for k in range(len(encoded))]
        source = MemorySource("memory:x", ("a",), ids, np.zeros(len(ids), np.int64), encoded)
        found = scan(source)
        assert not found.bad
        pipeline = Pipeline(source, found, contract=contract, batch_size=1, seed=0, decoding=decoding)
        return np.concatenate([batch["image"].numpy() for batch in pipeline.once(np.arange(len(ids)))])

    trained = images(encoded)
    np.testing.assert_array_equal(trained, images(whole))
    loader = Loader(contract, exif="apply", max_pixels=10**6, decoding=decoding)
    predicted = [loader.pixels(data, name="x") for data in encoded]
    np.testing.assert_array_equal(predicted, trained)
    assert "JPEG" not in capfd.readouterr().err


@pytest.mark.parametrize(
    "kind", ["progressive", "with restarts", "full colour resolution", "quality 20", "grey"]
)
def test_left_over_bytes_are_harmless_in_every_kind_of_jpeg(kind):
    data = left_over(JPEGS[kind], RANDOM[:100])
    np.testing.assert_array_equal(tf.io.decode_jpeg(data), tf.io.decode_jpeg(JPEGS[kind]))
    assert reason(data) == ""


def sampled(data: bytes, samplings: bytes) -> bytes:
    """A grey JPEG with its one component three times, each value of it sampled in its own way."""
    frame = data.index(b"\xff\xc0")
    scan = data.index(b"\xff\xda")
    components = b"".join(bytes([k + 1, sampling, 0]) for k, sampling in enumerate(samplings))
    frame_now = b"\xff\xc0\0\x11" + data[frame + 4 : frame + 9] + b"\3" + components
    scans = b"".join(b"\xff\xda\0\x08\1" + bytes([k + 1]) + data[scan + 6 : -2] for k in range(3))
    return data[:frame] + frame_now + data[frame + 13 : scan] + scans + b"\xff\xd9"


def test_colours_that_are_sampled_as_few_do_it_are_no_damage():
    # Each component in a scan of its own, which has as many values whatever the sampling.
    grey = encode(noise(64, 64).convert("L"), "JPEG")
    for samplings in (b"\x31\x31\x31", b"\x22\x22\x22", b"\x42\x42\x42"):
        data = sampled(grey, samplings)
        assert tf.io.decode_jpeg(data).shape == (64, 64, 3)
        assert reason(data) == ""


def test_left_over_bytes_of_a_cmyk_jpeg_are_harmless():
    assert reason(left_over(KINDS["cmyk jpeg"], RANDOM[:100])) == ""


def test_bytes_that_are_left_over_by_lost_pixels_are_damage():
    # With other codes in its middle, this one comes to its last pixel too early.
    data = DAMAGED["of another picture"][0]
    assert not np.array_equal(tf.io.decode_jpeg(data), tf.io.decode_jpeg(PHOTO))
    assert re.fullmatch(JPEG_DAMAGE + r"\d+ extraneous bytes before marker 0xd9", reason(data))


def test_many_threads_blame_nobody_else():
    bad = [data for data, _ in DAMAGED.values()]
    pictures = [*KINDS.values(), *bad, *HARMLESS.values()] * 4
    alone = [reason(data) for data in pictures[: len(pictures) // 4]]
    assert sum(map(bool, alone)) == len(bad)
    tried = Trial()
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda data: reason_by(tried, data), pictures)) == alone * 4


def test_too_many_pixels_are_not_decoded(monkeypatch):
    monkeypatch.setattr(trial, "used_codes", None)
    assert reason(PHOTO, max_pixels=61102) == "301x203 px are more than --max_pixels=61102"


def test_large_pictures_are_decoded_one_at_a_time(monkeypatch):
    monkeypatch.setattr(trial, "PIXELS_AT_ONCE", 2 * 40 * 24)
    small, large = encode(blocks(), "PNG"), encode(blocks(80, 48), "PNG")
    at_once: list[int] = []
    most = 0
    lock = threading.Lock()

    def decode(encoded, orientation):
        nonlocal most
        pixels = 80 * 48 if encoded.numpy() == large else 40 * 24
        with lock:
            at_once.append(pixels)
            most = max(most, sum(at_once))
            assert sum(at_once) <= 2 * 40 * 24 or at_once == [80 * 48]
        time.sleep(0.005)
        with lock:
            at_once.remove(pixels)
        return tf.zeros([48, 80, 3] if pixels == 80 * 48 else [24, 40, 3], tf.uint8)

    tried = Trial()
    monkeypatch.setattr(tried, "decode", decode)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda data: tried.check(data, name="x"), [small, large, small, small, large] * 4))
    assert most == 80 * 48


def test_too_little_memory_is_no_fault_of_the_picture(monkeypatch):
    def decode(encoded, orientation):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")

    def decode_jpeg(data, **options):
        raise ValueError("Insufficient memory (case 4)")

    tried = Trial()
    monkeypatch.setattr(tried, "decode", decode)
    monkeypatch.setattr(jpeg_check.simplejpeg, "decode_jpeg", decode_jpeg)
    for data, size in ((PHOTO, "301x203"), (KINDS["png rgb"], "40x24")):
        with pytest.raises(TrainerError) as caught:
            tried.check(data, name="x")
        assert not isinstance(caught.value, BadPictureError)
        assert str(caught.value) == f"too little memory to decode a picture of {size} px: lower --max_pixels"


def test_nothing_is_written_of_damaged_pictures(capfd):
    for data, _ in DAMAGED.values():
        assert reason(data)
    assert capfd.readouterr().err == ""


def test_damaged_metadata_is_no_reason_to_warn():
    code = (
        "from tests.data.kinds import KINDS; from trainer.data.inspect.headers import inspect_picture as look"
    )
    command = [sys.executable, "-c", f"{code}; print(look(KINDS['damaged exif'], name='x').orientation)"]
    done = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("1\n", "")


AT_LEVEL = """
import sys
from trainer.runtime import start_tensorflow
start_tensorflow()
from trainer.data.inspect.bad_pictures import BadPictureError
from trainer.data.inspect.trial import Trial
tried = Trial()
for line in sys.stdin:
    try:
        tried.check(bytes.fromhex(line), name="x")
        print()
    except BadPictureError as error:
        print(error.reason)
"""


@pytest.mark.slow
@pytest.mark.parametrize("level", ["0", "3"])
def test_what_tensorflow_logs_besides_makes_no_difference(level):
    pictures = [data for data, _ in DAMAGED.values()] + [*HARMLESS.values(), KINDS["baseline"]]
    done = subprocess.run(
        [sys.executable, "-c", AT_LEVEL],
        input="\n".join(data.hex() for data in pictures),
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": level},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == [reason(data) for data in pictures]
    assert "JPEG" not in done.stderr
