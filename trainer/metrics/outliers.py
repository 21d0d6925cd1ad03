"""Examples that are unlike all others, by their features."""

import numpy as np

_BLOCK = 1024


def neighbour_distances(features: np.ndarray, *, count: int = 10) -> np.ndarray:
    """Returns how far examples are from those most like them, from 0 to 2: [N] float64.

    It is one minus the mean cosine similarity to the `count` nearest others, which finds what is out of place
    about as well as any method (Kuan and Mueller, 2022, arXiv 2207.03061).

    Args:
      features: [N, D].
      count: of neighbours; fewer where there are fewer others.
    """
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    unit = (features / np.maximum(lengths, 1e-12)).astype(np.float32)
    count, distances = min(count, len(unit) - 1), np.zeros(len(unit))
    for start in range(0, len(unit) if count > 0 else 0, _BLOCK):
        alike = unit[start : start + _BLOCK] @ unit.T
        alike[np.arange(len(alike)), np.arange(start, start + len(alike))] = -2
        distances[start : start + _BLOCK] = 1 - np.sort(alike, axis=1)[:, -count:].mean(axis=1)
    return distances


def far_out(values: np.ndarray) -> np.ndarray:
    """Returns which of values [N] are far out: 3 quartile ranges above the third (Tukey, 1977), [N] bool."""
    low, high = np.quantile(values, (0.25, 0.75))
    return values > high + 3 * max(high - low, 1e-9)
