"""What a task has to answer. B examples of a batch, N of a split, K classes."""

import abc
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import tensorflow as tf

from trainer.metrics.logits import softmax
from trainer.values import UsageError

Loss = Callable[[tf.Tensor, tf.Tensor, tf.Tensor | None], tf.Tensor]
"""(logits [B, K] float32, labels [B, ...], targets [B, K] float32 or None) -> losses [B] float32.

Targets are labels as numbers from 0 to 1, as smoothing and mixing make them; None: the labels alone.
"""


class Task(abc.ABC):
    """The meaning of labels, and what follows from it for losses, predictions, metrics and reports.

    A task decides in one place, `decide`; `decisions`, `predicted` and `is_right` go by it unless a task has
    a shorter way to the same answers. Of labels that are one class each, `tasks.single_label.OneClass` knows
    all but the decision.
    """

    metrics: ClassVar[str]
    """What is always measured besides the loss, in training and evaluation; written as --metrics is."""
    best: ClassVar[str]
    """Which number of an evaluation of validation is highest for the best weights; the loss breaks ties."""
    watched: ClassVar[tuple[str, ...]]
    """The numbers of an evaluation that --early_stop may go by."""
    excludes: ClassVar[bool]
    """Whether exactly one class is true, so that targets and probabilities sum to 1."""
    one_of: ClassVar[str]
    """What a prediction names, in words for a model card: `one of {count} classes`."""
    calibration_note: ClassVar[str]
    """What a model card says of how to apply a temperature to the probabilities p of an exported model."""

    # Labels.

    def encoded(self, labels: np.ndarray, num_classes: int) -> np.ndarray:
        """Returns the labels of a source as this task calculates with them, [N, ...].

        Args:
          labels: [N] int64 where each example has one; [N] object, tuples of class numbers, where it has any
            number of them.
          num_classes: K.

        Raises:
          UsageError: labels of this kind mean nothing to the task; the message goes on after the source.
        """
        if labels.dtype == object:
            raise UsageError("has any number of labels per picture: use --task=multi_label")
        return labels

    @abc.abstractmethod
    def label_spec(self, batch_size: int, num_classes: int) -> tf.TensorSpec:
        """Returns shape and dtype of `label` in a batch."""

    @abc.abstractmethod
    def label_words(self, label: Any, class_names: Sequence[str]) -> str:
        """Returns a label, or a prediction, as it is written: in splits.json, reports, predictions."""

    @abc.abstractmethod
    def class_counts(self, labels: np.ndarray, class_names: Sequence[str]) -> dict[str, int]:
        """Returns {class: how many of N labels have it}."""

    @abc.abstractmethod
    def classes_in(self, labels: np.ndarray) -> set[int]:
        """Returns the classes that one of N labels has."""

    def indicators(self, labels: np.ndarray, num_classes: int) -> np.ndarray:
        """Returns [N, K] bool: which classes each of N labels has."""
        return self.targets(tf.constant(labels), num_classes).numpy() > 0

    @abc.abstractmethod
    def groups(self, labels: np.ndarray) -> np.ndarray:
        """Returns [N] int, examples alike under one number: what is chosen evenly is chosen from each."""

    @abc.abstractmethod
    def renumbered(self, labels: np.ndarray, places: np.ndarray, num_classes: int) -> np.ndarray:
        """Returns the labels of another source as those of `num_classes` classes here.

        Args:
          labels: [N, ...] of that source.
          places: the place here of each of its classes, int64; -1 of one that no label has.
          num_classes: K.
        """

    @abc.abstractmethod
    def targets(self, labels: tf.Tensor, num_classes: int) -> tf.Tensor:
        """Maps labels [B, ...] to targets [B, K] float32: 1 for what is true, else 0."""

    @abc.abstractmethod
    def smoothed(self, targets: tf.Tensor, smoothing: float) -> tf.Tensor:
        """Moves targets [B, K] by the share of --label_smoothing to where nothing is known."""

    @abc.abstractmethod
    def weights(self, labels: tf.Tensor, targets: tf.Tensor | None, of_class: tf.Tensor) -> tf.Tensor:
        """Returns the weights of examples in a loss, [B], given those of classes [K] (--class_weights)."""

    # The network.

    @abc.abstractmethod
    def num_logits(self, num_classes: int, *, asked: str) -> int:
        """Returns the width of the head; `asked` is the value of --logits.

        Raises:
          UsageError: it does not go with the number of classes.
        """

    def logits(self, of_head: tf.Tensor) -> tf.Tensor:
        """Maps what a head of `num_logits` gives, [B, ...] float32, to logits [B, K]."""
        return of_head

    @abc.abstractmethod
    def activation(self, logits: tf.Tensor) -> tf.Tensor:
        """Maps logits [B, K] to probabilities [B, K] of the same dtype."""

    @abc.abstractmethod
    def log_probabilities(self, logits: tf.Tensor) -> tf.Tensor:
        """Maps logits [B, K] to the logarithms of `activation`, which are finite where the logits are."""

    @abc.abstractmethod
    def cross_entropy(self, *, smoothing: float = 0.0) -> Loss:
        """Returns the loss of --loss=cross_entropy; without smoothing, it is what evaluations measure."""

    def logits_of(self, probabilities: np.ndarray) -> np.ndarray:
        """Maps probabilities [N, K] float64 back to logits that have them, by the task of `plain`."""
        logits = _logarithms(probabilities)
        return logits if self.excludes else logits - _logarithms(1.0 - probabilities)

    def plain(self) -> "Task":
        """Returns the task for logits that no network with its `activation` has made.

        Such are those that `logits_of` gives, and those of what is fitted to features. Of one class an
        example, their probabilities are the softmax, whatever `activation` is.
        """
        return self

    def softmax_logits(self, logits: np.ndarray) -> np.ndarray:
        """Returns logits [N, K] whose softmax `probabilities` is: those given, where it is theirs.

        By them scores of one class an example go, however the task makes its probabilities.
        """
        probabilities = self.probabilities(logits)
        if np.allclose(probabilities, softmax(logits), rtol=1e-9, atol=0.0, equal_nan=True):
            return logits
        return _logarithms(probabilities)

    # Predictions.

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Maps logits [N, K] to probabilities [N, K] float64, NaN where a row has none."""
        return self.activation(tf.constant(logits, tf.float64)).numpy()

    @abc.abstractmethod
    def right(self, predictions: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Returns which of N predictions are the label, or another prediction: [N] bool."""

    @abc.abstractmethod
    def decide(self, probabilities: tf.Tensor) -> tf.Tensor:
        """Maps probabilities [B, K] to predictions, in shape and dtype as labels are."""

    def decisions(self, probabilities: np.ndarray) -> np.ndarray:
        """Does as `decide`, in NumPy."""
        return self.decide(tf.constant(probabilities)).numpy()

    def predicted(self, logits: np.ndarray) -> np.ndarray:
        """Maps logits [N, K] to predictions."""
        return self.decisions(self.probabilities(logits))

    def names(self, prediction: Any, class_names: Sequence[str]) -> tuple[str, ...]:
        """Returns the classes of a prediction, or of a label, by name."""
        return (self.label_words(prediction, class_names),)

    @abc.abstractmethod
    def answers(self, probabilities: tf.Tensor, class_names: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns what an exported model gives besides probabilities [B, K].

        `class_ids` are the predictions, `class_names` their names; those that are given are [K] string.
        """

    @abc.abstractmethod
    def told(
        self, prediction: Any, probabilities: np.ndarray, class_names: Sequence[str]
    ) -> tuple[str, float]:
        """Returns how a prediction is written, and the one probability [] that is shown beside it.

        Args:
          prediction: of one example, as `decisions` gives it.
          probabilities: [K], of the same one.
          class_names: K of them.
        """

    @abc.abstractmethod
    def explained_class(self, probabilities: np.ndarray) -> int:
        """Returns the class that is explained where nobody names one, given probabilities [K]."""

    @abc.abstractmethod
    def class_scores(self, logits: tf.Tensor) -> tf.Tensor:
        """Maps logits [B, K] to what saliency explains of each class, [B, K]."""

    # Metrics.

    def is_right(self, logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """Returns 1 for examples whose prediction is their label, else 0: [B] float32."""
        return tf.cast(self.decide(self.activation(logits)) == labels, tf.float32)

    @abc.abstractmethod
    def means(self, labels: np.ndarray, logits: np.ndarray) -> dict[str, float]:
        """Returns `loss` and those of `metrics` over N examples: what an evaluation is, but in 64 bits."""

    def split_metrics(
        self, labels: np.ndarray, logits: np.ndarray, class_names: Sequence[str]
    ) -> dict[str, float]:
        """Returns the numbers of a whole split that are no means over its examples."""
        return {}

    def check_watched(self, metric: str, counts: Mapping[str, int]) -> None:
        """Makes sure that an evaluation will have a number.

        Args:
          metric: one of `watched`.
          counts: {class: number of examples} of validation.

        Raises:
          UsageError: it will not; the message goes on after the flag and the value.
        """
        return

    def scores(
        self,
        labels: np.ndarray,
        logits: np.ndarray,
        class_names: Sequence[str],
        *,
        temperature: float | None = None,
        temperature_from: str = "",
    ) -> dict[str, Any]:
        """Returns all numbers of a split, as metrics.json holds them.

        Args:
          labels: of N examples, at least one.
          logits: [N, K].
          class_names: [K], all different.
          temperature: what the logits are divided by for the numbers that end in `_scaled`; None: there are
            none.
          temperature_from: on what it was fitted.
        """
        # Late, both: they import scikit-learn, which takes most of a second.
        if self.excludes:
            from trainer.metrics.scores import scores

            return scores(
                labels,
                self.softmax_logits(logits),
                class_names,
                temperature=temperature,
                temperature_from=temperature_from,
                predictions=self.predicted(logits),
            )
        from trainer.metrics import several

        return several.scores(
            self.indicators(labels, len(class_names)),
            logits,
            class_names,
            predictions=self.predicted(logits),
            probabilities=self.probabilities(logits),
            scaled=None if temperature is None else self.probabilities(logits / temperature),
            about_scaled=several.about_temperature(temperature, temperature_from),
        )

    # What validation settles once the weights are trained.

    @property
    def fits_thresholds(self) -> bool:
        """Whether `fit_thresholds` gives any."""
        return False

    def fit_thresholds(self, labels: np.ndarray, logits: np.ndarray) -> tuple[float, ...] | None:
        """Returns from which probability on each of K classes is best predicted, for N examples."""
        return None

    def with_thresholds(self, thresholds: Sequence[float] | np.ndarray) -> "Task":
        """Returns the same task, deciding by such thresholds.

        Args:
          thresholds: one for each of K classes; or [N, K], of N examples that runs with thresholds of their
            own have scored: then only all of them can be decided, in NumPy, and in their order.

        Raises:
          ValueError: it does not decide by thresholds.
        """
        raise ValueError("this task has no thresholds")

    def thresholds(self, num_classes: int) -> tuple[float, ...] | None:
        """Returns from which probability on each class is predicted; None: that is not how it decides."""
        return None

    def fit_temperature(self, labels: np.ndarray, logits: np.ndarray) -> float | None:
        """Returns by what to divide logits so that probabilities hold; None: this task has no such number."""
        return None


def _logarithms(probabilities: np.ndarray) -> np.ndarray:
    """Returns finite logarithms, also of 0."""
    return np.log(np.maximum(probabilities, np.finfo(np.float64).tiny))
