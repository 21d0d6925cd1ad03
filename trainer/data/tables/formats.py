"""Reads the rows of one file of a table: CSV and TSV, JSON lines, Parquet, Arrow.

Values come as they are written: text stays text, so that 007 keeps its zeros.
"""

import abc
import codecs
import contextlib
import csv
import functools
import itertools
import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import IO, Any

import pyarrow as pa
from pyarrow import parquet

from trainer.data.inspect.bad_pictures import one_line
from trainer.data.inspect.kinds import kind_by_name
from trainer.data.tables.files import ARROW_ENDING, JSON_ENDINGS, PARQUET_ENDINGS, TEXT_ENDINGS, TableFile
from trainer.values import TrainerError, half_in

_log = logging.getLogger("trainer")
BATCH_ROWS = 64
"""Pictures of a Parquet file that are in memory at once while they are read."""
_BUFFER_BYTES = 2**20
_SNIFFED_LINES = 50
# That of UTF-32 begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
_SAID_DELIMITER = re.compile(r"sep=(.)", re.I)
_DELIMITERS = (",", ";", "\t", "|")


class BadRow(str):
    """In place of the values of a row that cannot be read: why."""


class Format(abc.ABC):
    """The rows of one file."""

    counted_in = "line"
    """What the number of a row is, for messages."""
    pictures: tuple[str, ...] = ()
    """Columns that hold encoded pictures."""
    names_of_classes: Mapping[str, tuple[str, ...]] = {}
    """{column: names of the classes that its numbers are} where the file says it."""
    columns: list[str]
    """As the header has them, in its order; a name may be there twice."""

    def __init__(self, file: TableFile, *, source: str):
        """Looks at the columns.

        Args:
          file: which.
          source: its name, for messages.

        Raises:
          TrainerError: it cannot be read, or holds nothing.
        """
        self.file, self._source = file, source

    @abc.abstractmethod
    def rows(self, columns: Sequence[str]) -> Iterator[tuple[int, Sequence[Any] | BadRow]]:
        """Yields all rows: the number of each, and its values in some columns.

        Numbers are as people count, from 1, with the header where there is one. Of a column that holds
        pictures, the values are their paths, or None.

        Raises:
          TrainerError: the file cannot be read to its end.
        """

    def error(self, text: str) -> TrainerError:
        return TrainerError(f"--source={self._source}: {self.file.path} {text}")


