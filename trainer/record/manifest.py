"""Which files in a folder a command wrote: only these may it replace or remove later."""

import contextlib
import hashlib
import logging
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

from trainer.store.files import read_json, write_json
from trainer.values import TrainerError

_log = logging.getLogger("trainer")
FORMAT = 1
# In place of a digest: it is, or was, about to be written, so that whatever it holds is ours.
_BEGUN = ""


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a file, 64 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Manifest:
    """The record of the files that one kind of command wrote into a folder, KIND_manifest.json there.

    Names are relative to the folder, with slashes. A file that somebody changed since is no longer ours:
    it is neither removed nor overwritten, but renamed where its name is needed.
    """

    def __init__(self, folder: Path, kind: str, *, older: Callable[[Path], Iterable[str]]):
        """Reads the record, if there is one that is whole.

        Args:
          folder: which need not be there.
          kind: of the command, as it appears in the name of the record.
          older: from the folder to the names of what versions without a record wrote there.
        """
        self._folder = folder
        self.name = f"{kind}_manifest.json"
        self.files: dict[str, str] = _read(folder / self.name)
        if not self.files:
            self.files = {name: _BEGUN for name in older(folder) if _is_inside(name)}

    def is_ours(self, name: str) -> bool:
        """Tells whether a file is as this kind of command left it."""
        path = self._folder / name
        if name == self.name:
            return True
        return name in self.files and path.is_file() and self.files[name] in (_BEGUN, sha256_of(path))

    def require_free(self, names: Iterable[str], *, flag: str) -> None:
        """Makes sure, before the work, that nobody else's file is where one is to be written.

        Raises:
          TrainerError: one is; the message begins with `flag`, such as `--output=x`.
        """
        for name in names:
            path = self._folder / name
            if path.is_dir() or (path.exists() and name not in self.files):
                raise TrainerError(
                    f"{flag} holds {name}, which this command did not write and would have to replace: "
                    "move it, or name another folder"
                )

    def begin(self, names: Iterable[str]) -> None:
        """Notes what is about to be written; a file that is not ours and in the way gets another name."""
        names = list(names)
        for name in names:
            if (self._folder / name).exists() and not self.is_ours(name):
                kept = (self._folder / name).rename(aside_name(self._folder / name))
                _log.warning("%s was changed by hand: it is kept as %s", self._folder / name, kept.name)
        self.files |= dict.fromkeys(names, _BEGUN)
        self._write()

    def finish(self, names: Iterable[str]) -> None:
        """Notes what was written, and removes what was written earlier and is not among it."""
        names = set(names)
        for name in [name for name in self.files if name not in names]:
            if self.is_ours(name):
                (self._folder / name).unlink()
            elif (self._folder / name).exists():
                _log.warning("%s was changed by hand: it stays", self._folder / name)
            del self.files[name]
        self.add(names)

    def add(self, names: Iterable[str]) -> None:
        """Notes what was written besides."""
        self.files |= {name: sha256_of(self._folder / name) for name in names}
        self._write()

    def _write(self) -> None:
        write_json(self._folder / self.name, {"format": FORMAT, "files": dict(sorted(self.files.items()))})


def aside_name(path: Path) -> Path:
    """Returns a path that is not there, such as notes.edited.md or notes.edited-2.md for notes.md."""
    kept, number = path.with_name(f"{path.stem}.edited{path.suffix}"), 1
    while kept.exists():
        number += 1
        kept = path.with_name(f"{path.stem}.edited-{number}{path.suffix}")
    return kept


def _read(path: Path) -> dict[str, str]:
    """Returns {name: digest}; nothing where no record is, or none that can be read."""
    with contextlib.suppress(OSError, TrainerError):
        found = read_json(path, {"format": int, "files": {str: str}})
        if found["format"] == FORMAT:
            return {name: digest for name, digest in found["files"].items() if _is_inside(name)}
    return {}


def _is_inside(name: str) -> bool:
    """Tells whether a name, which anybody may have written, is of something below the folder."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\0" not in name
