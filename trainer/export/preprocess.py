"""Pictures as the models in this folder want them: `export` puts this file there. It needs NumPy and Pillow.

    from preprocess import read_picture
    pixels = read_picture("picture.jpg")

As in training, and as export.json says, a picture is turned upright by its EXIF orientation, becomes RGB
with 8 bits a channel and is resized with half-pixel centers. The contract in export.json has `resize`, the
method (bilinear for most networks), `fit`, what becomes of its aspect: stretch, crop (the largest part in its
middle that has the network's aspect) or pad (middle grey around it), and `antialias`, whether it is smoothed
where it shrinks. Other libraries resize by other rules, and a network notices.
"""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

_ORIENTATION = 0x0112
# A format with EXIF. To Pillow a JPEG with previews behind it is an MPO.
_JPEGS, _HAVE_EXIF = ("JPEG", "MPO"), ("JPEG", "MPO", "PNG", "WEBP")


def read_picture(picture: str | bytes, *, as_bytes: bool = False) -> np.ndarray:
    """Returns a picture as a batch of one for the `images` of a model.

    Args:
      picture: path of a file, or what is in it: JPEG, PNG, WebP, GIF (the first picture) or BMP.
      as_bytes: as int8.tflite wants it.

    Returns:
      [1, height, width, 3] RGB: float32 from 0 to 1, or uint8 from 0 to 255.

    Raises:
      OSError, ValueError: it cannot be read, or is no picture.
    """
    about = json.loads(Path(__file__).with_name("export.json").read_text(encoding="utf-8"))
    contract = about["contract"]
    if contract["resize"] not in ("nearest", *_KERNELS):
        raise ValueError(f"this file does not resize by {contract['resize']}")
    data = picture if isinstance(picture, bytes) else Path(picture).read_bytes()
    resized = to_contract(upright_rgb(data, about), contract)
    return np.round(np.clip(resized, 0, 1) * 255).astype(np.uint8)[None] if as_bytes else resized[None]


def to_contract(pixels: np.ndarray, contract: dict[str, Any]) -> np.ndarray:
    """Brings a picture to the network's size.

    Args:
      pixels: [H, W, 3] uint8.
      contract: of export.json: `height_px`, `width_px`, `resize`, `fit` and `antialias`.

    Returns:
      [height_px, width_px, 3] float32 from 0 to 1 (bicubic and Lanczos go beyond at edges).
    """
    wanted = height, width = contract["height_px"], contract["width_px"]
    rows, columns = pixels.shape[:2]
    fit = contract.get("fit", "stretch")
    how: dict[str, Any] = {
        "antialias": contract.get("antialias", False),
        "method": contract.get("resize", "bilinear"),
    }
    if fit == "crop":
        of_height, of_width = _rounded(columns * height, width), _rounded(rows * width, height)
        across, down = _middle(rows, of_height), _middle(columns, of_width)
        return resize(pixels[across, down], height, width, **how)
    if fit == "pad":
        across = _middle(height, _rounded(width * rows, columns))
        down = _middle(width, _rounded(height * columns, rows))
        padded = np.full([*wanted, 3], 0.5, np.float32)
        size = across.stop - across.start, down.stop - down.start
        padded[across, down] = resize(pixels, *size, **how)
        return padded
    if fit != "stretch":
        raise ValueError(f"this file does not know how to {fit} a picture")
    return resize(pixels, height, width, **how)


def _rounded(product: int, divisor: int) -> int:
    """Returns their quotient, rounded half up."""
    return (2 * product + divisor) // (2 * divisor)


def _middle(of: int, size: int) -> slice:
    """Returns the part of `size`, at least 1 and at most all, in the middle; an odd one left is behind it."""
    size = min(max(size, 1), of)
    return slice((of - size) // 2, (of - size) // 2 + size)


def upright_rgb(data: bytes, about: dict[str, Any]) -> np.ndarray:
    """Decodes a picture; `about` is what export.json holds. Returns [H, W, 3] uint8."""
    with Image.open(io.BytesIO(data)) as image:
        turn = orientation(image) if about["exif"] == "apply" else 1
        if about["decoding"] == "scaled" and image.format in _JPEGS:
            size = about["contract"]["width_px"], about["contract"]["height_px"]
            # At 1/2, 1/4 or 1/8 where that still covers the size.
            image.draft("RGB", size if turn < 5 else size[::-1])
        if image.mode.startswith("I"):  # 16 bits of grey, of which the upper ones are kept.
            pixels = np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, axis=2)
        elif image.format == "GIF":
            # What is transparent in the first frame is black in training.
            ground = Image.new("RGB", image.size)
            ground.paste(image.convert("RGB"), mask=image.convert("RGBA").getchannel("A"))
            pixels = np.asarray(ground)
        else:
            pixels = np.asarray(image.convert("RGB"))
    return turned(pixels, turn)