class TextTable(Format):
    """CSV or TSV, in UTF-8, UTF-16 or Windows-1252, with commas, semicolons, tabs or bars."""

    def __init__(self, file: TableFile, *, source: str):
        super().__init__(file, source=source)
        self._encoding = self._find_encoding()
        with self._open() as text, self._told():
            head = list(itertools.islice(text, _SNIFFED_LINES))
        if not any(line.strip() for line in head):
            raise self.error("is empty: expected a line with the names of the columns, and a line a picture")
        wanted = TEXT_ENDINGS.get(file.path.suffix.lower(), ",")
        # What some programs write before a table, so that Excel knows.
        said = _SAID_DELIMITER.fullmatch(head[0].strip("\r\n"))
        self._passed_lines = 1 if said else 0
        self._delimiter = said[1] if said else _delimiter(head, usual=wanted)
        with self._told():
            rows = _reader(head[self._passed_lines :], delimiter=self._delimiter)
            first: list[str] = next(filter(any, rows), [])
        self.has_header = not any(kind_by_name(value.strip()) for value in first)
        self.columns = [name.strip() for name in first]
        if not self.has_header:
            self.columns = [str(number) for number in range(1, len(first) + 1)]

    def rows(self, columns: Sequence[str]) -> Iterator[tuple[int, Sequence[Any] | BadRow]]:
        places = [self.columns.index(name) for name in columns]
        width = len(self.columns)
        with self._open() as text:
            before = self._passed_lines
            reader = _reader(itertools.islice(text, before, None), delimiter=self._delimiter)
            passed, begins = not self.has_header, 1 + before
            try:
                for row in reader:
                    line, begins = begins, reader.line_num + 1 + before
                    if not any(row):
                        continue
                    if not passed:
                        passed = True
                    elif len(row) == width:
                        yield line, [row[place] for place in places]
                    elif begins > line + 1:
                        raise self.error(
                            f"cannot be read as a table at line {line}: a quote begins there that does not "
                            f"end, or ends in line {begins - 1}"
                        )
                    else:
                        yield line, BadRow(f"{len(row)} values, and the table has {width} columns")
            except csv.Error as error:
                line = reader.line_num + before
                raise self.error(f"cannot be read as a table at line {line}: {error}") from None
            except UnicodeError as error:
                raise self.error(f"cannot be read: {error}") from None

    def _open(self) -> IO[str]:
        return _opened(self, encoding=self._encoding)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (csv.Error, UnicodeError) as error:
            raise self.error(f"cannot be read as a table: {one_line(str(error))}") from None

    def _find_encoding(self) -> str:
        data_of = functools.partial(_bytes_of, self)
        head = next(data_of(), b"")
        if mark := next((encoding for mark, encoding in _MARKS if head.startswith(mark)), ""):
            return mark
        if b"\0" in head:
            raise self.error("holds zero bytes, as no text in UTF-8 does: save it as CSV in UTF-8")
        decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            for part in data_of():
                decoder.decode(part)
            decoder.decode(b"", final=True)
            return "utf-8"
        except UnicodeDecodeError:
            pass
        _log.warning("%s: %s is not UTF-8: read as Windows-1252 (latin-1)", self._source, self.file.path)
        try:
            for part in data_of():
                part.decode("cp1252")
            return "cp1252"
        except UnicodeDecodeError:
            return "latin-1"


class JsonLines(Format):
    """An object a line; or, in a .json file, a list of objects."""

    def __init__(self, file: TableFile, *, source: str):
        super().__init__(file, source=source)
        self._is_list = file.path.suffix.lower() == ".json"
        self.counted_in = "entry" if self._is_list else "line"
        names: dict[str, None] = {}
        count = 0
        for _, found in self._objects():
            count += 1
            if not isinstance(found, BadRow):
                names.update(dict.fromkeys(found))
        if not count:
            raise self.error("is empty: expected an object a line")
        if not names:
            raise self.error(
                'holds no JSON objects: expected one a line, such as {"file_name": ..., "label": ...}'
            )
        self.columns = list(names)

    def rows(self, columns: Sequence[str]) -> Iterator[tuple[int, Sequence[Any] | BadRow]]:
        for number, found in self._objects():
            yield number, found if isinstance(found, BadRow) else [found.get(name) for name in columns]

    def _objects(self) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
        with _opened(self, encoding="utf-8-sig") as text:
            try:
                parts = enumerate(json.load(text) if self._is_list else text, start=1)
            except (ValueError, RecursionError) as error:
                raise self.error(f"is no JSON: {error}") from None
            except TypeError:
                raise self.error("is no list of JSON objects") from None
            try:
                for number, part in parts:
                    if self._is_list or part.strip():
                        yield number, _object_of(part)
            except UnicodeError as error:
                raise self.error(f"is no UTF-8: {error}") from None


