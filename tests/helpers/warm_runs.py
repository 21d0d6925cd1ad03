"""The program many times over, at the price of the disk: what is costly and leaves no trace is kept.

A continuation of a killed run opens and restores everything anew, as a new process does, except for what it
would only compute once more from the same options: the network, traced functions, pictures of figures. All
variables are set back to what they began with.
"""

import contextlib
import functools
import os
import pickle
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from trainer.commands import train
from trainer.data.features import FeatureBatches
from trainer.data.pipeline import OrderedBatches
from trainer.loop import state as state_room
from trainer.record import checkpoints
from trainer.report import curves, figures, writer
from trainer.run import session
from trainer.run import stages as stages_room

DRAWN = (
    "picture_grid", "confusion_figure", "learning_curves", "reliability_figure", "roc_figure",
    "per_class_figure",
)  # fmt: skip


class Warm:
    """Keeps what runs of the same options share."""

    def __init__(self) -> None:
        self._kept: dict[Hashable, Any] = {}
        self._initial: dict[int, Any] = {}

    @contextlib.contextmanager
    def runs(self) -> Iterator[None]:
        """Within the block, runs take what is kept."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(train, "Experiment", functools.partial(self._experiment, train.Experiment))
            patch.setattr(session, "TrainState", functools.partial(self._state, session.TrainState))
            optimizer = functools.partial(self._optimizer, state_room.make_optimizer)
            patch.setattr(state_room, "make_optimizer", optimizer)
            patch.setattr(state_room, "Shadows", functools.partial(self._shadows, state_room.Shadows))
            patch.setattr(stages_room, "Stage", functools.partial(self._stage, stages_room.Stage))
            patch.setattr(stages_room, "Evaluator", functools.partial(self._evaluator, stages_room.Evaluator))
            for name in ("training", "once"):
                patch.setattr(OrderedBatches, name, self._dataset(name, getattr(OrderedBatches, name)))
            for room in (figures, curves, writer):
                for name in DRAWN:
                    if hasattr(room, name):
                        patch.setattr(room, name, self._drawn(name, getattr(room, name)))
            patch.setattr(
                checkpoints, "write_values", functools.partial(self._written, checkpoints.write_values)
            )
            # No power fails here.
            patch.setattr(os, "fsync", lambda handle: None)
            yield

    def _get(self, key: Hashable, make: Callable[[], Any]) -> tuple[Any, bool]:
        """Returns what is kept, made if need be, and whether it is new."""
        is_new = key not in self._kept
        if is_new:
            self._kept[key] = make()
        return self._kept[key], is_new

    def _begin_again(self, variables: Iterable[tf.Variable]) -> None:
        for variable in variables:
            # A copy: TensorFlow may hand out its own memory.
            _, value = self._initial.setdefault(id(variable), (variable, np.array(variable.numpy())))
            variable.assign(value)

    def _experiment(self, make: Callable, config: Any, *, pictures_only: bool = False, **how: Any) -> Any:
        if pictures_only:
            return make(config, pictures_only=True)
        experiment, is_new = self._get("experiment", lambda: make(config, **how))
        self._begin_again(experiment.classifier.named_variables.values())
        if not is_new:
            experiment.config = config
            experiment.open_pictures()
        return experiment

    def _state(self, make: Callable, classifier: Any, plan: Any, **how: Any) -> Any:
        state, is_new = self._get("state", lambda: make(classifier, plan, **how))
        if is_new:
            self._state_variables = [*state.unfit.variables(), *_without_model(state)]
        self._begin_again(self._state_variables)
        state.stopwatch = state_room.Stopwatch()
        state.jump(0)
        return state

    def _optimizer(self, make: Callable, phase: Any, variables: Any, **how: Any) -> Any:
        optimizer, _ = self._get(("optimizer", phase.index), lambda: make(phase, variables, **how))
        self._begin_again(optimizer.variables)
        return optimizer

    def _shadows(self, make: Callable, average: Any, variables: Any) -> Any:
        shadows, is_new = self._get(("shadows", tuple(variables)), lambda: make(average, variables))
        if not is_new:
            shadows.start()
        return shadows

    def _stage(self, make: Callable, stages: Any, phase: Any) -> Any:
        # Which batches are left out is part of what is traced.
        key = ("stage", phase.index, tuple(stages.left_out))
        stage, is_new = self._get(key, lambda: make(stages, phase))
        if not is_new:
            stage._all, stage._once, stage._features = stages, {}, {}
            stage.__dict__.pop("_weights", None)
            stage.precision = stage.decide_precision()
        return stage

    def _evaluator(self, make: Callable, classifier: Any, *, cut: Any, **how: Any) -> Any:
        key = ("evaluator", cut.name if cut else "")
        return self._get(key, lambda: make(classifier, cut=cut, **how))[0]

    def _dataset(self, name: str, make: Callable) -> Callable:
        def read(batches: OrderedBatches, indices: Any, how: Any) -> tf.data.Dataset:
            found = list(make(batches, indices, **how))
            return _plain({part: np.stack([batch[part] for batch in found]) for part in found[0]})

        def dataset(batches: OrderedBatches, indices: Any, **how: Any) -> tf.data.Dataset:
            # Features by their values: those that a run finds on disk are what it computes with.
            views = batches._views if isinstance(batches, FeatureBatches) else []
            values = tuple(view.whole().tobytes() for view in views)
            key = (name, values, indices.tobytes(), tuple(sorted(how.items())))
            return self._get(key, lambda: read(batches, indices, how))[0]

        return dataset

    def _written(self, write: Callable, variables: Mapping[str, tf.Variable], prefix: str) -> None:
        """Writes the files that the same values made before; TensorFlow takes 20 ms for that."""
        values = tuple((name, np.array(variable.numpy()).tobytes()) for name, variable in variables.items())
        step = os.path.basename(prefix)

        def read() -> dict[str, bytes]:
            write(variables, prefix)
            return {path.name: path.read_bytes() for path in Path(prefix).parent.glob(f"{step}.*")}

        files, is_new = self._get(("written", step, values), read)
        if not is_new:
            for name, content in files.items():
                Path(prefix).with_name(name).write_bytes(content)

    def _drawn(self, name: str, draw: Callable) -> Callable:
        def drawn(*args: Any, **kwargs: Any) -> bytes:
            return self._get((name, pickle.dumps((args, kwargs))), lambda: draw(*args, **kwargs))[0]

        return drawn


def _without_model(state: Any) -> list[tf.Variable]:
    return [v for name, v in state.variables().items() if not name.startswith(("model/", "optimizer/"))]


def _plain(batches: dict[str, np.ndarray]) -> tf.data.Dataset:
    """Returns a dataset whose iterators take a millisecond to make: they have no threads of their own."""
    options = tf.data.Options()
    options.autotune.enabled = False
    options.experimental_optimization.apply_default_optimizations = False
    return tf.data.Dataset.from_tensor_slices(batches).with_options(options)
