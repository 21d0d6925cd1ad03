"""Picture files as a network wants them, decoded once, in parallel, in order; bad ones with their reason."""

import collections
import dataclasses
import os
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.data.decode import decode, scale, to_contract
from trainer.data.inspect.bad_pictures import BadPictureError
from trainer.data.inspect.headers import inspect_picture
from trainer.data.inspect.jpeg_check import cleaned
from trainer.data.inspect.trial import Trial, require_size, require_whole, told_by_tensorflow
from trainer.data.picture_files import Found, read_file
from trainer.values import Contract, TrainerError


@dataclass(frozen=True)
class Loaded:
    """A picture file: `pixels` [H, W, 3] float32 as the contract says, or None and what is the problem."""

    path: str
    pixels: np.ndarray | None
    problem: str = ""


class Loader(Trial):
    """Makes of files the pixels that training would, and refuses those that training would refuse.

    Safe to use from several threads.
    """

    def __init__(self, contract: Contract, *, exif: str, max_pixels: int, decoding: str):
        """Notes what to do.

        Args:
          contract: what the backbone wants.
          exif: apply or ignore the orientation.
          max_pixels: a picture with more is a bad one.
          decoding: exact or scaled, as in `Pipeline`.
        """
        super().__init__()
        self._exif, self._max_pixels = exif, max_pixels
        self._scaled = decoding == "scaled"
        self._picture = _picture(contract, scaled=self._scaled)

    def load_all(self, found: Iterable[Found], *, ahead: int) -> Generator[Loaded, None, None]:
        """Yields all in their order; up to `ahead` more than were asked for are being loaded meanwhile."""
        waiting: collections.deque[Future[Loaded]] = collections.deque()
        pool = ThreadPoolExecutor(os.cpu_count())
        try:
            for one in found:
                waiting.append(pool.submit(self.load, one))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def load(self, found: Found) -> Loaded:
        """Loads one, in any thread."""
        if found.problem:
            return Loaded(found.path, None, found.problem)
        try:
            data = read_file(found.path) if found.data is None else found.data
            return Loaded(found.path, self.pixels(data, name=found.path))
        except BadPictureError as error:
            return Loaded(found.path, None, error.reason)
        except TrainerError as error:
            return Loaded(found.path, None, str(error))

    def pixels(self, data: bytes, *, name: str) -> np.ndarray:
        """Decodes a picture; see `check`, of which arguments and errors are.

        Returns:
          [H, W, 3] float32 of the contract's size and range.
        """
        info = inspect_picture(data, name=name, max_pixels=self._max_pixels)
        turn = info.orientation if self._exif == "apply" else 1
        info = dataclasses.replace(info, orientation=turn)
        with self._room.take(info.width_px * info.height_px):
            data = cleaned(data, require_whole(data, info, name=name))
            with told_by_tensorflow(info, name=name):
                pixels, size = self._picture(tf.constant(data), tf.constant(turn))
        if not (self._scaled and info.format == "JPEG"):
            height, width = size.numpy().tolist()
            require_size(height, width, info, name=name)
        return pixels.numpy()


def _picture(contract: Contract, *, scaled: bool) -> Callable[[tf.Tensor, tf.Tensor], Any]:
    """Returns (encoded, orientation) -> (pixels, size when decoded), traced once: what `Pipeline` does."""
    at_least = (contract.height_px, contract.width_px) if scaled else None

    def on_cpu(encoded: tf.Tensor, orientation: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.device("/CPU:0"):
            image = decode(encoded, orientation, at_least=at_least)
            return scale(to_contract(image, contract), contract), tf.shape(image)[:2]

    text, number = tf.TensorSpec([], tf.string), tf.TensorSpec([], tf.int32)
    return tf.function(on_cpu, autograph=False).get_concrete_function(text, number)