class ColumnTable(Format):
    """What is stored by columns, in groups of rows, with its types, and perhaps pictures."""

    counted_in = "row"
    group_sizes: list[int]

    def __init__(self, file: TableFile, *, source: str):
        super().__init__(file, source=source)
        with self._told():
            schema, self.group_sizes = self._look()
        self.columns = [name for name in schema.names if not name.startswith("__index_level_")]
        kinds = {field.name: field.type for field in schema}
        self._with_paths = {name for name in self.columns if _has_field(kinds[name], "path")}
        self.names_of_classes = _names_of_classes(schema.metadata or {})
        if not sum(self.group_sizes):
            raise self.error("has no rows")
        binary = [name for name in self.columns if _holds_pictures(kinds[name])]
        # `datasets` may write the paths alone of pictures that it was given by their paths, and what comes
        # from TFRecords has texts as bytes.
        self.pictures = tuple(name for name in binary if self._are_pictures(name, BATCH_ROWS))

    @abc.abstractmethod
    def _look(self) -> tuple[pa.Schema, list[int]]:
        """Returns the columns, and how many rows each group has."""

    @abc.abstractmethod
    def _batches(
        self, columns: Sequence[str], *, groups: Sequence[int], num_rows: int
    ) -> Iterator[pa.RecordBatch]:
        """Yields rows of some groups, up to so many at a time; `image.path` is a part of a column."""

    def rows(self, columns: Sequence[str]) -> Iterator[tuple[int, Sequence[Any] | BadRow]]:
        paths = [f"{name}.path" for name in columns if name in self._with_paths]
        plain = [name for name in columns if name not in self.pictures and name not in self._with_paths]
        number = 0
        if not plain and not paths:
            yield from ((at, [None] * len(columns)) for at in range(1, sum(self.group_sizes) + 1))
            return
        every = range(len(self.group_sizes))
        with self._told():
            for batch in self._batches([*plain, *paths], groups=every, num_rows=10_000):
                nothing = [None] * batch.num_rows
                parts = [
                    [_as_text(value) for value in batch.column(name).to_pylist()]
                    if name in plain
                    else batch.column(name).field("path").to_pylist()
                    if name in self._with_paths
                    else nothing
                    for name in columns
                ]
                for values in zip(*parts, strict=True):
                    number += 1
                    yield number, values

    def encoded(self, column: str, group: int) -> Iterator[bytes | None]:
        """Yields the pictures of a group of rows, in their order; None where there is none.

        They are read in streams, never a whole group at once.

        Raises:
          TrainerError: the file cannot be read.
        """
        wanted = f"{column}.bytes" if column in self._with_paths else column
        with self._told():
            for batch in self._batches([wanted], groups=[group], num_rows=BATCH_ROWS):
                values = batch.column(column)
                if pa.types.is_struct(values.type):
                    values = values.field("bytes")
                yield from (value.as_py() for value in values)

    def _are_pictures(self, column: str, num_rows: int) -> bool:
        first = list(itertools.islice(self.encoded(column, 0), num_rows))
        there = [data for data in first if data is not None]
        return any(map(_is_no_text, there)) or not (there or column in self._with_paths)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (OSError, pa.ArrowException) as error:
            raise self.error(f"cannot be read: {one_line(str(error))}") from None


class ParquetTable(ColumnTable):
    """Parquet, as the `datasets` package of Hugging Face writes it, or any other."""

    def _look(self) -> tuple[pa.Schema, list[int]]:
        with self._open() as opened:
            groups = range(opened.metadata.num_row_groups)
            return opened.schema_arrow, [opened.metadata.row_group(at).num_rows for at in groups]

    def _batches(
        self, columns: Sequence[str], *, groups: Sequence[int], num_rows: int
    ) -> Iterator[pa.RecordBatch]:
        with self._open() as opened:
            yield from opened.iter_batches(
                num_rows, row_groups=list(groups), columns=list(columns), use_threads=False
            )

    def _open(self) -> parquet.ParquetFile:
        # With a buffer it is read in streams.
        return parquet.ParquetFile(self.file.path, buffer_size=_BUFFER_BYTES, pre_buffer=False)


class ArrowTable(ColumnTable):
    """Arrow, as `Dataset.save_to_disk` of `datasets` writes it: a stream, or a file."""

    def _look(self) -> tuple[pa.Schema, list[int]]:
        mapped = pa.memory_map(str(self.file.path))
        try:
            opened = pa.ipc.open_stream(mapped)
            self._parts = list(opened)
        except pa.ArrowInvalid:
            mapped.seek(0)
            opened = pa.ipc.open_file(mapped)
            self._parts = [opened.get_batch(at) for at in range(opened.num_record_batches)]
        return opened.schema, [part.num_rows for part in self._parts]

    def _batches(
        self, columns: Sequence[str], *, groups: Sequence[int], num_rows: int
    ) -> Iterator[pa.RecordBatch]:
        there = set(self._parts[0].schema.names)
        # A part of a column is called by both with a dot between them, and so may be a whole column.
        names = [name if name in there else name.partition(".")[0] for name in columns]
        names = [name for name in dict.fromkeys(names) if name in there] or list(columns)
        for group in groups:
            part = self._parts[group].select(names)
            for start in range(0, part.num_rows, num_rows):
                yield part.slice(start, num_rows)


