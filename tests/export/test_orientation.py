"""EXIF orientation by TensorFlow's operations, beside what Pillow reads."""

import random
import struct

import pytest
import tensorflow as tf

from tests.data.kinds import KINDS, behind_start, exif
from tests.data.pictures import blocks, encode
from trainer.data.inspect.bad_pictures import BadPictureError
from trainer.data.inspect.headers import inspect_picture
from trainer.export.orientation import MAX_BLOCKS, exif_orientation

LITTLE, BIG = "<", ">"


@pytest.fixture(scope="module")
def read():
    spec = tf.TensorSpec([], tf.string)
    function = tf.function(exif_orientation, autograph=False).get_concrete_function(spec)
    return lambda data: int(function(tf.constant(data)))


def tiff(order: str, *entries: tuple[int, int, int, int], directory_at: int = 8) -> bytes:
    """EXIF with entries (tag, type, count, value) in a byte order."""
    body = struct.pack(f"{order}H", len(entries))
    for tag, kind, count, value in entries:
        shown = struct.pack(f"{order}HH", value, 0) if kind == 3 else struct.pack(f"{order}I", value)
        body += struct.pack(f"{order}HHI", tag, kind, count) + shown
    head = b"II*\0" if order == LITTLE else b"MM\0*"
    return head + struct.pack(f"{order}I", directory_at) + bytes(directory_at - 8) + body + bytes(4)


def app1(payload: bytes) -> bytes:
    return b"\xff\xe1" + struct.pack(">H", len(payload) + 8) + b"Exif\0\0" + payload


def jpeg(*segments: bytes) -> bytes:
    return behind_start(encode(blocks(), "JPEG"), b"".join(segments))


def said_by_pillow(data: bytes) -> int:
    return inspect_picture(data, name="x").orientation


@pytest.mark.parametrize("order", [LITTLE, BIG])
def test_all_orientations_of_a_jpeg_in_both_byte_orders(order, read):
    make, width, height = 0x010F, 0x0100, 0x0101
    for turn in range(1, 9):
        others = [(make, 3, 1, 7), (width, 4, 1, 6), (0x0112, 3, 1, turn), (height, 4, 1, 5)]
        for data in (jpeg(app1(tiff(order, *others))), jpeg(app1(tiff(order, *others, directory_at=30)))):
            assert read(data) == turn == said_by_pillow(data)


@pytest.mark.parametrize("order", [LITTLE, BIG])
def test_what_says_nothing_valid_is_upright(order, read):
    for entry in [(0x0112, 3, 1, 0), (0x0112, 3, 1, 9), (0x0113, 3, 1, 6), (0x0112, 2, 1, 6)]:
        data = jpeg(app1(tiff(order, entry)))
        assert read(data) == 1 == said_by_pillow(data)
    assert read(jpeg(app1(tiff(order)))) == 1
    wrong_mark = jpeg(app1(b"XX*\0" + tiff(LITTLE, (0x0112, 3, 1, 6))[4:]))
    assert read(wrong_mark) == 1


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_numbers_of_four_bytes_and_pairs_count_too(read):
    for entry in [(0x0112, 4, 1, 8), (0x0112, 3, 2, 8)]:
        data = jpeg(app1(tiff(BIG, entry)))
        assert read(data) == 8 == said_by_pillow(data)


# By number: the types of TIFF 6.0, IFD (13), LONG8 (16), and numbers that are no type.
FORMATS = {
    1: "B", 2: "B", 3: "H", 4: "I", 5: "II", 6: "b", 7: "B", 8: "h", 9: "i", 10: "ii", 11: "f", 12: "d",
    13: "I", 14: "", 16: "Q", 17: "", 300: "",
}  # fmt: skip


