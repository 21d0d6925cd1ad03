"""What a table says of its pictures, made into classes: names, numbers, lists, or columns of 0 and 1."""

import ast
import decimal
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trainer.data.inspect.bad_pictures import one_line
from trainer.data.tables.columns import as_truth, is_empty
from trainer.values import UsageError, composed

NO_LABEL = "no label"
SPELLED = "a label that is spelled otherwise elsewhere"
_SEPARATORS = (",", ";", "|")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
# Python refuses to read the number that thousands of digits are.
_WHOLE = re.compile(r"[+-]?\d{1,1000}")
_POINTLESS = re.compile(r"[+-]?\d{1,1000}\.0*")
# A text in quotes, or a number; and lists of such as NumPy writes them, with blanks between and no commas.
_QUOTED = r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\""
_ITEM = re.compile(rf"{_QUOTED}|{_NUMBER.pattern}|None|nan")
_ARRAY = re.compile(rf"\[\s*(?:{_ITEM.pattern})(?:\s+(?:{_ITEM.pattern}))+\s*\]")
# A guessed column with more classes than half of so many rows, or more, is no column of labels.
_ENOUGH_ROWS = 20
_SHOWN_LETTERS = 60
# Texts, to see whether they are lists.
_LOOKED_AT = 100


@dataclass
class Labels:
    """The classes of N rows.

    Attributes:
      class_names: [K].
      of_rows: [N] numbers of classes; one each, unless `several`. None where `problems` has the row.
      several: whether a row has any number of classes, none included.
      problems: {row: (what kind of problem, the reason in words)}.
    """

    class_names: tuple[str, ...]
    of_rows: list[tuple[int, ...] | None]
    several: bool = False
    problems: dict[int, tuple[str, str]] = field(default_factory=dict)


def labels_of_columns(rows: Sequence[Sequence[Any]], columns: Sequence[str], *, several: bool) -> Labels:
    """Reads columns that say of a class each, 1 or 0, whether a row is of it.

    Where each row is of exactly one, that is its only class, unless `several` classes are asked for.
    """
    found = Labels(tuple(columns), [], several)
    for at, row in enumerate(rows):
        truths = [as_truth(value) for value in row]
        if None in truths:
            wrong = columns[truths.index(None)]
            value = row[truths.index(None)]
            told = "is empty" if is_empty(value) else f"is {_shown(value)}, neither 0 nor 1"
            found.problems[at] = NO_LABEL, f"{NO_LABEL}: column {wrong} {told}"
            found.of_rows.append(None)
        else:
            found.of_rows.append(tuple(k for k, truth in enumerate(truths) if truth))
    found.several |= any(row is not None and len(row) != 1 for row in found.of_rows)
    return found


def labels_of_column(
    values: Sequence[Any], *, column: str, names: Sequence[str] = (), several: bool, guessed: bool
) -> Labels:
    """Reads a column of labels.

    Args:
      values: [N] texts, numbers, or lists of such; a text may be a list, as in `sea,trees` or `['sea']`.
      column: its name, for messages.
      names: of the classes that numbers are, where the table says it.
      several: whether a row may have any number of classes, none included, because that is asked for.
      guessed: whether nobody has named the column.

    Raises:
      UsageError: it is no column of labels.
    """
    lists, several = _as_lists(values, asked=several, named=bool(names))
    if several:
        _require_no_vectors(lists, column)
    if names:
        return _numbered(lists, values, names, several=several)
    _require_classes(lists, column)
    found = Labels((), [], several)
    texts = [row and tuple(map(_text, row)) for row in lists]
    spelled = Counter(text for row in texts if row for text in row if text is not None)
    usual = _usual_spellings(spelled)
    names_of = {raw: composed(" ".join(raw.split())) for raw in set(usual.values())}
    if spelled and all(map(_NUMBER.fullmatch, map(str.strip, spelled))):
        names_of = {raw: _without_point(name) for raw, name in names_of.items()}
    class_names = sorted(set(names_of.values()))
    if all(map(_WHOLE.fullmatch, class_names)):
        class_names.sort(key=int)
    numbers = {name: number for number, name in enumerate(class_names)}
    places = {raw: numbers[name] for raw, name in names_of.items()}
    found.class_names = tuple(class_names)
    for at, row in enumerate(texts):
        problem = _problem_of(row, values[at], usual, spelled, several=several)
        if problem:
            found.problems[at] = problem
            found.of_rows.append(None)
        else:
            found.of_rows.append(tuple(sorted({places[text] for text in row or () if text is not None})))
    _require_few(found, column, guessed=guessed)
    return found


