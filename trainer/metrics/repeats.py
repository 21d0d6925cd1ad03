"""What repeats with other seeds say of the difference between recipes."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats


class Spread(NamedTuple):
    """Means over repeats, and how far two of them differ by chance alone."""

    means: list[float]
    best: int
    """Which recipe has the best mean."""
    deviation: float
    """The standard deviation of a single value, that of all recipes pooled."""
    least: float
    """Means that differ by less cannot be told apart, in 95 % of cases."""
    is_noise: bool
    """Whether the best and the second best mean differ by less than that."""


def spread_of(values: Sequence[Sequence[float]], *, maximize: bool) -> Spread | None:
    """Returns what repeats say; None where there are not two of each of two recipes.

    The honestly significant difference of Tukey (1949, Biometrics 5, 99-114), with the number of repeats of
    the recipe that has fewest: q * s / sqrt(n), q of the studentized range, s pooled within the recipes.

    Args:
      values: of each recipe, one a seed.
      maximize: whether more is better.
    """
    counts = [len(of) for of in values]
    if len(values) < 2 or min(counts) < 2:
        return None
    means = [float(np.mean(of)) for of in values]
    freedom = sum(counts) - len(values)
    squares = sum(float(((np.asarray(of) - mean) ** 2).sum()) for of, mean in zip(values, means, strict=True))
    deviation = math.sqrt(squares / freedom)
    q = float(stats.studentized_range.ppf(0.95, len(values), freedom))
    least = q * deviation / math.sqrt(min(counts))
    order = sorted(range(len(means)), key=lambda i: -means[i] if maximize else means[i])
    return Spread(means, order[0], deviation, least, abs(means[order[0]] - means[order[1]]) <= least)
