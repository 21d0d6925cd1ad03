"""Finished runs against one another: whether they differ by more than chance, and in which options."""

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trainer.config import Config
from trainer.record.scored import Scored

SIGNIFICANT = 0.05
# Of five runs. Of more, each is tested against the first alone: a correction for more pairs hides everything.
MOST_PAIRS = 10
_OF_SPLITS = ("source", "splits", "split_order", "split_seed", "drop_duplicates", "synthetic_seed")


@dataclass(frozen=True)
class Pair:
    """Two reports, compared on the pictures that are in both.

    A picture is the same if it has the same bytes, by their SHA-256, and the same label, whatever its name;
    one that a report has several times counts once. Without any there is no test: `p_value` and
    `holm_p_value` are None, and `why_not` says why.

    Attributes:
      num_shared: how many different pictures are in both.
      only_first, only_second: how many of them only one got right.
      p_value: of McNemar's exact test; see `mcnemar`.
      holm_p_value: the same, corrected for how many pairs are tested.
    """

    first: Scored
    second: Scored
    num_shared: int
    only_first: int = 0
    only_second: int = 0
    p_value: float | None = None
    holm_p_value: float | None = None
    why_not: str = ""

    @property
    def is_unknown(self) -> bool:
        """Whether one of them does not say which pictures it is of."""
        return not (self.first.examples and self.second.examples)

    @property
    def better(self) -> Scored | None:
        """The one that is better by more than chance, if one is."""
        if self.holm_p_value is None or self.holm_p_value > SIGNIFICANT:
            return None
        return self.first if self.only_first > self.only_second else self.second


def compare_pairs(reports: Sequence[Scored]) -> list[Pair]:
    """Tests pairs of reports with McNemar's test, corrected by `holm` for how many there are.

    All pairs, if they are at most `MOST_PAIRS`; else the first report with each other one.
    """
    pairs = list(itertools.combinations(reports, 2))
    if len(pairs) > MOST_PAIRS:
        pairs = [(reports[0], other) for other in reports[1:]]
    tested = [_test(first, second) for first, second in pairs]
    corrected = iter(holm([pair.p_value for pair in tested if pair.p_value is not None]))
    return [
        pair if pair.p_value is None else dataclasses.replace(pair, holm_p_value=next(corrected))
        for pair in tested
    ]


def _test(first: Scored, second: Scored) -> Pair:
    for report in (first, second):
        if not report.examples:
            why = f"the report of {report.name} does not say which pictures it is of; evaluate writes it anew"
            return Pair(first, second, 0, why_not=why)
    shared = [key for key in first.examples if key in second.examples]
    if not shared:
        same_bytes = len({digest for digest, _ in first.examples} & {digest for digest, _ in second.examples})
        why = (
            f"the {same_bytes:,} that are in both have other labels" if same_bytes else _apart(first, second)
        )
        return Pair(first, second, 0, why_not=why)
    from trainer.measures.comparison import mcnemar  # Late: scipy takes a second to import.

    right = np.array([(first.examples[key], second.examples[key]) for key in shared])
    found = mcnemar(right[:, 0], right[:, 1])
    return Pair(first, second, len(shared), found.only_a, found.only_b, found.p_value)


def _apart(first: Scored, second: Scored) -> str:
    """Returns why two reports may have no picture in common."""
    reasons = [f"{first.split} of one, {second.split} of the other"] * (first.split != second.split)
    if first.options and second.options:
        pairs = [(name, first.options[name], second.options[name]) for name in _OF_SPLITS]
        reasons += [f"--{name} was {a} and {b}" for name, a, b in pairs if a != b]
    return "; ".join(reasons) or "none has the same bytes"


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns p-values corrected for several comparisons (Holm, 1979, Scand. J. Statistics 6, 65-70).

    If both of each pair are equally good, the chance that any corrected p-value is a or less is a or less.
    """
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def differing_options(reports: Sequence[Scored]) -> list[str]:
    """Returns the names of options that differ between runs; backbone and size of pictures apart."""
    known = [report.options for report in reports if report.options]
    names = [name for name in Config().identity_values() if name not in ("backbone", "image_size")]
    return [name for name in names if len({repr(options[name]) for options in known}) > 1]
