"""From encoded bytes to the pixels a backbone wants."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.values import PADDING, Contract

MUCH = 6
"""How many times smaller pictures must become for `_of_four_pixels` to be the faster way: a photo of 500x375
px to 224 px takes 1.8 ms so and 0.4 ms the other way, one of 4000x3000 px 5 and 16."""


@dataclass(frozen=True)
class Known:
    """What holds for all pictures that a graph will decode, so that it need not ask of each.

    Whatever a graph asks takes time to trace, and again whenever a dataset is begun: two thirds of both. No
    pixel depends on it.
    """

    is_upright: bool = False
    """None is to be turned."""
    has_webp: bool = True
    """Some are WebP."""
    sides_px: tuple[int, int] = (0, 2**31 - 1)
    """No side is shorter than the first or longer than the second."""

    def shrinks(self, size: tuple[int, int]) -> bool | None:
        """Returns whether pictures shrink `MUCH` in both directions; None: it depends."""
        shortest, longest = self.sides_px
        return True if shortest > MUCH * max(size) else False if longest <= MUCH * min(size) else None


ANY = Known()


def decode(
    encoded: tf.Tensor,
    orientation: tf.Tensor,
    *,
    at_least: tuple[int, int] | None = None,
    known: Known = ANY,
) -> tf.Tensor:
    """Decodes a picture that `headers.inspect_picture` has passed, and turns it upright. Runs in a graph.

    Grey becomes RGB; CMYK is converted (inverted where Adobe's marker says so); of 16 bits the upper 8
    are kept; of an animated GIF the first frame, what it leaves free being black. Alpha is dropped, as
    by tf.io.decode_png(channels=3): the colours below transparent pixels are seen, and no background
    is invented. An RGB JPEG gives the very pixels of tf.io.decode_jpeg(channels=3).

    Args:
      encoded: [] string.
      orientation: [] int32, EXIF orientation 1 to 8; 1 leaves the picture as it is stored.
      at_least: (height, width) in px: a JPEG is decoded at 1/2, 1/4 or 1/8 where that still covers it,
        which leaves most of the arithmetic out and gives other pixels. None: in full. What covers a network's
        size covers also what is cut out for it, and what is padded to it.
      known: of all pictures of the graph.

    Returns:
      [H, W, 3] uint8.
    """

    def in_full() -> tf.Tensor:
        if not known.has_webp:
            return _decode(encoded, 3)
        return tf.cond(_is_webp_with_alpha(encoded), lambda: _decode(encoded, 0), lambda: _decode(encoded, 3))

    def reduced() -> tf.Tensor:
        return _decode_reduced(encoded, orientation, at_least or (0, 0))

    is_jpeg = tf.equal(tf.strings.substr(encoded, 0, 3), b"\xff\xd8\xff")
    image = in_full() if at_least is None else tf.cond(is_jpeg, reduced, in_full)
    image = tf.ensure_shape(image, [None, None, 3])
    if known.is_upright:
        return image
    return tf.cond(orientation > 1, lambda: _upright(image, orientation), lambda: image)


def _decode(encoded: tf.Tensor, channels: int) -> tf.Tensor:
    return tf.io.decode_image(encoded, channels=channels, expand_animations=False)[..., :3]


def _decode_reduced(encoded: tf.Tensor, orientation: tf.Tensor, at_least: tuple[int, int]) -> tf.Tensor:
    """Decodes a JPEG at the smallest of 1/1, 1/2, 1/4, 1/8 that covers `at_least` once it is upright."""
    wanted = tf.where(orientation >= 5, at_least[::-1], at_least)
    size = tf.image.extract_jpeg_shape(encoded)[:2]
    halvings = tf.reduce_sum([tf.cast(tf.reduce_all(size >= wanted * r), tf.int32) for r in (2, 4, 8)])
    ratios = [lambda r=r: tf.io.decode_jpeg(encoded, channels=3, ratio=r) for r in (1, 2, 4, 8)]
    return tf.switch_case(halvings, ratios)


def _is_webp_with_alpha(encoded: tf.Tensor) -> tf.Tensor:
    """TensorFlow refuses channels=3 for these, and with channels=0 corrupts memory on animated ones."""
    head = tf.io.decode_raw(tf.strings.substr(encoded, 0, 25), tf.uint8)
    head = tf.pad(head, [[0, 25 - tf.size(head)]])
    chunk = tf.strings.substr(tf.strings.join([encoded, tf.constant(b" " * 16)]), 8, 8)
    extended = tf.logical_and(
        tf.equal(chunk, b"WEBPVP8X"), tf.equal(tf.bitwise.bitwise_and(head[20], 0x12), 0x10)
    )
    lossless = tf.logical_and(
        tf.equal(chunk, b"WEBPVP8L"), tf.equal(tf.bitwise.bitwise_and(head[24], 0x10), 0x10)
    )
    return tf.logical_or(extended, lossless)


def _upright(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Each of the eight is a transposition, then a flip left-right, then one upside-down, or not.

    All in one gather: each branch of a graph costs some ms whenever a dataset is begun. And tf.transpose of
    uint8 has oneDNN complain on the terminal.
    """

    def is_one_of(*orientations: int) -> tf.Tensor:
        return tf.reduce_any(tf.equal(orientation, orientations))

    def places(size: tf.Tensor, is_flipped: tf.Tensor) -> tf.Tensor:
        return tf.where(is_flipped, size - 1 - tf.range(size), tf.range(size))

    height, width = tf.unstack(tf.shape(image)[:2])
    is_turned = orientation >= 5
    rows = places(tf.where(is_turned, width, height), is_one_of(3, 4, 7, 8))[:, None]
    columns = places(tf.where(is_turned, height, width), is_one_of(2, 3, 6, 7))[None, :]
    found = rows * tf.where(is_turned, 1, width) + columns * tf.where(is_turned, width, 1)
    return tf.gather(tf.reshape(image, [height * width, 3]), found)


def to_contract(image: tf.Tensor, contract: Contract, known: Known = ANY) -> tf.Tensor:
    """Brings a decoded picture to the size a backbone wants, in the way that `Contract.fit` says.

    What is not to be seen is cut off before resizing: a picture of 1x5000 px would be gigabytes after it.
    `export/preprocess.py` has the same arithmetic in NumPy.

    Args:
      image: [H, W, 3] uint8.
      contract: gives size, method of resizing, and what becomes of the aspect.
      known: of all pictures of the graph.

    Returns:
      [height_px, width_px, 3] float32, in [0, 1] (bicubic and the like may overshoot).
    """
    wanted = contract.height_px, contract.width_px
    if contract.fit == "crop":
        image = _cut(image, seen_part(tf.shape(image), contract))
    if contract.fit != "pad":
        return _resized(image, wanted, contract, known)
    top, left, height, width = tf.unstack(filled_part(tf.shape(image), contract))
    small = _resized(image, [height, width], contract, known)
    around = [[top, wanted[0] - top - height], [left, wanted[1] - left - width], [0, 0]]
    return tf.ensure_shape(tf.pad(small, around, constant_values=PADDING), contract.image_shape)


def _resized(image: tf.Tensor, size: Any, contract: Contract, known: Known) -> tf.Tensor:
    """Returns [height, width, 3] float32 in [0, 1] of [H, W, 3] uint8; `size` is (height, width) in px.

    To make floats of all pixels of a large photo takes longer than to decode it, so it is left out where it
    can be.
    """

    def resized(pixels: tf.Tensor) -> tf.Tensor:
        return tf.image.resize(pixels, size, method=contract.resize, antialias=contract.antialias)

    def of_floats() -> tf.Tensor:
        return resized(tf.image.convert_image_dtype(image, tf.float32))

    if contract.resizes_bytes:
        # Of `nearest`, bytes come out.
        return _as_float(resized(image))
    if contract.resize != "bilinear" or contract.antialias:
        return of_floats()
    # Both give the same numbers: which is taken is a matter of time alone.
    shrinks: Any = known.shrinks(contract.image_shape[:2])
    if shrinks is None:
        shrinks = tf.reduce_all(tf.shape(image)[:2] > MUCH * tf.convert_to_tensor(size))
        return tf.cond(shrinks, lambda: _of_four_pixels(image, size), of_floats)
    return _of_four_pixels(image, size) if shrinks else of_floats()


def _of_four_pixels(image: tf.Tensor, size: Any) -> tf.Tensor:
    """Resizes [H, W, 3] uint8 to the very numbers of tf.image.resize, which takes [0, 1] and does not smooth.

    The arithmetic, its order included, is that of TensorFlow's kernel; only the pixels that it needs become
    floats.
    """
    rows, columns = (_between(tf.shape(image)[axis], tf.convert_to_tensor(size)[axis]) for axis in (0, 1))
    across, down = columns[2][:, None], rows[2][:, None, None]

    def lines(at: tf.Tensor) -> tf.Tensor:
        near = tf.gather(image, at)
        left, right = (_as_float(tf.gather(near, column, axis=1)) for column in columns[:2])
        return left + (right - left) * across

    upper, lower = lines(rows[0]), lines(rows[1])
    return upper + (lower - upper) * down


def _between(size: tf.Tensor, wanted: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns for each wanted row or column the two it lies between, and how far it is from the first."""
    # A graph may multiply by 1 / wanted instead, which in 32 bits is another number.
    scale = tf.cast(tf.cast(size, tf.float64) / tf.cast(wanted, tf.float64), tf.float32)
    at = (tf.cast(tf.range(wanted), tf.float32) + 0.5) * scale - 0.5
    below = tf.floor(at)
    first = tf.cast(tf.maximum(below, 0), tf.int32)
    return first, tf.minimum(tf.cast(tf.math.ceil(at), tf.int32), size - 1), at - below


def _as_float(values: tf.Tensor) -> tf.Tensor:
    """Returns 0 to 255 as 0 to 1, as `tf.image.convert_image_dtype` does it."""
    return tf.cast(values, tf.float32) * (1 / 255)


def seen_part(shape: tf.Tensor, contract: Contract) -> tf.Tensor:
    """Returns which part of a picture the network sees: [4] int32, top, left, height and width in px.

    Where it is cropped, one side is whole. The other is what the aspect makes of it, rounded half up, at
    least 1 px. Of what is cut off, an odd pixel is on the right or at the bottom.

    Args:
      shape: [2] or more int32, the picture's height and width first.
      contract: of the network.
    """
    if contract.fit != "crop":
        return tf.concat([[0, 0], shape[:2]], 0)
    return _middle(shape[:2], _times(shape[1::-1], contract.image_shape[:2], contract.image_shape[1::-1]))


def filled_part(shape: tf.Tensor, contract: Contract) -> tf.Tensor:
    """Returns which part of what the network sees is the picture: [4] int32, as `seen_part`, by its rounding.

    Args:
      shape: [2] or more int32, the picture's height and width first.
      contract: of the network.
    """
    wanted = tf.constant(contract.image_shape[:2])
    if contract.fit != "pad":
        return tf.concat([[0, 0], wanted], 0)
    return _middle(wanted, _times(wanted[::-1], shape[:2], shape[1::-1]))


def _times(values: Any, numerators: Any, denominators: Any) -> tf.Tensor:
    """Returns values * numerators / denominators, rounded half up; in 64 bits, as products are large."""
    values, above, below = (tf.cast(one, tf.int64) for one in (values, numerators, denominators))
    return (2 * values * above + below) // (2 * below)


def _middle(of: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Returns top, left, height and width of a part in the middle, of at least 1 px and at most all."""
    size = tf.cast(tf.clip_by_value(size, 1, tf.cast(of, tf.int64)), tf.int32)
    return tf.concat([(of - size) // 2, size], 0)


def _cut(image: tf.Tensor, part: tf.Tensor) -> tf.Tensor:
    top, left, height, width = tf.unstack(part)
    return image[top : top + height, left : left + width]


def scale(image01: tf.Tensor, contract: Contract) -> tf.Tensor:
    """Maps float32 pixels in [0, 1], of any shape, to `contract.value_range`; (0, 1) is the identity."""
    low, high = contract.value_range
    return image01 if (low, high) == (0, 1) else image01 * (high - low) + low


def unscale(images: np.ndarray, contract: Contract) -> np.ndarray:
    """Maps pixels in `contract.value_range` back to [0, 1], for eyes."""
    low, high = contract.value_range
    return (images - low) / (high - low)
