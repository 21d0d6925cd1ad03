"""Names that may be long, in a line of a figure or of a terminal."""

import itertools
import unicodedata
from collections.abc import Iterable

MOST_LETTERS = 30
"""Of a name in a figure."""


def width(text: str) -> int:
    """Returns how wide a text is in letters of the usual width; those of Chinese and Japanese count twice."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def shortened(name: str, most_letters: int) -> str:
    """Returns a name in one line of at most so many letters, without its middle where it is longer."""
    line = " ".join(name.split())
    if len(line) <= most_letters:
        return line
    tail = (most_letters - 1) // 2
    return f"{line[: most_letters - 1 - tail]}…{line[len(line) - tail :]}"


def shortened_apart(names: Iterable[str], most_letters: int) -> dict[str, str]:
    """Returns {name: it in one line of at most so many letters}; names that differ do so shortened, too.

    Those that would be the same without their middles are shown from where they begin to differ, and numbered
    where not even that tells them apart.
    """
    groups: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        groups.setdefault(shortened(name, most_letters), []).append(name)
    found = {group[0]: short for short, group in groups.items() if len(group) == 1}
    for short, group in groups.items():
        if len(group) == 1:
            continue
        lines = [" ".join(name.split()) for name in group]
        columns = enumerate(zip(*lines, strict=False))
        differ = next((at for at, letters in columns if len({*letters}) > 1), min(map(len, lines)))
        head = most_letters // 3
        told = [f"{line[:head]}…{line[differ:]}"[:most_letters] for line in lines]
        if len({*told}) < len(told) or {*told} & {*found.values()}:
            marks = (f"…{number}" for number in itertools.count(1))
            numbered = (short[: most_letters - len(mark)] + mark for mark in marks)
            taken = {*found.values(), *groups}
            told = list(itertools.islice((one for one in numbered if one not in taken), len(group)))
        found |= zip(group, told, strict=True)
    return found
