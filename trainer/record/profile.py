"""What TensorFlow's profiler saw of some updates: for TensorBoard's PROFILE tab, and as a trace to open."""

import gzip
import json
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import tensorflow as tf
from tensorflow.tsl.profiler.protobuf.xplane_pb2 import XSpace

from trainer.record.workdir import Workdir
from trainer.store.files import PART_PREFIX, write_bytes
from trainer.values import TrainerError, told_by_tensorflow


class Profiler:
    """Runs TensorFlow's profiler and keeps what it saw below WORKDIR/train/plugins/profile.

    There is one of them in a process. Each profile is a folder with HOST.xplane.pb, which the PROFILE tab
    reads, and trace.json.gz, for https://ui.perfetto.dev or chrome://tracing.
    """

    def __init__(self, workdir: Workdir):
        self._folder = workdir.root / "train" / "plugins" / "profile"
        # Where an earlier start of the run left one that was not finished, it is removed at the next.
        self._part = workdir.root / f"{PART_PREFIX}profile"

    def start(self) -> None:
        """Starts it.

        Raises:
          TrainerError: it is running for somebody else.
        """
        try:
            tf.profiler.experimental.start(str(self._part))
        except tf.errors.OpError as error:
            raise TrainerError(f"--profile_steps: {told_by_tensorflow(error)}") from None

    def update(self, step: int) -> AbstractContextManager[Any]:
        """Marks what is done in a block as the update to a step."""
        # By this name, and _r, the tab knows the steps of which it tells the time.
        return tf.profiler.experimental.Trace("train", step_num=step, _r=1)

    def stop(self, name: str) -> None:
        """Stops it, and keeps what it saw in a folder of that name.

        Raises:
          TrainerError: TensorFlow cannot write it.
        """
        try:
            tf.profiler.experimental.stop()
        except tf.errors.OpError as error:
            raise TrainerError(f"--profile_steps: {told_by_tensorflow(error)}") from None
        folder = self._folder / name
        # The tab keeps beside a profile what it has made of it.
        shutil.rmtree(folder, ignore_errors=True)
        for path in sorted(self._part.rglob("*.xplane.pb")):
            seen = path.read_bytes()
            write_bytes(folder / path.name, seen)
            host = path.name.removesuffix(".xplane.pb")
            write_bytes(folder / f"{host}.trace.json.gz", chrome_trace(seen))
        shutil.rmtree(self._part, ignore_errors=True)

    def discard(self) -> None:
        """Stops it, and keeps nothing."""
        tf.profiler.experimental.stop(save=False)
        shutil.rmtree(self._part, ignore_errors=True)


def chrome_trace(xplane: bytes) -> bytes:
    """Returns a profile in the Trace Event Format of Chrome, which Perfetto opens too, compressed.

    Args:
      xplane: an `XSpace`, the profiler's own format.
    """
    planes = XSpace.FromString(xplane).planes
    events = [event for pid, plane in enumerate(planes) for event in _of(plane, pid)]
    text = json.dumps({"displayTimeUnit": "ms", "traceEvents": events})
    return gzip.compress(text.encode(), mtime=0)


def _of(plane: Any, pid: int) -> Iterator[dict[str, Any]]:
    """Yields the events of a plane, which is a device; its lines are threads or streams."""
    yield _called("process_name", plane.name, pid=pid)
    for tid, line in enumerate(plane.lines):
        yield _called("thread_name", line.display_name or line.name, pid=pid, tid=tid)
        for event in line.events:
            about = plane.event_metadata[event.metadata_id]
            yield {
                "ph": "X",
                "pid": pid,
                "tid": tid,
                "name": about.display_name or about.name,
                # In microseconds, as the format wants them.
                "ts": line.timestamp_ns / 1e3 + event.offset_ps / 1e6,
                "dur": event.duration_ps / 1e6,
                "args": _arguments(plane, event),
            }


def _called(what: str, name: str, **where: int) -> dict[str, Any]:
    return {"ph": "M", "name": what, **where, "args": {"name": name}}


def _arguments(plane: Any, event: Any) -> dict[str, Any]:
    """Returns what is told of an event, but for what only the profiler's own tools know to read."""
    found = {}
    for stat in event.stats:
        name, kind = plane.stat_metadata[stat.metadata_id].name, stat.WhichOneof("value")
        if name.startswith("_") or kind in (None, "bytes_value"):
            continue
        value = getattr(stat, kind)
        found[name] = plane.stat_metadata[value].name if kind == "ref_value" else value
    return found
