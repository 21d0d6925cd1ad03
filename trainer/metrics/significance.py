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
