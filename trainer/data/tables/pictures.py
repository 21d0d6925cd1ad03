"""Where the picture is that a row of a table names, be it without its ending or as on another system."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from trainer.data.inspect.bad_pictures import name_problem, shown_name
from trainer.data.inspect.kinds import PICTURE_ENDINGS, kind_by_name
from trainer.paths import scheme_of
from trainer.values import composed

_DRIVE = re.compile(r"[A-Za-z]:[\\/]")


@dataclass(frozen=True)
class Named:
    """A picture that a row names.

    Attributes:
      name: for people and as an id: its path below the folder of the table, or in full.
      path: absolute; empty where there is none.
      problem: why it cannot be read; empty where it can.
    """

    name: str
    path: str = ""
    problem: str = ""


class Finder:
    """Finds pictures that are named relative to a folder."""

    def __init__(self, top: Path, root: Path, *, is_asked: bool):
        """Notes where to look.

        Args:
          top: the folder that ids are paths below.
          root: what paths in the table are relative to.
          is_asked: whether somebody has said so: then what has the path of another machine is looked for
            there, too.
        """
        self._top, self._root, self._is_asked = str(top), str(root), is_asked

    def find(self, value: Any) -> Named:
        """Returns the picture that a value names; the value is no empty one."""
        text = str(value).strip()
        if scheme_of(text) == "file":
            text = _path_of(re.sub(r"^file:/*(?=/)", "", text, flags=re.I))
        elif scheme_of(text):
            return Named(shown_name(text), "", "an address, and only files are read: download it first")
        if "\0" in text:
            return Named(shown_name(text), "", "its name holds a zero byte")
        for path in self._candidates(text):
            if os.path.exists(path):
                return self._named(path)
        return self._named(os.path.normpath(os.path.join(self._root, text)), problem="there is no such file")

    def is_file(self, value: Any) -> bool:
        """Tells whether a value names a picture that is there."""
        return isinstance(value, str | int) and not self.find(value).problem

    def _candidates(self, text: str) -> list[str]:
        """Returns the paths that a picture may have, the likeliest first."""
        is_foreign = "\\" in text
        texts = [text, text.replace("\\", "/")] if is_foreign else [text]
        if self._is_asked and (os.path.isabs(text) or _DRIVE.match(text)):
            parts = [part for part in texts[-1].split("/") if part][1:]
            texts += ["/".join(parts[at:]) for at in range(len(parts))]
        spellings = dict.fromkeys(one for text in texts for one in (text, composed(text)))
        paths = [os.path.normpath(os.path.join(self._root, one)) for one in spellings]
        if kind_by_name(text) is None:
            paths += [f"{path}{ending}" for path in paths for ending in (*PICTURE_ENDINGS, ".JPG", ".PNG")]
        return paths

    def _named(self, path: str, *, problem: str = "") -> Named:
        inside = path.startswith(f"{self._top}/")
        name = path[len(self._top) + 1 :] if inside else path
        wrong = name_problem(name)
        return Named(shown_name(name) if wrong else name, path, problem or wrong)


def _path_of(address: str) -> str:
    """Returns the path behind `file://`: with what `%20` stands for, unless a file is called so."""
    return address if os.path.exists(address) else unquote(address)
