"""absl flags from the fields of Config: the only reader of flags."""

import dataclasses
import difflib
import functools
import json
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags as absl_flags

from trainer.cli.config import Config
from trainer.cli.declare import FOR_TENSORFLOW
from trainer.cli.usual_words import VERBS, WORDS, written_here
from trainer.paths import expanded, local_path
from trainer.values import UsageError, as_number, close_names, half_in, is_it

COMMANDS = {
    "train": "train, score the test split and write a report (what happens without a command)",
    "evaluate": "score a split of a finished run, or other pictures (--source), and write a report",
    "cross_validate": "train a run for each of --folds, tested on pictures it never saw, and sum them up",
    "compare": "put finished runs side by side, and test whether they differ: compare RUN RUN ...",
    "predict": "name what is on pictures with a finished run: files, folders, patterns or a list",
    "explain": "draw over pictures, or the worst mistakes, what a decision went by",
    "export": "write a finished run as SavedModel and TFLite, check each in a process of its own",
    "serve": "a page on this machine to drop pictures on: probabilities, and what they went by",
    "doctor": "say what this machine has and can reach, what is cached, and what is wrong",
    "benchmark": "measure input, forward, train step and epoch of each phase, and leave no run behind",
    "find_lr": "train some updates at a rising learning rate, draw the loss, and propose a rate",
    "learning_curve": "fit the head to parts of train, and say what twice the pictures would buy",
    "sweep": "train many runs with other options, chosen by what was good, and name the best",
    "features": "compute what a frozen network makes of pictures, or a part of it, for later runs",
    "audit": "list labels that are probably wrong, near duplicates, odd and poor pictures",
    "inspect": "show configuration, splits, contract, variables and plan, and stop",
    "recipes": "list the flagfiles of experiments/, or write those named here: recipes NAME ...",
    "completion": "print what a shell completes command lines by: completion bash, zsh or fish",
}
# The commands that go by the options of a section; those of the other sections are for all.
GO_BY = {
    "evaluate": ("evaluate", "predict", "explain", "export", "serve"),
    "predict": ("predict",),
    "explain": ("explain",),
    "export": ("export",),
    "serve": ("serve",),
    "benchmark": ("benchmark", "doctor", "compare", "predict", "explain"),
    "find_lr": ("find_lr",),
    "learning_curve": ("learning_curve",),
    "audit": ("audit",),
    "sweep": ("sweep",),
    "features_of": ("features",),
}
# The option that says where a command writes, and what else it may be called.
_RESULTS = {
    "train": "workdir", "cross_validate": "workdir", "find_lr": "workdir", "learning_curve": "workdir",
    "audit": "workdir", "sweep": "workdir", "evaluate": "report_dir", "export": "export_dir",
    **dict.fromkeys(GO_BY["benchmark"], "output"),
}  # fmt: skip
_LIKE_RESULTS = re.compile(
    rf"(out|output|results?|save|report|log|model|run|{'|'.join(COMMANDS)})_?(dir|directory|folder|path|file|to)?"
)
_FLAGFILE = re.compile("--?flagfile(?:=(.*))?", re.DOTALL)
_DRY_RUN = re.compile("--?dry[-_]?run(?:=(true|false))?", re.IGNORECASE)
_OF_TABLES = (
    "image_column", "label_column", "split_column", "group_column", "weight_column", "image_root",
)  # fmt: skip
TAKE_PATHS = ("predict", "explain", "compare", "recipes", "completion")
# What they write there is for programs: what is logged goes elsewhere.
ANSWER_ON_STDOUT = ("predict",)
# May be given several times.
REPEATED = frozenset(name for name, value in Config().flat().items() if isinstance(value, tuple))
# Of these, what stands behind a flagfile replaces what the file says. A plugin is loaded beside others.
_REPLACED = re.compile(f"--?({'|'.join(sorted((REPEATED | {'source'}) - {'plugin'}))})(?:=(.*))?", re.DOTALL)


def make_flags() -> absl_flags.FlagValues:
    """Returns one flag for each option of Config, and none else.

    A FlagValues of our own: the global one also holds what libraries define.
    """
    values = absl_flags.FlagValues()  # type: ignore[no-untyped-call]
    define: dict[str, Any] = {
        "str": absl_flags.DEFINE_string,
        "int": functools.partial(absl_flags.DEFINE, _Whole()),
        "float": functools.partial(absl_flags.DEFINE, _Real()),
        "bool": absl_flags.DEFINE_boolean,
        "tuple": absl_flags.DEFINE_multi_string,
    }
    for section, field in _fields():
        value, help_text = field.default, field.metadata["help"]
        kind = type(value).__name__
        common: dict[str, Any] = {"flag_values": values, "module_name": section}
        if field.name == "image_size":
            absl_flags.DEFINE(_Side(), field.name, value, help_text, **common)
        elif field.metadata["choices"]:
            choices = list(field.metadata["choices"])
            absl_flags.DEFINE_enum(field.name, value, choices, help_text, **common)
        else:
            define[kind](field.name, list(value) if kind == "tuple" else value, help_text, **common)
    values.set_gnu_getopt(True)  # The command may stand before or after the flags.
    return values


