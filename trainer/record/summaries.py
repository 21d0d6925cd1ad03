"""Event files for TensorBoard, and metrics.jsonl. The only importer of `tf.summary`."""

import contextlib
import json
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.histogram import metadata as histogram_metadata
from tensorboard.plugins.hparams import api as hparams_api
from tensorboard.plugins.image import metadata as image_metadata
from tensorboard.util.tensor_util import make_tensor_proto

from trainer.record.event_files import EventFile, cut, cut_metrics, event_files
from trainer.record.workdir import Workdir
from trainer.store.files import remove_parts, sync
from trainer.values import MachineError, told_by_tensorflow

NUM_BINS = 30


def image_summary(tag: str, png: bytes) -> bytes:
    """Returns one event's summary with a picture, as it is: `tf.summary.image` would encode it anew."""
    width, height = struct.unpack(">II", png[16:24])
    summary = Summary()
    summary.value.add(
        tag=tag,
        metadata=image_metadata.create_summary_metadata(display_name=None, description=None),
        tensor=make_tensor_proto([str(width).encode(), str(height).encode(), png]),
    )
    return summary.SerializeToString()


def histogram_summary(values: Mapping[str, np.ndarray]) -> bytes:
    """Returns one event's summary with a histogram of each array.

    What `tf.summary.histogram` writes, array by array, of hundreds of variables in the time of a few.

    Args:
      values: {tag: array of any shape}. Values that are not finite are left out, and arrays with none else.
    """
    summary = Summary()
    for tag, array in values.items():
        numbers = np.asarray(array, np.float64).ravel()
        if not np.isfinite(numbers).all():
            numbers = numbers[np.isfinite(numbers)]
        if not numbers.size:
            continue
        summary.value.add(
            tag=tag,
            metadata=histogram_metadata.create_summary_metadata(display_name=None, description=None),
            tensor=make_tensor_proto(_histogram(numbers)),
        )
    return summary.SerializeToString()


def _histogram(numbers: np.ndarray) -> np.ndarray:
    """Returns [NUM_BINS, 3] float64: left edge, right edge and count of each bin, from lowest to highest."""
    low, high = numbers.min(), numbers.max()
    counts, edges = np.zeros(NUM_BINS), np.linspace(low, high, NUM_BINS + 1)
    if edges[1] > edges[0] and edges[-1] > edges[-2]:
        counts, edges = np.histogram(numbers, NUM_BINS, range=(low, high))
    else:
        # All the same, or as good as that: as TensorBoard has it, all are in the last bin.
        counts[-1] = numbers.size
    return np.stack([edges[:-1], edges[1:], counts], axis=-1)


# The folder of what a run is compared by, in TensorBoard a run of its own.
OPTIONS = "options"


