"""`joined:["folder:a","table:b.csv"]`: several sources as one; what --source given several times comes to."""

import dataclasses
import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from trainer.data.layouts import usual_split
from trainer.data.sources.base import (
    SOURCES,
    Source,
    SourceOptions,
    check_source,
    gives_several,
    label_tuples,
    open_source,
)
from trainer.values import UsageError, composed, half_in

_log = logging.getLogger("trainer")
_USUAL = ("train", "validation", "test")


def parts_of(address: str, *, flag: str) -> list[str]:
    """Returns the addresses of the sources that are joined.

    Raises:
      UsageError: it is no JSON list of two sources or more.
    """
    try:
        found = json.loads(address)
        fits = isinstance(found, list) and len(found) > 1 and all(isinstance(one, str) for one in found)
    except ValueError:
        fits = False
    if not fits:
        raise UsageError(
            f'{flag}: expected a list such as ["folder:a","table:b.csv"]; or give --source twice'
        )
    if half := half_in("".join(found)):
        raise UsageError(f"{flag}: half of a character ({half}) is in no path")
    if twice := [one for one, count in Counter(found).items() if count > 1]:
        raise UsageError(f"--source={twice[0]} is given twice: its pictures would count double")
    return found


def check_joined(address: str, *, flag: str) -> None:
    """Raises UsageError where one of the sources cannot be one."""
    for one in parts_of(address, flag=flag):
        check_source(one)
        SOURCES.choose(one).check()


@dataclass
class JoinedSource:
    """A Source of the examples of others: split by split, and in each split source by source.

    Attributes:
      origins: what each source is called, in the ids as `ORIGIN/ID`.
    """

    name: str
    class_names: tuple[str, ...]
    ids: list[str]
    labels: np.ndarray
    native_splits: dict[str, tuple[int, int]]
    groups: np.ndarray | None
    weights: np.ndarray | None
    left_out: list[tuple[str, str]]
    origins: list[str]
    sources: list[Source]
    places: np.ndarray
    """[N, 2] int64: which source, and where in it."""
    sorted_by_class: bool = field(default=True)

    def read(self, index: int) -> bytes:
        if not 0 <= index < len(self.ids):
            raise IndexError(index)
        source, place = self.places[index].tolist()
        return self.sources[source].read(place)

    def load(self) -> None:
        for source in self.sources:
            source.load()

    def stamp(self) -> str | None:
        stamps = [source.stamp() for source in self.sources]
        if not all(stamps):
            return None
        return hashlib.sha256(json.dumps([self.name, *stamps]).encode()).hexdigest()


@SOURCES.register("joined", address='["SOURCE","SOURCE",...]', check=check_joined)
def open_joined(address: str, *, name: str, options: SourceOptions) -> JoinedSource:
    """Several sources as one, whose classes are matched by name: what --source given twice comes to."""
    check_joined(address, flag=f"--source={name}")
    addresses = parts_of(address, flag=f"--source={name}")
    named = any(re.match(r"[A-Za-z_]", part) and part != "rest" for part in options.splits.split(","))
    each = dataclasses.replace(
        options,
        # Ranges have the names of splits of all sources together.
        splits="auto" if named else options.splits,
        memory_budget_bytes=options.memory_budget_bytes // len(addresses),
    )
    sources = [open_source(one, each) for one in addresses]
    origins = origins_of(addresses)
    counts = ", ".join(f"{len(one.ids):,} of {origin}" for one, origin in zip(sources, origins, strict=True))
    _log.info("joined: %s", counts)
    class_names = _class_names(sources)
    rows, native = _in_order(sources, origins)
    return JoinedSource(
        name,
        class_names,
        [f"{origins[source]}/{sources[source].ids[place]}" for source, place in rows],
        _labels(sources, class_names, rows),
        native,
        _groups(sources, origins, rows),
        _weights(sources, rows),
        [
            (f"{origin}/{place}", reason)
            for source, origin in zip(sources, origins, strict=True)
            for place, reason in getattr(source, "left_out", ())
        ],
        origins,
        sources,
        np.array(rows, np.int64).reshape(-1, 2),
    )


