"""Class folders walked: their pictures in code-point order, and entries that could be none."""

import logging
import os
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from trainer.data.inspect.bad_pictures import name_problem, shown_name
from trainer.store.system_names import is_system
from trainer.values import TrainerError, composed

PICTURE_ENDINGS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".webp")
_LOOP = "a link to a folder that it lies in"

_log = logging.getLogger("trainer")
Found = tuple[str, str]
"""The path of an entry, as it can be printed, and why it cannot be read; empty where it can."""
Classes = dict[str, tuple[str, list[Found]]]
"""{class: (its folder, what is in it, by path)}."""
Identity = tuple[int, int]
"""Device and number of a folder."""


class Listing:
    """Walks folders and counts the files it leaves out. Opens no file, so that a pipe cannot stop it."""

    def __init__(self, name: str):
        """Begins.

        Args:
          name: what messages call the source.
        """
        self.name = name
        self._left_out: Counter[str] = Counter()
        self._looked_into: dict[Path, tuple[list[str], int]] = {}

    def folders(self, folder: Path) -> list[str]:
        """Returns the names of the folders in a folder.

        Raises:
          TrainerError: it cannot be listed, or the name of one of them cannot be printed.
        """
        return [entry.name for entry in self._entries(folder) if self._is_class(folder, entry)]

    def looked_into(self, folder: Path) -> tuple[list[str], int]:
        """Returns the names of the folders in a folder, and how many pictures are beside them.

        Pictures are counted until there are more of them than folders.

        Raises:
          TrainerError: it cannot be listed.
        """
        if folder not in self._looked_into:
            entries = self._entries(folder)
            folders = [entry.name for entry in entries if _kind(entry)[0]]
            pictures = (entry for entry in entries if _is_named_as_picture(entry))
            files = (entry for entry in pictures if not _kind(entry)[0])
            self._looked_into[folder] = folders, sum(1 for _ in islice(files, len(folders) + 1))
        return self._looked_into[folder]

    def classes(self, folder: Path, above: tuple[Path, ...] = ()) -> Classes:
        """Returns the classes in a folder, with at least one entry each.

        Args:
          folder: of class folders.
          above: the folders that it lies in, as far as links could lead back to them.

        Raises:
          TrainerError: it holds no class folders, or a class holds no picture.
        """
        found: Classes = {}
        loose = 0
        chain = tuple(self.identity(path) for path in (*above, folder))
        for entry in self._entries(folder):
            if self._is_class(folder, entry):
                if self.identity(folder / entry.name) in chain:
                    raise self._error(f"the class folder {folder / entry.name} cannot be used: {_LOOP}")
                before = self._left_out.copy()
                pictures = sorted(self._pictures(folder / entry.name, chain))
                self._require_one_spelling(folder, entry.name, found)
                found[composed(entry.name)] = entry.name, pictures
                if not pictures:
                    others = _counted(self._left_out - before)
                    raise self._error(
                        f"the class folder {folder / entry.name} holds no picture"
                        + (f" (but {others})" if others else "")
                        + f": expected files that end in {', '.join(PICTURE_ENDINGS)}"
                    )
            elif _is_named_as_picture(entry):
                loose += 1
            else:
                self._left_out[_ending(entry.name)] += 1
        if not found:
            what = f"{loose} pictures but no class folders" if loose else "no class folders"
            raise self._error(
                f"{folder} has {what}: pictures must be in one folder a class, as in roses/1.jpg"
            )
        if loose:
            _log.warning("%s: left out %d pictures directly in %s, in no class", self.name, loose, folder)
        return found

    def _require_one_spelling(self, folder: Path, name: str, found: Classes) -> None:
        if other := found.get(composed(name)):
            raise self._error(
                f"{folder} has the class {composed(name)} twice, in two spellings of Unicode: {other[0]!a} "
                f"and {name!a}. Move the pictures of one into the other"
            )

    def log_left_out(self) -> None:
        """Says how many files were no pictures by their ending."""
        if self._left_out:
            _log.info("%s: left out %s, no pictures by their ending", self.name, _counted(self._left_out))

    def _is_class(self, folder: Path, entry: os.DirEntry[str]) -> bool:
        is_folder, problem = _kind(entry)
        # A link that leads nowhere and has no ending was a class folder: to go on without it is to lose it.
        lost = bool(problem) and entry.is_symlink() and not os.path.splitext(entry.name)[1]
        problem = name_problem(entry.name) if is_folder else problem if lost else ""
        if problem:
            raise self._error(f"the class folder {folder}/{shown_name(entry.name)} cannot be used: {problem}")
        return is_folder

    def _pictures(self, folder: Path, above: tuple[Identity, ...]) -> Iterator[Found]:
        chain = (*above, self.identity(folder))
        for entry in self._entries(folder):
            shown, problem = shown_name(entry.name), name_problem(entry.name)
            is_folder, broken = _kind(entry)
            if not is_folder:
                if _is_named_as_picture(entry) or (broken and not os.path.splitext(entry.name)[1]):
                    yield shown, broken or problem
                else:
                    self._left_out[_ending(entry.name)] += 1
            elif _is_named_as_picture(entry):
                yield shown, "a folder, not a picture"
            elif problem:
                yield shown, problem.replace("its name", "the name of this folder")
            elif self.identity(folder / entry.name) in chain:
                yield shown, _LOOP
            else:
                inner = self._pictures(folder / entry.name, chain)
                yield from ((f"{shown}/{path}", reason) for path, reason in inner)

    def _entries(self, folder: Path) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(folder) as found:
                entries = [entry for entry in found if not is_system(entry.name)]
        except FileNotFoundError:
            raise self._error(f"{folder} does not exist: expected a folder of class folders") from None
        except NotADirectoryError:
            raise self._error(f"{folder} is a file: expected a folder of class folders") from None
        except OSError as error:
            raise self._error(f"cannot list the folder {folder}: {error.strerror}") from None
        return sorted(entries, key=lambda entry: entry.name)

    def identity(self, folder: Path) -> Identity:
        """Returns what tells a folder from all others, however it is reached.

        Raises:
          TrainerError: it cannot be looked at.
        """
        try:
            stat = folder.stat()
        except OSError as error:
            raise self._error(f"cannot list the folder {folder}: {error.strerror}") from None
        return stat.st_dev, stat.st_ino

    def _error(self, text: str) -> TrainerError:
        return TrainerError(f"--source={self.name}: {text}")


def _kind(entry: os.DirEntry[str]) -> tuple[bool, str]:
    """Returns whether it is a folder, and why it is neither that nor a file."""
    try:
        if entry.is_dir():
            return True, ""
        if entry.is_file():
            return False, ""
    except OSError as error:  # A link that leads to itself, or through a closed folder.
        return False, f"a link that leads nowhere ({error.strerror})"
    return False, "not a regular file" if os.path.exists(entry.path) else "a link to nothing"


def _is_named_as_picture(entry: os.DirEntry[str]) -> bool:
    return entry.name.lower().endswith(PICTURE_ENDINGS)


def _ending(file: str) -> str:
    return os.path.splitext(shown_name(file))[1].lower() or "(no ending)"


def _counted(endings: Counter[str]) -> str:
    return ", ".join(f"{count} {ending}" for ending, count in sorted(endings.items()))
