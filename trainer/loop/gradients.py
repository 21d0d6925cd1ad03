"""What the examples of one device add to loss and gradients, and what BatchNorm sees meanwhile."""

from typing import Any, NamedTuple

import tensorflow as tf

from trainer.loop.losses import Loss
from trainer.loop.phases import Phase
from trainer.loop.state import TrainState
from trainer.model.batch_norm import Moments, Pool, move, no_moments, over_devices, pooled, pooling
from trainer.model.classifier import Classifier
from trainer.model.cuts import Cut
from trainer.model.dropout import Draws
from trainer.precision import apart, arithmetic

# Written in TensorFlow's own operations: nothing in it, or in what it calls, is for AutoGraph to find.
plain = tf.autograph.experimental.do_not_convert


class Sums(NamedTuple):
    """What parts of a batch come to, and what is added up over them."""

    loss: tf.Tensor
    """[] float32: what the examples add to the mean loss of the whole batch."""
    gradients: list[tf.Tensor]
    """Of that, for each variable that trains."""
    seen: "Seen"


class Seen(NamedTuple):
    """What BatchNorm saw, where that is pooled; else empty."""

    moments: list[Moments]
    """Of each layer that tells them."""
    moved: list[tf.Tensor]
    """Of each other statistic: by how much a part moved it, times the examples of the part."""


class Statistics:
    """Moves the stored statistics of BatchNorm once an update, however a batch is divided.

    A network moves them by itself in each call, each device its own. Layers that tell what they see
    (`Backbone.batch_norms`) are moved towards the moments of the whole batch. Of any other statistic, which
    only a SavedModel knows how to move, each part begins at the value before the update, and the mean of
    what they come to is taken, weighted by their examples. The mean of a channel is that of the whole batch
    then; its variance lacks what the means of the parts differ by.
    """

    def __init__(self, classifier: Classifier, *, num_replicas: int, num_parts: int):
        self._layers = classifier.backbone.batch_norms
        # Within a loop, devices cannot talk to one another.
        self._together = num_replicas > 1 and num_parts == 1
        told = {id(v) for layer in self._layers for v in (layer.moving_mean, layer.moving_variance)}
        self._others = [
            v for v in classifier.named_variables.values() if not v.trainable and id(v) not in told
        ]

    def nothing(self) -> Seen:
        return Seen(
            [no_moments(layer) for layer in self._layers],
            [tf.zeros(v.shape, v.dtype) for v in self._others if v.dtype.is_floating],
        )

    def read(self) -> list[tf.Tensor]:
        """Returns the statistics that a network moves by itself, on each device its own."""
        return [tf.raw_ops.ReadVariableOp(resource=v.handle, dtype=v.dtype) for v in self._others]

    def assign(self, values: list[tf.Tensor]) -> None:
        for variable, value in zip(self._others, values, strict=True):
            tf.raw_ops.AssignVariableOp(resource=variable.handle, value=value)

    def pool(self, count: tf.Tensor) -> Pool:
        """Returns the pool for a call on `count` [] float32 real examples; if 0, on one of padding."""
        return Pool(tf.minimum(count, 1.0), together=self._together)

    def seen(self, pool: Pool, count: tf.Tensor, before: list[tf.Tensor]) -> Seen:
        """Returns what a call saw, after it."""
        moved = [
            # Of padding, whatever came of it, nothing.
            tf.where(count > 0, (after - was) * tf.cast(count, was.dtype), 0)
            for variable, was, after in zip(self._others, before, self.read(), strict=True)
            if variable.dtype.is_floating
        ]
        return Seen([pool.moments(layer) for layer in self._layers], moved)

    def move(self, seen: Seen, count: tf.Tensor, before: list[tf.Tensor]) -> None:
        """Moves all statistics, the same on all devices; `count` are the examples of the whole batch."""
        for layer, moments in zip(self._layers, seen.moments, strict=True):
            move(layer, moments if self._together else over_devices(moments))
        if not seen.moved:
            return
        replica = tf.distribute.get_replica_context()
        moved = iter(replica.all_reduce(tf.distribute.ReduceOp.SUM, seen.moved))
        after = [
            # What has not moved stays to the last digit.
            was + next(moved) / tf.cast(count, was.dtype) if was.dtype.is_floating else value
            for was, value in zip(before, self.read(), strict=True)
        ]
        self.assign(after)


