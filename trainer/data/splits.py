"""take/skip: train, validation and test as ranges of a source's fixed order."""

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial

import numpy as np

from trainer.data.grouping import divide_groups, in_turn, require_whole, told_groups
from trainer.data.sources import Source
from trainer.data.strata import stratify, stratify_labels
from trainer.tasks import SINGLE_LABEL, Task
from trainer.values import TrainerError, UsageError, composed, in_any_order

SPLIT_NAMES = ("train", "validation", "test")
# Not what else Unicode has for digits.
_NUMBER = "[0-9]+"
_MOST_DIGITS = 15
SHARES_BY_DEFAULT = "80%,10%,10%"
LEAST_FOLDS = 3


@dataclass(frozen=True)
class Splits:
    """Which examples are for what.

    `indices[name]` holds [n] int64 positions in the source's order; `how` says in one line
    what was taken from what, in `order`: source, permuted or stratified. `is_named` says whether they are
    ranges of the splits that the source comes with.
    """

    indices: dict[str, np.ndarray]
    how: str
    order: str = "source"
    is_named: bool = False


@dataclass(frozen=True)
class _Piece:
    """The examples from `start` to `stop` of one of the source's own splits; '' is all it has."""

    split: str
    start: int
    stop: int


def order_of(source: Source, order: str, *, task: Task = SINGLE_LABEL) -> str:
    """Returns which of source, permuted and stratified a value of --split_order stands for with a source."""
    if order not in ("auto", "take_skip"):
        return order
    if order == "auto" and not task.excludes:
        # Labels that few examples have: left to chance, a split would have none of them.
        return "stratified"
    return {"auto": "stratified", "take_skip": "permuted"}[order] if source.sorted_by_class else "source"


def make_splits(
    source: Source,
    spec: str,
    *,
    order: str = "auto",
    seed: int = 42,
    task: Task = SINGLE_LABEL,
    groups: np.ndarray | None = None,
    fold: tuple[int, int] | None = None,
) -> Splits:
    """Divides a source.

    Args:
      source: what to divide.
      spec: shares, counts or named ranges for train, validation and, optionally, test, or auto.
      order: source (as it comes), permuted (by `seed`), stratified (permuted, and each class divided by
        itself); or, where neighbours in the source share a class, auto is stratified and take_skip permuted,
        and elsewhere both are source. Of groups, folds and several labels an example, auto is stratified.
      seed: of the permutation of positions; pictures are never touched.
      task: what labels mean.
      groups: [N] what group each example is of; a group is never in two splits, so that these are as large
        as asked for only as nearly as may be. None: each is one of its own.
      fold: (F, K): all examples are divided into K parts, whatever splits the source comes with; the Fth is
        test, the one after it validation, and the others are train.

    Raises:
      UsageError: the spec cannot be read, overruns the source, or overlaps, or there are no such folds; or a
        group is in two of the splits that the source comes with.
      TrainerError: a split would be empty, or lacks a class in train that another split has; or a class is
        in none.
    """
    if order == "auto" and (fold or groups is not None):
        order = "stratified"
    order = order_of(source, order, task=task)
    if fold:
        return _make_folds(source, fold, spec, order=order, seed=seed, task=task, groups=groups)
    return _make_ranges(source, spec, order=order, seed=seed, task=task, groups=groups)


def _make_ranges(
    source: Source, spec: str, *, order: str, seed: int, task: Task, groups: np.ndarray | None
) -> Splits:
    """Returns the splits that a spec names; see `make_splits`."""
    if spec == "auto":
        spec = _default_spec(source)
    parts = [part.strip() for part in spec.split(",")]
    if not 2 <= len(parts) <= 3:
        raise UsageError(
            f"--splits={spec} must have 2 or 3 parts with commas between them: train, validation and perhaps "
            "test, as in 80%,10%,10%"
        )
    total = len(source.ids)
    named = any(re.match(r"[A-Za-z_]", part) and part != "rest" for part in parts) or all(
        part.partition("[")[0] in source.native_splits for part in parts
    )
    if named:
        pieces = [_named_range(part, source) for part in parts]
        of, unused = spec, 0
    else:
        bounds = np.cumsum([0, *_counts(parts, total, spec)]).tolist()
        pieces = [_Piece("", start, stop) for start, stop in itertools.pairwise(bounds)]
        of, unused = f"{spec} of {total:,}", total - bounds[-1]
    is_whole = named and all(part in source.native_splits for part in parts)
    in_order = "as the source divides them" if is_whole else _told_order(order, seed)
    how = f"{of}, {in_order}" + (f"; {unused:,} left unused" if unused else "")
    taken = _take(pieces, source, order=order, seed=seed, task=task, groups=groups)
    indices = {name: part.astype(np.int64) for name, part in zip(SPLIT_NAMES, taken, strict=False)}
    if groups is not None:
        how += f"; {told_groups(groups)}"
        _require_groups(indices, groups)
    _check(source, indices, spec)
    if groups is not None:
        require_whole(indices, groups, how_out=f"--splits={SHARES_BY_DEFAULT} divides all pictures anew")
    check_classes(source, indices, spec, task=task)
    return Splits(indices, how, order, named)


