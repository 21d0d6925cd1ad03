"""Event files for TensorBoard, and metrics.jsonl. The only importer of `tf.summary`."""

import contextlib
import json
import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorboard.plugins.hparams import api as hparams_api

from trainer.files import remove_parts, sync, write_bytes
from trainer.record.event_files import EventFile, cut, event_files
from trainer.record.workdir import Workdir
from trainer.values import TrainerError, told_by_tensorflow

_log = logging.getLogger("trainer")


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
        line = {"split": split, "step": step, **self._describe(step), **values}
        path = self._workdir.metrics_jsonl
        with _told_of(f"{path} cannot be written"), open(path, "a") as file:
            file.write(json.dumps(line) + "\n")

    def image(self, split: str, tag: str, png: bytes, *, step: int) -> None:
        """Writes one picture, given as an encoded PNG."""
        with self._writing(split, step):
            tf.summary.image(tag, tf.io.decode_png(png, channels=3)[None])

    def text(self, split: str, tag: str, markdown: str, *, step: int = 0) -> None:
        with self._writing(split, step):
            tf.summary.text(tag, markdown)

    def graph(self, split: str, graph: tf.Graph) -> None:
        """Writes the graph of a traced function."""
        with self._writing(split, 0):
            tf.summary.graph(graph)

    def hparams(self, values: Mapping[str, Any], *, session: str) -> None:
        """Writes the options of the run for the HPARAMS tab, with the metrics to sort by."""
        metrics = [
            hparams_api.Metric(tag, group=split, display_name=f"{split} {tag}")
            for split in ("validation", "test")
            for tag in ("accuracy", "loss")
        ]
        # Beside the splits, not in one: TensorBoard looks for the metrics of a session below it.
        with self._writing(".", 0, num_events=2):
            hparams_api.hparams_config(hparams=[hparams_api.HParam(name) for name in values], metrics=metrics)
            hparams_api.hparams(dict(values), trial_id=session)

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

    def cut_back(self, step: int | None) -> None:
        """Forgets what will be written again after a restore at `step`, before anything is written.

        That is what lies after the step, the evaluation of the step, which comes after its
        checkpoint, and the final score. None: there is no checkpoint; everything is forgotten.
        A TensorBoard that is running forgets the same as soon as it reads what is written next.

        Raises:
          TrainerError: metrics.jsonl is damaged, or something cannot be read or written.
        """
        start = -1 if step is None else step
        last = {".": start, "train": start, "validation": (step or 0) - 1, "test": -1}
        metrics = self._workdir.metrics_jsonl
        with _told_of(f"{metrics} cannot be cut back"):
            # Before the others, for it may be refused.
            _cut_metrics(metrics, last)
        for split in last:
            folder = self._workdir.root / split
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
    def _writing(self, split: str, step: int, *, num_events: int = 1) -> Iterator[None]:
        """What `tf.summary` is called for within the block, `num_events` times, goes to a split."""
        with self._told(split):
            if split not in self._files:
                again, after = self._restarts.pop(split, (None, ""))
                folder = self._workdir.root / split
                file = EventFile(folder, create=tf.summary.create_file_writer, after=after)
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
        raise TrainerError(f"{what}: {error.strerror}{where}") from None
    except tf.errors.OpError as error:
        raise TrainerError(f"{what}: {told_by_tensorflow(error)}") from None


def _cut_metrics(path: Path, last: Mapping[str, int]) -> None:
    """Leaves in metrics.jsonl what is not after the last step of its split.

    Raises:
      TrainerError: a line is damaged that may have to stay; the message names it.
    """
    if not path.exists():
        return
    data = path.read_bytes()
    lines = data.split(b"\n")
    # Whether each stays; None: it is damaged.
    stays: list[bool | None] = []
    faults: dict[int, str] = {}
    before: dict[str, int] = {}
    for line in lines[: len(lines) if lines[-1] else -1]:
        try:
            split, step = _point(line, before=before, splits=last)
            before[split] = step
            stays.append(step <= last[split])
        except ValueError as error:
            faults[len(stays)] = str(error)
            stays.append(None)
    # Lines are in the order of time: after one that goes, all go.
    at = next((i for i, stay in enumerate(stays) if not stay), len(stays))
    # Else it was being written when the process was killed, and is younger than the checkpoint.
    had_ended = at < len(lines) - 1
    if max(last.values()) >= 0 and (True in stays[at:] or (had_ended and stays[at] is None)):
        fault = faults.get(at, "what comes after it is older")
        raise TrainerError(
            f"{path} is damaged in line {at + 1}: {fault}. Mend or remove that line, and start again"
        )
    if at in faults:
        _log.warning("%s: its last line had broken off, and is left out", path)
    kept = b"".join(line + b"\n" for line, stay in zip(lines, stays, strict=False) if stay)
    if kept != data:
        write_bytes(path, kept)


def _point(line: bytes, *, before: Mapping[str, int], splits: Collection[str]) -> tuple[str, int]:
    """Returns split and step of a line of metrics.jsonl.

    Args:
      line: without its end.
      before: {split: the step of the line before}.
      splits: those there can be.

    Raises:
      ValueError: it is not such a line.
    """
    try:
        point = json.loads(line.decode())
    except (ValueError, RecursionError):
        raise ValueError("it is not JSON") from None
    if not isinstance(point, dict) or point.get("split") not in list(splits):
        raise ValueError("it names no split of a run")
    split, step = point["split"], point.get("step")
    if type(step) is not int:
        raise ValueError("it has no step")
    if step <= before.get(split, -1):
        raise ValueError(f"step {step} of {split} comes after step {before[split]}")
    return split, step