class Summaries:
    """One writer per split, with the same tags in each so that their curves overlay.

    The step of every point is the number of updates made. Whatever cannot be written ends in a
    `TrainerError` that says what, at the latest in `sync`.
    """

    def __init__(self, workdir: Workdir, *, describe: Callable[[int], Mapping[str, Any]] = lambda step: {}):
        """Opens nothing yet.

        Args:
          workdir: where.
          describe: step -> what else a line of metrics.jsonl says of that step (epoch, phase).
        """
        self._workdir, self._describe = workdir, describe
        self._files: dict[str, EventFile] = {}
        # Of the next file of a split: the step at which it begins again, and a name that it sorts behind.
        self._restarts: dict[str, tuple[int, str]] = {}

    def scalars(
        self, split: str, step: int, values: Mapping[str, float], timing: Mapping[str, float] | None = None
    ) -> None:
        """Writes numbers; those in `timing` differ from run to run and stay out of metrics.jsonl."""
        shown = {**values, **(timing or {})}
        with self._writing(split, step, num_events=len(shown)):
            for tag, value in shown.items():
                tf.summary.scalar(tag, value)
        fixed = {"split": split, "step": step, **self._describe(step)}
        # They come first, and no number of that name takes their place.
        line = {**fixed, **values, **fixed}
        path = self._workdir.metrics_jsonl
        with _told_of(f"{path} cannot be written"), open(path, "a") as file:
            file.write(json.dumps(line) + "\n")

    def scalar(self, split: str, tag: str, value: float, step: int) -> None:
        """Writes one number into the event files alone."""
        with self._writing(split, step):
            tf.summary.scalar(tag, value)

    def image(self, split: str, tag: str, png: bytes, *, step: int) -> None:
        """Writes one picture, given as an encoded PNG."""
        with self._writing(split, step):
            tf.summary.experimental.write_raw_pb(image_summary(tag, png))

    def text(self, split: str, tag: str, markdown: str, *, step: int = 0) -> None:
        with self._writing(split, step):
            tf.summary.text(tag, markdown)

    def graph(self, split: str, graph: tf.Graph) -> None:
        """Writes the graph of a traced function."""
        with self._writing(split, 0):
            tf.summary.graph(graph)

    def histograms(self, split: str, step: int, values: Mapping[str, np.ndarray]) -> None:
        """Writes the distribution of each array."""
        with self._writing(split, step):
            tf.summary.experimental.write_raw_pb(histogram_summary(values))

    def hparams(self, values: Mapping[str, Any]) -> None:
        """Writes the options of the run, {option: value}, for the HPARAMS tab.

        Nothing says which columns there are: TensorBoard then looks at all runs it shows, and the options in
        which they differ come first.
        """
        with self._writing(self._options, 0):
            # Called nothing, a run is called by its folder. Runs of the same name would be one, on the mean.
            hparams_api.hparams(dict(values), trial_id="")

    def final(self, values: Mapping[str, float], *, step: int) -> None:
        """Writes what the HPARAMS tab sorts runs by, by their names; the step is the run's last."""
        with self._writing(self._options, step, num_events=len(values)):
            for name, value in values.items():
                tf.summary.scalar(f"final/{name}", value)

    @property
    def _options(self) -> str:
        """The folder of options and final scores, apart from the splits: their scalars would be columns."""
        # A run of an older version has them in its own folder.
        return "." if event_files(self._workdir.root) else OPTIONS

    def score(
        self, folder: Path, step: int, values: Mapping[str, float], figures: Mapping[str, bytes]
    ) -> Path:
        """Writes a score and its figures (PNG) into a new event file of a folder, and returns its path."""
        with self._writing(str(folder), step, num_events=len(values) + len(figures), alone=True):
            for tag, value in values.items():
                tf.summary.scalar(tag, value)
            for name, png in figures.items():
                tf.summary.experimental.write_raw_pb(image_summary(f"report/{name}", png))
        return self._files[str(folder)].path

    def sync(self) -> None:
        """Waits until all that was written so far is on disk: no checkpoint may count what can be lost.

        Raises:
          TrainerError: something cannot be written.
        """
        for split in list(self._files):
            with self._told(split):
                self._files[split].sync()
        path = self._workdir.metrics_jsonl
        if path.exists():
            with _told_of(f"{path} cannot be written"):
                sync(path)
                sync(path.parent)

    def cut_back(self, step: int | None, *, with_options: bool = False) -> None:
        """Forgets what will be written again after a restore at `step`, before anything is written.

        That is, in the files of the run, what lies after the step, the evaluation of the step, which comes
        after its checkpoint, and the final scores. None: there is no checkpoint; everything is forgotten.
        A TensorBoard that is running forgets the same as soon as it reads what is written next.

        Args:
          step: of the checkpoint.
          with_options: whether what `hparams` wrote is forgotten, too.

        Raises:
          TrainerError: metrics.jsonl is damaged, or something cannot be read or written.
        """
        start = -1 if step is None else step
        # The options are of step 0.
        options = -1 if with_options else min(start, max(start - 1, 0))
        last = {OPTIONS: options, ".": options, "train": start, "validation": (step or 0) - 1, "test": -1}
        metrics = self._workdir.metrics_jsonl
        with _told_of(f"{metrics} cannot be cut back"):
            # Before the others, for it may be refused.
            cut_metrics(metrics, last)
        for split in last:
            folder = self._workdir.root / split
            if split == "." and not event_files(folder):
                continue
            with _told_of(f"event files of {split} cannot be cut back"):
                remove_parts(folder)
                paths = event_files(folder)
                for path in paths:
                    cut(path, last_step=last[split])
            _, after = self._restarts.get(split, (None, ""))
            self._restarts[split] = (last[split] + 1, max([after, *(path.name for path in paths)]))

    def close(self) -> None:
        """Closes the event files, with all they hold on disk; what is written afterwards opens new ones.

        Raises:
          TrainerError: something cannot be written.
        """
        for split, file in list(self._files.items()):
            with self._told(split):
                file.close()
            del self._files[split]

    @contextlib.contextmanager
    def _writing(self, split: str, step: int, *, num_events: int = 1, alone: bool = False) -> Iterator[None]:
        """What `tf.summary` is called for within the block, `num_events` times, goes to a split."""
        with self._told(split):
            if split not in self._files:
                again, after = self._restarts.pop(split, (None, ""))
                folder = self._workdir.root / split
                file = EventFile(folder, create=tf.summary.create_file_writer, after=after, alone=alone)
                if again is not None:
                    file.begin_again(again)
                self._files[split] = file
            with self._files[split].writing(step, num_events=num_events):
                yield

    @contextlib.contextmanager
    def _told(self, split: str) -> Iterator[None]:
        """Gives up a split's file when something fails, and says what."""
        try:
            with _told_of(f"event files of {split} cannot be written"):
                yield
        except BaseException:
            # What it holds is no longer certain, and closing it would fail again.
            self._files.pop(split, None)
            raise


@contextlib.contextmanager
def _told_of(what: str) -> Iterator[None]:
    """Turns an error of the system, or of TensorFlow, into one that begins with `what`."""
    try:
        yield
    except OSError as error:
        where = f": {error.filename}" if error.filename and str(error.filename) not in what else ""
        raise MachineError(f"{what}: {error.strerror}{where}") from None
    except tf.errors.OpError as error:
        raise MachineError(f"{what}: {told_by_tensorflow(error)}") from None
