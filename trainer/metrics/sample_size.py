"""How the error falls with the number of training pictures, and what more of them would buy.

Errors of classifiers follow power laws of the number of examples, with or without a floor (Hestness et al.,
2017, arXiv 1712.00409). Which of the two cannot be told from a few sizes: both are fitted, and the interval
covers both.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_EXPONENTS = np.linspace(0.001, 1.5, 76)
_RESAMPLED = 500


@dataclass(frozen=True)
class Outlook:
    """What a larger training split is expected to buy.

    `num_train` is how many pictures it would have, `gain` by how much the accuracy would rise, as a share,
    and `low` and `high` the 95 % interval of `gain`.
    """

    num_train: int
    gain: float
    low: float
    high: float


def outlook(sizes: Sequence[int], right: Sequence[np.ndarray], *, factor: int = 2, seed: int = 0) -> Outlook:
    """Extrapolates a learning curve.

    The interval is that of a bootstrap over the scored pictures, which all sizes share, and over the draws of
    training pictures; half of it with a floor under the error and half without.

    Args:
      sizes: [S] numbers of training pictures, rising; at least 3.
      right: [S] arrays [draws, M] bool: which of M scored pictures were right after a fit to each draw.
      factor: how many times the pictures of the last size.
      seed: of the bootstrap.
    """
    rng, num_scored = np.random.default_rng(seed), right[0].shape[1]
    errors = np.array([1 - of.mean() for of in right])
    spread = _spread(sizes, right)
    weights = 1 / (spread**2 + errors * (1 - errors) / num_scored + 1e-6)
    samples = np.empty((_RESAMPLED, len(sizes)))
    for sample in samples:
        scored = rng.integers(num_scored, size=num_scored)
        # The last size has one draw only, and as much luck in it as the others.
        sample[:] = [1 - of[:, scored].mean() for of in right] + spread * rng.standard_normal(len(sizes))
    samples = np.clip(samples, 0, 1)
    gains = np.concatenate([_gains(sizes, samples, weights, factor, floor=floor) for floor in (True, False)])
    low, middle, high = np.quantile(gains, (0.025, 0.5, 0.975))
    return Outlook(factor * sizes[-1], float(middle), float(low), float(high))


def _spread(sizes: Sequence[int], right: Sequence[np.ndarray]) -> np.ndarray:
    """Returns [S] standard deviations of the mean error over the draws of each size.

    Where a size has one draw, that of the nearest smaller size with several, which falls with the root of
    the number of pictures.
    """
    found, last = np.zeros(len(sizes)), 0.0
    for i, of in enumerate(right):
        if len(of) > 1:
            of_one = float(of.mean(axis=1).std(ddof=1))
            last, found[i] = of_one * sizes[i] ** 0.5, of_one / len(of) ** 0.5
        else:
            found[i] = last / sizes[i] ** 0.5
    return found


def _gains(
    sizes: Sequence[int], errors: np.ndarray, weights: np.ndarray, factor: int, *, floor: bool
) -> np.ndarray:
    """Returns by how much a power law fitted to each of errors [B, S] falls from the last size on: [B].

    `floor` says whether it may end above an error of 0.
    """
    best, gains = np.full(len(errors), np.inf), np.zeros(len(errors))
    share = weights / weights.sum()
    at = np.asarray(sizes) / sizes[-1]
    mean = errors @ share
    for exponent in _EXPONENTS:
        x = at**-exponent
        x_mean = x @ share
        slope = (errors - mean[:, None]) @ (share * (x - x_mean)) / (share @ (x - x_mean) ** 2)
        base = mean - slope * x_mean
        through_0 = errors @ (share * x) / (share @ x**2)
        is_below = base < 0 if floor else np.full(len(errors), True)
        slope, base = np.where(is_below, through_0, slope), np.where(is_below, 0.0, base)
        slope, base = np.where(slope < 0, 0.0, slope), np.where(slope < 0, mean, base)
        missed = ((errors - base[:, None] - slope[:, None] * x) ** 2) @ share
        is_better = missed < best
        best = np.where(is_better, missed, best)
        gains = np.where(is_better, slope * (1 - factor**-exponent), gains)
    return gains
