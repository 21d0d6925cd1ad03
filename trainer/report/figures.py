"""Figures of numbers and of pictures, as PNG bytes."""

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure  # Without pyplot: no global state, no window system.

from trainer.metrics.calibration import Bin
from trainer.report.fonts import fit_fonts
from trainer.report.shortening import MOST_LETTERS, shortened, shortened_apart, width

# A letter that all fonts lack is drawn as a box, and `fonts` says so. For good, and not around each figure:
# filters are of the process.
warnings.filterwarnings("ignore", message=r"Glyph \d+ .*missing from")
MOST_NUMBERS = 30
"""Classes whose confusion matrix has its numbers written into it."""


def picture_grid(
    images: np.ndarray, titles: Sequence[str], *, columns: int = 4, colours: Sequence[str] | None = None
) -> bytes:
    """Draws pictures with a title above each.

    Args:
      images: [N, H, W, 3] float in [0, 1].
      titles: [N], of the same number of lines.
      columns: pictures a row.
      colours: [N], of the titles; default black.
    """
    whole = [title.split("\n") for title in titles]
    short = shortened_apart([line for title in whole for line in title], MOST_LETTERS)
    titles = ["\n".join(short[line] for line in title) for title in whole]
    lines = [line for title in titles for line in title.split("\n")]
    num_lines = max([1, *(title.count("\n") + 1 for title in titles)])
    rows, height = -(-len(images) // columns), 1.6 + 0.2 * num_lines
    figure = Figure(figsize=(1.6 * columns, height * rows))
    # One for all, in inches: sixteen take longer to make than to draw into.
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    # Small enough for the longest one: a letter is some 0.6 times as wide as high, and an inch has 72 points.
    size = min(12.0, 1.6 * 72 / (0.62 * max([1, *map(width, lines)])))
    across, up = 1.44 * np.array(images.shape[2:0:-1]) / max(images.shape[1:3]) / 2
    for i, (image, title) in enumerate(zip(images, titles, strict=True)):
        row, column = divmod(i, columns)
        x, y = 1.6 * (column + 0.5), height * (rows - row - 1) + 0.05 + 0.72
        axes.imshow(np.clip(image, 0.0, 1.0), extent=(x - across, x + across, y - up, y + up))
        axes.text(
            x,
            y + 0.77,
            title,
            fontsize=size,
            ha="center",
            color=colours[i] if colours else "black",
            parse_math=False,
        )
    axes.set(xlim=(0, 1.6 * columns), ylim=(0, height * rows), aspect="auto")
    return png_bytes(figure)


def confusion_figure(matrix: np.ndarray, class_names: Sequence[str], *, title: str) -> bytes:
    """Draws a confusion matrix [K, K]: rows are true classes, columns predictions, colour a row's shares."""
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    return matrix_figure(matrix, share, class_names, title=title, rows="true", columns="predicted")


def matrix_figure(
    matrix: np.ndarray, share: np.ndarray, class_names: Sequence[str], *, title: str, rows: str, columns: str
) -> bytes:
    """Draws numbers of pictures [K, K] by two classes.

    Args:
      matrix: the numbers, written into the cells where there is room.
      share: [K, K] from 0 to 1, the colours.
      class_names: [K].
      title: stands above.
      rows: what a row is, in a word or two.
      columns: what a column is.
    """
    count = len(class_names)
    short = shortened_apart(class_names, MOST_LETTERS)
    names = [short[name] for name in class_names]
    cell = min(0.6, max(3.0, min(0.6 * count, 14.0)) / count)
    # Of more classes than fit, every second or third is named, and none has its number of pictures.
    every = max(1, math.ceil(7 / (72 * cell)))
    size = min(10.0, 60 * cell) if every == 1 else 7.0
    room = 0.9 + 0.0085 * size * max(map(width, names))
    side = max(3.0, cell * count) + room
    figure = Figure(figsize=(side, side + 0.2), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel=columns, ylabel=rows)
    # Narrow matrices have titles that are wider than they.
    figure.suptitle(title, fontsize=min(12.0, 72 * side / (0.58 * max(len(title), 1))), parse_math=False)
    # A name with two dollar signs is no formula.
    style: dict[str, Any] = {"fontsize": size, "parse_math": False}
    slant = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    style_below = style | (slant if count <= MOST_NUMBERS else {"rotation": 90})
    axes.set_xticks(range(0, count, every), names[::every], **style_below)
    axes.set_yticks(range(0, count, every), names[::every], **style)
    # Beyond some thirty classes numbers are only grey noise.
    for row, column in np.ndindex(matrix.shape) if count <= MOST_NUMBERS else ():
        number = matrix[row, column]
        colour = "white" if share[row, column] > 0.5 else "black" if number else "0.75"
        axes.text(column, row, f"{number}", ha="center", va="center", color=colour, fontsize=size)
    return png_bytes(figure)


def learning_rate_figure(
    rates: Sequence[float] | np.ndarray,
    losses: Sequence[float] | np.ndarray,
    smoothed: Sequence[float] | np.ndarray,
    *,
    proposed: float,
    title: str,
) -> bytes:
    """Draws the loss of updates at a rising learning rate, and the rate that is proposed.

    Args:
      rates: [N], all above 0.
      losses: [N].
      smoothed: [N], the losses with less noise.
      proposed: a learning rate.
      title: stands above.
    """
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xscale("log")
    axes.plot(rates, losses, color="tab:blue", alpha=0.3, linewidth=1, label="each update")
    axes.plot(rates, smoothed, color="tab:blue", linewidth=2, label="smoothed")
    axes.axvline(proposed, color="tab:red", linestyle="--", linewidth=1)
    order = np.argsort(rates)
    height = np.interp(np.log(proposed), np.log(np.asarray(rates)[order]), np.asarray(smoothed)[order])
    label = f"proposed: {proposed:.2g}"
    axes.plot([proposed], [height], color="tab:red", linestyle="", marker="o", label=label)
    # Where the rate is too high the loss leaves the picture: what it fell from and to is what counts.
    known = np.asarray(smoothed)[np.isfinite(smoothed)]
    if known.size:
        low, high = np.nanmin([*losses, *known]), known[: int(known.argmin()) + 1].max()
        reach = max(high - low, 0.1 * abs(high), 1e-6)
        axes.set_ylim(low - 0.05 * reach, high + 0.3 * reach)
    axes.grid(color="0.9")
    axes.set(xlabel="learning rate", ylabel="loss")
    axes.set_title(title, parse_math=False)
    axes.legend(loc="lower left")
    return png_bytes(figure)


def png_bytes(figure: Any) -> bytes:
    """Returns a figure as PNG; the same figure gives the same bytes."""
    fit_fonts(figure)
    buffer = io.BytesIO()
    # No software version in the file: it would be another with the next release.
    figure.savefig(buffer, format="png", dpi=100, metadata={"Software": None})
    return buffer.getvalue()


MOST_BARS = 40
"""Classes in `per_class_figure`."""
MOST_CURVES = 10
"""Classes in `roc_figure`."""


class Axes(NamedTuple):
    """What the axes of a reliability diagram are called, and its bars."""

    probability: str = "probability of the predicted class"
    share: str = "share of right predictions"
    bars: str = "share that is right"
    counted: str = "share of pictures"


OF_PREDICTIONS = Axes()


def reliability_figure(
    panels: Sequence[tuple[str, Sequence[Bin]]], *, title: str, called: Axes = OF_PREDICTIONS
) -> bytes:
    """Draws the share of right predictions over their probability, and how many there are of each.

    Args:
      panels: (what stands above, bins), side by side: before and after scaling.
      title: stands above all.
      called: what is drawn.
    """
    wide, high = 4.6 * len(panels) + 0.4, 6.2
    figure = Figure(figsize=(wide, high))
    figure.suptitle(title, y=1 - 0.1 / high, parse_math=False)
    # Placed by hand, as nothing in it has another size: a layout engine takes longer than all the drawing.
    figure.subplots_adjust(
        left=0.7 / wide,
        right=1 - 0.15 / wide,
        bottom=1.0 / high,
        top=1 - 0.7 / high,
        wspace=0.08,
        hspace=0.07,
    )
    grid = figure.subplots(2, len(panels), squeeze=False, sharex=True, sharey="row", height_ratios=(3, 1))
    for column, (name, bins) in enumerate(panels):
        above, below = grid[:, column]
        lows, width = [b.low for b in bins], bins[0].high - bins[0].low
        known = [b for b in bins if b.confidence is not None and b.accuracy is not None]
        above.plot([0, 1], [0, 1], color="0.5", linestyle="--", linewidth=1, label="ideal")
        style = {"width": width, "align": "edge", "edgecolor": "white", "linewidth": 0.5}
        heights = [b.accuracy for b in known]
        above.bar(
            [b.low for b in known],
            heights,
            color="tab:blue",
            label=called.bars,
            **style,
        )
        means = ([b.confidence for b in known], heights)
        above.vlines(*means, means[0], color="tab:red", linewidth=2, label="gap to their mean probability")
        above.plot(means[0], means[0], color="tab:red", linestyle="", marker="o", markersize=3)
        above.set(xlim=(0, 1), ylim=(0, 1))
        above.set_title(name, fontsize=10, parse_math=False)
        total = sum(b.count for b in bins)
        shares = [b.count / total for b in bins]
        below.bar(lows, shares, color="0.6", **style)
        below.set_xlabel(called.probability)
        for axes in (above, below):
            axes.grid(color="0.9")
            axes.set_axisbelow(True)
    grid[0, 0].set_ylabel(called.share)
    grid[1, 0].set_ylabel(called.counted)
    grid[1, 0].set_ylim(bottom=0)
    # Within, it would lie on some run's bars.
    named = grid[0, 0].get_legend_handles_labels()
    figure.legend(*named, loc="lower center", ncols=3, fontsize=8.5, bbox_to_anchor=(0.5, 0.05 / high))
    return png_bytes(figure)


def roc_figure(curves: Sequence[tuple[str, np.ndarray, np.ndarray]], *, title: str, of: str = "") -> bytes:
    """Draws receiver operating characteristics.

    Args:
      curves: (what stands in the legend, [T] share of the others that is taken for the class, threshold by
        threshold, [T] share of the class that is found). One alone has no legend.
      title: stands above.
      of: name of the class that is looked for, if it is one alone.
    """
    short = shortened_apart([name for name, _, _ in curves], MOST_LETTERS + 10)
    names = [short[name] for name, _, _ in curves]
    wide = 0.0 if of else 0.7 + 0.09 * max(map(width, names))
    figure = Figure(figsize=(5 + wide, 5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1)
    handles = []
    for i, (_, false_rates, true_rates) in enumerate(curves):
        handles += axes.plot(false_rates, true_rates, color=f"C{i % 10}", linewidth=2)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    who = shortened(of, MOST_LETTERS) if of else "the class"
    axes.set_xlabel(f"share of the others called {who}", parse_math=False)
    axes.set_ylabel(f"share of {who} found", parse_math=False)
    figure.suptitle(title, parse_math=False)
    axes.grid(color="0.9")
    if not of:
        legend = axes.legend(handles, names, loc="upper left", bbox_to_anchor=(1.02, 1), frameon=False)
        for text in legend.get_texts():
            text.set_parse_math(False)
    return png_bytes(figure)


def per_class_figure(classes: Mapping[str, Mapping[str, Any]], *, title: str) -> bytes:
    """Draws recall, precision and F1 of each class as bars; of many classes, of those with the lowest F1.

    Args:
      classes: {name: {recall, precision, f1, support}}.
      title: stands above.
    """
    shown = list(classes)
    if len(classes) > MOST_BARS:
        worst = sorted(shown, key=lambda name: classes[name]["f1"])[:MOST_BARS]
        shown = [name for name in shown if name in set(worst)]
        title = f"{title}\nthe {MOST_BARS} of {len(classes):,} classes with the lowest F1"
    figure = Figure(figsize=(7.5, 1.6 + 0.42 * len(shown)), layout="constrained")
    axes = figure.add_subplot()
    places = np.arange(len(shown))
    colours = (("recall", "tab:blue"), ("precision", "tab:orange"), ("f1", "tab:green"))
    for i, (measure, colour) in enumerate(colours):
        heights = [classes[name][measure] for name in shown]
        label = "F1" if measure == "f1" else measure
        axes.barh(places + 0.26 * (i - 1), heights, 0.24, color=colour, label=label)
    short = shortened_apart(shown, MOST_LETTERS)
    names = [f"{short[name]} ({classes[name]['support']:,})" for name in shown]
    axes.set_yticks(places, names, parse_math=False)
    axes.set(xlim=(0, 1), ylim=(len(shown) - 0.5, -0.5))
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, borderaxespad=0.1)
    figure.suptitle(title, parse_math=False)
    return png_bytes(figure)
