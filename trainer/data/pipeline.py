"""From positions in a source to batches of pixels: read > decode > resize > batch > augment > mix > scale."""

import numpy as np
import tensorflow as tf

from trainer.data.augment import Augment
from trainer.data.bad_pictures import BadPictureError
from trainer.data.decode import decode, scale, to_contract
from trainer.data.jpeg_check import cleaned
from trainer.data.order import Batch, OrderedBatches, plain, seed_for, stand_ins
from trainer.data.scan import Scan
from trainer.data.sources import Source
from trainer.data.trial import Trial
from trainer.values import Contract, TrainerError, UsageError


class Pipeline(OrderedBatches):
    """Makes datasets of batches of pictures for one source and contract."""

    def __init__(
        self,
        source: Source,
        scan: Scan,
        *,
        contract: Contract,
        batch_size: int,
        seed: int,
        decoding: str = "exact",
    ):
        """Notes what to do.

        Args:
          source: the pictures.
          scan: what is known of them.
          contract: what the backbone wants.
          batch_size: B.
          seed: of order and augmentation.
          decoding: exact, or scaled: JPEGs at the smallest of 1/1 to 1/8 that covers the contract's size.
        """
        super().__init__(batch_size=batch_size, seed=seed)
        self.source, self.contract = source, contract
        self._at_least = (contract.height_px, contract.width_px) if decoding == "scaled" else None
        self._labels = tf.constant(source.labels, tf.int64)
        self._orientations, self._used = tf.constant(scan.orientations, tf.int32), scan.used

    def once(self, indices: np.ndarray, *, augment: Augment | None = None, epoch: int = 0) -> tf.data.Dataset:
        """See OrderedBatches.

        Raises:
          UsageError: what is asked for mixes pictures.
        """
        if augment and augment.mixes:
            raise UsageError(
                f"augment={augment} mixes pictures with others of their batch, so that nothing can be kept "
                "of one picture: leave out mixup and cutmix, or --feature_views"
            )
        return super().once(indices, augment=augment, epoch=epoch)

    def load(self, steps: tf.data.Dataset, augment: Augment | None) -> tf.data.Dataset:
        """See OrderedBatches. Images are [B, H, W, 3] float32 in the contract's range.

        With mixup or cutmix, a batch holds `target` besides.
        """
        base_seed = seed_for("augment", self.seed)

        @plain
        def read(index: tf.Tensor, epoch: tf.Tensor) -> tuple[tf.Tensor, ...]:
            encoded = tf.numpy_function(self._read, [index], tf.string)
            return tf.ensure_shape(encoded, [self.batch_size]), index, tf.repeat(epoch, self.batch_size)

        @plain
        def example(encoded: tf.Tensor, index: tf.Tensor, epoch: tf.Tensor) -> Batch:
            real = index >= 0
            at = tf.maximum(index, 0)

            def picture() -> tf.Tensor:
                pixels = decode(encoded, self._orientations[at], at_least=self._at_least)
                return tf.ensure_shape(to_contract(pixels, self.contract), self.contract.image_shape)

            one = {
                "image": tf.cond(real, picture, lambda: tf.zeros(self.contract.image_shape)),
                "label": tf.where(real, self._labels[at], 0),
                "mask": tf.cast(real, tf.float32),
                "id": index,
            }
            if augment:
                seed = tf.random.experimental.stateless_fold_in(base_seed, epoch)
                one["draws"] = augment.draw(tf.random.experimental.stateless_fold_in(seed, index))
            return one

        @plain
        def finish(batch: Batch) -> Batch:
            if augment:
                draws = batch.pop("draws")
                batch["image"] = augment.apply(batch["image"], draws)
                if augment.mixes:
                    batch["image"], batch["target"] = augment.mix(
                        batch["image"],
                        batch["label"],
                        draws,
                        mask=batch["mask"],
                        num_classes=len(self.source.class_names),
                    )
            images = stand_ins(batch["image"], batch["mask"] > 0)
            return {**batch, "image": scale(images, self.contract)}

        # A Python call a batch, not a picture, fetches bytes; decoding then runs in parallel.
        return (
            steps.map(read, num_parallel_calls=2, deterministic=True)
            .unbatch()
            .map(example, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
            .batch(self.batch_size, drop_remainder=True)
            .map(finish, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        )

    def _read(self, index: np.ndarray) -> np.ndarray:
        return np.array([self.encoded(i) if i >= 0 else b"" for i in index.tolist()], object)

    def encoded(self, index: int) -> bytes:
        """Returns a picture as a decoder is given it, which has nothing to complain of."""
        return cleaned(self.source.read(index), self._used.get(index))


def find_undecodable(source: Source, scan: Scan, *, limit: int = 5) -> list[str]:
    """Decodes pictures one by one and returns 'ID: reason' of those that fail, at most `limit`.

    For after a failure: inside tf.data an error no longer knows which picture it is about. Pictures
    that the scan found bad are in no split.
    """
    bad: list[str] = []
    tried = Trial()
    for index, name in enumerate(source.ids):
        if index in scan.bad:
            continue
        try:
            tried.check(source.read(index), name=name)
        except TrainerError as error:
            bad.append(f"{name}: {error.reason if isinstance(error, BadPictureError) else error}")
            if len(bad) == limit:
                break
    return bad