class _Whole(absl_flags.IntegerParser):
    def convert(self, argument: Any) -> int:
        try:
            # Python takes any digits of Unicode, and _ between them.
            if isinstance(argument, str) and (not argument.isascii() or "_" in argument):
                raise ValueError
            return super().convert(argument)
        except ValueError:
            raise ValueError("it must be a whole number, in digits from 0 to 9") from None


class _Side(_Whole):
    def convert(self, argument: Any) -> int:
        """Takes 224x224, too."""
        sides = re.fullmatch(r"([0-9]+) ?[xX*,×] ?([0-9]+)", str(argument))
        if sides and sides[1] != sides[2]:
            raise ValueError("the network sees squares: it must be one side, such as 224")
        return super().convert(sides[1] if sides else argument)


class _Real(absl_flags.FloatParser):
    def convert(self, argument: Any) -> float:
        try:
            return as_number(argument) if isinstance(argument, str) else super().convert(argument)
        except ValueError:
            raise ValueError("it must be a number, such as 0.5 or 1e-3") from None


@dataclasses.dataclass(frozen=True)
class CommandLine:
    """What was asked for. `given` holds only the options that were set, by flag name.

    `paths` are the arguments behind a command that takes some; `is_dry` of `inspect` is --dry_run of `train`.
    """

    command: str
    config: Config
    given: dict[str, Any]
    paths: tuple[str, ...] = ()
    is_dry: bool = False


def parse(argv: Sequence[str]) -> CommandLine:
    """Reads a command line.

    Args:
      argv: with the name of the program first.

    Raises:
      UsageError: a command, flag or value is wrong; the message is absl's, with its suggestions.
    """
    values = make_flags()
    # From Python; no shell gives it.
    if half := half_in("".join(map(str, argv))):
        raise UsageError(f"half of a character ({half}) is in the value of an option")
    try:
        arguments, is_dry = _without_dry_run(_with_flagfiles(argv[1:]))
        rest = values([argv[0], *arguments])[1:]
    except absl_flags.UnrecognizedFlagError as error:
        raise UsageError(_unknown(error.flagname, arguments)) from None
    except absl_flags.Error as error:
        raise UsageError(_told(error)) from None
    command, *extra = rest or ["train"]
    if command not in COMMANDS:
        _check_lengths(rest, arguments)
        _check_quotes(command, arguments)
        told = f"{command!r} is no command; there are {', '.join(COMMANDS)} (see --help)"
        usual = VERBS.get(command.lower().replace("-", "_"), "")
        close = [usual] if usual else close_names(command, COMMANDS, n=1)
        raise UsageError(_meant_by_path(command) or told + is_it(close))
    if extra and command not in TAKE_PATHS:
        _check_lengths(extra, arguments)
        _check_quotes(extra[0], arguments)
        told = f"unexpected argument {extra[0]!r} after {command!r}; options start with --"
        raise UsageError(_meant_by_path(extra[0]) or told)
    if is_dry and command not in ("train", "inspect"):
        raise UsageError(f"--dry_run shows what train would do, and there is none of {command}: leave it out")
    command = "inspect" if is_dry else command
    flat = {field.name: values[field.name].value for _, field in _fields()}
    given = {name: flat[name] for name in flat if values[name].present}
    config = Config.from_flat(flat).with_given(given)
    config.require_unruled(given)
    line = CommandLine(command, config, given, tuple(extra), is_dry)
    _check_meant(line)
    _check_paths(line)
    return line


def typed(name: str, text: str) -> Any:
    """Returns the value that a text gives an option, as on a command line; of a repeatable one, that one.

    Raises:
      UsageError: there is no such option, or the text cannot be its value.
    """
    values = make_flags()
    if name not in values:
        raise UsageError(_unknown(name, ["train"]))
    try:
        values(["trainer", f"--{name}={text}"])
    except absl_flags.Error as error:
        raise UsageError(_told(error)) from None
    value = values[name].value
    return tuple(value) if isinstance(value, list) else value