def scored(
    classifier: Classifier,
    features: tf.Tensor,
    labels: tf.Tensor,
    targets: tf.Tensor | None = None,
    *,
    loss: Loss,
    draws: Draws | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns logits [B, K] and losses [B] of features, float32 if the graph they are in is not rewritten.

    Args:
      classifier: whose head it is.
      features: [B, D].
      labels: [B] int64.
      targets: [B, K], as a `Loss` takes them.
      loss: of each example.
      draws: of dropout, while training.
    """
    logits = classifier.logits(features, draws=draws)
    return logits, loss(logits, labels, targets)


def scored_apart(
    classifier: Classifier, features: tf.Tensor, labels: tf.Tensor, *args: tf.Tensor | None, **kwargs: Any
) -> tuple[tf.Tensor, tf.Tensor]:
    """Does the same as `scored`, in float32 whatever the network computes in."""

    def score(features: tf.Tensor, labels: tf.Tensor, *args: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
        return scored(classifier, features, labels, *args, **kwargs)

    return apart(score, features, labels, *args)


class Gradients:
    """Computes the gradients of a phase; see `make_train_run` for the arguments."""

    def __init__(
        self,
        state: TrainState,
        phase: Phase,
        *,
        num_replicas: int,
        loss: Loss,
        num_parts: int,
        cut: Cut | None,
        precision: str,
    ):
        self._state, self._loss, self._cut, self._precision = state, loss, cut, precision
        # In one graph TensorFlow orders sums and products as it likes: that is how float32 has always been.
        self._scored = scored if precision == "float32" else scored_apart
        self._num_replicas, self._num_parts = num_replicas, num_parts
        self._variables = list(state.trained.values())
        self._backbone_trains = any(name.startswith("backbone/") for name in state.trained)
        self._bn_batch = phase.spec.bn == "batch"
        self._statistics = None
        if self._bn_batch and num_replicas * num_parts > 1:
            self._statistics = Statistics(state.classifier, num_replicas=num_replicas, num_parts=num_parts)

    @plain
    def __call__(
        self, batch: dict[str, tf.Tensor], count: tf.Tensor, seed: tf.Tensor
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """Returns what the examples of one replica add to the loss and to the gradients.

        Args:
          batch: the replica's rows of a batch.
          count: [] float32, the real examples of the whole batch.
          seed: [2] int32, of the update.
        """
        replica = tf.distribute.get_replica_context()
        num_rows = tf.shape(batch["mask"])[0]
        if "place" not in batch:
            first = num_rows * tf.cast(replica.replica_id_in_sync_group, tf.int32)
            batch = {**batch, "place": first + tf.range(num_rows)}
        draws = Draws(seed, batch["place"], num_rows * self._num_replicas)
        before = self._statistics.read() if self._statistics else []
        sums = (self._in_parts if self._num_parts > 1 else self._of)(batch, count, draws, before)
        if self._statistics:
            self._statistics.move(sums.seen, count, before)
        return sums.loss, sums.gradients

    def _of(
        self, batch: dict[str, tf.Tensor], count: tf.Tensor, draws: Draws, before: list[tf.Tensor]
    ) -> Sums:
        """Computes some examples at once; `before` are the statistics before the update."""
        classifier, state = self._state.classifier, self._state
        here = tf.reduce_sum(batch["mask"])
        if self._bn_batch:
            batch = _real(batch)
        pool = self._statistics.pool(here) if self._statistics else None
        # Only what trains is watched, so a frozen backbone costs no backward pass and no memory.
        with tf.GradientTape(watch_accessed_variables=False) as tape, pooling(pool):
            tape.watch(self._variables)
            draws = draws._replace(places=batch["place"])
            features = classifier.features(
                batch["image"],
                cut=self._cut,
                backbone_trains=self._backbone_trains or self._bn_batch,
                bn_batch=self._bn_batch,
                draws=draws,
            )
            logits, losses = self._scored(
                classifier, features, batch["label"], batch.get("target"), loss=self._loss, draws=draws
            )
            mean = tf.reduce_sum(losses * batch["mask"]) / count
            if self._backbone_trains and (penalties := classifier.backbone.regularization_losses()):
                mean += tf.add_n(penalties) / (self._num_replicas * self._num_parts)
            scaled = mean * state.loss_scale.scale if self._precision == "float16" else mean
        with arithmetic("float32"):  # For those of what is `apart`.
            unconnected = tf.UnconnectedGradients.ZERO
            gradients = tape.gradient(scaled, self._variables, unconnected_gradients=unconnected)
        state.metrics.update(losses=losses, logits=logits, labels=batch["label"], mask=batch["mask"])
        seen = self._statistics.seen(pool, here, before) if self._statistics and pool else Seen([], [])
        return Sums(mean, gradients, seen)

    def _in_parts(
        self, batch: dict[str, tf.Tensor], count: tf.Tensor, draws: Draws, before: list[tf.Tensor]
    ) -> Sums:
        """Computes the same, never holding more than a part of the activations."""
        parts = {name: tf.reshape(x, [self._num_parts, -1, *x.shape[1:]]) for name, x in batch.items()}
        statistics = self._statistics

        def add(i: tf.Tensor, sums: Sums) -> tuple[tf.Tensor, Sums]:
            if statistics:
                statistics.assign(before)
            part = self._of({name: x[i] for name, x in parts.items()}, count, draws, before)
            return i + 1, _added(sums, part)

        nothing = statistics.nothing() if statistics else Seen([], [])
        start = Sums(tf.zeros([]), [tf.zeros(v.shape, v.dtype) for v in self._variables], nothing)
        _, sums = tf.while_loop(
            lambda i, _: i < self._num_parts, add, (tf.constant(0), start), parallel_iterations=1
        )
        return sums


def _added(one: Sums, other: Sums) -> Sums:
    gradients = [s + g for s, g in zip(one.gradients, other.gradients, strict=True)]
    moments = [pooled(a, b) for a, b in zip(one.seen.moments, other.seen.moments, strict=True)]
    moved = [a + b for a, b in zip(one.seen.moved, other.seen.moved, strict=True)]
    return Sums(one.loss + other.loss, gradients, Seen(moments, moved))


def _real(batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Returns the rows that are no padding, any number of them; if there is none, one row of it.

    The statistics of a batch are those of its real examples. Some row there must be, as few operations are
    defined on none.
    """
    real = tf.where(batch["mask"] > 0)[:, 0]
    missing = tf.cast(tf.equal(tf.size(real), 0), tf.int32)
    rows = tf.concat([real, tf.zeros([missing], tf.int64)], axis=0)
    return {name: tf.gather(x, rows) for name, x in batch.items()}
