"""`folder:PATH`: pictures in one folder a class, or in train/ validation/ test/ folders of such."""

import logging
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from trainer.data.encoded import DEFAULT_BUDGET_BYTES, EncodedStore, Kept
from trainer.data.stamps import stamp_files
from trainer.values import TrainerError

PICTURE_ENDINGS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".webp")
SPLIT_NAMES = {"train": "train", "validation": "validation", "val": "validation", "valid": "validation"}
SPLIT_NAMES["test"] = "test"

_log = logging.getLogger("trainer")


@dataclass
class FolderSource:
    """A Source of files; the ids are their paths below `root`.

    Pictures that were read are kept in memory as far as they fit in `budget_bytes`.
    """

    name: str
    root: Path
    class_names: tuple[str, ...]
    ids: list[str]
    labels: np.ndarray
    native_splits: dict[str, tuple[int, int]] = field(default_factory=dict)
    sorted_by_class: bool = True
    budget_bytes: int = DEFAULT_BUDGET_BYTES

    def __post_init__(self) -> None:
        self._kept = Kept(self._read_file, len(self.ids), EncodedStore(budget_bytes=self.budget_bytes))

    def read(self, index: int) -> bytes:
        return self._kept[index]

    def load(self) -> None:
        pass

    def stamp(self) -> str | None:
        return stamp_files(str(self.root), self.ids)

    def _read_file(self, index: int) -> bytes:
        path = f"{self.root}/{self.ids[index]}"
        try:
            with open(path, "rb", buffering=0) as file:
                return file.read()
        except OSError as error:
            raise TrainerError(f"--source={self.name}: cannot read {path}: {error.strerror}") from None


def open_folder(path: str, *, name: str, budget_bytes: int = DEFAULT_BUDGET_BYTES) -> FolderSource:
    """Lists the pictures below `path`, by class and then by path in plain code-point order.

    `roses/1.jpg` and `roses/garden/1.jpg` are both of class roses. Where the folders are named
    train, validation (or val, valid) and test, the classes are looked for inside them and they
    become the native splits. Hidden files and folders are ignored; so are files with other
    endings than a picture's, which are counted in the log. Links are followed.

    Args:
      path: the folder; `~` is expanded.
      name: what messages call the source.
      budget_bytes: how much of the pictures is kept in memory once read.

    Raises:
      TrainerError: there are no two classes of pictures; the message says what was found.
    """
    root = Path(path).expanduser().absolute()
    scan = _Scan(name)
    folders = scan.folders(root)
    splits = _split_folders(name, root, folders)
    parts = {split: scan.classes(root / folder) for split, folder in splits.items()}
    if not splits:
        parts = {"": scan.classes(root)}
    class_names = tuple(sorted(set().union(*parts.values())))
    for split, classes in parts.items():
        if unseen := sorted(set(classes) - set(parts.get("train", classes))):
            raise TrainerError(
                f"--source={name}: {root / splits[split]} has the class {unseen[0]}, which train/ has not: "
                "every class must have pictures to learn from"
            )
    if len(class_names) < 2:
        raise TrainerError(
            f"--source={name}: {root} has only one class, {class_names[0]}: to tell pictures apart takes "
            "two folders of pictures at least"
        )
    ids: list[str] = []
    labels: list[int] = []
    native: dict[str, tuple[int, int]] = {}
    for split, classes in parts.items():
        start = len(ids)
        for class_name in sorted(classes):
            prefix = f"{splits[split]}/{class_name}/" if split else f"{class_name}/"
            ids += [prefix + file for file in classes[class_name]]
            labels += [class_names.index(class_name)] * len(classes[class_name])
        if split:
            native[split] = (start, len(ids))
    scan.log_left_out()
    return FolderSource(
        name, root, class_names, ids, np.array(labels, np.int64), native, budget_bytes=budget_bytes
    )


