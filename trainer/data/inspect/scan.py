"""One look at every encoded picture before training: digest, stamp, whether it can be decoded."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import simplejpeg
import tensorflow as tf

from trainer.data.decode import decode
from trainer.data.inspect import headers
from trainer.data.inspect.bad_pictures import BadPictureError
from trainer.data.inspect.headers import MAX_PIXELS, PictureInfo, inspect_picture
from trainer.data.inspect.jpeg_check import cleaned, is_common, used_codes
from trainer.data.sources.base import Source
from trainer.store.files import PART_PREFIX, write_bytes
from trainer.store.provenance import code_digest
from trainer.values import TrainerError

# Of all pictures that are decoded at once: 3 bytes each, and up to 10 where a progressive one is turned.
PIXELS_AT_ONCE = 2**26


class Trial:
    """Decodes pictures as training will, in any number of threads at once."""

    def __init__(self) -> None:
        self._decode = _decoder()
        self._room = _Room(PIXELS_AT_ONCE)

    def check(
        self, data: bytes, *, name: str, exif: str = "apply", max_pixels: int = MAX_PIXELS
    ) -> PictureInfo:
        """Decodes a picture in full, and returns what is known of it, with the orientation to apply.

        Args:
          data: the encoded picture.
          name: what the message calls it.
          exif: apply or ignore the orientation.
          max_pixels: a picture with more is not decoded.

        Raises:
          BadPictureError: it cannot be decoded, or pixels of it are lost.
          TrainerError: there is too little memory for it.
        """
        info = inspect_picture(data, name=name, max_pixels=max_pixels)
        orientation = info.orientation if exif == "apply" else 1
        with self._room.take(info.width_px * info.height_px):
            used = require_whole(data, info, name=name)
            info = dataclasses.replace(info, orientation=orientation, used=used)
            # The two decoders of common JPEGs are one library.
            if info.format != "JPEG" or not is_common(data):
                with told_by_tensorflow(info, name=name):
                    height, width, _ = self._decode(
                        tf.constant(cleaned(data, used)), tf.constant(orientation)
                    ).shape
                require_size(height, width, info, name=name)
        return info


def require_whole(data: bytes, info: PictureInfo, *, name: str) -> int | None:
    """Refuses a JPEG that has lost pixels; of all other formats TensorFlow tells when it decodes them.

    Returns:
      What `jpeg_check.used_codes` does; None for other formats.

    Raises:
      BadPictureError: it has.
      TrainerError: there is too little memory to tell.
    """
    try:
        return used_codes(data) if info.format == "JPEG" else None
    except MemoryError:
        raise _too_little_memory(info) from None
    except ValueError as error:
        raise BadPictureError(name, str(error)) from None


@contextlib.contextmanager
def told_by_tensorflow(info: PictureInfo, *, name: str) -> Iterator[None]:
    """Turns an error of TensorFlow's decoder into one that names the picture."""
    try:
        yield
    except tf.errors.ResourceExhaustedError:
        raise _too_little_memory(info) from None
    except tf.errors.OpError as error:
        # Where the function was made comes first, over many lines, and which node it was, last.
        told = error.message.split("\n\t [[")[0].strip().splitlines()[-1]
        raise BadPictureError(name, f"it cannot be decoded: {told}") from None


def require_size(height: int, width: int, info: PictureInfo, *, name: str) -> None:
    """Refuses a picture that, turned upright, has another size than its header says.

    Raises:
      BadPictureError: it has.
    """
    stored = (info.width_px, info.height_px)
    if (width, height) != (stored if info.orientation < 5 else stored[::-1]):
        raise BadPictureError(
            name,
            f"it cannot be decoded: {width}x{height} px come out, not {info.width_px}x{info.height_px}: "
            "save it as PNG",
        )


def _too_little_memory(info: PictureInfo) -> TrainerError:
    size = f"{info.width_px}x{info.height_px} px"
    return TrainerError(f"too little memory to decode a picture of {size}: lower --max_pixels")


