"""The small value types that options are made of, and the errors and words a user meets.

Standard library only, and nothing of ours: everything else may import this.
"""

import ast
import dataclasses
import difflib
import errno
import itertools
import math
import os
import re
import sys
import traceback
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

PRECISIONS = ("float32", "bfloat16", "float16")
"""What a network can compute in; see `precision`."""
ENGINES = TENSORFLOW, OPENVINO = ("tensorflow", "openvino")
"""What can run a network that does not change; see `precision`."""


class TrainerError(Exception):
    """Something about the data, files or network is wrong. One clear line; exit status 1."""

    exit_status = 1


class UsageError(TrainerError):
    """A flag or its value is wrong. One clear line; exit status 2."""

    exit_status = 2


class CommonError(TrainerError):
    """What all workers of a run find out, each by itself, such as a score that is too low; exit status 1."""


class MachineError(TrainerError):
    """The machine is in the way, such as a full disk, and would be of any other run, too; exit status 1."""


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop; all that was done is saved. Exit status 75, as of sendmail: try again.

    Not an Exception: it may come from a signal at any place, and who catches errors there must not take it
    for one.
    """

    exit_status = 75


def told_by_tensorflow(error: BaseException) -> str:
    """Returns in a line what an error of TensorFlow or Keras says, without all that is written around it.

    Around it are where in a program, or in which layer, the operation was made, over many lines before the
    error itself, the names of node and operation, and the stack of an error in Python.
    """
    text = str(getattr(error, "message", None) or error).strip()
    if text.startswith("in user code:"):
        # While a function was traced: the last line that names an error is the one.
        told = re.findall(r"^ *\w+(?:Error|Exception): *(.+)$", text, re.MULTILINE)
        text = told[-1] if told else text
    lines = text.split("\n\t [[")[0].splitlines()
    said = [line.strip() for line in itertools.dropwhile(_is_about_the_place, lines)]
    if said and re.fullmatch(r"\d+ root error\(s\) found\.", said[0]):
        said = [re.sub(r"^\(\d+\) [A-Z_]+: *", "", line) for line in said[1:]]
    first = re.sub(r"^\{\{.*?\}\} *", "", said[0].split(" [Op:")[0]) if said else ""
    return _IN_A_PIPELINE.sub("", first).strip()[:300] or type(error).__name__


# What tf.data puts before the error of a function that it maps.
_IN_A_PIPELINE = re.compile(
    r"^Error in user-defined function passed to \S+ transformation with iterator: \S+: "
)
_PLACES = ("Graph execution error:", "Detected at node", "Node:", "<stack traces", "Exception encountered")


def _is_about_the_place(line: str) -> bool:
    """Returns whether a line before the error itself says where it was raised; stacks are indented."""
    return not line.strip() or line.startswith((" ", *_PLACES))


def lacks_memory(error: BaseException) -> bool:
    """Returns whether an error is that there is too little memory, of this program or of a device."""
    if "ResourceExhaustedError" in _kinds_of_tensorflow(error):
        # A full disk is exhausted, too.
        return bool(re.search("OOM|[Oo]ut of memory|llocat", told_by_tensorflow(error)))
    return isinstance(error, MemoryError)


def _kinds_of_tensorflow(error: BaseException) -> set[str]:
    # By name: whoever asks may have no TensorFlow, which takes seconds to import.
    return {kind.__name__ for kind in type(error).__mro__ if kind.__module__.startswith("tensorflow.")}


def failure_in_words(error: BaseException) -> str:
    """Returns what an error of TensorFlow's operations, or want of memory, is to be told as; else ''."""
    is_memory = lacks_memory(error)
    if not is_memory and "OpError" not in _kinds_of_tensorflow(error):
        return ""
    told = told_by_tensorflow(error)
    if not is_memory:
        return f"TensorFlow failed: {told}"
    tensor = re.search(r"shape\s?(\[[\d,]*\]) and type (\w+)", told)
    what = f"there is no room for a tensor of shape {tensor[1]} ({tensor[2]})" if tensor else told
    return f"out of memory: {what}. {LESS_MEMORY}"


