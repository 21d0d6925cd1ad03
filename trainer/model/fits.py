"""Heads that are fitted to kept features instead of trained: a linear probe, and k nearest neighbours.

Both take seconds and have no learning rate to choose. Their numbers are plain variables of a layer, so that
checkpoints, exports and explanations know nothing of where they come from.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainer.tasks import Task
from trainer.values import UsageError

# Of scikit-learn's C, a decade apart: around what is best for some hundred to some hundred thousand pictures.
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
MOST_ITERATIONS = 200
MOST_WORK = 2e10
"""Pictures times features times classes of a fit; a tenth of it took ten seconds on one core."""
LEAST_OF_A_CLASS = 5
"""Pictures, on average, that a fit needs of each class."""
# The logit of a class that train has no picture of. Those of the others sum to 0, so one of them is above it.
NEVER_SEEN = -30.0


@dataclass(frozen=True)
class Labelled:
    """`features` [N, D] float32 of pictures, and their `labels` [N], as the task has them."""

    features: np.ndarray
    labels: np.ndarray

    def spread(self, count: int) -> "Labelled":
        """Returns `count` of them, evenly over the order they are in; all, if there are no more."""
        num = len(self.labels)
        if count >= num:
            return self
        at = np.arange(count) * num // count
        return Labelled(self.features[at], self.labels[at])


@dataclass(frozen=True)
class Probe:
    """What `--head=probe` asks for: `strength` is scikit-learn's C, 0 that validation chooses it."""

    strength: float


@dataclass(frozen=True)
class Neighbours:
    """What `--head=knn(20)` asks for."""

    count: int
    temperature: float


@dataclass(frozen=True)
class Fitted:
    """A linear map from features to logits, and how it was found.

    `kernel` is [D, K] and `bias` [K] float32, `strength` scikit-learn's C, `num_fitted` the pictures that it
    was fitted on.
    """

    kernel: np.ndarray
    bias: np.ndarray
    strength: float
    num_fitted: int


def require_one_class(task: Task) -> None:
    """Raises UsageError where labels are not one class each, which is all that is fitted here."""
    if not task.excludes:
        raise UsageError("it is fitted to labels of one class each, and this task has others")


def most_pictures(num_classes: int, width: int, *, work: float = MOST_WORK) -> int:
    """Returns on how many pictures a probe is fitted at most.

    Args:
      num_classes: K.
      width: D, of the features.
      work: the most of pictures times K times D.

    Raises:
      UsageError: so few that classes would have next to none.
    """
    count = int(work / (num_classes * width))
    if count < LEAST_OF_A_CLASS * num_classes:
        raise UsageError(
            f"{num_classes:,} classes of {width:,} features would take too long to fit: within "
            f"{work:.0e} multiply-adds an iteration, each class would have {count / num_classes:.1f} "
            f"pictures, and needs {LEAST_OF_A_CLASS}"
        )
    return count


def fit_probe(probe: Probe, train: Labelled, validation: Labelled, *, num_classes: int, task: Task) -> Fitted:
    """Fits logistic regression to features, by L-BFGS as scikit-learn does it, one thread for the same bits.

    Of any number of labels an example, one by itself for each label, all of one strength.

    Features are standardised by the mean and deviation of the fitted pictures, which is folded into kernel
    and bias. Without a strength, those of `STRENGTHS` are tried from the loosest fit on, each starting where
    the one before has ended, until the loss on validation falls no more: a short form of the search of
    Kornblith et al., 2019, arXiv 1805.08974.

    Args:
      probe: what was asked for.
      train: what is fitted; of many, `most_pictures` evenly over their order.
      validation: what chooses the strength.
      num_classes: K.
      task: says what the loss is.

    Raises:
      UsageError: there are too many classes to do it in reasonable time.
    """
    train = train.spread(most_pictures(num_classes, train.features.shape[1]))
    mean, scale = _standard(train.features)
    inputs = (train.features - mean) / scale
    if not np.isfinite(inputs).all():
        raise UsageError("features of the network are no finite numbers")
    strengths = [probe.strength] if probe.strength else STRENGTHS
    constant = np.full(num_classes, NEVER_SEEN)
    if task.excludes:
        present = np.unique(train.labels)
        fits = _fits(inputs, train.labels, strengths)
    else:
        has = task.indicators(train.labels, num_classes)
        constant[has.all(axis=0)] = -NEVER_SEEN
        present = np.flatnonzero(has.any(axis=0) & ~has.all(axis=0))
        fits = _fits_of_labels(inputs, has[:, present], strengths)
    best: Fitted | None = None
    best_loss = np.inf
    for strength, weights, intercepts in fits:
        kernel, bias = np.zeros([len(mean), num_classes]), constant.copy()
        kernel[:, present], bias[present] = weights / scale[:, None], intercepts
        bias[present] -= mean @ kernel[:, present]
        found = Fitted(kernel.astype(np.float32), bias.astype(np.float32), strength, len(train.labels))
        loss = task.plain().means(validation.labels, validation.features @ found.kernel + found.bias)["loss"]
        if best is not None and not loss < best_loss:
            break
        best, best_loss = found, loss
    assert best
    return best


def _standard(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and deviation [D] float64 of features [N, D]; where they are constant, 1."""
    wide = features.astype(np.float64)
    deviation = wide.std(axis=0)
    # What a mean of equal numbers rounds to is no deviation.
    is_constant = deviation <= 1e-6 * np.abs(wide).max(axis=0)
    return wide.mean(axis=0), np.where(is_constant, 1.0, deviation)


def _fits_of_labels(inputs: np.ndarray, labels: np.ndarray, strengths: Any) -> Any:
    """Yields (strength, weights [D, k], intercepts [k]) of k labels [N, k] bool, some of each true."""
    if not labels.shape[1]:
        yield 0.0, np.zeros([inputs.shape[1], 0]), np.zeros(0)
        return
    # Of two classes, `_fits` gives half of the logit against the first and half for the second.
    each = [_fits(inputs, column.astype(np.int64), strengths) for column in labels.T]
    for fits in zip(*each, strict=True):
        strength = fits[0][0]
        weights = [weights[:, 1] - weights[:, 0] for _, weights, _ in fits]
        intercepts = [intercepts[1] - intercepts[0] for _, _, intercepts in fits]
        yield strength, np.stack(weights, axis=1), np.array(intercepts)


def _fits(inputs: np.ndarray, labels: np.ndarray, strengths: Any) -> Any:
    """Yields (strength, weights [D, k], intercepts [k]) of the k classes that labels [N] have, in order."""
    num_classes = len(np.unique(labels))
    if num_classes == 1:
        yield 0.0, np.zeros([inputs.shape[1], 1]), np.zeros(1)
        return
    # Late: they take most of a second to import.
    import threadpoolctl
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(max_iter=MOST_ITERATIONS, warm_start=True)
    for strength in strengths:
        # Sums over several threads round by how many there are.
        with threadpoolctl.threadpool_limits(1), warnings.catch_warnings():
            # What has not converged is where so many steps lead, which is what is asked for.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.set_params(C=strength).fit(inputs, labels)
        weights, intercepts = model.coef_.T, model.intercept_
        if num_classes == 2:
            # One logit for the second class: half of it for, half against the first, so that they sum to 0.
            weights, intercepts = weights * [-0.5, 0.5], intercepts * [-0.5, 0.5]
        yield strength, weights, intercepts
