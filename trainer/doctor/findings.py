"""What a check found: a line with a mark, and what to do about it."""

import textwrap
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

Mark = Literal["ok", "warning", "problem"]
FORMAT = 1
WIDTH = 100


class Finding(NamedTuple):
    """A line. A warning is about something that works less well; with a problem, training is impossible."""

    mark: Mark
    text: str
    advice: str = ""


class Section(NamedTuple):
    """Findings about one thing."""

    title: str
    findings: Sequence[Finding]


def ok(text: str) -> Finding:
    """Returns a finding that is as it should be."""
    return Finding("ok", text)


def warning(text: str, advice: str) -> Finding:
    """Returns what works, and might work better."""
    return Finding("warning", text, advice)


def problem(text: str, advice: str) -> Finding:
    """Returns what keeps something from working."""
    return Finding("problem", text, advice)


def shown(section: Section) -> str:
    """Returns a section for a terminal."""
    lines = [section.title]
    for finding in section.findings:
        lines += _wrapped(finding.text, f"  {finding.mark:<9}")
        lines += _wrapped(finding.advice, f"  {'':<9}-> ") if finding.advice else []
    return "\n".join(lines) + "\n"


def _wrapped(text: str, indent: str) -> list[str]:
    # Commands and paths are copied from here: they stay whole.
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=indent,
        subsequent_indent=" " * len(indent),
        break_long_words=False,
        break_on_hyphens=False,
    )


def verdict(sections: Sequence[Section]) -> str:
    """Returns the last line."""
    problems, warnings = (count(sections, mark) for mark in ("problem", "warning"))
    told = f"{problems} problem{'s' * (problems != 1)}, {warnings} warning{'s' * (warnings != 1)}"
    return f"{told}: training {'is not possible until it is mended' if problems else 'is possible'}"


def count(sections: Sequence[Section], mark: Mark) -> int:
    """Returns how many findings have a mark."""
    return sum(finding.mark == mark for section in sections for finding in section.findings)


def as_json(sections: Sequence[Section]) -> dict[str, Any]:
    """Returns {"format", "num_problems", "num_warnings", "sections": [{"title", "findings": [...]}]}."""
    return {
        "format": FORMAT,
        "num_problems": count(sections, "problem"),
        "num_warnings": count(sections, "warning"),
        "sections": [
            {"title": section.title, "findings": [finding._asdict() for finding in section.findings]}
            for section in sections
        ],
    }
