"""One update, in the order in which it happens: tensors in, variables changed."""

import math
from collections.abc import Callable, Collection

import tensorflow as tf

from trainer.loop.gradient_rules import computed_by, counted
from trainer.loop.gradients import Gradients, plain
from trainer.loop.objectives import Recipe
from trainer.loop.phases import Phase
from trainer.loop.state import TrainState
from trainer.model.cuts import Cut

Run = Callable[[tf.data.Iterator, tf.Tensor], tf.Tensor]
"""(iterator, number of steps) -> seconds spent waiting for the iterator."""

Batch = dict[str, tf.Tensor]


class Step:
    """Does the updates of a phase.

    What trains and how BatchNorm behaves is fixed when it is traced: every phase needs one of its own, since
    changing `trainable` after tracing would change nothing.
    """

    def __init__(
        self,
        state: TrainState,
        recipe: Recipe,
        *,
        strategy: tf.distribute.Strategy,
        cut: Cut | None,
        precision: str,
    ):
        self._state, self._recipe, self._strategy = state, recipe, strategy
        self._variables = list(state.trained.values())
        self._gradients = Gradients(
            state, recipe, num_replicas=strategy.num_replicas_in_sync, cut=cut, precision=precision
        )
        # In float16 the smallest gradients would be 0, and an update with one that is not finite is left out.
        self._scales_loss = precision == "float16"

    def __call__(self, batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
        """Takes one step on a batch, divided over the devices; returns its loss and its gradient norm, []."""
        loss, norm = self._strategy.run(self._on_device, args=(batch,))
        loss = self._strategy.reduce(tf.distribute.ReduceOp.SUM, loss, axis=None)
        norm = self._strategy.reduce(tf.distribute.ReduceOp.MEAN, norm, axis=None)
        return loss, norm

    @plain
    def _on_device(self, batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
        """The update on one device: its rows of image [b, ...], label [b], mask [b], id [b]."""
        state, replica = self._state, tf.distribute.get_replica_context()
        # Everything that is drawn is a function of (seed, step), so that a resumed run draws the same.
        seed = tf.random.experimental.stateless_fold_in([self._recipe.seed, 3], state.step_variable)
        # The mean is over the real examples of the whole batch, and not of a device.
        count = replica.all_reduce(tf.distribute.ReduceOp.SUM, tf.reduce_sum(batch["mask"]))
        compute = self._gradients.of(batch, count, seed)
        kept = [(v, v.read_value()) for v in state.of_gradient_rule().values() if self._scales_loss]
        rule = self._recipe.gradient_rule
        loss, gradients, sums, _ = computed_by(rule, compute, self._variables, state.slots)
        norm = tf.linalg.global_norm(gradients)
        if self._recipe.limit:
            gradients = self._recipe.limit(gradients, norm)
        told = counted(rule, sums, tf.math.is_finite(norm)) if self._scales_loss else sums
        # Added up over devices at once: kept by each, they would be rounded otherwise in a run that goes on.
        state.metrics.add(replica.all_reduce(tf.distribute.ReduceOp.SUM, told), of_all=True)
        if not self._scales_loss:
            return loss, self._apply(gradients, norm)
        finite, hopeless = tf.math.is_finite(norm), state.loss_scale.scale <= 1.0
        tf.cond(finite, lambda: self._apply(gradients, norm), lambda: tf.zeros([]))
        for variable, before in kept:
            variable.assign(tf.where(finite, variable, before))
        state.loss_scale.note(finite)
        # Nothing for the guard to see: the next update has half the scale.
        return loss, tf.where(finite | hopeless, norm, 0.0)

    def _apply(self, gradients: list[tf.Tensor], norm: tf.Tensor) -> tf.Tensor:
        state, pairs = self._state, zip(gradients, self._variables, strict=True)
        # They are those of the whole batch already.
        state.optimizer.apply_gradients(pairs, skip_gradients_aggregation=True)
        state.metrics.add({"gradient_norm": (norm, tf.ones([]))}, of_all=True)
        # The norm is known before the update is done; whoever takes the time must not be told too early.
        done = [tf.raw_ops.VariableShape(input=variable.handle) for variable in self._variables]
        with tf.control_dependencies(done):
            return tf.identity(norm)


def make_train_run(
    state: TrainState,
    recipe: Recipe,
    *,
    strategy: tf.distribute.Strategy,
    cut: Cut | None = None,
    precision: str = "float32",
    max_loss: float = math.inf,
    left_out: Collection[int] = (),
) -> tf.types.experimental.PolymorphicFunction:
    """Makes the function that does any number of updates of the state's phase in one call, a `Run`.

    An update whose loss or gradient is not finite, or whose loss is above `max_loss`, is the last one: it
    is noted in the state. The learning rate goes by the step, whatever was left out.

    Args:
      state: what is updated.
      recipe: what an update does.
      strategy: the devices.
      cut: where the batches begin: they hold what the network below it gave.
      precision: of the calls to come. In float32, head and loss stand in one graph with the network.
      max_loss: the largest loss to go on with.
      left_out: steps whose batches pass unused.
    """
    phase: Phase = state.phase
    step = Step(state, recipe, strategy=strategy, cut=cut, precision=precision)
    passes = sorted(number for number in left_out if phase.start_step <= number < phase.stop_step)

    @tf.function
    def run(iterator: tf.data.Iterator, num_steps: tf.Tensor) -> tf.Tensor:
        waiting_secs = tf.zeros([], tf.float64)
        done_at = tf.timestamp()
        for _ in tf.range(num_steps):
            if state.unfit.step >= 0:
                break
            batch = next(iterator)
            with tf.control_dependencies(tf.nest.flatten(batch, expand_composites=True)):
                got_at = tf.timestamp()
            # A batch that was there before the last update had finished cost nothing.
            waiting_secs += tf.maximum(got_at - done_at, 0.0)
            if bool(passes) and tf.reduce_any(tf.equal(state.step_variable, tf.constant(passes, tf.int64))):
                loss, norm = tf.zeros([]), tf.zeros([])
            else:
                loss, norm = step(batch)
            if state.shadows:
                # After an update that was left out, too: whether an epoch ends goes by the step.
                state.shadows.update(state.step_variable - phase.start_step)
            if not (tf.math.is_finite(loss) and tf.math.is_finite(norm) and loss <= max_loss):
                state.unfit.note(step=state.step_variable, loss=loss, gradient_norm=norm)
            state.step_variable.assign_add(1)
            with tf.control_dependencies([loss, norm]):
                done_at = tf.timestamp()
        return waiting_secs

    return run
