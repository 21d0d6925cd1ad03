"""Decoding for trial: which pictures training could not decode, and which are damaged inside."""

import contextlib
import functools
import os
import re
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Self

import tensorflow as tf

from trainer.data.bad_pictures import BadPictureError
from trainer.data.decode import decode
from trainer.data.headers import MAX_PIXELS, PictureInfo, inspect_picture
from trainer.values import TrainerError

# Of all pictures that are decoded at once: 3 bytes each, and up to 10 where a progressive one is turned.
PIXELS_AT_ONCE = 2**26
# What libjpeg says when it fills pixels in.
_LOST = re.compile(
    "premature end|bad Huffman code|bad arithmetic code|instead of RST|Inconsistent progression"
)
# Decoded from a wrong bit on, a scan ends somewhere before its bytes do. A few bytes too many are what
# webcams write, and many between the tables are what is left of a badly edited header: all pixels are right.
_LEFT_OVER = re.compile(r"(\d+) extraneous bytes before marker 0x(?:d[0-79a]|c4)")
_LEFT_OVER_BYTES = 32
_ENDED = ("Input file read error", "Premature end of JPEG")
# Lines of TensorFlow's own log, which begin with a letter or a date, and what they go on with.
_LOGGED = re.compile(r"[IWEF]\d{4} |\d{4}-\d\d-\d\d |WARNING: All log messages|\s")


class Trial:
    """Decodes pictures as training will, in any number of threads at once.

    To be used as a context. While it is open, what C code writes to standard error is held back: that
    is the only place where libjpeg says that it made pixels up. Two of them at once are one too many.
    """

    def __init__(self) -> None:
        self._decode = _decoder()
        self._room = _Room(PIXELS_AT_ONCE)
        self._contexts = contextlib.ExitStack()
        self._held = 2

    def __enter__(self) -> Self:
        # Pillow warns of damaged metadata, over several lines.
        self._contexts.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        self._held = self._contexts.enter_context(_held_stderr())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._contexts.close()

    def check(
        self, data: bytes, *, name: str, exif: str = "apply", max_pixels: int = MAX_PIXELS
    ) -> PictureInfo:
        """Decodes a picture in full, and returns what its header says, with the orientation to apply.

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
        info = PictureInfo(info.format, info.width_px, info.height_px, orientation)
        with self._room.take(info.width_px * info.height_px):
            before = self._written()
            error = self._error(data, info)
            if not error and self._written() == before:
                return info
        # Something was said. What, and of which picture, only one who decodes alone can tell.
        with self._room.take(PIXELS_AT_ONCE):
            before = self._written()
            error = self._error(data, info)
            said = os.pread(self._held, self._written() - before, before).decode(errors="replace")
        if reason := _reason(info, error, said.splitlines()):
            raise BadPictureError(name, reason)
        return info

    def _written(self) -> int:
        return os.lseek(self._held, 0, os.SEEK_CUR)

    def _error(self, data: bytes, info: PictureInfo) -> str:
        try:
            height, width, _ = self._decode(tf.constant(data), tf.constant(info.orientation)).shape
        except tf.errors.ResourceExhaustedError:
            size = f"{info.width_px}x{info.height_px} px"
            raise TrainerError(
                f"too little memory to decode a picture of {size}: lower --max_pixels"
            ) from None
        except tf.errors.OpError as error:
            # Where the function was made comes first, over many lines, and which node it was, last.
            return error.message.split("\n\t [[")[0].strip().splitlines()[-1]
        stored = (info.width_px, info.height_px)
        if (width, height) != (stored if info.orientation < 5 else stored[::-1]):
            return f"{width}x{height} px come out, not {info.width_px}x{info.height_px}: save it as PNG"
        return ""


def _reason(info: PictureInfo, error: str, said: list[str]) -> str:
    """Returns why a picture is bad, in the words of who knows most; empty if it is not."""
    by_libjpeg = [line for line in said if line.strip() and not _LOGGED.match(line)]
    if any(ended in line for line in said for ended in _ENDED):
        return "it ends in the middle"
    if error:
        told = by_libjpeg[-1] if info.format == "JPEG" and by_libjpeg else error
        return f"it cannot be decoded: {told}"
    damage = next((line for line in by_libjpeg if _is_damage(line)), "")
    return f"it is damaged inside: {damage}" if damage else ""


def _is_damage(line: str) -> bool:
    left_over = _LEFT_OVER.search(line)
    return bool(_LOST.search(line) or (left_over and int(left_over[1]) > _LEFT_OVER_BYTES))


@functools.cache
def _decoder() -> Callable[[tf.Tensor, tf.Tensor], Any]:
    """Returns `decode`, traced once for all."""

    def on_cpu(encoded: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
        # As in a pipeline: turning a picture is nothing to send it to a GPU for.
        with tf.device("/CPU:0"):
            return decode(encoded, orientation)

    text, number = tf.TensorSpec([], tf.string), tf.TensorSpec([], tf.int32)
    return tf.function(on_cpu, autograph=False).get_concrete_function(text, number)


@contextlib.contextmanager
def _held_stderr() -> Iterator[int]:
    """Turns standard error into a temporary file, and yields the file's descriptor."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield held.fileno()
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)


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
