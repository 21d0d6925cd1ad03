"""The EXIF orientation of an encoded picture, in TensorFlow's own operations: for graphs without Python.

As `data.headers` reads it with Pillow, for JPEG, PNG and WebP. What only XMP says is not seen here.
"""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

# Blocks looked at in search of EXIF: cameras put it first, editors behind profiles of up to 255 segments.
MAX_BLOCKS = 300
MAX_ENTRIES = 1000
_ORIENTATION = 0x0112
_SHORT, _LONG = 3, 4
_JPEG_MARK = b"Exif\0\0"


class _Block(NamedTuple):
    """A part of a file: whether its payload is EXIF, where that begins, and where the next block is.

    `next_at` is 0 where there is nothing more to look for.
    """

    is_exif: tf.Tensor
    payload_at: tf.Tensor
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

    def step(at: tf.Tensor, found_at: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        block = block_at(encoded, at)
        goes_on = (block.next_at > at) & (block.next_at < end)
        return tf.where(goes_on, block.next_at, end), tf.where(block.is_exif, block.payload_at, 0)

    _, found_at = tf.while_loop(
        lambda at, found_at: (at < end) & tf.equal(found_at, 0),
        step,
        (tf.constant(start), tf.constant(0)),
        parallel_iterations=1,
        maximum_iterations=MAX_BLOCKS,
    )
    return tf.cond(found_at > 0, lambda: _from_tiff(encoded, found_at), lambda: tf.constant(1))


def _jpeg_block(encoded: tf.Tensor, at: tf.Tensor) -> _Block:
    """A segment: FF, its kind, its length in two bytes with them counted, its payload."""
    head = _bytes(encoded, at, 4 + len(_JPEG_MARK))
    is_app1 = tf.equal(head[1], 0xE1)
    has_mark = tf.reduce_all(tf.equal(head[4:], list(_JPEG_MARK)))
    # 255 behind 255 only fills. A scan begins, or all is over: EXIF comes before that.
    fills = tf.equal(head[1], 0xFF)
    ends = tf.not_equal(head[0], 0xFF) | tf.equal(head[1], 0xDA) | tf.equal(head[1], 0xD9)
    next_at = tf.where(fills, at + 1, at + 2 + _number(head[2:4], big=True))
    return _Block(is_app1 & has_mark & ~ends, at + 4 + len(_JPEG_MARK), tf.where(ends, 0, next_at))


def _png_block(encoded: tf.Tensor, at: tf.Tensor) -> _Block:
    """A chunk: its length in four bytes, its kind, its payload, a checksum. Behind pixels none counts."""
    head = _bytes(encoded, at, 8)
    next_at = tf.where(_is(head[4:], b"IDAT"), 0, at + 12 + _number(head[:4], big=True))
    return _Block(_is(head[4:], b"eXIf"), at + 8, next_at)


def _webp_block(encoded: tf.Tensor, at: tf.Tensor) -> _Block:
    """A chunk: its kind, its length in four bytes, its payload, a byte more where that is odd."""
    head = _bytes(encoded, at, 8 + len(_JPEG_MARK))
    length = _number(head[4:8], big=False)
    # Some writers put the mark of a JPEG in front.
    has_mark = _is(head[8:], _JPEG_MARK)
    payload_at = at + 8 + tf.where(has_mark, len(_JPEG_MARK), 0)
    return _Block(_is(head[:4], b"EXIF"), payload_at, at + 8 + length + length % 2)


def _from_tiff(encoded: tf.Tensor, at: tf.Tensor) -> tf.Tensor:
    """Reads the entry of EXIF's first directory; each has a tag, a type, a count, and four bytes of value."""
    head = _bytes(encoded, at, 8)
    big = _is(head[:4], b"MM\0*")
    directory_at = at + _either(head[4:8], big)
    count = tf.minimum(_either(_bytes(encoded, directory_at, 2), big), MAX_ENTRIES)
    raw = tf.io.decode_raw(_substring(encoded, directory_at + 2, 12 * count), tf.uint8)
    # Without what is left of an entry that the file ends in.
    entries = tf.reshape(tf.cast(raw[: tf.size(raw) // 12 * 12], tf.int32), [-1, 12])
    tag, kind, number = (
        _either(entries[:, :2], big),
        _either(entries[:, 2:4], big),
        _either(entries[:, 4:8], big),
    )
    value = tf.where(tf.equal(kind, _LONG), _either(entries[:, 8:12], big), _either(entries[:, 8:10], big))
    # Of several values that fit into the four bytes the first one counts.
    is_short, is_long = tf.equal(kind, _SHORT) & (number <= 2), tf.equal(kind, _LONG) & (number <= 1)
    fits = (
        tf.equal(tag, _ORIENTATION)
        & (is_short | is_long)
        & (number >= 1)
        & (value >= 1)
        & (value <= 8)
        & (big | _is(head[:4], b"II*\0"))
        & (directory_at > at)
    )
    return tf.maximum(1, tf.reduce_max(tf.where(fits, value, 1)))


def _bytes(encoded: tf.Tensor, at: tf.Tensor | int, count: int) -> tf.Tensor:
    """Returns [count] int32, the bytes from a place on; zeros where there are none."""
    part = _substring(encoded, at, count)
    return tf.cast(tf.io.decode_raw(part, tf.uint8, fixed_length=count), tf.int32)


def _substring(encoded: tf.Tensor, at: tf.Tensor | int, count: tf.Tensor | int) -> tf.Tensor:
    # Beyond its end, a text has no parts, not even empty ones.
    return tf.strings.substr(encoded, tf.clip_by_value(at, 0, tf.strings.length(encoded)), count)


def _is(found: tf.Tensor, text: bytes) -> tf.Tensor:
    return tf.reduce_all(tf.equal(found, list(text)))


def _either(digits: tf.Tensor, big: tf.Tensor) -> tf.Tensor:
    return tf.where(big, _number(digits, big=True), _number(digits, big=False))


def _number(digits: tf.Tensor, *, big: bool) -> tf.Tensor:
    """Returns [...] int32 of bytes [..., 2 or 4]; what is 2**31 or more comes out negative."""
    places = range(digits.shape[-1])
    weights = [256**place for place in (reversed(places) if big else places)]
    return tf.reduce_sum(digits * weights, axis=-1)
