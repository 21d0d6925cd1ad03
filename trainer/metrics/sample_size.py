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
    """What would be measured after training with more pictures.

    `num_train` is how many training pictures there would be, `gain` by how much the accuracy on the same
    scored pictures would be higher, as a share, and `low` and `high` the 95 % interval of `gain`.
    """

    num_train: int
    gain: float
    low: float
    high: float


def outlook(sizes: Sequence[int], right: Sequence[np.ndarray], *, factor: int = 2, seed: int = 0) -> Outlook:
    """Extrapolates a learning curve.

    The interval is that of a bootstrap over the scored pictures, which all sizes share, and over the luck of
    which pictures are trained with: in what was measured, and in what will be. One half of it is with a floor
    under the error and one without.

    Args:
      sizes: [S] numbers of training pictures, rising; at least 3, the last one is all there are.
      right: [S] arrays [draws, M] bool: which of M scored pictures were right after a fit to each draw; of
        a size before the last, there are several.
      factor: how many times the pictures of the last size.
      seed: of the bootstrap.
    """
    rng, num_scored = np.random.default_rng(seed), right[0].shape[1]
    errors = np.array([1 - of.mean() for of in right])
    lucks = _lucks(sizes, right)
    luck, spread = lucks[-1], lucks / np.array([len(of) for of in right]) ** 0.5
    weights = 1 / (spread**2 + errors * (1 - errors) / num_scored + 1e-6)
    measured, samples = np.empty(_RESAMPLED), np.empty((_RESAMPLED, len(sizes)))
    for i in range(_RESAMPLED):
        scored = rng.integers(num_scored, size=num_scored)
        samples[i] = [1 - of[:, scored].mean() for of in right]
        measured[i] = samples[i, -1]
    samples = np.clip(samples + spread * rng.standard_normal(samples.shape), 0, 1)
    found = []
    for floor in (True, False):
        gains, fitted = _power_law(sizes, samples, weights, factor, floor=floor)
        # What was measured last had luck, good or bad, that the next time will not have again.
        had = np.clip(measured - fitted, -2 * luck, 2 * luck)
        found.append(gains + had + luck * rng.standard_normal(len(gains)))
    low, middle, high = np.quantile(np.concatenate(found), (0.025, 0.5, 0.975))
    return Outlook(factor * sizes[-1], float(middle), float(low), float(high))


def _lucks(sizes: Sequence[int], right: Sequence[np.ndarray]) -> np.ndarray:
    """Returns [S] the standard deviation of the error over draws of training pictures.

    That of the last size, and of more pictures, is taken from the two before it: its square falls as the
    number of pictures rises.
    """
    variances = np.zeros(len(sizes))
    for i, (size, of) in enumerate(zip(sizes[:-1], right[:-1], strict=True)):
        # Draws of a large share have most pictures in common, and differ less than those of new ones would.
        variances[i] = of.mean(axis=1).var(ddof=1) / (1 - size / sizes[-1])
    shares = np.asarray(sizes) / sizes[-1]
    variances[-1] = (variances * shares)[-3:-1].mean()
    return variances**0.5


def _power_law(
    sizes: Sequence[int], errors: np.ndarray, weights: np.ndarray, factor: int, *, floor: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Fits a power law to each of errors [B, S]; `floor` says whether it may end above an error of 0.

    Returns:
      [B] by how much it falls from the last size to `factor` times of it, and [B] the error at the last size.
    """
    best, gains, fitted = np.full(len(errors), np.inf), np.zeros(len(errors)), np.zeros(len(errors))
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
        fitted = np.where(is_better, base + slope, fitted)
    return gains, fitted
