"""Train and evaluation steps: tensors in, metrics updated, no input or output of files."""

import math
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from trainer.loop.gradients import Gradients, plain, scored_apart
from trainer.loop.limits import Limit
from trainer.loop.losses import PLAIN_LOSS, Loss
from trainer.loop.phases import Phase
from trainer.loop.state import Metrics, TrainState
from trainer.model.classifier import Classifier
from trainer.model.cuts import Cut

Run = Callable[[tf.data.Iterator, tf.Tensor], tf.Tensor]
"""(iterator, number of steps) -> seconds spent waiting for the iterator."""


def make_train_run(
    state: TrainState,
    phase: Phase,
    *,
    strategy: tf.distribute.Strategy,
    seed: int,
    loss: Loss = PLAIN_LOSS,
    limit: Limit | None = None,
    num_parts: int = 1,
    cut: Cut | None = None,
    precision: str = "float32",
    max_loss: float = math.inf,
    left_out: Collection[int] = (),
) -> tf.types.experimental.PolymorphicFunction:
    """Makes the function that does any number of updates in one call, a `Run` that TensorFlow traces.

    What trains and how BatchNorm behaves is fixed here, at trace time: every phase needs a
    function of its own, since changing `trainable` after tracing would change nothing. With a cut,
    the batches hold what the network below it gave. In float16, on one device, the loss is scaled: an
    update whose gradients are not finite is left out, and the scale halved. The learning rate goes by the
    step, whatever was left out.

    An update whose loss or gradient is not finite, or whose loss is above `max_loss`, is the last one: it
    is noted in the state. Of the steps `left_out` the batches pass unused.

    Args:
      state: what is updated.
      phase: whose updates these are.
      strategy: the devices.
      seed: of dropout.
      loss: of each example, as `losses.make_loss` makes it.
      limit: what is done to the gradients before they are used.
      num_parts: each batch is computed in so many parts, one after another, whose gradients are added:
        the same update but for rounding, in less memory, unless BatchNorm goes by the batch: then it
        normalises each part by itself.
      cut: where the batches begin.
      precision: of the calls to come; in float32 head and loss stand in one graph with the network.
      max_loss: the largest loss to go on with.
      left_out: steps.
    """
    optimizer, shadows = state.optimizer, state.shadows
    loss_scaling = precision == "float16"
    variables = list(state.trained.values())
    gradients_of = Gradients(
        state,
        phase,
        num_replicas=strategy.num_replicas_in_sync,
        loss=loss,
        num_parts=num_parts,
        cut=cut,
        precision=precision,
    )

    @plain
    def update(batch: dict[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        """Takes one step on one replica's part of a batch; returns its loss and the gradient norm."""
        replica = tf.distribute.get_replica_context()
        step_seed = tf.random.experimental.stateless_fold_in([seed, 3], state.step_variable)
        count = replica.all_reduce(tf.distribute.ReduceOp.SUM, tf.reduce_sum(batch["mask"]))
        mean, gradients = gradients_of(batch, count, step_seed)
        gradients = replica.all_reduce(tf.distribute.ReduceOp.SUM, gradients)
        if loss_scaling:
            gradients = [gradient / state.loss_scale.scale for gradient in gradients]
        norm = tf.linalg.global_norm(gradients)
        if limit:
            gradients = limit(gradients, norm)
        if loss_scaling:
            finite, hopeless = tf.math.is_finite(norm), state.loss_scale.scale <= 1.0
            tf.cond(finite, lambda: apply(gradients, norm), lambda: tf.zeros([]))
            state.loss_scale.note(finite)
            # Nothing for the guard to see: the next update has half the scale.
            return mean, tf.where(finite | hopeless, norm, 0.0)
        return mean, apply(gradients, norm)

    def apply(gradients: list[tf.Tensor], norm: tf.Tensor) -> tf.Tensor:
        optimizer.apply_gradients(zip(gradients, variables, strict=True), skip_gradients_aggregation=True)
        state.gradient_norm.update_state(norm)
        # The norm is known before the update is done; whoever takes the time must not be told too early.
        with tf.control_dependencies([tf.raw_ops.VariableShape(input=v.handle) for v in variables]):
            return tf.identity(norm)

    @plain
    def is_left_out() -> tf.Tensor | bool:
        """Returns whether the batch of the next update is to pass unused; False where none is, ever."""
        steps = sorted(step for step in left_out if phase.start_step <= step < phase.stop_step)
        return bool(steps) and tf.reduce_any(tf.equal(state.step_variable, tf.constant(steps, tf.int64)))

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
            if is_left_out():
                mean, norm = tf.zeros([]), tf.zeros([])
            else:
                mean, norm = strategy.run(update, args=(batch,))
                mean = strategy.reduce(tf.distribute.ReduceOp.SUM, mean, axis=None)
                norm = strategy.reduce(tf.distribute.ReduceOp.MEAN, norm, axis=None)
            if shadows:
                # After an update that was left out, too: whether an epoch ends goes by the step.
                shadows.update(state.step_variable - phase.start_step)
            if not (tf.math.is_finite(mean) and tf.math.is_finite(norm) and mean <= max_loss):
                state.unfit.note(step=state.step_variable, loss=mean, gradient_norm=norm)
            state.step_variable.assign_add(1)
            with tf.control_dependencies([mean, norm]):
                done_at = tf.timestamp()
        return waiting_secs

    return run


def timed(run: Run, state: TrainState, iterator: tf.data.Iterator, num_steps: int) -> None:
    """Calls `run` and adds its time, and what it did in that time, to the state's stopwatch."""
    step, examples, start = state.step, state.metrics.num_examples(), time.perf_counter()
    waiting_secs = float(run(iterator, tf.constant(num_steps)))
    state.stopwatch.add(
        seconds=time.perf_counter() - start,
        waiting_secs=waiting_secs,
        num_steps=state.step - step,
        num_examples=state.metrics.num_examples() - examples,
    )


@dataclass(frozen=True)
class Evaluation:
    """A split scored, each example once.

    `ids` [N] int64, `labels` [N] int64 and `logits` [N, K] float32 are in the order of the split.
    """

    loss: float
    accuracy: float
    ids: np.ndarray
    labels: np.ndarray
    logits: np.ndarray


class Evaluator:
    """Scores datasets with the current weights. Traced once, whatever the phase.

    With a cut, the datasets hold what the network below it gave.
    """

    def __init__(self, classifier: Classifier, *, strategy: tf.distribute.Strategy, cut: Cut | None = None):
        self._strategy = strategy
        self._metrics = Metrics()

        @plain
        def score(batch: dict[str, tf.Tensor]) -> tf.Tensor:
            features = classifier.features(batch["image"], cut=cut)
            logits, losses = scored_apart(classifier, features, batch["label"], loss=PLAIN_LOSS)
            self._metrics.update(losses=losses, logits=logits, labels=batch["label"], mask=batch["mask"])
            return logits

        self.step = tf.function(lambda batch: strategy.run(score, args=(batch,)), autograph=False)

    def __call__(
        self, dataset: tf.data.Dataset, *, between_batches: Callable[[], None] = lambda: None
    ) -> Evaluation:
        """Scores all examples of a dataset of batches; `between_batches` may raise to end it."""
        self._metrics.reset()
        kept: dict[str, list[np.ndarray]] = {"id": [], "label": [], "mask": [], "logits": []}
        for batch in self._strategy.experimental_distribute_dataset(dataset):
            parts = {"logits": self.step(batch), **batch}
            for name, values in kept.items():
                values.extend(part.numpy() for part in self._local(parts[name]))
            between_batches()
        whole = {name: np.concatenate(values) for name, values in kept.items()}
        real = whole["mask"] > 0
        return Evaluation(
            **self._metrics.read(),
            ids=whole["id"][real],
            labels=whole["label"][real],
            logits=whole["logits"][real],
        )

    def _local(self, value: tf.Tensor) -> Iterable[tf.Tensor]:
        return self._strategy.experimental_local_results(value)
