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


def stratify_labels(labels: np.ndarray, sizes: Sequence[int], *, order: Sequence[int]) -> list[np.ndarray]:
    """Divides examples that have any number of labels, so that every part has its share of every label.

    Iterative stratification (Sechidis, Tsoumakas and Vlahavas, 2011, ECML PKDD, "On the stratification of
    multi-label data"): the label of which fewest examples are left is dealt out next, each of its examples to
    the part that wants most of it, then to that which wants most examples, then to the first of `order`. As
    well as possible, as an example brings its other labels along.

    What differs here: parts get exactly the sizes that were asked for; the first example of a label goes to
    the first part of `order`; and once there are no more examples of a label left than parts without it,
    these have one each, as far as they go. Of several examples that which comes first in `labels` is taken,
    which the caller has shuffled.

    Args:
      labels: [N, K] bool.
      sizes: how many each part has; they sum to N.
      order: the parts' numbers, those first that are to have the rare labels.

    Returns:
      For each part, positions in `labels` [its size] int64, increasing.
    """
    total = max(len(labels), 1)
    room = np.array(sizes, np.int64)
    wanted = np.outer(room / total, labels.sum(axis=0))
    has = np.zeros(wanted.shape, bool)
    part_of = np.full(len(labels), -1, np.int64)
    by_order = np.argsort(np.array(order))
    left = labels.sum(axis=0)

    def give(example: int, part: int) -> None:
        row = labels[example]
        part_of[example] = part
        room[part] -= 1
        wanted[part, row] -= 1.0
        has[part, row] = True
        left[row] -= 1

    while left.any():
        label = int(np.where(left > 0, left, total + 1).argmin())
        for example in np.flatnonzero(labels[:, label] & (part_of < 0)).tolist():
            lacking = [part for part in order if room[part] and not has[part, label] and sizes[part]]
            if lacking and (lacking[0] == order[0] or left[label] <= len(lacking)):
                give(example, lacking[0])
            else:
                # The last key counts first.
                keys = (by_order, -room, -wanted[:, label], room <= 0)
                give(example, int(np.lexsort(keys)[0]))
    for example in np.flatnonzero(part_of < 0).tolist():
        give(example, int(np.lexsort((by_order, -room))[0]))
    return [np.flatnonzero(part_of == part) for part in range(len(sizes))]
