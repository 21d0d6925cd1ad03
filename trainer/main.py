"""The door: parse, check, dispatch. `python -m trainer.main [COMMAND] --flagfile=...`."""

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # While modules are read nothing needs saving, and Ctrl-C would print where Python was.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import contextlib
import io
import logging
import os
import re
import sys
from collections.abc import Sequence
from typing import NoReturn, TextIO

from trainer import runtime
from trainer.cli import flags
from trainer.cli.help import NAMED, asks_for_help, help_text, topic
from trainer.values import Interrupted, TrainerError, in_words

# Longer than a SHA-256. What is behind it in a message would not be read.
_LONG_NUMBER = re.compile("[0-9]{65,}")


def main(argv: Sequence[str]) -> int:
    """Runs a command line and returns the exit status: 0 done, 1 failed, 2 usage, 75 stopped and saved."""
    _write_any_name()
    if problem := runtime.unsupported_system():
        print(f"trainer: {problem}", file=sys.stderr)
        return 1
    lines = _log_to_stdout()
    try:
        if asks_for_help(argv):
            return _help(argv)
        line = flags.parse(argv)
        if line.command in flags.ANSWER_ON_STDOUT:
            lines.setStream(sys.stderr)
        # Only now: TensorFlow takes seconds to import, and a typo should not have to wait for it.
        from trainer import commands

        return commands.run(line) or int(lines.lost)
    except TrainerError as error:
        _tell(f"trainer: {_LONG_NUMBER.sub(_shortened, str(error))}")
        return error.exit_status
    except BrokenPipeError:
        _close_stdout()  # The reader, such as `head`, has left.
        return 1
    except Interrupted as stopped:
        # Not on standard output: Ctrl-C has ended its reader, such as `tee`, too.
        _tell(str(stopped))
        return stopped.exit_status
    except KeyboardInterrupt:
        _tell("trainer: interrupted")
        return 130
    except Exception as error:
        if not (told := in_words(error)):
            raise
        _tell(f"trainer: {told}")
        return 1


def _help(argv: Sequence[str]) -> int:
    full, about = "--helpfull" in argv, topic(argv)
    # At once: to say what is registered, TensorFlow is imported.
    print(help_text(full=full, about=about), end="", flush=True)
    if full or about in NAMED:
        from trainer import commands

        print(commands.named_help(argv, about=about), end="")
    return 0


def _tell(last_words: str) -> None:
    """Says on standard error how the program ends; who cannot be told anything gets the status alone."""
    # A terminal has shown ^C at the beginning of the line.
    start = "\r" if sys.stderr.isatty() else ""
    with contextlib.suppress(OSError):
        print(f"{start}{last_words}", file=sys.stderr)


def _shortened(number: re.Match[str]) -> str:
    return f"{number[0][:10]}...({len(number[0]):,} digits)"


class _Lines(logging.StreamHandler[TextIO]):
    """Lines on standard output. When nobody can read them any more the work goes on without them."""

    lost = False

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            return super().handleError(record)
        # A reader that has left, such as `head`, has seen what it wanted to: the work is done all the same.
        if not isinstance(error, BrokenPipeError):
            if not self.lost:
                _tell(f"trainer: standard output cannot be written: {error.strerror}")
            self.lost = True
        _close_stdout()


def _close_stdout() -> None:
    """Throws away what is printed from now on; Python would complain again when it flushes."""
    # To others in the same process it may still be of use.
    if not runtime.owns_process:
        return
    # A stand-in for standard output has no such number.
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _log_to_stdout() -> _Lines:
    """Shows what our own code logs as plain lines, and nothing that libraries log."""
    log = logging.getLogger("trainer")
    handler = _Lines(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.handlers = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False
    return handler


def _write_any_name() -> None:
    """Lets names be printed that the encoding of standard output lacks: escaped, rather than not at all."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors != "backslashreplace":
        # It fails where what is behind standard output has been exchanged for a pipe.
        with contextlib.suppress(OSError):
            sys.stdout.reconfigure(errors="backslashreplace")


def _read_names_as_utf8() -> None:
    """Starts the interpreter anew where it would not take the names of files for UTF-8, as they are.

    In the POSIX locale it does by itself, unless it is told not to.
    """
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _leave(status: int) -> NoReturn:
    """Ends the process with all that was said said."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # A full disk, or a reader who has left: what was to be said is not said.
            status = status or 1
    runtime.leave(status)


def program() -> NoReturn:
    """Runs the command line of this process and ends it: `hub-trainer`, and `python -m trainer.main`."""
    _read_names_as_utf8()
    runtime.owns_process = True
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    _leave(main(sys.argv))


if __name__ == "__main__":
    program()
