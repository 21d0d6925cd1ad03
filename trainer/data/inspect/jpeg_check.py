"""Whether all pixels of a JPEG are there: the verdict of a decoder that reports what it had to make up.

TensorFlow's own decoder fills lost pixels in and calls that success. libjpeg-turbo, asked through
simplejpeg to be strict, fails instead.
"""

import bisect
import contextlib
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import simplejpeg

_END = b"\xff\xd9"
# Neither a stuffed byte nor a restart, which stand inside of a scan, nor a fill byte.
_MARKER = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])", re.DOTALL)
_TABLES, _SCAN, _JFIF = 0xC4, 0xDA, 0xE0
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
# Of Huffman codes, which every libjpeg decodes alike; the last one is progressive.
_COMMON_FRAMES = (b"\xc0", b"\xc1", b"\xc2")
# Of the first component; the next two have one value where it has so many across and down.
_SAMPLINGS = (0x11, 0x21, 0x12, 0x22, 0x41, 0x14)
_BLOCK_VALUES = 64
_PLAIN_JFIF = b"\xff\xe0\0\x10JFIF\0\x01\x01\0\0\x01\0\x01\0\0"
# What libjpeg says, the same since 1991: the codes end before the last pixel, or go on behind it.
_TOO_FEW, _TOO_MANY = "premature end", "extraneous bytes before marker 0xd9"


def used_codes(data: bytes) -> int | None:
    """Judges a JPEG: every pixel must be what its writer meant it to be.

    What costs no pixel is no damage: unknown versions, bytes between the tables, left-over bytes between the
    last pixel and the end, as webcams write them, as many as there are, and a missing end.

    Returns:
      How many bytes of codes behind the header of the last scan the pixels need, for `cleaned`; None where
      decoders have nothing to complain of.

    Raises:
      ValueError: it is bad; the text says why, for people.
      MemoryError: there is too little for it.
    """
    said = _complaint(data)
    if not said:
        return None
    plain = _Plain.of(data)
    said_of_plain = _complaint(plain.jpeg())
    if not said_of_plain and (plain.has_end or plain.is_complete()):
        return len(plain.codes)
    if _TOO_MANY in said_of_plain and (used := plain.used()):
        return used
    if not is_common(data) and _is_rarely_sampled(data):
        # The whole of the picture may be there, and whoever knows its sampling tells more.
        return None
    if not plain.has_end:
        raise ValueError("it ends in the middle")
    try:
        _decode(plain.jpeg(), strict=False, least_px=1)
    except ValueError:
        raise ValueError(f"it cannot be decoded: {said}") from None
    raise ValueError(f"it is damaged inside: {said}")


def cleaned(data: bytes, used: int | None) -> bytes:
    """Returns a picture of the same pixels and orientation that decoders do not complain of.

    Args:
      data: an encoded picture.
      used: what `used_codes` gave for it; None for other formats.
    """
    return data if used is None else _Plain.of(data).jpeg(used)


def is_common(data: bytes) -> bool:
    """Tells whether TensorFlow decodes a JPEG if `used_codes` judges it good; of others it must be asked.

    It does not decode lossless ones or those of 12 bits, which newer versions of libjpeg-turbo do, and it
    decodes all samplings of colours, which simplejpeg does not.
    """
    frame = _frame(data)
    marker, bits, components = frame[1:2], frame[4:5], frame[9:10]
    is_known = marker in _COMMON_FRAMES and bits == b"\x08" and components in (b"\1", b"\3")
    return is_known and not _is_rarely_sampled(data)


def _is_rarely_sampled(data: bytes) -> bool:
    samplings = [sampling for _, sampling in _components(data)]
    return len(samplings) > 1 and (samplings[0] not in _SAMPLINGS or {*samplings[1:3]} != {0x11})


def _frame(data: bytes) -> bytes:
    """Returns the segment that says how a picture is coded; empty if it is missing."""
    return next((data[at:to] for at, marker, to in _segments(data) if marker in _FRAMES), b"")


