"""The page of a sweep: which options matter, which were good together, and how much of it is noise."""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from trainer.metrics.repeats import Spread
from trainer.report.figures import png_bytes
from trainer.report.page import STYLE
from trainer.report.shortening import shortened

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
MOST_ROWS = 200
"""Trials in the table of the page."""
MOST_AXES = 12
"""Options in the figure of parallel coordinates."""
MOST_BARS = 20
_LETTERS = 22


@dataclass(frozen=True)
class Row:
    """A trial: what became of it (done, ended early, failed or under way), and its options as texts."""

    number: int
    state: str
    value: float | None
    options: Mapping[str, str]
    seconds: float | None
    why: str

    def shown(self, name: str) -> str:
        """Returns the value of an option as people read it."""
        text = self.options.get(name, "-")
        number = as_number(text)
        return text if number is None else f"{number:.3g}"

    def to_json(self) -> dict[str, Any]:
        """Returns what sweep.json holds of it."""
        return {
            "trial": self.number,
            "state": self.state,
            "value": self.value,
            "options": dict(self.options),
            "seconds": self.seconds,
            "why": self.why,
        }


@dataclass(frozen=True)
class Page:
    """What a page shows; trials are numbered from 1."""

    metric: str
    maximize: bool
    rows: Sequence[Row]
    best: int
    repeats: Mapping[int, Sequence[float]]
    spread: Spread | None
    importance: Mapping[str, float]
    search: Sequence[str]
    source: str
    how: str

    @property
    def option_names(self) -> list[str]:
        """The options of all trials, those that all have first."""
        return list(dict.fromkeys([*self.search, *(name for row in self.rows for name in row.options)]))

    def ranked(self) -> list[Row]:
        """Returns the trials that came to their end, the best one of the repeats first, then by value."""
        done = [row for row in self.rows if row.state == "done" and row.value is not None]
        sign = -1 if self.maximize else 1
        return sorted(done, key=lambda row: (row.number != self.best, sign * (row.value or 0.0), row.number))

    def counts(self) -> dict[str, int]:
        """Returns how many trials there are of each state."""
        states = ("done", "ended early", "failed", "under way")
        return {state: sum(row.state == state for row in self.rows) for state in states}

    @property
    def verdict(self) -> str:
        """What can be said of the best trial, in a sentence or two."""
        name = f"Trial {self.best}"
        first = next(row for row in self.rows if row.number == self.best)
        if self.spread is None:
            return f"{name} is the best, with {_number(first.value)}. Nothing says how much of that is noise."
        others = [number for number in self.repeats if number != self.best]
        seeds = min(len(values) for values in self.repeats.values())
        told = (
            f"Repeated with {seeds} other seeds, trial {self.best} reaches {_number(max_of(self))} on average"
        )
        least = _number(self.spread.least)
        if self.spread.is_noise:
            named = " and ".join(map(str, others))
            return (
                f"{told}. No difference can be shown to trials {named}, or not to all of them: means that "
                f"differ by less than {least} are noise."
            )
        return f"{told}, better than the next by more than noise ({least})."


def max_of(page: Page) -> float:
    """Returns the mean of the repeats of the best trial."""
    return float(np.mean(page.repeats[page.best]))


