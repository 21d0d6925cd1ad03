"""Decoded pictures of an experiment, kept on disk where a run goes through them more than once.

What is kept is what the network is given before anything changes it: float32, as bytes could not hold to the
last bit what resizing makes. A photo of 12 megapixels takes 80 ms to decode and 4 to 18 ms to become 160 px
wide; the scan before training decodes JPEGs at an eighth, in 20 ms, and keeps nothing.
"""

import logging
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.data.features import feature_key
from trainer.loop.callbacks import Every
from trainer.run.experiment import Experiment
from trainer.run.feature_cache import cut_of_features, kept_together, num_views
from trainer.run.stages import Stages
from trainer.run.team import team
from trainer.store.array_file import array_bytes
from trainer.store.feature_store import FeatureCacheError, FeatureStore, StoredFeatures
from trainer.store.files import told_size
from trainer.store.places import cache_root
from trainer.values import Duration, UsageError

_log = logging.getLogger("trainer")
SAMPLE = 8
# Of a slow disk. Fast ones take ten times as much, and pictures just written are still in memory.
DISK_BYTES_A_SEC = 200e6
# Of a whole run: for less, nobody wants files.
LEAST_SAVED_SECS = 5.0


def keep_pictures(stages: Stages) -> None:
    """Keeps the pictures of train and validation where the rest of a run gets faster by it.

    Raises:
      FeatureCacheError: they cannot be kept, and --picture_cache=require.
      UsageError: no picture is needed twice, and --picture_cache=require.
    """
    experiment = stages.experiment
    asked = experiment.config.speed.picture_cache
    if asked == "off":
        return
    if team().count > 1:
        # Each would decode all of them for itself.
        if asked == "require":
            raise UsageError("--picture_cache=require: several workers do not keep pictures, so leave it out")
        return
    times = {split: passes(stages, split) for split in ("train", "validation")}
    times = {split: count for split, count in times.items() if count > 1}
    # Of a run that goes on, less is left than it began with.
    if not times and asked == "require" and not stages.state.step:
        raise UsageError("--picture_cache=require: this run goes through no picture more than once")
    missing = {split: count for split, count in times.items() if not _take(experiment, split)}
    if not missing or (asked == "auto" and not _is_worth_it(experiment, missing)):
        return
    for split in missing:
        try:
            _keep(stages, split)
        except FeatureCacheError as error:
            if asked == "require":
                raise
            _log.warning("pictures:    %s. Without it, they are decoded anew in each epoch", error)
            return


