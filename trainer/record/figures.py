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
    for i, (image, title) in enumerate(zip(images, titles, strict=True)):
        row, column = divmod(i, columns)
        # Placed by hand: a layout engine takes longer than all the drawing.
        left, bottom = (column + 0.03) / columns, 1 - (row + 0.97) / rows
        axes = figure.add_axes((left, bottom, 0.94 / columns, 0.8 / rows))
        axes.imshow(np.clip(image, 0.0, 1.0))
        axes.axis("off")
        figure.text((column + 0.5) / columns, bottom + 0.83 / rows, title, fontsize=12, ha="center")
    return _png(figure)


def confusion_figure(matrix: np.ndarray, class_names: Sequence[str], *, title: str) -> bytes:
    """Draws a confusion matrix [K, K]: rows are true classes, columns predictions."""
    count = len(class_names)
    side = min(max(3.5, 0.6 * count + 1.5), 30.0)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.add_subplot()
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="true", title=title)
    axes.set_xticks(range(count), class_names, rotation=45, ha="right")
    axes.set_yticks(range(count), class_names)
    # Beyond some thirty classes numbers are only grey noise.
    for row, column in np.ndindex(matrix.shape) if count <= 30 else ():
        colour = "white" if share[row, column] > 0.5 else "black"
        axes.text(column, row, str(matrix[row, column]), ha="center", va="center", color=colour)
    return _png(figure)


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    # No software version in the file: the same numbers give the same bytes.
    figure.savefig(buffer, format="png", dpi=100, metadata={"Software": None})
    return buffer.getvalue()
