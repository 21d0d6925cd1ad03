"""The verbs of the command line, a file each: wiring only. The rooms do the work.

A new verb is a file here with `run(line) -> exit status`, and a line in `flags.COMMANDS`.
"""

import importlib

from trainer.flags import CommandLine
from trainer.runtime import start_tensorflow
from trainer.values import UsageError

NEED_NO_WORKDIR = ("inspect", "benchmark")


def run(line: CommandLine) -> int:
    """Runs a command and returns the exit status."""
    if not line.config.run.workdir and line.command not in NEED_NO_WORKDIR:
        raise UsageError(f"{line.command} needs --workdir=FOLDER: it has no default")
    # First of all, because whatever imports TensorFlow settles how loud it is.
    start_tensorflow()
    return importlib.import_module(f"trainer.commands.{line.command}").run(line)
