"""Class folders walked: their pictures in code-point order, and entries that could be none."""

import contextlib
import logging
import os
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from trainer.data.inspect.bad_pictures import name_problem, shown_name
from trainer.data.inspect.kinds import DECODABLE, kind_by_name, kind_of_file, kinds_in, told_kinds
from trainer.store.system_names import is_system
from trainer.values import TrainerError, close_names, composed, is_it

EXPECTED = "expected JPEG, PNG, GIF, BMP or WebP files"
# Of all pictures; more that cannot be decoded are an error.
_MOST_UNDECODABLE = 0.1
# Of a run, a cross-validation and a sweep, each in its folder.
_OF_RESULTS = ("run.json", "cross_validation.json", "sweep.flags")
# That are looked at in a folder of runs, and named.
_MOST_RUNS = 10
_LOOP = "a link to a folder that it lies in"
_ARCHIVE = re.compile(r"\.(zip|tar|tgz|tar\.\w+)$", re.IGNORECASE)

_TABLE = re.compile(r"\.(csv|tsv|jsonl)$", re.IGNORECASE)
# Of a table, to see whether it is about pictures.
_LOOKED_AT_BYTES = 1_000_000

_log = logging.getLogger("trainer")
Found = tuple[str, str]
"""The path of an entry, as it can be printed, and why it cannot be read; empty where it can."""
Classes = dict[str, tuple[str, list[Found]]]
"""{class: (its folder, what is in it, by path)}."""
Identity = tuple[int, int]
"""Device and number of a folder."""


class UndecodableError(TrainerError):
    """Too many pictures are of kinds that cannot be decoded."""


def holds_results(folder: str) -> bool:
    """Returns whether a folder is that of a run, a cross-validation or a sweep of this program."""
    return any(os.path.exists(f"{folder}/{name}") for name in _OF_RESULTS)


