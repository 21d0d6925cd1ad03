"""The blocks of code in the pages of docs/, and a shell that runs them in order."""

import os
import re
import shlex
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [
    ROOT / "README.md",
    *sorted(p for p in DOCS.rglob("*.md") if p not in (DOCS / "reference.md", DOCS / "api.md")),
]
# What a block may be, and what is said of it in comments above it.
KINDS = ("sh", "console", "python", "text", "kotlin", "swift", "html", "diff", "yaml")
NOTES = ("not run", "small", "network", "first", "fails", "background")
_FENCE = re.compile(
    r'^(?P<indent> *)```(?P<kind>\w*)(?: title="(?P<title>[^"]+)")?\n(?P<text>.*?)^(?P=indent)```$',
    re.MULTILINE | re.DOTALL,
)
_NOTE = re.compile(r"^ *<!-- ([a-z ]+): (.*?) -->$", re.MULTILINE)
_PROGRAM = re.compile(r"(?:\S*python -m trainer\.main|hub-trainer)(?= |$)")


@dataclass
class Block:
    """A fenced block: its kind, the file that it is to be, the text, and {what: note} above it.

    Of a note that may be there several times, `first`, the texts are joined by line breaks.
    """

    kind: str
    title: str
    text: str
    notes: dict[str, str] = field(default_factory=dict)


def blocks(text: str) -> list[Block]:
    """Returns the blocks of a page, in order."""
    found, end = [], 0
    for match in _FENCE.finditer(text):
        # Only the comments right above it.
        above = text[end : match.start()].rsplit("\n\n", 1)[-1]
        notes: dict[str, str] = {}
        for what, note in _NOTE.findall(above):
            notes[what] = f"{notes[what]}\n{note}" if what in notes else note
        inside = textwrap.dedent(match["text"])
        found.append(Block(match["kind"], match["title"] or "", inside, notes))
        end = match.end()
    return found


def commands(block: Block) -> list[tuple[str, str]]:
    """Returns [(command, what stands below it)]; of `sh`, a loop and a continued line are one command."""
    if block.kind == "console":
        parts = re.split(r"^\$ ", block.text, flags=re.MULTILINE)
        return [(command, output) for command, _, output in (part.partition("\n") for part in parts[1:])]
    joined = block.text.replace("\\\n", " ")
    if re.search(r"^(for|if|while) ", joined, re.MULTILINE):
        first, loop, rest = re.split(r"^((?:for|if|while) .*?^(?:done|fi)$)", joined, flags=re.M | re.S)
        return [(line, "") for line in [*first.splitlines(), loop, *rest.splitlines()] if line.strip()]
    return [(line, "") for line in joined.splitlines() if line.strip() and not line.startswith("#")]


def masked(text: str) -> list[str]:
    """Returns lines without what differs from machine to machine and from picture to picture."""
    numbers = re.compile(r"\d[\d,]*(?:\.\d+)?(?:e-?\d+)?")
    return [" ".join(numbers.sub("#", line).split()) for line in text.splitlines() if line.strip()]


class Shell:
    """Runs commands in a folder: ours in this process, the others in bash."""

    def __init__(self, folder: Path, run_main):
        """Makes `python` and `hub-trainer` of bash those of this test.

        Args:
          folder: where everything happens; it is the working folder already.
          run_main: the fixture.
        """
        self._run_main, self._behind = run_main, []
        self._names: dict = {}
        programs = folder / ".programs"
        programs.mkdir()
        for name, command in (("python", ""), ("hub-trainer", "-m trainer.main")):
            (programs / name).write_text(
                f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {command} "$@" $SMALL\n'
            )
            (programs / name).chmod(0o755)
        path = f"{programs}{os.pathsep}{os.environ['PATH']}"
        self._environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}

    def run(self, command: str, *, small: str = "") -> tuple[int, str]:
        """Returns status and output of a command; `small` are flags behind it that make it a small one."""
        if (program := _PROGRAM.match(command)) and not re.search(
            r"[|;>&](?=([^'\"]*['\"][^'\"]*['\"])*[^'\"]*$)", command
        ):
            told = subprocess.run(
                ["bash", "-c", f"printf '%s\\0' {command[program.end() :]}"],
                capture_output=True, text=True, check=True, env=self._environment,
            )  # fmt: skip
            status, out, err = self._run_main(*filter(None, told.stdout.split("\0")), *shlex.split(small))
            return status, out + err
        environment = {**self._environment, "SMALL": small if "trainer.main" in command else ""}
        done = subprocess.run(
            ["bash", "-euc", command], capture_output=True, text=True, timeout=600, env=environment
        )
        return done.returncode, done.stdout + done.stderr

    def execute(self, code: str, name: str) -> None:
        """Runs Python; what earlier blocks of the page named is there."""
        exec(compile(code, name, "exec"), self._names)

    def begin(self, command: str, *, until: str) -> None:
        """Starts a command that does not end, and waits until it says something."""
        process = subprocess.Popen(
            ["bash", "-c", f"exec {command}"],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=self._environment,
        )  # fmt: skip
        self._behind.append(process)
        deadline = time.monotonic() + 120
        told = ""
        while until not in told:
            line = process.stdout.readline()
            told += line
            assert line, told
            assert time.monotonic() < deadline, told

    def end(self) -> None:
        """Ends what does not end by itself."""
        for process in self._behind:
            process.terminate()
            process.wait(timeout=60)
            process.stdout.close()
