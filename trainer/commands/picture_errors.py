"""What TensorFlow says of a picture that fails in the middle of the work, in words."""

import contextlib
import re
from collections.abc import Iterator

import tensorflow as tf

from trainer.data.pipeline import find_undecodable
from trainer.data.scan import Scan
from trainer.data.sources import Source
from trainer.values import TrainerError, told_by_tensorflow


@contextlib.contextmanager
def named_pictures(source: Source, scan: Scan) -> Iterator[None]:
    """Turns a failure inside tf.data into an error that names the pictures, or the file of features."""
    try:
        yield
    except (tf.errors.InvalidArgumentError, tf.errors.UnknownError) as error:
        # Of an error in Python, TensorFlow passes on the text alone.
        if features := re.search(r"\bFeatureCacheError: (.+)", error.message):
            raise TrainerError(f"{features[1]}; the same command computes it anew") from None
        bad = find_undecodable(source, scan)
        if not bad:
            raise TrainerError(f"TensorFlow failed: {told_by_tensorflow(error)}") from None
        raise TrainerError(f"pictures that cannot be read: {'; '.join(bad)}") from None
