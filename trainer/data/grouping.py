"""Pictures that belong together, such as those of a patient: which they are, and how they are divided."""

import logging
import re
from collections.abc import Sequence

import numpy as np

from trainer.data.sources import Source
from trainer.values import UsageError

_log = logging.getLogger("trainer")
# With more groups than this, moving single ones afterwards gains nothing that is worth the time.
_MOST_IMPROVED = 50_000
_ROUNDS = 3


def groups_of(source: Source, *, column: str = "", pattern: str = "") -> np.ndarray | None:
    """Returns what group each example is of, [N] str; None where nobody asks for groups.

    Args:
      source: whose examples.
      column: value of --group_column, whose values the source has read.
      pattern: value of --groups. An example whose name it is not found in is a group of its own.

    Raises:
      UsageError: both are asked for, the source has no columns, or the pattern is found nowhere.
    """
    if column and pattern:
        raise UsageError("--group_column and --groups both say what belongs together: give one")
    if column:
        found = getattr(source, "groups", None)
        if found is None:
            raise UsageError(f"--group_column={column} is of --source=table:; for {source.name} use --groups")
        return np.asarray(found, object)
    if not pattern:
        return None
    wanted = re.compile(pattern)
    groups, single = [], 0
    for name in source.ids:
        match = wanted.search(name)
        single += match is None
        part = match and match[min(1, wanted.groups)]
        # Not what the pattern finds anywhere: no text has a zero byte.
        groups.append(f"\0{name}" if part is None else part)
    if single == len(groups):
        raise UsageError(f"--groups={pattern} is found in no name of a picture, such as {source.ids[0]}")
    if single:
        _log.info(
            "--groups: not found in the names of %s of %s pictures, each of which is a group of its own",
            f"{single:,}", f"{len(groups):,}",
        )  # fmt: skip
    return np.array(groups, object)


def told_groups(groups: np.ndarray) -> str:
    """Returns in words how many groups there are, and how large the largest is."""
    counts = np.unique(groups.astype(str), return_counts=True)[1]
    return f"{len(counts):,} groups of up to {counts.max():,} kept together"


def divide_groups(
    groups: np.ndarray, strata: np.ndarray, sizes: Sequence[int], *, order: Sequence[int]
) -> list[np.ndarray]:
    """Divides examples into parts, each group whole, with the sizes and strata asked for as nearly as may be.

    What is rare comes first: of a class in few groups, the one with most of it goes to the first part of
    `order`, the next one to the second. Then the largest groups are placed, each where the parts come nearest
    to their share of every class (the sum of squared differences over what is expected, as in a chi-squared
    test), and then single groups move as long as that helps. At last the first part gets a group of each
    class that it has not. Ties go by the order of `groups`, which the caller has shuffled.

    The idea of placing large groups first is that of scikit-learn's StratifiedGroupKFold, whose parts are all
    of one size.

    Args:
      groups: [N], alike for examples that stay together.
      strata: [N] int, alike for examples that are to be spread evenly; or [N, K], 1 for each of the classes
        that an example has, else 0.
      sizes: how many each part should have; they sum to N.
      order: the parts' numbers, those first that are to have the rare classes.

    Returns:
      For each part, positions in `groups`, increasing.
    """
    return _Division(groups, strata, sizes, order).parts()


