"""Which variables a phase trains: a table of regexes over their names, or of layers."""

import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import tensorflow as tf

from trainer.model.layers import LAYER_PATTERNS, Layer
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


def freezing_table(
    variables: Mapping[str, tf.Variable], patterns: Sequence[str], *, layers: Sequence[Layer] = ()
) -> list[Row]:
    """Decides for every variable whether it trains.

    Args:
      variables: {name: variable}.
      patterns: regexes that must match from the start of a name (like `re.match`), or layers as
        `LAYER_PATTERNS` reads them: `from_layer=NAME_OR_INDEX`, `unfreeze_top_layers=N`,
        `top_share=0.33`, which match the variables of those layers. The first pattern that matches
        decides; `not:PATTERN` freezes; what none matches is frozen.
      layers: of the network, in order of depth; () where it is not known.

    Raises:
      UsageError: a pattern matches no variable or names no layer, or nothing would train.
    """
    matchers = {pattern: _matcher(pattern.removeprefix("not:"), variables, layers) for pattern in patterns}
    used, rows = set(), []
    for name, variable in variables.items():
        decision = "frozen"
        for pattern, matches in matchers.items():
            if matches(name):
                used.add(pattern)
                decision = "frozen" if pattern.startswith("not:") else "train"
                break
        if not variable.trainable:
            decision = "statistics"
        rows.append(Row(name, tuple(variable.shape), decision))
    for pattern, matches in matchers.items():
        if pattern not in used:
            why = "only what earlier ones matched" if any(map(matches, variables)) else "no variable"
            raise UsageError(f"train={pattern} matches {why}; names are such as {_some(list(variables))}")
    if not any(row.state == "train" for row in rows):
        raise UsageError(f"train={' '.join(patterns)} trains nothing: no trainable variable matches")
    return rows


def _matcher(
    pattern: str, variables: Mapping[str, tf.Variable], layers: Sequence[Layer]
) -> Callable[[str], bool]:
    """Returns whether a name is matched, as a function.

    Raises:
      UsageError: the pattern names no layer.
    """
    way, equals, value = pattern.partition("=")
    if not equals or way not in LAYER_PATTERNS:
        return lambda name: re.match(pattern, name) is not None
    if not layers:
        names = [name for name, variable in variables.items() if variable.trainable]
        raise UsageError(
            f"{pattern}: the order of layers in a hub module is not recorded; say what trains by regexes "
            f"over variable names, as in --finetune_train='{_example(names)}' or train= of a --phase; names "
            f"are such as {_some(names)}"
        )
    chosen = {name for layer in LAYER_PATTERNS[way](value, layers) for name in layer.variables}
    return chosen.__contains__


def _example(names: Sequence[str]) -> str:
    """Returns regexes for the head and for one part of the backbone, where its names begin to differ."""
    parts = [name.split("/") for name in names if name.startswith("backbone/")]
    if not parts:
        return "head/"
    depth = 1
    while len({tuple(part[:depth]) for part in parts}) == 1 and depth < len(parts[-1]):
        depth += 1
    part = re.escape("/".join(parts[-1][:depth]))
    return f"head/ {part}/" if depth < len(parts[-1]) else f"head/ {part}"


def _some(names: Sequence[str]) -> str:
    return ", ".join((names[0], names[len(names) // 2], names[-1]))


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


def format_table(rows: Sequence[Row], *, multipliers: Mapping[str, float] = {}) -> str:
    """Returns the table as text, a line per variable.

    Args:
      rows: of the table.
      multipliers: {name: factor on its learning rate}; shown where a variable trains by another than 1.
    """
    width = max(len(row.name) for row in rows)

    def line(row: Row) -> str:
        shape = "x".join(map(str, row.shape)) or "scalar"
        factor = multipliers.get(row.name, 1.0) if row.state == "train" else 1.0
        shown = f"  x{factor:g}" if factor != 1.0 else ""
        return f"  {row.state:<10}  {row.name:<{width}}  {shape:>16}  {row.size:>10,}{shown}"

    return "\n".join(map(line, rows))


# Lines of groups that a phase is shown by; of more, those in the middle are counted.
MOST_GROUPS = 9


def group_lines(rows: Sequence[Row]) -> list[str]:
    """Returns what trains by groups of layers, from first to last: one line for neighbours of one state.

    A group is what the names of variables have in common up to where those of the backbone begin to differ.
    """
    spans: list[tuple[str, list[Row], list[str]]] = []
    for name, group in itertools.groupby(rows, key=_group_of(rows)):
        members = list(group)
        states = {row.state for row in members} - {"statistics"}
        state = "trains in part" if len(states) > 1 else "trains" if states == {"train"} else "frozen"
        # What has statistics alone goes with what is around it.
        if spans and (spans[-1][0] == state or not states):
            spans[-1][1].extend(members)
            spans[-1][2].append(name)
        else:
            spans.append((state, members, [name]))
    lines = [
        f"  {state:<14}  {names[0]}{f' to {names[-1]}' if len(names) > 1 else ''}: "
        f"{sum(row.size for row in members if state == 'frozen' or row.state == 'train'):,} parameters"
        for state, members, names in spans
    ]
    if len(lines) > MOST_GROUPS:
        half = MOST_GROUPS // 2
        lines[half:-half] = [f"  ... {len(lines) - 2 * half:,} more, which --verbose shows"]
    return lines


def _group_of(rows: Sequence[Row]) -> Callable[[Row], str]:
    """Returns the function from a row to the name of its group."""
    parts = [row.name.split("/") for row in rows if row.name.startswith("backbone/")]
    shortest = min(map(len, parts), default=2)
    depth = next((d for d in range(1, shortest) if len({part[d] for part in parts}) > 1), 1)

    def group(row: Row) -> str:
        return "/".join(row.name.split("/")[: depth + 1]) if row.name.startswith("backbone/") else "head"

    return group