class Listing:
    """Walks folders and counts the files it leaves out.

    Of files whose names leave doubt of what they are, the first bytes are read; no pipe can stop it. Folders
    of runs are left out, as many keep them beside their pictures.
    """

    def __init__(self, name: str, *, results: Sequence[Path] = ()):
        """Begins.

        Args:
          name: what messages call the source.
          results: folders that this program writes to; those of earlier runs are known by their files.
        """
        self.name = name
        self._results = {os.path.realpath(folder) for folder in results}
        # A look at the name alone spares most folders the others.
        self._named = {os.path.basename(folder) for folder in (*self._results, *map(str, results))}
        self._of_runs: list[str] = []
        self._left_out: Counter[str] = Counter()
        self._undecodable: Counter[str] = Counter()
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
            # Not sorted: it may be the folder of a class, which is listed once more.
            entries = [entry for entry in self._scanned(folder) if not self._is_of_runs(entry)]
            folders = sorted(entry.name for entry in entries if _kind(entry)[0] and not is_system(entry.name))
            files = (e for e in entries if not is_system(e.name) and _kind(e) == (False, ""))
            pictures = (entry for entry in files if kind_of_file(entry.path, entry.name))
            self._looked_into[folder] = folders, sum(1 for _ in islice(pictures, len(folders) + 1))
        return self._looked_into[folder]

    def classes(self, folder: Path, above: tuple[Path, ...] = (), *, may_be_empty: bool = False) -> Classes:
        """Returns the classes in a folder, with at least one entry each.

        Args:
          folder: of class folders.
          above: the folders that it lies in, as far as links could lead back to them.
          may_be_empty: whether class folders without pictures are passed over.

        Raises:
          TrainerError: it holds no class folders, or a class holds no picture.
        """
        found: Classes = {}
        loose: list[str] = []
        empty = 0
        chain = tuple(self.identity(path) for path in (*above, folder))
        entries = self._entries(folder)
        kinds = picture_kinds(entries)
        for entry in entries:
            if self._is_class(folder, entry):
                if self.identity(folder / entry.name) in chain:
                    raise self._error(f"the class folder {folder / entry.name} cannot be used: {_LOOP}")
                before, runs_before = (self._left_out.copy(), self._undecodable.copy()), len(self._of_runs)
                pictures = sorted(self._pictures(folder / entry.name, chain))
                self._require_one_spelling(folder, entry.name, found)
                if pictures:
                    found[composed(entry.name)] = entry.name, pictures
                elif len(self._of_runs) > runs_before:
                    continue
                elif may_be_empty:
                    empty += 1
                    _log.warning("%s: the class folder %s holds no picture", self.name, folder / entry.name)
                else:
                    raise self._empty(folder / entry.name, *before)
            elif kinds[entry.name]:
                loose.append(entry.name)
            else:
                self._left_out[_ending(entry.name)] += 1
        if not found and not empty:
            what = f"{len(loose)} pictures but no class folders" if loose else "no class folders"
            raise self._error(
                f"{folder} has {what}: pictures must be in one folder a class, as in roses/1.jpg"
                f"{meant_instead(folder, loose[:20]) if self.name.startswith('folder:') else ''}"
            )
        if loose:
            _log.warning(
                "%s: left out %d pictures directly in %s, in no class", self.name, len(loose), folder
            )
        return found

    def _empty(self, folder: Path, left_out: Counter[str], undecodable: Counter[str]) -> TrainerError:
        """Returns what is wrong with a class, given what was left out before it."""
        if kinds := self._undecodable - undecodable:
            return self._error(
                f"the class folder {folder} holds no picture that can be decoded, but {told_kinds(kinds)}"
            )
        others = _counted(self._left_out - left_out)
        return self._error(
            f"the class folder {folder} holds no picture{f' (but {others})' if others else ''}: {EXPECTED}. "
            "Remove the folder, or put pictures into it"
        )

    def _require_one_spelling(self, folder: Path, name: str, found: Classes) -> None:
        if other := found.get(composed(name)):
            raise self._error(
                f"{folder} has the class {composed(name)} twice, in two spellings of Unicode: {other[0]!a} "
                f"and {name!a}. Move the pictures of one into the other"
            )

    def tell_left_out(self, num_pictures: int, *, on_bad_image: str) -> None:
        """Says which files were no pictures, and which pictures are of kinds that cannot be decoded.

        Args:
          num_pictures: that can be, by their kind.
          on_bad_image: fail, or skip, which leaves out however many.

        Raises:
          UndecodableError: they are more than a tenth.
        """
        if self._of_runs:
            _log.info(
                "%s: left out %s: results of this program, no pictures",
                self.name, ", ".join(sorted({*self._of_runs})[:_MOST_RUNS]),
            )  # fmt: skip
        if self._left_out:
            _log.info(
                "%s: left out %s: no pictures, or other forms of those beside them",
                self.name, _counted(self._left_out),
            )  # fmt: skip
        if not (count := self._undecodable.total()):
            return
        total, told = num_pictures + count, told_kinds(self._undecodable)
        if count > _MOST_UNDECODABLE * total and on_bad_image != "skip":
            raise UndecodableError(
                f"--source={self.name}: {count:,} of {total:,} pictures cannot be decoded: {told}. "
                "--on_bad_image=skip leaves them out"
            )
        _log.warning(
            "%s: left out %s of %s pictures, which cannot be decoded: %s",
            self.name, f"{count:,}", f"{total:,}", told,
        )  # fmt: skip

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
        entries = self._entries(folder)
        kinds = picture_kinds(entries)
        for entry in entries:
            problem = name_problem(entry.name)
            shown = shown_name(entry.name) if problem else entry.name
            is_folder, broken = _kind(entry)
            if not is_folder:
                if (kind := kinds[entry.name]) in DECODABLE:
                    yield shown, broken or problem
                elif kind:
                    self._undecodable[kind] += 1
                else:
                    self._left_out[_ending(entry.name)] += 1
            elif kind_by_name(entry.name):
                yield shown, "a folder, not a picture"
            elif problem:
                yield shown, problem.replace("its name", "the name of this folder")
            elif self.identity(folder / entry.name) in chain:
                yield shown, _LOOP
            else:
                inner = self._pictures(folder / entry.name, chain)
                yield from ((f"{shown}/{path}", reason) for path, reason in inner)

    def _entries(self, folder: Path) -> list[os.DirEntry[str]]:
        entries = [entry for entry in self._scanned(folder) if not is_system(entry.name)]
        of_runs = [entry for entry in entries if self._is_of_runs(entry)]
        self._of_runs += [f"{entry.path}/" for entry in of_runs]
        return sorted((entry for entry in entries if entry not in of_runs), key=lambda entry: entry.name)

    def _is_of_runs(self, entry: os.DirEntry[str]) -> bool:
        """Returns whether an entry is a folder that holds a run, or nothing but such folders."""
        if not _kind(entry)[0]:
            return False
        if entry.name in self._named and os.path.realpath(entry.path) in self._results:
            return True
        if holds_results(entry.path):
            return True
        try:
            with os.scandir(entry.path) as inner:
                first, *more = [one for one in islice(inner, _MOST_RUNS) if not is_system(one.name)]
        except (OSError, ValueError):
            return False
        return not entry.is_symlink() and all(self._is_of_runs(one) for one in (first, *more))

    def _scanned(self, folder: Path) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(folder) as found:
                return list(found)
        except FileNotFoundError:
            beside = [one.name for one in folder.parent.glob("*/")]
            near = is_it(close_names(folder.name, beside, n=1)) or ": expected a folder of class folders"
            raise self._error(f"{folder} does not exist{near}") from None
        except NotADirectoryError:
            archive = "; an archive is written archive:PATH" if _ARCHIVE.search(str(folder)) else ""
            raise self._error(f"{folder} is a file: expected a folder of class folders{archive}") from None
        except OSError as error:
            raise self._error(f"cannot list the folder {folder}: {error.strerror}") from None

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


