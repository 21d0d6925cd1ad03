"""`explain`: draws over pictures, or over the worst mistakes of a run, what its network goes by."""

import contextlib
import csv
import functools
import hashlib
import json
import logging
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainer.cli.config import Config
from trainer.cli.declare import NETWORK, PICTURES
from trainer.cli.flags import CommandLine
from trainer.data.configured import open_configured
from trainer.data.inspect.bad_pictures import BadPictureError, shown_name
from trainer.data.picture_files import Found, find_pictures, read_file
from trainer.model.saliency import check_saliency
from trainer.paths import local_path
from trainer.record.manifest import Manifest
from trainer.record.progress import counting
from trainer.record.spreadsheets import is_right, read_rows, unique_names
from trainer.record.workdir import Workdir, if_moved
from trainer.report.overlays import contact_sheet, overlay, panels_png
from trainer.run.explanations import Explanation, Explanations, label_of
from trainer.run.finished_run import open_network
from trainer.store.files import PART_PREFIX, make_folder, move, write_bytes, write_text
from trainer.store.lock import file_lock
from trainer.tasks import make_task
from trainer.values import TrainerError

_log = logging.getLogger("trainer")
_LINES, _SHEET = "explain.jsonl", "contact_sheet.png"
_PART = f"{PART_PREFIX}explain"
_MOST_ON_SHEET = 100
# Attributions that miss the gain by more than this share of it are told.
_TOLERATED = 0.1
_KEYS = (
    "path", "true_label", "label", "probability", "explained_class", "explained_probability", "method",
    "file", "box", "gain", "completeness_error", "error",
)  # fmt: skip


@dataclass(frozen=True)
class Chosen:
    """A picture to be explained: its name, how its bytes are had, and its true class where that is known."""

    name: str
    read: Callable[[], bytes]
    true_label: str = ""


@dataclass(frozen=True)
class Answer:
    """What the network says of a picture, and what speaks for the class that is explained."""

    probabilities: np.ndarray
    """[K] float64."""
    label: str
    """The prediction, as it is written."""
    probability: float
    """What is shown beside it."""
    explained: int
    explanation: Explanation


def run(line: CommandLine) -> int:
    """Explains what a command line asks for; the exit status is 1 if nothing could be read."""
    _, lines = explain(line, listed=sys.stdin.buffer if sys.stdin else ())
    return 1 if lines and all(one["error"] for one in lines) else 0


def explain(line: CommandLine, *, listed: Iterable[bytes] = ()) -> tuple[Path, list[dict[str, Any]]]:
    """Explains what the paths name, or the worst mistakes.

    Args:
      line: with options and paths.
      listed: the paths that `-` stands for.

    Returns:
      The folder, and the lines of explain.jsonl in it. Where the run made no mistakes there are none, and
      nothing is written.

    Raises:
      TrainerError: run, checkpoint or report cannot be had, or there is something else in the folder.
    """
    workdir = Workdir(line.config.run.workdir)
    # How many make a batch here is no matter of the run.
    given = {name: value for name, value in line.given.items() if name != "batch_size"}
    config = workdir.read_for(given, found_out=(PICTURES, NETWORK))
    check_saliency(config.explain.saliency)
    class_names, wanted = workdir.read_facts()["class_names"], config.explain.explain_class
    label = label_of(wanted, class_names, flag="--explain_class") if wanted else None
    chosen = _named(line.paths, listed) if line.paths else _worst_mistakes(workdir, config)
    if not chosen:
        _log.info("%s has no mistakes; pictures can be named behind explain", _report(workdir, config))
        return _folder(line, workdir), []
    folder = _make_folder(line, workdir, chosen)
    batch_size = line.given.get("batch_size", config.plan.batch_size)
    explanations = Explanations(open_network(workdir, config), config, batch_size=batch_size)
    with part_folder(folder) as part:
        written = _Written(folder, part, explanations)
        with counting(config.run.progress, "explanations", len(chosen)) as more:
            for begin in range(0, len(chosen), batch_size):
                batch = chosen[begin : begin + batch_size]
                for one, answer in zip(batch, _answers(explanations, batch, label), strict=True):
                    written.add(one, answer)
                    more(1)
        return folder, written.finish()


def _named(paths: Sequence[str], listed: Iterable[bytes]) -> list[Chosen]:
    def read(found: Found) -> bytes:
        if found.problem:
            raise BadPictureError(found.path, found.problem)
        return read_file(found.path)

    found = find_pictures(paths, lines=listed)
    chosen = [Chosen(shown_name(one.path), functools.partial(read, one)) for one in found]
    if not chosen:
        raise TrainerError("there are no pictures: the list of paths is empty")
    return chosen


