"""`predict`: what a finished run says of new pictures, from its workdir alone."""

import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from trainer.commands.finished import open_network
from trainer.config import Config
from trainer.data.bad_pictures import shown_name
from trainer.data.files import Found, find_pictures
from trainer.data.loading import Loaded, Loader, own_stderr
from trainer.flags import CommandLine
from trainer.model.classifier import Classifier
from trainer.model.cuts import whole_cut
from trainer.precision import in_precision
from trainer.record.predictions import FORMATS, Prediction, choose_format, opened
from trainer.record.progress import counting
from trainer.record.workdir import Workdir
from trainer.values import TrainerError, UsageError, told_by_tensorflow

_log = logging.getLogger("trainer")
# Where most files cannot be read, a batch is not waited for longer than this many batches of them.
_ROWS_PER_BATCH = 4


def run(line: CommandLine) -> int:
    """Predicts what the paths name, a line each; returns the exit status, 1 where nothing could be read."""
    if not line.paths and (sys.stdin is None or sys.stdin.isatty()):
        raise UsageError(
            "predict needs pictures: files, folders or patterns behind the options, or a list of paths on "
            "standard input"
        )
    with own_stderr():
        # Standard output is for the predictions.
        _log.handlers = [_ToStderr()]
        workdir = Workdir(line.config.run.workdir)
        config = workdir.read_config().replace(**line.given)
        workdir.check_same_run(config)
        return _predict(line, workdir, config)


def _predict(line: CommandLine, workdir: Workdir, config: Config) -> int:
    options, output = line.config.predict, line.config.benchmark.output
    class_names = workdir.read_facts()["class_names"]
    if options.top_k > len(class_names):
        raise UsageError(f"--top_k={options.top_k}: this run knows only {len(class_names)} classes")
    form = FORMATS[choose_format(options.format, output=output)]
    lines = form(class_names, top_k=options.top_k, threshold=options.threshold)
    found: Iterable[Found] = find_pictures(line.paths or ("-",), lines=sys.stdin.buffer if sys.stdin else ())
    watch: Any = contextlib.nullcontext(lambda count: None)
    with opened(output) as write:
        predictor = Predictor(workdir, config)
        if output:
            found = list(found)
            watch = counting(config.run.progress, "predictions", len(found)) if found else watch
        tally = Tally()
        with watch as more:
            write(lines.head)
            for prediction in predictor.stream(found, tally=tally):
                shown = shown_name(prediction.path)
                write(lines.line(prediction, shown=shown))
                if prediction.error:
                    _log.warning("%s cannot be read: %s", shown, prediction.error)
                more(1)
        if not tally.num_pictures:
            raise TrainerError("there are no pictures: the list of paths is empty")
    _log.info("%s", tally.told())
    return 0 if tally.num_read else 1


def load(workdir: str | os.PathLike[str], *, checkpoint: str = "best") -> "Predictor":
    """Opens a run for predictions; the pictures it was trained with need not be there.

    Args:
      workdir: the folder of the run.
      checkpoint: best, latest, or a step number.

    Raises:
      TrainerError: there is no such run or checkpoint, or the network cannot be opened.
    """
    run = Workdir(os.fspath(workdir))
    return Predictor(run, run.read_config().replace(checkpoint=str(checkpoint)))


@dataclass
class Tally:
    """How many pictures there were, how many could be read, and where the time went."""

    num_pictures: int = 0
    num_read: int = 0
    secs: float = 0.0
    waiting_secs: float = 0.0

    def told(self) -> str:
        """Returns it in a line."""
        share = self.waiting_secs / max(self.secs, 1e-9)
        return (
            f"{self.num_read:,} of {self.num_pictures:,} pictures predicted in {self.secs:,.1f} s, "
            f"{self.num_read / max(self.secs, 1e-9):,.1f} a second; {share:.0%} of it was waiting for input"
        )


