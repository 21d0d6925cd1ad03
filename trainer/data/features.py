"""What a frozen network makes of pictures, computed once, and served as batches like pictures are.

`feature_store` keeps the numbers on disk; here they are made and read back.
"""

import collections
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.data.augment import Augment
from trainer.data.inspect.scan import Scan
from trainer.data.pipeline import Batch, OrderedBatches, Rows, plain, stand_ins
from trainer.data.sources import Source
from trainer.runtime import divided, own_rows, rows_of_all
from trainer.store.provenance import code_digest, versions
from trainer.values import Contract, of_one_device

# All that is on the way from encoded bytes to features.
COMPUTING = (
    "trainer.data.features",
    "trainer.data.pipeline",
    "trainer.model.backbones",
    "trainer.precision.rewriter",
    "trainer.precision.openvino",
)
LEAST_ROWS, MOST_PIECES = 64, 1024
"""Of the pieces that a split is divided into where machines share the work."""
# Those that only put these together. They import most of the rest.
WIRING = (
    "trainer.run.engines", "trainer.run.experiment", "trainer.run.feature_cache", "trainer.run.picture_cache",
    "trainer.run.stages",
)  # fmt: skip


class FeatureBatches(OrderedBatches):
    """Batches whose "image" is [B, *shape]: rows of stored features.

    The loop cannot tell them from pictures. Epoch e reads view e modulo the number of views.
    """

    def __init__(
        self,
        views: Sequence[Rows],
        *,
        indices: np.ndarray,
        labels: np.ndarray,
        batch_size: int,
        seed: int,
        memory_budget_bytes: int,
        chances: np.ndarray | None = None,
    ):
        """Opens the rows.

        Args:
          views: one array [n, *shape] for each view.
          indices: [n] positions in the source that the rows are of.
          labels: [N, ...] of the whole source.
          batch_size: B.
          seed: of the order.
          memory_budget_bytes: views that are smaller together are held in memory, others are read from
            their files, batch by batch.
          chances: see OrderedBatches.
        """
        super().__init__(batch_size=batch_size, seed=seed, chances=chances)
        self._views = views
        self._labels = tf.constant(labels)
        rows = np.zeros(len(labels), np.int64)
        rows[indices] = np.arange(len(indices))
        self._rows = tf.constant(rows)
        self._shape = list(views[0].shape[1:])
        in_memory = sum(view.nbytes for view in views) <= memory_budget_bytes
        self._held = [tf.constant(view.whole()) for view in views] if in_memory else None

    def load(self, steps: tf.data.Dataset, augment: Augment | None) -> tf.data.Dataset:
        """See OrderedBatches. What changes the pictures is in the views already."""

        @plain
        def features(index: tf.Tensor, epoch: tf.Tensor, *copy: tf.Tensor) -> Batch:
            real = index >= 0
            at = stand_ins(index, real)
            labels = tf.gather(self._labels, at)
            of_labels = [-1, *[1] * (len(labels.shape) - 1)]
            return {
                "image": self._take(tf.gather(self._rows, at), epoch % len(self._views)),
                "label": tf.where(tf.reshape(real, of_labels), labels, tf.zeros_like(labels)),
                "mask": tf.cast(real, tf.float32),
                "id": index,
            }

        return steps.map(features, num_parallel_calls=2, deterministic=True)

    def _take(self, rows: tf.Tensor, view: tf.Tensor) -> tf.Tensor:
        if self._held is not None:
            takes = [lambda held=held: tf.gather(held, rows) for held in self._held]
            return takes[0]() if len(takes) == 1 else tf.switch_case(tf.cast(view, tf.int32), takes)

        def read(rows: np.ndarray, view: np.ndarray) -> np.ndarray:
            return self._views[int(view)].rows(rows)

        found = tf.numpy_function(read, [rows, view], tf.float32, stateful=False)
        return tf.ensure_shape(found, [self.batch_size, *self._shape])


