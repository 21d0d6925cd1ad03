"""`recipes`: lists the flagfiles of experiments/, which come with the package, and writes them."""

import difflib
import logging
from pathlib import Path

from trainer.cli.flags import CommandLine
from trainer.paths import local_path
from trainer.store.files import require_place, write_bytes
from trainer.values import TrainerError, UsageError, called

_log = logging.getLogger("trainer")
# They are called so in the notebooks at their beginnings, and in the docs.
FOLDER = "experiments"


def run(line: CommandLine) -> int:
    """Lists the recipes, or writes those that the paths name below the working folder; returns the status."""
    found = find_recipes()
    for name in line.paths:
        if _name(name) not in found:
            close = difflib.get_close_matches(_name(name), found) or sorted(found)
            raise UsageError(f"there is no recipe {name!r}; there are {', '.join(close)}")
    if not line.paths:
        width = max(map(len, found))
        for name, path in found.items():
            print(f"{name:<{width}}  {title(path)}")
        print(f"\nrecipes NAME writes one into {FOLDER}/, to be read, changed and trained with.")
        return 0
    for name in dict.fromkeys(map(_name, line.paths)):
        _write(found[name])
    return 0


def find_recipes() -> dict[str, Path]:
    """Returns {name: its flagfile}: those of the package, or of the checkout that this code is in.

    Raises:
      TrainerError: there are none, as the package was not built from a whole checkout.
    """
    trainer = Path(__file__).parents[1]
    for folder in (trainer / "recipes", trainer.parent / FOLDER):
        if found := {path.stem: path for path in sorted(folder.glob("*.flags"))}:
            return found
    raise TrainerError(f"the recipes are missing from {trainer}: install the package anew")


def title(flagfile: Path) -> str:
    """Returns the first line of the notebook that a flagfile begins with."""
    return flagfile.read_text(encoding="utf-8").partition("\n")[0].removeprefix("#").strip()


def _name(word: str) -> str:
    """Returns the name of a recipe that may have been given as its file."""
    return word.removeprefix(f"{FOLDER}/").removesuffix(".flags")


def _write(recipe: Path) -> None:
    """Writes a recipe, but not over another file."""
    flag = f"{FOLDER}/{recipe.name}"
    path, data = local_path(flag, flag=flag), recipe.read_bytes()
    require_place(path, flag=flag)
    if path.exists() and path.read_bytes() != data:
        raise TrainerError(f"{flag} is there already, and is another one: move it, or work in another folder")
    write_bytes(path, data)
    _log.info(
        "%s: to train with it: %s --flagfile=%s --workdir=runs/%s",
        flag,
        called(),
        flag,
        recipe.stem,
    )
