"""Predictions as lines: a table for eyes, JSON lines, CSV; to the terminal or whole into a file."""

import contextlib
import csv
import io
import json
import os
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from trainer.paths import local_path
from trainer.record.spreadsheets import as_text
from trainer.store.files import PART_PREFIX, move, require_place, sync, sync_file
from trainer.values import UsageError

_UNREAD = "(not read)"
# Of files that programs other than this one write.
_OTHERS = (".xlsx", ".xls", ".ods", ".parquet", ".html", ".pdf", ".docx", ".md", ".png", ".jpg")
_FORMAT_OF = {".csv": "csv", ".txt": "table"}


@dataclass(frozen=True)
class Prediction:
    """What a classifier says of a picture, or why it says nothing.

    `label` is the class with the highest of `probabilities`, {class name: 0 to 1}, and `probability` that
    one. Where a picture may have any number of classes, `labels` are those that are predicted, `label` is how
    they are written, and `probability` is that of the least certain one to be as predicted. Where the
    file could not be read, `error` says why; `label`, `probability` and `labels` are None then.
    """

    path: str
    label: str | None = None
    probability: float | None = None
    probabilities: Mapping[str, float] = field(default_factory=dict)
    error: str = ""
    labels: tuple[str, ...] | None = None

    def top(self, count: int) -> list[tuple[str, float]]:
        """Returns the most probable classes, the first one first, with their probabilities."""
        return sorted(self.probabilities.items(), key=lambda item: -item[1])[:count]


class Lines(Protocol):
    """A way to write predictions, a line each."""

    head: str
    """What comes before the first; ends with a line break, or is empty."""

    def line(self, prediction: Prediction, *, shown: str) -> str:
        """Returns a line with its break; `shown` is the path as it can be printed."""
        ...


class Table:
    """Probability, class, as many more pairs of them as are asked for, and the path."""

    def __init__(self, class_names: Sequence[str], *, top_k: int, threshold: float):
        self._top_k, self._threshold = top_k, threshold
        self._width = max(map(len, [*class_names, _UNREAD])) + (len(" ?") if threshold else 0)
        pair = f"{'probability':>11}  {'class':<{self._width}}"
        self.head = "  ".join([*[pair] * top_k, "picture"]) + "\n"

    def line(self, prediction: Prediction, *, shown: str) -> str:
        if prediction.error:
            cells, shown = [_cell("-", _UNREAD, self._width)], f"{shown}: {prediction.error}"
        else:
            best = f"{prediction.label}{' ?' if _uncertain(prediction, self._threshold) else ''}"
            others = [pair for pair in prediction.top(self._top_k) if pair[0] != prediction.label]
            pairs = [(best, prediction.probability), *others[: self._top_k - 1]]
            cells = [_cell(f"{value:.4f}", name, self._width) for name, value in pairs]
        cells += [_cell("", "", self._width)] * (self._top_k - len(cells))
        return "  ".join([*cells, shown]) + "\n"


class JsonLines:
    """An object a line: path, label, probability, uncertain, top [{label, probability}], error.

    Where a picture may have any number of classes, also labels, those that are predicted.

    All but path and error are null, and `top` empty, where a picture could not be read; otherwise error is.
    """

    def __init__(self, class_names: Sequence[str], *, top_k: int, threshold: float):
        self._top_k, self._threshold = top_k, threshold
        self.head = ""

    def line(self, prediction: Prediction, *, shown: str) -> str:
        top = [{"label": n, "probability": round(p, 6)} for n, p in prediction.top(self._top_k)]
        value: dict[str, Any] = {
            "path": shown,
            "label": prediction.label,
            "probability": None if prediction.probability is None else round(prediction.probability, 6),
            "uncertain": None if prediction.error else _uncertain(prediction, self._threshold),
            "top": top,
            "error": prediction.error or None,
        }
        if prediction.labels is not None:
            value |= {"labels": list(prediction.labels)}
        return json.dumps(value, ensure_ascii=False) + "\n"


class Csv:
    """path, prediction, probability, uncertain, error, and probability_NAME of every class.

    What a spreadsheet would take for a formula is text, by `spreadsheets.as_text`.
    """

    def __init__(self, class_names: Sequence[str], *, top_k: int, threshold: float):
        self._names, self._threshold = class_names, threshold
        probabilities = [f"probability_{name}" for name in class_names]
        self.head = _row(["path", "prediction", "probability", "uncertain", "error", *probabilities])

    def line(self, prediction: Prediction, *, shown: str) -> str:
        if prediction.error:
            return _row([as_text(shown), "", "", "", as_text(prediction.error), *[""] * len(self._names)])
        uncertain = str(_uncertain(prediction, self._threshold)).lower()
        values = [f"{prediction.probabilities[name]:.6f}" for name in self._names]
        said = as_text(prediction.label or "")
        return _row([as_text(shown), said, f"{prediction.probability:.6f}", uncertain, "", *values])


FORMATS: dict[str, Callable[..., Lines]] = {"table": Table, "jsonl": JsonLines, "csv": Csv}


def choose_format(asked: str, *, output: str) -> str:
    """Returns one of `FORMATS`: what was asked for, or what auto comes to.

    That is, for a file, CSV or a table where it ends in .csv or .txt; a table on a terminal; else JSON lines.

    Raises:
      UsageError: the file is called as one that would be something else.
    """
    if asked != "auto":
        return asked
    if output:
        ending = Path(output).suffix.lower()
        if ending in _OTHERS:
            raise UsageError(
                f"--output={output}: predict writes no {ending} file: a spreadsheet reads .csv; other "
                "endings get JSON lines, and --format says which of them whatever the ending"
            )
        return _FORMAT_OF.get(ending, "jsonl")
    return "table" if sys.stdout.isatty() else "jsonl"


@contextlib.contextmanager
def opened(output: str) -> Iterator[Callable[[str], object]]:
    """Yields a function that writes text: to standard output at once, or into a file.

    The file is there when the block has ended, whole and in place of any other, or not at all.

    Args:
      output: path of the file, whose folder is made; empty for standard output.

    Raises:
      TrainerError: the path is no place for a file.
      OSError: it cannot be written; `filename` is set.
    """
    if not output:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8")  # For programs, whatever the locale.
        yield lambda text: print(text, end="", flush=True)
        return
    # The file itself where the path is a link.
    path = Path(os.path.realpath(local_path(output, flag=f"--output={output}")))
    require_place(path, flag=f"--output={output}")
    part = path.with_name(f"{PART_PREFIX}{secrets.token_hex(8)}")
    try:
        with open(part, "x", encoding="utf-8", newline="") as file:
            yield file.write
            sync_file(file, path)
        move(part, path)
        sync(path.parent)
    except OSError as error:
        # A full disk does not say which file it was.
        if error.filename in (None, str(part)):
            error.filename = str(path)
        raise
    finally:
        part.unlink(missing_ok=True)


def _uncertain(prediction: Prediction, threshold: float) -> bool:
    return prediction.probability is not None and prediction.probability < threshold


def _cell(probability: str, name: str, width: int) -> str:
    return f"{probability:>11}  {name:<{width}}"


def _row(values: Sequence[str | None]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue()