def close_names(name: str, known: Iterable[str], *, n: int = 2) -> list[str]:
    """Returns which names somebody may have meant, the likeliest first: the same but for case, or nearly.

    A name that is a word of what was written counts, too: `horizontal_flip` may mean `flip`.
    """
    words = re.findall(r"[^\W_]+", name.casefold())
    wanted, plain = "".join(words), {one: re.sub(r"[\W_]", "", one.casefold()) for one in known}
    if not wanted:
        return []
    same = [one for one, text in plain.items() if text == wanted]
    if same:
        return same[:n]
    close = difflib.get_close_matches(wanted, plain.values(), n=n)
    found = sorted(
        (one for one, text in plain.items() if text in close), key=lambda one: close.index(plain[one])
    )
    return (found or [one for one, text in plain.items() if len(text) > 2 and text in words])[:n]


def is_it(close: Sequence[str]) -> str:
    """Returns the end of a message: ': is it a or b?', or nothing where nothing is close."""
    return f": is it {' or '.join(close)}?" if close else ""


def in_words(error: Exception) -> str:
    """Returns the one line that an error is told in; '' where only its traceback helps."""
    if isinstance(error, TrainerError):
        return str(error)
    if isinstance(error, OSError):
        # A full disk, a lost network drive. Where it names no file, the line of code says what was tried.
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{frame.line} ({os.path.basename(frame.filename)}, line {frame.lineno})"
        told = f"{error.strerror or error}: {error.filename or place}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            told += ". Make room there and run the same command again: what was saved before is kept"
        return told
    return failure_in_words(error)


def called() -> str:
    """Returns what the program is called by: hub-trainer where it was started so, else what always works."""
    return "hub-trainer" if os.path.basename(sys.argv[0]) == "hub-trainer" else "python -m trainer.main"


LESS_MEMORY = (
    "A smaller --batch_size or --image_size needs less; in training also --accumulate=2, which computes each "
    "batch in 2 parts"
)


@dataclass(frozen=True)
class Duration:
    """A length of training with its unit: `10epochs`, `500steps`, `20000examples` or `10%`."""

    amount: float
    unit: str

    @classmethod
    def parse(cls, text: str, flag: str = "") -> "Duration":
        """Reads a duration.

        Raises:
          UsageError: `text` is not a number followed by a unit.
        """
        number = r"[0-9]{1,15}(?:\.[0-9]+)?"
        match = re.fullmatch(rf"\s*({number})\s*((?:epoch|step|example)s?|%)\s*", str(text))
        if not match:
            where = f"{flag}=" if flag else ""
            raise UsageError(
                f"{where}{text}: a length needs a number and a unit: 10epochs, 500steps, 20000examples or 10%"
            )
        unit = match[2] if match[2] == "%" else match[2].rstrip("s") + "s"
        return cls(float(match[1]), unit)

    def to_steps(self, *, num_examples: int, batch_size: int, total_steps: int | None = None) -> int:
        """Returns the number of updates, rounded half up, at least 1 unless the amount is 0.

        Args:
          num_examples: size of the training split.
          batch_size: examples per update.
          total_steps: what a percentage is taken of.

        Raises:
          UsageError: a percentage where there is nothing to take it of.
        """
        # An epoch is a whole number of batches: the last one is padded, not carried over.
        per_epoch = math.ceil(num_examples / batch_size)
        if self.unit == "%" and total_steps is None:
            raise UsageError(f"{self} is a share of nothing here: use epochs, steps or examples")
        steps = {
            "steps": self.amount,
            "epochs": self.amount * per_epoch,
            "examples": self.amount / batch_size,
            "%": self.amount * (total_steps or 0) / 100,
        }[self.unit]
        return max(1, math.floor(steps + 0.5)) if self.amount > 0 else 0

    def __str__(self) -> str:
        """Returns what `parse` reads as the same duration."""
        # All digits, and never an exponent.
        digits = f"{Decimal(repr(self.amount)):f}"
        return f"{digits.removesuffix('.0')}{self.unit}"