def _report(workdir: Workdir, config: Config) -> Path:
    asked = config.evaluate.report_dir
    folder = local_path(asked, flag=f"--report_dir={asked}") if asked else workdir.report
    return folder / "predictions.csv"


def _worst_mistakes(workdir: Workdir, config: Config) -> list[Chosen]:
    """Returns those of the report, the wrong class with the highest probability first."""
    path, instead = _report(workdir, config), "or name pictures behind explain"
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = [row for row in read_rows(file) if not is_right(row)]
        rows.sort(key=_surest(workdir, config))
    except FileNotFoundError:
        raise TrainerError(
            f"there is no {path} to take mistakes from: `evaluate --workdir=...` writes it; {instead}"
        ) from None
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise TrainerError(f"{path} is damaged ({error}): `evaluate` writes it anew; {instead}") from None
    if not rows:
        return []
    try:
        source = open_configured(config)
    except TrainerError as error:
        raise type(error)(
            f"the pictures of the mistakes cannot be had: {if_moved(error)}; {instead}"
        ) from None
    digests = {row[0]: row[2] for split in workdir.read_splits().values() for row in split}
    places = {name: place for place, name in enumerate(source.ids)}

    def read(row: Mapping[str, str]) -> bytes:
        name = row["id"]
        data = source.read(places[name]) if name in places else b""
        if hashlib.sha256(data).hexdigest() != (row.get("sha256") or digests.get(name)):
            raise BadPictureError(name, f"{source.name} does not have the picture that this run had")
        return data

    worst = rows[: config.explain.num_explained]
    return [Chosen(row["id"], functools.partial(read, row), row["label"]) for row in worst]


def _surest(workdir: Workdir, config: Config) -> Callable[[Mapping[str, str]], float]:
    """Returns how far behind a row of predictions.csv comes: the probability of its prediction, negative."""
    task = make_task(config.data.task)
    if task.excludes:
        return lambda row: -float(row[f"probability_{row['prediction']}"])
    names = unique_names(workdir.read_facts()["class_names"])

    def place(row: Mapping[str, str]) -> float:
        said = np.array([float(row[f"predicted_{name}"]) for name in names])
        chances = np.array([float(row[f"probability_{name}"]) for name in names])
        return -task.told(said, chances, names)[1]

    return place


def _folder(line: CommandLine, workdir: Workdir) -> Path:
    output = line.config.benchmark.output
    return local_path(output, flag=f"--output={output}") if output else workdir.root / "explain"


def _make_folder(line: CommandLine, workdir: Workdir, chosen: Sequence[Chosen]) -> Path:
    """Returns the folder, in which nothing of somebody else's is in the way."""
    folder, output = _folder(line, workdir), line.config.benchmark.output
    flag = f"--output={output}" if output else str(folder)
    make_folder(folder, flag=flag, wrong="is a file, or lies below one: it must be a folder")
    files = [_file(number, one.name) for number, one in enumerate(chosen, 1)]
    _manifest(folder).require_free([_LINES, _SHEET, *files], flag=flag)
    return folder


@contextlib.contextmanager
def part_folder(folder: Path) -> Iterator[Path]:
    """Yields a new folder in one that is explained into; what a process that died left behind is removed."""
    with file_lock(folder / f"{_PART}.lock", waiting_for=str(folder)) as lock:
        for left in folder.glob(f"{_PART}-*") if lock else ():
            shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=f"{_PART}-", dir=folder) as part:
            yield Path(part)


def _manifest(folder: Path) -> Manifest:
    return Manifest(folder, "explain", older=_of_older_versions)


def _of_older_versions(folder: Path) -> list[str]:
    """Returns the names of what was written before there was a record: those in explain.jsonl, if any."""
    try:
        lines = [json.loads(line) for line in (folder / _LINES).read_text().splitlines()]
        files = [line["file"] for line in lines if line["file"]]
        return [_LINES, _SHEET, *(name for name in files if Path(name).name == name)]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _file(number: int, name: str) -> str:
    return f"{number:04d}-{_plain(name)}.png"


