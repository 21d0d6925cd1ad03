"""The features of some validation pictures, for TensorBoard's PROJECTOR tab."""

import functools

import numpy as np
import tensorflow as tf

from trainer.data.decode import unscale
from trainer.model.cuts import WHOLE, Cut
from trainer.record.progress import counting
from trainer.record.projector import thumb_size, write_projector
from trainer.record.workdir import Workdir
from trainer.run.experiment import Experiment
from trainer.run.stages import Stages


def show_features(stages: Stages, workdir: Workdir) -> None:
    """Writes what the network makes of --embeddings validation pictures, before its head.

    They are spread evenly over the split, and always the same. The weights are the current ones.
    """
    experiment = stages.experiment
    split = experiment.splits.indices["validation"]
    count = min(experiment.config.run.embeddings, len(split))
    if not count:
        return
    chosen = split[np.arange(count) * len(split) // count]
    with experiment.strategy.scope(), stages.state.averaged():
        features, logits = _features(stages, chosen)
    source, task = experiment.source, experiment.task
    words = functools.partial(task.label_words, class_names=source.class_names)
    write_projector(
        workdir.root / "validation",
        name="features of validation",
        features=features,
        thumbs=_thumbs(experiment, chosen),
        columns={
            "label": list(map(words, source.labels[chosen])),
            "prediction": list(map(words, task.predicted(logits))),
            "id": [source.ids[at] for at in chosen.tolist()],
        },
    )


def _features(stages: Stages, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns features [n, D] and logits [n, K] of pictures, from what is kept of them as far as it goes."""
    experiment, stage = stages.experiment, stages.scoring()
    with counting(
        experiment.config.run.progress, "features for TensorBoard's projector", len(chosen)
    ) as done:
        features = stage.features("validation", chosen, done=done)
    at_head = Cut(WHOLE, features.shape[1:], {}, below=lambda x: x, above=lambda features, **_: features)
    return features, experiment.classifier(tf.constant(features), cut=at_head).numpy()


def _thumbs(experiment: Experiment, chosen: np.ndarray) -> np.ndarray:
    """Returns pictures as the network sees them, small and square: [n, S, S, 3] uint8."""
    size, found = thumb_size(len(chosen)), []
    for batch in experiment.pipeline.once(chosen):
        small = tf.image.resize(batch["image"], [size, size], antialias=True).numpy()
        shown = unscale(small[batch["mask"].numpy() > 0], experiment.backbone.contract)
        found.append((np.clip(shown, 0.0, 1.0) * 255 + 0.5).astype(np.uint8))
    return np.concatenate(found)