def orientation(image: Image.Image) -> int:
    """Returns the EXIF orientation of an opened picture, 1 (upright) to 8."""
    if image.format not in _HAVE_EXIF or (image.format == "PNG" and "exif" not in image.info):
        return 1
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # Damaged EXIF says nothing; Pillow raises a dozen kinds of errors.
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def turned(pixels: np.ndarray, turn: int) -> np.ndarray:
    """Returns pixels [H, W, 3] upright; `turn` is an EXIF orientation, 1 to 8."""
    if turn >= 5:
        pixels = pixels.swapaxes(0, 1)
    if turn in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels[::-1] if turn in (3, 4, 7, 8) else pixels


def resize(
    pixels: np.ndarray, height: int, width: int, *, antialias: bool = False, method: str = "bilinear"
) -> np.ndarray:
    """Resizes as tf.image.resize does: bilinear to the last bit, with `antialias` or by others nearly so.

    Args:
      pixels: [H, W, 3] uint8.
      height: wanted, in px.
      width: wanted, in px.
      antialias: whether what shrinks is smoothed.
      method: bilinear, bicubic, lanczos3, lanczos5 or nearest.

    Returns:
      [height, width, 3] float32 from 0 to 1.
    """
    if method == "nearest":
        rows, columns = _nearest(pixels.shape[0], height), _nearest(pixels.shape[1], width)
        return _as_float(pixels[rows][:, columns])
    if antialias or method != "bilinear":
        by_rows = _weighted(pixels, height, method, antialias=antialias)
        turned_back = _weighted(by_rows.swapaxes(0, 1), width, method, antialias=antialias).swapaxes(0, 1)
        return turned_back * np.float32(1 / 255)
    up, down, of_row = _places(pixels.shape[0], height)
    left, right, of_column = _places(pixels.shape[1], width)
    share = of_column[:, None]

    def row(at: np.ndarray) -> np.ndarray:
        lines = pixels[at]
        first, second = (_as_float(lines[:, column]) for column in (left, right))
        return first + (second - first) * share

    upper, lower = row(up), row(down)
    return upper + (lower - upper) * of_row[:, None, None]


def _places(size: int, wanted: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns for each wanted row or column the two it lies between, and how far it is from the first."""
    scale = np.float32(size) / np.float32(wanted)
    at = (np.arange(wanted, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5)
    below = np.floor(at)
    first = np.maximum(below, 0).astype(np.int64)
    second = np.minimum(np.ceil(at), size - 1).astype(np.int64)
    return first, second, at - below


def _nearest(size: int, wanted: int) -> np.ndarray:
    """Returns for each wanted row or column the one that its middle is in."""
    scale = np.float32(size) / np.float32(wanted)
    return np.minimum(((np.arange(wanted, dtype=np.float32) + np.float32(0.5)) * scale).astype(int), size - 1)


def _weighted(lines: np.ndarray, wanted: int, method: str, *, antialias: bool) -> np.ndarray:
    """Returns [wanted, ...] float32 of lines [size, ...]: means, by weights for the way to each middle.

    They reach as far as the kernel does in wanted lines, where that is smoothed, or in those that there are.
    """
    size, (radius, kernel) = len(lines), _KERNELS[method]
    # In 32 bits, and in this order, as TensorFlow: of thousands of lines the last digits show.
    scale = np.float32(1 / float(np.float32(wanted) / np.float32(size)))
    width = max(scale, np.float32(1)) if antialias else np.float32(1)
    reach = radius * width
    middles = (np.arange(wanted, dtype=np.float32) + np.float32(0.5)) * scale
    first = np.clip(np.ceil(middles - reach - np.float32(0.5)), 0, size - 1).astype(np.int64)
    end = np.clip(np.floor(middles + reach - np.float32(0.5)), 0, size - 1).astype(np.int64) + 1
    means = np.empty([wanted, lines[0].size], np.float32)
    for i, middle in enumerate(middles):
        places = np.arange(first[i], end[i], dtype=np.float32) + np.float32(0.5)
        way = np.abs((places - middle) / width)
        if method == "bicubic" and not antialias:
            way = np.round(way * 1024) / np.float32(1024)  # TensorFlow looks its kernel up in a table.
        weights = kernel(way)
        near = lines[first[i] : end[i]].reshape(len(places), -1).astype(np.float32)
        means[i] = (weights / weights.sum()) @ near
    return means.reshape(wanted, *lines.shape[1:])


def _triangle(way: np.ndarray) -> np.ndarray:
    return np.maximum(1 - way, 0)


def _keys_cubic(way: np.ndarray) -> np.ndarray:
    """Keys, 1981, IEEE TASSP 29(6)."""
    near = (1.5 * way - 2.5) * way * way + 1
    far = ((-0.5 * way + 2.5) * way - 4) * way + 2
    return np.where(way < 1, near, np.where(way < 2, far, 0)).astype(np.float32)


def _lanczos(radius: int) -> Callable[[np.ndarray], np.ndarray]:
    def kernel(way: np.ndarray) -> np.ndarray:
        return np.where(way < radius, np.sinc(way) * np.sinc(way / radius), 0).astype(np.float32)

    return kernel


# {method: (how far its kernel reaches, the kernel)}
_KERNELS = {
    "bilinear": (1, _triangle),
    "bicubic": (2, _keys_cubic),
    "lanczos3": (3, _lanczos(3)),
    "lanczos5": (5, _lanczos(5)),
}


def _as_float(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32) * np.float32(1 / 255)