def _split_folders(name: str, root: Path, folders: list[str]) -> dict[str, str]:
    """Returns {split: folder} in the order train, validation, test; empty where folders are classes."""
    found: dict[str, str] = {}
    for folder in folders:
        if split := SPLIT_NAMES.get(folder.lower()):
            if split in found:
                raise TrainerError(
                    f"--source={name}: {root} has both {found[split]}/ and {folder}/: keep one {split} folder"
                )
            found[split] = folder
    others = [folder for folder in folders if folder.lower() not in SPLIT_NAMES]
    if "train" in found and len(found) > 1 and others:
        # Taken for classes, train/ and test/ would make a plausible and absurd data set.
        raise TrainerError(
            f"--source={name}: {root} has {others[0]}/ beside {found['train']}/: expected either class "
            "folders, or only train, validation and test folders"
        )
    if others or not found:
        return {}
    if "train" not in found:
        raise TrainerError(f"--source={name}: {root} has {', '.join(folders)} but no train folder")
    return {split: found[split] for split in ("train", "validation", "test") if split in found}


class _Scan:
    """Walks folders in code-point order and counts the files it leaves out."""

    def __init__(self, name: str):
        self.name = name
        self.left_out: Counter[str] = Counter()

    def error(self, text: str) -> TrainerError:
        return TrainerError(f"--source={self.name}: {text}")

    def entries(self, folder: Path) -> list[os.DirEntry]:
        try:
            with os.scandir(folder) as found:
                entries = [entry for entry in found if not entry.name.startswith(".")]
        except FileNotFoundError:
            raise self.error(f"{folder} does not exist: expected a folder of class folders") from None
        except NotADirectoryError:
            raise self.error(f"{folder} is a file: expected a folder of class folders") from None
        except OSError as error:
            raise self.error(f"cannot list the folder {folder}: {error.strerror}") from None
        for entry in entries:
            try:
                entry.name.encode()
            except UnicodeEncodeError:
                raise self.error(f"the name of {os.fsencode(entry.path)!r} is not UTF-8: rename it") from None
        return sorted(entries, key=lambda entry: entry.name)

    def folders(self, folder: Path) -> list[str]:
        return [entry.name for entry in self.entries(folder) if entry.is_dir()]

    def classes(self, folder: Path) -> dict[str, list[str]]:
        """Returns {class: sorted POSIX paths below its folder}, with at least one picture each."""
        found: dict[str, list[str]] = {}
        loose = 0
        for entry in self.entries(folder):
            if entry.is_dir():
                before = self.left_out.copy()
                found[entry.name] = sorted(self.pictures(folder / entry.name))
                if not found[entry.name]:
                    others = _counted(self.left_out - before)
                    raise self.error(
                        f"the class folder {folder / entry.name} holds no picture"
                        + (f" (but {others})" if others else "")
                        + f": expected files that end in {', '.join(PICTURE_ENDINGS)}"
                    )
            elif entry.name.lower().endswith(PICTURE_ENDINGS):
                loose += 1
            else:
                self.left_out[_ending(entry.name)] += 1
        if not found:
            what = f"{loose} pictures but no class folders" if loose else "no class folders"
            raise self.error(
                f"{folder} has {what}: pictures must be in one folder a class, as in roses/1.jpg"
            )
        if loose:
            _log.warning("%s: left out %d pictures directly in %s, in no class", self.name, loose, folder)
        return found

    def pictures(self, folder: Path, above: tuple[tuple[int, int], ...] = ()) -> Iterator[str]:
        stat = folder.stat()
        here = (stat.st_dev, stat.st_ino)
        if here in above:
            raise self.error(f"the link {folder} leads back to a folder that it lies in")
        for entry in self.entries(folder):
            if entry.is_dir():
                inner = self.pictures(folder / entry.name, (*above, here))
                yield from (f"{entry.name}/{file}" for file in inner)
            elif not entry.name.lower().endswith(PICTURE_ENDINGS):
                self.left_out[_ending(entry.name)] += 1
            elif entry.is_file():
                yield entry.name
            else:
                what = "is a link to nothing" if entry.is_symlink() else "is not a regular file"
                raise self.error(f"{folder / entry.name} {what}: remove it or put the picture there")

    def log_left_out(self) -> None:
        if self.left_out:
            _log.info("%s: left out %s, no pictures by their ending", self.name, _counted(self.left_out))


def _ending(file: str) -> str:
    return os.path.splitext(file)[1].lower() or "(no ending)"


def _counted(endings: Counter[str]) -> str:
    return ", ".join(f"{count} {ending}" for ending, count in sorted(endings.items()))