def _without_dry_run(arguments: Sequence[str]) -> tuple[list[str], bool]:
    """Returns the arguments without --dry_run, which is no option of a run, and whether it is among them."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    found = [match for one in arguments[:end] if (match := _DRY_RUN.fullmatch(one))]
    kept = [one for one in arguments[:end] if not _DRY_RUN.fullmatch(one)]
    is_dry = bool(found) and (found[-1][1] or "true").lower() == "true"
    return [*kept, *arguments[end:]], is_dry


def _with_flagfiles(arguments: Sequence[str], *, inside: tuple[Path, ...] = ()) -> list[str]:
    """Returns the arguments with the flags in flagfiles in their place.

    absl reads them by the locale, knows no byte order mark, and does not say which file is wrong. And of an
    option that may be given several times it would take those of the flagfile, too, first.

    Args:
      arguments: of the command line, or the lines of a flagfile.
      inside: the flagfiles that these come from, the outermost first.
    """
    found: list[str] = []
    left = _grouped(arguments)
    while left:
        group = left.pop(0)
        if group[0] == "--":
            return [*found, *group]
        if match := _FLAGFILE.fullmatch(group[0]):
            if match[1] is None and not left:
                raise UsageError("--flagfile with no argument")
            if not (name := left.pop(0)[0] if match[1] is None else match[1].strip()):
                continue
            path = local_path(name, flag=f"--flagfile={name}")
            if path in inside:
                raise UsageError(f"--flagfile={name}: it leads back to itself")
            group = _with_flagfiles(_lines(path, name), inside=(*inside, path))
        replaced = {_replaced_by(one) for one in group} - {""}
        found = [one for one in found if _replaced_by(one) not in replaced] + group
    return found


def _replaced_by(argument: str) -> str:
    """Returns the option whose values of an earlier flagfile an argument replaces; empty if none."""
    match = _REPLACED.fullmatch(argument)
    return match[1] if match else ""


def _grouped(arguments: Sequence[str]) -> list[list[str]]:
    """Returns arguments one by one, but those together that give one option several times.

    Such a group stands where the last of them stood; what follows `--` is the last group.
    """
    end = arguments.index("--") if "--" in arguments else len(arguments)
    groups: dict[str | int, list[str]] = {}
    left = [*map(str, arguments[:end])]
    while left:
        argument = left.pop(0)
        key: str | int = -len(left)
        if (match := _REPLACED.fullmatch(argument)) and (match[2] is not None or left):
            key = match[1]
            argument = f"--{key}={left.pop(0) if match[2] is None else match[2]}"
        groups[key] = [*groups.pop(key, []), argument]
    if len(sources := groups.get("source", [])) > 1:
        texts = [one.removeprefix("--source=") for one in sources]
        groups["source"] = [f"--source=joined:{json.dumps(texts, ensure_ascii=False)}"]
    return [*groups.values(), *([list(arguments[end:])] if end < len(arguments) else [])]


def _lines(flagfile: Path, name: str) -> list[str]:
    """Returns the lines of a flagfile without comments and blank ones."""
    try:
        text = flagfile.read_text(encoding="utf-8-sig")
        if "\0" in text:
            raise ValueError("as in UTF-16")
    except OSError as error:
        raise UsageError(f"--flagfile={name}: {error.strerror}") from None
    except ValueError:
        raise UsageError(f"--flagfile={name}: it is no text in UTF-8") from None
    lines = (line.strip() for line in text.split("\n"))
    return [line for line in lines if line and not line.startswith(("#", "//"))]


# Verbs that take the options of a run.
_DESCRIBE_RUNS = (
    "train", "cross_validate", "inspect", "find_lr", "benchmark", "learning_curve", "audit", "sweep",
    "features",
)  # fmt: skip


def _check_meant(line: CommandLine) -> None:
    """Refuses options that are called as in other tools, and mean something else here."""
    if line.command not in _DESCRIBE_RUNS:
        return
    if model := line.given.get("model"):
        raise UsageError(
            f"--model={model} is an exported model, for predict. The network to train is "
            "--backbone, such as --backbone=keras:MobileNetV2 (--help=backbone lists what there is)"
        )
    scheme = line.config.data.source.partition(":")[0]
    columns = [name for name in _OF_TABLES if line.given.get(name)]
    if columns and scheme in ("folder", "archive", "synthetic", "tfds"):
        name = columns[0]
        raise UsageError(f"--{name}={line.given[name]} is of --source=table:, and this is {scheme}:")
    if (folder := line.given.get("data_dir")) and not {"source", "plugin"} & set(line.given):
        raise UsageError(
            f"--data_dir={folder} is the folder of tfds data sets. For pictures of your own write "
            f"--source=folder:{folder}; of tfds, --source=tfds:NAME, too"
        )


def _check_paths(line: CommandLine) -> None:
    """Makes sure that what is to be a path on this machine can be one, before TensorFlow is imported."""
    for _, field in _fields():
        kind, value = field.metadata["path"], line.config.flat()[field.name]
        if kind and value:
            local_path(value, flag=f"--{field.name}={value}", for_tensorflow=kind == FOR_TENSORFLOW)
    # Of a picture that is an address, predict and explain say how it is to be had.
    for path in line.paths if line.command == "compare" else ():
        local_path(path, flag=path)


def _unknown(name: str, arguments: Sequence[str]) -> str:
    """Returns the message that there is no flag of a name, with those that may be meant of a command."""
    told = f"Unknown command line flag {name!r}"
    command = next((word for word in arguments if word in COMMANDS), "train")
    if meant := written_here(name, _value_of(name, arguments), command=command):
        return f"{told}. {meant}"
    given, name = name, name.lower().replace("-", "_")
    flags = ["flagfile", "help", "helpfull"]
    flags += [field.name for section, field in _fields() if command in GO_BY.get(section, COMMANDS)]
    close = difflib.get_close_matches(name, flags, cutoff=0.85)
    if not close and command in _RESULTS and _LIKE_RESULTS.fullmatch(name):
        close = [_RESULTS[command]]
    close = close or difflib.get_close_matches(name, flags, cutoff=0.7)
    close = close or [flag for flag in flags if len(name) > 2 and flag.startswith(name)]
    if not close and (usual := difflib.get_close_matches(name, WORDS, n=1, cutoff=0.85)):
        return f"{told}. {written_here(usual[0], _value_of(given, arguments), command=command)}"
    return told + (f". Did you mean: {', '.join(close)} ?" if close else "")


def _value_of(name: str, arguments: Sequence[str]) -> str:
    """Returns what was given as the value of a flag that does not exist."""
    for argument, following in zip(arguments, [*arguments[1:], "-"], strict=True):
        flag, equals, value = argument.partition("=")
        if flag.startswith("-") and flag.lstrip("-") == name:
            is_value = not equals and not following.startswith("-") and following not in COMMANDS
            return following if is_value else value
    return ""


def _meant_by_path(word: str) -> str:
    """Returns what to write for a path that stands where no path is expected; empty if it is none."""
    try:
        path = expanded(word, flag=word)
    except UsageError:
        return ""
    if os.path.isfile(os.path.join(path, "run.json")):
        return f"{word} is the folder of a run: write --workdir={shlex.quote(word)}"
    if not os.path.exists(path):
        return ""
    kind, what = ("folder", "a folder") if os.path.isdir(path) else ("table", "a file")
    told = (
        f"of a table; of an archive, --source=archive:{shlex.quote(word)}"
        if kind == "table"
        else "of pictures"
    )
    return f"{word} is {what}: write --source={kind}:{shlex.quote(word)}, {told}"


def _check_lengths(words: Sequence[str], arguments: Sequence[str]) -> None:
    """Tells who has written a value in two words, such as `3 epochs` or `80%, 20%`, what to write."""
    for word in words:
        at = arguments.index(word) if word in arguments else 0
        if at and re.fullmatch("--.+,", arguments[at - 1]):
            raise UsageError(
                f"a value is one word: {arguments[at - 1]}{word}, not {arguments[at - 1]} {word}"
            )
        before = arguments[arguments.index(word) - 1] if word in arguments[1:] else ""
        number = before.rpartition("=")[2]
        if re.fullmatch("(epoch|step|example)s?|%", word) and re.fullmatch("[0-9.]+", number):
            raise UsageError(f"a length is one word: {before}{word}, not {before} {word}")


def _check_quotes(word: str, arguments: Sequence[str]) -> None:
    """Tells who has cut a value at its blanks, such as `--source=folder:My Photos`, to quote it."""
    at = arguments.index(word) if word in arguments else 0
    before = arguments[at - 1] if at else ""
    if before == "=" or word == "=" or before.endswith("="):
        raise UsageError("an option is written without blanks around =, as in --workdir=runs/mine")
    flag, equals, value = before.partition("=")
    if not (flag.startswith("--") and equals and value):
        return
    path = value.partition(":")[2] or value
    for stop in range(len(arguments), at, -1):
        rest = " ".join(arguments[at:stop])
        if _is_there(f"{path} {rest}") and not _is_there(path):
            raise UsageError(f"a path with blanks stands in quotes: {flag}={shlex.quote(f'{value} {rest}')}")


def _is_there(path: str) -> bool:
    try:
        return os.path.exists(expanded(path, flag=path))
    except UsageError:
        return False


def _told(error: absl_flags.Error) -> str:
    """Returns absl's message in a line."""
    text = " ".join(str(error).split()).removeprefix("ERROR:: ")
    # Of a boolean flag it prints what Python calls the arguments of an error.
    return re.sub(r": \('Non-boolean argument to boolean flag', .*\)$", ": it is true or false", text)


def _fields() -> list[tuple[str, Any]]:
    """Returns [(section name, field)] over all options."""
    return [
        (section.name, field)
        for section in dataclasses.fields(Config)
        for field in dataclasses.fields(type(section.default))  # type: ignore[arg-type]
    ]