def origins_of(addresses: Sequence[str]) -> list[str]:
    """Returns a short name for each source, all different, which --splits can name."""
    shorts = []
    for address in addresses:
        last = address.rstrip("/").replace(":", "/").rsplit("/", 1)[-1]
        shorts.append(re.sub(r"\W+", "_", last.rpartition(".")[0] or last).strip("_") or "source")
    counts, taken, found = Counter(shorts), {*shorts}, []
    for number, short in enumerate(shorts, start=1):
        made = short
        if counts[short] > 1:
            made = f"{short}_{number}"
            while made in taken:
                made += "_"
            taken.add(made)
        found.append(made)
    return found


def _class_names(sources: Sequence[Source]) -> tuple[str, ...]:
    first = [*map(composed, sources[0].class_names)]
    if all([*map(composed, source.class_names)] == first for source in sources):
        return tuple(first)
    found = sorted({composed(name) for source in sources for name in source.class_names})
    if all(re.fullmatch(r"[0-9]+", name) for name in found):
        found.sort(key=int)
    for source in sources:
        own = {composed(name) for name in source.class_names}
        if strange := own - {
            composed(n) for other in sources if other is not source for n in other.class_names
        }:
            _log.warning(
                "%s: of the sources joined, no other has %s", source.name, ", ".join(sorted(strange)[:10])
            )
    return tuple(found)


def _labels(
    sources: Sequence[Source], class_names: Sequence[str], rows: Sequence[tuple[int, int]]
) -> np.ndarray:
    place = {name: number for number, name in enumerate(class_names)}
    numbers = [[place[composed(name)] for name in source.class_names] for source in sources]
    if any(map(gives_several, sources)):
        found: list[list[int]] = []
        for at, where in rows:
            label = sources[at].labels[where]
            found.append([numbers[at][k] for k in (label if isinstance(label, tuple) else (int(label),))])
        return label_tuples(found)
    new = [np.array(one, np.int64)[source.labels] for one, source in zip(numbers, sources, strict=True)]
    return np.array([new[at][where] for at, where in rows], np.int64)


def _in_order(
    sources: Sequence[Source], origins: Sequence[str]
) -> tuple[list[tuple[int, int]], dict[str, tuple[int, int]]]:
    """Returns (source, position) of all examples, split by split, and where splits begin and end."""
    own = [dict(source.native_splits) for source in sources]
    if not any(own):
        # Nobody says what is to be tested: each source can be named as a split.
        usual = [usual_split(origin) for origin in origins]
        names = usual if all(usual) and len(set(usual)) == len(usual) else list(origins)
        own = [{name: (0, len(source.ids))} for name, source in zip(names, sources, strict=True)]
    for splits, source, origin in zip(own, sources, origins, strict=True):
        if not splits:
            splits["train"] = 0, len(source.ids)
            _log.info("%s has no splits of its own, as others have: all of it is train", origin)
    every = dict.fromkeys(name for splits in own for name in splits)
    rows: list[tuple[int, int]] = []
    native: dict[str, tuple[int, int]] = {}
    for name in sorted(every, key=lambda one: _USUAL.index(one) if one in _USUAL else len(_USUAL)):
        start = len(rows)
        for number, splits in enumerate(own):
            rows += [(number, place) for place in range(*splits.get(name, (0, 0)))]
        native[name] = start, len(rows)
    return rows, native


def _groups(
    sources: Sequence[Source], origins: Sequence[str], rows: Sequence[tuple[int, int]]
) -> np.ndarray | None:
    """Returns the groups where sources have any; what another source has is a group of its own each."""
    groups = [getattr(source, "groups", None) for source in sources]
    if all(one is None for one in groups):
        return None
    found = [
        f"\0{origins[at]}/{sources[at].ids[place]}" if (of := groups[at]) is None else of[place]
        for at, place in rows
    ]
    return np.array(found, object)


def _weights(sources: Sequence[Source], rows: Sequence[tuple[int, int]]) -> np.ndarray | None:
    weights = [getattr(source, "weights", None) for source in sources]
    if all(one is None for one in weights):
        return None
    return np.array([1.0 if (of := weights[at]) is None else of[place] for at, place in rows])
