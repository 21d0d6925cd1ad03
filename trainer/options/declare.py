"""How an option is declared. Standard library only."""

from collections.abc import Sequence
from dataclasses import field
from typing import Any

LOCAL = "local"
FOR_TENSORFLOW = "for TensorFlow"


def option(
    default: Any,
    help: str,
    *,
    choices: Sequence[str] = (),
    identity: bool = True,
    short: bool = False,
    path: str = "",
) -> Any:
    """Declares one option.

    Args:
      default: its value when no flag sets it; its type is the flag's type.
      help: one line, with the unit where there is one.
      choices: the allowed values of an enum.
      identity: whether the numbers of a run depend on it, so that a run may not be resumed
        under another value.
      short: whether `--help` shows it; `--helpfull` shows all.
      path: of a path on this machine: LOCAL, or FOR_TENSORFLOW where TensorFlow reads checkpoints or a
        SavedModel there. It is checked before anything else happens.
    """
    metadata = {
        "help": help,
        "choices": tuple(choices),
        "identity": identity,
        "short": short,
        "path": path,
    }
    return field(default=default, metadata=metadata)
