"""Pictures that cannot be used: why, in one line that can be printed."""

import os
import re
from collections.abc import Mapping, Sequence

from trainer.values import TrainerError

NAMED_AT_MOST = 20
SHOWN_AT_MOST = 3
_REASON_CHARACTERS = 300
# Line breaks among them: what follows one would pass for another line, or another column.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_BREAK = re.compile("[\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")


class BadPictureError(TrainerError):
    """A picture that cannot be used.

    `reason` says why without naming it. `lasting` tells whether that holds for as long as the picture
    is the same; a missing permission, say, can come any moment, and leaves no trace in the file.
    """

    def __init__(self, name: str, reason: str, *, lasting: bool = True):
        self.reason, self.lasting = one_line(reason), lasting
        super().__init__(f"{name} is not a picture that can be read: {self.reason}")


def refusal(source: str, ids: Sequence[str], bad: Mapping[int, str]) -> TrainerError:
    """Returns the error that names bad pictures, at most `NAMED_AT_MOST`, one a line.

    Args:
      source: its name.
      ids: of all its pictures.
      bad: {position: reason}.
    """
    lines = [f"  {ids[at]}: {bad[at]}" for at in sorted(bad)[:NAMED_AT_MOST]]
    if len(bad) > NAMED_AT_MOST:
        lines.append(f"  and {len(bad) - NAMED_AT_MOST:,} more")
    it = "it" if len(bad) == 1 else "them"
    first = f"{len(bad):,} of {len(ids):,} pictures in {source} cannot be used"
    return TrainerError("\n".join([f"{first}; --on_bad_image=skip leaves {it} out:", *lines]))


def told_left_out(left_out: Sequence[tuple[str, str]], *, total: int) -> str:
    """Returns a line that says how many pictures of how many are left out, and names the first.

    Args:
      left_out: [(id, reason)].
      total: how many the source has.
    """
    shown = "; ".join(f"{name}: {reason}" for name, reason in left_out[:SHOWN_AT_MOST])
    more = f"; and {len(left_out) - SHOWN_AT_MOST:,} more" if len(left_out) > SHOWN_AT_MOST else ""
    return f"left out {len(left_out):,} of {total:,} pictures, which cannot be used: {shown}{more}"


def one_line(text: str) -> str:
    """Returns a text without line breaks and control characters, and not too long."""
    text = _CONTROL.sub(lambda match: _escape(match[0]), " ".join(text.split()))
    return text if len(text) <= _REASON_CHARACTERS else text[: _REASON_CHARACTERS - 4] + " ..."


def name_problem(name: str) -> str:
    """Returns what is wrong with the name of a file, so that no list could hold it; empty if nothing is.

    Args:
      name: as `os` gives it; bytes that are not UTF-8 are surrogates.
    """
    try:
        name.encode()
    except UnicodeEncodeError:
        return "its name is not UTF-8: rename it"
    if _BREAK.search(name):
        return "its name holds a line break: rename it"
    return "its name holds a control character: rename it" if _CONTROL.search(name) else ""


def shown_name(name: str) -> str:
    r"""Returns a file's name as it can be printed: itself, or as bash and zsh read it, such as $'a\nb.jpg'.

    No two names are shown alike as long as those that are shown as they are do not end in a quote.
    """
    if not name_problem(name):
        return name
    text = os.fsencode(name.replace("\\", "\\\\").replace("'", "\\'")).decode("utf-8", "backslashreplace")
    return "$'" + _CONTROL.sub(lambda match: _escape(match[0]), text) + "'"


def _escape(character: str) -> str:
    # From 128 on, \x would be a byte that is not UTF-8.
    return f"\\u{ord(character):04x}" if ord(character) > 127 else character.encode("unicode_escape").decode()
