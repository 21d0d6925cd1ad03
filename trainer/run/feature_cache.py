"""What the frozen part of a network makes of the pictures of an experiment: kept, and made when missing."""

import collections
import functools
import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainer import plugins
from trainer.cli.phase_specs import PhaseSpec
from trainer.data.augment import Augment
from trainer.data.features import (
    FeatureBatches,
    compute_features,
    digest_pictures,
    feature_key,
    in_pieces,
    pieces_of,
)
from trainer.data.pipeline import Rows
from trainer.loop.phases import Phase
from trainer.model.backbones import libraries_of
from trainer.model.cuts import Cut
from trainer.run.experiment import Experiment
from trainer.run.team import team
from trainer.runtime import rounds_products, share_of
from trainer.store.array_file import array_bytes, file_bytes
from trainer.store.feature_store import FeatureCacheError, FeatureStore
from trainer.store.places import cache_root

_log = logging.getLogger("trainer")
Watch = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""(what is being done, of how many) -> a context that is told how many more are done."""


@dataclass(frozen=True)
class Network:
    """What makes features of pictures."""

    cut: Cut
    """Where."""
    below: Callable[[Any], Any]
    """The function up to there, on all devices, in `precision`."""
    precision: str
    """Its arithmetic."""
    weights: str
    """A digest of the cut's variables as they are."""
    engine: str = ""
    """What runs it, with its version, where that is not TensorFlow."""


@dataclass(frozen=True)
class _View:
    """Pictures of a split as they are, or as an epoch changes them."""

    split: str
    indices: np.ndarray
    network: Network
    augment: Augment | None = None
    epoch: int = 0
    seed: int = 0

    @property
    def what(self) -> str:
        return f"features of {self.split}" + (f", view {self.epoch + 1}" if self.augment else "")