def as_number(text: str) -> float | None:
    """Returns the number that a text is; None where it is none."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def sweep_page(page: Page) -> str:
    """Returns a page in HTML that loads nothing from anywhere."""
    first = next(row for row in page.rows if row.number == page.best)
    counts = ", ".join(f"{count} {what}" for what, count in page.counts().items() if count)
    parts = [
        f"<h1>Sweep: {escape(page.metric)}</h1>",
        f'<p class="soft">{escape(page.source)} &middot; {counts} &middot; sampler {escape(page.how)}</p>',
        f'<p class="big">{_number(max_of(page) if page.spread else first.value)}</p>',
        f'<p class="note">{escape(page.verdict)}</p>',
        _options(first, page),
        "<h2>How much is noise?</h2>",
        _noise(page),
        "<h2>Which options matter?</h2>",
        _importance(page),
        "<h2>Which were good together?</h2>",
        _together(page),
        "<h2>In the order of the trials</h2>",
        _image(history_figure(page), "The value of each trial, and the best so far"),
        "<h2>All trials</h2>",
        _table(page),
        _failures(page),
    ]
    title = f"Sweep: {escape(page.metric)}"
    head = (
        '<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>"
    )
    body = "\n".join(part for part in parts if part)
    return f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{body}\n</body>\n</html>\n'


def _options(row: Row, page: Page) -> str:
    cards = "".join(
        f'<div class="card"><b>{escape(row.shown(name))}</b><span>{escape(name)}</span></div>'
        for name in page.option_names
        if name in row.options
    )
    return f'<div class="cards">{cards}</div><p class="soft">Ready to run: <code>best.flags</code>.</p>'


def _noise(page: Page) -> str:
    if not any(page.repeats.values()):
        return "<p>No trial was repeated with other seeds (<code>--repeat_seeds</code>).</p>"
    told = (
        "<p class='soft'>The best trials again, with seeds that had no part in choosing them. A first value "
        "is the best of many, and so too good: the mean of the others is what to expect.</p>"
    )
    return told + _image(noise_figure(page), "Values of the best trials with other seeds")


def _importance(page: Page) -> str:
    if not page.importance:
        return "<p>Too few trials, or trials too alike, to tell.</p>"
    told = (
        "<p class='soft'>The share of the differences between trials that goes with each option, over the "
        "options that all trials have (fANOVA, Hutter et al., 2014).</p>"
    )
    return told + _image(importance_figure(page), "Importance of each option")


def _together(page: Page) -> str:
    if len(page.ranked()) < 2:
        return "<p>There are too few trials.</p>"
    told = "<p class='soft'>A line for each trial that came to its end; the darker, the better.</p>"
    return told + _image(parallel_figure(page), "Options of each trial, coloured by its value")


def _table(page: Page) -> str:
    names = page.option_names
    ended = [row for row in page.rows if row.state == "ended early"]
    rows = [*page.ranked(), *ended][:MOST_ROWS]
    head = "".join(f'<th class="n">{escape(name)}</th>' for name in ("trial", page.metric, *names, "seconds"))
    lines = []
    for row in rows:
        values = "".join(f'<td class="n">{escape(row.shown(name))}</td>' for name in names)
        secs = f"{row.seconds:.1f}" if row.seconds is not None else ""
        early = " *" if row.state == "ended early" else ""
        lines.append(
            f'<tr><td class="n">{row.number}{early}</td><td class="n">{_number(row.value)}</td>{values}'
            f'<td class="n">{secs}</td></tr>'
        )
    more = len(page.ranked()) + len(ended) - len(rows)
    told = f'<p class="soft">{more:,} more are in sweep.json.</p>' if more else ""
    told += '<p class="soft">* ended early by the pruner: its value is the last one.</p>' if ended else ""
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    return f'<div class="scroll">{table}</div>{told}'


def _failures(page: Page) -> str:
    failed = [row for row in page.rows if row.state == "failed"]
    if not failed:
        return ""
    items = ""
    for row in failed[:MOST_ROWS]:
        options = ", ".join(f"{name}={row.shown(name)}" for name in row.options)
        items += f"<li>{row.number}: {escape(row.why)} ({escape(options)})</li>"
    return f"<h2>Failed</h2><ul>{items}</ul>"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _image(png: bytes, alt: str) -> str:
    encoded = base64.b64encode(png).decode()
    return f'<img class="chart" alt="{escape(alt)}" src="data:image/png;base64,{encoded}">'


def history_figure(page: Page) -> bytes:
    """Draws the value of each trial, and the best so far."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.add_subplot()
    for state, colour, mark in (("done", "tab:blue", "o"), ("ended early", "0.6", "x")):
        rows = [row for row in page.rows if row.state == state and row.value is not None]
        if rows:
            axes.plot(
                [row.number for row in rows],
                [row.value or 0.0 for row in rows],
                mark,
                color=colour,
                label=state,
                alpha=0.6,
            )
    done = [row for row in page.rows if row.state == "done" and row.value is not None]
    best = np.maximum if page.maximize else np.minimum
    axes.step(
        [row.number for row in done],
        best.accumulate([float(row.value or 0.0) for row in done]),
        where="post",
        color="tab:red",
        label="best so far",
    )
    _limit(axes, [float(row.value or 0.0) for row in done])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(color="0.9")
    axes.set(xlabel="trial", ylabel=page.metric)
    axes.legend(loc="best")
    return png_bytes(figure)


