"""Which folders are splits and which are classes, told by their names and by what is in them."""

import logging
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

from trainer.data.class_folders import Listing
from trainer.values import TrainerError, UsageError, composed

_log = logging.getLogger("trainer")
_BEHIND = "(set|data|dataset|split|images?|imgs?|pictures|photos)?"
_USUAL = {
    "train": re.compile(rf"(seg)?train(ing)?{_BEHIND}"),
    "validation": re.compile(rf"(seg)?(val|valid|validate|validation|dev|eval|evaluation){_BEHIND}"),
    "test": re.compile(rf"(seg)?test(ing)?{_BEHIND}"),
}
_UNLABELLED = re.compile(r"(seg)?(pred|predict|prediction|unlabell?ed|unsup(ervised)?)" + _BEHIND)
_AS_CLASSES = "--splits=80%,10%,10%"


@dataclass(frozen=True)
class Layout:
    """Where the class folders are.

    `root` holds them, or the splits that do: `splits` is {split: path below `root` of the folder that holds
    its classes}, train first; empty where there are none. `above` are the folders that `root` was found in.
    """

    root: Path
    splits: Mapping[str, str] = field(default_factory=dict)
    above: tuple[Path, ...] = ()


def usual_split(folder: str) -> str:
    """Returns train, validation or test where a folder has one of their usual names, in any case; else ''."""
    plain = _plain(folder)
    return next((split for split, names in _USUAL.items() if names.fullmatch(plain)), "")


def find_layout(
    listing: Listing, top: Path, *, asked: str = "auto", run_classes: Collection[str] = ()
) -> Layout:
    """Finds the class folders below a folder.

    A folder that holds nothing but one other folder is looked through, as often as needed.

    Args:
      listing: lists folders.
      top: where to look.
      asked: value of --splits. Ranges of folders by their names make these the splits; shares and counts
        say that folders that could be either are classes.
      run_classes: classes of the run that is to be scored on these pictures; empty in training. Whatever
        holds folders of these names is looked into, and all pictures count.

    Raises:
      TrainerError: some folders are splits by their names, and the others do not go with them.
      UsageError: they look like splits, and nobody said that they are.
    """
    above = list(_looked_through(listing, top, known=run_classes))
    root = above.pop()
    if root != top:
        _log.info("%s: the pictures are in %s", listing.name, root)
    found = _Folders(listing, root, listing.folders(root), _kind_of(asked))
    if run_classes:
        splits = found.of_a_run({composed(name) for name in run_classes})
    else:
        splits = found.named(asked) or found.usual()
        if not splits and found.asked == "auto":
            found.require_classes()
    return Layout(root, splits, tuple(above))


def _kind_of(asked: str) -> str:
    """Returns what --splits has: auto, named ranges, or shares (or counts)."""
    if asked == "auto":
        return "auto"
    # As `splits.make_splits` tells them apart.
    named = any(re.match(r"[A-Za-z_]", part) and part != "rest" for part in _parts(asked))
    return "named" if named else "shares"


def _parts(asked: str) -> list[str]:
    return [re.sub(r"\[[^]]*\]$", "", part.strip()) for part in asked.split(",")]


def _plain(folder: str) -> str:
    return re.sub(r"[-_. ]", "", composed(folder)).lower()


def _looked_through(
    listing: Listing, top: Path, *, known: Collection[str] = (), split: str = ""
) -> Iterable[Path]:
    """Yields a folder, and one inside of another for as long as each is all that there is in the one before.

    Args:
      listing: lists folders.
      top: the first one.
      known: names of classes, which are not looked through.
      split: the name of a split that `top` is, if it is one: seg_train/seg_train/ is one folder too many.
    """
    folder, chain = top, []
    classes = {composed(name) for name in known}
    while True:
        yield folder
        inside = listing.looked_into(folder)[0]
        chain.append(listing.identity(folder))
        if len(inside) != 1 or composed(inside[0]) in classes:
            return
        inner = folder / inside[0]
        if listing.identity(inner) in chain or (not split and usual_split(inner.name)):
            return
        folders, pictures = listing.looked_into(inner)
        again = split and _plain(inner.name) in (_plain(split), _plain(top.name))
        if pictures >= len(folders) and not again:
            return  # It is a class, perhaps with folders of its own.
        folder = inner


