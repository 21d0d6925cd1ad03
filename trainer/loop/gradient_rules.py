"""Which gradients an update takes, and limits on them."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import tensorflow as tf

from trainer.registry import Registry
from trainer.values import UsageError

Sums = dict[str, tuple[tf.Tensor, tf.Tensor]]


class Computed(NamedTuple):
    """What a batch comes to, added up over its parts and, but for the sums, over all devices."""

    loss: tf.Tensor
    """[] float32: what the examples of this device add to the mean loss."""
    gradients: list[tf.Tensor]
    """Of the mean loss of the whole batch, for each variable that trains."""
    sums: Sums
    """{metric: (sum, count)} over the examples of this device."""
    seed: tf.Tensor
    """[2] int32, another one for each update and the same on all devices; for `tf.random.stateless_*`."""


Compute = Callable[[], Computed]
"""Computes the batch of the update at the weights as they are. From the second call on, the statistics of
BatchNorm stay as they were."""


class GradientRule(Protocol):
    """(compute, variables that train) -> what the update takes. It leaves the variables as they were.

    It may have an attribute `variables`, {name: tf.Variable}, of what it keeps from update to update, none of
    them trainable. And one `metric_names`, of metrics that it adds to `Computed.sums`.

    What it keeps of each variable that trains, such as an average of its gradients, goes by a method `slots`,
    (variables) -> {name: [a tensor for each]}: what that begins with in each phase. The rule is called with a
    third argument then, {name: [tf.Variable for each]}, to which it assigns.
    """

    def __call__(self, compute: Compute, variables: Sequence[tf.Variable], /) -> Computed: ...


Slots = dict[str, list[tf.Variable]]
"""{name: a variable for each of those that train}."""


def make_slots(rule: GradientRule, variables: Sequence[tf.Variable]) -> Slots:
    """Makes what a rule keeps of the variables that train, for a phase that begins.

    Raises:
      UsageError: it does not say one tensor for each.
    """
    made: Slots = {}
    for name, first in getattr(rule, "slots", lambda variables: {})(variables).items():
        if len(first) != len(variables):
            raise UsageError(
                f"the gradient rule keeps {len(first)} tensors as {name!r}, and {len(variables)} variables "
                "train"
            )
        # All devices have the same gradients.
        one = tf.VariableAggregation.ONLY_FIRST_REPLICA
        made[name] = [tf.Variable(value, trainable=False, aggregation=one) for value in first]
    return made


def counted(rule: GradientRule, sums: Sums, finite: tf.Tensor) -> Sums:
    """Returns sums without those of a rule's own metrics, where its gradients are not `finite` [] bool."""
    found = dict(sums)
    for name in getattr(rule, "metric_names", ()):
        if name in sums:
            total, count = sums[name]
            found[name] = tf.where(finite, total, 0.0), tf.where(finite, count, 0.0)
    return found


def computed_by(
    rule: GradientRule, compute: Compute, variables: Sequence[tf.Variable], slots: Slots
) -> Computed:
    """Calls a rule, with its slots if it asks for any.

    Raises:
      UsageError: a metric that it announces is not among those that it tells.
    """
    with_slots: Any = rule
    found: Computed = (
        with_slots(compute, variables, slots) if hasattr(rule, "slots") else rule(compute, variables)
    )
    if missing := [name for name in getattr(rule, "metric_names", ()) if name not in found.sums]:
        name = getattr(rule, "__name__", type(rule).__name__)
        raise UsageError(
            f"{missing[0]} is among metric_names of the gradient rule {name}, and is not told as a metric"
        )
    return found


GRADIENT_RULES: Registry[GradientRule] = Registry("gradient rule", flag="--gradient_rule")


@GRADIENT_RULES.register("plain")
def plain() -> GradientRule:
    """The gradients at the weights."""
    return lambda compute, variables: compute()


def moved(variables: Sequence[tf.Variable], by: Sequence[tf.Tensor], compute: Compute) -> Computed:
    """Computes with variables moved by something, and puts them back to the last bit."""
    # On each device its own: an assignment to variables of all devices would want to know how to add up.
    before = [tf.raw_ops.ReadVariableOp(resource=v.handle, dtype=v.dtype) for v in variables]
    for variable, value, delta in zip(variables, before, by, strict=True):
        tf.raw_ops.AssignVariableOp(resource=variable.handle, value=value + delta)
    computed = compute()
    with tf.control_dependencies([*computed.gradients, computed.loss]):
        for variable, value in zip(variables, before, strict=True):
            tf.raw_ops.AssignVariableOp(resource=variable.handle, value=value)
    return computed


Limit = Callable[[Sequence[tf.Tensor], tf.Tensor], list[tf.Tensor]]
"""(gradients, their global norm []) -> gradients of the same shapes."""


def clip_norm(largest: float) -> Limit:
    """Scales all gradients together so that their norm is at most `largest`.

    Pascanu et al., 2013, arXiv 1211.5063.
    """

    def limit(gradients: Sequence[tf.Tensor], norm: tf.Tensor) -> list[tf.Tensor]:
        return tf.clip_by_global_norm(gradients, largest, use_norm=norm)[0]

    return limit


def clip_value(largest: float) -> Limit:
    """Moves every number of a gradient into [-largest, largest]."""

    def limit(gradients: Sequence[tf.Tensor], norm: tf.Tensor) -> list[tf.Tensor]:
        return [tf.clip_by_value(gradient, -largest, largest) for gradient in gradients]

    return limit


def make_limit(*, norm: float, value: float) -> Limit | None:
    """Returns what --clip_norm or --clip_value asks for; None where both are 0."""
    if norm:
        return clip_norm(norm)
    return clip_value(value) if value else None
