"""What is refused by the header, before anything is decoded: the reason, and how little memory it takes."""

import io
import struct
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tests.data.kinds import BLACK, KINDS, exif, png, with_alpha
from tests.data.pictures import blocks, encode, noise
from trainer.data.decode import decode
from trainer.data.inspect.bad_pictures import BadPictureError
from trainer.data.inspect.headers import MAX_PIXELS, inspect_picture
from trainer.values import TrainerError


def problem(data: bytes, max_pixels: int = MAX_PIXELS) -> BadPictureError | None:
    try:
        inspect_picture(data, name="roses/1.jpg", max_pixels=max_pixels)
    except BadPictureError as error:
        return error
    return None


def reason(data: bytes, max_pixels: int = MAX_PIXELS) -> str:
    """Why a picture is refused; empty if it is not."""
    error = problem(data, max_pixels)
    if error is None:
        return ""
    assert isinstance(error, TrainerError)
    assert str(error) == f"roses/1.jpg is not a picture that can be read: {error.reason}"
    assert error.reason.isprintable()
    assert error.lasting
    return error.reason


@pytest.mark.parametrize("kind", KINDS)
def test_what_can_be_decoded_is_not_refused(kind):
    info = inspect_picture(KINDS[kind], name=kind)
    with Image.open(io.BytesIO(KINDS[kind])) as image:
        assert (info.width_px, info.height_px) == image.size
        assert info.format.upper() == image.format.replace("MPO", "JPEG")


@pytest.mark.parametrize("orientation", [0, 9, 300])
def test_orientations_that_do_not_exist_are_upright(orientation):
    assert inspect_picture(encode(blocks(), "JPEG", exif=exif(orientation)), name="x").orientation == 1


def test_damaged_exif_is_upright():
    assert inspect_picture(KINDS["damaged exif"], name="x").orientation == 1


NONE = "it is none of JPEG, PNG, GIF, BMP and WebP"
AS = "convert it, as with magick mogrify -format jpg FILES"
MIDDLE = "it ends in the middle"
LENGTH = "it ends in the middle, or goes on behind its pixels"
PALETTE = "a BMP with a palette, packed pixels or compression: save it as PNG"
WHOLE = encode(noise(301, 203), "JPEG")


def os2_bmp() -> bytes:
    """A BMP whose header has 12 bytes: width and height have two each."""
    pixels = encode(blocks(), "BMP")[54:]
    return b"BM" + struct.pack("<IIIIHHHH", 26 + len(pixels), 0, 26, 12, 40, 24, 1, 24) + pixels


