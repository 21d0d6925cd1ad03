"""`predict`: what a finished run says of new pictures, from its workdir alone."""

import contextlib
import errno
import itertools
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from trainer.cli.config import Config
from trainer.cli.declare import NETWORK
from trainer.cli.flags import CommandLine
from trainer.data.inspect.bad_pictures import shown_name
from trainer.data.loading import Loaded
from trainer.data.picture_files import Found, find_pictures
from trainer.export.loading import open_model
from trainer.export.metadata import About, read_about
from trainer.paths import local_path
from trainer.record.predictions import FORMATS, Prediction, choose_format, opened
from trainer.record.progress import counting
from trainer.record.workdir import Workdir
from trainer.run.finished_run import RunModel, open_network
from trainer.run.inference import Inference, Model
from trainer.values import TrainerError, UsageError

_log = logging.getLogger("trainer")
# Where most files cannot be read, a batch is not waited for longer than this many batches of them.
_ROWS_PER_BATCH = 4
# Options that a model has settled.
_OF_RUN = ("checkpoint", "precision", "engine", "image_size", "resize", "antialias", "task")


def run(line: CommandLine) -> int:
    """Predicts what the paths name, a line each; returns the exit status, 1 where nothing could be read."""
    run, model = line.config.run.workdir, line.config.predict.model
    if run and model:
        raise UsageError(f"--workdir={run} and --model={model} both say what to predict with: give one")
    if model and (of_run := [name for name in _OF_RUN if name in line.given]):
        raise UsageError(
            f"--{of_run[0]} chooses something of a run, and --model={model} has no choice: leave it out"
        )
    # Standard output is for the predictions.
    _log.handlers = [_ToStderr()]
    if model:
        flag = f"--model={model}"
        about = read_about(local_path(model, flag=flag), flag=flag)
        config = line.config.replace(**{**_of_pictures(about), **line.given})
        return _predict(line, about.class_names, lambda: Predictor(open_model(model, flag=flag), config))
    workdir = Workdir(run)
    # How many make a batch here is no matter of the run.
    given = {name: value for name, value in line.given.items() if name != "batch_size"}
    config, batch_size = workdir.read_for(given, found_out=[NETWORK]), line.given.get("batch_size")
    names = workdir.read_facts()["class_names"]
    return _predict(line, names, lambda: _predictor_of(workdir, config, batch_size=batch_size))


def _predict(
    line: CommandLine, class_names: Sequence[str], opened_predictor: Callable[[], "Predictor"]
) -> int:
    options, output = line.config.predict, line.config.benchmark.output
    if options.top_k > len(class_names):
        what = "model" if options.model else "run"
        raise UsageError(f"--top_k={options.top_k}: this {what} knows only {len(class_names)} classes")
    form = FORMATS[choose_format(options.format, output=output)]
    lines = form(class_names, top_k=options.top_k, threshold=options.threshold)
    found: Iterable[Found] = find_pictures(line.paths or ("-",), lines=sys.stdin.buffer if sys.stdin else ())
    leading, is_any = _until_one(iter(found)) if line.paths else ([], True)
    found = itertools.chain(leading, found)
    # Where that is a terminal, the line of the picture is there already.
    is_shown = not output and sys.stdout is not None and sys.stdout.isatty()
    watch: Any = contextlib.nullcontext(lambda count: None)
    with opened(output) as write:
        tally = Tally() if is_any else Tally(len(leading))
        if is_any and output:
            found = list(found)
            watch = counting(line.config.run.progress, "predictions", len(found)) if found else watch
        predictions: Iterable[Prediction] = (Prediction(one.path, error=_why_none(one)) for one in leading)
        if is_any:
            # It takes seconds, which nobody waits for who has mistyped the one path.
            predictions = opened_predictor().stream(found, tally=tally)
        with watch as more:
            write(lines.head)
            for prediction in predictions:
                shown = shown_name(prediction.path)
                write(lines.line(prediction, shown=shown))
                if prediction.error and not is_shown:
                    _log.warning("%s cannot be read: %s", shown, prediction.error)
                more(1)
        if not tally.num_pictures:
            raise TrainerError("there are no pictures: the list of paths is empty")
    _log.info("%s%s", tally.told(), f"; they are in {output}" if output else "")
    return 0 if tally.num_read else 1


def _until_one(found: Iterator[Found]) -> tuple[list[Found], bool]:
    """Takes what was found up to the first that may be a picture; returns it, and whether there is one."""
    taken = []
    for one in found:
        taken.append(one)
        if not _why_none(one):
            return taken, True
    return taken, False


def _why_none(found: Found) -> str:
    """Returns why there can be no picture; empty where only a look into the file can tell."""
    if found.problem or os.path.exists(found.path):
        return found.problem
    return os.strerror(errno.ENOENT)