@dataclass(frozen=True)
class _Folders:
    """The folders in one folder; `asked` is what `_kind_of` --splits says."""

    listing: Listing
    root: Path
    names: Sequence[str]
    asked: str

    def named(self, asked: str) -> dict[str, str]:
        """Returns the splits that --splits names by their folders; empty where it names something else."""
        wanted = dict.fromkeys(_parts(asked))
        folders = {composed(name): name for name in self.names}
        names = {name: folders.get(composed(name), "") for name in wanted}
        if self.asked != "named" or not all(names.values()):
            return {}
        if set(names) <= set(map(usual_split, self.names)):
            return {}  # The folders of these splits, whatever they are called.
        self._leave_out(set(self.names) - set(names.values()), "--splits does not name it")
        return self._with_classes(names)

    def usual(self) -> dict[str, str]:
        """Returns the splits of the usual names; empty where the folders are classes.

        Raises:
          TrainerError: there are other folders beside them, two of one kind, or none for training.
        """
        found: dict[str, list[str]] = {}
        for name in self.names:
            if split := usual_split(name):
                found.setdefault(split, []).append(name)
        plain = [name for name in self.names if not usual_split(name)]
        unlabelled = [n for n in plain if _UNLABELLED.fullmatch(_plain(n)) and not self._shape(n)[0]]
        others = [name for name in plain if name not in unlabelled]
        if not found:
            return {}
        if others and self.asked != "named":
            self._require_no_splits(found, others)
            return {}
        for split, names in found.items():
            if len(names) > 1:
                raise self._error(
                    f"{self.root} has both {names[0]}/ and {names[1]}/: keep one {split} folder"
                    + self._or_named([*found.get("train", ())[:1], *names]),
                    kind=UsageError,
                )
        if "train" not in found:
            raise self._error(f"{self.root} has {', '.join(self.names)} but no train folder")
        self._leave_out(others, "--splits does not name it")
        self._leave_out(unlabelled, "its pictures are in no class folders (predict can name what is on them)")
        return self._with_classes({split: found[split][0] for split in _USUAL if split in found})

    def _require_no_splits(self, found: Mapping[str, Sequence[str]], others: Sequence[str]) -> None:
        """Makes sure that folders beside others are no splits: train/ and test/ make an absurd data set."""
        if "train" not in found:
            return
        train = found["train"][0]
        folders, pictures = self._shape(train)
        holds_classes = bool(folders) and not pictures
        if (len(found) > 1 or holds_classes) if self.asked == "auto" else len(found) > 1 and holds_classes:
            way_out = "" if holds_classes and len(found) > 1 else f"; if all are classes, say {_AS_CLASSES}"
            raise self._error(
                f"{self.root} has {others[0]}/ beside {train}/: expected either class folders, or only "
                f"train, validation and test folders{way_out}",
                kind=UsageError,
            )

    def require_classes(self) -> None:
        """Makes sure that what would be taken for classes does not look like splits.

        Raises:
          UsageError: two of them hold folders of the same names, or one holds those of its neighbours.
        """
        inside: dict[str, set[str]] = {}
        for name in self.names:
            folders, pictures = self._shape(name)
            if folders and not pictures:
                inside[name] = {composed(folder).casefold() for folder in folders}
        beside = {name: composed(name).casefold() for name in self.names}
        for name, holds in inside.items():
            if _alike(holds, set(beside.values()) - {beside[name]}):
                shared = [other for other in self.names if beside[other] in holds and other != name]
                raise self._error(
                    f"{self.root}: {name}/ holds folders of the same names as those beside it "
                    f"({_listed(shared)}): it looks like a split, not a class. Move those beside it into "
                    f"train/, or rename it; if it is a class, say {_AS_CLASSES}",
                    kind=UsageError,
                )
        for first, second in combinations(inside, 2):
            if _alike(inside[first], inside[second]):
                alike = [name for name in inside if name == first or _alike(inside[first], inside[name])]
                raise self._error(
                    self._told_alike(alike, sorted(inside[first] & inside[second])), kind=UsageError
                )

    def of_a_run(self, classes: set[str]) -> dict[str, str]:
        """Returns the folders that hold classes of a run, as splits; empty if some of them are classes."""
        if classes & {composed(name) for name in self.names}:
            return {}
        found = {}
        for name in self.names:
            *_, inner = _looked_through(self.listing, self.root / name, known=classes, split=name)
            if classes & {composed(folder) for folder in self.listing.looked_into(inner)[0]}:
                found[name] = str(inner.relative_to(self.root))
        if found:
            self._leave_out(set(self.names) - set(found), "it holds none of the classes of the run")
        return found

    def _with_classes(self, folders: Mapping[str, str]) -> dict[str, str]:
        """Returns {split: the folder at it, or in it, that holds its classes}, of those that have any."""
        found: dict[str, str] = {}
        known: list[str] = []
        for split, folder in folders.items():
            *_, inner = _looked_through(self.listing, self.root / folder, known=known, split=split)
            classes, pictures = self.listing.looked_into(inner)
            if found and pictures and not classes:
                self._leave_out(
                    [folder], "its pictures are in no class folders (predict can name what is on them)"
                )
                continue
            known = known or classes
            found[split] = str(inner.relative_to(self.root))
        return found

    def _shape(self, name: str) -> tuple[list[str], int]:
        """Returns what a folder holds, or the only one in it: names of folders, and the count of pictures."""
        folder = self.root / name
        if self.listing.identity(folder) == self.listing.identity(self.root):
            return [], 0
        *_, inner = _looked_through(self.listing, folder, split=name)
        return self.listing.looked_into(inner)

    def _told_alike(self, alike: Sequence[str], shared: Sequence[str]) -> str:
        folders = _listed([f"{name}/" for name in alike], at_most=3)
        if all(map(usual_split, shared)):
            first = next((name for name in shared if usual_split(name) == "train"), shared[0])
            return (
                f"{self.root}: {folders} hold folders that look like splits ({_listed(shared)}). Put the "
                f"splits first, as in {first}/{alike[0]}/; or say {_AS_CLASSES} to divide all pictures anew"
            )
        return (
            f"{self.root}: {folders} hold folders of the same names ({_listed(shared)}): these look like "
            "splits, not classes. If they are splits, rename them to train/, validation/ and test/"
            f"{self._or_named(alike)}; if they are classes, say {_AS_CLASSES}"
        )

    def _or_named(self, names: Sequence[str]) -> str:
        """Returns how to say with --splits that folders are splits, if their names can stand there."""
        few = list(dict.fromkeys(names))[:3]
        spec = ",".join(few)
        sayable = len(few) > 1 and all(re.fullmatch(r"\w+", name) for name in few)
        return f", or say --splits={spec}" if sayable and _kind_of(spec) == "named" else ""

    def _leave_out(self, names: Iterable[str], reason: str) -> None:
        for name in sorted(names):
            _log.warning("%s: left out %s/: %s", self.listing.name, name, reason)

    def _error(self, text: str, *, kind: type[TrainerError] = TrainerError) -> TrainerError:
        return kind(f"--source={self.listing.name}: {text}")


def _alike(one: set[str], other: set[str]) -> bool:
    """Returns whether two folders hold folders of the same names, so that they can hardly be two classes.

    One name in common means little: many a class has all its pictures in one folder, such as images/.
    """
    shared, fewer, more = len(one & other), *sorted((len(one), len(other)))
    return more > 1 and shared > 0 and (shared == fewer or (shared > 1 and 2 * shared >= fewer))


def _listed(names: Sequence[str], *, at_most: int = 5) -> str:
    if len(names) > at_most:
        return f"{', '.join(names[:at_most])} and {len(names) - at_most:,} more"
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
