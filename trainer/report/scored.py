"""The reports of finished runs, read back to be compared."""

import csv
import glob
import logging
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from trainer.paths import expanded
from trainer.record.spreadsheets import is_right, read_rows
from trainer.record.workdir import Workdir
from trainer.store.files import read_json, require_shape
from trainer.values import TrainerError, UsageError, composed, in_any_order

# Of metrics.json. 2 had no digests of the pictures, 1 the name of the split in its own name.
REPORT_FORMAT = 3
_READ_FORMATS = (2, 3)
_SHARES = {"precision": float, "recall": float, "f1": float}
_REPORT = {
    "format": int,
    "split": str,
    "step": int,
    "num_examples": int,
    "num_correct": int,
    "accuracy": float,
    "accuracy_95_percent_interval": (float, float),
    "loss?": float | None,
    "log_loss?": float | None,
    "several_labels?": bool,
    "map?": float | None,
    "micro?": _SHARES,
    "macro?": _SHARES,
    "classes?": {str: _SHARES | {"support": int}},
    "calibration?": {"expected_calibration_error": float | None},
    "image_size_px?": int | None,
    "backbone?": str,
    "pictures_sha256?": str | None,
}


_log = logging.getLogger("trainer")


class OfLabels(NamedTuple):
    """Of a picture, {label: whether it has it} and {label: its probability}."""

    truth: Mapping[str, bool]
    chances: Mapping[str, float]


@dataclass(frozen=True)
class Scored:
    """A report, and the run it is of.

    Attributes:
      name: for people, unique among those compared.
      folder: of the report.
      workdir: of the run; None where the report lies elsewhere.
      options: {flag name: value} of what changes the numbers of a run; empty without `workdir`.
      values: what metrics.json holds.
      examples: {(SHA-256 of a picture, its class): whether the prediction was right}, of those whose bytes
        are known. Pictures of the same bytes and class are one: a network says the same of them.
      several: where a picture may have any number of labels, {the same key: what was said of each label}.
    """

    name: str
    folder: Path
    workdir: Path | None
    options: Mapping[str, Any]
    values: Mapping[str, Any]
    examples: Mapping[tuple[str, str], bool]
    several: Mapping[tuple[str, str], "OfLabels"] = field(default_factory=dict)

    @property
    def split(self) -> str:
        return str(self.values.get("split", ""))

    @property
    def num_examples(self) -> int:
        return int(self.values["num_examples"])


def find_reports(paths: Sequence[str], *, split: str = "") -> list[Scored]:
    """Reads the reports of runs, in the order given.

    Args:
      paths: folders of runs or of reports, or patterns of such.
      split: which report of a run; by default the one that its training ends with.

    Raises:
      UsageError: there are fewer than two, one is named twice, or a pattern fits nothing.
      TrainerError: a folder is not there, its report is damaged or of another version, or fewer than two are
        left without those that are no run or have no report.
    """
    folders = [folder for path in paths for folder in _expand(path)]
    if len(folders) < 2:
        raise UsageError("compare needs the folders of two runs or more: compare RUN RUN ...")
    seen: dict[Path, Path] = {}
    reports, named, skipped = [], [], []
    for folder in folders:
        try:
            report = _report_of(folder, split=split)
        except _Unfinished as error:
            skipped.append(error)
            continue
        reports.append(report)
        named.append(folder)
        if (real := report.resolve()) in seen:
            raise UsageError(f"{seen[real]} and {folder} are the same run: compare needs different ones")
        seen[real] = folder
    if skipped and len(reports) < 2:
        raise TrainerError(str(skipped[0]))
    for one in skipped:
        _log.warning("skipped: %s", one)
    names = short_names([str(folder.absolute()) for folder in named])
    return [_read(report, name=name) for report, name in zip(reports, names, strict=True)]


class _Unfinished(TrainerError):
    """What `runs/*` fits besides finished runs: it is left out, and named."""


def _expand(path: str) -> list[Path]:
    folder = Path(expanded(path, flag=path))
    if not glob.has_magic(path) or folder.exists():
        return [folder]
    found = [Path(p) for p in sorted(glob.glob(str(folder), recursive=True))]
    # A folder of runs holds other things, too.
    if not (runs := [p for p in found if (p / "run.json").exists()]):
        raise UsageError(f"{path} fits no folder of a run")
    return runs


def _report_of(folder: Path, *, split: str) -> Path:
    """Returns the folder of a report, given that of a run or of a report."""
    if not folder.exists():
        raise TrainerError(f"there is no {folder}: expected the folder of a run")
    if (folder / "metrics.json").exists():
        return folder
    if not (folder / "run.json").exists():
        raise _Unfinished(f"{folder} is no run: expected a folder with a run.json, as train leaves it")
    report = folder / "report"
    main = report / "metrics.json"
    if split and not (main.exists() and read_report(main).get("split") == split):
        report /= split
    if not (report / "metrics.json").exists():
        older = any((folder / "report").glob("*_metrics.json"))
        why = (
            "its report is of an older version"
            if older
            else f"it has no report{f' of {split}' * bool(split)}"
        )
        asked = split or ("test" if "test" in _read_splits(folder) else "validation")
        command = shlex.join(["evaluate", f"--workdir={folder}", f"--eval_split={asked}"])
        raise _Unfinished(f"{folder} cannot be compared, {why}: {command} writes one")
    return report


