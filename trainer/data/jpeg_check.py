"""Whether all pixels of a JPEG are there: the verdict of a decoder that reports what it had to make up.

TensorFlow's own decoder fills lost pixels in and calls that success. libjpeg-turbo, asked through
simplejpeg to be strict, fails instead.
"""

import bisect
import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import simplejpeg

_END = b"\xff\xd9"
# Neither a stuffed byte nor a restart, which stand inside of a scan, nor a fill byte.
_MARKER = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])", re.DOTALL)
_TABLES, _SCAN, _COMMENT, _JFIF, _ADOBE = 0xC4, 0xDA, 0xFE, 0xE0, 0xEE
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
# Of Huffman codes, which every libjpeg decodes alike.
_SEQUENTIAL_FRAMES, _PROGRESSIVE = (0xC0, 0xC1), 0xC2
_COMMON_FRAMES = (b"\xc0", b"\xc1", b"\xc2")
# Of the first component; the next two have one value where it has so many across and down.
_SAMPLINGS = (0x11, 0x21, 0x12, 0x22, 0x41, 0x14)
_BLOCK_VALUES = 64
_MOST_BITS = 11
_PLAIN_JFIF = b"\xff\xe0\0\x10JFIF\0\x01\x01\0\0\x01\0\x01\0\0"
# Of JWRN_HIT_MARKER, the same since 1991. It only directs a search; what is found is decoded strictly.
_LACKS_DATA = "premature end"


def jpeg_problem(data: bytes) -> str:
    """Returns why a JPEG is bad, for people; empty if every pixel is what its writer meant it to be.

    What costs no pixel is no problem: unknown versions, bytes between the tables, and left-over bytes
    between the last pixel and the end, as webcams write them, as many as there are.

    Raises:
      MemoryError: there is too little for it.
    """
    said = _complaint(data)
    if not said:
        return ""
    if "Premature end of JPEG file" in said:
        return "it ends in the middle"
    plain = _plain(data)
    try:
        pixels = _decode(plain.head + plain.codes + _END, strict=False)
    except ValueError:
        # The whole of the picture is there, and whoever knows its sampling tells more.
        return "" if not is_common(data) and _is_rarely_sampled(data) else f"it cannot be decoded: {said}"
    return "" if _is_whole(plain, pixels) else f"it is damaged inside: {said}"


def is_common(data: bytes) -> bool:
    """Tells whether TensorFlow decodes a JPEG if `jpeg_problem` finds none; of others it must be asked.

    It does not decode lossless ones or those of 12 bits, which newer versions of libjpeg-turbo do, and it
    decodes all samplings of colours, which simplejpeg does not.
    """
    frame = _frame(data)
    marker, bits, components = frame[1:2], frame[4:5], frame[9:10]
    is_known = marker in _COMMON_FRAMES and bits == b"\x08" and components in (b"\1", b"\3")
    return is_known and not _is_rarely_sampled(data)


def _is_rarely_sampled(data: bytes) -> bool:
    samplings = _frame(data)[11::3]
    return len(samplings) > 1 and (samplings[0] not in _SAMPLINGS or {*samplings[1:3]} != {0x11})


def _frame(data: bytes) -> bytes:
    """Returns the segment that says how a picture is coded; empty if it is missing."""
    return next((data[at:to] for at, marker, to in _segments(data) if marker in _FRAMES), b"")


