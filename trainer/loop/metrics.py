"""What is measured of the examples of an update, or of a split."""

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import tensorflow as tf
import tf_keras

from trainer.registry import Registry
from trainer.tasks import SINGLE_LABEL, Task
from trainer.values import UsageError, parse_calls

T = TypeVar("T")
Metric = Callable[[tf.Tensor, Mapping[str, tf.Tensor]], tf.Tensor]
"""(logits [B, K] float32, batch) -> [B] float32, of which means are told."""

METRICS: Registry[Metric] = Registry("metric", flag="--metrics", may_be_none=True)

# What a line of metrics.jsonl holds besides metrics.
_OF_A_LINE = (
    "split", "step", "epoch", "phase", "loss", "gradient_norm", "learning_rate", "images_per_second",
    "input_wait_share",
)  # fmt: skip

Sums = dict[str, tuple[tf.Tensor, tf.Tensor]]
"""{name: (sum, count)}, [] float32 each."""


@METRICS.register("accuracy")
def accuracy(*, task: Task = SINGLE_LABEL) -> Metric:
    """Share of examples whose prediction is the label."""
    return lambda logits, batch: task.is_right(logits, batch["label"])


@METRICS.register("confidence")
def confidence(*, task: Task = SINGLE_LABEL) -> Metric:
    """Highest probability of a class; above the accuracy, the network is surer than it should be."""
    return lambda logits, batch: tf.reduce_max(task.activation(logits), axis=-1)


def make_metrics(text: str, *, task: Task = SINGLE_LABEL) -> dict[str, Metric]:
    """Returns those of the task, and what a text such as `confidence,top_k(5)` names besides, by name.

    Raises:
      UsageError: there is no such metric, or one of the name of something that is always told.
    """
    own = [METRICS.choose(call) for call in parse_calls(task.metrics)]
    asked = [METRICS.choose(call) for call in parse_calls(text)]
    try:
        require_names([str(choice) for choice in (*own, *asked)])
    except UsageError as error:
        raise UsageError(f"--metrics={text}: {error}") from None
    return {str(choice): choice(task=task) for choice in (*own, *asked)}


def is_less_better(name: str, text: str, *, task: Task = SINGLE_LABEL) -> bool:
    """Returns whether less is better of a number of validation.

    Args:
      name: of the number: the loss, a metric, or what the task tells.
      text: value of --metrics.
      task: whose own metrics are told, too.
    """
    calls = (*parse_calls(task.metrics), *parse_calls(text))
    told = {str(choice): choice.entry.facts for choice in map(METRICS.choose, calls)}
    return name == "loss" or bool(told.get(name, {}).get("less_is_better"))


def require_names(names: Iterable[str]) -> list[str]:
    """Returns the names of metrics, of whatever plugin, if each can stand beside the others in a line.

    Raises:
      UsageError: one is there twice, or is that of something that is told anyway.
    """
    found: list[str] = []
    for name in names:
        if name in found or name in _OF_A_LINE:
            raise UsageError(f"{name} is told already: a metric must have a name of its own")
        found.append(name)
    return found


def asked_besides(found: Mapping[str, T], *, task: Task) -> dict[str, T]:
    """Returns those of metrics, or of what they came to, that --metrics asked for: not the task's own."""
    own = make_metrics("", task=task)
    return {name: one for name, one in found.items() if name not in own}


def sums_of(values: Mapping[str, tf.Tensor], *, mask: tf.Tensor) -> Sums:
    """Returns sums and counts of values [B] over the examples that mask [B] has at 1."""
    count = tf.reduce_sum(mask)
    for name, value in values.items():
        require_per_example(value, mask, what=f"the metric {name}")
    return {name: (tf.reduce_sum(value * mask), count) for name, value in values.items()}


def require_per_example(value: tf.Tensor, mask: tf.Tensor, *, what: str) -> None:
    """Makes sure that a plugin gives a number for each example: others would be added up all the same.

    Raises:
      UsageError: it is not [B] float32, as mask [B] is.
    """
    # Of what NumPy computes within a graph, nothing is known before it runs.
    if (
        value.shape.rank in (1, None)
        and value.shape.is_compatible_with(mask.shape)
        and value.dtype == mask.dtype
    ):
        return
    size = mask.shape[0] or "B"
    raise UsageError(
        f"{what} must be [{size}] float32, a number for each example; it is {value.shape} {value.dtype.name}"
    )


class Means:
    """Sums and counts since the last reset, of `names`; divided once, when they are read."""

    def __init__(self, names: Iterable[str]):
        self._means = {name: tf_keras.metrics.Mean(name=name) for name in names}

    def add(self, sums: Sums, *, of_all: bool = False) -> None:
        """Adds what a batch came to, on each device its own; what all came to, `of_all`, on the first."""
        replica = tf.distribute.get_replica_context()
        if of_all and replica.num_replicas_in_sync > 1:
            is_first = tf.equal(replica.replica_id_in_sync_group, 0)
            sums = {
                name: tuple(tf.where(is_first, part, 0.0) for part in pair) for name, pair in sums.items()
            }
        for name, (total, count) in sums.items():
            if name not in self._means:
                raise UsageError(f"{name} is told as a metric, and is not among metric_names")
            self._means[name].total.assign_add(total)
            self._means[name].count.assign_add(count)

    def read(self) -> dict[str, float]:
        return {name: float(mean.result()) for name, mean in self._means.items()}

    def count(self, name: str) -> int:
        """Returns how many examples, or updates, were added under a name, without padding."""
        return round(float(self._means[name].count.read_value()))

    def reset(self) -> None:
        for mean in self._means.values():
            mean.reset_state()

    def variables(self) -> dict[str, tf.Variable]:
        return {
            f"{name}/{part}": getattr(mean, part)
            for name, mean in self._means.items()
            for part in ("total", "count")
        }