def composed(name: str) -> str:
    """Returns a name in the spelling of Unicode that names are compared in, NFC: é as one character.

    A Mac, or what came from one, may write it as e and an accent.
    """
    return unicodedata.normalize("NFC", name)


def half_in(text: str) -> str:
    r"""Returns the first half of a character in a text, such as \ud800 of JSON, escaped; empty: none.

    What stands for bytes of a file's name that are no UTF-8 is none.
    """
    try:
        text.encode(errors="surrogateescape")
    except UnicodeEncodeError as error:
        return ascii(text[error.start])[1:-1]
    return ""


def in_any_order(words: str) -> str:
    """Returns names with commas between them as they are compared where their order says nothing."""
    return ", ".join(sorted(composed(words).split(", ")))


def as_number(text: str) -> float:
    """Returns the number that a text is, in digits from 0 to 9; Python's `float` takes any of Unicode, and _.

    Raises:
      ValueError: it is none.
    """
    if not text.isascii() or "_" in text:
        raise ValueError(f"{text!r} is not a number")
    return float(text)


def parse_pair(text: str, *, flag: str, what: str) -> tuple[float, float]:
    """Reads two numbers with a comma between them, the lower one first.

    Args:
      text: such as `-1,1`.
      flag: for messages, such as `--value_range`.
      what: what they are, with an example.

    Raises:
      UsageError: the text is not two finite numbers in rising order.
    """
    try:
        low, high = map(as_number, text.split(","))
    except ValueError:
        raise UsageError(f"{flag}={text} is not two {what}") from None
    if not -math.inf < low < high < math.inf:
        raise UsageError(f"{flag}={text}: the first number must be below the second")
    return low, high


@dataclass(frozen=True)
class Call:
    """A name with arguments, as in `mlp(1024,512)` or `focal(gamma=2)`."""

    name: str
    args: tuple[Any, ...] = ()
    named: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        """Returns what `parse_calls` reads as the same call."""
        arguments = [*map(repr, self.args), *(f"{name}={value!r}" for name, value in self.named)]
        return f"{self.name}({','.join(arguments)})" if arguments else self.name


class Calls(tuple[Call, ...]):
    """Calls one after another."""

    def __str__(self) -> str:
        return ",".join(map(str, self))


def parse_calls(text: str, *, flag: str = "", such_as: str = "flip,crop(0.6)") -> Calls:
    """Reads a list such as `flip,crop(0.6)`; arguments are numbers, True, False or texts in quotes.

    Args:
      text: what is read.
      flag: what messages begin with, such as `--augment`.
      such_as: what messages end with.

    Raises:
      UsageError: the text is not such a list.
    """
    if not text.strip():
        return Calls()
    try:
        tree = ast.parse(f"[{text}]", mode="eval").body
        if not isinstance(tree, ast.List):
            raise ValueError("the text closes the bracket around it")
        return Calls(map(_call, tree.elts))
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        what = f"{flag}={text}" if flag else repr(text)
        raise UsageError(f"{what} is not a list of names with arguments, such as {such_as}") from None


def _call(node: ast.expr) -> Call:
    if isinstance(node, ast.Name):
        return Call(node.id)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and all(k.arg for k in node.keywords):
        named = tuple((str(one.arg), ast.literal_eval(one.value)) for one in node.keywords)
        return Call(node.func.id, tuple(ast.literal_eval(arg) for arg in node.args), named)
    raise ValueError(f"not a name or a call: {ast.dump(node)}")


# A Contract as JSON has it, for `files.require_shape`.
CONTRACT_SHAPE = {
    "height_px": int,
    "width_px": int,
    "value_range": (float, float),
    "feature_width": int,
    "any_size": bool,
    "resize": str,
    "dtype": str,
    "fit?": str,
    "antialias?": bool,
    "resizes_bytes?": bool,
}
FITS = ("stretch", "crop", "pad")
"""How a picture of any aspect is brought to a network's size; see `Contract.fit`."""
AUTO = "auto"
"""Of --resize: what the network says."""
FEATURES = ("cls", "mean", "cls+mean")
"""What a transformer with a class token can give; see `--features`."""
PADDING = 0.5
"""What is around a padded picture, from 0, black, to 1: the middle grey, about 0 to most networks."""


