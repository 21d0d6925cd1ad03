"""What the header of an encoded picture says, and which pictures are refused for it."""

import io
import struct
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any

from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.Image import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from trainer.data.inspect.bad_pictures import BadPictureError
from trainer.data.inspect.kinds import DECODABLE, HEAD_BYTES, NONE, kind_of, reason_of

# Of damaged metadata, over several lines. For good, and not around each picture: filters are of the process.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.(Jpeg|Png|Tiff|WebP)ImagePlugin")
# TensorFlow refuses JPEGs of 2**29 decoded bytes and more, which is 179 million pixels.
MAX_PIXELS = (2**29 - 1) // 3
# Chosen by the first bytes, as TensorFlow does: to Image.open a JPEG may be an MPO as well.
_READERS: dict[str, Callable[[IO[bytes]], Any]] = {
    "JPEG": JpegImageFile,
    "PNG": PngImageFile,
    "GIF": GifImageFile,
    "BMP": BmpImageFile,
    "WebP": WebPImageFile,
}
# Layouts of BMP that TensorFlow reads right. It takes the indices of a palette for grey values.
_BMP_LAYOUTS = ("BGR", "BGRX", "BGRA", "L")
_BMP_HEADER_BYTES = 40
_PNG_END = b"IEND\xaeB`\x82"
_EXIF_ORIENTATION = 0x0112
_CUT_OFF = "it ends in the middle"


@dataclass(frozen=True)
class PictureInfo:
    """What the header of a picture says; sizes are as stored, before the orientation is applied."""

    format: str
    width_px: int
    height_px: int
    orientation: int
    """EXIF orientation, 1 (upright) to 8."""
    used: int | None = None
    """What a decoder told of a JPEG, if one was asked: see `jpeg_check.used_codes`."""


def inspect_picture(data: bytes, *, name: str, max_pixels: int = MAX_PIXELS) -> PictureInfo:
    """Reads the header of a picture, whatever its name ends in.

    What `decode.decode` would get wrong is refused here, and so is what it would take too much memory
    for: BMPs with a palette or 1 or 16 bits a pixel, animated WebP, pictures that end in the middle,
    too many pixels. Nothing is decoded.

    Raises:
      BadPictureError: it is no such picture; the message starts with `name`.
    """
    form = kind_of(data[:HEAD_BYTES])
    if form not in DECODABLE:
        none = NONE if data else "it is empty (0 bytes)"
        raise BadPictureError(name, reason_of(form) if form else none)
    # Before Pillow reads it, which allocates as much as a GIF or WebP says.
    if problem := _early_problem(form, data, max_pixels):
        raise BadPictureError(name, problem)
    try:
        with _READERS[form](io.BytesIO(data)) as image:
            problem = _size_problem(image.width, image.height, max_pixels) or _problem(image, form, data)
            info = PictureInfo(form, image.width, image.height, _orientation(image, form))
    except Exception as error:  # Pillow raises a dozen kinds on damaged headers.
        raise BadPictureError(name, _header_problem(form, str(error) or type(error).__name__)) from None
    if problem:
        raise BadPictureError(name, problem)
    return info


def _header_problem(form: str, error: str) -> str:
    """Returns what an error of Pillow means to whoever has the picture."""
    if "Truncated" in error or "unpack_from" in error:
        return _CUT_OFF
    if "not identified" in error:
        error = "the size is missing"
    return f"its {form} header cannot be read: {error}"


def _size_problem(width: int, height: int, max_pixels: int) -> str:
    if width * height > max_pixels:
        return f"{width}x{height} px are more than --max_pixels={max_pixels}"
    if width * height > MAX_PIXELS:
        return f"{width}x{height} px are more than the {MAX_PIXELS} that TensorFlow decodes"
    return ""


def _early_problem(form: str, data: bytes, max_pixels: int) -> str:
    if form == "PNG":
        return "" if _PNG_END in data[-4096:] or _PNG_END in data else _CUT_OFF
    if form == "GIF":
        return _gif_problem(data, max_pixels)
    return _webp_problem(data, max_pixels) if form == "WebP" else ""


