"""Outlines, colours and the pen that `synthetic:flowers` is drawn with.

Outlines are [K, P, 2] in pixels or in a frame [2, 3] that takes them there; colours are [K, 3] or,
with opacity, [K, 4], from 0 to 255.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw

Array = np.ndarray[Any, Any]

CIRCLE = np.array([(np.cos(a), np.sin(a)) for a in np.linspace(0, 2 * np.pi, 20, endpoint=False)])


class Pen(NamedTuple):
    """Two ways onto one picture: opaque, and twice as slow with opacity."""

    opaque: ImageDraw.ImageDraw
    glass: ImageDraw.ImageDraw

    @classmethod
    def on(cls, image: Image.Image) -> "Pen":
        return cls(ImageDraw.Draw(image), ImageDraw.Draw(image, "RGBA"))

    def fill(self, frame: Array | None, outlines: Array, colours: Array) -> None:
        """Fills outlines [K, P, 2] in their order, the last on top."""
        if frame is not None:
            outlines = outlines @ frame[:, :2].T + frame[:, 2]
        polygon = (self.opaque if colours.shape[1] == 3 else self.glass).polygon
        flat = outlines.reshape(-1, 2 * outlines.shape[1]).tolist()
        for outline, colour in zip(flat, colours.astype(int).tolist(), strict=True):
            polygon(outline, fill=tuple(colour))


def petal_outline(
    start: float, end: float, width: float, *, peak: float = 0.5, blunt: float = 1.0, points: int = 7
) -> Array:
    """Returns an outline [2 * points, 2] along +x, widest at `peak` of its length.

    Its ends are pointed where `blunt` is 1, square towards 0.
    """
    t = np.linspace(0, 1, points)
    half = width * np.sin(np.pi * t ** (np.log(0.5) / np.log(peak))).clip(0) ** blunt
    xs = start + (end - start) * t
    return np.concatenate([np.column_stack([xs, half]), np.column_stack([xs, -half])[::-1]])


def spread(outline: Array, angles: Array, lengths: Array) -> Array:
    """Returns the outline [P, 2] stretched along x and turned, [K, P, 2]."""
    return turned(outline * np.column_stack([lengths, np.ones_like(lengths)])[:, None], angles)


def turned(outlines: Array, angles: Array) -> Array:
    """Returns outlines [K, ..., P, 2], each turned by its angle [K]."""
    c, s = np.cos(angles), np.sin(angles)
    turns = np.stack([np.stack([c, s], -1), np.stack([-s, c], -1)], 1)
    return outlines @ turns.reshape(-1, *(1,) * (outlines.ndim - 3), 2, 2)


def rotation(angle: float) -> Array:
    """Returns the matrix [2, 2] that turns column vectors."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s], [s, c]])


def shade(colour: Array, amounts: Any) -> Array:
    """Returns the colour [..., 3] darkened by amounts [...] below 0, moved towards white by those above."""
    amounts = np.asarray(amounts)[..., None]
    return (colour * (1 + np.minimum(amounts, 0)) + (255 - colour) * np.maximum(amounts, 0)).clip(0, 255)


def pick(rng: Generator, colours: Array) -> Array:
    """Returns one of the colours [K, 3]."""
    return colours[rng.integers(len(colours))]
