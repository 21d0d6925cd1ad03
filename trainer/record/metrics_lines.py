"""metrics.jsonl after a stop: what will be written again is taken out."""

import json
import logging
from collections.abc import Collection, Mapping
from pathlib import Path

from trainer.files import write_bytes
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
