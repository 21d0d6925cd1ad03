"""Losses of examples, from logits."""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated

import numpy as np
import tensorflow as tf

from trainer.registry import Bounds, Registry
from trainer.tasks import SINGLE_LABEL, Loss, Task
from trainer.values import Call, UsageError, as_number, close_names, composed, is_it

LOSSES: Registry[Loss] = Registry("loss", flag="--loss")

BALANCED = "balanced"
# Below any difference to 1 that a float32 has, so that it stands for 0.
NEARLY_ZERO = 1e-12
# Beyond these, a weight times a loss is no longer safe in float32.
SMALLEST, LARGEST = 1e-30, 1e30


@LOSSES.register("cross_entropy", source="label smoothing: arXiv 1512.00567, section 7")
def cross_entropy(*, smoothing: float, task: Task) -> Loss:
    """Cross-entropy of the labels with the probabilities of the task.

    With smoothing, against (1 - smoothing) times the target plus an even distribution over the classes for
    the rest (Szegedy et al., 2016, arXiv 1512.00567, section 7).
    """
    return task.cross_entropy(smoothing=smoothing)


@LOSSES.register("focal", source="arXiv 1708.02002")
def focal(
    gamma: Annotated[float, Bounds(at_least=0, at_most=100)] = 2.0, *, smoothing: float, task: Task
) -> Loss:
    """Cross-entropy that counts less where the network is sure already (Lin et al., 2017, arXiv 1708.02002).

    The sum over the classes of target * (1 - p)^gamma * -log(p), p being the probability; smoothing is as in
    `cross_entropy`.

    Raises:
      UsageError: several classes of an example can be true: what speaks against a class is not in the sum.
    """
    if not task.excludes:
        raise UsageError("it is for examples of one class each, and those of this --task may have several")

    def loss(logits: tf.Tensor, labels: tf.Tensor, targets: tf.Tensor | None) -> tf.Tensor:
        log_shares = task.log_probabilities(logits)
        # Where this is 0, gradients of powers below 1 are infinite.
        others = tf.maximum(1.0 - tf.exp(log_shares), NEARLY_ZERO)
        shares = task.targets(labels, logits.shape[-1]) if targets is None else targets
        shares = task.smoothed(shares, smoothing)
        return -tf.reduce_sum(shares * tf.pow(others, gamma) * log_shares, axis=-1)

    return loss


@LOSSES.register("asymmetric", source="arXiv 2009.14119")
def asymmetric(
    gamma_negative: Annotated[float, Bounds(at_least=0, at_most=100)] = 4.0,
    gamma_positive: Annotated[float, Bounds(at_least=0, at_most=100)] = 1.0,
    clip: Annotated[float, Bounds(at_least=0, below=1)] = 0.05,
    *,
    smoothing: float,
    task: Task,
) -> Loss:
    """Binary cross-entropy in which absent labels that are sure already count less than present ones.

    The asymmetric loss of Ridnik et al., 2021, arXiv 2009.14119, equation 5, summed over the labels: with the
    probability p, (1 - p)^gamma_positive * -log(p) for what is there, and, with q = max(p - clip, 0),
    q^gamma_negative * -log(1 - q) for what is not. asymmetric(0,0,0) is cross_entropy. Smoothing is as there.

    Raises:
      UsageError: the classes of an example exclude one another.
    """
    if task.excludes:
        raise UsageError("it is for any number of labels an example: use --task=multi_label, or focal(2)")

    def loss(logits: tf.Tensor, labels: tf.Tensor, targets: tf.Tensor | None) -> tf.Tensor:
        log_there, log_absent = task.log_probabilities(logits), task.log_probabilities(-logits)
        # Where these are 0, gradients of powers below 1 are infinite.
        missing = tf.maximum(-tf.math.expm1(log_there), NEARLY_ZERO)
        shifted = tf.maximum(tf.exp(log_there) - clip, NEARLY_ZERO)
        log_shifted = tf.math.log1p(-shifted) if clip else log_absent
        wanted = task.targets(labels, logits.shape[-1]) if targets is None else targets
        wanted = task.smoothed(wanted, smoothing)
        there = wanted * tf.pow(missing, gamma_positive) * log_there
        absent = (1.0 - wanted) * tf.pow(shifted, gamma_negative) * log_shifted
        return -tf.reduce_sum(there + absent, axis=-1)

    return loss


PLAIN_LOSS: Loss = SINGLE_LABEL.cross_entropy()
"""What is minimized where nobody asks for anything else."""


