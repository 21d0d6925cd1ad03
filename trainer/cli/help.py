"""The texts of --help: of the program, of a command, and of an option."""

import dataclasses
import difflib
import textwrap
from collections.abc import Sequence
from typing import Any

from trainer.cli.config import Config
from trainer.cli.declare import RECOMMENDED
from trainer.cli.flags import COMMANDS, GO_BY, TAKE_PATHS
from trainer.cli.usual_words import written_here
from trainer.values import UsageError, called

_USAGE = """\
Transfer-learning image classification with the training loop in the open.

usage: {called} [COMMAND] [--flagfile=FILE] [--FLAG=VALUE ...] [PATH ...]
"""
_MORE = (
    "--dry_run behind a command line of train shows what it would do, and trains nothing.\n"
    "COMMAND --help is about a command, --help=FLAG about an option and what can be asked for by it.\n"
    "--helpfull shows all options. The command recipes lists examples and writes them."
)
# The options whose values are registered.
NAMED = (
    "task", "loss", "objective", "gradient_rule", "metrics", "lr_schedule", "optimizer", "average",
    "callbacks", "augment", "head", "saliency", "formats", "source", "backbone",
)  # fmt: skip
# What commands go by besides the options of their own sections. The others train, or are about training.
_BESIDES = {
    "evaluate": ("workdir", "source", "on_bad_image", "assert_accuracy_at_least"),
    "predict": ("workdir", "checkpoint", "output", "batch_size"),
    "explain": ("workdir", "checkpoint", "output", "batch_size"),
    "export": ("workdir", "checkpoint"),
    "serve": ("workdir", "checkpoint"),
    "compare": ("eval_split", "output"),
    "doctor": ("workdir", "output", "cache_dir"),
    "recipes": (),
    "completion": (),
}
# What stands behind commands that take names instead of paths.
_NAMES = {"recipes": " NAME ...", "completion": " SHELL"}


def asks_for_help(argv: Sequence[str]) -> bool:
    """Returns whether a command line, with the name of the program first, asks for help."""
    words = argv[1:]
    flags = [word for word in words[: words.index("--") if "--" in words else None] if word.startswith("-")]
    named = {word.lstrip("-").partition("=")[0] for word in flags}
    return bool({"help", "h", "helpshort", "helpfull"} & named) or words[:1] == ["help"]


def topic(argv: Sequence[str]) -> str:
    """Returns the command or option that a command line asks for help about; empty for all of it.

    Raises:
      UsageError: there is no such thing.
    """
    words = [word for word in argv[1:] if word not in ("--help", "-h", "help")]
    if {"--helpshort", "--helpfull"} & set(argv):
        return ""
    named = [word.partition("=")[2] for word in words if word.startswith(("--help=", "-help="))]
    asked = next((word for word in [*named, *words] if word and not word.startswith("-")), "")
    asked = asked.lstrip("-").partition("=")[0]
    if asked in ("", *COMMANDS, *_options()):
        return asked
    # The words of a command that takes paths may be anything.
    if not named and any(word in COMMANDS for word in words):
        return next(word for word in words if word in COMMANDS)
    told = f"--help={asked}: there is no command and no option of that name"
    if meant := written_here(asked):
        raise UsageError(f"{told}. {meant}")
    close = difflib.get_close_matches(asked, [*COMMANDS, *_options()], cutoff=0.6)
    raise UsageError(f"{told}{'; close: ' * bool(close)}{', '.join(close)} (see --help)")


def help_text(*, full: bool = False, about: str = "") -> str:
    """Returns the help: the usual options, all of them, or all that is known of a command or an option."""
    if about in COMMANDS:
        # One is the name of an option, too.
        of_option = f"\n{_option_help(_options()[about])}\n" if about in _options() else ""
        return _command_help(about) + of_option
    if about:
        return _option_help(_options()[about]) + "\n"
    parts = [_USAGE.format(called=called()), "commands:"]
    width = max(map(len, COMMANDS)) + 1
    parts += [f"  {name:<{width}}{text}" for name, text in COMMANDS.items()]
    parts += _sections(lambda section, field: full or field.metadata["short"])
    return "\n".join([*parts, *([] if full else ["", _MORE])]) + "\n"


def _command_help(command: str) -> str:
    besides = _BESIDES.get(command)

    def is_of(section: str, field: Any) -> bool:
        if section in GO_BY:
            own = command == section or (besides is None and command in GO_BY[section])
            return own or field.name in (besides or ())
        return field.metadata["short"] if besides is None else field.name in besides

    paths = _NAMES.get(command, " PATH ..." if command in TAKE_PATHS else "")
    usage = f"usage: {called()} {command} [--FLAG=VALUE ...]{paths}"
    parts = [f"{command}: {COMMANDS[command]}", "", usage, *_sections(is_of)]
    return "\n".join([*parts, "", "--helpfull shows all options."]) + "\n"


def _sections(is_shown: Any) -> list[str]:
    """Returns the lines of all options of which `is_shown(section, field)`."""
    parts: list[str] = []
    for section in dataclasses.fields(Config):
        kind: Any = type(section.default)
        if shown := [field for field in dataclasses.fields(kind) if is_shown(section.name, field)]:
            parts += ["", f"{kind.__doc__.strip().lower()}:", *map(_option_help, shown)]
    return parts


def _option_help(field: Any) -> str:
    choices = f" One of {', '.join(field.metadata['choices'])}." if field.metadata["choices"] else ""
    told = "" if field.default in ("", ()) else str(field.default)
    default = f" [{told}]" if told else ""
    if field.name in RECOMMENDED:
        default = f" [by --schedule=recommended; else {told or 'none'}]"
    text = textwrap.wrap(field.metadata["help"] + choices + default, width=78)
    return "\n".join([f"  --{field.name}", *(f"      {line}" for line in text)])


def _options() -> dict[str, Any]:
    sections: list[Any] = [section.default for section in dataclasses.fields(Config)]
    return {field.name: field for section in sections for field in dataclasses.fields(section)}
