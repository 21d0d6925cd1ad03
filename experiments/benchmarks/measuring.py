"""What the comparisons share: programs as processes of their own, medians, tables. Standard library only."""

import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent.parent


class Child(NamedTuple):
    """What was seen of a process from outside."""

    wall_seconds: float
    peak_rss_mb: float
    output: str


# The kernel counts what a parent holds when it starts a program as that program's, too. So a process
# that holds next to nothing starts and watches it: TensorFlow may be loaded in this one.
_WATCHER = """
import json, os, subprocess, sys, time
began = time.monotonic()
child = subprocess.Popen(sys.argv[2:])
_, status, usage = os.wait4(child.pid, 0)
seen = [os.waitstatus_to_exitcode(status), time.monotonic() - began, usage.ru_maxrss / 1024]
open(sys.argv[1], "w").write(json.dumps(seen))
"""


def run_child(command: Sequence[str], *, log: Path, environment: Mapping[str, str] | None = None) -> Child:
    """Runs a program to its end, from the repository's root.

    Args:
      command: program and arguments.
      log: file for what it prints; a second file is written beside it.
      environment: variables besides those of this process.

    Raises:
      SystemExit: it failed; the message has the end of what it printed.
    """
    seen = log.with_name(f"{log.name}.json")
    watcher = [sys.executable, "-c", _WATCHER, str(seen), *command]
    surroundings = {**os.environ, **(environment or {})}
    with open(log, "wb") as out:
        process = subprocess.Popen(
            watcher, stdout=out, stderr=out, cwd=ROOT, env=surroundings, process_group=0
        )
        try:
            process.wait()
        except BaseException:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()
            raise
    exit_status, wall_seconds, peak_rss_mb = json.loads(seen.read_text())
    output = log.read_text(errors="replace")
    if exit_status:
        tail = "\n".join(output.splitlines()[-15:])
        raise SystemExit(f"exit status {exit_status} of {shlex.join(command)}\n{tail}")
    return Child(wall_seconds, peak_rss_mb, output)


def machine() -> str:
    """Returns the processor and the number of cores that this process may use."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(os.sched_getaffinity(0))} cores of {models[0] if models else 'an unknown processor'}"


class Spread(NamedTuple):
    """The middle of some numbers, and their ends."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Returns the median, the lowest and the highest of at least one number."""
    return Spread(statistics.median(values), min(values), max(values))


def better_by(theirs: Sequence[float], ours: Sequence[float], *, kind: str) -> Spread:
    """Compares round by round, as the runs of one round lie next to each other in time.

    Args:
      theirs: a number a round.
      ours: the same rounds.
      kind: `time` (theirs / ours), `rate` (ours / theirs) or `share` (ours - theirs).

    Returns:
      how much better ours are: times, or a difference of shares.
    """
    pairs = list(zip(theirs, ours, strict=True))
    if kind == "share":
        return spread([b - a for a, b in pairs])
    return spread([a / b if kind == "time" else b / a for a, b in pairs])


def show(value: float, *, kind: str) -> str:
    """Returns a number as a table shows it: a share as per cent, others with three digits or more."""
    if kind == "share":
        return f"{100 * value:.2f} %"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def show_better(by: Spread, *, kind: str) -> str:
    """Returns e.g. `20.5x (20.1 to 21)`, or `+0.31 (-0.16 to +0.47) points`."""
    if kind == "share":
        return f"{100 * by.median:+.2f} ({100 * by.low:+.2f} to {100 * by.high:+.2f}) points"
    return f"{by.median:.3g}x ({by.low:.3g} to {by.high:.3g})"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table; all columns but the first two are set to the right."""
    rule = ["---" if i < 2 else "---:" for i in range(len(header))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *rows))


def write_json(path: str | None, value: Any) -> None:
    """Writes a result with the machine and the command it comes from; nothing where there is no path."""
    if path:
        about = {"machine": machine(), "command": shlex.join(sys.argv)}
        Path(path).write_text(json.dumps({**about, **value}, indent=2) + "\n")
