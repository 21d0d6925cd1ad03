"""Picture files as a network wants them, decoded once, in parallel, in order; bad ones with their reason."""

import collections
import contextlib
import os
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import tensorflow as tf

from trainer.data.bad_pictures import BadPictureError
from trainer.data.decode import decode, scale, to_contract
from trainer.data.files import Found, read_file
from trainer.data.headers import inspect_picture
from trainer.data.trial import Trial
from trainer.values import Contract, TrainerError


@dataclass(frozen=True)
class Loaded:
    """A picture file: `pixels` [H, W, 3] float32 as the contract says, or None and what is the problem."""

    path: str
    pixels: np.ndarray | None
    problem: str = ""


class Loader(Trial):
    """Makes of files the pixels that training would, and refuses those that training would refuse.

    To be used as a context, one at a time: see `Trial` about standard error. What Python writes there
    meanwhile is shown all the same, where `sys.stderr` is looked up when it is written to.
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

    def __enter__(self) -> Self:
        # First, so that it is undone last.
        self._contexts.enter_context(own_stderr())
        return super().__enter__()

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
            return Loaded(found.path, self.pixels(read_file(found.path), name=found.path))
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
        size = [info.width_px, info.height_px] if turn >= 5 else [info.height_px, info.width_px]
        with self._room.take(info.width_px * info.height_px):
            before = self._written()
            try:
                pixels, decoded_size = self._picture(tf.constant(data), tf.constant(turn))
            except tf.errors.OpError as error:
                pixels, said = None, error.message.split("\n\t [[")[0].strip().splitlines()[-1]
            else:
                reduced = self._scaled and info.format == "JPEG"
                if self._written() == before and (reduced or decoded_size.numpy().tolist() == size):
                    return pixels.numpy()
        # Something is wrong with it, or with another one at the same time: the trial can tell.
        self.check(data, name=name, exif=self._exif, max_pixels=self._max_pixels)
        if pixels is None:
            raise BadPictureError(name, f"it cannot be decoded: {said}")
        return pixels.numpy()


@contextlib.contextmanager
def own_stderr() -> Iterator[None]:
    """Has Python write to where standard error leads now, whatever its descriptor leads to in the block."""
    sys.stderr.flush()
    with (
        open(os.dup(2), "w", buffering=1, errors="backslashreplace") as kept,
        contextlib.redirect_stderr(kept),
    ):
        yield


def _picture(contract: Contract, *, scaled: bool) -> Callable[[tf.Tensor, tf.Tensor], Any]:
    """Returns (encoded, orientation) -> (pixels, size when decoded), traced once: what `Pipeline` does."""
    at_least = (contract.height_px, contract.width_px) if scaled else None

    def on_cpu(encoded: tf.Tensor, orientation: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.device("/CPU:0"):
            image = decode(encoded, orientation, at_least=at_least)
            return scale(to_contract(image, contract), contract), tf.shape(image)[:2]

    text, number = tf.TensorSpec([], tf.string), tf.TensorSpec([], tf.int32)
    return tf.function(on_cpu, autograph=False).get_concrete_function(text, number)
