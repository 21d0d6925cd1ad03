"""Which column of a table has the pictures, which the labels: named, or told by what is in them."""

import logging
import re
import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.data.inspect.bad_pictures import one_line
from trainer.data.inspect.kinds import kind_by_name
from trainer.data.layouts import usual_split
from trainer.data.tables.formats import BadRow, Format
from trainer.values import UsageError, close_names, is_it

_log = logging.getLogger("trainer")
# Written without what `_plain` takes away; the first one that is there is taken.
IMAGE_NAMES = (
    "image", "images", "img", "picture", "photo", "jpg", "png", "webp", "filename", "file", "path",
    "filepath", "imagepath", "imgpath", "picturepath", "imagefile", "imagefilename", "imagename", "name",
    "imageid", "imgid", "id",
)  # fmt: skip
LABEL_NAMES = (
    "label", "labels", "class", "classes", "classname", "labelname", "category", "categories", "target",
    "targets", "finelabel", "tag", "tags", "species", "diagnosis", "dx", "cls", "classlabel", "y",
    "annotation", "labelid", "classid", "categoryid",
)  # fmt: skip
SPLIT_NAMES = ("split", "splits", "subset", "partition", "set", "dataset", "datasplit", "phase", "fold")
# Rows that are looked at before any column is chosen, spread evenly.
SAMPLE_ROWS = 2_000
_TRUE, _FALSE = {"1", "1.0", "true"}, {"0", "0.0", "false"}
_SHOWN = 20
_MOST_LETTERS = 60
_KNOWN_ENDING = re.compile(r"\.(jpe?g|jpe|jfif|png|gif|bmp|webp|tiff?|heic|avif)$", re.I)


@dataclass(frozen=True)
class Columns:
    """Which column is what. `labels` are several where each says of one class whether it is there."""

    image: str
    labels: tuple[str, ...]
    split: str = ""
    group: str = ""
    weight: str = ""

    @property
    def all(self) -> list[str]:
        """Those that are read, each once."""
        return list(
            dict.fromkeys(filter(None, [self.image, *self.labels, self.split, self.group, self.weight]))
        )


@dataclass(frozen=True)
class Asked:
    """The columns that options name; empty: to be found."""

    image: str = ""
    label: str = ""
    split: str = ""
    group: str = ""
    weight: str = ""


def sample_of(table: Format) -> dict[str, list[Any]]:
    """Returns {column: its values} in some rows, all over the table, without those that hold pictures.

    Raises:
      TrainerError: there is no row.
    """
    wanted = [name for name in table.columns if table.columns.count(name) == 1 and name not in table.pictures]
    kept: list[Sequence[Any]] = []
    stride, number, why_not = 1, 0, ""
    for line, values in table.rows(wanted):
        if isinstance(values, BadRow):
            why_not = why_not or f" that can be used: {table.counted_in} {line} has {values}"
            continue
        if number % stride == 0:
            kept.append(values)
            if len(kept) >= 2 * SAMPLE_ROWS:
                kept, stride = kept[::2], 2 * stride
        number += 1
    if not number:
        raise table.error(f"has a header and no row{why_not}")
    return {name: [values[place] for values in kept] for place, name in enumerate(wanted)}


def find_columns(
    table: Format,
    asked: Asked,
    *,
    source: str,
    is_file: Callable[[Any], bool],
    elsewhere: Callable[[Sequence[Any]], str],
) -> Columns:
    """Finds out which column is what.

    Args:
      table: whose.
      asked: by options.
      source: its name, for messages.
      is_file: whether a value is the path of a file that is there.
      elsewhere: values -> another folder in which they are files; empty where there is none.

    Raises:
      UsageError: there is no such column, or it is not clear which one is meant; the message lists them.
    """
    found = _Finder(table, sample_of(table), source)
    image = found.named(asked.image, "image_column") or found.image(is_file, elsewhere)
    rest = [name for name in found.columns if name != image]
    split = found.named(asked.split, "split_column") or found.split(rest)
    group = found.named(asked.group, "group_column")
    weight = found.named(asked.weight, "weight_column")
    taken = (image, split, group if group != asked.label else "", weight)
    labels = found.named_labels(asked.label) or found.labels([name for name in rest if name not in taken])
    return Columns(image, labels, split, group, weight)


