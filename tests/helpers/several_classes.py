"""A plugin whose examples may show several classes: a source of such, the task, and a way out of a run.

What a report says of such labels nobody has written yet: the run leaves before it gets there.
"""

import numpy as np
import tensorflow as tf

import trainer
from trainer.data.sources import MemorySource
from trainer.loop.callbacks import Callback
from trainer.tasks import Task
from trainer.values import Interrupted

NAMES = ("red", "green", "blue")


@trainer.register.source("lights", address="COUNT")
def lights(count: str, *, name):
    """Pictures in which each of three colours is on or off, one at least."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, size=[int(count), 3])
    labels[:, 0] |= ~labels.any(axis=1)
    pixels = rng.integers(60, size=[int(count), 10, 12, 3]) + 150 * labels[:, None, None, :]
    encoded = [tf.io.encode_png(image).numpy() for image in pixels.astype(np.uint8)]
    ids = [f"{i:03d}.png" for i in range(int(count))]
    return MemorySource(name, NAMES, ids, labels.astype(np.float32), encoded, stamped=count)


@trainer.register.task("several")
class Several(Task):
    """Each class is true or not, whatever the others are."""

    metrics = best = "accuracy"
    watched = ("loss", "accuracy")
    excludes = False
    one_of = "any of {count} classes"
    calibration_note = "It is not applied."

    def label_spec(self, batch_size, num_classes):
        return tf.TensorSpec([batch_size, num_classes], tf.float32)

    def label_words(self, label, class_names):
        return "+".join(name for name, on in zip(class_names, label, strict=True) if on)

    def class_counts(self, labels, class_names):
        return dict(zip(class_names, labels.sum(axis=0).astype(int).tolist(), strict=True))

    def classes_in(self, labels):
        return set(np.flatnonzero(labels.any(axis=0)).tolist())

    def groups(self, labels):
        return labels @ (2 ** np.arange(labels.shape[1]))

    def targets(self, labels, num_classes):
        return labels

    def smoothed(self, targets, smoothing):
        return (1 - smoothing) * targets + smoothing / 2

    def weights(self, labels, targets, of_class):
        return tf.linalg.matvec(labels if targets is None else targets, of_class)

    def num_logits(self, num_classes, *, asked):
        return num_classes

    def activation(self, logits):
        return tf.sigmoid(logits)

    def log_probabilities(self, logits):
        return tf.math.log_sigmoid(logits)

    def renumbered(self, labels, places, num_classes):
        moved = np.zeros([len(labels), num_classes], np.float32)
        moved[:, places] = labels
        return moved

    def means(self, labels, logits):
        losses = self.cross_entropy()(tf.constant(logits), tf.constant(labels), None)
        right = self.right(self.predicted(logits), labels)
        return {"loss": float(np.mean(losses)), "accuracy": float(right.mean())}

    def cross_entropy(self, *, smoothing=0.0):
        def loss(logits, labels, targets):
            wanted = self.smoothed(labels if targets is None else targets, smoothing)
            return tf.reduce_sum(tf.nn.sigmoid_cross_entropy_with_logits(wanted, logits), axis=-1)

        return loss

    def decide(self, probabilities):
        return tf.cast(probabilities >= 0.5, tf.float32)

    def is_right(self, logits, labels):
        return tf.cast(tf.reduce_all((logits >= 0) == (labels > 0), axis=-1), tf.float32)

    def right(self, predictions, labels):
        return (predictions == labels).all(axis=1)

    def answers(self, probabilities, class_names):
        return {"class_ids": self.decide(probabilities)}

    def told(self, prediction, probabilities, class_names):
        sure = np.where(prediction > 0, probabilities, 1 - probabilities)
        return self.label_words(prediction, class_names), float(sure.min())

    def explained_class(self, probabilities):
        return int(probabilities.sum() > 0)

    def class_scores(self, logits):
        return logits


@trainer.register.callback("leaves")
class Leaves(Callback):
    """Ends the run at a step, when all else is done there."""

    def __init__(self, step: int, *, run):
        self._step = step

    def next_due(self, step):
        return self._step if step < self._step else super().next_due(step)

    def __call__(self, state):
        if state.step == self._step:
            raise Interrupted("far enough")
