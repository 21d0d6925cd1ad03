"""What the frozen part of a network makes of the pictures of an experiment: kept, and made when missing."""

import collections
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from trainer import plugins
from trainer.cli.phase_specs import PhaseSpec
from trainer.data.augment import Augment
from trainer.data.features import FeatureBatches, compute_features, feature_key
from trainer.data.pipeline import Rows
from trainer.model.cuts import Cut
from trainer.run.experiment import Experiment
from trainer.run.team import team
from trainer.runtime import share_of
from trainer.store.feature_store import FeatureCacheError, FeatureStore
from trainer.store.places import cache_root

_log = logging.getLogger("trainer")
Watch = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""(what is being done, of how many) -> a context that is told how many more are done."""


class FeatureCache:
    """Batches of features of the splits of an experiment."""

    def __init__(self, experiment: Experiment, *, watch: Watch, between_batches: Callable[[], None]):
        """Notes what to do; `between_batches` may raise to end the work, of which nothing is kept then."""
        self._experiment, self._watch, self._between_batches = experiment, watch, between_batches
        run, speed = experiment.config.run, experiment.config.speed
        self._store = FeatureStore(feature_folder(run.cache_dir), limit_bytes=int(speed.cache_limit_gb * 1e9))

    def batches(
        self,
        split: str,
        spec: PhaseSpec,
        *,
        cut: Cut,
        below: Callable[[Any], Any],
        precision: str,
        engine: Mapping[str, str],
        weights: str,
    ) -> FeatureBatches | None:
        """Returns what a network below a cut makes of a split; None where it cannot be kept.

        Args:
          split: train, validation or test.
          spec: the phase; training pictures are augmented as it says, one view of them after another.
          cut: where.
          below: the function up to there, on all devices, in `precision`.
          precision: its arithmetic.
          engine: what else its numbers depend on where it is not TensorFlow's; else empty.
          weights: a digest of the cut's variables as they are.

        Raises:
          FeatureCacheError: it cannot be kept, and --feature_cache=require.
        """
        experiment, config = self._experiment, self._experiment.config
        network = {
            "function": experiment.backbone.fingerprint,
            "weights": weights,
            "cut": cut.name,
            "precision": precision,
            **engine,
        }
        augment = experiment.augment(spec) if split == "train" else None
        views = [
            {"augment": str(augment), "seed": config.run.seed, "epoch": number}
            for number in range(config.speed.feature_views if augment else 0)
        ]
        try:
            kept = [self._rows(split, cut, below, network, augment, view) for view in views or [{}]]
        except FeatureCacheError as error:
            if config.speed.feature_cache == "require":
                raise
            _log.warning("features:    %s. Without them, the network runs anew in each epoch", error)
            return None
        return FeatureBatches(
            kept,
            indices=self._positions(split),
            labels=experiment.source.labels,
            batch_size=config.plan.batch_size,
            seed=config.run.seed,
            memory_budget_bytes=config.data.memory_budget_mb * 2**20,
            chances=experiment.chances,
        )

    def _positions(self, split: str) -> np.ndarray:
        """Returns the pictures that are kept together: of folds all, as each is in train in most of them."""
        splits = self._experiment.splits.indices
        return (
            np.sort(np.concatenate([*splits.values()]))
            if self._experiment.config.data.folds
            else splits[split]
        )

    def _rows(
        self,
        split: str,
        cut: Cut,
        below: Callable[..., Any],
        network: dict[str, str],
        augment: Augment | None,
        view: dict[str, Any],
    ) -> Rows:
        experiment, config = self._experiment, self._experiment.config
        indices = self._positions(split)
        split = "all folds" if config.data.folds else split
        what = f"features of {split}" + (f", view {view['epoch'] + 1}" if view else "")

        def compute() -> Iterator[np.ndarray]:
            experiment.source.load()
            changes = {"augment": augment, "epoch": view["epoch"]} if view else {}
            pipeline, (index, count) = experiment.pipeline, share_of(experiment.strategy)
            pipeline = pipeline if count == 1 else pipeline.of_worker(index, count)
            pictures = pipeline.once(indices, **changes)
            with self._watch(what, len(indices)) as done:
                for rows in compute_features(pictures, below, strategy=experiment.strategy, done=done):
                    yield rows
                    self._between_batches()

        key = feature_key(
            source=experiment.source,
            scan=experiment.scan,
            indices=indices,
            contract=experiment.backbone.contract,
            decoding=config.data.decode,
            network=network,
            view=view,
            plugins=plugins.sources("backbone", *(["augmentation"] if view else [])),
        )
        describe = (
            f"{config.data.source} {split}, {experiment.backbone.name} to {cut.name}, "
            f"{' '.join([network['precision'], network.get('engine', '')]).strip()}"
        )
        size: dict[str, Any] = {"num_rows": len(indices), "shape": cut.shape}
        if team().count == 1:
            return self._store.get(key, **size, compute=compute, describe=describe)
        return self._of_all(key, compute, describe=describe, **size)

    def _of_all(
        self, key: dict[str, Any], compute: Callable[[], Iterator[np.ndarray]], *, describe: str, **size: Any
    ) -> Rows:
        """Returns features that several workers compute together, where not all have them.

        Never within a lock of the store: who waits for it could not take part.
        """
        found = self._store.find(key, **size)
        if not all(team().exchange("features", found is not None)):
            found, why = None, ""
            rows = compute()
            try:
                with self._store.scratch(rows) as again:
                    found = self._store.get(key, **size, compute=again, describe=describe)
            except FeatureCacheError as error:
                why = str(error)
                # The others go on to the end.
                collections.deque(rows, maxlen=0)
            # All have them or none: without them, the network runs in every step.
            if whys := [text for text in team().exchange("features kept", why) if text]:
                raise FeatureCacheError(whys[0])
        assert found is not None
        return found


def feature_folder(cache_dir: str) -> Path:
    """Returns the folder of the feature cache."""
    return cache_root(cache_dir) / "features"


def cut_of_features(experiment: Experiment, spec: PhaseSpec) -> Cut | None:
    """Returns where in the network the features are that a phase computes once; None: it computes none."""
    if experiment.config.speed.feature_cache == "off" or why_uncached(experiment, spec):
        return None
    return experiment.cut(spec)


def why_uncached(experiment: Experiment, spec: PhaseSpec) -> str:
    """Returns why a phase cannot use the feature cache; empty if it can."""
    if spec.bn == "batch":
        return f"phase {spec.name} uses the batch's BatchNorm statistics, so the network is never constant"
    if experiment.cut(spec) is None:
        return f"phase {spec.name} {experiment.backbone.why_no_cut(experiment.trained_in_backbone(spec))}"
    augment = experiment.augment(spec)
    if augment and augment.mixes:
        return f"phase {spec.name} mixes pictures of a batch ({spec.augment}), so nothing of one can be kept"
    if augment and not experiment.config.speed.feature_views:
        return (
            f"phase {spec.name} augments its pictures, so nothing is computed once; --feature_views=K keeps "
            "K augmented views of each"
        )
    return ""