def find_end(data: bytes) -> int:
    """Returns the position of the marker that ends the first picture; -1 where it is missing.

    Cameras put films and previews behind it.
    """
    at = 2
    for _, _, to in _segments(data):
        at = to
    if data[at : at + 2] == _END:
        return at
    # Garbage that looks like markers led beyond it.
    return len(data) - 2 if data.endswith(_END) else -1


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yields (begin, marker, end) of each segment up to the end of the picture, which is where the last ends.

    What is between segments belongs to none: pixels, fill bytes, garbage.
    """
    at = 2
    while found := _MARKER.search(data, at):
        if found[1][0] == _END[1]:
            yield found.start(), _COMMENT, found.start()
            return
        at = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
        yield found.start(), found[1][0], at


@dataclass(frozen=True)
class _Plain:
    """A JPEG without comments, metadata and garbage: up to the codes of its last scan, and these."""

    head: bytes
    codes: bytes
    frame: int
    """The marker that says how it is coded."""


def _plain(data: bytes) -> _Plain:
    kept, end = [b"\xff\xd8"], find_end(data)
    frame, first_scan, last_scan = 0, 0, 0
    for at, marker, to in _segments(data[:end] if end > 0 else data):
        segment = data[at:to]
        if marker == _SCAN:
            first_scan, last_scan = first_scan or at, to
        elif first_scan:
            continue
        elif marker == _JFIF and segment[4:9] == b"JFIF\0":
            kept.append(_PLAIN_JFIF)
        elif marker == _ADOBE or not _JFIF <= marker <= _COMMENT:
            kept.append(segment)
            frame = marker if marker in _FRAMES else frame
    return _Plain(b"".join(kept) + data[first_scan:last_scan], data[last_scan:end], frame)


def _complaint(data: bytes) -> str:
    """Returns what a strict decoder says of a JPEG; empty if it has nothing to complain of."""
    try:
        # An eighth of the size takes all of the codes to be read, and little of the arithmetic.
        _decode(data, strict=True, least_px=1)
    except ValueError as error:
        return str(error) or "the decoder does not say why"
    return ""


def _decode(data: bytes, *, strict: bool, least_px: int = 0) -> np.ndarray:
    """Decodes a JPEG in full, or at the smallest size of at least so many px, [h, w, 3] uint8.

    Raises:
      ValueError: it cannot be decoded, or is not whole and `strict`.
      MemoryError: there is too little.
    """
    try:
        return simplejpeg.decode_jpeg(data, strict=strict, min_height=least_px, min_width=least_px)
    except ValueError as error:
        if "nsufficient memory" in str(error):
            raise MemoryError(str(error)) from None
        raise


def _is_whole(plain: _Plain, pixels: np.ndarray) -> bool:
    """Tells whether a JPEG that a strict decoder complains of has lost no pixel all the same.

    It has lost none if what is left without header garbage and left-over bytes passes that decoder and gives
    the same pixels. Decoded from a wrong bit on, a picture may leave bytes over, too: but these are the rest
    of it, and can be read as such.

    Args:
      plain: the picture without header garbage.
      pixels: [H, W, 3] uint8 that it gives to a decoder that is not strict.
    """
    codes = plain.codes

    def is_same(codes: bytes) -> bool:
        try:
            return np.array_equal(_decode(plain.head + codes + _END, strict=True), pixels)
        except ValueError:
            return False

    def lacks_nothing(length: int) -> bool:
        return _LACKS_DATA not in _complaint(plain.head + codes[:length] + _END)

    if is_same(codes):
        return True
    length = bisect.bisect_left(range(len(codes)), True, key=lacks_nothing)
    if not length or not is_same(codes[:length]):
        return False
    left_over = codes[length:]
    # A constant is no picture: flat areas take codes that repeat in another rhythm.
    if len(set(left_over)) == 1:
        return True
    if plain.frame not in _SEQUENTIAL_FRAMES:
        # What is left of the last of many passes over a picture cannot be told from anything else.
        return plain.frame == _PROGRESSIVE
    return not _is_picture(_unused_bits(codes[:length], is_same) + _bits(left_over), plain.head)


def _bits(codes: bytes) -> str:
    # Restarts stay, which no other bytes hold but codes.
    return "".join(format(byte, "08b") for byte in codes.replace(b"\xff\0", b"\xff"))


def _unused_bits(codes: bytes, is_same: Callable[[bytes], bool]) -> str:
    """Returns the bits of the last byte that no code needs.

    Args:
      codes: up to the byte in which the last code ends.
      is_same: whether a picture of other codes has the same pixels.
    """
    # A byte of ones ends in padding.
    if codes.endswith(b"\xff\0"):
        return ""
    last, count = codes[-1], 0
    while count < 8:
        other = bytes([last ^ 1 << count]).replace(b"\xff", b"\xff\0")
        if not is_same(codes[:-1] + other):
            break
        count += 1
    return _bits(codes[-1:])[8 - count :]


def _is_picture(bits: str, head: bytes) -> bool:
    """Tells whether bits are blocks of a sequential JPEG from first to last, and ones that fill a byte up.

    Of lost pixels they are in 99 of 100 cases; random bits in one of some hundred.

    Args:
      bits: a text of 0 and 1.
      head: of the JPEG, with its tables.
    """
    blocks, at = _block_tables(head), 0
    while blocks:
        if len(bits) - at < 8 and "0" not in bits[at:]:
            return True
        for dc_codes, ac_codes in blocks:
            category, at = _next_symbol(bits, at, dc_codes)
            at += category
            filled = 1
            while filled < _BLOCK_VALUES:
                symbol, at = _next_symbol(bits, at, ac_codes)
                if not symbol:
                    break
                # So many zeros, and a value of so many bits.
                filled, at = filled + (symbol >> 4) + 1, at + (symbol & 15)
            if at > len(bits) or filled > _BLOCK_VALUES or category > _MOST_BITS:
                return False
    return False


def _next_symbol(bits: str, at: int, codes: dict[str, int]) -> tuple[int, int]:
    """Returns the symbol of the code at a position, and where the next begins; beyond all: none."""
    for end in range(at + 1, at + 17):
        if (symbol := codes.get(bits[at:end])) is not None:
            return symbol, end
    return 0, len(bits) + 1


def _block_tables(head: bytes) -> list[tuple[dict[str, int], dict[str, int]]]:
    """Returns {code: symbol} of the first and of the other values, for each block in a unit of the scan."""
    tables: dict[int, dict[str, int]] = {}
    blocks_of: dict[int, int] = {}
    blocks: list[tuple[dict[str, int], dict[str, int]]] = []
    for at, marker, to in _segments(head):
        body = head[at + 4 : to]
        if marker == _TABLES:
            while body:
                count = sum(body[1:17])
                tables[body[0]] = _codes(body[1:17], body[17 : 17 + count])
                body = body[17 + count :]
        elif marker in _FRAMES:
            blocks_of = {body[k]: (body[k + 1] >> 4) * (body[k + 1] & 15) for k in range(6, len(body), 3)}
        elif marker == _SCAN:
            components = [body[k : k + 2] for k in range(1, 2 * body[0], 2)]
            blocks = []
            for component, chosen in components:
                pair = tables[chosen >> 4], tables[16 | chosen & 15]
                blocks += [pair] * (blocks_of[component] if len(components) > 1 else 1)
    return blocks


def _codes(counts: bytes, symbols: bytes) -> dict[str, int]:
    """Returns {code: symbol}: codes count up within a length, and double from one length to the next."""
    codes, code, left = {}, 0, iter(symbols)
    for length, count in enumerate(counts, 1):
        for symbol in itertools.islice(left, count):
            codes[format(code, f"0{length}b")] = symbol
            code += 1
        code <<= 1
    return codes