def _components(data: bytes) -> list[tuple[int, int]]:
    """Returns the (name, sampling) of each."""
    frame = _frame(data)
    return list(zip(frame[10::3], frame[11::3], strict=False))


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yields (begin, marker, end) of each segment up to the end of the picture, which is where the last ends.

    What is between segments belongs to none: pixels, fill bytes, garbage.
    """
    at = 2
    while found := _MARKER.search(data, at):
        if found[1] == _END[1:]:
            yield found.start(), _END[1], found.start()
            return
        at = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
        yield found.start(), found[1][0], at


@dataclass(frozen=True)
class _Plain:
    """A JPEG without garbage between its segments: up to the codes of its last scan, and these."""

    head: bytes
    codes: bytes
    has_end: bool
    scans: tuple[bytes, ...]
    """The header of each."""

    @classmethod
    def of(cls, data: bytes) -> "_Plain":
        kept, scans, first_scan, last_scan, end = [b"\xff\xd8"], [], 0, 0, 0
        for at, marker, to in _segments(data):
            segment = data[at:to]
            if marker == _END[1]:
                end = at
            elif marker == _SCAN:
                first_scan, last_scan = first_scan or at, to
                scans.append(segment)
            elif first_scan:
                continue
            elif marker == _JFIF and segment[4:9] == b"JFIF\0":
                kept.append(_PLAIN_JFIF)
            else:
                kept.append(segment)
        if not end and data.endswith(_END):
            # Garbage that looks like markers led beyond it.
            end = len(data) - len(_END)
        codes = data[last_scan : end or len(data)]
        return cls(b"".join(kept) + data[first_scan:last_scan], codes, bool(end), tuple(scans))

    def jpeg(self, used: int | None = None) -> bytes:
        """Returns it with the first `used` bytes of its codes; None: with all."""
        return self.head + self.codes[:used] + _END

    def is_complete(self) -> bool:
        """Tells whether the scans give all values of all components, to the last bit."""
        given = {
            (scan[at], value)
            for scan in self.scans
            if len(scan) > 5 and not scan[-1] & 15
            for at in range(5, len(scan) - 3, 2)
            for value in range(scan[-3], scan[-2] + 1)
        }
        names = [name for name, _ in _components(self.head)]
        return given >= set(itertools.product(names, range(_BLOCK_VALUES)))

    def used(self) -> int:
        """Returns how many bytes of its codes its pixels need; 0 if others than these are damaged, too.

        Decoded from a wrong bit on, a picture may leave bytes over as well: but these are the rest of it,
        and can be read as such.
        """

        def suffices(length: int) -> bool:
            return _TOO_FEW not in _complaint(self.jpeg(length))

        length = bisect.bisect_left(range(len(self.codes)), True, key=suffices)
        if not length or _complaint(self.jpeg(length)):
            return 0
        left_over = self.codes[length:]
        # A constant is no picture: flat areas take codes that repeat in another rhythm. And what is left of
        # the last of many passes over a picture cannot be told from anything else.
        if len(set(left_over)) == 1 or len(self.scans) > 1:
            return length
        bits = _spare_bits(self.head, self.codes[:length]) + _bits(left_over)
        return 0 if _is_rest(bits, self.head) else length


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


def _bits(codes: bytes) -> str:
    # Restarts stay, which no other bytes hold but codes.
    return "".join(format(byte, "08b") for byte in codes.replace(b"\xff\0", b"\xff"))


def _spare_bits(head: bytes, codes: bytes) -> str:
    """Returns the bits of the last byte that no code needs: those that may change, and no pixel does."""
    # A byte of ones ends in padding.
    if codes.endswith(b"\xff\0"):
        return ""
    pixels, count = _decode(head + codes + _END, strict=True), 0
    with contextlib.suppress(ValueError):
        while count < 8:
            other = bytes([codes[-1] ^ 1 << count]).replace(b"\xff", b"\xff\0")
            if not np.array_equal(_decode(head + codes[:-1] + other + _END, strict=True), pixels):
                break
            count += 1
    return _bits(codes[-1:])[8 - count :]


def _is_rest(bits: str, head: bytes) -> bool:
    """Tells whether bits are units of a sequential JPEG from first to last, and ones that fill a byte up.

    Of lost pixels they are in 99 of 100 cases; random bits in one of some hundred.

    Args:
      bits: a text of 0 and 1.
      head: of the JPEG, with its tables.
    """
    blocks, at = _block_tables(head), 0
    while blocks and (len(bits) - at >= 8 or "0" in bits[at:]):
        for dc_codes, codes in blocks:
            place, table = 0, dc_codes
            while place < _BLOCK_VALUES:
                found = (end for end in range(at + 1, at + 17) if bits[at:end] in table)
                if not (end := next(found, 0)):
                    return False
                symbol = table[bits[at:end]]
                # So many zeros, and a value of so many bits.
                at, zeros = end + (symbol & 15), symbol >> 4
                if place and not symbol:
                    break
                place, table = place + zeros + 1, codes
            if at > len(bits) or place > _BLOCK_VALUES:
                return False
    return bool(blocks)


def _block_tables(head: bytes) -> list[tuple[dict[str, int], dict[str, int]]]:
    """Returns {code: symbol} of the first and of the other values, for each block in a unit of the scan."""
    tables: dict[int, dict[str, int]] = {}
    blocks: list[tuple[dict[str, int], dict[str, int]]] = []
    blocks_of = {name: (size >> 4) * (size & 15) for name, size in _components(head)}
    for at, marker, to in _segments(head):
        body = head[at + 4 : to]
        while marker == _TABLES and body:
            count = sum(body[1:17])
            tables[body[0]] = _codes(body[1:17], body[17 : 17 + count])
            body = body[17 + count :]
        if marker == _SCAN:
            for name, chosen in zip(body[1:-3:2], body[2:-3:2], strict=True):
                pair = tables.get(chosen >> 4, {}), tables.get(16 | chosen & 15, {})
                blocks += [pair] * (blocks_of.get(name, 0) if body[0] > 1 else 1)
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
