"""One look at every encoded picture before training: its digest, and whether training can decode it."""

import contextlib
import hashlib
import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import PIL
import simplejpeg
import tensorflow as tf

from trainer.data.decode import ANY, Known
from trainer.data.inspect import headers
from trainer.data.inspect.bad_pictures import BadPictureError
from trainer.data.inspect.headers import MAX_PIXELS
from trainer.data.inspect.trial import Trial
from trainer.data.sources.base import Source
from trainer.store.files import PART_PREFIX, write_bytes
from trainer.store.provenance import code_digest

_log = logging.getLogger("trainer")
# Pictures that one task looks at: 70,000 tasks of one picture would take 100 MB of memory.
TASK_EXAMPLES = 64
RECORDS_KEPT = 50
# So many take ten seconds or more, which a line explains.
_MANY_EXAMPLES = 10_000
_DIGEST_BYTES = 32
# Digest, orientation, and why it is bad or what is used of it.
_Found = tuple[str, int, BadPictureError | int | None]
# Whether some are WebP, the shortest side and the longest, in px: of none to begin with.
_Kinds = tuple[bool, int, int]
_NO_KINDS: _Kinds = (False, 2**31 - 1, 0)
_OURS = re.compile(rf"[0-9a-f]{{{2 * _DIGEST_BYTES}}}\.scan|{re.escape(PART_PREFIX)}.*")


@dataclass(frozen=True)
class Scan:
    """What was found, by position in the source's order.

    `digests[i]` is the SHA-256 of the encoded bytes in hex; `orientations` is [N] int32, the EXIF
    orientation 1 to 8 that the decoder applies (all 1 with --exif=ignore). `bad` holds the positions
    of pictures that cannot be used, in order, each with the reason; their digests are empty. `used` holds,
    of JPEGs that a decoder complains of although no pixel is lost, what `jpeg_check.cleaned` needs. `known`
    is what holds for all that can be used.
    """

    digests: list[str]
    orientations: np.ndarray
    bad: Mapping[int, str] = field(default_factory=dict)
    used: Mapping[int, int] = field(default_factory=dict)
    known: Known = ANY


def scan(
    source: Source,
    *,
    exif: str = "apply",
    max_pixels: int = MAX_PIXELS,
    recorded: Path | None = None,
    plugins: Sequence[bytes] = (),
) -> Scan:
    """Decodes every picture for trial, or returns what an earlier scan found where nothing changed.

    Nothing changed where the source's stamp, its ids, the options, the code that looks and the
    libraries that decode are the same. A record that is damaged, or cannot be written, costs a line in
    the log and a scan.

    Args:
      source: whose pictures.
      exif: apply or ignore.
      max_pixels: a picture with more is a bad one.
      recorded: the folder of earlier scans; None neither reads nor writes any.
      plugins: source of what comes from outside and makes pictures.

    Raises:
      TrainerError: a picture vanished meanwhile, or there is too little memory for one.
    """
    stamp = source.stamp() if recorded else None
    if recorded is None or stamp is None:
        return _look_at_all(source, exif, max_pixels)[0]
    key = _key(source, stamp, exif, max_pixels, plugins)
    file = recorded / f"{key}.scan"
    if found := _read_record(file, key, len(source.ids)):
        return found
    found, lasting = _look_at_all(source, exif, max_pixels)
    # A picture that was changed meanwhile was looked at before or after: nobody knows.
    if lasting and source.stamp() == stamp:
        _write_record(file, key, found)
    return found


def _look_at_all(source: Source, exif: str, max_pixels: int) -> tuple[Scan, bool]:
    """Returns what is found, and whether a later look at the same files would find the same."""
    count = len(source.ids)
    source.load()
    if count >= _MANY_EXAMPLES:
        _log.info("%s: decoding %s pictures once, to see that each can be", source.name, f"{count:,}")

    def look(start: int) -> tuple[list[_Found], _Kinds]:
        found: list[_Found] = []
        kinds = [_NO_KINDS]
        for index in range(start, min(start + TASK_EXAMPLES, count)):
            try:
                data = source.read(index)
                info = tried.check(data, name=source.ids[index], exif=exif, max_pixels=max_pixels)
            except BadPictureError as error:
                found.append(("", 1, error))
                continue
            sides = info.width_px, info.height_px
            kinds.append((info.format == "WebP", min(sides), max(sides)))
            found.append((hashlib.sha256(data).hexdigest(), info.orientation, info.used))
        return found, _joined(kinds)

    tried = Trial()
    # Whatever interrupts it, Ctrl-C as well: `map` then has no more tasks begun.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        parts = list(pool.map(look, range(0, count, TASK_EXAMPLES)))
    found = [row for part, _ in parts for row in part]
    errors = {at: row[2] for at, row in enumerate(found) if isinstance(row[2], BadPictureError)}
    used = {at: row[2] for at, row in enumerate(found) if isinstance(row[2], int)}
    digests, turns = [row[0] for row in found], np.array([row[1] for row in found], np.int32)
    bad = {index: error.reason for index, error in errors.items()}
    has_webp, *sides = _joined([_NO_KINDS, *(kinds for _, kinds in parts)])
    known = Known(bool((turns == 1).all()), has_webp, (sides[0], sides[1]))
    return Scan(digests, turns, bad, used, known), all(error.lasting for error in errors.values())


