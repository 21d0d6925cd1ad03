"""`folder:PATH`: pictures in one folder a class, or in train/ validation/ test/ folders of such."""

import errno
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from trainer.data.class_folders import EXPECTED, Classes, Found, Listing, meant_instead
from trainer.data.encoded_cache import DEFAULT_BUDGET_BYTES, EncodedStore, Kept
from trainer.data.inspect.bad_pictures import BadPictureError
from trainer.data.inspect.stamps import stamp_files
from trainer.data.layouts import Layout, find_layout
from trainer.data.picture_files import read_regular
from trainer.data.sources.base import DEFAULT_OPTIONS, SOURCES, SourceOptions
from trainer.paths import local_path
from trainer.values import TrainerError

_log = logging.getLogger("trainer")

# Folders that a message names.
MOST_SHOWN = 5


@dataclass
class FolderSource:
    """A Source of files; the ids are their paths below `root`.

    Pictures that were read are kept in memory as far as they fit in `budget_bytes`. `unreadable` are
    the positions of entries that are never opened, each with the reason: they have the name of a
    picture and are no regular file, or their id is not their path, as it could not be printed.
    """

    name: str
    root: Path
    class_names: tuple[str, ...]
    ids: list[str]
    labels: np.ndarray
    native_splits: dict[str, tuple[int, int]] = field(default_factory=dict)
    sorted_by_class: bool = True
    budget_bytes: int = DEFAULT_BUDGET_BYTES
    unreadable: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._kept = Kept(self._read_file, len(self.ids), EncodedStore(budget_bytes=self.budget_bytes))

    def read(self, index: int) -> bytes:
        return self._kept[index]

    def load(self) -> None:
        pass

    def stamp(self) -> str | None:
        files = [name for index, name in enumerate(self.ids) if index not in self.unreadable]
        others = [(self.ids[index], reason) for index, reason in self.unreadable.items()]
        return stamp_files(str(self.root), files, extra=json.dumps(others))

    def _read_file(self, index: int) -> bytes:
        name = self.ids[index]
        if index in self.unreadable:
            raise BadPictureError(name, self.unreadable[index])
        path = f"{self.root}/{name}"
        try:
            return read_regular(path, name=name)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM):
                # To give the permission changes no time and no size: what is recorded would stay wrong.
                raise BadPictureError(name, str(error.strerror), lasting=False) from None
            raise TrainerError(f"--source={self.name}: cannot read {path}: {error.strerror}") from None


@SOURCES.register("folder", check=local_path)
def open_folder(
    path: str,
    *,
    name: str,
    budget_bytes: int = DEFAULT_BUDGET_BYTES,
    options: SourceOptions = DEFAULT_OPTIONS,
) -> FolderSource:
    r"""A folder with a folder of pictures for each class, or with train, validation and test folders of such.

    Pictures are in the order of their classes, and then of their paths in plain code-point order.
    `roses/1.jpg` and `roses/garden/1.jpg` are both of class roses. Folders with the usual names of train,
    validation and test splits, or those that --splits names, hold the classes and become the native splits.
    A folder that holds only one other is looked through. Hidden files and those of systems are ignored, and
    what holds no picture, which the log counts: by their first bytes, where names leave doubt. Links are
    followed.

    What has the name of a picture and cannot be read has an id and a place like all others, so that no other
    picture moves when it is repaired: links to nothing and in circles, pipes, folders named x.jpg, and names
    that cannot be printed, whose ids are as bash reads them, such as $'a\nb.jpg'.

    Args:
      path: the folder; `~` is expanded.
      name: what messages call the source.
      budget_bytes: how much of the pictures is kept in memory once read.
      options: of them, --splits and the classes of a run that is to be scored (see `find_layout`),
        --on_bad_image, and where results go.

    Raises:
      TrainerError: there are no two classes of pictures; the message says what was found.
      UndecodableError: more than a tenth are of kinds that cannot be decoded.
      UsageError: folders may be splits or classes, and --splits does not say what they are.
    """
    top = local_path(path, flag=f"--source={name}")
    listing = Listing(name, results=options.results)
    layout = find_layout(listing, top, asked=options.splits, run_classes=options.run_classes)
    parts = _listed(listing, layout, scored=bool(options.run_classes))
    class_names = tuple(sorted(set().union(*(classes for _, classes in parts.values()))))
    if not class_names:
        raise TrainerError(f"--source={name}: {layout.root} has no class folder with pictures: {EXPECTED}")
    if not options.run_classes:
        _require_trainable(listing, layout, parts, class_names)
        _warn_of_nearly_same(name, class_names)
    found, labels, native = _in_order(parts, class_names)
    listing.tell_left_out(len(found), on_bad_image=options.on_bad_image)
    return FolderSource(
        name,
        layout.root,
        class_names,
        [path for path, _ in found],
        np.array(labels, np.int64),
        native,
        budget_bytes=budget_bytes,
        unreadable={index: problem for index, (_, problem) in enumerate(found) if problem},
    )


