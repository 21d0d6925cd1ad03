"""Text in a CSV that spreadsheets show and do not compute: a folder may be called `=HYPERLINK(...)`."""

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import IO

# What Excel, LibreOffice and Google Sheets take for the beginning of a formula, wide forms among them. Spaces
# before it are dropped by some; a quote is what `as_text` itself puts there.
_FORMULA = re.compile(r"'*[ \xa0]*[=+\-@\t\r\n＝＋－＠]")


def as_text(value: str) -> str:
    """Returns a text as a cell: with a quote before what would be a formula, else as it is.

    Spreadsheets show the quote. `original` takes it away; no two texts have one cell.
    """
    return f"'{value}" if _FORMULA.match(value) else value


def original(cell: str) -> str:
    """Returns the text that `as_text` made a cell of."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell[1:]) else cell


def read_rows(file: IO[str], *, delimiter: str = ",") -> Iterator[Mapping[str, str]]:
    """Yields the lines of a CSV by the names of their columns, in which all text is as it was.

    Raises:
      csv.Error: it is none.
    """
    for row in csv.DictReader(file, delimiter=delimiter):
        yield {
            original(name): original(cell) if isinstance(cell, str) else cell
            for name, cell in row.items()
            if isinstance(name, str)
        }


def is_right(row: Mapping[str, str]) -> bool:
    """Returns whether a line of predictions.csv is of a picture whose prediction is its label.

    By the words of both where an older report does not say it: of several labels these may be the same words.
    """
    return row["right"] == "true" if "right" in row else row["label"] == row["prediction"]


def unique_names(names: Sequence[str]) -> list[str]:
    """Returns the names, each that was there before with a number behind it: ['a', 'a (2)']."""
    taken: set[str] = set()
    unique = []
    for name in names:
        made, number = name, 1
        while made in taken:
            number += 1
            made = f"{name} ({number})"
        taken.add(made)
        unique.append(made)
    return unique