def block(order: str, entries: list[tuple[int, int, list[int]]], *, behind: bytes = b"") -> bytes:
    """EXIF with entries (tag, type, values); values of more than four bytes come behind all entries."""
    body, elsewhere = struct.pack(f"{order}H", len(entries)), b""
    values_at = 8 + 2 + 12 * len(entries) + 4
    for tag, kind, values in entries:
        data = b"".join(struct.pack(f"{order}{FORMATS[kind]}", *[v] * len(FORMATS[kind])) for v in values)
        shown = data.ljust(4, b"\0")
        if len(data) > 4:
            shown = struct.pack(f"{order}I", values_at + len(elsewhere))
            elsewhere += data
        body += struct.pack(f"{order}HHI", tag, kind, len(values)) + shown
    head = (b"II*\0" if order == LITTLE else b"MM\0*") + struct.pack(f"{order}I", 8)
    return head + body + bytes(4) + elsewhere + behind


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("order", [LITTLE, BIG])
def test_numbers_of_every_type_wherever_they_are_stored(order, read):
    """A BYTE is text to Pillow, and so are the others that are no whole numbers."""
    for kind in FORMATS:
        for count in (1, 2, 3, 5):
            data = jpeg(app1(block(order, [(0x0112, kind, [6, *range(2, count + 1)])])))
            assert read(data) == said_by_pillow(data) == (6 if kind in (3, 4, 6, 8, 9, 13, 16) else 1), (
                kind,
                count,
            )
    for kind, value in ((6, -6), (8, -6), (9, -6), (16, 6 + 2**32), (4, 6 + 2**31), (3, 6 + 256)):
        data = jpeg(app1(block(order, [(0x0112, kind, [value])])))
        assert read(data) == 1 == said_by_pillow(data)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_any_block_says_what_it_says_to_pillow(read):
    """Other entries around it, several of it, counts that are wrong, bytes that are changed or cut off."""
    draw, turned = random.Random(1), 0
    for _ in range(1500):
        order, entries = draw.choice([LITTLE, BIG]), []
        for _ in range(draw.randint(0, 5)):
            tag = draw.choice([0x0112, 0x0112, 0x010F, 0x0100, 0x8769, draw.randrange(2**16)])
            entries.append(
                (tag, draw.choice(list(FORMATS)), [draw.randint(0, 9) for _ in range(draw.randint(0, 5))])
            )
        data = bytearray(block(order, entries, behind=bytes(draw.randint(0, 20))))
        for _ in range(draw.choice([0, 0, 0, 1, 2])):
            data[draw.randrange(len(data))] = draw.choice([0, 1, 6, draw.randrange(256)])
        data = bytes(data[: draw.choice([len(data), len(data), draw.randint(0, len(data))])])
        picture = jpeg(app1(draw.choice([b"", b"", b"Exif\0\0"]) + data))
        found = read(picture)
        assert found == said_by_pillow(picture), (order, entries, data)
        turned += found > 1
    assert turned > 120


def test_exif_behind_other_segments(read):
    picture = app1(tiff(LITTLE, (0x0112, 3, 1, 6)))
    other = b"\xff\xe2" + struct.pack(">H", 40000) + b"\xff\xe1\0\x22Exif\0\0" + bytes(39998 - 10)
    xmp = b"\xff\xe1" + struct.pack(">H", 31) + b"http://ns.adobe.com/xap/1.0/\0"
    assert read(jpeg(other, b"\xff" * 5, xmp, picture)) == 6
    assert read(jpeg(xmp)) == 1
    # What looks like EXIF in the payload of another segment, or behind the pixels, is none.
    assert read(jpeg(other)) == 1
    assert read(encode(blocks(), "JPEG") + picture) == 1


def test_the_search_is_bounded(read):
    empty, picture = b"\xff\xfe\0\2", app1(tiff(LITTLE, (0x0112, 3, 1, 6)))
    assert read(jpeg(*[empty] * (MAX_BLOCKS - 1), picture)) == 6
    assert read(jpeg(*[empty] * MAX_BLOCKS, picture)) == 1


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_pictures_as_pillow_writes_them(form, read):
    for turn in range(10):
        data = encode(blocks(), form, exif=exif(turn))
        assert read(data) == said_by_pillow(data) == (turn if 1 <= turn <= 8 else 1)


@pytest.mark.parametrize("length", [6, 7])
def test_chunks_of_a_webp_have_even_places(length, read):
    found = b"EXIF" + struct.pack("<I", 26) + tiff(LITTLE, (0x0112, 3, 1, 8))
    other = b"ABCD" + struct.pack("<I", length) + bytes(length + length % 2)
    whole = b"WEBP" + other + found
    assert read(b"RIFF" + struct.pack("<I", len(whole)) + whole) == 8


def test_every_kind_of_picture(read):
    assert {name: read(data) for name, data in KINDS.items()} == {
        name: said_by_pillow(data) for name, data in KINDS.items()
    }


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damage_is_no_error_and_mostly_the_same(read):
    draw, whole = random.Random(0), encode(blocks(), "JPEG", exif=exif(6))
    assert [read(data) for data in (b"", b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBP", b"\x89PNG\r\n\x1a\n")] == [
        1
    ] * 4
    compared = same = 0
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(draw.randint(1, 3)):
            data[draw.randrange(80)] = draw.randrange(256)
        data = bytes(data[: draw.choice([len(data), draw.randrange(len(data))])])
        found = read(data)
        assert 1 <= found <= 8
        try:
            wanted = said_by_pillow(data)
        except BadPictureError:
            continue
        compared, same = compared + 1, same + (found == wanted)
    assert compared > 80
    assert same >= 0.97 * compared
