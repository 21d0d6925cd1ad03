"""A small picture of every kind that is taken, for tests of decoding and for fuzzing."""

import struct
import zlib

import numpy as np
from PIL import Image

from tests.data.pictures import blocks, encode, noise

BLACK = Image.new("RGB", (40, 24))
# (first column, first row, columns apart, rows apart) of the seven passes of an interlaced PNG.
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def with_alpha() -> Image.Image:
    image = blocks()
    alpha = np.full((24, 40), 128, np.uint8)
    alpha[:, :20] = 0
    image.putalpha(Image.fromarray(alpha))
    return image


def exif(orientation: int) -> Image.Exif:
    made = Image.Exif()
    made[0x0112] = orientation
    return made


def chunk(kind: bytes, body: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(pixels: np.ndarray, *, size: tuple[int, int] | None = None, interlaced: bool = False) -> bytes:
    """A PNG of [H, W, 3] uint8 or uint16, or one that claims to be of another size (width, height)."""
    height, width, _ = pixels.shape
    passes = ADAM7 if interlaced else ((0, 0, 1, 1),)
    big_endian = pixels.astype(pixels.dtype.newbyteorder(">"))
    rows = b""
    for x, y, across, down in passes:
        part = big_endian[y::down, x::across]
        rows += b"".join(b"\0" + row.tobytes() for row in part if row.size)
    head = struct.pack(
        ">IIBBBBB", *(size or (width, height)), 8 * pixels.dtype.itemsize, 2, 0, 0, int(interlaced)
    )
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def behind_start(data: bytes, segment: bytes) -> bytes:
    """A JPEG with a segment put in before all others."""
    return data[:2] + segment + data[2:]


def as_ycck(data: bytes) -> bytes:
    """A CMYK JPEG that says in Adobe's marker that it is YCCK; the colours are others then."""
    at = data.index(b"Adobe") + 11
    return data[:at] + b"\x02" + data[at + 1 :]


LOSSLESS = {
    "png rgb": encode(blocks(), "PNG"),
    "png grey": encode(blocks().convert("L"), "PNG"),
    "png grey and alpha": encode(blocks().convert("LA"), "PNG"),
    "png alpha": encode(with_alpha(), "PNG"),
    "png palette": encode(blocks().convert("P"), "PNG"),
    "png palette, transparent colour": encode(blocks().convert("P"), "PNG", transparency=0),
    "png 1 bit": encode(blocks().convert("1"), "PNG"),
    "png interlaced": png(np.asarray(noise(40, 24)), interlaced=True),
    "png animated": encode(noise(40, 24), "PNG", save_all=True, append_images=[BLACK]),
    "png behind another picture": encode(noise(40, 24), "PNG") + encode(BLACK, "PNG"),
    "gif": encode(blocks(), "GIF"),
    "gif, first of two frames": encode(blocks(), "GIF", save_all=True, append_images=[BLACK]),
    "gif of noise": encode(noise(40, 24), "GIF"),
    "gif, interlaced": encode(noise(40, 24), "GIF", interlace=True),
    "bmp 24 bits": encode(blocks(), "BMP"),
    "bmp 24 bits, rows padded": encode(blocks(39), "BMP"),
    "bmp 32 bits": encode(with_alpha(), "BMP"),
    "bmp grey": encode(blocks().convert("L"), "BMP"),
    "webp lossless": encode(blocks(), "WEBP", lossless=True),
    "webp lossless, alpha": encode(with_alpha(), "WEBP", lossless=True, exact=True),
    "webp lossy": encode(noise(40, 24), "WEBP"),
    "webp lossy, alpha": encode(with_alpha(), "WEBP", exact=True),
    "webp with exif": encode(blocks(), "WEBP", exif=exif(1)),
    "1x1 png": encode(blocks(1, 1), "PNG"),
    "1x1 gif": encode(blocks(1, 1), "GIF"),
    "1x1 bmp": encode(blocks(1, 1), "BMP"),
    "1x1 webp": encode(blocks(1, 1), "WEBP", lossless=True),
    "1x30000 png": encode(noise(1, 30000), "PNG"),
    "30000x1 gif": encode(blocks(30000, 1), "GIF"),
}
"""Those whose pixels are the same to everyone who decodes them."""

JPEGS = {
    "baseline": encode(noise(101, 63), "JPEG"),
    "progressive": encode(noise(101, 63), "JPEG", progressive=True),
    "with restarts": encode(noise(101, 63), "JPEG", restart_marker_rows=1),
    "full colour resolution": encode(noise(101, 63), "JPEG", subsampling=0),
    "quality 20": encode(noise(101, 63), "JPEG", quality=20),
    "grey": encode(noise(101, 63).convert("L"), "JPEG"),
    "1x1": encode(blocks(1, 1), "JPEG"),
    "1x30000": encode(noise(1, 30000), "JPEG"),
    "two in one file, as of phones": encode(
        noise(64, 48), "MPO", save_all=True, append_images=[noise(32, 24)]
    ),
    "bytes behind its end": encode(noise(64, 48), "JPEG") + b"\0" * 100,
    "a film behind its end": encode(noise(64, 48), "JPEG") + b"\0\0\0\x18ftypmp42 \xff\xda \xff\xd8",
    "large exif": encode(noise(64, 48), "JPEG", exif=b"Exif\0\0" + exif(1).tobytes()[6:] + bytes(65000)),
    "damaged exif": encode(noise(64, 48), "JPEG", exif=b"Exif\0\0" + b"\xff" * 40),
    "a comment": behind_start(encode(noise(64, 48), "JPEG"), b"\xff\xfe\x00\x08\xff\xda\xff\xd9 \0"),
    "fill bytes": behind_start(encode(noise(64, 48), "JPEG"), b"\xff" * 9),
}
"""JPEGs in grey and RGB."""

OTHERS = {
    "cmyk jpeg": encode(blocks().convert("CMYK"), "JPEG", quality=95),
    "ycck jpeg": as_ycck(encode(blocks().convert("CMYK"), "JPEG", quality=95)),
    "turned jpeg": encode(blocks(), "JPEG", exif=exif(6)),
    "turned png": encode(blocks(), "PNG", exif=exif(5)),
    "16 bit png": encode(Image.fromarray(np.arange(960, dtype=np.uint16).reshape(24, 40) * 65), "PNG"),
    "16 bit png rgb": png(np.arange(2880, dtype=np.uint16).reshape(24, 40, 3) * 22),
}
KINDS = {**LOSSLESS, **JPEGS, **OTHERS}
