"""`table:ADDRESS`: rows of a table, each with a picture and its label, in the table's order."""

import errno
import functools
import itertools
import logging
import os
import shlex
import threading
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from trainer.data.encoded_cache import EncodedStore, Kept
from trainer.data.inspect.bad_pictures import NAMED_AT_MOST, BadPictureError, one_line, shown_name
from trainer.data.inspect.stamps import stamp_files
from trainer.data.layouts import usual_split
from trainer.data.picture_files import read_regular
from trainer.data.sources.base import Source, SourceOptions, label_tuples
from trainer.data.tables.columns import Asked, Columns, as_truth, find_columns, is_empty
from trainer.data.tables.files import Files, find_files
from trainer.data.tables.formats import BadRow, ColumnTable, Format, open_table
from trainer.data.tables.labels import NO_LABEL, Labels, group_name, labels_of_column, labels_of_columns
from trainer.data.tables.pictures import Finder, Named
from trainer.paths import local_path
from trainer.store.system_names import is_system
from trainer.values import TrainerError, UsageError

_log = logging.getLogger("trainer")
_UNREADABLE = "a row that cannot be read"
_UNNAMED = "no picture"
_DOUBLE = "a picture that another row names"
_NO_SPLIT = "no split"
_NO_GROUP = "no group"
_NO_WEIGHT = "no weight"
_NO_PICTURE = "no picture"
_USUAL = ("train", "validation", "test")
_SHOWN = 5
# Folders beside a table that may have its pictures.
_LOOKED_INTO = 100


@dataclass
class _Rows:
    """What was read of N rows, a list a column; a row that cannot be used is in `problems`."""

    where: list[tuple[int, int]] = field(default_factory=list)
    """Which file, and the number of the row in it."""
    images: list[Any] = field(default_factory=list)
    labels: list[Any] = field(default_factory=list)
    splits: list[Any] = field(default_factory=list)
    groups: list[Any] = field(default_factory=list)
    weights: list[Any] = field(default_factory=list)
    problems: dict[int, tuple[str, str]] = field(default_factory=dict)
    """{row: (what kind of problem, the reason in words)}."""


@dataclass
class TableSource:
    """A Source of the rows of a table.

    Attributes:
      groups: [N] str, what group each example is of, as the column of --group_column says; None without one.
      weights: [N] float64, of each example in the loss; None without --weight_column.
      left_out: (where it is, reason) of rows that cannot be used and that --on_bad_image=skip leaves out.
    """

    name: str
    class_names: tuple[str, ...]
    ids: Sequence[str]
    labels: np.ndarray
    encoded: Sequence[bytes]
    native_splits: dict[str, tuple[int, int]]
    groups: np.ndarray | None
    weights: np.ndarray | None
    left_out: list[tuple[str, str]]
    pictures: "_Files | _Embedded"
    # The order of a table says nothing: it may be sorted by label as well as shuffled.
    sorted_by_class: bool = True

    def read(self, index: int) -> bytes:
        return self.encoded[index]

    def load(self) -> None:
        self.pictures.load()

    def stamp(self) -> str | None:
        return self.pictures.stamp()


def open_table_source(address: str, *, name: str, options: SourceOptions) -> Source:
    """Reads a table, but for the pictures in it.

    The order is that of the rows, split by split. The ids are the paths of pictures below the folder of the
    table; of pictures inside of a Parquet file the paths that it gives them, or FILE:ROW.

    Args:
      address: a file, a folder, or a pattern.
      name: what messages call the source.
      options: which columns are what, --image_root, and --on_bad_image.

    Raises:
      UsageError: columns are not there, or it is not clear which is meant.
      TrainerError: the table cannot be read, or holds nothing to train with; or rows cannot be used, and
        --on_bad_image says to fail.
    """
    return _Reader(address, name, options).source()


