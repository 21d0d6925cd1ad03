"""Pictures that are the same one: rescaled, recompressed, mirrored, recoloured, or a few per cent smaller.

Candidates are those whose coarse grey values are alike. A perceptual hash of 255 bits confirms them: the
signs of the lowest frequencies of a cosine transform (as pHash: Zauner, 2010, "Implementation and
Benchmarking of Perceptual Image Hash Functions"). It is taken of the whole picture and of 256 parts of it
with up to 9 % of each side cut off, and the whole of one is compared with the parts of the other, as plain
hashes change with every crop. A mirrored picture has the same coefficients with the odd ones' signs turned.
It is a few lines of NumPy on a picture that is decoded here anyway; ImageHash would bring PyWavelets, and has
no parts.

No network is needed, because pictures are divided before there is one, and features are kept by split.
"""

import dataclasses
import functools
import hashlib
import itertools
import logging
import time
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trainer.data.inspect.scan import Scan
from trainer.data.pipeline import Pipeline
from trainer.data.sources import Source
from trainer.store.files import read_json, write_json
from trainer.store.provenance import code_digest
from trainer.tasks import Task
from trainer.values import Contract, TrainerError

_log = logging.getLogger("trainer")
SIDE_PX = 64
BITS_APART = 30
"""Of 255, up to which two hashes are of one picture.

Copies of photos differ by 21 or less; other flowers before a plain ground by 32 or more.
"""
ALIKE = 0.6
"""Cosine of the coarse values from which two pictures are compared bit by bit; copies have 0.7 or more."""
NOISE = 0.1
"""Of 255, the amplitude of a wave below which its sign is that of compression; smooth pictures have many."""
LEAST_CLEAR = 48
"""How many bits two pictures are compared by at least: a plain one is nobody's copy."""
NEIGHBOURS = 10
"""Most similar pictures that each is compared with, as they are and mirrored."""
_BATCH_SIZE, _BLOCK = 32, 1024
_COARSE, _FINE = 8, 16
_CUT_OFF = (0.0, 0.03, 0.06, 0.09)
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(frozen=True)
class Pair:
    """Two pictures that are one.

    `first` and `second` are positions in the source, the first one lower; `bits` is how many of 255 differ in
    their hashes.
    """

    first: int
    second: int
    bits: int


@dataclass(frozen=True)
class _Hashes:
    """Hashes of a picture and of parts of it, [P, 32] uint8, the whole first.

    `clear` [32] uint8 has the `num_clear` bits of the whole that stand for more than noise.
    """

    parts: np.ndarray
    clear: np.ndarray
    num_clear: int


def find_near_duplicates(
    source: Source, scan: Scan, *, task: Task, recorded: Path | None = None, plugins: Sequence[bytes] = ()
) -> list[Pair]:
    """Finds pairs of pictures that are one, those with the fewest bits between them first.

    Of many that are all alike, there are not all pairs, but enough that each hangs together with the others.

    Args:
      source: whose pictures.
      scan: what is known of them; bad ones are left out.
      task: what their labels are, which do not matter.
      recorded: the folder of earlier searches, of which one of the same pictures is taken; None: none.
      plugins: source of what comes from outside and makes pictures.
    """
    key = _key(scan, plugins)
    file = recorded / f"{key}.json" if recorded else None
    if file and (found := _read(file, len(source.ids))) is not None:
        return found
    begun = time.perf_counter()
    whole, same = _unlike(scan)
    grey = _grey(source, scan, whole, task)
    # Positions rise, as those in the source do.
    pairs = [Pair(int(whole[i]), int(whole[j]), bits) for i, j, bits in pairs_of(grey)]
    pairs += [Pair(first, second, 0) for first, second in same]
    pairs.sort(key=lambda pair: (pair.bits, pair.first, pair.second))
    secs = time.perf_counter() - begun
    _log.info("near duplicates: %s pictures compared in %.1f s", f"{len(source.ids):,}", secs)
    if file:
        try:
            write_json(file, {"pairs": [dataclasses.astuple(pair) for pair in pairs]}, indent=None)
        except OSError as error:
            _log.info("the search is not recorded in %s: %s", file.parent, error.strerror)
    return pairs