class _Finder:
    """Looks for columns in a table, given a sample of its values."""

    def __init__(self, table: Format, sample: Mapping[str, Sequence[Any]], source: str):
        self._table, self._sample, self._source = table, sample, source
        self.columns = list(dict.fromkeys(table.columns))

    def named(self, name: str, option: str) -> str:
        """Returns a column that an option names; empty where it names none."""
        if not name:
            return ""
        if name in self.columns:
            self._require_once(name, f"--{option}")
            return name
        told = f"--{option}={name}: {self._place} has no such column; it has {self._told()}"
        raise UsageError(told + is_it(close_names(name, self.columns, n=1)))

    def _require_once(self, name: str, flag: str) -> None:
        if (count := self._table.columns.count(name)) > 1:
            raise UsageError(f"{flag}={name}: {self._place} has {count} columns of this name: rename one")

    def named_labels(self, text: str) -> tuple[str, ...]:
        """Returns the column, or the columns with commas between them, that --label_column names."""
        if not text or text in self.columns or "," not in text:
            return (self.named(text, "label_column"),) if text else ()
        names = [name.strip() for name in text.split(",")]
        if twice := next((name for name in names if names.count(name) > 1), ""):
            raise UsageError(f"--label_column={text} names {twice} twice")
        return tuple(self.named(name, "label_column") for name in names)

    def image(self, is_file: Callable[[Any], bool], elsewhere: Callable[[Sequence[Any]], str]) -> str:
        if holding := [name for name in self.columns if name in self._table.pictures]:
            return self._best(holding, IMAGE_NAMES, "image_column", "holds pictures", "hold pictures")
        paths = [name for name, values in self._sample.items() if _share(values, _is_picture) > 0.5]
        if paths:
            return self._best(paths, IMAGE_NAMES, "image_column", "names pictures", "name pictures")
        # Of files that are named without their ending.
        for wanted in IMAGE_NAMES:
            for name, values in self._sample.items():
                if _plain(name) == wanted and any(map(is_file, _first(values, 20))):
                    return name
        for name, values in self._sample.items():
            if _plain(name) in IMAGE_NAMES and _share(values, _is_address) > 0.5:
                return name
        for name in self.columns:
            self._require_once(name, "--image_column")
        for name in (name for name in self._sample if _plain(name) in IMAGE_NAMES):
            if folder := elsewhere(_first(self._sample[name], 20)):
                raise UsageError(
                    f"--source={self._source}: the column {name} of {self._place} names pictures in "
                    f"{folder}: write --image_root={shlex.quote(folder)}, too"
                )
        raise UsageError(
            f"--source={self._source}: no column of {self._place} names pictures or holds them; it has "
            f"{self._told()}. --image_column=NAME names the column, --image_root the folder of the pictures"
        )

    def split(self, columns: Sequence[str]) -> str:
        """Returns the column whose values are the usual names of splits, if there is one.

        Raises:
          UsageError: only some of its values are.
        """
        named = [name for name in columns if _plain(name) in SPLIT_NAMES and name in self._sample]
        for name in named:
            values = sorted({str(value).strip() for value in self._sample[name] if not is_empty(value)})
            usual = [value for value in values if usual_split(value)]
            if values and len(usual) == len(values):
                return name
            if usual:
                # To pass over it would be to train with what is for testing.
                strange = next(value for value in values if value not in usual)
                raise UsageError(
                    f"--source={self._source}: the column {name} of {self._place} has {usual[0]} and "
                    f"{one_line(strange)}: correct what is no split, or say --split_column={name} to take "
                    "each value as the name of one"
                )
        return ""

    def labels(self, columns: Sequence[str]) -> tuple[str, ...]:
        """Returns the column of labels, or the columns that say of one class each whether it is there."""
        known = [name for name in columns if name in self._table.names_of_classes]
        if len(known) == 1:
            return (known[0],)
        for wanted in LABEL_NAMES:
            if alike := [name for name in columns if _plain(name) == wanted]:
                return (self.named(alike[0], "label_column"),)
        columns = [name for name in columns if name in self._sample]
        whether = [name for name in columns if _share(self._sample[name], _is_truth) == 1]
        if len(whether) > 1:
            return tuple(whether)
        if len(columns) == 1:
            return (columns[0],)
        counts = {name: len(set(map(str, self._sample[name]))) for name in columns}
        few = [name for name, count in counts.items() if 2 <= count <= max(2, len(self._sample[name]) / 5)]
        few = [name for name in few if not any(map(_is_fraction, self._sample[name]))]
        if len(few) == 1:
            return (few[0],)
        told = ", ".join(f"{name} ({count:,} different)" for name, count in list(counts.items())[:_SHOWN])
        what = f"which of its columns has the labels: {told}" if told else f"it has only {self._told()}"
        raise UsageError(
            f"--source={self._source}: it is not clear from {self._place} which label a picture has; {what}. "
            "--label_column=NAME names the column"
        )

    def _best(self, names: Sequence[str], order: Sequence[str], option: str, one: str, more: str) -> str:
        """Returns the one of some columns that comes first in an order."""
        ranked = [name for wanted in order for name in names if _plain(name) == wanted]
        if not ranked and len(names) > 1:
            raise UsageError(
                f"--source={self._source}: {', '.join(names[:_SHOWN])} of {self._place} all {more}: "
                f"--{option}=NAME says which to take"
            )
        return self.named((ranked or list(names))[0], option)

    @property
    def _place(self) -> str:
        return str(self._table.file.path)

    def _told(self) -> str:
        shown = ", ".join(one_line(name)[:_MOST_LETTERS] or "''" for name in self.columns[:_SHOWN])
        more = f" and {len(self.columns) - _SHOWN:,} more" if len(self.columns) > _SHOWN else ""
        return f"{'the columns ' if len(self.columns) > 1 else 'only the column '}{shown}{more}"