class _Reader:
    """Reads one table."""

    def __init__(self, address: str, name: str, options: SourceOptions):
        self._name, self._options = name, options
        top = local_path(address, flag=f"--source={name}")
        # Ids are paths below it, from wherever it is named.
        top = Path(os.path.realpath(top)) if ".." in top.parts else top
        self._files: Files = find_files(top, name=name, results=options.results)
        self._tables = [open_table(file, source=name) for file in self._files.files]
        self._root = self._image_root()
        self._columns = self._find_columns()
        self._holds = self._columns.image in self._tables[0].pictures

    def source(self) -> TableSource:
        rows = self._read()
        labels = self._labels(rows)
        ids, pictures = self._embedded(rows) if self._holds else self._named(rows, labels)
        splits = self._splits(rows, labels)
        rows.problems = {**labels.problems, **rows.problems}
        left_out = self._leave_out(rows, pictures.problems() if isinstance(pictures, _Files) else {})
        order = self._in_order(rows, splits)
        if not order:
            raise self._error(f"{self._told_files()} has no row that can be used")
        self._require_classes(labels, order)
        chosen = [labels.of_rows[at] or () for at in order]
        native = self._native(splits, order)
        numbers = label_tuples(chosen) if labels.several else np.array([row[0] for row in chosen], np.int64)
        kept = pictures.chosen(order)
        made = [ids[at] for at in order]
        count = len(order)
        _log.info("%s: %s", self._name, self._told_columns(labels))
        return TableSource(
            self._name,
            labels.class_names,
            made,
            numbers,
            Kept(functools.partial(kept.read, made), count, kept.store),
            native,
            self._groups(rows, order),
            self._weights(rows, order),
            left_out,
            kept,
        )

    def _image_root(self) -> Path | None:
        asked = self._options.image_root
        if not asked:
            return None
        root = local_path(asked, flag=f"--image_root={asked}")
        if not root.is_dir():
            raise UsageError(f"--image_root={asked}: {root} is no folder: expected the one with the pictures")
        return root

    def _find_columns(self) -> Columns:
        options = self._options
        asked = Asked(
            options.image_column,
            options.label_column,
            options.split_column,
            options.group_column,
            options.weight_column,
        )
        first = self._tables[0]
        if options.run_classes:
            # They are those of the run's own table, and this one may have others.
            there = {name: of if _has_columns(first, of) else "" for name, of in vars(asked).items()}
            asked = Asked(**there)
        finder = self._finder(0)
        found = find_columns(
            first, asked, source=self._name, is_file=finder.is_file, elsewhere=self._folder_beside
        )
        for table in self._tables[1:]:
            lacking = [name for name in found.all if table.columns.count(name) != 1]
            if lacking:
                raise self._error(
                    f"{table.file.path} has no column {lacking[0]} as {first.file.name} has: all files of a "
                    "table must have the same columns. If they are different tables, name one"
                )
            if (found.image in table.pictures) != (found.image in first.pictures):
                raise self._error(
                    f"{table.file.path} and {first.file.name} differ in what the column {found.image} is"
                )
        return found

    def _finder(self, number: int) -> Finder:
        root = self._root or self._files.files[number].path.parent
        return Finder(self._root or self._files.top, root, is_asked=self._root is not None)

    def _folder_beside(self, values: Sequence[Any]) -> str:
        """Returns a folder beside the table in which most of some values are files; empty: there is none."""
        if self._root is not None:
            return ""
        top = self._files.files[0].path.parent
        try:
            folders = sorted(one for one in top.iterdir() if one.is_dir() and not is_system(one.name))
        except OSError:
            return ""
        for folder in folders[:_LOOKED_INTO]:
            finder = Finder(folder, folder, is_asked=True)
            if 2 * sum(map(finder.is_file, values)) > len(values):
                return str(folder)
        return ""

    def _read(self) -> _Rows:
        """Reads the columns that are wanted from all files."""
        columns, rows = self._columns, _Rows()
        wanted = columns.all
        place = {name: at for at, name in enumerate(wanted)}
        # One text for all rows that say the same.
        shared: dict[str, str] = {}
        for number, table in enumerate(self._tables):
            for line, values in table.rows(wanted):
                at = len(rows.where)
                rows.where.append((number, line))
                if isinstance(values, BadRow):
                    rows.problems[at] = _UNREADABLE, str(values)
                    values = [None] * len(wanted)
                values = [shared.setdefault(v, v) if type(v) is str and len(v) < 64 else v for v in values]
                rows.images.append(values[place[columns.image]])
                labels = tuple(values[place[name]] for name in columns.labels)
                rows.labels.append(labels if len(labels) > 1 else labels[0])
                if columns.split:
                    rows.splits.append(values[place[columns.split]])
                if columns.group:
                    rows.groups.append(values[place[columns.group]])
                if columns.weight:
                    rows.weights.append(values[place[columns.weight]])
        self._check_numbers(rows)
        return rows

    def _check_numbers(self, rows: _Rows) -> None:
        """Notes rows without a group or a weight where there are columns of these."""
        for at, group in enumerate(rows.groups):
            if is_empty(group):
                rows.problems.setdefault(at, (_NO_GROUP, f"{_NO_GROUP} in column {self._columns.group}"))
        for at, weight in enumerate(rows.weights):
            try:
                fits = 0 <= float(weight) < float("inf")
            except (TypeError, ValueError):
                fits = False
            if not fits:
                reason = f"weight {one_line(repr(weight))}, expected a number of 0 or more"
                rows.problems.setdefault(at, (_NO_WEIGHT, reason))

    def _labels(self, rows: _Rows) -> Labels:
        columns, several = self._columns.labels, self._options.several
        if len(columns) > 1:
            return labels_of_columns(rows.labels, columns, several=several)
        names = [dict(table.names_of_classes).get(columns[0], ()) for table in self._tables]
        is_named = self._options.label_column and not any(names)
        # Of one label, too, a column may say whether a picture has it.
        if several and is_named and all(as_truth(value) is not None for value in rows.labels):
            return labels_of_columns([[value] for value in rows.labels], columns, several=True)
        if any(one != names[0] for one in names):
            raise self._error(f"the files of the table differ in the names of classes of column {columns[0]}")
        try:
            return labels_of_column(
                rows.labels,
                column=columns[0],
                names=names[0],
                several=several,
                guessed=not self._options.label_column,
            )
        except UsageError as error:
            raise UsageError(f"--source={self._name}: {error}") from None

    def _groups(self, rows: _Rows, order: Sequence[int]) -> np.ndarray | None:
        if not self._columns.group:
            return None
        groups = [group_name(rows.groups[at]) for at in order]
        spelled: dict[str, str] = {}
        for group in dict.fromkeys(groups):
            if (other := spelled.setdefault(group.casefold(), group)) != group:
                _log.warning(
                    "%s: the groups %s and %s of column %s differ only in case, and count as two",
                    self._name, other, group, self._columns.group,
                )  # fmt: skip
        return np.array(groups, object)

    def _weights(self, rows: _Rows, order: Sequence[int]) -> np.ndarray | None:
        if not self._columns.weight:
            return None
        weights = np.array([float(rows.weights[at]) for at in order])
        if not weights.any():
            raise self._error(
                f"all weights in column {self._columns.weight} are 0, so that nothing would be learned: name "
                "another with --weight_column, or none"
            )
        return weights

    def _named(self, rows: _Rows, labels: Labels) -> tuple[list[str], "_Files"]:
        """Finds the pictures that rows name."""
        finders = [self._finder(number) for number in range(len(self._tables))]
        found: list[Named] = []
        first: dict[str, int] = {}
        for at, ((number, _), value) in enumerate(zip(rows.where, rows.images, strict=True)):
            if is_empty(value) or not isinstance(value, str | int):
                rows.problems.setdefault(at, (_UNNAMED, f"{_UNNAMED} in column {self._columns.image}"))
                found.append(Named(""))
                continue
            one = finders[number].find(value)
            found.append(one)
            if at in rows.problems:
                continue
            before = first.setdefault(one.path or one.name, at)
            if before != at:
                first[one.path or one.name] = self._note_double(rows, labels, before, at, one.name)
        self._require_some(found, rows)
        return [one.name for one in found], _Files(self._name, self._files, found, self._options)

    def _note_double(self, rows: _Rows, labels: Labels, before: int, at: int, name: str) -> int:
        """Leaves out one of two rows that name a picture, or both, and returns which one it is known by."""
        said = [row for row in (before, at) if not (row in labels.problems or is_empty(rows.labels[row]))]
        same = len(said) < 2 or labels.of_rows[before] == labels.of_rows[at]
        other = "" if same else ", with another label"
        # The one that says something stays.
        lost, kept = (before, at) if said == [at] else (at, before)
        rows.problems[lost] = _DOUBLE, f"{name} is named by {self._place(rows, kept)}, too{other}"
        if not same:
            # Nobody knows which of them is right.
            rows.problems[kept] = _DOUBLE, f"{name} is named by {self._place(rows, lost)}, too{other}"
        return kept

    def _require_some(self, found: Sequence[Named], rows: _Rows) -> None:
        """Refuses a table of whose pictures none, or hardly one, is where it should be."""
        there = [one for at, one in enumerate(found) if at not in rows.problems]
        lost = [one for one in there if one.problem and not one.path] or [one for one in there if one.problem]
        if not there or 2 * len(lost) <= len(there):
            return
        if not lost[0].path:
            raise self._error(
                f"{len(lost):,} of {len(there):,} pictures are addresses, such as {lost[0].name}, and only "
                "files are read: download them first, and name their folder with --image_root"
            )
        named = [rows.images[at] for at, one in enumerate(found) if one.problem and at not in rows.problems]
        beside = self._folder_beside(named[:20])
        way_out = (
            f"they are in {beside}: write --image_root={shlex.quote(beside)}, too"
            if beside
            else "--image_root=FOLDER says where the paths in the table begin"
        )
        raise self._error(
            f"{len(lost):,} of {len(there):,} pictures are not there, such as {lost[0].path}: {way_out}"
        )

    def _embedded(self, rows: _Rows) -> tuple[list[str], "_Embedded"]:
        """Returns the ids of pictures inside of the files: their paths, if these tell them apart."""
        names = [shown_name(str(value)) if value else "" for value in rows.images]
        ids = names
        if not all(names) or len(set(names)) < len(names):
            files = self._files.files
            ids = [
                f"{files[number].name}:{row}{f'/{name}' if name else ''}"
                for (number, row), name in zip(rows.where, names, strict=True)
            ]
        tables = [table for table in self._tables if isinstance(table, ColumnTable)]
        return ids, _Embedded(self._columns.image, tables, self._options)

    def _splits(self, rows: _Rows, labels: Labels) -> list[str]:
        """Returns the split of each row; all empty where nobody says it."""
        if self._columns.split:
            splits = []
            for at, value in enumerate(rows.splits):
                if is_empty(value):
                    rows.problems.setdefault(at, (_NO_SPLIT, f"{_NO_SPLIT} in column {self._columns.split}"))
                text = str(value).strip()
                splits.append(usual_split(text) or text)
                if not usual_split(text) and not self._options.split_column:
                    # In none of the rows that were looked at first.
                    reason = f"{_NO_SPLIT}: {one_line(text)} in column {self._columns.split}"
                    rows.problems.setdefault(at, (_NO_SPLIT, reason))
        else:
            splits = [self._files.files[number].split for number, _ in rows.where]
        # A split whose labels nobody tells is no loss: competitions keep those of test back.
        known = {split for at, split in enumerate(splits) if _says(rows.labels[at], labels.of_rows[at])}
        for split in sorted(set(splits) - known):
            hidden = [at for at, one in enumerate(splits) if one == split]
            if split and known and all(labels.problems.get(at, (NO_LABEL,))[0] == NO_LABEL for at in hidden):
                _log.warning("%s: left out the split %s, which has no labels", self._name, split)
                for at in hidden:
                    rows.problems[at] = "", ""
        return splits

    def _leave_out(self, rows: _Rows, missing: Mapping[int, str]) -> list[tuple[str, str]]:
        """Names the rows that cannot be used; returns them.

        Args:
          rows: of the table.
          missing: {row: why there is no picture}, of which the scan tells where all else is well. Whoever
            mends the table is to see them all at once.

        Raises:
          TrainerError: there are some, and --on_bad_image says to fail.
        """
        told = {at: problem for at, problem in rows.problems.items() if problem[0]}
        if not told:
            return []
        if self._options.on_bad_image == "fail":
            told = {at: (_NO_PICTURE, why) for at, why in missing.items() if at not in rows.problems} | told
        bad = [(self._place(rows, at), *told[at]) for at in sorted(told)]
        kinds = ", ".join(
            f"{count:,} with {kind}" for kind, count in Counter(kind for _, kind, _ in bad).most_common()
        )
        rows_told = f"{len(bad):,} of {len(rows.where):,} rows of {self._told_files()}"
        if self._options.on_bad_image == "fail":
            lines = [f"  {place}: {reason}" for place, _, reason in bad[:NAMED_AT_MOST]]
            if len(bad) > NAMED_AT_MOST:
                lines.append(f"  and {len(bad) - NAMED_AT_MOST:,} more")
            it = "it" if len(bad) == 1 else "them"
            way_on = f"--on_bad_image=skip leaves {it} out:"
            first = f"--source={self._name}: {rows_told} cannot be used ({kinds}); {way_on}"
            raise TrainerError("\n".join([first, *lines]))
        shown = "; ".join(f"{place}: {reason}" for place, _, reason in bad[:_SHOWN])
        more = f"; and {len(bad) - _SHOWN:,} more" if len(bad) > _SHOWN else ""
        _log.warning(
            "%s: left out %s, which cannot be used (%s): %s%s", self._name, rows_told, kinds, shown, more
        )
        return [(place, reason) for place, _, reason in bad]

    def _in_order(self, rows: _Rows, splits: Sequence[str]) -> list[int]:
        """Returns the rows that are used, split by split."""
        used = [at for at in range(len(rows.where)) if at not in rows.problems]
        return sorted(used, key=lambda at: _rank(splits[at]))

    def _native(self, splits: Sequence[str], order: Sequence[int]) -> dict[str, tuple[int, int]]:
        native, start = {}, 0
        for split, of_split in itertools.groupby(order, key=lambda at: splits[at]):
            stop = start + sum(1 for _ in of_split)
            if split:
                native[split] = start, stop
            start = stop
        if self._options.splits == "auto" and not self._options.run_classes:
            for split in [split for split in native if split not in _USUAL]:
                _log.warning(
                    "%s: %s rows of the split %s are not used: --splits says which are, such as "
                    "--splits=train,validation,%s",
                    self._name, f"{np.diff(native[split])[0]:,}", split, split,
                )  # fmt: skip
        return native

    def _require_classes(self, labels: Labels, order: Sequence[int]) -> None:
        if self._options.run_classes:
            return
        used = {k for at in order for k in labels.of_rows[at] or ()}
        if len(used) < (1 if labels.several else 2):
            only = f"only one class, {labels.class_names[used.pop()]}" if used else "no class"
            raise self._error(
                f"{self._told_files()} has {only} in column {', '.join(self._columns.labels)}: to tell "
                "pictures apart takes two classes at least. --label_column=NAME names another column"
            )

    def _place(self, rows: _Rows, at: int) -> str:
        number, line = rows.where[at]
        return f"{self._files.files[number].name} {self._tables[number].counted_in} {line:,}"

    def _told_files(self) -> str:
        files = self._files.files
        return str(files[0].path) if len(files) == 1 else f"{len(files):,} files in {self._files.top}"

    def _told_columns(self, labels: Labels) -> str:
        columns = self._columns
        few = list(columns.labels[:_SHOWN]) + (["..."] if len(columns.labels) > _SHOWN else [])
        parts = [
            f"pictures in column {columns.image}",
            f"{'several ' if labels.several else ''}labels in {', '.join(few)} "
            f"({len(labels.class_names):,} classes)",
            f"splits in {columns.split}" if columns.split else "",
            f"groups in {columns.group}" if columns.group else "",
            f"weights in {columns.weight}" if columns.weight else "",
            self._told_unused(),
        ]
        return ", ".join(filter(None, parts))

    def _told_unused(self) -> str:
        """Returns which columns are not used, and what one of them may be of use for."""
        columns = self._columns
        used = {columns.image, *columns.labels, columns.split, columns.group, columns.weight}
        unused = [name for name in dict.fromkeys(self._tables[0].columns) if name not in used]
        alike = [
            name for name in unused if name.lower().removesuffix("_id").removesuffix("id") in _USUAL_GROUPS
        ]
        if not unused:
            return ""
        told = f"not used: {', '.join(unused[:_SHOWN])}{', ...' if len(unused) > _SHOWN else ''}"
        if not alike or columns.group:
            return told
        return f"{told} (--group_column={alike[0]} keeps rows that share a value of it in one split)"

    def _error(self, text: str) -> TrainerError:
        return TrainerError(f"--source={self._name}: {text}")