def picture_kinds(entries: Iterable[os.DirEntry[str]]) -> dict[str, str]:
    """Returns {name: kind} of what is no folder, as `kinds_in` does.

    What is neither a folder nor a file, such as a link to nothing, is of the kind that its name says, and a
    picture where that ends in nothing.
    """
    files: list[os.DirEntry[str]] = []
    broken: list[os.DirEntry[str]] = []
    for entry in entries:
        is_folder, problem = _kind(entry)
        if not is_folder:
            (broken if problem else files).append(entry)
    kinds = kinds_in(files)
    for entry in broken:
        without_ending = "" if os.path.splitext(entry.name)[1] else DECODABLE[0]
        kinds[entry.name] = kind_by_name(entry.name) or without_ending
    return kinds


def meant_instead(folder: Path, pictures: Sequence[str]) -> str:
    """Returns what to write where a table, an archive or the folder above was meant; empty where none was.

    Args:
      folder: the source, or the one folder in it, without class folders.
      pictures: names of some that lie in it.
    """
    with contextlib.suppress(OSError):
        beside = [one for place in (folder, folder.parent) for one in _files(place, _TABLE)]
        # Of train.csv and sample_submission.csv the one that is called as the folder.
        beside.sort(key=lambda one: one.stem.lower() != folder.name.lower())
        if table := next((one for one in beside if _names_one(one, pictures)), None):
            where = f"--source=table:{shlex.quote(str(table))} --image_root={shlex.quote(str(folder))}"
            return f". If {table.name} says what is on them: {where}"
        if pictures and any(one != folder and _holds_pictures(one) for one in folder.parent.iterdir()):
            return f". If {folder.name} is a class itself: --source=folder:{shlex.quote(str(folder.parent))}"
        if not pictures and (archives := _files(folder, _ARCHIVE)):
            return f". For those in {archives[0].name}: --source=archive:{shlex.quote(str(archives[0]))}"
    return ""


def _files(folder: Path, ending: re.Pattern[str]) -> list[Path]:
    """Returns the files in a folder whose names end so, sorted."""
    found = (one for one in folder.iterdir() if ending.search(one.name) and not is_system(one.name))
    return sorted(one for one in found if one.is_file())


def _holds_pictures(folder: Path) -> bool:
    """Tells whether one of the first entries of what may be a folder is called as a picture."""
    if is_system(folder.name) or not folder.is_dir():
        return False
    with os.scandir(folder) as entries:
        return any(kind_by_name(entry.name) for entry in islice(entries, 20))


def _names_one(table: Path, pictures: Sequence[str]) -> bool:
    """Tells whether the beginning of a table names one of some pictures, be it without its ending."""
    with open(table, "rb") as file:
        text = file.read(_LOOKED_AT_BYTES)
    return any(os.path.splitext(name)[0].encode() in text for name in pictures)


def _ending(file: str) -> str:
    return os.path.splitext(shown_name(file))[1].lower() or "(no ending)"


def _counted(endings: Counter[str]) -> str:
    return ", ".join(f"{count} {ending}" for ending, count in sorted(endings.items()))
