"""The EXIF orientation of an encoded picture, in TensorFlow's own operations: for graphs without Python.

As `data.inspect.headers` reads it with Pillow, for JPEG, PNG and WebP: a number of any type of TIFF, in the
entry or elsewhere. What only XMP says is not seen here.
"""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

# Blocks looked at in search of EXIF: cameras put it first, editors behind profiles of up to 255 segments.
MAX_BLOCKS = 300
MAX_ENTRIES = 1000
_ORIENTATION = 0x0112
_JPEG_MARK = b"Exif\0\0"
# Bytes of a value by its type: those of TIFF 6.0, IFD (13) and LONG8 (16). Pillow reads no others, either.
_TYPE_BYTES = (0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8)
# Whole numbers to Pillow, which takes a BYTE for text: SHORT, LONG, SBYTE, SSHORT, SLONG, IFD, LONG8.
_WHOLE_NUMBERS = (3, 4, 6, 8, 9, 13, 16)
_BIG_ENDIAN, _LITTLE_ENDIAN = (b"MM\0*", b"MM*\0"), (b"II*\0", b"II\0*")
_ENTRY_BYTES = 12


class _Block(NamedTuple):
    """A part of a file: whether its payload is EXIF, where that begins and ends, and where the next block is.

    `next_at` is 0 where there is nothing more to look for.
    """

    is_exif: tf.Tensor
    payload_at: tf.Tensor
    payload_end: tf.Tensor
    next_at: tf.Tensor


def exif_orientation(encoded: tf.Tensor) -> tf.Tensor:
    """Returns how a picture is to be turned. Runs in a graph.

    At most `MAX_BLOCKS` blocks are looked at, and of EXIF's first directory at most `MAX_ENTRIES` entries.

    Args:
      encoded: [] string, whatever it holds.

    Returns:
      [] int32, 1 to 8; 1 where nothing, or nothing valid, is said.
    """
    head = _bytes(encoded, 0, 12)

    def begins(text: bytes, at: int = 0) -> tf.Tensor:
        return tf.reduce_all(tf.equal(head[at : at + len(text)], list(text)))

    def upright() -> tf.Tensor:
        return tf.constant(1)

    return tf.case(
        [
            (begins(b"\xff\xd8\xff"), lambda: _search(encoded, 2, _jpeg_block)),
            (begins(b"\x89PNG\r\n\x1a\n"), lambda: _search(encoded, 8, _png_block)),
            (begins(b"RIFF") & begins(b"WEBP", 8), lambda: _search(encoded, 12, _webp_block)),
        ],
        default=upright,
    )


def _search(encoded: tf.Tensor, start: int, block_at: Callable[[tf.Tensor, tf.Tensor], _Block]) -> tf.Tensor:
    """Goes from block to block up to the one with EXIF, and returns the orientation it gives."""
    end = tf.strings.length(encoded)

    def step(at: tf.Tensor, found_at: tf.Tensor, found_end: tf.Tensor) -> tuple[tf.Tensor, ...]:
        block = block_at(encoded, at)
        goes_on = (block.next_at > at) & (block.next_at < end)
        found = tf.where(block.is_exif, [block.payload_at, block.payload_end], 0)
        return tf.where(goes_on, block.next_at, end), found[0], found[1]

    _, found_at, found_end = tf.while_loop(
        lambda at, found_at, found_end: (at < end) & tf.equal(found_at, 0),
        step,
        (tf.constant(start), tf.constant(0), tf.constant(0)),
        parallel_iterations=1,
        maximum_iterations=MAX_BLOCKS,
    )

    def from_payload() -> tf.Tensor:
        return _from_tiff(_substring(encoded, found_at, tf.maximum(found_end - found_at, 0)))

    return tf.cond(found_at > 0, from_payload, lambda: tf.constant(1))


def _jpeg_block(encoded: tf.Tensor, at: tf.Tensor) -> _Block:
    """A segment: FF, its kind, its length in two bytes with them counted, its payload."""
    head = _bytes(encoded, at, 4 + len(_JPEG_MARK))
    is_app1 = tf.equal(head[1], 0xE1)
    has_mark = tf.reduce_all(tf.equal(head[4:], list(_JPEG_MARK)))
    # 255 behind 255 only fills. A scan begins, or all is over: EXIF comes before that.
    fills = tf.equal(head[1], 0xFF)
    ends = tf.not_equal(head[0], 0xFF) | tf.equal(head[1], 0xDA) | tf.equal(head[1], 0xD9)
    next_at = tf.where(fills, at + 1, at + 2 + _number(head[2:4], big=True))
    payload_at = at + 4 + len(_JPEG_MARK)
    return _Block(is_app1 & has_mark & ~ends, payload_at, next_at, tf.where(ends, 0, next_at))


def _png_block(encoded: tf.Tensor, at: tf.Tensor) -> _Block:
    """A chunk: its length in four bytes, its kind, its payload, a checksum. Behind pixels none counts."""
    head = _bytes(encoded, at, 8)
    end = at + 8 + _number(head[:4], big=True)
    return _Block(_is(head[4:], b"eXIf"), at + 8, end, tf.where(_is(head[4:], b"IDAT"), 0, end + 4))


def _webp_block(encoded: tf.Tensor, at: tf.Tensor) -> _Block:
    """A chunk: its kind, its length in four bytes, its payload, a byte more where that is odd."""
    head = _bytes(encoded, at, 8)
    length = _number(head[4:8], big=False)
    end = at + 8 + length
    return _Block(_is(head[:4], b"EXIF"), at + 8, end, end + length % 2)