def _says(value: Any, labels: Sequence[int] | None) -> bool:
    """Tells whether a row says what its labels are; of several, to say nothing may be to say none."""
    return bool(labels) or (labels is not None and not is_empty(value) and value != [])


def _has_columns(table: Format, names: str) -> bool:
    """Tells whether a table has a column, or all of those with commas between them."""
    return names in table.columns or all(name.strip() in table.columns for name in names.split(","))


def _rank(split: str) -> tuple[int, str]:
    return (_USUAL.index(split) if split in _USUAL else len(_USUAL), split)


# What pictures that belong together have in common: with some of them in train, the others are no test.
_USUAL_GROUPS = (
    "patient", "subject", "person", "participant", "case", "animal", "plant", "tree", "specimen",
    "individual", "group", "site", "location", "scene", "camera", "scanner", "slide", "series", "session",
    "burst", "video", "clip", "sequence",
)  # fmt: skip


class _Files:
    """The pictures of rows that name files."""

    def __init__(self, name: str, files: Files, found: Sequence[Named], options: SourceOptions):
        self._name, self._tables, self._found = name, files, found
        self._options = options
        self.store = EncodedStore(budget_bytes=options.memory_budget_bytes)

    def chosen(self, order: Sequence[int]) -> "_Files":
        """Returns those of some rows, in their order."""
        return _Files(self._name, self._tables, [self._found[at] for at in order], self._options)

    def read(self, ids: Sequence[str], index: int) -> bytes:
        one = self._found[index]
        if one.problem:
            raise BadPictureError(one.name, one.problem, lasting=False)
        try:
            return read_regular(one.path, name=one.name)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM, errno.ENOENT, errno.EISDIR):
                # To give the permission changes no time and no size: what is recorded would stay wrong.
                raise BadPictureError(one.name, str(error.strerror), lasting=False) from None
            raise TrainerError(f"--source={self._name}: cannot read {one.path}: {error.strerror}") from None

    def problems(self) -> dict[int, str]:
        """Returns {position: why there is no picture}, as far as the names tell."""
        return {at: f"{one.name}: {one.problem}" for at, one in enumerate(self._found) if one.problem}

    def load(self) -> None:
        pass

    def stamp(self) -> str | None:
        top = str(self._tables.top)
        names = [file.name for file in self._tables.files]
        names += [_below(one.path, top) for one in self._found if not one.problem]
        lost = [(one.name, one.problem) for one in self._found if one.problem]
        return stamp_files(top, names, extra=repr(lost))


