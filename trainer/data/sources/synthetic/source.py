"""Drawn pictures of flowers, for machines that can download no photos.

The class is in the shape alone: petals, hearts, backgrounds and light are drawn from the same
distribution of colours whatever the flower.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import PIL
from PIL import features

from trainer.data.encoded_cache import EncodedStore, Kept
from trainer.data.sources.base import SOURCES, MemorySource
from trainer.data.sources.synthetic.picture import CLASS_NAMES, draw_picture, order_of
from trainer.data.sources.synthetic.workers import draw_all
from trainer.store.provenance import code_digest
from trainer.values import UsageError


@dataclass
class DrawnSource(MemorySource):
    """A Source of pictures that are drawn when first read, or all at once by `load`."""

    encoded: Kept
    seed: int = 0

    def load(self) -> None:
        store, count = self.encoded.store, len(self.ids)
        # Those drawn before are drawn again, and not kept twice: few are, before all are asked for.
        if len(store) < count:
            drawn = draw_all(count, draw=self.encoded.__getitem__, seed=self.seed, name=self.name)
            for index, data in enumerate(drawn):
                store.put(index, data)


@SOURCES.register("synthetic", address="flowers")
def open_synthetic(
    kind: str, *, name: str, num_examples: int, seed: int, store: EncodedStore | None = None
) -> DrawnSource:
    """Drawn flowers, for machines that can download no photos.

    There are `num_examples` JPEGs, sides of 200 to 500 px; picture i depends on (seed, i) alone. Each five
    pictures in a row, counted from the first, show the five classes in some order. A picture is drawn when it
    is first read, and then kept in `store`.

    Raises:
      UsageError: `kind` is not `flowers`.
    """
    if kind != "flowers":
        raise UsageError(f"--source=synthetic:{kind}: only synthetic:flowers can be drawn")
    blocks = range(-(-num_examples // len(CLASS_NAMES)))
    labels = np.array([order_of(seed, block) for block in blocks], np.int64).reshape(-1)[:num_examples]

    def draw(index: int) -> bytes:
        return draw_picture(int(labels[index]), seed=seed, index=index)

    return DrawnSource(
        name=name,
        class_names=CLASS_NAMES,
        ids=[f"flowers-seed{seed}-{i:06d}" for i in range(num_examples)],
        labels=labels,
        encoded=Kept(draw, num_examples, EncodedStore() if store is None else store),
        native_splits={"train": (0, num_examples)},
        stamped=_stamp(seed),
        seed=seed,
    )


def _stamp(seed: int) -> str | None:
    """Returns a digest of all that a picture depends on: the seed, this code, and who fills and encodes."""
    try:
        code = code_digest(
            "trainer.data.sources.synthetic.picture",
            alone=[__name__],
        )
    except OSError:
        return None
    parts = (seed, np.__version__, PIL.__version__, features.version("jpg"), code)
    return hashlib.sha256(" ".join(map(str, parts)).encode()).hexdigest()