def _inside(listing: Listing, root: Path, only: str) -> str:
    """Returns, of a folder that may be one level too high, what is in the one folder in it."""
    folders = listing.folders(root / only)
    if not folders:
        return ""
    more = f" and {len(folders) - MOST_SHOWN:,} more" if len(folders) > MOST_SHOWN else ""
    asked = f": is --source={listing.name}/{only} meant?" if listing.name.startswith("folder:") else ""
    return f". In {only} there are {', '.join(folders[:MOST_SHOWN])}{more}{asked}"


Parts = dict[str, tuple[str, Classes]]
"""{split: (what the ids in it begin with, its classes)}; of one without a name where there are no splits."""


def _listed(listing: Listing, layout: Layout, *, scored: bool) -> Parts:
    if not layout.splits:
        return {"": ("", listing.classes(layout.root, layout.above, may_be_empty=scored))}
    above, parts = (*layout.above, layout.root), {}
    for split, folder in layout.splits.items():
        may_be_empty = scored or (split != "train" and "train" in layout.splits)
        classes = listing.classes(layout.root / folder, above, may_be_empty=may_be_empty)
        parts[split] = f"{folder}/", classes
    return parts


def _in_order(
    parts: Parts, class_names: Sequence[str]
) -> tuple[list[Found], list[int], dict[str, tuple[int, int]]]:
    """Returns all pictures by their ids, their labels, and where the native splits begin and end."""
    found: list[Found] = []
    labels: list[int] = []
    native: dict[str, tuple[int, int]] = {}
    for split, (prefix, classes) in parts.items():
        start = len(found)
        for class_name in sorted(classes):
            folder, pictures = classes[class_name]
            found += [(f"{prefix}{folder}/{path}", problem) for path, problem in pictures]
            labels += [class_names.index(class_name)] * len(pictures)
        if split:
            native[split] = (start, len(found))
    return found, labels, native


def _require_trainable(listing: Listing, layout: Layout, parts: Parts, class_names: Sequence[str]) -> None:
    """Makes sure that there are classes to tell apart, and that pictures to train with have all of them."""
    name = listing.name
    trained = parts.get("train", ("", {}))[1]
    for split, (_, classes) in parts.items():
        if trained and (unseen := sorted(set(classes) - set(trained))):
            alike = [one for pair in _nearly_same([unseen[0], *trained]) for one in pair if one in trained]
            raise TrainerError(
                f"--source={name}: {layout.root / layout.splits[split]} has the class {unseen[0]}, which "
                f"{layout.splits['train']}/ has not: "
                + (f"is it {alike[0]}?" if alike else "every class must have pictures to learn from")
            )
    if len(class_names) < 2:
        inside = ""
        if not layout.splits:
            folder, pictures = parts[""][1][class_names[0]]
            inside = _inside(listing, layout.root, folder) or meant_instead(
                layout.root / folder, [os.path.basename(path) for path, _ in pictures[:20]]
            )
        raise TrainerError(
            f"--source={name}: {layout.root} has only one class, {class_names[0]}: to tell pictures apart "
            f"takes two folders of pictures at least{inside}"
        )


def _warn_of_nearly_same(name: str, class_names: Sequence[str]) -> None:
    for alike in _nearly_same(class_names):
        _log.warning(
            "%s: the classes %s differ only in case or spaces: if they are one, move their pictures into "
            "one folder",
            name, " and ".join(map(repr, alike)),
        )  # fmt: skip


def _nearly_same(names: Sequence[str]) -> list[list[str]]:
    """Returns groups of names that differ only in case or spaces."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(" ".join(name.casefold().split()), []).append(name)
    return [group for group in groups.values() if len(group) > 1]
