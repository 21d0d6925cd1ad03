"""From positions in a source to batches: order > shard > read > decode > resize > augment > mix.

The order of epoch e is a permutation by (seed, e), so the step number alone says which examples
come next: a run that starts again at step s sees what it would have seen.
"""

import copy
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Protocol, Self

import numpy as np
import tensorflow as tf

from trainer.data.augment import Augment
from trainer.data.decode import ANY, decode, scale, to_contract
from trainer.data.inspect.bad_pictures import BadPictureError
from trainer.data.inspect.jpeg_check import cleaned
from trainer.data.inspect.scan import Scan
from trainer.data.inspect.trial import Trial
from trainer.data.sources import Source
from trainer.tasks import SINGLE_LABEL, Task
from trainer.values import Contract, TrainerError, UsageError

Batch = dict[str, tf.Tensor]
"""image [B, ...] float32, label [B, ...] as `Task.label_spec` says, mask [B] float32 (0 for padding), id [B]
int64 (position
in the source, -1 for padding). `image` holds pixels [B, H, W, 3] in the contract's range, or what a
frozen part of a network made of them; padding repeats the first example, as a network may make no numbers
of what is no picture. Where pictures are mixed with others of their batch, also
target [B, K] float32: the share of each class, rows sum to 1, the largest is that of `label`. Where
examples have weights, also weight [B] float32. Where
padding is not at the end, also place [B] int32: the row that an example would have if it were."""


_CORES = os.cpu_count() or 1
_MOST_BATCHES = 16
"""How many batches are changed at the same time at most: each is held in memory, while it is little work."""

# What datasets map is written in TensorFlow's own operations: looking for Python's `if` in it, and in all
# it calls, takes a second or two of every start.
plain = tf.autograph.experimental.do_not_convert