def _problem_of(
    row: tuple[str | None, ...] | None,
    value: Any,
    usual: Mapping[str, str],
    spelled: Mapping[str, int],
    *,
    several: bool,
) -> tuple[str, str] | None:
    """Returns what is wrong with the labels of a row, if anything is."""
    if row is None or (not row and not several):
        return NO_LABEL, NO_LABEL
    for text in row:
        if text is None:
            return NO_LABEL, f"{NO_LABEL}: {_shown(value)} is neither a text nor a number"
        if text != usual[text]:
            other = usual[text]
            return (
                SPELLED,
                f"label {text!r}, and {other!r} in {spelled[other]:,} others: they differ only in case or "
                "blanks",
            )
    return None


def _as_lists(
    values: Sequence[Any], *, asked: bool, named: bool
) -> tuple[list[tuple[Any, ...] | None], bool]:
    """Returns the labels of each row, None where it says nothing, and whether there may be several."""
    texts = [value for value in values if isinstance(value, str) and not is_empty(value)]
    separator = _separator(texts, asked=asked) if not named else ""
    is_written = any(_written_list(text) is not None for text in texts[:_LOOKED_AT])
    several = asked or bool(separator) or is_written or any(map(_is_list, values))
    found: list[tuple[Any, ...] | None] = []
    for value in values:
        if _is_list(value):
            found.append(_without_blanks(value))
        elif is_empty(value):
            # Where a row may have no class, to say nothing is to say that.
            found.append(() if several else None)
        elif several and isinstance(value, str) and (written := _written_list(value)) is not None:
            found.append(_without_blanks(written))
        elif separator and isinstance(value, str):
            found.append(tuple(part.strip() for part in value.split(separator) if part.strip()))
        else:
            found.append((value,))
    # Lists of one label each are labels, unless more are asked for.
    return found, several and (asked or any(row is not None and len(row) != 1 for row in found))


def _separator(texts: Sequence[str], *, asked: bool) -> str:
    """Returns what stands between the labels of a text that is a list of them; empty where texts are names.

    A name may hold a comma, too (`tench, Tinca tinca`). Lists are of fewer labels than there are lists.
    """
    different = set(texts)
    for separator in _SEPARATORS:
        split = {
            text: [part.strip() for part in text.split(separator)] for text in different if separator in text
        }
        parts = {part for row in split.values() for part in row}
        alone = {text.strip() for text in different if separator not in text}
        if split and (asked or len(parts | alone) < len(different)):
            return separator
    return ""


def _written_list(text: str) -> list[Any] | None:
    """Returns the list that a text is written as, such as ['sea', 'trees'] or [1, 2]; None: it is none."""
    text = text.strip()
    if not (text.startswith("[") and text.endswith("]")):
        return None
    if _ARRAY.fullmatch(text):
        # Python takes texts beside one another for one.
        items = [match[0] for match in _ITEM.finditer(text)]
        text = f"[{', '.join('None' if item == 'nan' else item for item in items)}]"
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return found if isinstance(found, list) else None


def _without_blanks(labels: Sequence[Any]) -> tuple[Any, ...]:
    """Returns a list without what is left of `sea,` where it is cut at commas."""
    return tuple(one for one in labels if not (isinstance(one, str) and not one.strip()))


