"""Gradients of a batch, in parts where it is asked for, and what BatchNorm sees meanwhile."""

from collections.abc import Collection
from typing import NamedTuple

import tensorflow as tf

from trainer.loop.gradient_rules import Compute, Computed
from trainer.loop.metrics import Sums, require_per_example, sums_of
from trainer.loop.objectives import Forward, Recipe, metric_names_of
from trainer.loop.state import TrainState
from trainer.model.batch_norm import Moments, Pool, move, no_moments, over_devices, pooled, pooling
from trainer.model.classifier import Classifier
from trainer.model.cuts import Cut
from trainer.model.dropout import Draws
from trainer.precision import arithmetic
from trainer.values import UsageError

# Written in TensorFlow's own operations: nothing in it, or in what it calls, is for AutoGraph to find.
plain = tf.autograph.experimental.do_not_convert
# A number of its own, for the seed of a gradient rule.
_OF_RULE = 0x52


class Part(NamedTuple):
    """What a part of a batch comes to, and what is added up over the parts."""

    loss: tf.Tensor
    """[] float32: what the examples add to the mean loss of the whole batch."""
    gradients: list[tf.Tensor]
    """Of that, for each variable that trains."""
    sums: Sums
    """Of the metrics."""
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


class Gradients:
    """Computes the gradients of a phase."""

    def __init__(
        self, state: TrainState, recipe: Recipe, *, num_replicas: int, cut: Cut | None, precision: str
    ):
        """Notes how to compute; see `make_train_run` for the arguments."""
        self._state, self._objective, self._metrics = state, recipe.objective, recipe.metrics
        self._cut, self._precision = cut, precision
        self._num_replicas, self._num_parts = num_replicas, recipe.num_parts
        self._variables = list(state.trained.values())
        self._backbone_trains = any(name.startswith("backbone/") for name in state.trained)
        self._bn_batch = state.phase.spec.bn == "batch"
        self._statistics = None
        if self._bn_batch and num_replicas * self._num_parts > 1:
            parts = {"num_replicas": num_replicas, "num_parts": self._num_parts}
            self._statistics = Statistics(state.classifier, **parts)
        named = state.classifier.named_variables.values()
        self._moving = [v for v in named if not v.trainable] if self._bn_batch else []

    def of(self, batch: dict[str, tf.Tensor], count: tf.Tensor, seed: tf.Tensor) -> Compute:
        """Returns what a gradient rule computes a batch with: in its first call alone, statistics move."""
        calls = 0

        @plain
        def compute() -> Computed:
            nonlocal calls
            calls += 1
            return self(batch, count, seed, again=calls > 1)

        return compute

    @plain
    def __call__(
        self, batch: dict[str, tf.Tensor], count: tf.Tensor, seed: tf.Tensor, *, again: bool = False
    ) -> Computed:
        """Computes a batch at the weights as they are.

        Args:
          batch: the replica's rows of it.
          count: [] float32, the real examples of the whole batch.
          seed: [2] int32, of the update.
          again: whether the same batch was computed before, so that no statistic moves.
        """
        kept = [tf.raw_ops.ReadVariableOp(resource=v.handle, dtype=v.dtype) for v in self._moving if again]
        replica = tf.distribute.get_replica_context()
        num_rows = tf.shape(batch["mask"])[0]
        if "place" not in batch:
            first = num_rows * tf.cast(replica.replica_id_in_sync_group, tf.int32)
            batch = {**batch, "place": first + tf.range(num_rows)}
        draws = Draws(seed, batch["place"], num_rows * self._num_replicas)
        before = self._statistics.read() if self._statistics else []
        part = (self._in_parts if self._num_parts > 1 else self._of)(batch, count, draws, before)
        if self._statistics:
            self._statistics.move(part.seen, count, before)
        # Of the whole batch, on every device.
        gradients = replica.all_reduce(tf.distribute.ReduceOp.SUM, part.gradients)
        if self._precision == "float16":
            gradients = [gradient / self._state.loss_scale.scale for gradient in gradients]
        with tf.control_dependencies(gradients):
            for variable, value in zip(self._moving if again else [], kept, strict=True):
                tf.raw_ops.AssignVariableOp(resource=variable.handle, value=value)
        # Not what the objective draws by.
        own_seed = tf.random.experimental.stateless_fold_in(seed, _OF_RULE)
        return Computed(part.loss, gradients, part.sums, own_seed)

    def _of(
        self, batch: dict[str, tf.Tensor], count: tf.Tensor, draws: Draws, before: list[tf.Tensor]
    ) -> Part:
        """Computes some examples at once; `before` are the statistics before the update."""
        classifier, state = self._state.classifier, self._state
        here = tf.reduce_sum(batch["mask"])
        if self._bn_batch:
            batch = _real(batch)
        pool = self._statistics.pool(here) if self._statistics else None
        draws = draws._replace(places=batch["place"])
        forward = Forward(
            classifier,
            cut=self._cut,
            backbone_trains=self._backbone_trains or self._bn_batch,
            bn_batch=self._bn_batch,
            draws=draws,
            precision=self._precision,
        )
        # Only what trains is watched, so a frozen backbone costs no backward pass and no memory.
        with tf.GradientTape(watch_accessed_variables=False) as tape, pooling(pool):
            tape.watch(self._variables)
            terms = self._objective(forward, batch, draws.seed)
            require_per_example(terms.losses, batch["mask"], what="the loss")
            _require_declared(terms.metrics, metric_names_of(self._objective))
            losses = terms.losses * batch["weight"] if "weight" in batch else terms.losses
            mean = tf.reduce_sum(losses * batch["mask"]) / count
            if self._backbone_trains and (penalties := classifier.backbone.regularization_losses()):
                mean += tf.add_n(penalties) / (self._num_replicas * self._num_parts)
            scaled = mean * state.loss_scale.scale if self._precision == "float16" else mean
        with arithmetic("float32"):  # For those of what is `apart`.
            unconnected = tf.UnconnectedGradients.ZERO
            gradients = tape.gradient(scaled, self._variables, unconnected_gradients=unconnected)
        measured = {name: metric(terms.logits, batch) for name, metric in self._metrics.items()}
        sums = sums_of({"loss": losses, **measured, **terms.metrics}, mask=batch["mask"])
        seen = self._statistics.seen(pool, here, before) if self._statistics and pool else Seen([], [])
        return Part(mean, gradients, sums, seen)

    def _in_parts(
        self, batch: dict[str, tf.Tensor], count: tf.Tensor, draws: Draws, before: list[tf.Tensor]
    ) -> Part:
        """Computes the same, never holding more than a part of the activations."""
        parts = {name: tf.reshape(x, [self._num_parts, -1, *x.shape[1:]]) for name, x in batch.items()}
        statistics = self._statistics

        def add(i: tf.Tensor, done: Part) -> tuple[tf.Tensor, Part]:
            if statistics:
                statistics.assign(before)
            part = self._of({name: x[i] for name, x in parts.items()}, count, draws, before)
            return i + 1, _added(done, part)

        zero = tf.zeros([])
        nothing = statistics.nothing() if statistics else Seen([], [])
        names = ["loss", *self._metrics, *metric_names_of(self._objective)]
        start = Part(
            zero,
            [tf.zeros(v.shape, v.dtype) for v in self._variables],
            dict.fromkeys(names, (zero, zero)),
            nothing,
        )
        _, done = tf.while_loop(
            lambda i, _: i < self._num_parts, add, (tf.constant(0), start), parallel_iterations=1
        )
        return done


