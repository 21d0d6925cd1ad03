"""Whether probabilities mean what they say, and one number that mends most of it."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import optimize

NUM_BINS = 15
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0


@dataclass(frozen=True)
class Bin:
    """The predictions whose probability is above `low` and at most `high`.

    `confidence` is the mean of their probabilities and `accuracy` the share that is right; None where
    `count` is 0.
    """

    low: float
    high: float
    count: int
    confidence: float | None
    accuracy: float | None


def calibration_bins(labels: np.ndarray, probabilities: np.ndarray, *, num_bins: int = NUM_BINS) -> list[Bin]:
    """Sorts predictions by the probability of the predicted class into bins of equal width.

    Args:
      labels: [N] int.
      probabilities: [N, K], finite; of each row the highest is the prediction.
      num_bins: how many.
    """
    return bins_of(probabilities.max(axis=1), probabilities.argmax(axis=1) == labels, num_bins=num_bins)


def bins_of(confidence: np.ndarray, correct: np.ndarray, *, num_bins: int = NUM_BINS) -> list[Bin]:
    """Sorts N decisions by their probability into bins of equal width.

    Args:
      confidence: [N] from 0 to 1, how probable each is said to be.
      correct: [N] bool, whether it is so.
      num_bins: how many.
    """
    edges = np.linspace(0.0, 1.0, num_bins + 1)
    places = np.digitize(confidence, edges[1:-1], right=True)
    bins = []
    for i, (low, high) in enumerate(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)):
        inside = places == i
        count = int(inside.sum())
        means = (float(confidence[inside].mean()), float(correct[inside].mean())) if count else (None, None)
        bins.append(Bin(low, high, count, *means))
    return bins


def as_json(bins: Sequence[Bin]) -> list[dict[str, Any]]:
    """Returns bins as metrics.json holds them."""
    return [dataclasses.asdict(b) for b in bins]


def expected_calibration_error(bins: Sequence[Bin]) -> float:
    """Returns how far probabilities and shares of right predictions are apart, from 0 to 1.

    It is the mean over the predictions of |confidence - accuracy| of their bin (Guo, Pleiss, Sun and
    Weinberger, 2017, arXiv 1706.04599).

    Args:
      bins: of `calibration_bins`; not all empty.
    """
    gaps = [
        b.count * abs(b.confidence - b.accuracy)
        for b in bins
        if b.confidence is not None and b.accuracy is not None
    ]
    return sum(gaps) / sum(b.count for b in bins)


def fit_temperature(labels: np.ndarray, logits: np.ndarray) -> float:
    """Returns by what to divide the logits, so that the probabilities of these pictures fit best.

    Temperature scaling (Guo, Pleiss, Sun and Weinberger, 2017, arXiv 1706.04599): the one number that
    minimises the mean negative log-likelihood. Above 1 the probabilities were too high. No prediction
    changes. Fit it on pictures that are neither trained nor tested on.

    Where every picture is right the best would be 0, where most are wrong infinite: the result is never
    below `MIN_TEMPERATURE` or above `MAX_TEMPERATURE`. At these bounds, see `is_at_bound`, it says only that
    the pictures do not settle it.

    Args:
      labels: [N] int.
      logits: [N, K]. Pictures with a logit that is no finite number are left out.

    Returns:
      1 where no temperature is better than another: no picture is left, or all logits of each are equal.
    """
    rows = np.isfinite(logits).all(axis=1)
    wide, truth = logits[rows].astype(np.float64), np.asarray(labels)[rows]
    # Only differences count; the highest at 0 keeps every exponential below 1.
    wide = wide - wide.max(axis=1, keepdims=True)
    if not wide.any():
        return 1.0

    def slope(inverse: float) -> float:
        """Returns the derivative of the negative log-likelihood by 1 / temperature: it never falls."""
        weights = np.exp(inverse * wide)
        expected = (weights * wide).sum(axis=1) / weights.sum(axis=1)
        return float((expected - wide[np.arange(len(wide)), truth]).mean())

    low, high = 1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE
    if slope(low) >= 0:
        return MAX_TEMPERATURE
    if slope(high) <= 0:
        return MIN_TEMPERATURE
    return float(1 / optimize.brentq(slope, low, high, xtol=1e-12, rtol=1e-12))


def is_at_bound(temperature: float) -> bool:
    """Returns whether a fitted temperature is only the bound that the search ended at."""
    return any(math.isclose(temperature, bound, rel_tol=1e-6) for bound in (MIN_TEMPERATURE, MAX_TEMPERATURE))


def apply(logits: np.ndarray, *, temperature: float) -> np.ndarray:
    """Returns logits at a temperature, [N, K] float64: their softmax is the scaled probabilities."""
    return logits.astype(np.float64) / temperature
