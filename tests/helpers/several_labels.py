"""A plugin: a source of pictures in which any of three lamps are on, or none."""

import numpy as np
import tensorflow as tf

import trainer
from trainer.data.sources import MemorySource, label_tuples

NAMES = ("red", "green", "blue")


@trainer.register.source("lamps", address="COUNT")
def lamps(count: str, *, name):
    """Pictures in which red shines often, green at times and blue rarely; in each eighth none does."""
    rng = np.random.default_rng(0)
    on = rng.random([int(count), 3]) < [0.6, 0.4, 0.15]
    on[::8] = False
    # Whatever chance says, each shines and fails to in the first ones.
    on[1:4] = np.eye(3, dtype=bool)
    pixels = rng.integers(60, size=[int(count), 10, 12, 3]) + 150 * on[:, None, None, :]
    encoded = [tf.io.encode_png(image).numpy() for image in pixels.astype(np.uint8)]
    ids = [f"{i:03d}.png" for i in range(int(count))]
    labels = label_tuples(np.flatnonzero(row) for row in on)
    return MemorySource(name, NAMES, ids, labels, encoded, stamped=count)
