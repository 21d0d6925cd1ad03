"""`completion`: prints what a shell completes command lines by."""

from trainer.cli.completion import SHELLS, script
from trainer.cli.flags import CommandLine
from trainer.stated import names_of_options
from trainer.values import UsageError


def run(line: CommandLine) -> int:
    """Prints the script for the shell that is named, and returns the exit status."""
    if len(line.paths) != 1 or line.paths[0] not in SHELLS:
        raise UsageError(f"completion needs the name of a shell, one of {', '.join(SHELLS)}: completion bash")
    print(script(line.paths[0], names_of_options()), end="")
    return 0