class FeatureCache:
    """Batches of features of the splits of an experiment."""

    def __init__(self, experiment: Experiment, *, watch: Watch, between_batches: Callable[[], None]):
        """Notes what to do; `between_batches` may raise to end the work, of which nothing is kept then.

        It is asked as well while another process does that work, but not of several workers: there, who waits
        does so to the end, whether another worker copies what all have computed, or a run of one process
        computes the same.
        """
        self._experiment, self._watch, self._between_batches = experiment, watch, between_batches
        run, speed = experiment.config.run, experiment.config.speed
        self._store = FeatureStore(
            feature_folder(run.cache_dir),
            limit_bytes=int(speed.cache_limit_gb * 1e9),
            # Several workers ask each other, at the same batches: one of them cannot ask while it waits.
            while_waiting=between_batches if team().count == 1 else None,
        )

    def batches(self, split: str, spec: PhaseSpec, network: Network) -> FeatureBatches | None:
        """Returns what a network makes of a split; None where it cannot be kept.

        Args:
          split: train, validation or test.
          spec: the phase; training pictures are augmented as it says, one view of them after another.
          network: up to the cut.

        Raises:
          FeatureCacheError: it cannot be kept, and --feature_cache=require.
        """
        experiment, config = self._experiment, self._experiment.config
        try:
            kept = [self._rows(view) for view in self._views(split, spec, network)]
        except FeatureCacheError as error:
            if config.speed.feature_cache == "require":
                raise
            _log.warning("features:    %s. Without them, the network runs anew in each epoch", error)
            return None
        return FeatureBatches(
            kept,
            indices=kept_together(experiment, split),
            labels=experiment.source.labels,
            batch_size=config.plan.batch_size,
            seed=config.run.seed,
            memory_budget_bytes=config.data.memory_budget_mb * 2**20,
            chances=experiment.chances,
        )

    def compute_shard(
        self, split: str, spec: PhaseSpec, network: Network, *, number: int, count: int
    ) -> tuple[int, int]:
        """Computes every `count`-th piece of what `batches` gives, and keeps it for whoever asks for all.

        Args:
          split: as of `batches`.
          spec: as of `batches`.
          network: as of `batches`.
          number: from 1; the piece to begin with.
          count: how many processes share the work.

        Returns:
          How many pictures it is of, and how many of these were there already.

        Raises:
          FeatureCacheError: they cannot be kept.
        """
        done = known = 0
        for view in self._views(split, spec, network):
            key = self._key(view)
            pieces = pieces_of(len(view.indices))[number - 1 :: count]
            left = [piece for piece in pieces if self._find(view, key, piece) is None]
            numbers = [piece.stop - piece.start for piece in pieces]
            done, known = done + sum(numbers), known + sum(numbers) - sum(p.stop - p.start for p in left)
            if not left:
                continue
            self._store.mark(key)
            with self._watch(view.what, sum(piece.stop - piece.start for piece in left)) as progress:
                for piece, rows in self._compute_pieces(view, left, progress):
                    at = view.indices[piece]
                    self._store.get(
                        self._piece_key(key, at),
                        num_rows=len(at),
                        shape=network.cut.shape,
                        compute=functools.partial(iter, rows),
                        describe=f"{self._describe(view)}, pictures {piece.start} to {piece.stop}",
                    )
        return done, known

    def require_room(self, splits: Iterable[str], spec: PhaseSpec, network: Network) -> None:
        """Makes sure that all that `compute_shard` computes of splits, whoever does, can be kept together.

        Raises:
          FeatureCacheError: it cannot.
        """
        views = self._apart(splits, spec, network)
        row_bytes = array_bytes(network.cut.shape)
        num_bytes = row_bytes * sum(len(view.indices) for view in views)
        missing_bytes = row_bytes * sum(self._missing_in_pieces(view, self._key(view)) for view in views)
        told = f"features of {', '.join(dict.fromkeys(view.split for view in views))}"
        self._store.require_room(num_bytes, missing_bytes=missing_bytes, describe=told)
        if (most := int(1e9 * self._experiment.config.speed.cache_limit_gb)) < 2 * num_bytes:
            _log.warning(
                "features:    %s have %s bytes, and train keeps them once more as a whole: with "
                "--cache_limit_gb=%g, some are computed again", told, f"{num_bytes:,}", most / 1e9,
            )  # fmt: skip

    def missing(self, splits: Iterable[str], spec: PhaseSpec, network: Network) -> int:
        """Returns how many pictures `batches` sends through a network for splits, each view for itself."""
        return sum(map(self._missing, self._apart(splits, spec, network)))

    def _apart(self, splits: Iterable[str], spec: PhaseSpec, network: Network) -> list[_View]:
        """Returns the views of splits, each once: of folds, all splits are kept together."""
        views = [view for split in splits for view in self._views(split, spec, network)]
        return [*{(view.split, str(view.augment), view.epoch): view for view in views}.values()]

    def _missing(self, view: _View) -> int:
        key = self._key(view)
        return 0 if self._store.has(key) else self._missing_in_pieces(view, key)

    def _missing_in_pieces(self, view: _View, key: Mapping[str, Any]) -> int:
        if not self._store.is_marked(key):
            return len(view.indices)
        pieces = [piece for piece in pieces_of(len(view.indices)) if not self._has_piece(view, key, piece)]
        return sum(piece.stop - piece.start for piece in pieces)

    def _views(self, split: str, spec: PhaseSpec, network: Network) -> list[_View]:
        config = self._experiment.config
        augment = self._experiment.augment(spec) if split == "train" else None
        told = "all folds" if config.data.folds else split
        indices = kept_together(self._experiment, split)
        if not augment:
            return [_View(told, indices, network)]
        return [
            _View(told, indices, network, augment, number, config.run.seed)
            for number in range(config.speed.feature_views)
        ] or [_View(told, indices, network)]

    def _compute(self, view: _View, indices: np.ndarray, done: Callable[[int], None]) -> Iterator[np.ndarray]:
        experiment = self._experiment
        experiment.source.load()
        changes: dict[str, Any] = {"augment": view.augment, "epoch": view.epoch} if view.augment else {}
        pipeline, (index, count) = experiment.pipeline, share_of(experiment.strategy)
        pictures = (pipeline if count == 1 else pipeline.of_worker(index, count)).once(indices, **changes)
        for rows in compute_features(pictures, view.network.below, strategy=experiment.strategy, done=done):
            yield rows
            self._between_batches()

    def _compute_pieces(
        self, view: _View, pieces: Sequence[slice], done: Callable[[int], None]
    ) -> Iterator[tuple[slice, Iterator[np.ndarray]]]:
        """Yields pieces and their rows, which are computed as they are taken.

        Batches go over the ends of pieces: each for itself would be filled up to whole batches.
        """
        if not pieces:
            return
        rows = self._compute(view, np.concatenate([view.indices[piece] for piece in pieces]), done)
        yield from zip(pieces, in_pieces(rows, [piece.stop - piece.start for piece in pieces]), strict=True)

    def _rows(self, view: _View) -> Rows:
        key = self._key(view)

        def compute() -> Iterator[np.ndarray]:
            # Several workers go through the same batches, whatever each of them has.
            if not self._store.is_marked(key) or team().count > 1:
                with self._watch(view.what, len(view.indices)) as done:
                    yield from self._compute(view, view.indices, done)
                return
            # What others have computed is read, what they have not is computed.
            with self._watch(view.what, len(view.indices)) as done:
                pieces = pieces_of(len(view.indices))
                left = [piece for piece in pieces if not self._has_piece(view, key, piece)]
                computed = self._compute_pieces(view, left, done)
                for piece in pieces:
                    if piece in left:
                        yield from next(computed)[1]
                    elif (found := self._find(view, key, piece)) is not None:
                        yield found.whole()
                    else:
                        # Damaged, or removed meanwhile.
                        yield from self._compute(view, view.indices[piece], done)
                collections.deque(computed, maxlen=0)

        size: dict[str, Any] = {"num_rows": len(view.indices), "shape": view.network.cut.shape}
        if team().count == 1:
            return self._store.get(key, **size, compute=compute, describe=self._describe(view))
        return self._of_all(key, compute, describe=self._describe(view), **size)

    def _of_all(
        self, key: dict[str, Any], compute: Callable[[], Iterator[np.ndarray]], *, describe: str, **size: Any
    ) -> Rows:
        """Returns features that several workers compute together, where not all have them.

        Never within a lock of the store: who waits for it could not take part.
        """
        self._store.note_use(key)
        found = self._store.find(key, **size)
        if not all(team().exchange("features", found is not None)):
            # The same for all.
            num_bytes = file_bytes((size["num_rows"], *size["shape"]))
            self._store.require_limit(num_bytes, describe=describe)
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

    def _find(self, view: _View, key: Mapping[str, Any], piece: slice) -> Rows | None:
        at = view.indices[piece]
        return self._store.find(self._piece_key(key, at), num_rows=len(at), shape=view.network.cut.shape)

    def _has_piece(self, view: _View, key: Mapping[str, Any], piece: slice) -> bool:
        return self._store.has(self._piece_key(key, view.indices[piece]))

    def _piece_key(self, key: Mapping[str, Any], indices: np.ndarray) -> dict[str, Any]:
        digest = digest_pictures(self._experiment.source, self._experiment.scan, indices)
        return {**key, "pictures": digest}

    def _describe(self, view: _View) -> str:
        experiment, network = self._experiment, view.network
        where = (
            f"{experiment.backbone.name} to {network.cut.name}, {network.precision} {network.engine}".rstrip()
        )
        return f"{experiment.config.data.source} {view.split}, {where}"

    def _key(self, view: _View) -> dict[str, Any]:
        experiment, network = self._experiment, view.network
        # What is drawn for a picture goes by its position in the source.
        places = hashlib.sha256(view.indices.astype("<i8").tobytes()).hexdigest()
        is_rounded = network.precision == "float32" and not network.engine and rounds_products()
        changes = {"augment": str(view.augment), "seed": view.seed, "epoch": view.epoch, "places": places}
        return feature_key(
            source=experiment.source,
            scan=experiment.scan,
            indices=view.indices,
            contract=experiment.backbone.contract,
            decoding=experiment.config.data.decode,
            network={
                "function": experiment.backbone.fingerprint,
                "weights": network.weights,
                "cut": network.cut.name,
                "precision": network.precision,
                **({"engine": network.engine} if network.engine else {}),
                # Of what a GPU computes alone: other keys stay.
                **({"products": "tensor_float_32"} if is_rounded else {}),
                # Most networks have none: what is kept of theirs stays.
                **libraries_of(experiment.backbone),
            },
            view=changes if view.augment else {},
            plugins=plugins.sources("backbone", *(["augmentation"] if view.augment else [])),
        )


