"""The names of tf_keras.applications, read from its code where it is not imported, which takes seconds."""

import ast
import functools
import importlib.util
import sys
from pathlib import Path

from trainer.values import UsageError, close_names


def application_names() -> tuple[str, ...]:
    """Returns the names of all image models of tf_keras.applications, sorted."""
    there = sys.modules.get("tf_keras.applications")
    if there is None:
        return _names_in_code()
    return tuple(sorted(name for name, value in vars(there).items() if name[0].isupper() and callable(value)))


@functools.cache
def _names_in_code() -> tuple[str, ...]:
    """Reads `__init__.py`, which is made by a program, and imports each model by a line of its own."""
    found = importlib.util.find_spec("tf_keras")
    [folder] = (found and found.submodule_search_locations) or [""]
    tree = ast.parse((Path(folder) / "applications" / "__init__.py").read_text(encoding="utf-8"))
    imported = (one for node in tree.body if isinstance(node, ast.ImportFrom) for one in node.names)
    names = {one.asname or one.name for one in imported}
    return tuple(sorted(name for name in names if name[0].isupper()))


def known_application(name: str) -> str:
    """Returns the name as tf_keras.applications writes it; its case does not matter.

    Raises:
      UsageError: there is none; the message names the nearest ones.
    """
    names = application_names()
    for known in names:
        if known.lower() == name.lower():
            return known
    near = close_names(name, names, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(names)}"
    raise UsageError(f"--backbone=keras:{name}: tf_keras.applications has no such model; {hint}")


def check_application(name: str, *, flag: str) -> None:
    """Raises UsageError where there is no model of that name."""
    known_application(name)
