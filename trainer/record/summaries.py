"""Event files for TensorBoard, and metrics.jsonl. The only importer of `tf.summary`."""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorboard.plugins.hparams import api as hparams_api

from trainer.files import write_bytes
from trainer.record.workdir import Workdir
from trainer.values import TrainerError, told_by_tensorflow


class Summaries:
    """One writer per split, with the same tags in each so that their curves overlay.

    The step of every point is the number of updates made.
    """

    def __init__(self, workdir: Workdir, *, describe: Callable[[int], Mapping[str, Any]] = lambda step: {}):
        """Opens the writers.

        Args:
          workdir: where.
          describe: step -> what else a line of metrics.jsonl says of that step (epoch, phase).
        """
        self._workdir, self._describe = workdir, describe
        self._writers: dict[str, tf.summary.SummaryWriter] = {}

    @contextlib.contextmanager
    def _writing(self, split: str, step: int) -> Iterator[None]:
        try:
            if split not in self._writers:
                self._writers[split] = tf.summary.create_file_writer(str(self._workdir.root / split))
            with self._writers[split].as_default(step):
                yield
        except tf.errors.OpError as error:
            reason = told_by_tensorflow(error)
            raise TrainerError(f"event files of {split} cannot be written: {reason}") from None

    def scalars(
        self, split: str, step: int, values: Mapping[str, float], timing: Mapping[str, float] | None = None
    ) -> None:
        """Writes numbers; those in `timing` differ from run to run and stay out of metrics.jsonl."""
        with self._writing(split, step):
            for tag, value in {**values, **(timing or {})}.items():
                tf.summary.scalar(tag, value)
            self._writers[split].flush()
        line = {"split": split, "step": step, **self._describe(step), **values}
        with open(self._workdir.metrics_jsonl, "a") as file:
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
        with self._writing(".", 0):
            hparams_api.hparams_config(hparams=[hparams_api.HParam(name) for name in values], metrics=metrics)
            hparams_api.hparams(dict(values), trial_id=session)

    def cut_back(self, step: int | None) -> None:
        """Forgets what will be written again after a restore at `step`, before anything is written.

        That is what lies after the step, the evaluation of the step, which comes after its
        checkpoint, and the final score. None: there is no checkpoint; everything is forgotten.
        """
        start = -1 if step is None else step
        last = {".": start, "train": start, "validation": (step or 0) - 1, "test": -1}
        for split in last:
            for path in sorted((self._workdir.root / split).glob("events.out.tfevents.*")):
                _cut_events(path, last[split])
        if self._workdir.metrics_jsonl.exists():
            lines = self._workdir.metrics_jsonl.read_bytes().splitlines(keepends=True)
            # A line without its end broke off in the middle of writing.
            whole = [line for line in lines if line.endswith(b"\n")]
            values = [json.loads(line) for line in whole]
            kept = [
                line
                for line, value in zip(whole, values, strict=True)
                if value["step"] <= last[value["split"]]
            ]
            if kept != lines:
                write_bytes(self._workdir.metrics_jsonl, b"".join(kept))

    def close(self) -> None:
        """Closes the event files; what is written afterwards opens new ones."""
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()


def _cut_events(path: Path, last_step: int) -> None:
    """Rewrites an event file without what comes after a step; TensorBoard would draw it twice."""
    records: list[bytes] = []
    whole = True
    try:
        for record in tf.data.TFRecordDataset(str(path)):
            records.append(record.numpy())
    except tf.errors.DataLossError:
        whole = False  # It broke off in the middle of a record; what is before it counts.
    kept = [record for record in records if tf.compat.v1.Event.FromString(record).step <= last_step]
    if whole and len(kept) == len(records):
        return
    if not kept:
        path.unlink()
        return
    temporary = path.with_name(f"cut.{path.name}")
    with tf.io.TFRecordWriter(str(temporary)) as writer:
        for record in kept:
            writer.write(record)
    temporary.replace(path)