def keeps(experiment: Experiment, spec: PhaseSpec, split: str) -> bool:
    """Returns whether a phase keeps, of a split's pictures as they are, what is below its cut."""
    is_changed = split == "train" and experiment.augment(spec) is not None
    return cut_of_features(experiment, spec) is not None and not is_changed


def num_views(experiment: Experiment, spec: PhaseSpec, split: str) -> int:
    """Returns how many views of each picture of a split a phase keeps, where it keeps any."""
    is_changed = split == "train" and experiment.augment(spec) is not None
    return experiment.config.speed.feature_views if is_changed else 1


def kept_pictures(experiment: Experiment, phases: Sequence[Phase]) -> int:
    """Returns how many pictures go through a network for what phases keep, each view for itself.

    What an earlier run has left counts, too. The first phase keeps test as well, for what the report is
    compared with; of the others, only the last one does.
    """
    found: dict[tuple[str, str, str], int] = {}
    for phase in phases:
        if (cut := cut_of_features(experiment, phase.spec)) is None:
            continue
        for split in experiment.splits.indices:
            if split == "test" and phase not in (phases[0], phases[-1]):
                continue
            views = num_views(experiment, phase.spec, split)
            changes = "" if keeps(experiment, phase.spec, split) else str(phase.spec.augment)
            told = "all folds" if experiment.config.data.folds else split
            found[cut.name, told, changes] = views * len(kept_together(experiment, split))
    return sum(found.values())


def kept_together(experiment: Experiment, split: str) -> np.ndarray:
    """Returns the pictures that are kept together: of folds all, as each is in train in most of them."""
    splits = experiment.splits.indices
    return np.sort(np.concatenate([*splits.values()])) if experiment.config.data.folds else splits[split]


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
