"""Examples divided so that every part has its share of every class."""

from collections.abc import Sequence

import numpy as np


def stratify(groups: np.ndarray, sizes: Sequence[int], *, order: Sequence[int]) -> list[np.ndarray]:
    """Divides examples into parts of given sizes, group by group, by the largest remainder.

    Of each group a part gets its share, rounded down or up. Where the first part can have one of each group,
    it has. What is left over after rounding down goes first to where a group would be missing, then to where
    it leaves some for the parts that follow, then by the remainder; ties go to the group that comes first in
    `groups`, which the caller has shuffled.

    Args:
      groups: [N] int, alike for examples that are to be spread evenly.
      sizes: how many each part has; they sum to N.
      order: the parts' numbers, those first that are to have the rare groups.

    Returns:
      For each part, positions in `groups` [its size] int64, increasing.
    """
    # Numbered by where they appear first, so that a stable sort breaks ties by it.
    _, first, inverse = np.unique(groups, return_index=True, return_inverse=True)
    numbers = np.argsort(np.argsort(first))[inverse]
    counts = np.bincount(numbers, minlength=len(first))
    left, waiting = counts.copy(), list(order)
    taken = np.zeros((len(sizes), len(counts)), np.int64)
    while waiting:
        part = waiting.pop(0)
        of_part = _share(left, sizes[part], parts_after=len(waiting))
        if part == order[0]:
            of_part = _one_of_each(of_part, left)
        taken[part], left = of_part, left - of_part
    # Row by row, a group's first examples are the first part's.
    ends = np.cumsum(taken, axis=0)
    by_group = np.argsort(numbers, kind="stable")
    rank = np.empty(len(numbers), np.int64)
    rank[by_group] = np.arange(len(numbers)) - np.repeat(np.cumsum(counts) - counts, counts)
    part_of = (rank >= ends[:, numbers]).sum(axis=0)
    return [np.flatnonzero(part_of == part) for part in range(len(sizes))]


def _share(left: np.ndarray, size: int, *, parts_after: int) -> np.ndarray:
    """Returns how many of each group's `left` a part takes: `size` in all."""
    total = max(int(left.sum()), 1)
    share, remainder = np.divmod(left * size, total)
    missing = (share == 0) & (remainder > 0)
    # As many are left for the parts after it, no more than one each counting.
    spared = np.minimum(left - share - 1, parts_after)
    by_need = np.lexsort((-remainder, -spared, ~missing))
    fits = by_need[remainder[by_need] > 0]
    share[fits[: size - int(share.sum())]] += 1
    return share


def _one_of_each(share: np.ndarray, left: np.ndarray) -> np.ndarray:
    """Returns a share of the same size that has one of every group, where it is large enough for that."""
    share, without = share.copy(), np.flatnonzero((share == 0) & (left > 0))
    if len(without) > share.sum() - np.count_nonzero(share):
        return share
    share[without] = 1
    for _ in without:
        share[np.flatnonzero(share == share.max())[0]] -= 1
    return share