def is_empty(value: Any) -> bool:
    """Tells whether a table says nothing: no value, blanks, NaN or null. `none` and `NA` may be classes."""
    if isinstance(value, float):
        return value != value
    return value is None or (isinstance(value, str) and value.strip().lower() in ("", "nan", "null"))


def as_truth(value: Any) -> bool | None:
    """Returns what 0, 1, true or false says; None where it is nothing of these."""
    text = str(value).strip().lower()
    return True if text in _TRUE else False if text in _FALSE else None


def _is_truth(value: Any) -> bool:
    return as_truth(value) is not None


def _is_picture(value: Any) -> bool:
    return isinstance(value, str) and (
        kind_by_name(value.strip()) == "JPEG" or bool(_KNOWN_ENDING.search(value))
    )


def _is_address(value: Any) -> bool:
    return isinstance(value, str) and "://" in value


def _is_fraction(value: Any) -> bool:
    try:
        return not float(value).is_integer()
    except (TypeError, ValueError, OverflowError):
        return False


def _share(values: Collection[Any], is_so: Callable[[Any], bool]) -> float:
    """Returns of how many of the values that are there something is true."""
    there = [value for value in values if not is_empty(value)]
    return sum(map(is_so, there)) / len(there) if there else 0.0


def _first(values: Sequence[Any], count: int) -> list[Any]:
    return [value for value in values if not is_empty(value)][:count]


def _plain(name: str) -> str:
    return re.sub(r"[-_. ]", "", name).lower()