def load_model(path: str | os.PathLike[str]) -> "Predictor":
    """Opens a model that `export` wrote, a SavedModel folder or .tflite file.

    Raises:
      TrainerError: it cannot be opened.
    """
    model = open_model(path)
    return Predictor(model, Config().replace(**_of_pictures(model.about)))


def load_run(workdir: Workdir, *, checkpoint: str) -> "Predictor":
    """Opens the network of a run. The pictures it was trained with need not be there.

    Args:
      workdir: of the run, whose plugins are loaded.
      checkpoint: best, latest, or a step number.

    Raises:
      TrainerError: there is no such run or checkpoint, or the network cannot be opened.
    """
    return _predictor_of(workdir, workdir.read_filled_in().replace(checkpoint=checkpoint))


def _predictor_of(workdir: Workdir, config: Config, *, batch_size: int | None = None) -> "Predictor":
    batch_size = batch_size or config.plan.batch_size
    model = RunModel(open_network(workdir, config), batch_size=batch_size)
    return Predictor(model, config, batch_size=batch_size)


def _of_pictures(about: About) -> dict[str, str]:
    """Returns the options by which pictures become pixels as they did in training."""
    return {"exif": about.exif, "decode": about.decoding}


@dataclass
class Tally:
    """How many pictures there were, how many could be read, and where the time went."""

    num_pictures: int = 0
    num_read: int = 0
    secs: float = 0.0
    waiting_secs: float = 0.0

    def told(self) -> str:
        """Returns it in a line."""
        if not self.num_read:
            if self.num_pictures == 1:
                return "nothing predicted: the only file cannot be read"
            return f"nothing predicted: none of {self.num_pictures:,} files could be read"
        share = self.waiting_secs / max(self.secs, 1e-9)
        return (
            f"{self.num_read:,} of {self.num_pictures:,} pictures predicted in {self.secs:,.1f} s, "
            f"{self.num_read / max(self.secs, 1e-9):,.1f} a second; {share:.0%} of it was waiting for input"
        )


class Predictor:
    """Predicts pictures with a model.

    `class_names` are in the order of its outputs.
    """

    def __init__(self, model: Model, config: Config, *, batch_size: int = 0):
        """Notes what to do.

        Args:
          model: what to predict with.
          config: says how pictures are read.
          batch_size: how many make a batch; 0: as many as `config` says.
        """
        self.class_names: tuple[str, ...] = model.class_names
        self._inference, self._batch_size = Inference(model, config), batch_size or config.plan.batch_size

    def predict(self, paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[Prediction]:
        """Predicts pictures, in the order given, each once. Safe to call from several threads.

        Args:
          paths: one or more files, folders (the pictures below them) or patterns such as `a/*.jpg`.

        Returns:
          One for each picture; of those that could not be read, `error` says why.
        """
        several = [paths] if isinstance(paths, str | os.PathLike) else paths
        return list(self.stream(find_pictures([os.fspath(path) for path in several])))

    def predict_encoded(self, pictures: Iterable[tuple[str, bytes]]) -> list[Prediction]:
        """Predicts pictures that are no files, as `predict` does.

        Args:
          pictures: (name, encoded picture), such as what the `read` of a source gives.

        Returns:
          One for each, whose `path` is the name.
        """
        return list(self.stream(Found(name, data=data) for name, data in pictures))

    def stream(self, found: Iterable[Found], *, tally: Tally | None = None) -> Iterator[Prediction]:
        """Yields predictions in the order of what was found, batch by batch; `tally` is kept up to date."""
        batch_size, tally = self._batch_size, tally or Tally()
        rows: list[Loaded] = []
        num_read = 0
        begun = time.perf_counter()
        with contextlib.closing(self._inference.load_all(found, ahead=batch_size)) as loaded:
            while True:
                waiting = time.perf_counter()
                row = next(loaded, None)
                tally.waiting_secs += time.perf_counter() - waiting
                if row:
                    rows.append(row)
                    num_read += row.pixels is not None
                if row is None or num_read == batch_size or len(rows) == _ROWS_PER_BATCH * batch_size:
                    predictions = self._of(rows)
                    tally.num_pictures += len(rows)
                    tally.num_read += num_read
                    tally.secs = time.perf_counter() - begun
                    yield from predictions
                    rows, num_read = [], 0
                if row is None:
                    return

    def _of(self, rows: list[Loaded]) -> list[Prediction]:
        probabilities = self._inference.probabilities([row.pixels for row in rows if row.pixels is not None])
        told, labels = self._inference.told(probabilities), self._inference.labels(probabilities)
        of_read = zip(told, labels, probabilities, strict=True)
        found = []
        for row in rows:
            if row.pixels is None:
                found.append(Prediction(row.path, error=row.problem))
                continue
            (label, probability), several, values = next(of_read)
            by_name = dict(zip(self.class_names, values.tolist(), strict=True))
            found.append(Prediction(row.path, label, probability, by_name, labels=several))
        return found


class _ToStderr(logging.Handler):
    """Writes log lines to standard error, above a bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)