def _require_declared(told: Collection[str], names: Collection[str]) -> None:
    """Makes sure that an objective tells the metrics of `metric_names`, and no others.

    Raises:
      UsageError: it does not: means of the others would be missing, or would be those of nothing.
    """
    for name in told:
        if name not in names:
            raise UsageError(f"{name} is told as a metric, and is not among metric_names of the objective")
    for name in names:
        if name not in told:
            raise UsageError(f"{name} is among metric_names of the objective, and is not told as a metric")


def _added(one: Part, other: Part) -> Part:
    gradients = [s + g for s, g in zip(one.gradients, other.gradients, strict=True)]
    sums = {
        name: (total + other.sums[name][0], n + other.sums[name][1]) for name, (total, n) in one.sums.items()
    }
    moments = [pooled(a, b) for a, b in zip(one.seen.moments, other.seen.moments, strict=True)]
    moved = [a + b for a, b in zip(one.seen.moved, other.seen.moved, strict=True)]
    return Part(one.loss + other.loss, gradients, sums, Seen(moments, moved))


def _real(batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Returns the rows that are no padding, any number of them; if there is none, one row of it.

    The statistics of a batch are those of its real examples. Some row there must be, as few operations are
    defined on none.
    """
    real = tf.where(batch["mask"] > 0)[:, 0]
    missing = tf.cast(tf.equal(tf.size(real), 0), tf.int32)
    rows = tf.concat([real, tf.zeros([missing], tf.int64)], axis=0)
    return {name: tf.gather(x, rows) for name, x in batch.items()}