def group_keys(pairs: Sequence[Pair], num_pictures: int) -> list[int]:
    """Returns [N] the group of each picture, by its first one: what pairs connect is one group."""
    leader = list(range(num_pictures))

    def first_of(at: int) -> int:
        while leader[at] != at:
            leader[at] = leader[leader[at]]
            at = leader[at]
        return at

    for pair in pairs:
        one, other = sorted((first_of(pair.first), first_of(pair.second)))
        leader[other] = one
    return [first_of(at) for at in range(num_pictures)]


def united(pairs: Sequence[Pair], groups: np.ndarray | None, num_pictures: int) -> np.ndarray:
    """Returns [N] the group of each picture, where those of `groups` [N] stay together, too."""
    links, last = [], dict[Hashable, int]()
    for at, group in enumerate(() if groups is None else groups.tolist()):
        links += [Pair(last[group], at, 0)] if group in last else []
        last[group] = at
    return np.array(group_keys([*pairs, *links], num_pictures))


def pairs_of(grey: np.ndarray) -> list[tuple[int, int, int]]:
    """Finds pairs in pictures.

    Args:
      grey: [N, SIDE_PX, SIDE_PX] uint8.

    Returns:
      (place, a higher place, bits between them), in order.
    """
    import threadpoolctl  # Late, as whatever scikit-learn needs.

    # Several threads wait for one another longer than these small products take.
    with threadpoolctl.threadpool_limits(1):
        candidates = sorted({*_candidates(_coarse(grey))})
        parts = {at: _hashes(grey[at]) for at in sorted({at for pair in candidates for at in pair})}
    odd = np.packbits(_bits_taken(np.broadcast_to(np.arange(_FINE) % 2 == 1, (_FINE, _FINE))))
    found = []
    for i, j in candidates:
        apart = min(
            _apart(parts[i], parts[j], turned) for i, j in ((i, j), (j, i)) for turned in (np.uint8(0), odd)
        )
        if apart <= BITS_APART:
            found.append((i, j, apart))
    return found


def _apart(some: _Hashes, other: _Hashes, turned: np.ndarray | np.uint8) -> int:
    """Returns by how many bits of 255 the part of one picture that is most like the other differs from it."""
    if other.num_clear < LEAST_CLEAR:
        return 255
    differing = (some.parts ^ other.parts[0] ^ turned) & other.clear
    return round(255 * int(np.bitwise_count(differing).sum(axis=1, dtype=np.int64).min()) / other.num_clear)


def _unlike(scan: Scan) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Returns the positions of pictures with different bytes, and pairs of those with the same bytes."""
    by_bytes: defaultdict[tuple[str, int], list[int]] = defaultdict(list)
    for at, digest in enumerate(scan.digests):
        if at not in scan.bad:
            by_bytes[digest, int(scan.orientations[at])].append(at)
    same = [pair for group in by_bytes.values() for pair in itertools.pairwise(group)]
    return np.array([group[0] for group in by_bytes.values()], np.int64), same


def _grey(source: Source, scan: Scan, indices: np.ndarray, task: Task) -> np.ndarray:
    """Returns pictures in grey, stretched to a square: [n, SIDE_PX, SIDE_PX] uint8."""
    contract = Contract(SIDE_PX, SIDE_PX, (0.0, 1.0), 0, any_size=True, antialias=True)
    pipeline = Pipeline(
        source, scan, contract=contract, batch_size=_BATCH_SIZE, seed=0, decoding="scaled", task=task
    )
    source.load()
    found = np.empty((len(indices), SIDE_PX, SIDE_PX), np.uint8)
    done = 0
    for batch in pipeline.once(indices):
        images = batch["image"].numpy()[batch["mask"].numpy() > 0]
        found[done : done + len(images)] = np.clip(images, 0, 1) @ _LUMA * 255 + 0.5
        done += len(images)
    return found


def _coarse(grey: np.ndarray) -> np.ndarray:
    """Returns the lowest frequencies of pictures, weighed as they fall off in photos: [N, 63] of length 1."""
    transform = _cosines(_COARSE)
    rows = np.einsum("ks,nst->nkt", transform, grey, dtype=np.float32, casting="unsafe", optimize=True)
    values = (rows @ transform.T).reshape(len(grey), -1)[:, 1:]
    place = np.arange(_COARSE)
    values *= np.sqrt(place[:, None] ** 2.0 + place[None, :] ** 2.0).reshape(-1)[1:]
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-6)


def _candidates(coarse: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yields (place, higher one) of each picture and those most like it, as they are or mirrored."""
    count = min(NEIGHBOURS, len(coarse) - 1)
    turned = coarse * np.where(np.arange(_COARSE**2) % _COARSE % 2 == 1, -1, 1)[1:].astype(np.float32)
    for start in range(0, len(coarse) if count > 0 else 0, _BLOCK):
        part = coarse[start : start + _BLOCK]
        alike = np.maximum(part @ coarse.T, part @ turned.T)
        alike[np.arange(len(part)), np.arange(start, start + len(part))] = -1
        nearest = np.argpartition(-alike, count - 1, axis=1)[:, :count]
        rows, columns = np.nonzero(np.take_along_axis(alike, nearest, axis=1) >= ALIKE)
        for i, j in zip((rows + start).tolist(), nearest[rows, columns].tolist(), strict=True):
            yield min(i, j), max(i, j)