class _Embedded:
    """The pictures inside of Parquet files.

    They stand in row groups, which can only be read as a whole: whoever asks for one picture gets all of its
    group into a store, in memory as far as the budget goes, and else in a temporary file.
    """

    def __init__(
        self,
        column: str,
        tables: Sequence[ColumnTable],
        options: SourceOptions,
        order: Sequence[int] | None = None,
    ):
        self._column, self._tables, self._options = column, tables, options
        self.store = options.new_store()
        self._lock = threading.Lock()
        sizes = [size for table in tables for size in table.group_sizes]
        # Where each row group begins, counting through all files.
        self._begins = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self._groups = [(table, at) for table in tables for at in range(len(table.group_sizes))]
        self._read = bytearray(len(self._groups))
        # {row, counting through all files: position}
        self._position_of = array("q", [-1]) * int(self._begins[-1])
        order = range(int(self._begins[-1])) if order is None else order
        self._rows = array("q", order)
        for position, row in enumerate(self._rows):
            self._position_of[row] = position

    def chosen(self, order: Sequence[int]) -> "_Embedded":
        """Returns those of some rows, in their order."""
        return _Embedded(self._column, self._tables, self._options, order)

    def read(self, ids: Sequence[str], index: int) -> bytes:
        group = int(np.searchsorted(self._begins, self._rows[index], side="right")) - 1
        self._load_group(group)
        data = self.store.get(index)
        if data is None:
            raise BadPictureError(ids[index], f"there is no picture in column {self._column}")
        return data

    def load(self) -> None:
        for group in range(len(self._groups)):
            self._load_group(group)

    def stamp(self) -> str | None:
        paths = [str(table.file.path) for table in self._tables]
        top = os.path.commonpath([os.path.dirname(path) for path in paths])
        return stamp_files(top, [_below(path, top) for path in paths], extra=repr(self._column))

    def _load_group(self, group: int) -> None:
        with self._lock:
            if self._read[group]:
                return
            table, at = self._groups[group]
            row = int(self._begins[group])
            for data in table.encoded(self._column, at):
                position = self._position_of[row]
                if position >= 0 and data is not None:
                    self.store.put(position, data)
                row += 1
            self._read[group] = 1


def _below(path: str, top: str) -> str:
    return path[len(top) + 1 :] if path.startswith(f"{top}/") else os.path.relpath(path, top)