class Rows(Protocol):
    """An array [n, *shape] float32 that is read by rows; `feature_store.StoredFeatures` is one."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def nbytes(self) -> int: ...
    def rows(self, positions: np.ndarray) -> np.ndarray: ...
    def whole(self) -> np.ndarray: ...


class OrderedBatches:
    """Datasets of batches of one constant shape, from positions in a source."""

    def __init__(self, *, batch_size: int, seed: int, chances: np.ndarray | None = None):
        """Notes what to do.

        Args:
          batch_size: B.
          seed: of the order.
          chances: [N] how often each example of the source is seen in training beside the others; None: each
            once an epoch.
        """
        self.batch_size, self.seed, self.chances = batch_size, seed, chances
        self.share = (0, 1)

    def drawing(self, chances: np.ndarray | None) -> Self:
        """Returns the same with other chances: see `__init__`."""
        made = copy.copy(self)
        made.chances = chances
        return made

    def of_worker(self, index: int, count: int) -> Self:
        """Returns the same with the rows of one of several workers in each batch; nothing else is read.

        Worker i of n has rows [i B / n, (i + 1) B / n) of what one worker has. Where pictures are mixed with
        the next, one more is read.
        """
        made = copy.copy(self)
        made.share = (index, count)
        return made

    def training(
        self,
        indices: np.ndarray,
        *,
        start_step: int,
        stop_step: int,
        augment: Augment | None = None,
        num_shares: int = 1,
    ) -> tf.data.Dataset:
        """Returns the batches of steps [start_step, stop_step), as if counted from step 0.

        Each epoch has every example once, or as many examples, each as often as its chance says; its last
        batch is padded and masked.

        Args:
          indices: positions in the source.
          start_step: the first step.
          stop_step: the step after the last one.
          augment: changes of the pictures.
          num_shares: a batch will be cut into so many shares, and the examples of the last one are to be
            spread evenly over them, instead of leaving the last shares to padding.
        """
        per_epoch = -(-len(indices) // self.batch_size)
        positions = tf.constant(indices, tf.int64)

        @plain
        def order(epoch: tf.Tensor) -> tf.data.Dataset:
            steps, *copies = self._epoch(positions, epoch, num_shares)
            return tf.data.Dataset.from_tensor_slices((steps, tf.repeat(epoch, per_epoch), *copies))

        first_epoch, skipped = divmod(start_step, per_epoch)
        last_epoch = max(first_epoch + 1, -(-stop_step // per_epoch))
        steps = tf.data.Dataset.range(first_epoch, last_epoch).flat_map(order)
        steps = steps.skip(skipped).take(stop_step - start_step)
        if self.share != (0, 1):
            return self._finish(self._load_own(steps, augment, with_places=num_shares > 1))
        batches = self.load(steps, augment)
        return self._finish(batches if num_shares == 1 else batches.map(_with_places))

    def positions(self, indices: np.ndarray, *, step: int) -> np.ndarray:
        """Returns the positions in the source of the batch of a step, [n] int64, without padding."""
        epoch, at = divmod(step, -(-len(indices) // self.batch_size))
        steps = self._epoch(tf.constant(indices, tf.int64), tf.constant(epoch, tf.int64))[0]
        batch = steps.numpy()[at]
        return batch[batch >= 0]

    def _epoch(self, positions: tf.Tensor, epoch: tf.Tensor, num_shares: int = 1) -> list[tf.Tensor]:
        """Returns [steps, B] int64, the order of an epoch with -1 for padding at the end of each share.

        Where examples are drawn, also which of its copies each is, -1 for padding.
        """
        steps = -(-positions.shape[0] // self.batch_size)
        seed = tf.random.experimental.stateless_fold_in(seed_for("order", self.seed), epoch)
        shuffled = [tf.random.experimental.stateless_shuffle(positions, seed)]
        if self.chances is not None:
            shuffled = _drawn(positions, tf.gather(tf.constant(self.chances, tf.float64), positions), seed)
        num_last = positions.shape[0] - (steps - 1) * self.batch_size
        # The last batch row by row: the first shares have one example more where it does not come out even.
        taken = [
            share * self.batch_size // num_shares + row
            for share in range(num_shares)
            for row in range(num_last // num_shares + (share < num_last % num_shares))
        ]
        first_of_last = (steps - 1) * self.batch_size
        rows = np.concatenate([np.arange(first_of_last), first_of_last + np.array(taken, np.int64)])
        padding = tf.fill([steps * self.batch_size], tf.constant(-1, tf.int64))
        padded = [tf.tensor_scatter_nd_update(padding, rows[:, None], values) for values in shuffled]
        return [tf.reshape(values, [steps, self.batch_size]) for values in padded]

    def once(self, indices: np.ndarray, *, augment: Augment | None = None, epoch: int = 0) -> tf.data.Dataset:
        """Returns every example exactly once, in the order of `indices`, changed as in that epoch."""
        load = self.load if self.share == (0, 1) else self._load_own
        return self._finish(load(self._each_once(indices, epoch=epoch), augment))

    def _each_once(self, indices: np.ndarray, *, epoch: int) -> tf.data.Dataset:
        """Returns what `load` maps: positions [B] int64 in the order of `indices`, and the epoch."""
        count = -(-len(indices) // self.batch_size)
        padded = np.pad(indices, (0, count * self.batch_size - len(indices)), constant_values=-1)
        steps = tf.constant(padded.reshape(count, self.batch_size), tf.int64)
        epochs = tf.fill([count], tf.constant(epoch, tf.int64))
        return tf.data.Dataset.from_tensor_slices((steps, epochs))

    def load(self, steps: tf.data.Dataset, augment: Augment | None) -> tf.data.Dataset:
        """Maps (positions [B] int64 with -1 for padding, epoch [] int64) to a Batch, in order.

        Where examples are drawn, there is also which of its copies in the epoch each is, [B] int64.
        """
        raise NotImplementedError

    def _load_own(
        self, steps: tf.data.Dataset, augment: Augment | None, *, with_places: bool = False
    ) -> tf.data.Dataset:
        """Does what `load` does for this worker's rows of each batch."""
        index, count = self.share
        size, mixes = self.batch_size // count, bool(augment and augment.mixes)
        first = index * size
        part = copy.copy(self)
        part.batch_size = size + mixes

        @plain
        def rows(positions: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            """Returns the rows to load, and which of them are real ones of this worker, [size] bool."""
            everywhere = positions >= 0
            own, real = tf.range(first, first + size), everywhere[first : first + size]
            if mixes:
                # The partner of the last real row: the next one of the whole batch, or the first.
                last = first + size - 1 - tf.argmax(tf.reverse(real, [0]), output_type=tf.int32)
                after = (last + 1 + tf.range(self.batch_size)) % self.batch_size
                return tf.concat([own, after[tf.argmax(tf.gather(everywhere, after))][None]], axis=0), real
            # Where all is padding, some picture must stand in for it.
            any_real = tf.argmax(everywhere, output_type=tf.int32)
            is_needed = ~tf.reduce_any(real) & (tf.range(size) == 0)
            return tf.where(is_needed, any_real, own), real

        @plain
        def to_load(positions: tf.Tensor, epoch: tf.Tensor, *copies: tf.Tensor) -> tuple[tf.Tensor, ...]:
            own, _ = rows(positions)
            return tf.gather(positions, own), epoch, *(tf.gather(values, own) for values in copies)

        @plain
        def about(positions: tf.Tensor, *rest: tf.Tensor) -> dict[str, tf.Tensor]:
            before = tf.cumsum(tf.cast(positions >= 0, tf.int32), exclusive=True)
            return {"real": rows(positions)[1], "place": before[first : first + size]}

        @plain
        def finished(batch: Batch, known: dict[str, tf.Tensor]) -> Batch:
            batch = {name: values[:size] for name, values in batch.items()}
            real = known["real"]
            to_label = tf.reshape(real, [size, *[1] * (len(batch["label"].shape) - 1)])
            batch["label"] = tf.where(to_label, batch["label"], tf.zeros_like(batch["label"]))
            batch["mask"], batch["id"] = tf.cast(real, tf.float32), tf.where(real, batch["id"], -1)
            return {**batch, "place": known["place"]} if with_places else batch

        return tf.data.Dataset.zip(part.load(steps.map(to_load), augment), steps.map(about)).map(finished)

    def _finish(self, batches: tf.data.Dataset) -> tf.data.Dataset:
        options = tf.data.Options()
        options.deterministic = True
        # To end a dataset that tunes itself may take up to a minute: the tuner is woken before it is told to
        # end (`StartCancel` in TensorFlow's cancellation.cc), and where it looks at once it sleeps on.
        options.autotune.enabled = False
        # The network uses all cores; within a picture there is nothing worth dividing.
        options.threading.max_intra_op_parallelism = 1
        options.threading.private_threadpool_size = _CORES
        # The data are one stream for all devices: batches are divided, files are not.
        options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
        return batches.prefetch(2).with_options(options)


def _drawn(positions: tf.Tensor, chances: tf.Tensor, seed: tf.Tensor) -> list[tf.Tensor]:
    """Draws as many examples as there are, each as often as its chance says, in an order by chance.

    Systematic sampling: an example with the share s of all chances comes floor(s N) times or once more, so
    that a class has its part of every epoch, but for one example, whatever else is drawn.

    Args:
      positions: [N] int64.
      chances: [N] float64, above 0.
      seed: [2] int32, of the epoch.

    Returns:
      [N] int64 positions, and [N] int64 which copy of its example each is, from 0.
    """
    total = positions.shape[0]
    by, offset, order = (tf.random.experimental.stateless_fold_in(seed, i) for i in range(3))
    # Examples of one chance, and so of one class, beside one another, in an order by chance.
    rows = tf.random.experimental.stateless_shuffle(tf.range(total), by)
    rows = tf.gather(rows, tf.argsort(tf.gather(chances, rows), stable=True))
    sums = tf.cumsum(tf.gather(chances, rows))
    start = tf.random.stateless_uniform([], offset, dtype=tf.float64)
    ends = tf.cast(tf.floor(sums / sums[-1] * total + start), tf.int64)
    # Whatever rounding has made of the last one.
    ends = tf.concat([ends[:-1], tf.constant([total], tf.int64)], axis=0)
    begins = tf.concat([tf.constant([0], tf.int64), ends[:-1]], axis=0)
    which = tf.ensure_shape(tf.repeat(tf.range(total), ends - begins), [total])
    copies = tf.range(total, dtype=tf.int64) - tf.gather(begins, which)
    shuffled = tf.random.experimental.stateless_shuffle(tf.range(total), order)
    drawn = tf.gather(positions, tf.gather(rows, which))
    return [tf.gather(drawn, shuffled), tf.gather(copies, shuffled)]


def stand_ins(values: tf.Tensor, real: tf.Tensor) -> tf.Tensor:
    """Returns values [B, ...] with the first real one in place of padding; `real` is [B] bool."""
    rows = tf.where(real, tf.range(tf.size(real)), tf.argmax(real, output_type=tf.int32))
    filled = tf.cond(tf.reduce_all(real), lambda: values, lambda: tf.gather(values, rows))
    return tf.ensure_shape(filled, values.shape)


def with_weights(batches: tf.data.Dataset, weights: np.ndarray) -> tf.data.Dataset:
    """Returns batches with `weight` [B] float32, what the loss of each example is multiplied by.

    Args:
      batches: with the `id` of each example.
      weights: [N] of all examples of the source.
    """
    of_all = tf.constant(weights, tf.float32)

    @plain
    def add(batch: Batch) -> Batch:
        return {**batch, "weight": tf.gather(of_all, tf.maximum(batch["id"], 0))}

    return batches.map(add)


@plain
def _with_places(batch: Batch) -> Batch:
    before = tf.cumsum(tf.cast(batch["mask"] > 0, tf.int32), exclusive=True)
    return {**batch, "place": before}


def seed_for(purpose: str, seed: int) -> tf.Tensor:
    """Returns a [2] int32 seed that differs by purpose, so that order and flips are independent."""
    return tf.constant([seed % 2**31, {"order": 1, "augment": 2}[purpose]], tf.int32)


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
        task: Task = SINGLE_LABEL,
    ):
        """Notes what to do.

        Args:
          source: the pictures.
          scan: what is known of them.
          contract: what the backbone wants.
          batch_size: B.
          seed: of order and augmentation.
          decoding: exact, or scaled: JPEGs at the smallest of 1/1 to 1/8 that covers the contract's size.
          task: what labels mean.
        """
        super().__init__(batch_size=batch_size, seed=seed)
        self.source, self.contract = source, contract
        self._at_least = (contract.height_px, contract.width_px) if decoding == "scaled" else None
        num_classes = len(source.class_names)
        self._task, self._num_classes = task, num_classes
        self._labels = tf.constant(source.labels, task.label_spec(batch_size, num_classes).dtype)
        self._orientations, self._used = tf.constant(scan.orientations, tf.int32), scan.used
        # What is decoded at another size is not of the size that is known.
        sides = scan.known.sides_px if decoding == "exact" else ANY.sides_px
        self._known = replace(scan.known, sides_px=sides)
        self._kept: list[Rows] = []
        # Of each example of the source, which of these has it, and in which row; -1: none.
        self._kept_in = np.full([len(source.ids), 2], -1, np.int64)
        self._traced: dict[tuple[str, bool, str | Augment | None], Callable[..., Any]] = {}

    def keep(self, indices: np.ndarray, rows: Rows) -> None:
        """Takes pixels that were kept instead of decoding, in the datasets that are made from here on.

        Args:
          indices: [n] positions in the source.
          rows: [n, H, W, 3] float32 what `to_contract` makes of them.
        """
        self._kept_in[indices] = np.stack(
            [np.full(len(indices), len(self._kept)), np.arange(len(indices))], 1
        )
        self._kept.append(rows)

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
        return self._decoded(steps, augment).map(
            self._finished(augment), num_parallel_calls=min(_CORES, _MOST_BATCHES), deterministic=True
        )

    def pixels(self, indices: np.ndarray) -> Iterator[np.ndarray]:
        """Yields [b, H, W, 3] float32 a batch, every example of `indices` once, in order: for `keep`."""
        for batch in self._finish(self._decoded(self._each_once(indices, epoch=0), None)):
            yield batch["image"].numpy()[batch["mask"].numpy() > 0]

    def _decoded(self, steps: tf.data.Dataset, augment: Augment | None) -> tf.data.Dataset:
        """Maps positions to batches of pictures in [0, 1] as `to_contract` makes them, and what to change."""

        def read(index: tf.Tensor, epoch: tf.Tensor, *copy: tf.Tensor) -> tuple[tf.Tensor, ...]:
            found = tf.numpy_function(self._read, [index], [tf.string, tf.bool])
            encoded, is_decoded = (tf.ensure_shape(one, index.shape) for one in found)
            return encoded, is_decoded, index, tf.fill(tf.shape(index), epoch), *copy

        # A Python call a batch, not a picture, fetches bytes; decoding then runs in parallel.
        return (
            steps.map(self._traced_once("read", None, read), num_parallel_calls=2, deterministic=True)
            .unbatch()
            .map(self._example(augment), num_parallel_calls=_CORES, deterministic=True)
            .batch(self.batch_size, drop_remainder=True)
        )

    def _example(self, augment: Augment | None) -> Callable[..., Batch]:
        """Returns what makes an example of encoded bytes, without the changes themselves."""
        base_seed = seed_for("augment", self.seed)

        def example(
            encoded: tf.Tensor, is_decoded: tf.Tensor, index: tf.Tensor, epoch: tf.Tensor, *copy: tf.Tensor
        ) -> Batch:
            real = index >= 0
            at = tf.maximum(index, 0)

            def decoded() -> tf.Tensor:
                return self.decode(encoded, at)

            def kept() -> tf.Tensor:
                return tf.reshape(tf.io.decode_raw(encoded, tf.float32), self.contract.image_shape)

            def picture() -> tf.Tensor:
                return tf.cond(is_decoded, kept, decoded) if self._kept else decoded()

            one = {
                "image": tf.cond(real, picture, lambda: tf.zeros(self.contract.image_shape)),
                "label": tf.where(real, self._labels[at], tf.zeros_like(self._labels[at])),
                "mask": tf.cast(real, tf.float32),
                "id": index,
            }
            if augment:
                seed = tf.random.experimental.stateless_fold_in(base_seed, epoch)
                for which in copy:
                    # What comes twice in an epoch is changed twice.
                    seed = tf.random.experimental.stateless_fold_in(seed, which)
                one["draws"] = augment.draw(tf.random.experimental.stateless_fold_in(seed, index))
            return one

        return self._traced_once("example", augment, example)

    def decode(self, encoded: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
        """Returns the pixels [H, W, 3] float32 in [0, 1] of a picture, [] string, at a position, [] int64."""
        pixels: tf.Tensor = self._traced_once("decode", None, self._decode)(encoded, index)
        return pixels

    def _decode(self, encoded: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
        known, contract = self._known, self.contract
        pixels = decode(encoded, self._orientations[index], at_least=self._at_least, known=known)
        return tf.ensure_shape(to_contract(pixels, contract, known), contract.image_shape)

    def _finished(self, augment: Augment | None) -> Callable[[Batch], Batch]:
        """Returns what changes the pictures of a batch, and brings them into the range of the contract."""

        def finished(batch: Batch) -> Batch:
            if augment:
                draws = batch.pop("draws")
                batch["image"] = augment.apply(batch["image"], draws)
                if augment.mixes:
                    batch["image"], batch["target"] = augment.mix(
                        batch["image"],
                        batch["label"],
                        draws,
                        mask=batch["mask"],
                        num_classes=self._num_classes,
                        task=self._task,
                    )
            images = stand_ins(batch["image"], batch["mask"] > 0)
            return {**batch, "image": scale(images, self.contract)}

        return self._traced_once("finished", augment, lambda batch: finished(dict(batch)))

    def _traced_once(
        self, name: str, augment: Augment | None, function: Callable[..., Any]
    ) -> Callable[..., Any]:
        """Returns what all datasets of these changes share, as it takes long to trace.

        Of a copy for a part of each batch as well, so that it must not look at the size of batches.
        """
        key = (name, bool(self._kept), augment and (str(augment) or augment))
        if key not in self._traced:
            self._traced[key] = tf.function(function, autograph=False)
        return self._traced[key]

    def _read(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns [B] bytes of pictures at positions [B], and [B] whether they are pixels that were kept."""
        found = [self._bytes(i) if i >= 0 else (b"", False) for i in index.tolist()]
        return np.array([data for data, _ in found], object), np.array([decoded for _, decoded in found])

    def _bytes(self, index: int) -> tuple[bytes, bool]:
        which, row = self._kept_in[index]
        if which < 0:
            return self.encoded(index), False
        return self._kept[which].rows(np.array([row])).tobytes(), True

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