def make_loss(
    text: str | Call,
    *,
    num_classes: int,
    label_smoothing: float = 0.0,
    class_weights: np.ndarray | None = None,
    task: Task = SINGLE_LABEL,
) -> Loss:
    """Returns the loss that is minimized.

    Args:
      text: of `LOSSES`, such as `focal(2)`.
      num_classes: K.
      label_smoothing: share of each target spread evenly over the classes, from 0 up to 1.
      class_weights: [K] float32. The loss of an example is multiplied with the mean weight of its target
        before smoothing, as by `class_weight` of Keras: whoever takes the mean divides by the number of
        examples, not by the sum of their weights.
      task: what labels mean.

    Raises:
      UsageError: there is no such loss, or it does not go with the task.
      ValueError: the weights are not [K].
    """
    choice = LOSSES.choose(text)
    loss = choice(smoothing=label_smoothing, task=task)
    if label_smoothing and "smoothing" not in choice.entry.offered:
        loss = _smoothed(loss, label_smoothing, task)
    if class_weights is None:
        return loss
    if class_weights.shape != (num_classes,):
        raise ValueError(f"weights of shape {class_weights.shape} for {num_classes} classes")

    def weighted(logits: tf.Tensor, labels: tf.Tensor, targets: tf.Tensor | None) -> tf.Tensor:
        # A tensor of its own wherever it is traced.
        weights = tf.constant(class_weights, tf.float32)
        means = task.weights(labels, targets, weights)
        return means * loss(logits, labels, targets)

    return weighted


def check_class_weights(text: str) -> None:
    """Makes sure that a text may be one of weights, before the names of the classes are known.

    Raises:
      UsageError: it cannot.
    """
    if text in ("", BALANCED):
        return
    # Names may hold anything, so nothing is sure but how the text ends.
    name, _, number = text.rstrip(", ").rpartition("=")
    if not name.strip():
        raise _refusal(text, f"is neither {BALANCED} nor weights of classes, such as roses=2,tulips=0.5")
    if "," in number:
        raise _refusal(text, f"{number.rpartition(',')[2].strip()} is given no weight")
    _weight(text, number)


def class_weights_from(
    text: str, *, class_names: Sequence[str], counts: Mapping[str, int]
) -> np.ndarray | None:
    """Returns the weights of classes in a loss, [K] float32; None for an empty text.

    Args:
      text: `balanced`, for n / (K * n_k) (King & Zeng, 2001, "Logistic regression in rare events data"), n
        being the number of examples and n_k that of class k; or such as `roses=2,tulips=0.5`, the other
        classes having 1.
      class_names: all, in order.
      counts: {class name: number of training examples}.

    Raises:
      UsageError: the text is neither, or is `balanced` where a class has no examples.
    """
    check_class_weights(text)
    if not text:
        return None
    if text != BALANCED:
        names = [composed(name) for name in class_names]
        weights = _named_weights(composed(text), names)
        return np.array([weights.get(name, 1.0) for name in names], np.float32)
    numbers = np.array([counts[name] for name in class_names])
    if not numbers.all():
        missing = class_names[int(numbers.argmin())]
        raise _refusal(text, f"the training split has no example of {missing}: give weights by name instead")
    return (numbers.sum() / (len(numbers) * numbers)).astype(np.float32)


def _named_weights(text: str, class_names: Sequence[str]) -> dict[str, float]:
    weights: dict[str, float] = {}
    # A name may hold '=' and ',': only the names tell where one ends. Some begin with another.
    longest_first = sorted(class_names, key=len, reverse=True)
    rest = text.strip()
    while rest:
        named = ((name, _after(rest, name)) for name in longest_first)
        name, value = next(((name, value) for name, value in named if value is not None), ("", None))
        if value is None:
            raise _refusal(text, _unknown(rest.split(",")[0].strip(), class_names))
        if name in weights:
            raise _refusal(text, f"{name} is named twice")
        number, _, rest = value.partition(",")
        weights[name] = _weight(text, number)
        rest = rest.strip()
    return weights


def _after(text: str, name: str) -> str | None:
    """Returns what follows 'NAME=' at the start of a text; None where that is not its start."""
    before, equals, after = text.removeprefix(name).partition("=")
    return after if text.startswith(name) and equals and not before.strip() else None


def _weight(text: str, number: str) -> float:
    try:
        weight = as_number(number)
    except ValueError:
        weight = math.nan
    if not SMALLEST <= weight <= LARGEST:
        raise _refusal(text, f"{number.strip()!r} is not a weight, a number above 0")
    return weight


def _unknown(item: str, class_names: Sequence[str]) -> str:
    if item in class_names:
        return f"{item} is given no weight"
    name = item.rpartition("=")[0].strip() or item
    some = class_names if len(class_names) <= 10 else (*class_names[:3], "...", class_names[-1])
    return f"{name!r} is not one of the classes {', '.join(some)}{is_it(close_names(name, class_names))}"


def _refusal(text: str, reason: str) -> UsageError:
    return UsageError(f"--class_weights={text}: {reason}")


def _smoothed(loss: Loss, smoothing: float, task: Task) -> Loss:
    """Returns a loss, which knows nothing of smoothing, against smoothed targets."""

    def smoothed(logits: tf.Tensor, labels: tf.Tensor, targets: tf.Tensor | None) -> tf.Tensor:
        shares = task.targets(labels, logits.shape[-1]) if targets is None else targets
        return loss(logits, labels, task.smoothed(shares, smoothing))

    return smoothed
