"""How an option is declared. Standard library only."""

import difflib
import itertools
import math
import re
import signal
from collections.abc import Callable, Sequence
from dataclasses import field
from typing import Any

from trainer.registry import LARGEST, Bounds
from trainer.values import Duration, UsageError, as_number, parse_calls

LOCAL = "local"
FOR_TENSORFLOW = "for TensorFlow"
KINDS = PICTURES, SPLITS, NETWORK, RUN = "pictures", "splits", "network", "run"
ANY = Bounds()
# What --schedule=recommended chooses where nobody has.
RECOMMENDED = (
    "image_size", "resize", "head", "dropout", "frozen_for", "finetune_for", "frozen_learning_rate",
    "finetune_learning_rate", "lr_schedule", "warmup", "optimizer", "weight_decay", "augment", "average",
    "batch_size", "label_smoothing", "layer_decay",
)  # fmt: skip
BUDGETS = QUICK, BEST = ("quick", "best")
_SECS = {"s": 1, "sec": 1, "min": 60, "h": 3600}
AT_LEAST_0, AT_LEAST_1 = Bounds(at_least=0), Bounds(at_least=1)
SHARE = Bounds(at_least=0, at_most=1)

Check = Callable[[Any], str]
"""A value of the right type -> what is wrong with it, as it goes on after `--name=value`; empty: nothing."""


def length(value: str) -> str:
    """Checks a duration.

    Raises:
      UsageError: it is none.
    """
    Duration.parse(value)
    return ""


def more_than_0(value: str) -> str:
    """Checks a duration.

    Raises:
      UsageError: it is none.
    """
    return "" if Duration.parse(value).amount > 0 else " must be more than 0"


def never_or_more_than_0(value: str) -> str:
    """Checks a duration that may be empty, for never."""
    return more_than_0(value) if value else ""


def empty_or(*choices: str) -> Check:
    """Returns a check that a value is empty or one of some."""

    def check(value: str) -> str:
        return "" if value in ("", *choices) else f" is not one of {', '.join(choices)}"

    return check


def calls(such_as: str) -> Check:
    """Returns the check of names with arguments; whether there are such names is known when rooms are."""

    def check(value: str) -> str:
        try:
            parse_calls(value)
        except UsageError:
            return f" is not a list of names with arguments, such as {such_as}"
        return ""

    return check


def which_checkpoint(value: str) -> str:
    """Checks the name of a checkpoint."""
    is_one = value in ("best", "latest") or re.fullmatch("[0-9]{1,18}", value)
    return "" if is_one else " is not best, latest or a step number"


def updates(value: str) -> str:
    """Checks the number of an update, or two; empty for none."""
    is_one = not value or re.fullmatch("[0-9]{1,18}(-[0-9]{1,18})?", value)
    return "" if is_one else " is not the number of an update, or two such as 100-110"


def pattern(value: str) -> str:
    """Checks a regular expression; empty for none."""
    try:
        re.compile(value)
    except re.error as error:
        return f" is no regular expression: {error}"
    return ""


def rising_shares(value: str) -> str:
    """Checks shares such as 5%,50%,100%: three or more, each larger than the one before."""
    found = shares(value)
    is_rising = all(a < b for a, b in itertools.pairwise(found))
    is_one = len(found) >= 3 and is_rising and found[0] > 0 and found[-1] <= 1
    return "" if is_one else " must be three or more shares that rise up to 100%, such as 5%,20%,50%,100%"


def shares(value: str) -> list[float]:
    """Returns the numbers from 0 to 1 that shares such as 5%,50% stand for; none where one is no share."""
    parts = [re.fullmatch(r"([0-9]{1,3}(?:\.[0-9]{1,9})?)%", part.strip()) for part in value.split(",")]
    return [float(part[1]) / 100 for part in parts if part] if all(parts) else []


def part_of(value: str) -> str:
    """Checks which part of some is meant, such as 3/16."""
    match = re.fullmatch("([1-9][0-9]{0,5})/([1-9][0-9]{0,5})", value)
    is_one = match and int(match[1]) <= int(match[2])
    return "" if is_one else " is no part, such as 1/16 to 16/16"