class Predictor:
    """The network of a run with the weights of a checkpoint.

    `class_names` are in the order of its outputs.
    """

    def __init__(self, workdir: Workdir, config: Config):
        """Opens the network that the run recorded, and gives it the weights of --checkpoint.

        Args:
          workdir: of the run.
          config: what it was started with.

        Raises:
          TrainerError: see `load`.
        """
        network = open_network(workdir, config)
        self.class_names: tuple[str, ...] = network.class_names
        self._config, self._contract = config, network.classifier.backbone.contract
        self._logits = _forward(network.classifier, precision=network.precision)

    def predict(self, paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[Prediction]:
        """Predicts pictures, in the order given, each once.

        What other C code writes to standard error meanwhile is held back. One call at a time.

        Args:
          paths: one or more files, folders (the pictures below them) or patterns such as `a/*.jpg`.

        Returns:
          One for each picture; of those that could not be read, `error` says why.
        """
        several = [paths] if isinstance(paths, str | os.PathLike) else paths
        return list(self.stream(find_pictures([os.fspath(path) for path in several])))

    def stream(self, found: Iterable[Found], *, tally: Tally | None = None) -> Iterator[Prediction]:
        """Yields predictions in the order of what was found, batch by batch; `tally` is kept up to date."""
        data, batch_size = self._config.data, self._config.plan.batch_size
        tally = tally or Tally()
        loader = Loader(self._contract, exif=data.exif, max_pixels=data.max_pixels, decoding=data.decode)
        rows: list[Loaded] = []
        num_read = 0
        begun = time.perf_counter()
        with loader, contextlib.closing(loader.load_all(found, ahead=batch_size)) as loaded:
            while True:
                waiting = time.perf_counter()
                row = next(loaded, None)
                tally.waiting_secs += time.perf_counter() - waiting
                if row:
                    rows.append(row)
                    num_read += row.pixels is not None
                if row is None or num_read == batch_size or len(rows) == _ROWS_PER_BATCH * batch_size:
                    predictions = self._of(rows, batch_size)
                    tally.num_pictures += len(rows)
                    tally.num_read += num_read
                    tally.secs = time.perf_counter() - begun
                    yield from predictions
                    rows, num_read = [], 0
                if row is None:
                    return

    def _of(self, rows: list[Loaded], batch_size: int) -> list[Prediction]:
        read = [row.pixels for row in rows if row.pixels is not None]
        labels, probabilities = np.zeros([0], int), np.zeros([0, len(self.class_names)])
        if read:
            # Always of the same size, as in an evaluation.
            images = np.zeros([batch_size, *self._contract.image_shape], np.float32)
            images[: len(read)] = read
            logits = self._logits(images)[: len(read)].astype(np.float64)
            shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
            labels, probabilities = logits.argmax(axis=1), shifted / shifted.sum(axis=1, keepdims=True)
        of_read = iter(zip(labels.tolist(), probabilities.tolist(), strict=True))
        found = []
        for row in rows:
            if row.pixels is None:
                found.append(Prediction(row.path, error=row.problem))
                continue
            label, values = next(of_read)
            by_name = dict(zip(self.class_names, values, strict=True))
            found.append(Prediction(row.path, self.class_names[label], values[label], by_name))
        return found


def _forward(classifier: Classifier, *, precision: str) -> Callable[[np.ndarray], np.ndarray]:
    """Returns images [B, H, W, 3] -> logits [B, K]: the network in `precision`, the head in float32."""
    backbone = classifier.backbone
    width = backbone.contract.feature_width
    # There is one, as nothing trains.
    cut: Any = whole_cut(backbone, (), bn_batch=False, feature_width=width, variables=backbone.variables)
    images = tf.TensorSpec([None, *backbone.contract.image_shape], tf.float32)
    below = in_precision(tf.function(cut.below, autograph=False, input_signature=[images]), precision)
    above = tf.function(lambda features: classifier(features, cut=cut), autograph=False)

    def logits(pictures: np.ndarray) -> np.ndarray:
        try:
            return above(below(tf.constant(pictures))).numpy()
        except tf.errors.OpError as error:
            raise TrainerError(f"TensorFlow failed: {told_by_tensorflow(error)}") from None

    return logits


class _ToStderr(logging.Handler):
    """Writes log lines to standard error, above a bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)
