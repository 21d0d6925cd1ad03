"""What an update makes smaller, and what else a recipe says of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import tensorflow as tf

from trainer.loop.gradient_rules import GradientRule, Limit, plain
from trainer.loop.losses import PLAIN_LOSS
from trainer.loop.metrics import Metric, accuracy
from trainer.model.classifier import Classifier
from trainer.model.cuts import Cut
from trainer.model.dropout import Draws
from trainer.precision import apart
from trainer.registry import Registry
from trainer.tasks import Loss


class Forward:
    """The network of a phase, for an objective to call: with its cut, BatchNorm mode and dropout."""

    def __init__(
        self,
        classifier: Classifier,
        *,
        cut: Cut | None,
        backbone_trains: bool,
        bn_batch: bool,
        draws: Draws,
        precision: str,
    ):
        self._classifier, self._cut, self._draws = classifier, cut, draws
        self._backbone_trains, self._bn_batch = backbone_trains, bn_batch
        self._is_whole = precision == "float32"

    def features(self, images: tf.Tensor) -> tf.Tensor:
        """Maps images, as a batch has them, to features [B, D] float32."""
        return self._classifier.features(
            images,
            cut=self._cut,
            backbone_trains=self._backbone_trains,
            bn_batch=self._bn_batch,
            draws=self._draws,
        )

    def logits(self, features: tf.Tensor) -> tf.Tensor:
        """Maps features [B, D] to logits [B, K] float32. To be called inside of `float32`."""
        return self._classifier.logits(features, draws=self._draws)

    def float32(self, function: Callable[..., Any], *args: tf.Tensor | None) -> Any:
        """Calls a function of tensors that computes in float32 whatever --precision the network has.

        In float32 it is part of one graph with the network, which TensorFlow simplifies as a whole.
        """
        return function(*args) if self._is_whole else apart(function, *args)

    def gather(self, values: tf.Tensor, batch: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Returns values [b, ...] float32 of a device's examples for those of all devices, [B, ...].

        Row batch["place"] is an example's own; rows of padding are 0. Gradients go back to where a value came
        from. Not with --accumulate, under which a batch is computed part after part.
        """
        real = tf.reshape(batch["mask"], [-1, *[1] * (len(values.shape) - 1)])
        shape = tf.concat([[self._draws.batch_size], tf.shape(values)[1:]], axis=0)
        # `where`, as what a network makes of padding need not be finite.
        rows = tf.where(real > 0, values, 0.0)
        own = tf.tensor_scatter_nd_add(tf.zeros(shape), batch["place"][:, None], rows)
        replica = tf.distribute.get_replica_context()
        return replica.all_reduce(tf.distribute.ReduceOp.SUM, own)


class Terms(NamedTuple):
    """What an objective is made of, example by example."""

    losses: tf.Tensor
    """[B] float32; their mean over the real examples of a batch is made smaller."""
    logits: tf.Tensor
    """[B, K] float32: what metrics are computed from."""
    metrics: Mapping[str, tf.Tensor] = {}
    """{name: [B] float32} of the names in `metric_names`, told as means."""


class Objective(Protocol):
    """Maps a batch to terms.

    It may have an attribute `variables`, {name: tf.Variable}, of what it keeps from update to update; those
    that are trainable are trained. And one `metric_names`, of the metrics in its terms. And a method
    `start()`, which is called before the first update of a run: for what takes long to compute and is kept in
    `variables`. A run that goes on has these from its checkpoint, and so have `evaluate` and the others.
    """

    def __call__(self, forward: Forward, batch: Mapping[str, tf.Tensor], seed: tf.Tensor) -> Terms:
        """Computes the terms of a batch.

        Args:
          forward: the network.
          batch: see `data.order.Batch`; in the first axis B, with mask [B] 0 for padding, and place [B]
            int32, where each example is in the batch of all devices.
          seed: [2] int32, another one for each update; for `tf.random.stateless_*`.
        """
        ...


OBJECTIVES: Registry[Objective] = Registry("objective", flag="--objective")


@OBJECTIVES.register("supervised")
def supervised(*, loss: Loss) -> Objective:
    """The loss of --loss, of the labels."""

    def terms(forward: Forward, batch: Mapping[str, tf.Tensor], seed: tf.Tensor) -> Terms:
        def score(features: tf.Tensor, labels: tf.Tensor, targets: tf.Tensor | None) -> tuple[Any, ...]:
            logits = forward.logits(features)
            return logits, loss(logits, labels, targets)

        features = forward.features(batch["image"])
        logits, losses = forward.float32(score, features, batch["label"], batch.get("target"))
        return Terms(losses, logits)

    return terms


def variables_of(made: Objective | GradientRule) -> dict[str, tf.Variable]:
    """Returns {name: variable} of what an objective, or a gradient rule, keeps."""
    return dict(getattr(made, "variables", {}))


def start(objective: Objective) -> None:
    """Prepares an objective for the first update of a run."""
    getattr(objective, "start", lambda: None)()


def metric_names_of(made: Objective | GradientRule) -> tuple[str, ...]:
    """Returns the names of the metrics that an objective, or a gradient rule, computes besides the loss."""
    return tuple(getattr(made, "metric_names", ()))


@dataclass(frozen=True)
class Recipe:
    """Made once, from the options."""

    objective: Objective = field(default_factory=lambda: supervised(loss=PLAIN_LOSS))
    """What an update makes smaller."""
    metrics: Mapping[str, Metric] = field(default_factory=lambda: {"accuracy": accuracy()})
    """{name: what is measured of the examples besides the loss}."""
    gradient_rule: GradientRule = field(default_factory=plain)
    """Which gradients an update takes."""
    limit: Limit | None = None
    """What is done to them before they are used."""
    num_parts: int = 1
    """Each batch is computed in so many parts, one after another, whose gradients are added: the same update
    but for rounding, in less memory, unless BatchNorm goes by the batch: then it normalises each part by
    itself."""
    seed: int = 0
    """Of dropout, and of what objectives and gradient rules draw."""
