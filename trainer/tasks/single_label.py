"""One class an example: probabilities are the softmax of the logits, and the highest one is predicted."""

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from trainer.metrics.logits import cross_entropies, predicted, softmax
from trainer.tasks.base import Loss, Task
from trainer.values import UsageError, rest_of, turned

# Beyond some thirty classes TensorBoard's page of scalars is of no use to anybody.
MOST_CLASS_SCALARS = 30


class OneClass(Task):
    """Labels [] int64, the number of the one class that is true; what is decided, a subclass says."""

    metrics = "accuracy"
    best = "accuracy"
    watched = ("loss", "accuracy", "auc")
    excludes = True
    one_of = "one of {count} classes"
    is_plain = False
    """Whether probabilities are the softmax of the logits, whatever `activation` is."""
    calibration_note = (
        "It is not applied: the probabilities p are as the model gives them. To apply it, take "
        "softmax(log(p) / temperature)."
    )

    def label_spec(self, batch_size: int, num_classes: int) -> tf.TensorSpec:
        return tf.TensorSpec([batch_size], tf.int64)

    def label_words(self, label: Any, class_names: Sequence[str]) -> str:
        return class_names[label]

    def class_counts(self, labels: np.ndarray, class_names: Sequence[str]) -> dict[str, int]:
        counts = Counter(labels.tolist())
        return {name: counts[k] for k, name in enumerate(class_names)}

    def classes_in(self, labels: np.ndarray) -> set[int]:
        return set(labels.tolist())

    def indicators(self, labels: np.ndarray, num_classes: int) -> np.ndarray:
        return np.eye(num_classes, dtype=bool)[labels]

    def groups(self, labels: np.ndarray) -> np.ndarray:
        return labels

    def renumbered(self, labels: np.ndarray, places: np.ndarray, num_classes: int) -> np.ndarray:
        return places[labels]

    def targets(self, labels: tf.Tensor, num_classes: int) -> tf.Tensor:
        return tf.one_hot(labels, num_classes)

    def smoothed(self, targets: tf.Tensor, smoothing: float) -> tf.Tensor:
        """Spreads a share evenly over the classes (Szegedy et al., 2016, arXiv 1512.00567, section 7)."""
        return rest_of(smoothing) * targets + turned(smoothing) / targets.shape[-1]

    def weights(self, labels: tf.Tensor, targets: tf.Tensor | None, of_class: tf.Tensor) -> tf.Tensor:
        return tf.gather(of_class, labels) if targets is None else tf.linalg.matvec(targets, of_class)

    def num_logits(self, num_classes: int, *, asked: str) -> int:
        if asked == "one" and num_classes != 2:
            raise UsageError(f"--logits=one tells two classes apart, and there are {num_classes}")
        return 1 if asked == "one" else num_classes

    def logits(self, of_head: tf.Tensor) -> tf.Tensor:
        """A head with one logit z gives [0, z], whose softmax is [1 - sigmoid(z), sigmoid(z)].

        So cross-entropy of two classes is binary cross-entropy from the logit, and class 1 is chosen where
        z > 0.
        """
        return tf.pad(of_head, [[0, 0], [1, 0]]) if of_head.shape[-1] == 1 else of_head

    def activation(self, logits: tf.Tensor) -> tf.Tensor:
        return tf.nn.softmax(logits)

    def log_probabilities(self, logits: tf.Tensor) -> tf.Tensor:
        return tf.nn.log_softmax(logits)

    def cross_entropy(self, *, smoothing: float = 0.0) -> Loss:
        of_labels = tf_keras.losses.SparseCategoricalCrossentropy(
            from_logits=True, reduction=tf_keras.losses.Reduction.NONE
        )

        def loss(logits: tf.Tensor, labels: tf.Tensor, targets: tf.Tensor | None) -> tf.Tensor:
            if targets is None:
                losses = of_labels(labels, logits)
            else:
                losses = -tf.reduce_sum(targets * tf.nn.log_softmax(logits), axis=-1)
            if smoothing:
                even = -tf.reduce_mean(tf.nn.log_softmax(logits), axis=-1)
                losses = rest_of(smoothing) * losses + turned(smoothing) * even
            return losses

        return loss

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        if self.is_plain or type(self).activation is OneClass.activation:
            return softmax(logits)
        return super().probabilities(logits)

    def plain(self) -> "OneClass":
        task = copy.copy(self)
        task.is_plain = True
        return task

    def right(self, predictions: np.ndarray, labels: np.ndarray) -> np.ndarray:
        return predictions == labels

    def answers(self, probabilities: tf.Tensor, class_names: tf.Tensor) -> dict[str, tf.Tensor]:
        best = self.decide(probabilities)
        return {"class_ids": best, "class_names": tf.gather(class_names, best)}

    def told(
        self, prediction: Any, probabilities: np.ndarray, class_names: Sequence[str]
    ) -> tuple[str, float]:
        return class_names[prediction], float(probabilities[prediction])

    def explained_class(self, probabilities: np.ndarray) -> int:
        return int(self.decisions(probabilities[None])[0])

    def class_scores(self, logits: tf.Tensor) -> tf.Tensor:
        """Returns the logits, and of two classes by how much each exceeds the other.

        Of two classes only the difference counts, and a head of one logit z has the logits 0 and z: the first
        would get no gradient at all.
        """
        return logits - tf.reverse(logits, [1]) if logits.shape[-1] == 2 else logits

    def means(self, labels: np.ndarray, logits: np.ndarray) -> dict[str, float]:
        right = self.right(self.predicted(logits), labels)
        return {"loss": float(cross_entropies(labels, logits).mean()), "accuracy": float(right.mean())}

    def split_metrics(
        self, labels: np.ndarray, logits: np.ndarray, class_names: Sequence[str]
    ) -> dict[str, float]:
        """Returns `auc` of two classes; of up to `MOST_CLASS_SCALARS`, precision/NAME and recall/NAME.

        The latter of each class that has an example.
        """
        from trainer.metrics.ranking import roc_auc  # Late: it takes most of a second to import.

        values = {}
        # Of the probabilities, which more than two classes need not make for it.
        of_two = self.softmax_logits(logits) if len(class_names) == 2 else logits
        if (auc := roc_auc(labels, of_two)) is not None:
            values["auc"] = auc
        if len(class_names) <= MOST_CLASS_SCALARS:
            said = self.predicted(logits)
            for k, name in enumerate(class_names):
                right = float(((said == k) & (labels == k)).sum())
                if support := (labels == k).sum():
                    values[f"precision/{name}"] = right / max((said == k).sum(), 1)
                    values[f"recall/{name}"] = right / support
        return values

    def check_watched(self, metric: str, counts: Mapping[str, int]) -> None:
        """The area under the ROC curve is of two classes, which both need an example."""
        if metric != "auc":
            return
        if len(counts) != 2:
            raise UsageError(f" is for two classes, and there are {len(counts)}")
        for name, count in counts.items():
            if not count:
                raise UsageError(
                    f": validation has no example of class {name!r}, and the area under the ROC curve needs "
                    "both classes: use loss or accuracy, or other --splits"
                )

    def fit_temperature(self, labels: np.ndarray, logits: np.ndarray) -> float | None:
        from trainer.metrics.calibration import fit_temperature  # Late, as in `split_metrics`.

        return fit_temperature(labels, self.softmax_logits(logits))


class SingleLabel(OneClass):
    """One class an example: the one with the highest probability is predicted."""

    def decide(self, probabilities: tf.Tensor) -> tf.Tensor:
        return tf.argmax(probabilities, axis=1, output_type=tf.int64)

    def decisions(self, probabilities: np.ndarray) -> np.ndarray:
        return probabilities.argmax(axis=1)

    # The highest logit has the highest probability, also where rounding makes two of these equal.

    def predicted(self, logits: np.ndarray) -> np.ndarray:
        return predicted(logits)

    def is_right(self, logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        return tf.cast(tf.argmax(logits, axis=-1) == labels, tf.float32)
