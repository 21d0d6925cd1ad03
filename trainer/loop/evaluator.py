"""Scores datasets with the weights as they are."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import tensorflow as tf

from trainer.loop.gradients import plain
from trainer.loop.metrics import Means, Metric, make_metrics, sums_of
from trainer.model.classifier import Classifier
from trainer.model.cuts import Cut
from trainer.precision import apart
from trainer.runtime import divided, own_rows, rows_of_all


@dataclass(frozen=True)
class Evaluation:
    """A split scored, each example once.

    `ids` [N] int64, `labels` [N], as the task has them, and `logits` [N, K] float32 are in the order of the
    split; `metrics` are means over it, first those that the task always has.
    """

    loss: float
    ids: np.ndarray
    labels: np.ndarray
    logits: np.ndarray
    metrics: Mapping[str, float] = field(default_factory=dict)


class Evaluator:
    """Scores datasets with the current weights. Traced once, whatever the phase.

    With a cut, the datasets hold what the network below it gave.
    """

    def __init__(
        self,
        classifier: Classifier,
        *,
        strategy: tf.distribute.Strategy,
        cut: Cut | None = None,
        metrics: Mapping[str, Metric] | None = None,
    ):
        self._strategy = strategy
        metrics = {**make_metrics("", task=classifier.task), **(metrics or {})}
        measured_loss = classifier.task.cross_entropy()
        self._means = Means(["loss", *metrics])

        # In float32 whatever the network computes in.
        def scored(features: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            logits = classifier.logits(features)
            return logits, measured_loss(logits, labels, None)

        @plain
        def score(batch: dict[str, tf.Tensor]) -> tf.Tensor:
            features = classifier.features(batch["image"], cut=cut)
            logits, losses = apart(scored, features, batch["label"])
            measured = {name: metric(logits, batch) for name, metric in metrics.items()}
            self._means.add(sums_of({"loss": losses, **measured}, mask=batch["mask"]))
            return logits

        self.step = tf.function(lambda batch: strategy.run(score, args=(batch,)), autograph=False)

    def __call__(
        self, dataset: tf.data.Dataset, *, between_batches: Callable[[], None] = lambda: None
    ) -> Evaluation:
        """Scores all examples of a dataset of batches; `between_batches` may raise to end it.

        Of several workers, each has the rows of its own in `dataset`, and is told of all.
        """
        self._means.reset()
        kept: dict[str, list[np.ndarray]] = {"id": [], "label": [], "mask": [], "logits": []}
        for batch in divided(self._strategy, dataset):
            parts = {"logits": self.step(batch), **batch}
            for name, values in kept.items():
                values.extend(own_rows(self._strategy, parts[name]))
            between_batches()
        whole = {name: rows_of_all(self._strategy, values) for name, values in kept.items()}
        real = whole["mask"] > 0
        means = self._means.read()
        return Evaluation(
            loss=means.pop("loss"),
            ids=whole["id"][real],
            labels=whole["label"][real],
            logits=whole["logits"][real],
            metrics=means,
        )

    def held(self, dataset: tf.data.Dataset) -> Callable[[], Evaluation]:
        """Returns what scores a dataset whenever it is called, in one call, as `__call__` does.

        Its batches are held in memory: for features, many evaluations of which take less time than their
        beginnings. On one device.
        """
        batches = list(dataset)
        parts = {name: tf.stack([batch[name] for batch in batches]) for name in batches[0]}
        real = tf.reshape(parts["mask"], [-1]).numpy() > 0
        ids, labels = (np.concatenate([batch[name] for batch in batches])[real] for name in ("id", "label"))

        @tf.function
        def score_all() -> tf.Tensor:
            found = tf.TensorArray(tf.float32, size=len(batches))
            for i in tf.range(len(batches)):
                found = found.write(i, self.step({name: part[i] for name, part in parts.items()}))
            return found.concat()

        def score() -> Evaluation:
            self._means.reset()
            logits = score_all().numpy()[real]
            means = self._means.read()
            return Evaluation(means.pop("loss"), ids, labels, logits, means)

        return score
