"""Pictures of numbers and of pictures, as PNG bytes."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure  # Without pyplot: no global state, no window system.


def picture_grid(images: np.ndarray, titles: Sequence[str], *, columns: int = 4) -> bytes:
    """Draws pictures with a title above each.

    Args:
      images: [N, H, W, 3] float in [0, 1].
      titles: [N].
      columns: pictures a row.
    """
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(1.6 * columns, 1.8 * rows))
    # Small enough for the longest one: a letter is about half as wide as high, and an inch has 72 points.
    size = min(12.0, 1.6 * 72 / (0.55 * max([1, *map(len, titles)])))
    for i, (image, title) in enumerate(zip(images, titles, strict=True)):
        row, column = divmod(i, columns)
        # Placed by hand: a layout engine takes longer than all the drawing.
        left, bottom = (column + 0.03) / columns, 1 - (row + 0.97) / rows
        axes = figure.add_axes((left, bottom, 0.94 / columns, 0.8 / rows))
        axes.imshow(np.clip(image, 0.0, 1.0))
        axes.axis("off")
        figure.text(
            (column + 0.5) / columns,
            bottom + 0.83 / rows,
            title,
            fontsize=size,
            ha="center",
            parse_math=False,
        )
    return png_bytes(figure)


def confusion_figure(matrix: np.ndarray, class_names: Sequence[str], *, title: str) -> bytes:
    """Draws a confusion matrix [K, K]: rows are true classes, columns predictions."""
    count = len(class_names)
    side = min(max(3.5, 0.6 * count + 1.5), 30.0)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.add_subplot()
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="true", title=title)
    # A name with two dollar signs is no formula.
    axes.set_xticks(range(count), class_names, rotation=45, ha="right", parse_math=False)
    axes.set_yticks(range(count), class_names, parse_math=False)
    # Beyond some thirty classes numbers are only grey noise.
    for row, column in np.ndindex(matrix.shape) if count <= 30 else ():
        colour = "white" if share[row, column] > 0.5 else "black"
        axes.text(column, row, str(matrix[row, column]), ha="center", va="center", color=colour)
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


def roc_figure(false_rates: np.ndarray, true_rates: np.ndarray, *, positive: str, title: str) -> bytes:
    """Draws a receiver operating characteristic.

    Args:
      false_rates: [T], the share of the other class that is taken for `positive`, threshold by threshold.
      true_rates: [T], the share of `positive` that is found.
      positive: name of the class that is looked for.
      title: stands above.
    """
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1)
    axes.plot(false_rates, true_rates, color="tab:blue", linewidth=2)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    axes.set_xlabel(f"share of the others called {positive}", parse_math=False)
    axes.set_ylabel(f"share of {positive} found", parse_math=False)
    axes.set_title(title, parse_math=False)
    axes.grid(color="0.9")
    return png_bytes(figure)


def png_bytes(figure: Any) -> bytes:
    """Returns a figure as PNG; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    # No software version in the file: it would be another with the next release.
    figure.savefig(buffer, format="png", dpi=100, metadata={"Software": None})
    return buffer.getvalue()
