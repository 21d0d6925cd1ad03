"""How far an accuracy can be trusted, given how many pictures it was counted on."""

import math


def wilson_interval(num_correct: int, num_examples: int, *, z: float = 1.959964) -> tuple[float, float]:
    """Returns the 95 % interval of an accuracy (Wilson, 1927): honest for few examples and near 1."""
    share = num_correct / num_examples
    spread = z * z / num_examples
    middle = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / num_examples + spread / (4 * num_examples)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)
