"""Figures of an evaluation's numbers, as PNG bytes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from trainer.measures.calibration import Bin
from trainer.record.figures import png_bytes
from trainer.record.shortening import MOST_LETTERS, shortened, shortened_apart

MOST_BARS = 40
"""Classes in `per_class_figure`."""
MOST_CURVES = 10
"""Classes in `roc_figure`."""


def reliability_figure(panels: Sequence[tuple[str, Sequence[Bin]]], *, title: str) -> bytes:
    """Draws the share of right predictions over their probability, and how many there are of each.

    Args:
      panels: (what stands above, bins), side by side: before and after scaling.
      title: stands above all.
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
        above.bar([b.low for b in known], heights, color="tab:blue", label="share that is right", **style)
        means = ([b.confidence for b in known], heights)
        above.vlines(*means, means[0], color="tab:red", linewidth=2, label="gap to their mean probability")
        above.plot(means[0], means[0], color="tab:red", linestyle="", marker="o", markersize=3)
        above.set(xlim=(0, 1), ylim=(0, 1))
        above.set_title(name, fontsize=10, parse_math=False)
        total = sum(b.count for b in bins)
        shares = [b.count / total for b in bins]
        below.bar(lows, shares, color="0.6", **style)
        below.set_xlabel("probability of the predicted class")
        for axes in (above, below):
            axes.grid(color="0.9")
            axes.set_axisbelow(True)
    grid[0, 0].set_ylabel("share of right predictions")
    grid[1, 0].set_ylabel("share of pictures")
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
    wide = 0.0 if of else 0.7 + 0.09 * max(map(len, names))
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
