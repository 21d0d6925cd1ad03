"""Event files and metrics.jsonl after a stop: in order, each point once, nothing missing."""

import contextlib
import errno
import json
import logging
import os
import re
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader

from trainer.record.report_place import report_manifest
from trainer.store.files import move, sync, write_bytes
from trainer.values import TrainerError

_log = logging.getLogger("trainer")


def cut_metrics(path: Path, last: Mapping[str, int]) -> None:
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
            split, step = _point(line, splits=last)
        except ValueError as error:
            faults[len(stays)] = str(error)
            stays.append(None)
            continue
        stay: bool | None = step <= last[split]
        if step > before.get(split, -1):
            before[split] = step
        elif all(stays):
            faults[len(stays)] = f"step {step} of {split} comes after step {before[split]}"
            stay = None
        # Else the step that is damaged may be that of a line which goes, so that this one counts as it is.
        stays.append(stay)
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


def _point(line: bytes, *, splits: Collection[str]) -> tuple[str, int]:
    """Returns split and step of a line of metrics.jsonl.

    Args:
      line: without its end.
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
    return split, step


# Around the content of a record: its length and two checksums.
_FRAME_BYTES = 16
# Seconds, host, process and a counter: as `tf.summary` calls its files. Ten digits sort as numbers do.
_NAME = re.compile(r"events\.out\.tfevents\.\d{10}\..+\.\d+\.\d+\.v2", re.DOTALL)
# What an event file may hold without showing anything.
_SHOWS_NOTHING = ("file_version", "session_log", None)


class EventFile:
    """An event file that is being written, through a writer of `tf.summary`.

    When a disk is full, that writer drops records, or parts of them, and reports success. So records
    are counted, and looked for in the file.
    """

    def __init__(self, folder: Path, *, create: Callable[[str], Any], after: str = "", alone: bool = False):
        """Opens a file whose name sorts behind those of the run in the folder.

        Args:
          folder: where; it is made if it is not there.
          create: makes a writer for a folder, as `tf.summary.create_file_writer` does.
          after: name of a file that was there, and that the new one sorts behind, too.
          alone: whether it goes on with no other, so that its name may be any.
        """
        self._writer, self.path = _open(folder, create=create, after=after, alone=alone)
        # TensorFlow begins each file with the version of its format.
        self._num_written, self._num_found = 1, 0
        self._end = 0

    def begin_again(self, step: int) -> None:
        """Tells a TensorBoard that is running to forget what it has read, from `step` on.

        It knows a restart by SessionLog.START, and takes the first one it meets for the beginning of the
        run: hence two.
        """
        started = tf.compat.v1.SessionLog(status=tf.compat.v1.SessionLog.START)
        event = tf.compat.v1.Event(step=step, wall_time=time.time(), session_log=started)
        # No public name has the resource; without it, TensorBoard shows old points beside new ones.
        resource = getattr(self._writer, "_resource", None)
        if resource is None:
            _log.warning("TensorBoard, if it is running, must be started again to forget what is done again")
            return
        for _ in range(2):
            tf.raw_ops.ImportEvent(writer=resource, event=event.SerializeToString())
        self._num_written += 2

    @contextlib.contextmanager
    def writing(self, step: int, *, num_events: int) -> Iterator[None]:
        """What `tf.summary` writes within the block goes here; it must be `num_events` calls.

        Raises:
          OSError, tf.errors.OpError: not all of it has reached the file.
        """
        self._num_written += num_events
        with self._writer.as_default(step):
            yield
        self._flush()

    def sync(self) -> None:
        """Waits until all that was written, and the name of the file, are on disk.

        Raises:
          OSError, tf.errors.OpError: they do not get there.
        """
        self._flush()
        sync(self.path)
        sync(self.path.parent)

    def close(self) -> None:
        """Syncs, and ends the file.

        Raises:
          OSError, tf.errors.OpError: as in `sync`.
        """
        self.sync()
        self._writer.close()

    def _flush(self) -> None:
        """Hands everything to the system, and makes sure that it is in the file."""
        self._writer.flush()
        with open(self.path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            while self._end + _FRAME_BYTES <= size:
                file.seek(self._end)
                end = self._end + _FRAME_BYTES + int.from_bytes(file.read(8), "little")
                if end > size:
                    break
                self._end, self._num_found = end, self._num_found + 1
        if self._end != size or self._num_found != self._num_written:
            raise _why_not_written(self.path)


def event_files(folder: Path) -> list[Path]:
    """Returns the event files of a run in a folder, in the order in which TensorBoard reads them.

    Those of other programs, and of an evaluation with this folder as its --report_dir, are left alone.
    """
    of_reports = report_manifest(folder).files
    return sorted(
        path for path in folder.glob("*") if _NAME.fullmatch(path.name) and path.name not in of_reports
    )


def cut(path: Path, *, last_step: int) -> None:
    """Leaves in an event file what is whole and not after a step; removes it if it then shows nothing.

    Of a file with damage in it, that is what comes before the damage: TensorBoard reads no further.

    Raises:
      OSError, tf.errors.OpError: it cannot be read or written. It is as it was.
    """
    data = path.read_bytes()
    kept, shows, end = [], False, 0
    for event, next_end in _whole_events(path):
        if event.step <= last_step:
            kept.append(data[end:next_end])
            shows |= event.WhichOneof("what") not in _SHOWS_NOTHING
        end = next_end
    if end < len(data):
        _log.warning(
            "%s: its last %s of %s bytes had broken off or were damaged, and are cut off",
            path, f"{len(data) - end:,}", f"{len(data):,}",
        )  # fmt: skip
    if not shows:
        path.unlink()
        sync(path.parent)
    elif (left := b"".join(kept)) != data:
        write_bytes(path, left)


def _whole_events(path: Path) -> Iterator[tuple[Any, int]]:
    """Yields each event before the first damage, and where in the file it ends."""
    end = 0
    with contextlib.suppress(DecodeError):
        # TensorBoard's own: it stops, and says nothing, where a record is damaged or broken off.
        for content in RawEventFileLoader(str(path)).Load():
            event = tf.compat.v1.Event.FromString(content)
            end += _FRAME_BYTES + len(content)
            yield event, end


def _open(folder: Path, *, create: Callable[[str], Any], after: str, alone: bool) -> tuple[Any, Path]:
    """Makes a writer, and finds its file."""
    # Names carry text: within a second, 10 sorts before 9.
    for _ in range(25):
        older = event_files(folder)
        writer = create(str(folder))
        [path] = set(event_files(folder)) - set(older)
        if alone or path.name > max([after, *(other.name for other in older)]):
            return writer, path
        writer.close()
        path.unlink()
        time.sleep(0.1)
    _log.warning(
        "%s: its event files are dated later than it is now, and are renamed for TensorBoard to read them "
        "first; one that is running must be started again to show what comes",
        folder,
    )
    now = int(time.time())
    for i, path in enumerate(older):
        ending = path.name.removeprefix("events.out.tfevents.")
        move(path, folder / f"events.out.tfevents.{now - len(older) + i:010d}.{ending}")
    return _open(folder, create=create, after="", alone=alone)


def _why_not_written(path: Path) -> OSError:
    """Returns the error that `tf.summary` did not tell of, as far as it can be seen from outside."""
    try:
        with tempfile.TemporaryFile(dir=path.parent) as file:
            file.write(bytes(2**16))
    except OSError as error:
        return OSError(error.errno, error.strerror, str(path))
    return OSError(errno.EIO, "not all that was written to it arrived", str(path))