REFUSED = {
    "text": (b"these are no pixels\n" * 50, NONE),
    "html": (b"<!DOCTYPE html><html><body>404 Not Found</body></html>", NONE),
    "svg": (
        b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        f"{NONE}, but SVG: {AS} or rsvg-convert FILE -o FILE.png for SVG",
    ),
    "tiff": (encode(blocks(), "TIFF"), f"{NONE}, but TIFF: {AS}"),
    "ico": (encode(blocks(), "ICO"), NONE),
    "jpeg 2000": (encode(blocks(), "JPEG2000"), f"{NONE}, but JPEG 2000: {AS}"),
    "avif": (b"\0\0\0\x20ftypavif" + bytes(500), f"{NONE}, but AVIF: {AS}"),
    "heic": (
        b"\0\0\0\x18ftypheic" + bytes(500),
        f"{NONE}, but HEIC: {AS} or heif-convert FILE FILE.jpg for HEIC",
    ),
    "jpeg xl": (b"\xff\x0a" + bytes(500), f"{NONE}, but JPEG XL: {AS}"),
    "another riff": (b"RIFF" + struct.pack("<I", 492) + b"WAVE" + bytes(488), NONE),
    "empty": (b"", "it is empty (0 bytes)"),
    "one byte": (b"\xff", NONE),
    "animated webp": (
        encode(blocks(), "WEBP", save_all=True, append_images=[BLACK]),
        "an animated WebP: save its first frame as PNG",
    ),
    "animated webp of one frame": (
        KINDS["webp with exif"].replace(b"VP8X\n\0\0\0\x08", b"VP8X\n\0\0\0\x0a"),
        "an animated WebP: save its first frame as PNG",
    ),
    "palette bmp": (encode(blocks().convert("P"), "BMP"), PALETTE),
    "1-bit bmp": (encode(blocks().convert("1"), "BMP"), PALETTE),
    "os/2 bmp": (os2_bmp(), "a BMP of the kind of OS/2: save it as PNG"),
    "half a bmp": (encode(blocks(), "BMP")[:1000], LENGTH),
    "bmp and more": (encode(blocks(), "BMP") + bytes(4), LENGTH),
    "only a header": (b"\xff\xd8\xff\xe0", MIDDLE),
    "12-bit jpeg": (
        WHOLE.replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc0\x00\x11\x0c"),
        "its JPEG header cannot be read: cannot handle 12-bit layers",
    ),
    "a gif without a frame": (encode(blocks(), "GIF")[:13] + b";", "a GIF without a picture"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_decoded_is_refused_in_one_line_with_its_name(kind):
    data, expected = REFUSED[kind]
    assert reason(data) == expected


@pytest.mark.parametrize("kind", ["half a bmp", "1-bit bmp", "os/2 bmp"])
def test_what_is_refused_is_refused_for_a_reason(kind):
    with pytest.raises(tf.errors.InvalidArgumentError):
        decode(tf.constant(REFUSED[kind][0]), tf.constant(1))


def test_animated_webp_with_alpha_is_an_error_and_no_crash():
    data = encode(with_alpha(), "WEBP", save_all=True, append_images=[Image.new("RGBA", (40, 24))])
    assert reason(data) == "an animated WebP: save its first frame as PNG"
    with pytest.raises(tf.errors.InvalidArgumentError):
        decode(tf.constant(data), tf.constant(1))


CUT = ["png rgb", "png interlaced", "png animated", "png palette", "gif of noise", "gif, first of two frames"]
CUT += ["bmp 24 bits", "webp lossless", "webp lossy", "webp lossy, alpha", "webp with exif"]


@pytest.mark.parametrize("kind", CUT)
def test_a_picture_that_is_cut_off_anywhere_is_refused(kind):
    data = KINDS[kind]
    # The byte that ends a GIF holds nothing. Of JPEGs, a decoder tells.
    last = len(data) - (2 if "gif" in kind else 1)
    for end in (0, 1, 2, 3, 5, 11, 12, 13, 20, 25, 29, 30, 33):
        assert reason(data[:end]), f"{end} bytes"
    for end in (*range(60, last, 97), last - 1, last):
        assert reason(data[:end]) == (LENGTH if "bmp" in kind else MIDDLE), f"{end} of {len(data)} bytes"


def sized_jpeg(width: int, height: int) -> bytes:
    size = struct.pack(">HH", 203, 301)
    return WHOLE.replace(b"\x08" + size, b"\x08" + struct.pack(">HH", height, width))


def sized_gif(*, canvas: tuple[int, int], frame: tuple[int, int, int, int]) -> bytes:
    data = bytearray(encode(blocks(), "GIF"))
    at = data.index(b",\0\0\0\0")
    struct.pack_into("<HH", data, 6, *canvas)
    struct.pack_into("<HHHH", data, at + 1, *frame)
    return bytes(data)


def sized_bmp(width: int, height: int) -> bytes:
    data = bytearray(encode(blocks(), "BMP"))
    struct.pack_into("<ii", data, 18, width, height)
    return bytes(data)


def sized_webp(kind: str, size: bytes, at: int) -> bytes:
    return KINDS[kind][:at] + size + KINDS[kind][at + len(size) :]


def at_most(max_pixels: int, size: str) -> str:
    return f"{size} px are more than --max_pixels={max_pixels}"


BOMBS = {
    "png": (png(np.zeros((1, 1, 3), np.uint8), size=(60000, 60000)), "60000x60000"),
    "png, widest": (png(np.zeros((1, 1, 3), np.uint8), size=(2**31 - 1, 2**31 - 1)), "2147483647x2147483647"),
    "jpeg": (sized_jpeg(65500, 65500), "65500x65500"),
    "gif canvas": (sized_gif(canvas=(65535, 65535), frame=(0, 0, 40, 24)), "65535x65535"),
    "gif frame": (sized_gif(canvas=(40, 24), frame=(0, 0, 65535, 65535)), "65535x65535"),
    "gif far away": (sized_gif(canvas=(40, 24), frame=(65000, 65000, 40, 24)), "65040x65024"),
    "bmp": (sized_bmp(50000, 50000), "50000x50000"),
    "bmp upside down": (sized_bmp(50000, -50000), "50000x50000"),
    "webp": (sized_webp("webp lossy", struct.pack("<HH", 16383, 16383), 26), "16383x16383"),
    "webp lossless": (sized_webp("webp lossless", b"\xff\xff\xff\x0f", 21), "16384x16384"),
    "webp canvas": (sized_webp("webp with exif", b"\xff" * 6, 24), "16777216x16777216"),
}


LOOK = """
import json, resource, sys
resource.setrlimit(resource.RLIMIT_AS, (400 * 2**20, 400 * 2**20))
from trainer.data.inspect.headers import inspect_picture
from trainer.values import TrainerError
for line in sys.stdin:
    try:
        print(inspect_picture(bytes.fromhex(line), name="x", max_pixels=100_000_000))
    except TrainerError as error:
        print(error)
"""


def look_with_little_memory(*pictures: bytes) -> list[str]:
    """Inspects pictures in a process of 400 MB; the smallest of 100 million pixels would take 300 decoded."""
    text = "\n".join(data.hex() for data in pictures)
    command = [sys.executable, "-c", LOOK]
    root = Path(__file__).parents[3]
    done = subprocess.run(command, input=text, cwd=root, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return [line.split(": ", 1)[1] for line in done.stdout.splitlines()]


def test_a_huge_size_in_a_small_file_is_refused_by_its_size():
    assert max(len(data) for data, _ in BOMBS.values()) < 25_000
    told = look_with_little_memory(*(data for data, _ in BOMBS.values()))
    assert told == [at_most(100_000_000, size) for _, size in BOMBS.values()]


def test_the_limit_is_the_number_of_pixels_that_is_still_taken():
    for data in (encode(blocks(), "PNG"), WHOLE, KINDS["gif"], KINDS["bmp grey"], KINDS["webp lossy"]):
        pixels = 301 * 203 if data is WHOLE else 40 * 24
        assert reason(data, pixels) == ""
        assert reason(data, pixels - 1) == at_most(pixels - 1, "301x203" if data is WHOLE else "40x24")


def test_what_tensorflow_would_not_decode_is_refused_whatever_is_allowed():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        large = png(np.zeros((1, 1, 3), np.uint8), size=(13000, 13000))
        assert inspect_picture(large, name="x").width_px == 13000
    larger = png(np.zeros((1, 1, 3), np.uint8), size=(30000, 20000))
    assert reason(larger, 10**9) == f"30000x20000 px are more than the {MAX_PIXELS} that TensorFlow decodes"
    assert MAX_PIXELS * 3 < 2**29


def test_frames_of_a_gif_count_together():
    frames = [Image.new("RGB", (40, 24), (k, 0, 0)) for k in range(1, 8)]
    data = encode(blocks(), "GIF", save_all=True, append_images=frames)
    assert reason(data, 8 * 40 * 24 // 3) == ""
    few = 8 * 40 * 24 // 3 - 1
    assert reason(data, few) == f"its 8 frames are 7680 px, more than three times --max_pixels={few}"


def test_inspecting_is_fast():
    photo = encode(noise(500, 375), "JPEG", quality=95, exif=exif(6))
    inspect_picture(photo, name="x")
    took = []
    for _ in range(50):
        start = time.perf_counter()
        inspect_picture(photo, name="x")
        took.append(time.perf_counter() - start)
    assert min(took) < 0.5e-3