def _require_no_vectors(lists: Sequence[tuple[Any, ...] | None], column: str) -> None:
    """Refuses a column that says 0 or 1 of each class, in a row, without saying which class is which."""
    rows = [row for row in lists if row]
    length = len(rows[0]) if rows else 0
    if (
        length > 1
        and all(len(row) == length and set(map(str, row)) <= {"0", "1", "0.0", "1.0"} for row in rows)
        and any(len(set(row)) < length for row in rows)
    ):
        raise UsageError(
            f"the column {column} has {length} numbers 0 and 1 in each row, and no names of the classes that "
            "they are of: write a column for each class, with its name as the heading, or lists of names"
        )


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _numbered(
    lists: Sequence[tuple[Any, ...] | None], values: Sequence[Any], names: Sequence[str], *, several: bool
) -> Labels:
    """Returns labels that are the numbers of classes, or their names."""
    places: dict[Any, int] = {name: k for k, name in enumerate(names)}
    found = Labels(tuple(names), [], several)
    for at, row in enumerate(lists):
        numbers = [_place(value, places, len(names)) for value in row or ()]
        # datasets and tfds write -1 where a label is kept back.
        if row is None or (not row and not several) or any(value in (-1, "-1") for value in row):
            problem = NO_LABEL
        elif None in numbers:
            problem = f"label {_shown(values[at])}, expected 0 to {len(names) - 1} or the name of a class"
        else:
            problem = ""
        if problem:
            found.problems[at] = NO_LABEL, problem
        kept = tuple(sorted({number for number in numbers if number is not None}))
        found.of_rows.append(None if problem else kept)
    return found


def _place(value: Any, places: Mapping[Any, int], count: int) -> int | None:
    if isinstance(value, str) and value in places:
        return places[value]
    text = _without_point(str(value).strip())
    if _WHOLE.fullmatch(text) and 0 <= int(text) < count:
        return int(text)
    return None


def _text(value: Any) -> str | None:
    """Returns a label as a text; None where it is neither a text nor a number."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float | decimal.Decimal):
        return _without_point(str(value))
    return str(value) if isinstance(value, str | int) else None


def group_name(value: Any) -> str:
    """Returns the name of a group, the same for `3`, `3.0` and ` 3 `, in either spelling of Unicode."""
    return composed(" ".join(_without_point(str(value).strip()).split()))


def _without_point(text: str) -> str:
    """Returns 1 for 1.0, and other texts as they are: 01, 1_23 and 1e3 may be names."""
    return str(int(text.partition(".")[0])) if _POINTLESS.fullmatch(text) else text


def _usual_spellings(spelled: Mapping[str, int]) -> dict[str, str]:
    """Returns {spelling: the most frequent of those that differ from it only in case or blanks}."""
    groups: dict[str, list[str]] = {}
    for text in spelled:
        groups.setdefault(composed("".join(text.casefold().split())), []).append(text)
    return {
        text: min(group, key=lambda one: (-spelled[one], one)) for group in groups.values() for text in group
    }


def _require_classes(lists: Sequence[tuple[Any, ...] | None], column: str) -> None:
    """Refuses a column of measurements."""
    numbers = [value for row in lists if row for value in row]
    fractions = [value for value in numbers if _is_fraction(value)]
    if fractions and len(fractions) > len(numbers) / 10:
        raise UsageError(
            f"the column {column} has numbers such as {_shown(fractions[0])}, which are no classes: name "
            "another with --label_column"
        )


def _is_fraction(value: Any) -> bool:
    text = str(value).strip()
    return bool(_NUMBER.fullmatch(text)) and math.isfinite(float(text)) and not float(text).is_integer()


def _require_few(found: Labels, column: str, *, guessed: bool) -> None:
    rows, classes = len(found.of_rows), len(found.class_names)
    if guessed and rows >= _ENOUGH_ROWS and classes > rows / 2:
        raise UsageError(
            f"the column {column} has {classes:,} different values in {rows:,} rows: is it the one with the "
            "labels? --label_column=NAME says so, or names another"
        )


def _shown(value: Any) -> str:
    text = one_line(repr(value))
    return text if len(text) <= _SHOWN_LETTERS else f"{text[:_SHOWN_LETTERS]}..."