class _Division:
    """Where each group goes: `part` [G] int64, -1 for not yet."""

    def __init__(
        self, groups: np.ndarray, strata: np.ndarray, sizes: Sequence[int], order: Sequence[int]
    ) -> None:
        self._number_of = numbered(groups)
        if strata.ndim == 1:
            rows, classes = np.arange(len(strata)), numbered(strata)
        else:
            rows, classes = np.nonzero(strata)
        num_groups = int(self._number_of.max()) + 1
        num_classes = int(classes.max(initial=-1)) + 1
        self._sizes = np.bincount(self._number_of, minlength=num_groups)
        pairs, counts = np.unique(self._number_of[rows] * num_classes + classes, return_counts=True)
        # Last of the classes is the one that all examples are of, so that the sizes count, too.
        self._has: list[list[tuple[int, int]]] = [[(num_classes, int(size))] for size in self._sizes]
        for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True):
            self._has[pair // num_classes].append((pair % num_classes, count))
        self._order = [part for part in order if sizes[part] > 0]
        totals = np.append(np.bincount(classes, minlength=num_classes), len(strata))
        self._wanted = np.outer(np.array(sizes) / len(strata), totals).tolist()
        self._there = [[0] * (num_classes + 1) for _ in sizes]
        self._count = [0] * len(sizes)
        self.part = np.full(num_groups, -1, np.int64)

    def parts(self) -> list[np.ndarray]:
        self._place_rare()
        for group in np.argsort(-self._sizes, kind="stable").tolist():
            if self.part[group] < 0:
                self._put(group, min(self._order, key=lambda part: self._cost(group, part)))
        self._fill_empty()
        if len(self.part) <= _MOST_IMPROVED:
            self._improve()
        self._complete_first()
        of_rows = self.part[self._number_of]
        return [np.flatnonzero(of_rows == part) for part in range(len(self._count))]

    def _place_rare(self) -> None:
        """Places the groups of classes that are in no more groups than there are parts, or twice as many."""
        holders: dict[int, list[tuple[int, int]]] = {}
        for group, has in enumerate(self._has):
            for label, count in has[1:]:
                holders.setdefault(label, []).append((-count, group))
        few = [label for label in holders if len(holders[label]) <= 2 * len(self._order)]
        for label in sorted(few, key=lambda label: (len(holders[label]), label)):
            for part in self._order:
                free = sorted(one for one in holders[label] if self.part[one[1]] < 0)
                if free and not self._there[part][label]:
                    self._put(free[0][1], part)

    def _fill_empty(self) -> None:
        """Gives a part without a group the smallest one of the part that has most."""
        for part in self._order:
            if self._count[part]:
                continue
            giver = max(self._order, key=lambda one: self._count[one])
            own = np.flatnonzero(self.part == giver)
            if len(own) > 1:
                smallest = int(own[np.argmin(self._sizes[own])])
                self._take(smallest)
                self._put(smallest, part)

    def _complete_first(self) -> None:
        """Moves the smallest groups with classes that the first part has none of there."""
        first = self._order[0]
        for group in np.argsort(self._sizes, kind="stable").tolist():
            part = int(self.part[group])
            if part != first and self._count[part] > 1:
                if all(self._there[first][label] for label, _ in self._has[group]):
                    continue
                self._take(group)
                self._put(group, first)

    def _improve(self) -> None:
        for _ in range(_ROUNDS):
            moved = 0
            for group in range(len(self.part)):
                before = int(self.part[group])
                if self._count[before] == 1 or self._is_needed(group, before):
                    continue
                self._take(group)
                best = min(self._order, key=lambda part: (self._cost(group, part), part != before))
                self._put(group, best)
                moved += best != before
            if not moved:
                return

    def _is_needed(self, group: int, part: int) -> bool:
        """Tells whether a group has the last example of a class in the part that it is in."""
        return any(self._there[part][label] == count for label, count in self._has[group])

    def _cost(self, group: int, part: int) -> float:
        """Returns what the sum of squared differences gains by a group in a part."""
        wanted, there = self._wanted[part], self._there[part]
        return sum(
            (2 * count * (there[label] - wanted[label]) + count * count) / wanted[label]
            for label, count in self._has[group]
        )

    def _put(self, group: int, part: int) -> None:
        self.part[group] = part
        self._count[part] += 1
        for label, count in self._has[group]:
            self._there[part][label] += count

    def _take(self, group: int) -> None:
        part = int(self.part[group])
        self._count[part] -= 1
        for label, count in self._has[group]:
            self._there[part][label] -= count


def in_turn(groups: np.ndarray, sizes: Sequence[int]) -> list[np.ndarray]:
    """Divides examples into parts in their order, each group whole, where the middle of it would be.

    Args:
      groups: [N], alike for examples that stay together; a group has the place of its first example.
      sizes: how many each part should have; they sum to N.

    Returns:
      For each part, positions in `groups`, increasing.
    """
    numbers = numbered(groups)
    counts = np.bincount(numbers)
    middles = np.cumsum(counts) - counts / 2
    of_rows = np.searchsorted(np.cumsum(sizes), middles)[numbers]
    return [np.flatnonzero(of_rows == part) for part in range(len(sizes))]


def numbered(values: np.ndarray) -> np.ndarray:
    """Returns [N] int64: equal values under one number, numbered by where they come first."""
    numbers: dict[object, int] = {}
    return np.array([numbers.setdefault(value, len(numbers)) for value in values.tolist()], np.int64)


def require_whole(indices: dict[str, np.ndarray], groups: np.ndarray, *, how_out: str) -> None:
    """Makes sure that no group is in two splits.

    Raises:
      UsageError: one is, as where splits are those that the source comes with; the message names it.
    """
    splits_of: dict[object, str] = {}
    crossing: dict[object, tuple[str, str]] = {}
    for name, positions in indices.items():
        for group in groups[positions].tolist():
            if (before := splits_of.setdefault(group, name)) != name:
                crossing.setdefault(group, (before, name))
    if crossing:
        group, (first, second) = next(iter(crossing.items()))
        raise UsageError(
            f"{len(crossing):,} groups are in two splits, such as {str(group).lstrip(chr(0))} in {first} and "
            f"{second}: {how_out}"
        )