def _joined(kinds: Sequence[_Kinds]) -> _Kinds:
    webp, shortest, longest = zip(*kinds, strict=True)
    return any(webp), min(shortest), max(longest)


def _key(source: Source, stamp: str, exif: str, max_pixels: int, plugins: Sequence[bytes]) -> str:
    """Returns 64 hex digits that differ where a scan could find something else."""
    code = code_digest("trainer.data.inspect.trial", alone=[__name__], plugins=plugins)
    libraries = (PIL.__version__, tf.__version__, simplejpeg.__version__)
    parts = [source.name, stamp, exif, str(max_pixels), code, *libraries, *source.ids]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _read_record(file: Path, key: str, count: int) -> Scan | None:
    """Reads a record: a SHA-256 of the key and the rest, [N, 32] of digests, [N] of orientations, JSON.

    The JSON is {position: reason} of the bad pictures, {position: number} of `used`, and what is known of
    all.
    """
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        _log.info("the record of an earlier scan, %s, cannot be read: %s", file, error.strerror)
        return None
    seal, body = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
    if seal != hashlib.sha256(key.encode() + body).digest():
        _log.info("the record of an earlier scan, %s, is damaged: the pictures are looked at anew", file)
        return None
    # What was of use last is removed last; a folder that is read-only is never cleared.
    with contextlib.suppress(OSError):
        os.utime(file)
    turns_at, bad_at = count * _DIGEST_BYTES, count * (_DIGEST_BYTES + 1)
    turns = np.frombuffer(body[turns_at:bad_at], np.uint8).astype(np.int32)
    *parts, (is_upright, has_webp, shortest, longest) = json.loads(body[bad_at:])
    bad, used = ({int(index): of for index, of in part.items()} for part in parts)
    text, step = body[:turns_at].hex(), 2 * _DIGEST_BYTES
    digests = ["" if i in bad else text[i * step : (i + 1) * step] for i in range(count)]
    return Scan(digests, turns, bad, used, Known(is_upright, has_webp, (shortest, longest)))


def _write_record(file: Path, key: str, found: Scan) -> None:
    digests = bytes.fromhex("".join(digest or "00" * _DIGEST_BYTES for digest in found.digests))
    known = found.known
    of_all = [known.is_upright, known.has_webp, *known.sides_px]
    rest = json.dumps([dict(found.bad), dict(found.used), of_all]).encode()
    body = digests + found.orientations.astype(np.uint8).tobytes() + rest
    try:
        write_bytes(file, hashlib.sha256(key.encode() + body).digest() + body)
    except OSError as error:
        _log.info("the scan is not recorded in %s: %s", file.parent, error.strerror)
        return
    # Another process may remove the same files.
    with contextlib.suppress(OSError):
        _remove_oldest(file.parent)


def _remove_oldest(folder: Path) -> None:
    # Parts that a crash left behind go the same way. What else is there is not ours: --cache_dir may be any
    # folder, and somebody's scans lie in one of that name.
    with os.scandir(folder) as entries:
        ours = [entry for entry in entries if _OURS.fullmatch(entry.name)]
    files = sorted(ours, key=lambda entry: entry.stat().st_mtime_ns)
    for entry in files[:-RECORDS_KEPT]:
        os.unlink(entry.path)


def typical_area(source: Source, indices: np.ndarray, *, sample: int = 101) -> float:
    """Returns the median area in px of pictures at positions [n] of a source, of at most `sample` of them."""
    chosen = indices[np.linspace(0, len(indices) - 1, min(sample, len(indices))).astype(int)]
    infos = [
        headers.inspect_picture(source.read(int(i)), name=source.ids[int(i)], max_pixels=2**62)
        for i in chosen
    ]
    return float(np.median([info.width_px * info.height_px for info in infos]))