def pieces_of(count: int) -> list[slice]:
    """Returns the pieces of so many rows, the same ones whoever divides them, and by however many."""
    size = max(LEAST_ROWS, -(-count // MOST_PIECES))
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def in_pieces(blocks: Iterator[np.ndarray], sizes: Sequence[int]) -> Iterator[Iterator[np.ndarray]]:
    """Yields, for each size, blocks [b, ...] of so many rows; what is not taken of one is passed over."""
    held = np.empty(0)

    def take(size: int) -> Iterator[np.ndarray]:
        nonlocal held
        while size:
            held = held if len(held) else next(blocks)
            part, held = held[:size], held[size:]
            size -= len(part)
            yield part

    for size in sizes:
        piece = take(size)
        yield piece
        collections.deque(piece, maxlen=0)
    collections.deque(blocks, maxlen=0)


def compute_features(
    batches: tf.data.Dataset,
    below: Callable[[Any], Any],
    *,
    strategy: tf.distribute.Strategy,
    done: Callable[[int], None] = lambda count: None,
) -> Iterator[np.ndarray]:
    """Yields what `below` makes of the pictures of a dataset, [b, *shape] a batch, without the padding.

    Args:
      batches: every picture once; of several workers, this one's rows of each batch.
      below: images [B, H, W, 3] -> [B, *shape] float32, each distributed over the devices.
      strategy: whose devices share each batch. Of several workers, each gets the rows of all.
      done: told how many pictures each batch had.
    """
    for batch in divided(strategy, batches):
        rows = rows_of_all(strategy, own_rows(strategy, below(batch["image"])))
        real = rows_of_all(strategy, own_rows(strategy, batch["mask"])) > 0
        yield rows[real]
        done(int(real.sum()))


def feature_key(
    *,
    source: Source,
    scan: Scan,
    indices: np.ndarray,
    contract: Contract,
    decoding: str,
    network: dict[str, str],
    view: dict[str, Any],
    plugins: Sequence[bytes] = (),
) -> dict[str, Any]:
    """Returns everything that features depend on, so that a change of any of it is another entry.

    Args:
      source: its class names and labels are part of the key, though features have none.
      scan: digest and orientation of each picture.
      indices: [n] the pictures, in the order of the rows.
      contract: what the pictures are made into.
      decoding: exact or scaled.
      network: digests of the function and of the weights up to the cut, its name, and the arithmetic.
      view: augmentation, seed, epoch and positions of an augmented view; empty for plain pictures.
      plugins: source of what comes from outside and computes them.
    """
    return {
        "network": network,
        "contract": dataclasses.asdict(contract),
        "decoding": decoding,
        "pictures": digest_pictures(source, scan, indices),
        "view": view,
        "code": code_digest(*COMPUTING, alone=WIRING, plugins=plugins),
        # Kernels, decoders and resizing may round differently in another version.
        "versions": {**versions(), "tensorflow": tf.__version__},
    }


def digest_pictures(source: Source, scan: Scan, indices: np.ndarray) -> str:
    """Returns a SHA-256 over names, labels, bytes and orientation of the pictures at positions [n]."""
    pictures = hashlib.sha256(json.dumps(source.class_names).encode())
    for at in indices.tolist():
        row = (source.ids[at], source.labels[at].tolist(), scan.digests[at], int(scan.orientations[at]))
        pictures.update(json.dumps(row).encode())
    return pictures.hexdigest()


def digest_variables(variables: dict[str, tf.Variable]) -> str:
    """Returns a SHA-256 over names, shapes and values."""
    digest = hashlib.sha256()
    for name, variable in variables.items():
        value = np.ascontiguousarray(of_one_device(variable).numpy())
        digest.update(f"{name} {value.dtype} {variable.shape}\n".encode())
        # NumPy hands out no buffer of bfloat16, and pointers as that of strings.
        is_text = value.dtype.hasobject
        digest.update(repr(value.tolist()).encode() if is_text else value.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
