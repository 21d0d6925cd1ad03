"""The table of --relabel of a run: read, applied, and kept in the folder of the run."""

import csv
import dataclasses
import io
import logging
from pathlib import Path

from trainer.cli.config import Config
from trainer.data.configured import Pictures
from trainer.data.relabel import COLUMNS, Change, relabel
from trainer.paths import local_path
from trainer.record.spreadsheets import read_rows
from trainer.record.workdir import Workdir
from trainer.store.files import write_bytes
from trainer.tasks import Task
from trainer.values import TrainerError, UsageError

_log = logging.getLogger("trainer")


def relabelled(pictures: Pictures, config: Config, *, task: Task, strict: bool) -> Pictures:
    """Returns pictures with the labels that --relabel says, and without those that it leaves out.

    Args:
      pictures: as they are.
      config: names the table. A run in --workdir keeps a copy of its own, which holds from then on.
      task: what labels mean.
      strict: whether each line of the table must be of a picture that is there, and the table the run's.

    Raises:
      UsageError: there is no such table, or something in it is wrong; the message says in which line.
      TrainerError: a picture of the table is not there, or a run in --workdir began with another table.
    """
    if not config.data.relabel:
        return pictures
    flag, data = f"--relabel={config.data.relabel}", read_table(config, strict=strict)
    changes = read_changes(data, flag=flag)
    source, left_out = relabel(pictures.source, pictures.scan, changes, task=task, flag=flag, strict=strict)
    was, now = pictures.source.labels, source.labels
    if strict:
        count = sum(task.label_words(a, source.class_names) != task.label_words(b, source.class_names)
                    for a, b in zip(was, now, strict=True))  # fmt: skip
        _log.info("relabel:     labels changed: %d, pictures left out: %d", count, len(left_out))
    reasons = [(source.ids[at], f"left out by {flag}") for at in left_out]
    return dataclasses.replace(
        pictures, source=source, removed=tuple(left_out), left_out=[*pictures.left_out, *reasons]
    )


def read_table(config: Config, *, strict: bool = False) -> bytes:
    """Returns the bytes of the table of --relabel; of a run in --workdir, of the copy that it keeps.

    Raises:
      UsageError: there is none.
      TrainerError: the run began with another table, and `strict` says that it must not.
    """
    flag = f"--relabel={config.data.relabel}"
    workdir = Workdir(config.run.workdir) if config.run.workdir else None
    has_copy = workdir is not None and workdir.run_json.exists() and workdir.relabel_csv.exists()
    path = local_path(config.data.relabel, flag=flag)
    if workdir and has_copy:
        kept = workdir.relabel_csv.read_bytes()
        if strict and path.is_file() and _read(path, flag) != kept:
            raise TrainerError(
                f"{workdir.root} holds a run that began with another table than {flag} is now; its own is in "
                f"{workdir.relabel_csv}. Choose another --workdir"
            )
        return kept
    return _read(path, flag)


def keep_table(config: Config, workdir: Workdir) -> None:
    """Writes a copy of the table of --relabel into the folder of the run, where there is such a table."""
    if config.data.relabel:
        write_bytes(workdir.relabel_csv, read_table(config))


def _read(path: Path, flag: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{flag}: {error.strerror}") from None


def read_changes(data: bytes, *, flag: str) -> list[Change]:
    """Returns the lines of a table that change something: those with a new label.

    Args:
      data: a CSV in UTF-8 with the columns of `COLUMNS`, of which `label` may be missing, in any order, among
        others; with commas or, as some spreadsheets write it, semicolons or tabs.
      flag: begins messages, such as `--relabel=audit.csv`.

    Raises:
      UsageError: it is no such table.
    """
    try:
        text = data.decode("utf-8-sig")
    except ValueError:
        raise UsageError(f"{flag}: it is no text in UTF-8") from None
    head = text.partition("\n")[0].strip()
    delimiter = next((one for one in ",;\t" if one in head), ",")
    needed = [name for name in COLUMNS if name != "label"]
    columns = [cell.strip().strip('"') for cell in head.split(delimiter)]
    if missing := [name for name in needed if name not in columns]:
        raise UsageError(f"{flag}: it has no column {missing[0]}; `audit` writes such a table")
    changes = []
    try:
        for line, row in enumerate(read_rows(io.StringIO(text, newline=""), delimiter=delimiter), 2):
            name, digest, new = ((row.get(column) or "").strip() for column in needed)
            if new:
                changes.append(Change(name, digest.lower(), new, line))
    except csv.Error as error:
        raise UsageError(f"{flag}: it is no CSV: {error}") from None
    return changes