def open_table(file: TableFile, *, source: str) -> Format:
    """Opens a file of a table by its ending.

    Raises:
      TrainerError: it cannot be read, or holds nothing.
    """
    ending = file.path.suffix.lower()
    kinds: dict[str, type[Format]] = {
        **dict.fromkeys(TEXT_ENDINGS, TextTable),
        **dict.fromkeys(JSON_ENDINGS, JsonLines),
        **dict.fromkeys(PARQUET_ENDINGS, ParquetTable),
        ARROW_ENDING: ArrowTable,
    }
    return kinds[ending](file, source=source)


def _opened(table: Format, *, encoding: str) -> IO[str]:
    try:
        return open(table.file.path, encoding=encoding, newline="")
    except OSError as error:
        raise table.error(f"cannot be read: {error.strerror}") from None


def _bytes_of(table: Format) -> Iterator[bytes]:
    try:
        with open(table.file.path, "rb") as file:
            while part := file.read(_BUFFER_BYTES):
                yield part
    except OSError as error:
        raise table.error(f"cannot be read: {error.strerror}") from None


def _reader(lines: Iterable[str], *, delimiter: str) -> Any:
    # Blanks before a quote would make it a part of the value.
    return csv.reader(lines, delimiter=delimiter, skipinitialspace=True)


def _delimiter(lines: Sequence[str], *, usual: str) -> str:
    """Returns what stands between the values of lines: that by which most have as many as the first."""

    def merit(delimiter: str) -> tuple[int, bool, int]:
        try:
            widths = [len(row) for row in _reader(lines, delimiter=delimiter) if any(row)]
        except csv.Error:
            return 0, False, 0
        if not widths or widths[0] < 2:
            return 0, delimiter == usual, 0
        return sum(width == widths[0] for width in widths), delimiter == usual, widths[0]

    return max(_DELIMITERS, key=merit)


def _object_of(line: Any) -> dict[str, Any] | BadRow:
    try:
        found = json.loads(line) if isinstance(line, str) else line
    except (ValueError, RecursionError) as error:
        return BadRow(f"no JSON ({error})")
    if not isinstance(found, dict):
        return BadRow("no JSON object")
    # As escapes JSON may hold what is no text, and what no file can be called by or be written with.
    if half := half_in(json.dumps(found, ensure_ascii=False, default=str)):
        return BadRow(f"half of a character ({half})")
    return found


def _has_field(kind: pa.DataType, name: str) -> bool:
    return pa.types.is_struct(kind) and kind.get_field_index(name) >= 0


def _is_no_text(data: bytes) -> bool:
    """Tells whether bytes are no text, as those of no picture are."""
    try:
        return "\0" in data.decode()
    except UnicodeDecodeError:
        return True


def _as_text(value: Any) -> Any:
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else value


def _holds_pictures(kind: pa.DataType) -> bool:
    if _has_field(kind, "bytes"):
        kind = kind.field("bytes").type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _names_of_classes(metadata: Mapping[bytes, bytes]) -> dict[str, tuple[str, ...]]:
    """Returns what the features say that `datasets` writes beside a schema, of single labels and of lists."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        found = {}
        for name, feature in features.items():
            if isinstance(feature, list):  # Older versions wrote a list of one for a list.
                [feature] = feature
            if isinstance(inner := feature.get("feature"), dict):
                feature = inner
            if feature.get("_type") == "ClassLabel":
                found[name] = tuple(map(str, feature["names"]))
        return found
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}