def _from_tiff(exif: tf.Tensor) -> tf.Tensor:
    """Reads the first directory of EXIF, [] string; an entry has a tag, a type, a count, and four bytes.

    These hold the values, or, where there are more than four bytes of them, where the values are.
    """
    # Some writers put the mark of a JPEG in front, or put it there twice.
    exif = tf.strings.regex_replace(exif, "^(Exif\\x00\\x00){1,2}", "")
    head, end = _bytes(exif, 0, 8), tf.cast(tf.strings.length(exif), tf.int64)
    big = tf.reduce_any([_is(head[:4], mark) for mark in _BIG_ENDIAN])
    is_tiff = big | tf.reduce_any([_is(head[:4], mark) for mark in _LITTLE_ENDIAN])
    directory_at = tf.minimum(_unsigned(head[4:8], big), end)
    entries = _entries(exif, directory_at, big)
    tag, kind = _unsigned(entries[:, :2], big), _unsigned(entries[:, 2:4], big)
    kind = tf.where(kind < len(_TYPE_BYTES), kind, 0)
    unit = tf.gather(tf.constant(_TYPE_BYTES, tf.int64), kind)
    size, place = unit * _unsigned(entries[:, 4:8], big), _unsigned(entries[:, 8:12], big)
    # As Pillow does: what cannot fit is passed over, and it reads no further than to what is cut off.
    elsewhere = size > 4
    fits = ~elsewhere | (tf.cumsum(tf.where(elsewhere, size, 0)) <= end)
    cut_off = elsewhere & fits & (place + size > end)
    is_read = (size > 0) & fits & tf.equal(tf.cumsum(tf.cast(cut_off, tf.int32)), 0)
    found = tf.where(tf.equal(tag, _ORIENTATION) & is_read)[:1, 0]

    def first_value() -> tf.Tensor:
        at = tf.where(elsewhere[found[0]], place[found[0]], directory_at + 2 + _ENTRY_BYTES * found[0] + 8)
        return _first_value(_bytes(exif, tf.cast(at, tf.int32), 8), kind[found[0]], unit[found[0]], big)

    value = tf.cond(tf.size(found) > 0, first_value, lambda: tf.constant(1, tf.int64))
    return tf.where(is_tiff & (value >= 1) & (value <= 8), tf.cast(value, tf.int32), 1)


def _entries(exif: tf.Tensor, directory_at: tf.Tensor, big: tf.Tensor) -> tf.Tensor:
    """Returns [n, 12] int32: the entries of a directory, without what is left of one that is cut off."""
    at = tf.cast(directory_at, tf.int32)
    count = tf.minimum(tf.cast(_unsigned(_bytes(exif, at, 2), big), tf.int32), MAX_ENTRIES)
    raw = tf.io.decode_raw(_substring(exif, at + 2, _ENTRY_BYTES * count), tf.uint8)
    whole = raw[: tf.size(raw) // _ENTRY_BYTES * _ENTRY_BYTES]
    return tf.reshape(tf.cast(whole, tf.int32), [-1, _ENTRY_BYTES])


def _first_value(digits: tf.Tensor, kind: tf.Tensor, unit: tf.Tensor, big: tf.Tensor) -> tf.Tensor:
    """Returns [] int64, the number that 8 bytes begin with, 0 where it is of no whole type.

    What is negative comes out as something above 8, which says nothing, either.
    """
    values = [_unsigned(digits[:1], big), _unsigned(digits[:2], big), _unsigned(digits[:4], big)]
    # Of eight bytes, those that weigh more must be zero for it to be one of 1 to 8.
    low, rest = tf.where(big, digits[4:], digits[:4]), tf.where(big, digits[:4], digits[4:])
    values.append(tf.where(tf.reduce_all(tf.equal(rest, 0)), _unsigned(low, big), 0))
    chosen = tf.reduce_sum(tf.where(tf.equal([1, 2, 4, 8], tf.cast(unit, tf.int32)), tf.stack(values), 0))
    is_whole = tf.reduce_any(tf.equal(tf.constant(_WHOLE_NUMBERS, tf.int64), kind))
    return tf.where(is_whole, chosen, 0)


def _bytes(encoded: tf.Tensor, at: tf.Tensor | int, count: int) -> tf.Tensor:
    """Returns [count] int32, the bytes from a place on; zeros where there are none."""
    part = _substring(encoded, at, count)
    return tf.cast(tf.io.decode_raw(part, tf.uint8, fixed_length=count), tf.int32)


def _substring(encoded: tf.Tensor, at: tf.Tensor | int, count: tf.Tensor | int) -> tf.Tensor:
    # Beyond its end, a text has no parts, not even empty ones.
    return tf.strings.substr(encoded, tf.clip_by_value(at, 0, tf.strings.length(encoded)), count)


def _is(found: tf.Tensor, text: bytes) -> tf.Tensor:
    return tf.reduce_all(tf.equal(found, list(text)))


def _unsigned(digits: tf.Tensor, big: tf.Tensor) -> tf.Tensor:
    """Returns [...] int64 of bytes [..., 1, 2 or 4]."""
    digits = tf.cast(digits, tf.int64)
    return tf.where(big, _number(digits, big=True), _number(digits, big=False))


def _number(digits: tf.Tensor, *, big: bool) -> tf.Tensor:
    """Returns [...] of bytes [..., 1, 2 or 4], in their type; of int32, 2**31 and more come out negative."""
    places = range(digits.shape[-1])
    weights = [256**place for place in (reversed(places) if big else places)]
    return tf.reduce_sum(digits * weights, axis=-1)
