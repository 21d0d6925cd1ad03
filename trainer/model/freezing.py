"""Which variables a phase trains: a table of regexes over their names."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import tensorflow as tf

from trainer.values import UsageError


@dataclass(frozen=True)
class Row:
    """A variable and what a phase does with it.

    `state` is 'train', 'frozen', or 'statistics' for what no gradient reaches (moving averages).
    """

    name: str
    shape: tuple[int, ...]
    state: str

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def freezing_table(variables: Mapping[str, tf.Variable], patterns: Sequence[str]) -> list[Row]:
    """Decides for every variable whether it trains.

    Args:
      variables: {name: variable}.
      patterns: regexes that must match from the start of a name (like `re.match`); the first
        that matches decides; `not:REGEX` freezes; what none matches is frozen.

    Raises:
      UsageError: a regex matches no variable, or nothing would train.
    """
    used, rows = set(), []
    for name, variable in variables.items():
        decision = "frozen"
        for pattern in patterns:
            if re.match(pattern.removeprefix("not:"), name):
                used.add(pattern)
                decision = "frozen" if pattern.startswith("not:") else "train"
                break
        if not variable.trainable:
            decision = "statistics"
        rows.append(Row(name, tuple(variable.shape), decision))
    names = list(variables)
    for pattern in patterns:
        if pattern not in used:
            hidden = any(re.match(pattern.removeprefix("not:"), name) for name in names)
            why = "only what earlier ones matched" if hidden else "no variable"
            examples = ", ".join((names[0], names[len(names) // 2], names[-1]))
            raise UsageError(f"train={pattern} matches {why}; names are such as {examples}")
    if not any(row.state == "train" for row in rows):
        raise UsageError(f"train={' '.join(patterns)} trains nothing: no trainable variable matches")
    return rows


def trained(variables: Mapping[str, tf.Variable], rows: Sequence[Row]) -> dict[str, tf.Variable]:
    """Returns {name: variable} of the rows that train."""
    return {row.name: variables[row.name] for row in rows if row.state == "train"}


def summary(rows: Sequence[Row]) -> str:
    """Returns one line: how many variables and parameters train, of how many."""
    on = [row for row in rows if row.state == "train"]
    total = sum(row.size for row in rows)
    backbone = sum(row.name.startswith("backbone/") for row in on)
    return (
        f"{sum(row.size for row in on):,} of {total:,} parameters train, in {len(on)} of {len(rows)} "
        f"variables ({backbone} of the backbone)"
    )


def format_table(rows: Sequence[Row]) -> str:
    """Returns the table as text, a line per variable."""
    width = max(len(row.name) for row in rows)

    def line(row: Row) -> str:
        shape = "x".join(map(str, row.shape)) or "scalar"
        return f"  {row.state:<10}  {row.name:<{width}}  {shape:>16}  {row.size:>10,}"

    return "\n".join(map(line, rows))