def _read_splits(workdir: Path) -> dict[str, list[list[str]]]:
    """Returns {split: [[id, class name, SHA-256]]}; empty where nothing is recorded."""
    run = Workdir(str(workdir))
    return run.read_splits() if run.splits_json.exists() else {}


def read_report(path: Path) -> dict[str, Any]:
    """Returns what the metrics.json of a report holds.

    Raises:
      TrainerError: it is damaged, or of another format.
    """
    values = read_json(path)
    if not isinstance(values, dict) or type(values.get("format")) is not int:
        raise TrainerError(f"{path} is damaged: it does not say its format; evaluate writes it anew")
    if values["format"] not in _READ_FORMATS:
        age = "newer" if values["format"] > REPORT_FORMAT else "older"
        raise TrainerError(
            f"{path} has format {values['format']}, {age} than those that this version reads, "
            f"{' and '.join(map(str, _READ_FORMATS))}: "
            "evaluate writes it anew"
        )
    try:
        require_shape(values, _REPORT)
    except ValueError as error:
        raise TrainerError(f"{path} is damaged: {error}; evaluate writes it anew") from None
    return values


def _read(report: Path, *, name: str) -> Scored:
    values = read_report(report / "metrics.json")
    has_labels = bool(values.get("several_labels"))
    rows = _read_rows(report / "predictions.csv", labels=list(values["classes"]) if has_labels else [])
    counted = (len(rows), sum(row.is_right for row in rows))
    if (values.get("num_examples"), values.get("num_correct")) != counted:
        raise TrainerError(
            f"{report} is not of one piece: metrics.json says that {values.get('num_correct')} of "
            f"{values.get('num_examples')} are right, and predictions.csv that {counted[1]} of {counted[0]} "
            "are; evaluate writes both anew"
        )
    run = next((f for f in report.absolute().parents[:2] if (f / "run.json").exists()), None)
    options: Mapping[str, Any] = {}
    digests: dict[str, str] = {}
    if run is not None:
        workdir = Workdir(str(run))
        options = workdir.read_config().compared_values(workdir.read_chosen())
        # An older report says no digests, but the run does, of its own splits.
        digests = {row[0]: row[2] for row in _read_splits(run).get(str(values.get("split")), [])}
    if values["format"] == REPORT_FORMAT:
        digests = {}
    examples: dict[tuple[str, str], bool] = {}
    several: dict[tuple[str, str], OfLabels] = {}
    for row in rows:
        if digest := row.digest or digests.get(row.name, ""):
            # Of several labels each source has an order of its own.
            label = in_any_order(row.label) if row.of_labels else composed(row.label)
            examples.setdefault((digest, label), row.is_right)
            if row.of_labels:
                several.setdefault((digest, label), row.of_labels)
    return Scored(name, report, run, options, values, examples, several)


class _Row(NamedTuple):
    """A line of predictions.csv."""

    name: str
    label: str
    is_right: bool
    digest: str
    of_labels: OfLabels | None


def _read_rows(path: Path, *, labels: Sequence[str]) -> list[_Row]:
    """Reads predictions.csv; `labels` are those of which a picture may have any number."""

    def of_labels(row: Mapping[str, str]) -> OfLabels | None:
        truth = {composed(name): row[f"label_{name}"] == "1" for name in labels}
        chances = {composed(name): float(row[f"probability_{name}"]) for name in labels}
        return OfLabels(truth, chances) if labels else None

    try:
        with open(path, newline="", encoding="utf-8") as file:
            return [
                _Row(
                    row["id"],
                    row["label"],
                    is_right(row),
                    row.get("sha256") or "",
                    of_labels(row),
                )
                for row in read_rows(file)
            ]
    except FileNotFoundError:
        raise TrainerError(f"{path} is missing: evaluate writes it anew") from None
    except (KeyError, ValueError, csv.Error):
        raise TrainerError(
            f"{path} is damaged, it has no id, label and prediction; evaluate writes it anew"
        ) from None


def short_names(paths: Sequence[str]) -> list[str]:
    """Returns what is left of paths without the folders that all begin, and all end with."""
    parts = [Path(path).parts for path in paths]
    shortest = min(map(len, parts))

    def common(columns: list[tuple[str, ...]]) -> int:
        return next((n for n, column in enumerate(columns) if len(set(column)) > 1), shortest - 1)

    first = common(list(zip(*parts, strict=False)))
    last = min(common(list(zip(*(p[::-1] for p in parts), strict=False))), shortest - first - 1)
    return [os.path.join(*p[first : len(p) - last]) for p in parts]