def _problem(image: Image, form: str, data: bytes) -> str:
    return _bmp_problem(image, data) if form == "BMP" else ""


def _bmp_problem(image: Any, data: bytes) -> str:
    if struct.unpack_from("<I", data, 14)[0] < _BMP_HEADER_BYTES:
        return "a BMP of the kind of OS/2: save it as PNG"
    # Pillow leaves the layout of the pixels in the description of its one tile.
    decoder, _, offset, args = image.tile[0]
    layout = args[0] if isinstance(args, tuple) else args
    # TensorFlow reads an 8-bit BMP as grey; to Pillow that is L when the palette is grey, else P.
    if decoder != "raw" or layout not in _BMP_LAYOUTS or image.mode not in ("L", "RGB", "RGBA"):
        return "a BMP with a palette, packed pixels or compression: save it as PNG"
    row = -(-len(layout) * image.width // 4) * 4
    # TensorFlow takes as many bytes as the pixels are, and three of padding.
    if not 0 <= len(data) - offset - row * image.height <= 3:
        return "it ends in the middle, or goes on behind its pixels"
    return ""


def _webp_problem(data: bytes, max_pixels: int) -> str:
    if int.from_bytes(data[4:8], "little") + 8 > len(data):
        return _CUT_OFF
    head = data[:30].ljust(30, b"\0")
    kind, bits = head[12:16], int.from_bytes(head[21:25], "little")
    # TensorFlow would read animations with alpha into memory that is too small for them.
    if kind == b"VP8X" and head[20] & 0x02:
        return "an animated WebP: save its first frame as PNG"
    if kind == b"VP8X":
        width, height = (1 + int.from_bytes(head[at : at + 3], "little") for at in (24, 27))
    elif kind == b"VP8L":
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    else:
        width, height = (size & 0x3FFF for size in struct.unpack_from("<HH", head, 26))
    return _size_problem(width, height, max_pixels)


def _gif_problem(data: bytes, max_pixels: int) -> str:
    try:
        frames = list(_gif_frames(data))
    except IndexError:
        return _CUT_OFF
    if not frames:
        return "a GIF without a picture" if data.endswith(b";") else _CUT_OFF
    # To Pillow, the canvas is as large as its first frame needs.
    left, top, width, height = frames[0]
    canvas_width, canvas_height = struct.unpack_from("<HH", data, 6)
    if problem := _size_problem(
        max(canvas_width, left + width), max(canvas_height, top + height), max_pixels
    ):
        return problem
    # TensorFlow reads all frames to give the first; of each pixel it holds one byte, and three of the first.
    together = sum(width * height for _, _, width, height in frames)
    if together > 3 * max_pixels:
        return (
            f"its {len(frames):,} frames are {together} px, more than three times --max_pixels={max_pixels}"
        )
    return ""


def _gif_frames(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Yields (left, top, width, height) of each frame, in px.

    Raises:
      IndexError: it ends in the middle. The byte that ends it may be missing.
    """
    at = _behind_palette(data[10], 13)
    # Of anything else than extensions and frames, the decoder says what is wrong.
    while at < len(data) and data[at] in (0x21, 0x2C):
        if data[at] == 0x2C:
            flags = data[at + 9]
            yield struct.unpack_from("<HHHH", data, at + 1)
            at = _behind_palette(flags, at + 10) + 1
        else:
            at += 2
        while length := data[at]:
            at += 1 + length
        at += 1


def _behind_palette(flags: int, at: int) -> int:
    return at + (3 << (flags & 7) + 1 if flags & 0x80 else 0)


def _orientation(image: Image, form: str) -> int:
    if form not in ("JPEG", "PNG", "WebP") or (form == "PNG" and "exif" not in image.info):
        return 1  # For a PNG without EXIF in front, getexif would decode the whole picture.
    try:
        value = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # Damaged EXIF says nothing; the pixels may be fine.
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1
