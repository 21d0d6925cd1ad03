"""What TensorFlow says of a picture that fails in the middle of the work, in words."""

import contextlib
import re
from collections.abc import Iterator

import tensorflow as tf

from trainer.data.pipeline import find_undecodable
from trainer.data.scan import Scan
from trainer.data.sources import Source
from trainer.values import TrainerError, failure_in_words


@contextlib.contextmanager
def named_pictures(source: Source, scan: Scan) -> Iterator[None]:
    """Turns a failure of TensorFlow into one that names the pictures, the file of features or the reason."""
    try:
        yield
    except tf.errors.OpError as error:
        # Of an error in Python, TensorFlow passes on the text alone.
        if features := re.search(r"\bFeatureCacheError: (.+)", error.message):
            raise TrainerError(f"{features[1]}; the same command computes it anew") from None
        may_be_pictures = isinstance(error, tf.errors.InvalidArgumentError | tf.errors.UnknownError)
        # Only what tf.data says can be about a picture; to decode all of them takes long.
        if may_be_pictures and "Iterator" in error.message and (bad := find_undecodable(source, scan)):
            raise TrainerError(f"pictures that cannot be read: {'; '.join(bad)}") from None
        raise TrainerError(failure_in_words(error)) from None