def _answers(
    explanations: Explanations, batch: Sequence[Chosen], label: int | None
) -> Iterator[Answer | str]:
    """Yields the answer for each picture, or why it cannot be read; `label` None: the class it predicts."""
    loaded: list[tuple[bytes, np.ndarray] | str] = []
    for one in batch:
        try:
            data = one.read()
            loaded.append((data, explanations.pixels(data, name=one.name)))
        except TrainerError as error:
            loaded.append(error.reason if isinstance(error, BadPictureError) else str(error))
    seen = [found[1] for found in loaded if not isinstance(found, str)]
    rows = iter(explanations.probabilities(seen) if seen else ())
    for found in loaded:
        if isinstance(found, str):
            yield found
            continue
        (data, pixels), probabilities = found, next(rows)
        explained = explanations.task.explained_class(probabilities) if label is None else label
        said = explanations.told(probabilities)
        yield Answer(probabilities, *said, explained, explanations.explain(data, pixels, explained))


class _Written:
    """The files of an explanation: a PNG and a line of JSON for each picture, and a sheet with all."""

    def __init__(self, folder: Path, part: Path, explanations: Explanations):
        """Begins without any.

        Args:
          folder: where they are to be in the end.
          part: a folder in it, where they are until all are made: what an earlier call left is whole until
            then.
          explanations: say what the classes are called.
        """
        self._folder, self._part = folder, part
        self._names, self._method = explanations.class_names, explanations.method
        self._title = explanations.method_title
        self._lines: list[dict[str, Any]] = []
        self._sheet: list[tuple[np.ndarray, str]] = []

    def add(self, one: Chosen, answer: Answer | str) -> None:
        """Writes the PNG of a picture, or tells why there is none."""
        line: dict[str, Any] = dict.fromkeys(_KEYS) | {"path": one.name, "true_label": one.true_label or None}
        self._lines.append(line)
        if isinstance(answer, str):
            _log.warning("%s cannot be read: %s", one.name, answer)
            line["error"] = answer
            return
        file = _file(len(self._lines), one.name)
        picture, saliency = answer.explanation.picture, answer.explanation.saliency
        told = self._told(one, answer)
        title = f"{', '.join(told)}\n{Path(one.name).name} · {self._title}"
        write_bytes(self._part / file, panels_png(picture, saliency.heat, title=title))
        if len(self._sheet) < _MOST_ON_SHEET:
            # Half the size is what it has room for.
            small = overlay(picture[::2, ::2], saliency.heat).astype(np.float32)
            self._sheet.append((small, "\n".join(told)))
        line |= {
            "label": answer.label,
            "probability": answer.probability,
            "explained_class": self._names[answer.explained],
            "explained_probability": float(answer.probabilities[answer.explained]),
            "method": self._method,
            "file": file,
            "box": saliency.box,
            "gain": saliency.gain,
            "completeness_error": saliency.completeness_error,
        }

    def finish(self) -> list[dict[str, Any]]:
        """Writes the sheet and the lines, puts all in place, says where, and returns the lines."""
        explained = [line for line in self._lines if not line["error"]]
        if len(explained) > 1:
            overlays, titles = zip(*self._sheet, strict=True)
            write_bytes(self._part / _SHEET, contact_sheet(overlays, titles))
        lines = (json.dumps(line, ensure_ascii=False) for line in self._lines)
        write_text(self._part / _LINES, "".join(f"{line}\n" for line in lines))
        self._put_in_place()
        sums = [(line["completeness_error"], line["gain"]) for line in explained if line["gain"] is not None]
        if missed := sum(error > _TOLERATED * abs(gain) for error, gain in sums):
            _log.warning(
                "of %d of these the attributions miss their sum by more than a tenth: a higher --ig_steps is "
                "more exact", missed,
            )  # fmt: skip
        count = f"{len(explained):,} of {len(self._lines):,} pictures"
        _log.info("%s explained by %s: %s", count, self._title, self._folder)
        return self._lines

    def _put_in_place(self) -> None:
        """Moves what was made to where it belongs; what an earlier call left and this one did not, goes."""
        manifest, made = _manifest(self._folder), sorted(path.name for path in self._part.iterdir())
        manifest.begin(made)
        for name in made:
            move(self._part / name, self._folder / name)
        manifest.finish(made)

    def _told(self, one: Chosen, answer: Answer) -> list[str]:
        """Returns one or two lines: the class that is explained, and others that there are."""
        name, share = self._names[answer.explained], answer.probabilities[answer.explained]
        truly = [f"truly {one.true_label}"] if one.true_label else []
        predicted = f"{answer.label} {100 * answer.probability:.1f} %"
        if name == answer.label:
            return [predicted, *truly]
        return [f"for {name} {100 * share:.1f} %", ", ".join([f"predicted {predicted}", *truly])]


def _plain(name: str) -> str:
    """Returns the last part of a path in at most 60 letters, digits, dots, dashes and underscores."""
    stem = Path(name).stem
    return re.sub(r"[^A-Za-z0-9._-]+", "_", stem).strip("._")[:60] or "picture"
