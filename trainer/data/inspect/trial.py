"""Decoding for trial: which pictures training could not decode, and which are damaged inside."""

import contextlib
import dataclasses
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from trainer.data.decode import decode
from trainer.data.inspect.bad_pictures import BadPictureError
from trainer.data.inspect.headers import MAX_PIXELS, PictureInfo, inspect_picture
from trainer.data.inspect.jpeg_check import cleaned, is_common, used_codes
from trainer.values import TrainerError

# Of all pictures that are decoded at once: 3 bytes each, and up to 10 where a progressive one is turned.
PIXELS_AT_ONCE = 2**26


class Trial:
    """Decodes pictures as training will, in any number of threads at once."""

    def __init__(self) -> None:
        self.decode = _decoder()
        self._room = _Room(PIXELS_AT_ONCE)

    def check(
        self, data: bytes, *, name: str, exif: str = "apply", max_pixels: int = MAX_PIXELS
    ) -> PictureInfo:
        """Decodes a picture in full, and returns what is known of it, with the orientation to apply.

        Args:
          data: the encoded picture.
          name: what the message calls it.
          exif: apply or ignore the orientation.
          max_pixels: a picture with more is not decoded.

        Raises:
          BadPictureError: it cannot be decoded, or pixels of it are lost.
          TrainerError: there is too little memory for it.
        """
        info = inspect_picture(data, name=name, max_pixels=max_pixels)
        orientation = info.orientation if exif == "apply" else 1
        with self._room.take(info.width_px * info.height_px):
            used = require_whole(data, info, name=name)
            info = dataclasses.replace(info, orientation=orientation, used=used)
            # The two decoders of common JPEGs are one library.
            if info.format != "JPEG" or not is_common(data):
                with told_by_tensorflow(info, name=name):
                    height, width, _ = self.decode(
                        tf.constant(cleaned(data, used)), tf.constant(orientation)
                    ).shape
                require_size(height, width, info, name=name)
        return info


def require_whole(data: bytes, info: PictureInfo, *, name: str) -> int | None:
    """Refuses a JPEG that has lost pixels; of all other formats TensorFlow tells when it decodes them.

    Returns:
      What `jpeg_check.used_codes` does; None for other formats.

    Raises:
      BadPictureError: it has.
      TrainerError: there is too little memory to tell.
    """
    try:
        return used_codes(data) if info.format == "JPEG" else None
    except MemoryError:
        raise _too_little_memory(info) from None
    except ValueError as error:
        raise BadPictureError(name, str(error)) from None


@contextlib.contextmanager
def told_by_tensorflow(info: PictureInfo, *, name: str) -> Iterator[None]:
    """Turns an error of TensorFlow's decoder into one that names the picture."""
    try:
        yield
    except tf.errors.ResourceExhaustedError:
        raise _too_little_memory(info) from None
    except tf.errors.OpError as error:
        # Where the function was made comes first, over many lines, and which node it was, last.
        told = error.message.split("\n\t [[")[0].strip().splitlines()[-1]
        raise BadPictureError(name, f"it cannot be decoded: {told}") from None


def require_size(height: int, width: int, info: PictureInfo, *, name: str) -> None:
    """Refuses a picture that, turned upright, has another size than its header says.

    Raises:
      BadPictureError: it has.
    """
    stored = (info.width_px, info.height_px)
    if (width, height) != (stored if info.orientation < 5 else stored[::-1]):
        raise BadPictureError(
            name,
            f"it cannot be decoded: {width}x{height} px come out, not {info.width_px}x{info.height_px}: "
            "save it as PNG",
        )


def _too_little_memory(info: PictureInfo) -> TrainerError:
    size = f"{info.width_px}x{info.height_px} px"
    return TrainerError(f"too little memory to decode a picture of {size}: lower --max_pixels")


@functools.cache
def _decoder() -> Callable[[tf.Tensor, tf.Tensor], Any]:
    """Returns `decode`, traced once for all."""

    def on_cpu(encoded: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
        # As in a pipeline: turning a picture is nothing to send it to a GPU for.
        with tf.device("/CPU:0"):
            return decode(encoded, orientation)

    text, number = tf.TensorSpec([], tf.string), tf.TensorSpec([], tf.int32)
    return tf.function(on_cpu, autograph=False).get_concrete_function(text, number)


class _Room:
    """So and so many places, which tasks take some of; who wants more than there are gets them all."""

    def __init__(self, places: int):
        self._places, self._taken = places, 0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def take(self, count: int) -> Iterator[None]:
        count = min(count, self._places)
        with self._changed:
            self._changed.wait_for(lambda: self._taken + count <= self._places)
            self._taken += count
        try:
            yield
        finally:
            with self._changed:
                self._taken -= count
                self._changed.notify_all()
