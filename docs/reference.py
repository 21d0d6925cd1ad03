"""Writes reference.md, the tables of all options and of all that can be asked for by name: `make docs`.

They are made from the declarations, as `--helpfull` is. Where the page was not current, it is written anew,
and the exit status is 1.
"""

import dataclasses
import sys
from pathlib import Path

from trainer import register
from trainer.cli.config import Config
from trainer.cli.declare import RECOMMENDED
from trainer.cli.flags import COMMANDS
from trainer.registry import Registry
from trainer.runtime import start_tensorflow

PAGE = Path(__file__).with_name("reference.md")
HEAD = """\
# Reference

Made by `make docs` from the declarations in the code, as `--helpfull` is: change it there. Under
`--schedule=recommended`, the default, a rule goes by the pictures for what is called *recommended*
([what it chooses](recipes.md)); what stands behind it holds under any other schedule.
"""


def options() -> list[str]:
    """Returns a table of options for each section of the configuration, as lines of Markdown."""
    lines = []
    for section in dataclasses.fields(Config):
        kind = type(section.default)
        lines += [
            "",
            f"### {kind.__doc__.strip().rstrip('.')}",
            "",
            "| option | default | |",
            "|---|---|---|",
        ]
        for field in dataclasses.fields(kind):
            default = "" if field.default in ("", ()) else f"`{field.default}`"
            if field.name in RECOMMENDED:
                default = f"recommended; else {default or 'none'}"
            lines.append(f"| `--{field.name}` | {default} | {_cell(_meaning(field))} |")
    return lines


def named(registry: Registry) -> list[str]:
    """Returns a table of what a registry holds, as lines of Markdown."""
    flag = registry.flag.removeprefix("--")
    title = f"{registry.what[0].upper()}{registry.what[1:]}"
    lines = ["", f"### {title}: `--{flag}`", "", "| name | | source |", "|---|---|---|"]
    entries = [(name, registry[name]) for name in registry if not registry[name].plugin]
    for name, entry in entries:
        lines.append(f"| `{registry.usage(name)}` | {_cell(entry.help)} | {_cell(entry.source)} |")
    return lines if entries else [*lines[:3], "None by itself; [plugins](extending.md) bring them."]


def page() -> str:
    """Returns the whole page, without what plugins registered; imports TensorFlow."""
    lines = [HEAD, "## Commands", "", "| command | |", "|---|---|"]
    lines += [f"| `{name}` | {_cell(text)} |" for name, text in COMMANDS.items()]
    lines += ["", "## Options", *options(), "", "## What is asked for by name"]
    for registry in register.registries().values():
        lines += named(registry)
    return "\n".join(lines) + "\n"


def _meaning(field: dataclasses.Field) -> str:
    choices = field.metadata["choices"]
    return field.metadata["help"] + (f" One of {', '.join(choices)}." if choices else "")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|").replace("<", "&lt;")


def main() -> int:
    start_tensorflow()
    wanted = page()
    if PAGE.exists() and PAGE.read_text(encoding="utf-8") == wanted:
        return 0
    PAGE.write_text(wanted, encoding="utf-8")
    print(f"{PAGE.name} was not current and is written anew")
    return 1


if __name__ == "__main__":
    sys.exit(main())
