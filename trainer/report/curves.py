"""Learning curves of a whole run: loss and accuracy over its epochs, with the starts of its phases."""

import bisect
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from trainer.report.figures import png_bytes

COLOURS = {"train": "tab:blue", "validation": "tab:orange", "test": "tab:green"}
# Beyond some fifty points their marks are only a thick line.
MOST_MARKS = 50
# What a line says beyond it is damage.
MOST_EPOCHS = 1e6


class Point(NamedTuple):
    """A number in the course of a run."""

    epoch: float
    value: float


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Returns the lines of a metrics.jsonl; [] where there is none.

    A line that is no JSON object is left out: it had broken off, and nobody's curve is worth a run.
    """
    lines = []
    for text in path.read_text(errors="replace").splitlines() if path.exists() else ():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        lines += [line] if isinstance(line, dict) else []
    return lines


def learning_curves(
    lines: Sequence[dict[str, Any]],
    *,
    phases: Sequence[tuple[str, float]],
    title: str,
    metric: str = "accuracy",
) -> bytes:
    """Draws loss above and a metric below, training and validation in each, over the epochs of a run.

    Training is faint as it was logged and strong as the average of each epoch, validation as it was
    evaluated. Each phase but the first begins at a vertical line.

    Args:
      lines: those of metrics.jsonl, in order.
      phases: (name, epoch at which it starts), in order.
      title: stands above.
      metric: a share of which more is better.

    Returns:
      A PNG; the same bytes for the same input.
    """
    # Epochs in metrics.jsonl have four digits: a phase's first epoch must equal that of the line before it.
    phases = [(name, round(start, 4)) for name, start in phases]
    starts = [start for _, start in phases]
    figure = Figure(figsize=(8, 8), layout="constrained")
    figure.suptitle(title, parse_math=False)
    panels = figure.subplots(2, 1, sharex=True, height_ratios=(2, 3))
    names = ("loss", metric)
    for name, axes in zip(names, panels, strict=True):
        _draw(axes, lines, name, starts)
        for start in starts[1:]:
            axes.axvline(start, color="0.35", linestyle="--", linewidth=1)
    last = max([*(p.epoch for name in names for p in _points(lines, "", name)), *starts[1:], 0.0]) or 1.0
    panels[0].set_xlim(0, 1.02 * last)
    panels[1].xaxis.set_major_locator(MaxNLocator(nbins=12, integer=last > 2))
    panels[1].set_xlabel("epoch")
    rows = _name_phases(panels[0], phases[1:], last_epoch=last)
    if legend := panels[0].get_legend():
        legend.set_bbox_to_anchor((0, 1.005 + 0.06 * rows), transform=panels[0].transAxes)
    return png_bytes(figure)


def epoch_means(points: Sequence[Point], *, starts: Sequence[float] = ()) -> list[Point]:
    """Averages what was logged every few updates over each epoch, and over each part of one in a phase.

    A logged number is the mean since the one before, or since its phase began, if that is later. So it
    counts in an epoch with the share of the epoch that it covers.

    Args:
      points: in order, each at the end of what it covers.
      starts: epochs at which phases begin.

    Returns:
      A point at the end of each epoch; none for epochs of which nothing is known.
    """
    if not points:
        return []
    last = max(point.epoch for point in points)
    ends = sorted({*range(1, math.ceil(last)), *(start for start in starts if 0 < start < last), last})
    lengths, sums = [0.0] * len(ends), [0.0] * len(ends)
    since = 0.0
    for point in points:
        begin = max([since, *(start for start in starts if start < point.epoch)])
        since = point.epoch
        epoch = bisect.bisect_right(ends, begin)
        while begin < point.epoch:
            end = min(ends[epoch], point.epoch)
            lengths[epoch] += end - begin
            sums[epoch] += (end - begin) * point.value
            begin, epoch = end, epoch + 1
    return [
        Point(float(end), total / length)
        for end, total, length in zip(ends, sums, lengths, strict=True)
        if length > 0
    ]


def accuracy_limits(means: Sequence[Point], scores: Sequence[Point]) -> tuple[float, float]:
    """Returns the range of the axis of the metric: as narrow as lets all scores be seen.

    What training begins with is often so low that all the rest would be one flat line: its average over
    the first epoch counts only where there is nothing else.

    Args:
      means: averages of training.
      scores: of validation and test.
    """
    values = [point.value for point in [*means[1:], *scores] or means] or [0.0, 1.0]
    low, high = min(values), max(values)
    margin = max(0.06 * (high - low), 0.005)
    return low - margin, high + margin


def _points(lines: Sequence[dict[str, Any]], split: str, name: str) -> list[Point]:
    """Returns the finite numbers of a split, '' for all splits, by epoch."""
    chosen = [line for line in lines if line.get("split") == split or not split]
    points = [(line.get("epoch"), line.get(name)) for line in chosen]
    return [
        Point(float(epoch), float(value))
        for epoch, value in points
        if isinstance(epoch, int | float) and isinstance(value, int | float)
        if 0 <= epoch <= MOST_EPOCHS and abs(value) <= 1e300
    ]


def _draw(axes: Any, lines: Sequence[dict[str, Any]], name: str, starts: Sequence[float]) -> None:
    train, validation, test = (_points(lines, split, name) for split in COLOURS)
    means = epoch_means(train, starts=starts)
    factor = 1 if name == "loss" else 100
    axes.plot(*_columns(train, factor), color=COLOURS["train"], alpha=0.25, linewidth=1)
    for split, label, points in (
        ("train", "training, average of each epoch", means),
        ("validation", f"validation{_at_best(validation, name)}", validation),
        ("test", f"test {_told(test[-1].value, name)}" if test else "", test[-1:]),
    ):
        if points:
            drawn = axes.plot(*_columns(points, factor), color=COLOURS[split], linewidth=2, label=label)[0]
            if split == "test":
                drawn.set(marker="D", markersize=7, linestyle="")
            elif len(points) <= MOST_MARKS:
                drawn.set(marker="o", markersize=4)
    if name != "loss":
        low, high = accuracy_limits(means, [*validation, *test[-1:]])
        axes.set_ylim(100 * low, 100 * high)
        axes.set_ylabel(f"{name}, %")
    else:
        top = max((point.value for point in (*means, *validation, *test[-1:])), default=1.0)
        axes.set_ylim(0, 1.06 * top if top > 0 else 1.0)
        axes.set_ylabel("loss")
    axes.yaxis.set_major_locator(MaxNLocator(nbins=10, steps=[1, 2, 5, 10]))
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    if means or validation or test:
        # Above the axes: anywhere within, it would lie on some run's curve.
        axes.legend(
            loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, borderaxespad=0.1, fontsize=9.5,
            columnspacing=1.2, handlelength=1.5,
        )  # fmt: skip


def _columns(points: Sequence[Point], factor: float) -> tuple[list[float], list[float]]:
    return [point.epoch for point in points], [factor * point.value for point in points]


def _at_best(points: Sequence[Point], name: str) -> str:
    """Returns e.g. ', at best 97.92 % (epoch 18)'."""
    if not points:
        return ""
    sign = -1 if name == "loss" else 1
    best = max(points, key=lambda point: sign * point.value)
    return f", at best {_told(best.value, name)} (epoch {best.epoch:g})"


def _told(value: float, name: str) -> str:
    return f"{value:.4g}" if name == "loss" else f"{100 * value:.2f} %"


def _name_phases(axes: Any, phases: Sequence[tuple[str, float]], *, last_epoch: float) -> int:
    """Writes above the line where a phase starts what it is, and returns how many rows it took.

    Within the axes it would lie on some run's curve. Names that would overlap are in rows of their own.
    """
    ends: list[float] = []
    for name, start in phases:
        text = f"start of {name}"
        # Half the length of the name, as a share of the width: letters of 9 points in 7 inches.
        half = 0.0055 * len(text)
        middle = min(max(start / (1.02 * last_epoch), half), 1 - half)
        row = next((k for k, end in enumerate(ends) if end < middle - half), len(ends))
        ends[row : row + 1] = [middle + half + 0.01]
        axes.text(
            middle,
            1.012 + 0.06 * row,
            text,
            transform=axes.transAxes,
            ha="center",
            va="bottom",
            fontsize=9,
            color="0.25",
            parse_math=False,
        )
    return len(ends)
