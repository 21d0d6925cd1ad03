"""What shells complete command lines by: scripts for bash, zsh and fish, made from the declared options."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from trainer.cli.config import Config
from trainer.cli.flags import COMMANDS

PROGRAM = "hub-trainer"


class _Option(NamedTuple):
    """An option as shells see it; `values` are those that it may have, if they can be listed."""

    name: str
    help: str
    values: tuple[str, ...]
    is_switch: bool


Names = Mapping[str, Sequence[str]]
"""{option: what can be asked for by name}."""


def script(shell: str, names: Names = MappingProxyType({})) -> str:
    """Returns the script for a shell, one of SHELLS, which completes names beside the choices of options."""
    return SHELLS[shell](list(_options(names)))


def _options(names: Names) -> Iterator[_Option]:
    sections: list[Any] = [section.default for section in dataclasses.fields(Config)]
    for section in sections:
        for field in dataclasses.fields(section):
            text = field.metadata["help"].split(". ")[0].split(": ")[0].rstrip(".")
            values = tuple(field.metadata["choices"] or names.get(field.name, ()))
            yield _Option(field.name, text, values, isinstance(field.default, bool))
    yield _Option("flagfile", "file with a flag a line", (), False)
    yield _Option("dry_run", "show what train would do, as inspect does", (), True)
    yield _Option("help", "about a command or an option", tuple(COMMANDS), False)
    yield _Option("helpfull", "all options", (), True)


def _bash(options: Sequence[_Option]) -> str:
    """Bash takes `=` for the end of a word: of --bn=fr it wants the rest, `frozen`, alone."""
    names = [f"--{one.name}" if one.is_switch else f"--{one.name}=" for one in options]
    cases = [f'    --{one.name}=*) values="{" ".join(one.values)}" ;;' for one in options if one.values]
    return "\n".join(
        [
            "_hub_trainer() {",
            '  local line="${COMP_LINE:0:COMP_POINT}" values=',
            '  local word="${line##* }"',
            '  case "$word" in',
            *cases,
            "    --*=*) ;;",
            f'    -*) COMPREPLY=($(compgen -W "{" ".join(names)}" -- "$word"))',
            '        [[ "${COMPREPLY[0]}" == *= ]] && compopt -o nospace',
            "        return ;;",
            f'    *) [ "$COMP_CWORD" = 1 ] && values="{" ".join(COMMANDS)}" ;;',
            "  esac",
            '  word="${word#*=}"',
            '  if [ -n "$values" ]; then COMPREPLY=($(compgen -W "$values" -- "$word"))',
            '  else compopt -o filenames; COMPREPLY=($(compgen -f -- "$word")); fi',
            "}",
            f"complete -F _hub_trainer {PROGRAM}",
            "",
        ]
    )


def _zsh(options: Sequence[_Option]) -> str:
    lines = [f"#compdef {PROGRAM}", "_hub_trainer() {", "  _arguments \\"]
    for one in options:
        told = one.help.translate({ord(c): f"\\{c}" for c in "[]:"}).replace("'", "'\\''")
        value = "" if one.is_switch else f":value:({' '.join(one.values)})" if one.values else ":value:_files"
        lines.append(f"    '--{one.name}{'' if one.is_switch else '='}[{told}]{value}' \\")
    lines += [f"    '1:command:({' '.join(COMMANDS)})' \\", "    '*:file:_files'", "}"]
    return "\n".join([*lines, f"compdef _hub_trainer {PROGRAM}", ""])


def _fish(options: Sequence[_Option]) -> str:
    def quoted(text: str) -> str:
        return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"

    first = f"complete -c {PROGRAM} -n __fish_use_subcommand -a"
    lines = [f"{first} {name} -d {quoted(text)}" for name, text in COMMANDS.items()]
    for one in options:
        value = "" if one.is_switch else f" -x -a {quoted(' '.join(one.values))}" if one.values else " -r"
        lines.append(f"complete -c {PROGRAM} -l {one.name}{value} -d {quoted(one.help)}")
    return "\n".join([*lines, ""])


SHELLS = {"bash": _bash, "zsh": _zsh, "fish": _fish}