def _limit(axes: Any, values: Sequence[float]) -> None:
    """Leaves the few trials that are far worse than most out of what is drawn."""
    low, high = np.percentile(values, [5, 95])
    reach = max(high - low, 1e-3)
    axes.set_ylim(max(min(values), low - reach) - 0.05 * reach, min(max(values), high + reach) + 0.05 * reach)


def importance_figure(page: Page) -> bytes:
    """Draws the importance of each option, the most important on top."""
    found = list(page.importance.items())[:MOST_BARS][::-1]
    figure = Figure(figsize=(8, 0.7 + 0.38 * len(found)), layout="constrained")
    axes = figure.add_subplot()
    shares = [100 * share for _, share in found]
    axes.barh([shortened(name, 40) for name, _ in found], shares, color="tab:blue")
    for i, share in enumerate(shares):
        axes.text(share + 0.6, i, f"{share:.0f} %", va="center")
    axes.set(xlabel="share, %", xlim=(0, max(shares) * 1.12 + 1))
    axes.grid(color="0.9", axis="x")
    axes.set_axisbelow(True)
    return png_bytes(figure)


def noise_figure(page: Page) -> bytes:
    """Draws the values of the best trials with other seeds, and their means."""
    numbers = [number for number, values in page.repeats.items() if values]
    figure = Figure(figsize=(8, 0.9 + 0.55 * len(numbers)), layout="constrained")
    axes = figure.add_subplot()
    firsts = {row.number: row.value or 0.0 for row in page.rows}
    for i, number in enumerate(reversed(numbers)):
        values = page.repeats[number]
        mean = float(np.mean(values))
        if page.spread:
            # Two bars that overlap are of means that cannot be told apart.
            half = page.spread.least / 2
            axes.plot([mean - half, mean + half], [i, i], color="tab:blue", alpha=0.25, linewidth=12)
        axes.plot(values, [i] * len(values), "o", color="tab:blue", label="other seeds" if i == 0 else None)
        axes.plot([mean], [i], "|", color="black", markersize=18, label="their mean" if i == 0 else None)
        axes.plot([firsts[number]], [i], "x", color="tab:red", label="when it was chosen" if i == 0 else None)
    axes.set_yticks(range(len(numbers)), [f"trial {number}" for number in reversed(numbers)])
    axes.set(xlabel=page.metric, ylim=(-0.6, len(numbers) - 0.4))
    axes.grid(color="0.9", axis="x")
    axes.set_axisbelow(True)
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    return png_bytes(figure)


