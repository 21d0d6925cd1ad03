"""Any number of classes an example: each has a probability of its own, the sigmoid of its logit."""

import copy
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import tensorflow as tf

from trainer.metrics.logits import binary_cross_entropies, sigmoid
from trainer.registry import Bounds
from trainer.tasks.base import Loss, Task
from trainer.values import UsageError, rest_of, turned

# Beyond some thirty classes TensorBoard's page of scalars is of no use to anybody.
MOST_CLASS_SCALARS = 30
BETWEEN, NONE = ", ", "(none)"
"""What stands between the names of an example's classes, and what it has that has none."""


class MultiLabel(Task):
    """Any number of classes an example, none included: each is true or not, whatever the others are.

    A class is predicted from a threshold on. While training goes on it is 0.5; then one of its own is fitted
    to validation for every class, so that its F1 is high.
    """

    metrics = "accuracy"
    best = "map"
    watched = ("loss", "accuracy", "map", "macro_f1", "micro_f1")
    excludes = False
    one_of = "any of {count} classes, or none"
    calibration_note = (
        "It is not applied: the probabilities are those of the plain sigmoid. To apply it, take "
        "1 / (1 + ((1 - p) / p)^(1 / temperature)). The thresholds are of the plain ones."
    )

    def __init__(self, threshold: Annotated[float, Bounds(at_least=0, below=1)] = 0.0):
        """Notes how to decide.

        Args:
          threshold: of every class, instead of those that would be fitted; 0: they are fitted.
        """
        self._asked = threshold
        self.fitted: tuple[float, ...] | np.ndarray | None = None

    # Labels.

    def encoded(self, labels: np.ndarray, num_classes: int) -> np.ndarray:
        """Returns [N, K] float32, 1 for each class an example has, from tuples or from one class each.

        What is [N, K] already stays so.
        """
        if labels.ndim == 2:
            return labels.astype(np.float32)
        rows = labels if labels.dtype == object else [(label,) for label in labels.tolist()]
        found = np.zeros([len(labels), num_classes], np.float32)
        for row, classes in zip(found, rows, strict=True):
            row[list(classes)] = 1.0
        return found

    def label_spec(self, batch_size: int, num_classes: int) -> tf.TensorSpec:
        return tf.TensorSpec([batch_size, num_classes], tf.float32)

    def names(self, prediction: Any, class_names: Sequence[str]) -> tuple[str, ...]:
        return tuple(name for name, on in zip(class_names, prediction, strict=True) if on > 0)

    def label_words(self, label: Any, class_names: Sequence[str]) -> str:
        return BETWEEN.join(self.names(label, class_names)) or NONE

    def class_counts(self, labels: np.ndarray, class_names: Sequence[str]) -> dict[str, int]:
        counts = labels.sum(axis=0).astype(int).tolist()
        return dict(zip(class_names, counts, strict=True))

    def classes_in(self, labels: np.ndarray) -> set[int]:
        return set(np.flatnonzero(labels.any(axis=0)).tolist())

    def indicators(self, labels: np.ndarray, num_classes: int) -> np.ndarray:
        return labels > 0

    def groups(self, labels: np.ndarray) -> np.ndarray:
        """Returns the same number for examples of exactly the same classes."""
        if not len(labels):
            return np.zeros(0, np.int64)
        return np.unique(labels, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)

    def renumbered(self, labels: np.ndarray, places: np.ndarray, num_classes: int) -> np.ndarray:
        known = places >= 0
        moved = np.zeros([len(labels), num_classes], np.float32)
        moved[:, places[known]] = labels[:, known]
        return moved

    def targets(self, labels: tf.Tensor, num_classes: int) -> tf.Tensor:
        return labels

    def smoothed(self, targets: tf.Tensor, smoothing: float) -> tf.Tensor:
        """Moves every target by a share towards a half, where nothing is known of it."""
        return rest_of(smoothing) * targets + turned(smoothing) / 2

    def weights(self, labels: tf.Tensor, targets: tf.Tensor | None, of_class: tf.Tensor) -> tf.Tensor:
        """Returns the mean weight of an example's classes; of one that has none, 1."""
        shares = labels if targets is None else targets
        total = tf.reduce_sum(shares, axis=-1)
        mean = tf.math.divide_no_nan(tf.linalg.matvec(shares, of_class), total)
        return tf.where(total > 0, mean, tf.ones_like(mean))

    # The network.

    def num_logits(self, num_classes: int, *, asked: str) -> int:
        if asked == "one":
            raise UsageError("--logits=one tells two classes apart, and here each class is true or not")
        return num_classes

    def activation(self, logits: tf.Tensor) -> tf.Tensor:
        return tf.sigmoid(logits)

    def log_probabilities(self, logits: tf.Tensor) -> tf.Tensor:
        return tf.math.log_sigmoid(logits)

    def cross_entropy(self, *, smoothing: float = 0.0) -> Loss:
        """Returns binary cross-entropy, summed over the classes.

        So the gradient of every logit is its probability less its target, as with one class an example, and
        learning rates carry over.
        """

        def loss(logits: tf.Tensor, labels: tf.Tensor, targets: tf.Tensor | None) -> tf.Tensor:
            wanted = self.smoothed(labels if targets is None else targets, smoothing)
            return tf.reduce_sum(tf.nn.sigmoid_cross_entropy_with_logits(wanted, logits), axis=-1)

        return loss

    # Predictions.

    @property
    def _cutoffs(self) -> tuple[float, ...] | np.ndarray | float:
        return self._asked or 0.5 if self.fitted is None else self.fitted

    @property
    def fits_thresholds(self) -> bool:
        return not self._asked

    def fit_thresholds(self, labels: np.ndarray, logits: np.ndarray) -> tuple[float, ...] | None:
        from trainer.metrics.several import fit_thresholds  # Late, as in `split_metrics`.

        return None if self._asked else tuple(fit_thresholds(labels, self.probabilities(logits)).tolist())

    def thresholds(self, num_classes: int) -> tuple[float, ...] | None:
        cutoffs = self._cutoffs
        if isinstance(cutoffs, np.ndarray):
            return None
        return cutoffs if isinstance(cutoffs, tuple) else (cutoffs,) * num_classes

    def with_thresholds(self, thresholds: Sequence[float] | np.ndarray) -> "MultiLabel":
        task = copy.copy(self)
        each = np.asarray(thresholds, np.float64)
        task.fitted = tuple(each.tolist()) if each.ndim == 1 else each
        return task

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        return sigmoid(logits)

    def right(self, predictions: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Returns where all classes are right."""
        return ((predictions > 0) == (labels > 0)).all(axis=1)

    def decide(self, probabilities: tf.Tensor) -> tf.Tensor:
        return tf.cast(probabilities >= tf.constant(self._cutoffs, probabilities.dtype), tf.float32)

    def decisions(self, probabilities: np.ndarray) -> np.ndarray:
        return (probabilities >= np.asarray(self._cutoffs, probabilities.dtype)).astype(np.float32)

    def is_right(self, logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        same = (self.decide(self.activation(logits)) > 0) == (labels > 0)
        return tf.cast(tf.reduce_all(same, axis=-1), tf.float32)

    def answers(self, probabilities: tf.Tensor, class_names: tf.Tensor) -> dict[str, tf.Tensor]:
        """See Task: `class_ids` is [N, K] int64, 1 for each class that is predicted."""
        said = self.decide(probabilities)
        words = [tf.where(said[:, k] > 0, class_names[k], "") for k in range(int(probabilities.shape[-1]))]
        joined = tf.constant("")
        for word in words:
            between = tf.where((tf.strings.length(joined) > 0) & (tf.strings.length(word) > 0), BETWEEN, "")
            joined = tf.strings.join([joined, between, word])
        return {
            "class_ids": tf.cast(said, tf.int64),
            "class_names": tf.where(tf.strings.length(joined) > 0, joined, NONE),
        }

    def told(
        self, prediction: Any, probabilities: np.ndarray, class_names: Sequence[str]
    ) -> tuple[str, float]:
        """See Task: what is shown is the probability that the least certain class is as predicted."""
        sure = np.where(prediction > 0, probabilities, 1.0 - probabilities)
        return self.label_words(prediction, class_names), float(sure.min())

    def explained_class(self, probabilities: np.ndarray) -> int:
        """Returns the most probable class, whether it is predicted or not."""
        return int(probabilities.argmax())

    def class_scores(self, logits: tf.Tensor) -> tf.Tensor:
        return logits

    # Metrics.

    def means(self, labels: np.ndarray, logits: np.ndarray) -> dict[str, float]:
        right = self.right(self.predicted(logits), labels)
        return {
            "loss": float(binary_cross_entropies(labels, logits).sum(axis=1).mean()),
            "accuracy": float(right.mean()),
        }

    def split_metrics(
        self, labels: np.ndarray, logits: np.ndarray, class_names: Sequence[str]
    ) -> dict[str, float]:
        """Returns `map`, `macro_f1`, `micro_f1`, and, of up to `MOST_CLASS_SCALARS` classes, ap/NAME.

        The latter of each class that has an example, and the mean of them as `map`.
        """
        from trainer.metrics import several  # Late: it takes most of a second to import.

        precisions = several.average_precisions(labels, logits)
        averaged = several.means(labels, self.predicted(logits))
        values = {f"{kind}_f1": averaged[kind]["f1"] for kind in ("macro", "micro")}
        if (mean := several.mean_of_known(precisions)) is not None:
            values["map"] = mean
        if len(class_names) <= MOST_CLASS_SCALARS:
            for name, precision in zip(class_names, precisions, strict=True):
                if precision is not None:
                    values[f"ap/{name}"] = precision
        return values

    def check_watched(self, metric: str, counts: Mapping[str, int]) -> None:
        if metric == "map" and not any(counts.values()):
            raise UsageError(
                ": no validation example has any class, so that there is no average precision: use other "
                "--splits"
            )

    def fit_temperature(self, labels: np.ndarray, logits: np.ndarray) -> float | None:
        from trainer.metrics.several import fit_temperature  # Late, as in `split_metrics`.

        return fit_temperature(labels, logits)