def _hashes(grey: np.ndarray) -> _Hashes:
    """Returns the hashes of a picture [SIDE_PX, SIDE_PX] and of parts of it."""
    windows = _windows()
    rows = windows @ (grey.astype(np.float32) - 128)
    count = len(_CUT_OFF) ** 2
    values = (rows @ windows.T).reshape(count, _FINE, count, _FINE).transpose(0, 2, 1, 3)
    values = _bits_taken(values.reshape(-1, _FINE, _FINE))
    is_clear = np.abs(values[0]) >= NOISE
    return _Hashes(np.packbits(values > 0, axis=-1), np.packbits(is_clear), int(is_clear.sum()))


def _bits_taken(bits: np.ndarray) -> np.ndarray:
    """Returns [..., 255] of bits [..., 16, 16]: the first is of the mean."""
    return bits.reshape(*bits.shape[:-2], -1)[..., 1:]


@functools.cache
def _cosines(count: int, start: float = 0.0, stop: float = 1.0) -> np.ndarray:
    """Returns the cosine transform of the part of a line from `start` to `stop`: [count, SIDE_PX] float32."""
    at = (np.arange(SIDE_PX) + 0.5) / SIDE_PX
    inside = (at >= start) & (at <= stop)
    waves = np.cos(np.pi * np.arange(count)[:, None] * (at - start) / (stop - start))
    return (waves * inside / inside.sum()).astype(np.float32)


@functools.cache
def _windows() -> np.ndarray:
    """Returns the transforms of a line, and then of parts of it, one below the other: [W * 16, SIDE_PX]."""
    return np.concatenate([_cosines(_FINE, low, 1 - high) for low in _CUT_OFF for high in _CUT_OFF])


def _key(scan: Scan, plugins: Sequence[bytes]) -> str:
    """Returns 64 hex digits that differ where a search could find something else."""
    code = code_digest(__name__, plugins=plugins)
    pictures = [f"{digest} {turn}" for digest, turn in zip(scan.digests, scan.orientations, strict=True)]
    return hashlib.sha256("\0".join([code, *pictures]).encode()).hexdigest()


def _read(file: Path, count: int) -> list[Pair] | None:
    """Returns the pairs that an earlier search recorded; None where there is none that is whole."""
    if not file.exists():
        return None
    try:
        rows: Mapping[str, list[tuple[int, int, int]]] = read_json(file, {"pairs": [(int, int, int)]})
    except (OSError, TrainerError) as error:
        _log.info("the record of an earlier search is not used: %s", error)
        return None
    pairs = [Pair(*row) for row in rows["pairs"]]
    return pairs if all(0 <= pair.first < pair.second < count for pair in pairs) else None
