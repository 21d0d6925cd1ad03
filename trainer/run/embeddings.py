"""The features of some validation pictures, for TensorBoard's PROJECTOR tab."""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor

import numpy as np
import tensorflow as tf

from trainer.data.decode import unscale
from trainer.model.cuts import WHOLE, Cut
from trainer.record.progress import counting
from trainer.record.projector import Sprite, make_sprite, thumb_size, write_projector
from trainer.record.workdir import Workdir
from trainer.run.experiment import Experiment
from trainer.run.stages import Stages


@contextlib.contextmanager
def drawing_aside(experiment: Experiment) -> Iterator[Callable[[], Sprite | None]]:
    """Draws the pictures of `show_features`, which no weights change, beside what a block of code does.

    Gives a function that waits for them; None where none are to be shown. A block that fails ends the work.
    """
    is_over = threading.Event()
    with ThreadPoolExecutor(1) as thread:
        drawn = thread.submit(_draw, experiment, is_over)
        try:
            yield drawn.result
        finally:
            is_over.set()


def _draw(experiment: Experiment, is_over: threading.Event) -> Sprite | None:
    chosen = _chosen(experiment)
    if not len(chosen):
        return None
    return make_sprite(_thumbs(experiment, chosen, is_over), _labels(experiment, chosen))


def show_features(stages: Stages, workdir: Workdir, sprite: Sprite | None) -> None:
    """Writes what the network makes of --embeddings validation pictures, before its head.

    They are spread evenly over the split, and always the same. The weights are the current ones.
    """
    if sprite is None:
        return
    experiment = stages.experiment
    chosen = _chosen(experiment)
    with experiment.strategy.scope(), stages.state.averaged():
        features, logits = _features(stages, chosen)
    source, task = experiment.source, experiment.task
    words = functools.partial(task.label_words, class_names=source.class_names)
    write_projector(
        workdir.root / "validation",
        name="features of validation",
        features=features,
        sprite=sprite,
        columns={
            "label": _labels(experiment, chosen),
            "prediction": list(map(words, task.predicted(logits))),
            "id": [source.ids[at] for at in chosen.tolist()],
        },
    )


def _chosen(experiment: Experiment) -> np.ndarray:
    split = experiment.splits.indices["validation"]
    count = min(experiment.config.run.embeddings, len(split))
    return split[np.arange(count) * len(split) // max(count, 1)]


def _labels(experiment: Experiment, chosen: np.ndarray) -> list[str]:
    words = functools.partial(experiment.task.label_words, class_names=experiment.source.class_names)
    return list(map(words, experiment.source.labels[chosen]))


def _features(stages: Stages, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns features [n, D] and logits [n, K] of pictures, from what is kept of them as far as it goes."""
    experiment, stage = stages.experiment, stages.scoring()
    with counting(
        experiment.config.run.progress, "features for TensorBoard's projector", len(chosen)
    ) as done:
        features = stage.features("validation", chosen, done=done)
    at_head = Cut(WHOLE, features.shape[1:], {}, below=lambda x: x, above=lambda features, **_: features)
    return features, experiment.classifier(tf.constant(features), cut=at_head).numpy()


def _thumbs(experiment: Experiment, chosen: np.ndarray, is_over: threading.Event) -> np.ndarray:
    """Returns pictures as the network sees them, small and square: [n, S, S, 3] uint8."""
    size, found = thumb_size(len(chosen)), []
    for batch in experiment.pipeline.once(chosen):
        if is_over.is_set():
            raise CancelledError
        small = tf.image.resize(batch["image"], [size, size], antialias=True).numpy()
        shown = unscale(small[batch["mask"].numpy() > 0], experiment.backbone.contract)
        found.append((np.clip(shown, 0.0, 1.0) * 255 + 0.5).astype(np.uint8))
    return np.concatenate(found)