@functools.cache
def _decoder() -> Callable[[tf.Tensor, tf.Tensor], Any]:
    """Returns `decode`, traced once for all."""

    def on_cpu(encoded: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
        # As in a pipeline: turning a picture is nothing to send it to a GPU for.
        with tf.device("/CPU:0"):
            return decode(encoded, orientation)

    text, number = tf.TensorSpec([], tf.string), tf.TensorSpec([], tf.int32)
    return tf.function(on_cpu, autograph=False).get_concrete_function(text, number)


class _Room:
    """So and so many places, which tasks take some of; who wants more than there are gets them all."""

    def __init__(self, places: int):
        self._places, self._taken = places, 0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def take(self, count: int) -> Iterator[None]:
        count = min(count, self._places)
        with self._changed:
            self._changed.wait_for(lambda: self._taken + count <= self._places)
            self._taken += count
        try:
            yield
        finally:
            with self._changed:
                self._taken -= count
                self._changed.notify_all()


# The coarsest file system in use counts times in steps of 2 s: within one, a file may change once more
# and keep its time.
SETTLED_NS = 2_000_000_000
MOUNTS = Path("/proc/self/mountinfo")
# They number files anew each time that they are mounted, and have no time of the last change of a file's
# name or owner: two files that have changed places look as before.
_FORGETFUL = re.compile(r"vfat|msdos|exfat|9p|fuse.*")
_ESCAPED = re.compile(r"\\([0-7]{3})")


def stamp_files(root: str, names: Iterable[str], *, extra: str = "") -> str | None:
    """Returns a digest of `root`, `extra`, and what the file system says of each file.

    That is its name, its number (inode), its size, and when its contents and its state last changed. No
    program sets the last (ctime), and no two files have one number: what is written anew, moved or
    exchanged shows, whatever its size and mtime. A copy of all files shows as well, though it need not.

    Args:
      root: the folder that the names are paths below.
      names: in a fixed order. Links are followed.
      extra: what else must be the same.

    Returns:
      64 hex digits; None where a file cannot be looked at, was modified within the last 2 seconds, or lies
      on a file system that does not tell its files apart.
    """
    if _is_forgetful(root):
        return None
    settled_ns = time.time_ns() - SETTLED_NS
    digest = hashlib.sha256(f"{root}\0{extra}\0".encode())
    try:
        for name in names:
            stat = os.stat(f"{root}/{name}")
            if stat.st_mtime_ns > settled_ns or not stat.st_ino:
                return None
            numbers = (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
            digest.update(f"{name}\0{numbers}\0".encode())
    except OSError:
        return None
    return digest.hexdigest()


def _is_forgetful(root: str) -> bool:
    """Tells whether a folder lies on a file system whose numbers of files do not last, as far as is known."""
    try:
        mounts = [line.split(" - ") for line in MOUNTS.read_text().splitlines()]
        path = os.path.realpath(root)
    except OSError:  # Not on Linux.
        return False
    kinds = {}
    for place, kind in mounts:
        folder = _ESCAPED.sub(lambda code: chr(int(code[1], 8)), place.split(" ")[4])
        if f"{path}/".startswith(f"{folder.rstrip('/')}/"):
            # Of those that lie on one another, the last is seen.
            kinds[folder] = kind.split(" ")[0]
    return bool(kinds) and bool(_FORGETFUL.fullmatch(kinds[max(kinds, key=len)]))


_log = logging.getLogger("trainer")
# Pictures that one task looks at: 70,000 tasks of one picture would take 100 MB of memory.
TASK_EXAMPLES = 64
RECORDS_KEPT = 50
# So many take ten seconds or more, which a line explains.
_MANY_EXAMPLES = 10_000
_DIGEST_BYTES = 32
# Digest, orientation, and why it is bad or what is used of it.
_Found = tuple[str, int, BadPictureError | int | None]
_OURS = re.compile(rf"[0-9a-f]{{{2 * _DIGEST_BYTES}}}\.scan|{re.escape(PART_PREFIX)}.*")


@dataclass(frozen=True)
class Scan:
    """What was found, by position in the source's order.

    `digests[i]` is the SHA-256 of the encoded bytes in hex; `orientations` is [N] int32, the EXIF
    orientation 1 to 8 that the decoder applies (all 1 with --exif=ignore). `bad` holds the positions
    of pictures that cannot be used, in order, each with the reason; their digests are empty. `used` holds,
    of JPEGs that a decoder complains of although no pixel is lost, what `jpeg_check.cleaned` needs.
    """

    digests: list[str]
    orientations: np.ndarray
    bad: Mapping[int, str] = field(default_factory=dict)
    used: Mapping[int, int] = field(default_factory=dict)


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

    def look(start: int) -> list[_Found]:
        return [look_at(index) for index in range(start, min(start + TASK_EXAMPLES, count))]

    def look_at(index: int) -> _Found:
        try:
            data = source.read(index)
            info = tried.check(data, name=source.ids[index], exif=exif, max_pixels=max_pixels)
        except BadPictureError as error:
            return "", 1, error
        return hashlib.sha256(data).hexdigest(), info.orientation, info.used

    tried = Trial()
    # Whatever interrupts it, Ctrl-C as well: `map` then has no more tasks begun.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        parts = list(pool.map(look, range(0, count, TASK_EXAMPLES)))
    found = [row for part in parts for row in part]
    errors = {at: row[2] for at, row in enumerate(found) if isinstance(row[2], BadPictureError)}
    used = {at: row[2] for at, row in enumerate(found) if isinstance(row[2], int)}
    digests, turns = [row[0] for row in found], np.array([row[1] for row in found], np.int32)
    bad = {index: error.reason for index, error in errors.items()}
    return Scan(digests, turns, bad, used), all(error.lasting for error in errors.values())


def _key(source: Source, stamp: str, exif: str, max_pixels: int, plugins: Sequence[bytes]) -> str:
    """Returns 64 hex digits that differ where a scan could find something else."""
    code = code_digest("trainer.data.inspect.scan", alone=[__name__], plugins=plugins)
    libraries = (PIL.__version__, tf.__version__, simplejpeg.__version__)
    parts = [source.name, stamp, exif, str(max_pixels), code, *libraries, *source.ids]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _read_record(file: Path, key: str, count: int) -> Scan | None:
    """Reads a record: a SHA-256 of the key and the rest, [N, 32] of digests, [N] of orientations, JSON.

    The JSON is {position: reason} of the bad pictures, and {position: number} of `used`.
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
    bad, used = ({int(index): of for index, of in part.items()} for part in json.loads(body[bad_at:]))
    text, step = body[:turns_at].hex(), 2 * _DIGEST_BYTES
    digests = ["" if i in bad else text[i * step : (i + 1) * step] for i in range(count)]
    return Scan(digests, turns, bad, used)


def _write_record(file: Path, key: str, found: Scan) -> None:
    digests = bytes.fromhex("".join(digest or "00" * _DIGEST_BYTES for digest in found.digests))
    rest = json.dumps([dict(found.bad), dict(found.used)]).encode()
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
