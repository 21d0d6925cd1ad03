"""What a decision went by, drawn over its picture: PNGs for eyes."""

import io
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from trainer.report.figures import png_bytes
from trainer.report.shortening import shortened

# Dark to bright in even steps, also for the colour-blind and in print.
_COLOURS = matplotlib.colormaps["inferno"]
_CAPTIONS = ("picture", "heat map", "overlay")
_GREY = np.array([0.299, 0.587, 0.114])  # Luma of ITU-R BT.601.
# What is cold keeps this share of its brightness. Of what is hot, so much is colour, and so much of the
# colour's brightness is that of the picture, which stays to be seen.
_DIMMED, _COVERED, _TEXTURE = 0.6, 0.9, 0.55
# Inches: 480 px, the longer side of a picture.
_SIDE, _TITLE, _CAPTION, _GAP = 4.8, 0.62, 0.3, 0.12
_SHEET_COLUMNS = 4
_CELL, _CELL_TITLE = 2.4, 0.5


def overlay(picture: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Lays heat over a picture, which is grey and dim where it is cold.

    Args:
      picture: [H, W, 3] float in [0, 1].
      heat: [h, w] float from 0 to 1, stretched over the picture.

    Returns:
      [H, W, 3] float in [0, 1].
    """
    stretched = _stretched(heat, picture.shape[:2])[..., None]
    share = _COVERED * stretched**0.8
    grey = (picture @ _GREY)[..., None]
    # From where the colours leave black.
    colours = _COLOURS(0.35 + 0.65 * stretched[..., 0])[..., :3]
    return (1 - share) * _DIMMED * grey + share * (1 - _TEXTURE + _TEXTURE * grey) * colours


def overlay_png(picture: np.ndarray, heat: np.ndarray) -> bytes:
    """Returns the `overlay` alone, as a PNG of the picture's size."""
    buffer = io.BytesIO()
    Image.fromarray((255 * overlay(picture, heat)).round().astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def panels_png(picture: np.ndarray, heat: np.ndarray, *, title: str) -> bytes:
    """Draws picture, heat map and overlay side by side.

    Args:
      picture: [H, W, 3] float in [0, 1].
      heat: [h, w] float from 0 to 1.
      title: stands above, of one or two lines.
    """
    height, width = _SIDE * np.array(picture.shape[:2]) / max(picture.shape[:2])
    # Wide enough for a title over pictures that are tall and thin.
    width = max(width, _SIDE / 2)
    figure = Figure(figsize=(3 * width + 4 * _GAP, height + _TITLE + _CAPTION + _GAP))
    heat_panel = _COLOURS(_stretched(heat, picture.shape[:2]))
    for i, image in enumerate((picture, heat_panel, overlay(picture, heat))):
        left = _GAP + i * (width + _GAP)
        _panel(figure, image, left=left, bottom=_GAP, width=width, height=height)
        _text(figure, _CAPTIONS[i], x=left + width / 2, y=_GAP + height + 0.08, size=10, colour="0.35")
    lines = "\n".join(shortened(line, 90) for line in title.split("\n"))
    x, y = figure.get_figwidth() / 2, _GAP + height + _CAPTION + 0.05
    _text(figure, lines, x=x, y=y, size=12, most_inches=figure.get_figwidth() - 0.2)
    return png_bytes(figure)


def contact_sheet(overlays: Sequence[np.ndarray], titles: Sequence[str]) -> bytes:
    """Draws overlays in rows of four with a title above each.

    Args:
      overlays: N times [H, W, 3] float in [0, 1], of any sizes.
      titles: [N], each of one or two lines.
    """
    columns = min(_SHEET_COLUMNS, len(overlays))
    rows, row_height = -(-len(overlays) // columns), _CELL + _CELL_TITLE
    figure = Figure(figsize=(columns * (_CELL + _GAP) + _GAP, rows * row_height + _GAP))
    for i, (image, title) in enumerate(zip(overlays, titles, strict=True)):
        row, column = divmod(i, columns)
        left, bottom = _GAP + column * (_CELL + _GAP), _GAP + (rows - 1 - row) * row_height
        height, width = _CELL * np.array(image.shape[:2]) / max(image.shape[:2])
        middle = left + _CELL / 2
        _panel(figure, image, left=middle - width / 2, bottom=bottom, width=width, height=height)
        lines = "\n".join(shortened(line, 34) for line in title.split("\n"))
        _text(figure, lines, x=middle, y=bottom + height + 0.05, size=9, most_inches=_CELL)
    return png_bytes(figure)


def _panel(
    figure: Figure, image: np.ndarray, *, left: float, bottom: float, width: float, height: float
) -> None:
    """Shows a picture at a place in inches; it keeps its aspect."""
    across, up = figure.get_size_inches()
    axes = figure.add_axes((left / across, bottom / up, width / across, height / up))
    axes.imshow(np.clip(image, 0.0, 1.0))
    axes.axis("off")


def _text(
    figure: Figure,
    text: str,
    *,
    x: float,
    y: float,
    size: float,
    colour: str = "black",
    most_inches: float = 100.0,
) -> None:
    """Writes text centred above a place in inches, small enough for its longest line."""
    across, up = figure.get_size_inches()
    # A letter is some 0.6 times as wide as high, and an inch has 72 points.
    longest = max([1, *map(len, text.split("\n"))])
    size = min(size, most_inches * 72 / (0.62 * longest))
    # A name with two dollar signs is no formula.
    place = (x / across, y / up)
    # A name with two dollar signs is no formula.
    figure.text(*place, text, fontsize=size, color=colour, ha="center", va="bottom", parse_math=False)


def _stretched(heat: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Returns heat [h, w] as [H, W], in between by straight lines."""
    image = Image.fromarray(heat.astype(np.float32)).resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.clip(np.asarray(image), 0.0, 1.0)