@dataclass(frozen=True)
class Contract:
    """What a backbone wants to be fed and what it gives, so that nobody has to guess.

    `height_px` and `width_px` are those of this run; `any_size` tells whether another could be
    asked for. Images are RGB float32 in `value_range`; features are [B, feature_width] float32.
    """

    height_px: int
    width_px: int
    value_range: tuple[float, float]
    feature_width: int
    any_size: bool
    resize: str = "bilinear"
    dtype: str = "float32"
    fit: str = "stretch"
    """One of FITS. stretch: all of a picture, whatever that does to its aspect. crop: the largest part in its
    middle that has the aspect of `height_px` and `width_px`. pad: all of it in its own aspect, in the middle,
    with PADDING around it. A network may say it, or --resize does, by `model.backbones.open_backbone`."""
    antialias: bool = False
    """Whether shrinking takes all pixels into account, by a kernel that widens with it; without, each new
    pixel is made of four. A network may say it, or --antialias does."""
    resizes_bytes: bool = False
    """Whether the 8-bit numbers of a picture are resized, and what comes out is divided by 255. The other way
    round, all pixels of a large photo become floats first, which takes longer than to decode them. The two
    differ in the last bit, so runs keep the one that they were begun with."""

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Contract":
        """Returns what CONTRACT_SHAPE describes; what is older than a field was made by its default.

        Raises:
          ValueError: it asks for what this version does not know.
        """
        known = {field.name: values[field.name] for field in dataclasses.fields(cls) if field.name in values}
        contract = cls(**{**known, "value_range": tuple(values["value_range"])})
        if contract.fit not in FITS:
            raise ValueError(f"contract.fit is {contract.fit!r}, expected one of {', '.join(FITS)}")
        return contract

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return (self.height_px, self.width_px, 3)


class Dial(float):
    """A number that a traced function reads from a variable, so that another one needs no new trace.

    As a float it is the number it was made with. Whoever makes it sets `variable`, and `rest`, which holds 1
    minus the number, both [] float32. They are two, because 1 minus a number in float32 is not always the
    float32 of 1 minus the number, which a trace without dials has.
    """

    variable: Any
    rest: Any


def turned(number: float) -> Any:
    """Returns what a trace computes with: the variable of a dial, or the number itself."""
    return number.variable if isinstance(number, Dial) else number


def rest_of(number: float) -> Any:
    """Returns 1 minus a number, as `turned`."""
    return number.rest if isinstance(number, Dial) else 1.0 - number


def of_one_device(variable: Any) -> Any:
    """Returns the variable of one device, for what is the same on all of them, to read it to the last bit.

    Read as a whole, statistics of BatchNorm are the mean over the devices: of three, rounded. What is a sum
    over devices, such as the metrics, stays whole.
    """
    import tensorflow as tf

    is_sum = variable.aggregation == tf.VariableAggregation.SUM
    is_divided = isinstance(variable, tf.distribute.DistributedValues)
    return variable.values[0] if is_divided and not is_sum else variable


def put(variable: Any, value: Any) -> None:
    """Sets a variable, on all devices; of what is a sum over them, all is on the first.

    TensorFlow would put an equal share on each: a third, rounded.
    """
    import tensorflow as tf

    is_divided = isinstance(variable, tf.distribute.DistributedValues)
    if not is_divided or variable.aggregation != tf.VariableAggregation.SUM:
        variable.assign(value)
        return
    resolver = variable.distribute_strategy.cluster_resolver
    is_first = not resolver or resolver.task_id == 0
    for at, part in enumerate(variable.values):
        part.assign(value if is_first and at == 0 else tf.zeros_like(value))