def passes(stages: Stages, split: str) -> int:
    """Returns how often what is left of a run goes through the pictures of a split.

    Through those of validation in each evaluation, through the others in each epoch, and through those of a
    phase that computes features once for each of their views.
    """
    experiment, step, config = stages.experiment, stages.state.step, stages.experiment.config
    sizes = {
        "num_examples": len(experiment.splits.indices["train"]),
        "batch_size": config.plan.batch_size,
    }
    evaluations = Every(Duration.parse(config.run.evaluate_every), experiment.plan, **sizes)
    per_epoch = -(-sizes["num_examples"] // sizes["batch_size"])
    total = 0
    for phase in experiment.plan.phases:
        steps_left = phase.stop_step - max(phase.start_step, step)
        if steps_left <= 0 or not len(experiment.splits.indices.get(split, ())):
            continue
        if cut_of_features(experiment, phase.spec):
            total += num_views(experiment, phase.spec, split)
        elif split == "validation":
            total += evaluations.count(max(phase.start_step, step), phase.stop_step)
        else:
            total += -(-steps_left // per_epoch)
    return total


def _is_worth_it(experiment: Experiment, times: Mapping[str, int]) -> bool:
    """Measures some pictures: whether they are had sooner with what writing them costs than without.

    Args:
      experiment: with the pictures.
      times: how often those of a split are needed, twice or oftener.
    """
    again = sum((count - 1) * len(experiment.splits.indices[split]) for split, count in times.items())
    num_pictures = sum(len(experiment.splits.indices[split]) for split in times)
    row_bytes = array_bytes(experiment.backbone.contract.image_shape)
    decode_secs, read_secs = _decode_secs(experiment), _read_secs(row_bytes)
    saved_secs = again * (decode_secs - read_secs) / (os.cpu_count() or 1)
    is_worth_it = saved_secs - num_pictures * row_bytes / DISK_BYTES_A_SEC >= LEAST_SAVED_SECS
    if is_worth_it:
        _log.info(
            "pictures:    kept as they are after resizing: a picture takes %.0f ms, and is needed %d times",
            1e3 * decode_secs, max(times.values()),
        )  # fmt: skip
    return is_worth_it


def _decode_secs(experiment: Experiment) -> float:
    """Returns how long a picture takes from its bytes to the network's size, in one thread: a median."""
    pipeline, indices = experiment.pipeline, experiment.splits.indices["train"]
    taken = []
    chosen = indices[np.linspace(0, len(indices) - 1, min(SAMPLE, len(indices))).astype(int)].tolist()
    # The first one traces.
    for at in [chosen[0], *chosen]:
        encoded, index = tf.constant(pipeline.encoded(at)), tf.constant(at, tf.int64)
        begun = time.perf_counter()
        pipeline.decode(encoded, index)
        taken.append(time.perf_counter() - begun)
    return statistics.median_low(taken[1:])


def _read_secs(row_bytes: int) -> float:
    """Returns how long it takes until the bytes of a picture, once in memory, are numbers in a graph."""
    kept, taken = np.zeros(row_bytes, np.uint8), []
    for _ in range(SAMPLE):
        begun = time.perf_counter()
        tf.io.decode_raw(tf.constant(kept.tobytes()), tf.float32)
        taken.append(time.perf_counter() - begun)
    return statistics.median_low(taken)


def _take(experiment: Experiment, split: str) -> bool:
    """Takes the pictures of a split where they are kept, and returns whether they are."""
    if (found := _store(experiment).find(**_wanted(experiment, split))) is not None:
        _use(experiment, split, found)
    return found is not None


def _keep(stages: Stages, split: str) -> None:
    """Decodes the pictures of a split and keeps them, unless another process does meanwhile."""
    experiment = stages.experiment
    indices = kept_together(experiment, split)

    def compute() -> Iterator[np.ndarray]:
        experiment.source.load()
        with stages.counted(f"pictures of {split}", len(indices)) as done:
            for pixels in experiment.pipeline.pixels(indices):
                yield pixels
                done(len(pixels))
                stages.between_batches()

    describe = f"{experiment.config.data.source} {split}, {_size(experiment)} px"
    wanted = _wanted(experiment, split)
    store = _store(experiment, while_waiting=stages.between_batches)
    _use(experiment, split, store.get(**wanted, compute=compute, describe=describe))


def _store(experiment: Experiment, *, while_waiting: Callable[[], None] | None = None) -> FeatureStore:
    config = experiment.config
    limit_bytes = int(config.speed.cache_limit_gb * 1e9)
    return FeatureStore(
        picture_folder(config.run.cache_dir),
        limit_bytes=limit_bytes,
        name="picture cache",
        while_waiting=while_waiting,
    )


def _wanted(experiment: Experiment, split: str) -> dict[str, Any]:
    """Returns what the store is asked for."""
    indices, contract = kept_together(experiment, split), experiment.backbone.contract
    key = feature_key(
        source=experiment.source,
        scan=experiment.scan,
        indices=indices,
        contract=contract,
        decoding=experiment.config.data.decode,
        network={},
        view={},
    )
    return {"key": key, "num_rows": len(indices), "shape": contract.image_shape}


def _use(experiment: Experiment, split: str, kept: StoredFeatures) -> None:
    indices = kept_together(experiment, split)
    experiment.pipeline.keep(indices, kept)
    told = f"{len(indices):,} of {split} at {_size(experiment)} px are kept, {told_size(kept.nbytes)}"
    _log.info("pictures:    %s", told)


def _size(experiment: Experiment) -> str:
    contract = experiment.backbone.contract
    return f"{contract.width_px}x{contract.height_px}"


def picture_folder(cache_dir: str) -> Path:
    """Returns the folder of the picture cache."""
    return cache_root(cache_dir) / "pictures"