def _told_order(order: str, seed: int) -> str:
    words = {
        "source": "in the source's order",
        "permuted": f"shuffled (--split_seed={seed})",
        "stratified": f"class by class, shuffled (--split_seed={seed})",
    }
    return words[order]


def _require_groups(indices: dict[str, np.ndarray], groups: np.ndarray) -> None:
    if empty := [name for name, positions in indices.items() if not len(positions)]:
        raise TrainerError(
            f"the {empty[0]} split is empty: there are {len(set(groups.tolist())):,} groups, and each is in "
            "one split as a whole"
        )


def _make_folds(
    source: Source,
    fold: tuple[int, int],
    spec: str,
    *,
    order: str,
    seed: int,
    task: Task,
    groups: np.ndarray | None,
) -> Splits:
    """Returns the splits of a fold; see `make_splits`."""
    number, count = fold
    if spec != "auto":
        raise UsageError(f"--folds={count} and --splits={spec} both divide the pictures: give one")
    if count < LEAST_FOLDS:
        raise UsageError(
            f"--folds={count} must be {LEAST_FOLDS} or more: for test, for validation, and to train with"
        )
    if not 1 <= number <= count:
        raise UsageError(f"--fold={number} must be from 1 to {count}, the number of --folds")
    total = len(source.ids)
    bounds = [total * at // count for at in range(count + 1)]
    pieces = [_Piece("", start, stop) for start, stop in itertools.pairwise(bounds)]
    parts = _take(pieces, source, order=order, seed=seed, task=task, groups=groups)
    test, validation = number - 1, number % count
    others = [part for at, part in enumerate(parts) if at not in (test, validation)]
    indices = {"train": np.concatenate(others), "validation": parts[validation], "test": parts[test]}
    indices = {name: part.astype(np.int64) for name, part in indices.items()}
    how = f"fold {number} of {count} of {total:,}, {_told_order(order, seed)}"
    if groups is not None:
        how += f"; {told_groups(groups)}"
        _require_groups(indices, groups)
        require_whole(indices, groups, how_out="this cannot be")
    _check(source, indices, f"{count} folds")
    # Here a rare class may be missing in train: in another fold it is there.
    return Splits(indices, how, order)


def _take(
    pieces: Sequence[_Piece],
    source: Source,
    *,
    order: str,
    seed: int,
    task: Task,
    groups: np.ndarray | None = None,
) -> list[np.ndarray]:
    """Returns the positions of each piece, in the order that it is taken in."""
    taken: dict[_Piece, np.ndarray] = {}
    for split in dict.fromkeys(piece.split for piece in pieces):
        start, stop = source.native_splits[split] if split else (0, len(source.ids))
        positions = np.arange(start, stop)
        if order != "source":
            positions = np.random.default_rng(seed).permutation(positions)
        wanted = [piece for piece in pieces if piece.split == split]
        is_even = order == "stratified"
        labels = source.labels[positions]
        if groups is not None:
            strata = _strata(task, labels, len(source.class_names)) if is_even else np.zeros_like(positions)
            taken |= _by_group(wanted, positions, groups[positions], strata, in_order=order == "source")
        elif is_even:
            taken |= _by_class(wanted, positions, _dealer(_strata(task, labels, len(source.class_names))))
        else:
            taken |= {piece: positions[piece.start : piece.stop] for piece in wanted}
    return [taken[piece] for piece in pieces]


def _strata(task: Task, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns what is to be spread evenly: kinds, [N] int, or which of K labels each has, [N, K] bool."""
    return task.groups(labels) if task.excludes else task.indicators(labels, num_classes)


def _dealer(strata: np.ndarray) -> Callable[..., list[np.ndarray]]:
    """Returns what divides examples evenly, given sizes and `order` of the parts."""
    return partial(stratify if strata.ndim == 1 else stratify_labels, strata)


def _by_class(
    pieces: Sequence[_Piece], positions: np.ndarray, deal: Callable[..., list[np.ndarray]]
) -> dict[_Piece, np.ndarray]:
    """Returns the positions of pieces of one range: each has its share of every class."""
    sizes, order, of = _cut(pieces, len(positions))
    return _joined(pieces, positions, deal(sizes, order=order), of)


def _by_group(
    pieces: Sequence[_Piece],
    positions: np.ndarray,
    groups: np.ndarray,
    strata: np.ndarray,
    *,
    in_order: bool,
) -> dict[_Piece, np.ndarray]:
    """Returns the positions of pieces of one range, with whole groups."""
    sizes, by_need, of = _cut(pieces, len(positions))
    if in_order:
        return _joined(pieces, positions, in_turn(groups, sizes), of)
    return _joined(pieces, positions, divide_groups(groups, strata, sizes, order=by_need), of)


def _cut(pieces: Sequence[_Piece], count: int) -> tuple[list[int], list[int], Mapping[_Piece, list[int]]]:
    """Cuts a range where pieces begin and end.

    Returns:
      The sizes of the parts, their numbers in the order of need, and the parts of each piece.
    """
    cuts = sorted({0, count, *(bound for piece in pieces for bound in (piece.start, piece.stop))})
    sizes = [stop - start for start, stop in itertools.pairwise(cuts)]
    of = {piece: [i for i, at in enumerate(cuts[:-1]) if piece.start <= at < piece.stop] for piece in pieces}
    # A rare class is to be in train, then in what the score is of, then in what the best weights are of.
    by_need = [i for piece in (*pieces[:1], *reversed(pieces[1:])) for i in of[piece]]
    return sizes, list(dict.fromkeys([*by_need, *range(len(sizes))])), of


def _joined(
    pieces: Sequence[_Piece],
    positions: np.ndarray,
    parts: Sequence[np.ndarray],
    of: Mapping[_Piece, Sequence[int]],
) -> dict[_Piece, np.ndarray]:
    nothing = np.zeros(0, np.int64)
    return {
        piece: positions[np.sort(np.concatenate([nothing, *(parts[i] for i in of[piece])]))]
        for piece in pieces
    }


def check_counts(spec: str, total: int) -> str:
    """Asks about numbers of pictures that look like shares; `80pictures` is what it says.

    Args:
      spec: as of `make_splits`.
      total: how many pictures there are.

    Returns:
      A warning where numbers leave most pictures unused; else empty.

    Raises:
      UsageError: they look like shares; the message says what may be meant.
    """
    parts = [part.strip() for part in spec.split(",")]
    if not all(re.fullmatch(rf"{_NUMBER}|(?:{_NUMBER})?\.{_NUMBER}", part) for part in parts):
        return ""
    numbers = [_number(part) for part in parts]
    used, are_counts = sum(numbers), all(re.fullmatch(_NUMBER, part) for part in parts)
    factor = 100 if used <= 1 and not are_counts else 1
    meant = "shares are written 80%,20%"
    if factor * used == 100:
        meant = f"did you mean --splits={','.join(f'{float(factor * number):g}%' for number in numbers)}?"
    if not are_counts:
        told = "" if factor * used == 100 else f"; they add up to {float(used):g}"
        raise UsageError(f"--splits={spec} is neither shares nor counts{told}; {meant}")
    exactly = f"--splits={','.join(f'{part}pictures' for part in parts)}"
    left = f"leaves {int(total - used):,} of {total:,} unused"
    if used == 100 != total:
        there = left if used < total else f"there are only {total:,}"
        raise UsageError(
            f"--splits={spec} takes 100 pictures and {there}; {meant} For exactly these numbers of pictures "
            f"write {exactly}"
        )
    if 2 * used < total:
        return f"--splits={spec} takes {int(used):,} pictures and {left}; {meant}"
    return ""


def _default_spec(source: Source) -> str:
    named = source.native_splits
    if "validation" in named and "train" in named:
        return "train,validation,test" if "test" in named else "train,validation"
    return "train[:90%],train[90%:],test" if {"train", "test"} <= set(named) else SHARES_BY_DEFAULT


def _number(text: str) -> Fraction:
    """Returns a number of any length; of one larger than any number of pictures, another such one."""
    whole, _, part = text.partition(".")
    if len(whole.lstrip("0")) > _MOST_DIGITS:
        return Fraction(10**_MOST_DIGITS)
    return Fraction(f"{whole[-_MOST_DIGITS:]}.{part[: 2 * _MOST_DIGITS]}")


def _counts(parts: Sequence[str], total: int, spec: str) -> list[int]:
    """Turns shares and counts into numbers of examples.

    Each share is taken of what the parts before it left, the first rounded down and later ones
    half up, so that 50%,25%,25% of 3,670 are 1835, 918 and 917: half, half of the rest, the rest.
    """
    counts: list[int] = []
    share_left = Fraction(100)
    for i, part in enumerate(parts):
        rest = total - sum(counts)
        if part == "rest" and i == len(parts) - 1:
            counts.append(rest)
        elif match := re.fullmatch(rf"({_NUMBER}(?:\.{_NUMBER})?)%", part):
            share = _number(match[1])
            if share > share_left:
                raise UsageError(f"--splits={spec} adds up to more than 100%")
            half = 0 if i == 0 else Fraction(1, 2)
            counts.append(int(rest * share / share_left + half) if share_left else 0)
            share_left -= share
        elif match := re.fullmatch(rf"({_NUMBER})(?: ?pictures)?", part):
            counts.append(int(_number(match[1])))
            share_left -= Fraction(100 * counts[-1], total)
        else:
            raise UsageError(
                f"--splits={spec}: {part!r} is no share (80%), count (1835), rest or range (train[:80%])"
            )
        if sum(counts) > total:
            raise UsageError(
                f"--splits={spec} asks for {sum(counts):,} pictures or more; there are {total:,}"
            )
    return counts


def _named_range(part: str, source: Source) -> _Piece:
    match = re.fullmatch(rf"(.+?)(?:\[((?:{_NUMBER}%?)?):((?:{_NUMBER}%?)?)\])?", part)
    # Those of a table are called as a column says, such as hold-out.
    if not match or not (match[1] in source.native_splits or re.fullmatch(r"\w+", match[1])):
        raise UsageError(f"--splits: {part!r} is no range such as test, train[:80%] or train[80%:]")
    if match[1] not in source.native_splits:
        has = ", ".join(source.native_splits) or "none"
        raise UsageError(f"--splits: {source.name} has no split {match[1]!r}; it has: {has}")
    start, stop = source.native_splits[match[1]]
    size = stop - start

    def bound(text: str | None, default: int) -> int:
        if not text:
            return default
        # Half up, like the shares; two ranges that meet at one bound never overlap.
        number = _number(text.removesuffix("%"))
        at = int(number * size / 100 + Fraction(1, 2)) if text[-1] == "%" else int(number)
        if at > size:
            raise UsageError(f"--splits: {part} overruns the {size:,} pictures of {match[1]}")
        return at

    return _Piece(match[1], bound(match[2], 0), bound(match[3], size))


def _check(source: Source, indices: dict[str, np.ndarray], spec: str) -> None:
    seen: dict[int, str] = {}
    for name, positions in indices.items():
        if not len(positions):
            raise TrainerError(
                f"the {name} split is empty: --splits={spec} of {len(source.ids):,} pictures in {source.name}"
            )
        for position in positions.tolist():
            if position in seen:
                raise UsageError(
                    f"--splits={spec}: {source.ids[position]} is both in {seen[position]} and in {name}"
                )
            seen[position] = name


def check_classes(
    source: Source, indices: dict[str, np.ndarray], spec: str, *, task: Task = SINGLE_LABEL
) -> None:
    """Makes sure that train has a picture of every class that another split has, and each class is in one.

    Raises:
      TrainerError: it is not so; the message names the class.
    """
    trained = task.classes_in(source.labels[indices["train"]])
    used = [task.classes_in(source.labels[positions]) for positions in indices.values()]
    for label in sorted(task.classes_in(source.labels).difference(*used)):
        raise TrainerError(
            f"class {source.class_names[label]!r} has pictures, but none of them is in a split "
            f"(--splits={spec}): nothing could learn it. Use more of the pictures, or leave the class out"
        )
    for name, positions in indices.items():
        for label in sorted(task.classes_in(source.labels[positions]) - trained):
            raise TrainerError(
                f"class {source.class_names[label]!r} is in the {name} split but not in train "
                f"(--splits={spec}, {len(indices['train']):,} training pictures): nothing could learn it"
            )


def find_again(
    recorded: Mapping[str, Sequence[Sequence[str]]],
    source: Source,
    digests: Sequence[str],
    *,
    task: Task = SINGLE_LABEL,
) -> dict[str, np.ndarray]:
    """Finds the pictures of a run again, by the SHA-256 of their bytes and their class.

    Of several that are alike, that with the name it had is taken, or the first; each is taken once.

    Args:
      recorded: {split: [(id, class, SHA-256)]}.
      source: where they are to be.
      digests: [N] SHA-256 of its pictures.
      task: what labels mean.

    Returns:
      {split: [n] int64 positions in the order of the record, -1 for one that is not there}.
    """
    # Of several labels each source has an order of its own.
    words = composed if task.excludes else in_any_order
    found = {name: np.full(len(rows), -1, np.int64) for name, rows in recorded.items()}
    waiting: defaultdict[tuple[str, str], list[tuple[str, int]]] = defaultdict(list)
    names: dict[tuple[str, str], set[str]] = defaultdict(set)
    for split, rows in recorded.items():
        for at, (name, label, digest) in enumerate(rows):
            waiting[words(label), digest].append((split, at))
            names[words(label), digest].add(name)
    words_of = [words(task.label_words(label, source.class_names)) for label in source.labels]
    keys = list(zip(words_of, digests, strict=True))
    # Those with a name that a picture had come first.
    for position in sorted(range(len(keys)), key=lambda i: source.ids[i] not in names.get(keys[i], ())):
        if places := waiting.get(keys[position]):
            same = [
                i for i, (split, at) in enumerate(places) if recorded[split][at][0] == source.ids[position]
            ]
            split, at = places.pop(same[0] if same else 0)
            found[split][at] = position
    return found


def missing_classes(
    source: Source, indices: dict[str, np.ndarray], *, task: Task = SINGLE_LABEL
) -> dict[str, list[str]]:
    """Returns {split: names of the classes that train has and this split has not}, where there are any."""
    trained = task.classes_in(source.labels[indices["train"]])
    missing = {
        name: [source.class_names[k] for k in sorted(trained - task.classes_in(source.labels[positions]))]
        for name, positions in indices.items()
    }
    return {name: names for name, names in missing.items() if names}


def shared_pictures(
    indices: dict[str, np.ndarray], digests: Sequence[Hashable]
) -> list[list[tuple[str, int]]]:
    """Returns groups of (split, position) whose bytes are the same and that span two splits.

    Args:
      indices: of the splits.
      digests: [N] alike for pictures that are one: SHA-256, or the groups of `near_duplicates.group_keys`.
    """
    groups: defaultdict[Hashable, list[tuple[str, int]]] = defaultdict(list)
    for name, positions in indices.items():
        for position in positions.tolist():
            groups[digests[position]].append((name, position))
    return [group for group in groups.values() if len({name for name, _ in group}) > 1]


def drop_shared(
    splits: Splits,
    digests: Sequence[Hashable],
    *,
    flag: str = "--drop_duplicates",
    what: str = "repeated pictures",
) -> Splits:
    """Returns the splits without pictures that a later split has, too.

    The earlier split loses them: what is left of train was never seen in validation or test, and these stay
    whole, so that scores can be compared with those of runs that dropped nothing.

    Args:
      splits: as they were made.
      digests: as in `shared_pictures`.
      flag: begins the message.
      what: they are called.

    Raises:
      TrainerError: nothing is left of a split.
    """
    last: dict[Hashable, str] = {}
    for name, positions in splits.indices.items():
        last.update((digests[position], name) for position in positions.tolist())
    kept = {
        name: np.asarray([p for p in positions.tolist() if last[digests[p]] == name], np.int64)
        for name, positions in splits.indices.items()
    }
    for name, positions in kept.items():
        if not len(positions):
            raise TrainerError(
                f"{flag} leaves the {name} split empty: every picture in it is in a later one, too"
            )
    dropped = sum(map(len, splits.indices.values())) - sum(map(len, kept.values()))
    how = splits.how + (f"; {dropped} {what} dropped" if dropped else "")
    return replace(splits, indices=kept, how=how)


# Of a picture that has none of several labels.
NO_CLASS = -1


def keep_together(
    splits: Splits, keys: Sequence[Hashable], *, classes_of: Callable[[int], Collection[int]]
) -> Splits:
    """Returns the splits with every group of pictures whole in one of them; all others stay where they are.

    Groups that are in two splits are dealt anew, the largest first: each to the split that lacks most of what
    it had of their classes, and of several to that which has most of the group. So splits stay about as large
    as they were. A class that train has nothing else of goes to train.

    Args:
      splits: as they were made.
      keys: [N] alike for pictures of a group.
      classes_of: position -> the classes that a picture has.
    """
    groups: defaultdict[Hashable, list[tuple[str, int]]] = defaultdict(list)
    for name, positions in splits.indices.items():
        for at in positions.tolist():
            groups[keys[at]].append((name, at))
    torn = [group for group in groups.values() if len({name for name, _ in group}) > 1]
    lacking = {name: Counter[int]() for name in splits.indices}
    for name, at in itertools.chain(*torn):
        lacking[name].update(classes_of(at) or (NO_CLASS,))
    moving = {at for group in torn for _, at in group}
    staying = (at for at in splits.indices["train"].tolist() if at not in moving)
    has_train = {NO_CLASS}.union(*map(classes_of, staying))
    kept = {name: [at for at in of.tolist() if at not in moving] for name, of in splits.indices.items()}
    for group in sorted(torn, key=len, reverse=True):
        of = Counter(k for _, at in group for k in classes_of(at) or (NO_CLASS,))
        there = Counter(name for name, _ in group)

        def need(name: str, of: Counter[int] = of, there: Counter[str] = there) -> tuple[int, int]:
            return sum(min(lacking[name][k], count) for k, count in of.items()), there[name]

        chosen = max(lacking, key=need)
        chosen = chosen if has_train.issuperset(of) else "train"
        has_train |= set(of) if chosen == "train" else set()
        lacking[chosen] = lacking[chosen] - of
        kept[chosen] += [at for _, at in group]
    indices = {name: np.asarray(positions, np.int64) for name, positions in kept.items()}
    for name, positions in indices.items():
        if not len(positions):
            raise TrainerError(
                f"--near_duplicates=group leaves the {name} split empty: all is in {len(groups):,} groups"
            )
    how = splits.how + (f"; {len(torn):,} groups of near duplicates put into one split each" if torn else "")
    return replace(splits, indices=indices, how=how)


def leave_out(
    splits: Splits,
    bad: Collection[int],
    source: Source,
    *,
    task: Task = SINGLE_LABEL,
    what: str = "bad pictures",
    may_lack_classes: bool = False,
) -> Splits:
    """Returns the splits without bad pictures; all others stay where they are.

    Args:
      splits: as they were made, of all pictures.
      bad: positions.
      source: that the positions are in.
      task: what labels mean.
      what: they are called.
      may_lack_classes: whether train may have nothing left of a class, as in one of several folds.

    Raises:
      TrainerError: nothing is left of a split, or none of a class in train.
    """
    drop = np.array(sorted(bad), np.int64)
    kept = {name: positions[~np.isin(positions, drop)] for name, positions in splits.indices.items()}
    for name, positions in kept.items():
        if not len(positions):
            count = len(splits.indices[name])
            are = "bad" if what == "bad pictures" else "among them"
            raise TrainerError(f"the {name} split is empty without {what}: all {count:,} in it are {are}")
    before, left = (task.classes_in(source.labels[of["train"]]) for of in (splits.indices, kept))
    for label in sorted(set() if may_lack_classes else before - left):
        raise TrainerError(
            f"class {source.class_names[label]!r} has only {what} in train: nothing could learn it"
        )
    count = sum(map(len, splits.indices.values())) - sum(map(len, kept.values()))
    how = splits.how + (f"; {count:,} {what} left out" if count else "")
    return replace(splits, indices=kept, how=how)