def parallel_figure(page: Page) -> bytes:
    """Draws a line for each trial that came to its end, over an axis for each option and for the value."""
    rows = page.ranked()[::-1]
    order = sorted(page.option_names, key=lambda name: -page.importance.get(name, 0.0))
    names = order[:MOST_AXES]
    scales = [Scale(name, [row.options.get(name) for row in rows]) for name in names]
    values = [float(row.value or 0.0) for row in rows]
    top = max if page.maximize else min
    low = float(np.percentile(values, 10 if page.maximize else 90))
    colours = colormaps["Blues"]
    figure = Figure(figsize=(max(6.0, 1.7 * (len(names) + 1)), 4.6), layout="constrained")
    axes = figure.add_subplot()
    span = (top(values) - low) or 1.0
    last = Scale.of_values(page.metric, values)
    for row, value in zip(rows, values, strict=True):
        heights = [scale.height(row.options.get(scale.name)) for scale in scales] + [last.height(repr(value))]
        shade = float(np.clip((value - low) / span, 0, 1))
        axes.plot(
            range(len(heights)),
            heights,
            color=colours(0.3 + 0.7 * shade),
            alpha=0.25 + 0.6 * shade,
            linewidth=1.3,
        )
    for i, scale in enumerate([*scales, last]):
        axes.axvline(i, color="0.3", linewidth=1)
        for height, label in scale.ticks():
            axes.text(
                i + 0.03, height, shortened(label, _LETTERS), fontsize=8, va="center", parse_math=False,
                bbox={"facecolor": "white", "alpha": 0.75, "pad": 1, "edgecolor": "none"},
            )  # fmt: skip
    axes.set_xticks(
        range(len(scales) + 1), [shortened(scale.name, _LETTERS) for scale in [*scales, last]], fontsize=9
    )
    axes.set(xlim=(-0.1, len(scales) + 0.45), ylim=(-0.06, 1.06))
    axes.set_yticks([])
    for side in ("left", "right", "top", "bottom"):
        axes.spines[side].set_visible(False)
    return png_bytes(figure)


class Scale:
    """An axis of parallel coordinates: numbers, by their logarithm where they span a lot, or texts."""

    def __init__(self, name: str, texts: Sequence[str | None]):
        self.name = name
        there = sorted({text for text in texts if text is not None})
        numbers = {text: as_number(text) for text in there}
        self._has_missing = any(text is None for text in texts)
        self._is_number = all(number is not None for number in numbers.values()) and len(there) > 0
        known = [number for number in numbers.values() if number is not None]
        self._low, self._high = (min(known), max(known)) if self._is_number else (0.0, 1.0)
        self._is_log = self._is_number and self._low > 0 and self._high / self._low >= 30
        self._texts = sorted(there, key=lambda text: numbers[text] or 0.0) if self._is_number else there

    @classmethod
    def of_values(cls, name: str, values: Sequence[float]) -> "Scale":
        """Returns the axis of what trials are judged by."""
        return cls(name, [repr(value) for value in values])

    @property
    def _is_listed(self) -> bool:
        return not self._is_number or len(self._texts) <= 6

    def height(self, text: str | None) -> float:
        """Returns where a value is, from 0 to 1; where an option is not searched, just below."""
        if text is None:
            return -0.04
        bottom = 0.08 if self._has_missing else 0.0
        if self._is_listed:
            share = self._texts.index(text) / max(len(self._texts) - 1, 1)
        else:
            low, high, number = self._low, self._high, float(text)
            if self._is_log:
                low, high, number = math.log(low), math.log(high), math.log(number)
            share = (number - low) / (high - low)
        return bottom + (1 - bottom) * share

    def ticks(self) -> list[tuple[float, str]]:
        """Returns [(height, label)]."""
        missing = [(-0.04, "not searched")] if self._has_missing else []
        if self._is_listed:
            return missing + [(self.height(text), _tick(text)) for text in self._texts]
        shares = np.linspace(0, 1, 5)
        if self._is_log:
            numbers = np.exp(math.log(self._low) + shares * math.log(self._high / self._low))
        else:
            numbers = self._low + shares * (self._high - self._low)
        return missing + [(self.height(repr(number)), f"{number:.3g}") for number in numbers.tolist()]


def _tick(text: str) -> str:
    number = as_number(text)
    return (text or "(none)") if number is None else f"{number:.3g}"
