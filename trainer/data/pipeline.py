"""From positions in a source to batches of pixels: order > decode > augment > batch > prefetch.

The order of epoch e is a permutation by (seed, e), so the step number alone says which examples
come next: a run that starts again at step s sees what it would have seen.
"""

import os

import numpy as np
import tensorflow as tf

from trainer.data.augment import make_augment
from trainer.data.decode import decode, scale, to_contract
from trainer.data.scan import Scan
from trainer.data.sources import Source
from trainer.values import Contract, TrainerError, told_by_tensorflow

Batch = dict[str, tf.Tensor]
"""image [B, H, W, 3] float32 in the contract's range, label [B] int64, mask [B] float32 (0 for
padding), id [B] int64 (position in the source, -1 for padding)."""


class Pipeline:
    """Makes datasets of batches, all of one constant shape, for one source and contract."""

    def __init__(self, source: Source, scan: Scan, *, contract: Contract, batch_size: int, seed: int):
        self.source, self.contract, self.batch_size, self.seed = source, contract, batch_size, seed
        self._labels = tf.constant(source.labels, tf.int64)
        self._orientations = tf.constant(scan.orientations, tf.int32)

    def training(
        self, indices: np.ndarray, *, start_step: int, stop_step: int, augment: str = ""
    ) -> tf.data.Dataset:
        """Returns the batches of steps [start_step, stop_step), as if counted from step 0.

        Each epoch has every example once; its last batch is padded and masked.
        """
        per_epoch = -(-len(indices) // self.batch_size)
        padding = per_epoch * self.batch_size - len(indices)
        positions = tf.constant(indices, tf.int64)

        def order(epoch: tf.Tensor) -> tf.data.Dataset:
            seed = tf.random.experimental.stateless_fold_in(_seed(self.seed, "order"), epoch)
            shuffled = tf.random.experimental.stateless_shuffle(positions, seed)
            padded = tf.pad(shuffled, [[0, padding]], constant_values=-1)
            steps = tf.reshape(padded, [per_epoch, self.batch_size])
            return tf.data.Dataset.from_tensor_slices((steps, tf.repeat(epoch, per_epoch)))

        first_epoch, skipped = divmod(start_step, per_epoch)
        last_epoch = max(first_epoch + 1, -(-stop_step // per_epoch))
        steps = tf.data.Dataset.range(first_epoch, last_epoch).flat_map(order)
        return self._batches(steps.skip(skipped).take(stop_step - start_step), augment)

    def once(self, indices: np.ndarray) -> tf.data.Dataset:
        """Returns every example exactly once, in the order of `indices`, unaugmented."""
        count = -(-len(indices) // self.batch_size)
        padded = np.pad(indices, (0, count * self.batch_size - len(indices)), constant_values=-1)
        steps = tf.constant(padded.reshape(count, self.batch_size), tf.int64)
        return self._batches(
            tf.data.Dataset.from_tensor_slices((steps, tf.zeros([count], tf.int64))), augment=""
        )

    def _batches(self, steps: tf.data.Dataset, augment: str) -> tf.data.Dataset:
        change = make_augment(augment)

        def read(index: tf.Tensor, epoch: tf.Tensor) -> tuple[tf.Tensor, ...]:
            encoded = tf.numpy_function(self._read, [index], tf.string)
            return tf.ensure_shape(encoded, [self.batch_size]), index, tf.repeat(epoch, self.batch_size)

        def example(encoded: tf.Tensor, index: tf.Tensor, epoch: tf.Tensor) -> Batch:
            real = index >= 0
            at = tf.maximum(index, 0)

            def picture() -> tf.Tensor:
                image = to_contract(decode(encoded, self._orientations[at]), self.contract)
                if change:
                    seed = tf.random.experimental.stateless_fold_in(_seed(self.seed, "augment"), epoch)
                    image = change(image, tf.random.experimental.stateless_fold_in(seed, index))
                return tf.ensure_shape(scale(image, self.contract), self.contract.image_shape)

            # Padding has the pixels of a black picture: zeros could be outside the value range.
            low = self.contract.value_range[0]
            return {
                "image": tf.cond(real, picture, lambda: tf.fill(self.contract.image_shape, low)),
                "label": tf.where(real, self._labels[at], 0),
                "mask": tf.cast(real, tf.float32),
                "id": index,
            }

        # A Python call a batch, not a picture, fetches bytes; decoding then runs in parallel.
        batches = (
            steps.map(read, num_parallel_calls=2, deterministic=True)
            .unbatch()
            .map(example, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
            .batch(self.batch_size, drop_remainder=True)
            .prefetch(2)
        )
        options = tf.data.Options()
        options.deterministic = True
        # The network uses all cores; within a picture there is nothing worth dividing.
        options.threading.max_intra_op_parallelism = 1
        options.threading.private_threadpool_size = os.cpu_count() or 1
        # The data are one stream for all devices: batches are divided, files are not.
        options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
        return batches.with_options(options)

    def _read(self, index: np.ndarray) -> np.ndarray:
        return np.array([self.source.read(i) if i >= 0 else b"" for i in index.tolist()], object)


def find_undecodable(source: Source, scan: Scan, *, limit: int = 5) -> list[str]:
    """Decodes pictures one by one and returns 'ID: reason' of those that fail, at most `limit`.

    For after a failure: inside tf.data an error no longer knows which picture it is about.
    """
    bad = []
    for index, name in enumerate(source.ids):
        try:
            decode(tf.constant(source.read(index)), tf.constant(scan.orientations[index]))
        except (tf.errors.OpError, TrainerError) as error:
            bad.append(f"{name}: {told_by_tensorflow(error)}")
            if len(bad) == limit:
                break
    return bad


def _seed(seed: int, purpose: str) -> tf.Tensor:
    """Returns a [2] int32 seed that differs by purpose, so that order and flips are independent."""
    return tf.constant([seed % 2**31, {"order": 1, "augment": 2}[purpose]], tf.int32)
