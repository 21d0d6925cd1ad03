"""Probes that were fitted before: the same features and labels give the same one, and a fit takes seconds."""

import hashlib
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from trainer import plugins
from trainer.model.fits import STRENGTHS, Fitted, Labelled, Probe, fit_probe, most_pictures
from trainer.store.feature_store import FeatureCacheError, FeatureStore
from trainer.store.places import cache_root
from trainer.store.provenance import code_digest
from trainer.tasks import Task

LIMIT_BYTES = 200_000_000
"""Of all that are kept; one of 2,048 features and five classes takes 41 kB."""


def probe_folder(cache_dir: str) -> Path:
    """Returns the folder of kept probes."""
    return cache_root(cache_dir) / "probes"


def find_or_fit(
    probe: Probe, train: Labelled, validation: Labelled, *, num_classes: int, task: Task, cache_dir: str
) -> Fitted:
    """Does what `fit_probe` does, or reads what it has come to before; to the bit.

    Args:
      probe: see `fit_probe`.
      train: see there.
      validation: see there.
      num_classes: K.
      task: see there.
      cache_dir: the value of --cache_dir.

    Raises:
      UsageError: see there.
    """

    def fit() -> Fitted:
        # scikit-learn looks into modules whose import has begun, and `scoring.import_early` may be at one.
        import trainer.report.writer  # noqa: F401

        return fit_probe(probe, train, validation, num_classes=num_classes, task=task)

    width = train.features.shape[1]
    # Of what was chosen among them, the place is kept; 0 is where there was nothing to choose.
    strengths = [*([probe.strength] if probe.strength else STRENGTHS), 0.0]

    def compute() -> Iterator[np.ndarray]:
        found = fit()
        chosen = np.full([1, num_classes], strengths.index(found.strength), np.float32)
        yield np.concatenate([found.kernel, found.bias[None], chosen])

    store = FeatureStore(probe_folder(cache_dir), limit_bytes=LIMIT_BYTES, name="cache of probes")
    try:
        kept = store.get(
            _key(probe, train, validation, num_classes=num_classes, task=task),
            num_rows=width + 2,
            shape=(num_classes,),
            compute=compute,
            describe=f"linear probe of {len(train.labels):,} pictures, {width} features",
        ).whole()
    except FeatureCacheError:
        # A folder that takes nothing costs the time to fit, and no more.
        return fit()
    return Fitted(
        kernel=kept[:width],
        bias=kept[width],
        strength=strengths[int(kept[-1, 0])],
        num_fitted=len(train.spread(most_pictures(num_classes, width)).labels),
    )


def _key(
    probe: Probe, train: Labelled, validation: Labelled, *, num_classes: int, task: Task
) -> dict[str, Any]:
    """Returns all that a fit depends on."""
    return {
        "probe": {"strength": probe.strength, "classes": num_classes},
        "train": _digest([train.features, train.labels]),
        "validation": _digest([validation.features, validation.labels]),
        # It says what the loss is, by which a strength is chosen, and may go by what it was made with.
        "task": f"{type(task).__module__}.{type(task).__qualname__} {getattr(task, '__dict__', {})}",
        "code": code_digest("trainer.model.fits", alone=[__name__], plugins=plugins.sources("task")),
        "versions": {name: version(name) for name in ("numpy", "scipy", "scikit-learn")},
    }


def _digest(arrays: Sequence[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