def of_validation(value: str) -> str:
    """Checks the name of what trials are judged by."""
    is_one = re.fullmatch(r"validation_\S+", value)
    return "" if is_one else " is not a metric of validation, such as validation_accuracy or validation_loss"


def budget(value: str) -> str:
    """Checks how long a run may take; empty for what is recommended."""
    if not value or value in BUDGETS or budget_secs(value):
        return ""
    return f" is not a time, such as 5min, 90s or 1h, nor {' or '.join(BUDGETS)}"


def budget_secs(value: str) -> float:
    """Returns the seconds of a time such as 5min; 0 where it is none."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?(s|sec|min|h)", value)
    return float(match[1]) * _SECS[match[2]] if match else 0.0


def recommended_parts(value: Sequence[str]) -> str:
    """Checks names of options that --schedule=recommended may leave alone."""
    unknown = [name for name in value if name not in RECOMMENDED]
    return f": {unknown[0]!r} is not one of {', '.join(RECOMMENDED)}" if unknown else ""


def signals(value: str) -> str:
    """Checks names of signals, with commas between them."""
    # SIGKILL and SIGSTOP reach no program, SIGINT is always one.
    known = sorted({s.name for s in signal.Signals} - {"SIGKILL", "SIGSTOP", "SIGINT"})
    for name in filter(None, value.split(",")):
        if name not in known:
            close = ", ".join(difflib.get_close_matches(name.upper(), known)) or "SIGTERM, SIGUSR1, SIGUSR2"
            return f": {name!r} is no signal that can be waited for; close: {close}"
    return ""


ASSERTED = ("accuracy", "map", "macro_f1", "micro_f1", "samples_f1", "roc_auc")
OF_SEVERAL_LABELS = ("map", "micro_f1", "samples_f1")


def floors_of(value: str) -> dict[str, float]:
    """Returns {metric: the least it may be} of a text such as map=0.8,macro_f1=0.7.

    Raises:
      UsageError: it is no such text; the message goes on after the value.
    """
    found: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in value.split(","))):
        name, _, number = (piece.strip() for piece in part.partition("="))
        try:
            least = as_number(number)
        except ValueError:
            least = math.nan
        if name not in ASSERTED:
            raise UsageError(f"{value}: {name!r} is not one of {', '.join(ASSERTED)}")
        if not 0 <= least <= 1:
            raise UsageError(f"{value}: {name} needs a number from 0 to 1, as in {name}=0.8")
        found[name] = least
    return found


def floors(value: str) -> str:
    """Checks the least values of metrics; empty for none.

    Raises:
      UsageError: they cannot be read.
    """
    floors_of(value)
    return ""


def safe_limit(value: float) -> str:
    """Checks a limit on numbers in float32; 0 is none."""
    is_safe = value == 0 or 1 / LARGEST <= value <= LARGEST
    return "" if is_safe else f" must be from {1 / LARGEST:g} to {LARGEST:g}, or 0 for no limit"


def option(
    default: Any,
    help: str,
    *,
    choices: Sequence[str] = (),
    bounds: Bounds = ANY,
    check: Check | None = None,
    identity: bool | str = True,
    short: bool = False,
    path: str = "",
) -> Any:
    """Declares one option.

    Args:
      default: its value when no flag sets it; its type is the flag's type.
      help: one line, with the unit where there is one.
      choices: the allowed values of an enum.
      bounds: of a number; a whole one is below 2**63 besides.
      check: of what bounds cannot say.
      identity: whether the numbers of a run depend on it, so that a run may not be resumed under another
        value. Of an option that only names something, what: PICTURES, SPLITS, NETWORK or RUN; another value
        is the same run if it names the same.
      short: whether `--help` shows it; `--helpfull` shows all.
      path: of a path on this machine: LOCAL, or FOR_TENSORFLOW where TensorFlow reads checkpoints or a
        SavedModel there. It is checked before anything else happens.
    """
    metadata = {
        "help": help,
        "choices": tuple(choices),
        "bounds": bounds,
        "check": check,
        "identity": identity,
        "short": short,
        "path": path,
    }
    return field(default=default, metadata=metadata)
