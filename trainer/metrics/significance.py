"""Whether two classifiers differ by more than chance on the same pictures."""

from typing import NamedTuple

import numpy as np
from scipy import stats


class McNemar(NamedTuple):
    """Pictures that only the first classifier has right, only the second, and the chance of such a split."""

    only_a: int
    only_b: int
    p_value: float


def mcnemar(correct_a: np.ndarray, correct_b: np.ndarray) -> McNemar:
    """Tests whether two classifiers are equally often right (McNemar, 1947, Psychometrika 12, 153-157).

    Only pictures that one has right and the other wrong count. Were both equally good, each of these would
    be a fair coin: the p-value is the exact, two-sided one of the binomial distribution. It is 1 where there
    is no such picture.

    Args:
      correct_a: [N] bool, whether the first classifier is right.
      correct_b: [N] bool, the second's, of the same pictures in the same order.

    Raises:
      ValueError: there are not as many of one as of the other.
    """
    a, b = np.asarray(correct_a, bool), np.asarray(correct_b, bool)
    if a.shape != b.shape:
        raise ValueError(f"{len(a)} and {len(b)} pictures: a paired test needs the same ones")
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    count = only_a + only_b
    p_value = float(stats.binomtest(only_a, count, 0.5).pvalue) if count else 1.0
    return McNemar(only_a, only_b, p_value)


class Bootstrap(NamedTuple):
    """A difference between two classifiers, its 95 % interval, and the p-value of there being none."""

    difference: float
    low: float
    high: float
    p_value: float


NUM_RESAMPLES = 2000
# Numbers that are held at once: resamples times pictures.
_MOST_AT_ONCE = 10**7


def paired_bootstrap(
    labels: np.ndarray, first: np.ndarray, second: np.ndarray, *, seed: int = 0, count: int = NUM_RESAMPLES
) -> Bootstrap:
    """Compares the mean average precision of two classifiers on the same pictures, resampling these.

    The paired bootstrap (Efron and Tibshirani, 1993, "An introduction to the bootstrap", chapters 13 and 15):
    pictures are drawn with replacement, the same ones for both, and the difference, the first's less the
    second's, is measured again. The interval has the middle 95 % of the differences; the p-value is twice the
    share of those that are on the other side of 0, or on it, each counted with one more, and at most 1. The
    same input gives the same answer.

    Args:
      labels: [N, K] 0 or 1.
      first: [N, K] probabilities of the first classifier.
      second: [N, K], the second's.
      seed: of what is drawn.
      count: how often.

    Raises:
      ValueError: the shapes differ, or there is no label.
    """
    if not labels.shape == first.shape == second.shape:
        raise ValueError(f"{labels.shape}, {first.shape} and {second.shape}: the same pictures are needed")
    if not labels.any():
        raise ValueError("no picture has a label")
    draw, total = np.random.default_rng(seed), len(labels)

    def differences_of(weights: np.ndarray) -> np.ndarray:
        return _map(labels, first, weights) - _map(labels, second, weights)

    [difference] = differences_of(np.ones([1, total])).tolist()
    at_once, found = max(1, _MOST_AT_ONCE // total), []
    for begin in range(0, count, at_once):
        times = draw.multinomial(total, np.full(total, 1 / total), size=min(at_once, count - begin))
        found.append(differences_of(times.astype(np.float64)))
    differences = np.concatenate(found)
    # Resamples without any picture of any label say nothing.
    differences = differences[np.isfinite(differences)]
    low, high = np.quantile(differences, [0.025, 0.975])
    tail = 1 + min(int((differences <= 0).sum()), int((differences >= 0).sum()))
    return Bootstrap(difference, float(low), float(high), min(1.0, 2 * tail / (len(differences) + 1)))


def _map(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns the mean average precision [R] of N pictures, each counted [R, N] times; NaN without labels."""
    each = zip(labels.T > 0, scores.T, strict=True)
    found = np.stack([_average_precisions(truth, row, weights) for truth, row in each])
    known = np.isfinite(found)
    sums = np.where(known, found, 0.0).sum(axis=0)
    with np.errstate(invalid="ignore"):
        return sums / known.sum(axis=0)


def _average_precisions(truth: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns the average precision [R] of a label as `several.average_precisions`; NaN where none has it."""
    order = np.argsort(-scores, kind="stable")
    high, right = scores[order], truth[order]
    weighted = weights[:, order]
    seen, found = np.cumsum(weighted, axis=1), np.cumsum(weighted * right, axis=1)
    # Equal scores are one step: precision is that after all of them.
    ends = np.flatnonzero(np.append(high[1:] != high[:-1], True))
    seen, found = seen[:, ends], found[:, ends]
    gained = np.diff(found, axis=1, prepend=0.0)
    precision = found / np.maximum(seen, 1.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (gained * precision).sum(axis=1) / found[:, -1]
