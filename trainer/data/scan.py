"""One look at every encoded picture before training: its digest, and whether it can be read."""

import contextlib
import hashlib
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL

from trainer.data import decode
from trainer.data.decode import inspect_picture
from trainer.data.sources import Source
from trainer.files import write_bytes

_log = logging.getLogger("trainer")
# Pictures that one task looks at: 70,000 tasks of one picture would take 100 MB of memory.
TASK_EXAMPLES = 64
RECORDS_KEPT = 50
_DIGEST_BYTES = 32


@dataclass(frozen=True)
class Scan:
    """What was found, by position in the source's order.

    `digests[i]` is the SHA-256 of the encoded bytes in hex; `orientations` is [N] int32, the EXIF
    orientation 1 to 8 that the decoder applies (all 1 with --exif=ignore).
    """

    digests: list[str]
    orientations: np.ndarray


def scan(source: Source, *, exif: str = "apply", recorded: Path | None = None) -> Scan:
    """Reads every picture's bytes and header, or what an earlier scan found where nothing changed.

    Nothing changed where the source's stamp, its ids, and the code that looks are the same. A record
    that is damaged, or cannot be written, costs a line in the log and a scan.

    Args:
      source: whose pictures.
      exif: apply or ignore.
      recorded: the folder of earlier scans; None neither reads nor writes any.

    Raises:
      TrainerError: a picture cannot be read; the message names it.
    """
    stamp = source.stamp() if recorded else None
    if recorded is None or stamp is None:
        return _look_at_all(source, exif)
    key = _key(source, stamp, exif)
    file = recorded / f"{key}.scan"
    if found := _read_record(file, key, len(source.ids)):
        return found
    found = _look_at_all(source, exif)
    # A picture that was changed meanwhile was looked at before or after: nobody knows.
    if source.stamp() == stamp:
        _write_record(file, key, found)
    return found


def _look_at_all(source: Source, exif: str) -> Scan:
    count = len(source.ids)
    source.load()

    def look(start: int) -> tuple[list[str], list[int]]:
        digests, turns = [], []
        for index in range(start, min(start + TASK_EXAMPLES, count)):
            data = source.read(index)
            info = inspect_picture(data, name=source.ids[index])
            digests.append(hashlib.sha256(data).hexdigest())
            turns.append(info.orientation if exif == "apply" else 1)
        return digests, turns

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(look, range(0, count, TASK_EXAMPLES)))
    digests = [digest for part, _ in found for digest in part]
    return Scan(digests, np.array([turn for _, part in found for turn in part], np.int32))


def _key(source: Source, stamp: str, exif: str) -> str:
    """Returns 64 hex digits that differ where a scan could find something else."""
    parts = [source.name, stamp, exif, PIL.__version__, *source.ids]
    digest = hashlib.sha256("\0".join(parts).encode())
    for code in (__file__, decode.__file__):
        digest.update(Path(code).read_bytes())
    return digest.hexdigest()


def _read_record(file: Path, key: str, count: int) -> Scan | None:
    """Reads [32] bytes of SHA-256 of the key and the rest, [N, 32] of digests, [N] of orientations."""
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        _log.info("the record of an earlier scan, %s, cannot be read: %s", file, error.strerror)
        return None
    seal, body = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
    if len(body) != count * (_DIGEST_BYTES + 1) or seal != hashlib.sha256(key.encode() + body).digest():
        _log.info("the record of an earlier scan, %s, is damaged: the pictures are looked at anew", file)
        return None
    # What was of use last is removed last; a folder that is read-only is never cleared.
    with contextlib.suppress(OSError):
        os.utime(file)
    turns = np.frombuffer(body[count * _DIGEST_BYTES :], np.uint8).astype(np.int32)
    text = body[: count * _DIGEST_BYTES].hex()
    step = 2 * _DIGEST_BYTES
    return Scan([text[at : at + step] for at in range(0, step * count, step)], turns)


def _write_record(file: Path, key: str, found: Scan) -> None:
    body = bytes.fromhex("".join(found.digests)) + found.orientations.astype(np.uint8).tobytes()
    try:
        write_bytes(file, hashlib.sha256(key.encode() + body).digest() + body)
    except OSError as error:
        _log.info("the scan is not recorded in %s: %s", file.parent, error.strerror)
        return
    # Another process may remove the same files.
    with contextlib.suppress(OSError):
        _remove_oldest(file.parent)


def _remove_oldest(folder: Path) -> None:
    with os.scandir(folder) as entries:
        files = sorted(entries, key=lambda entry: entry.stat().st_mtime_ns)
    # Parts that a crash left behind go the same way.
    for entry in files[:-RECORDS_KEPT]:
        os.unlink(entry.path)
