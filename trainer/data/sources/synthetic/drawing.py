"""How plants are drawn: outlines, colours, a pen, one function per flower.

Outlines are [K, P, 2] in pixels or in a frame [2, 3] that takes them there; colours are [K, 3] or,
with opacity, [K, 4], from 0 to 255.

A bloom is drawn in a frame of its own, in which it is about the unit disc: outlines [K, P, 2] and
colours [K, 3] or, with opacity, [K, 4], both 0-255. `frame` [2, 3] takes such points to pixels.
Everything random comes from the Generator given, so that a picture is a function of its key.
"""

from dataclasses import dataclass
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


HEART_COLOURS = np.array([(70, 42, 24), (225, 165, 25), (120, 130, 40), (110, 25, 50)], float)
LEAF_COLOURS = np.array([(52, 100, 36), (92, 140, 58), (70, 110, 90), (110, 120, 40)], float)
GOLDEN_ANGLE = 2.399963
# A leaf's parts (whole, shaded half, rib), each up one edge and down the other: on a bent line, and off it.
T = np.linspace(0, 1, 8)
ROUND = np.concatenate([T, T[::-1]])
LEAF = np.stack([ROUND, 0.25 * ROUND**2], -1)
EDGES = np.repeat([(1, -1), (-1, 0), (-0.04, 0.04)], 8, axis=1)
LEAF_HALF = np.stack([np.zeros((3, 16)), EDGES * np.sin(np.pi * ROUND**0.85)], -1)
# Layers of a petal from its edge inwards: size, and how much lighter than the petal.
THIN_PETAL = ((1.0, -0.24), (0.9, -0.02), (0.62, 0.08))
LARGE_PETAL = ((1.0, -0.26), (0.97, -0.1), (0.86, -0.02), (0.7, 0.04), (0.5, 0.09), (0.3, 0.13))
# Pixels of radius below which a bloom, blurred anyway, is drawn with less detail.
FAR = 30


@dataclass(frozen=True)
class Look:
    """Colours [3] of one bloom, the angle the light comes from in its frame, its radius in pixels."""

    petal: Array
    heart: Array
    leaf: Array
    light: float
    radius: float


def draw_plant(
    pen: Pen, rng: Generator, label: int, petal: Array, centre: Array, radius: float, *, bottom: float
) -> None:
    """Draws stem, leaves and the bloom of class `label` at `centre` [2]; lengths in pixels."""
    bloom = BLOOMS[label]
    upright = bloom is _tulip
    turn = rng.normal(0, 0.3) - np.pi / 2 if upright else rng.uniform(0, 2 * np.pi)
    tilt = 1.0 if upright else rng.uniform(0.55, 1.0)
    lean = rng.uniform(-0.5, 0.5)
    squash = rotation(lean) @ np.diag([1.0, tilt]) @ rotation(-lean)
    frame = np.column_stack([radius * squash @ rotation(turn), centre])
    petal = (petal + rng.normal(0, 14, 3)).clip(0, 255)
    heart = (pick(rng, HEART_COLOURS) + rng.normal(0, 14, 3)).clip(0, 255)
    leaf = pick(rng, LEAF_COLOURS) * rng.uniform(0.7, 1.15)
    look = Look(petal=petal, heart=heart, leaf=leaf, light=-2.0 - turn, radius=radius)
    foot = frame @ (-0.85, 0, 1) if upright else centre
    _stem(pen, rng, look, foot, foot - centre, bottom)
    bloom(pen, frame, rng, look)


def _stem(pen: Pen, rng: Generator, look: Look, top: Array, along: Array, bottom: float) -> None:
    foot = np.array([top[0] + rng.normal(0, 0.5) * look.radius, bottom + look.radius * 0.3])
    knee = np.array([top[0], (top[1] + foot[1]) / 2]) + 0.8 * along
    t = T[:, None]
    path = (1 - t) ** 2 * top + 2 * t * (1 - t) * knee + t**2 * foot
    across = np.array([max(2.0, look.radius * rng.uniform(0.03, 0.06)), 0])
    sides = [np.concatenate([path - across, (path + end * across)[::-1]]) for end in (1.0, 0.1)]
    pen.fill(None, np.stack(sides), shade(look.leaf, [-0.35, -0.05]))
    if look.radius < FAR:
        return
    count = rng.integers(0, 4)
    angles = -np.pi / 2 + rng.choice([-1, 1], count) * rng.uniform(0.2, 1.1, count)
    feet, lengths = path[rng.integers(2, 8, count)], look.radius * rng.uniform(0.7, 1.9, count)
    draw_leaves(
        pen, shade(look.leaf, rng.normal(0, 0.08, count)), feet, angles, lengths, rng.uniform(0.08, 0.2)
    )


def draw_leaves(
    pen: Pen, colours: Array, feet: Array, angles: Array, lengths: Array, width: float, *, plain: bool = False
) -> None:
    """Draws K leaves or blades; colours [K, 3], feet [K, 2], angles and lengths [K]; width per length."""
    parts = LEAF + width * LEAF_HALF
    parts = parts[:1] if plain else parts
    outlines = turned(parts * np.reshape(lengths, (-1, 1, 1, 1)), angles) + feet[:, None, None]
    tones = shade(colours[:, None], [-0.15, 0.08, 0.25][: len(parts)])
    pen.fill(None, outlines.reshape(-1, 16, 2), tones.reshape(-1, 3))


def _dandelion(pen: Pen, frame: Array, rng: Generator, look: Look) -> None:
    """A ball of fine rays without a disc: the flower head, or the puff of seeds."""
    if rng.random() < 0.5:
        _puff(pen, frame, rng, look)
        return
    for reach in (1.0, 0.9, 0.78, 0.64, 0.5, 0.36, 0.22)[:: 3 if look.radius < FAR else 1]:
        count = int(12 + 26 * reach)
        ray = np.array([(0.3, -0.01), (0.97, -0.028), (1.0, 0), (0.97, 0.028), (0.3, 0.01)])
        angles = np.arange(count) * 2 * np.pi / count + rng.normal(0, 0.07, count)
        stretch = np.column_stack([reach * rng.uniform(0.85, 1.05, count), np.full(count, 0.6 + 0.4 * reach)])
        tones = rng.normal(-0.28 + 0.3 * reach, 0.14, count) + 0.1 * np.cos(angles - look.light)
        pen.fill(frame, turned(ray * stretch[:, None], angles), shade(look.petal, tones))


def _puff(pen: Pen, frame: Array, rng: Generator, look: Look) -> None:
    pen.fill(frame, np.array([[[0.96]], [[0.75]]]) * CIRCLE, np.tile(np.append(look.petal, 36), (2, 1)))
    count = 80 if look.radius > 90 else 45
    heights = rng.permutation(np.sqrt((np.arange(count) + 0.5) / count))
    angles = np.arange(count) * GOLDEN_ANGLE + rng.normal(0, 0.1, count)
    tips = heights[:, None] * 0.84 * np.column_stack([np.cos(angles), np.sin(angles)])
    rays = angles[:, None] + np.linspace(-1.5, 1.5, 7) * (1.6 - 0.7 * heights[:, None])
    hairs = rng.uniform(0.13, 0.24, (count, 7, 1)) * np.stack([np.cos(rays), np.sin(rays)], -1)
    # One line per seed, from the middle to its tip and out along each hair and back.
    paths = np.repeat(tips[:, None], 16, axis=1)
    paths[:, 0], paths[:, 2::2] = 0.1 * tips, tips[:, None] + hairs
    paths = paths @ frame[:, :2].T + frame[:, 2]
    tones = shade(look.petal, rng.normal(0.08, 0.16, count)).astype(int).tolist()
    for path, tone in zip(paths.reshape(count, -1).tolist(), tones, strict=True):
        pen.glass.line(path, fill=(*tone, 215), width=1)
    _grains(pen, frame, rng, look, look.heart, 0.11, 14)


def _daisy(pen: Pen, frame: Array, rng: Generator, look: Look) -> None:
    """One or two rings of many thin blunt petals around a small disc."""
    count = int(rng.integers(13, 26))
    disc = rng.uniform(0.2, 0.32)
    for reach, tone in ((1.0, -0.14), (0.95, 0.04))[rng.integers(2) :]:
        outline = petal_outline(disc * 0.6, reach, rng.uniform(1.7, 2.3) / count, peak=0.68, blunt=0.5)
        angles = (np.arange(count) + rng.normal(0, 0.14, count)) * 2 * np.pi / count + rng.uniform(0, 1)
        _petals(pen, frame, rng, look, spread(outline, angles, rng.uniform(0.88, 1.03, count)), angles, tone)
    _disc(pen, frame, rng, look, look.heart, disc, 45)


def _sunflower(pen: Pen, frame: Array, rng: Generator, look: Look) -> None:
    """Two rings of short pointed petals around a large, dark, grained disc."""
    count = int(rng.integers(15, 24))
    disc = rng.uniform(0.44, 0.6)
    for reach, tone in ((1.0, -0.2), (0.92, 0.05)):
        outline = petal_outline(disc * 0.8, reach, 2.1 / count, peak=0.42)
        angles = (np.arange(count) + rng.normal(0, 0.2, count)) * 2 * np.pi / count + rng.uniform(0, 1)
        _petals(pen, frame, rng, look, spread(outline, angles, rng.uniform(0.88, 1.1, count)), angles, tone)
    _disc(pen, frame, rng, look, look.heart * 0.55, disc, 120)


def _tulip(pen: Pen, frame: Array, rng: Generator, look: Look) -> None:
    """A cup seen from the side: few large petals, tips up (+x), foot at x = -0.85."""
    gape, width = rng.uniform(0.1, 0.34), rng.uniform(0.36, 0.5)
    back = np.array([-0.7, 0.7, 0.1]) * gape
    front = np.array([-1.0, 1.0, rng.normal(0, 0.15)]) * gape
    for angles, reach, tone in ((back, 1.6, -0.34), (front, 1.66, -0.1)):
        outline = petal_outline(0, reach, width, peak=0.46, blunt=0.75, points=11)
        outlines = spread(outline, angles, rng.uniform(0.88, 1.04, 3)) - (0.85, 0)
        _petals(pen, frame, rng, look, outlines, angles * 4, tone)


def _rose(pen: Pen, frame: Array, rng: Generator, look: Look) -> None:
    """Rounded petals overlapping in a whorl, each with a lit rim and a shadow on those outside it."""
    counts, aways, sizes = (
        (5, 5, 4, 3, 3, 2),
        (0.48, 0.36, 0.26, 0.17, 0.1, 0.03),
        (0.54, 0.45, 0.36, 0.27, 0.18, 0.11),
    )
    rows = np.repeat(np.arange(6), counts)
    within = np.concatenate([np.arange(n) / n for n in counts])
    angles = within * 2 * np.pi + rows * 0.7 + rng.normal(0, 0.13, len(rows)) + rng.uniform(0, 6.3)
    away, size = np.take(aways, rows), np.take(sizes, rows) * rng.uniform(0.9, 1.1, len(rows))
    notch = 1 - rng.uniform(0, 0.16, (len(rows), 1)) * np.exp(-8 * (1 - CIRCLE[:, 0]))
    outline = CIRCLE * (0.82, 1.05) * notch[..., None] * size[:, None, None]
    growth, inward = np.array([1.12, 1.05, 1.0, 0.93, 0.84, 0.72]), np.array([0, 0, 0, 0.03, 0.09, 0.16])
    layers = outline[:, None] * growth[:, None, None]
    layers[..., 0] += away[:, None, None] - (inward * size[:, None])[..., None]
    lit = 0.1 * np.cos(angles - look.light) - 0.045 * rows + rng.normal(0, 0.04, len(rows))
    tones = lit[:, None] + np.array([-0.26, -0.42, 0.2, 0.08, -0.06, -0.2])
    if look.radius < FAR:
        layers, tones = layers[:, 1:4:2], tones[:, 1:4:2]
    pen.fill(
        frame, turned(layers, angles).reshape(-1, len(CIRCLE), 2), shade(look.petal, tones).reshape(-1, 3)
    )


# In the order of tf_flowers' labels.
BLOOMS = (_dandelion, _daisy, _tulip, _sunflower, _rose)


def _petals(
    pen: Pen, frame: Array, rng: Generator, look: Look, outlines: Array, angles: Array, tone: float
) -> None:
    """Fills outlines [K, P, 2], each from a dark edge to a light middle, the finer the larger the bloom."""
    layers = np.array(LARGE_PETAL if len(angles) <= 3 else THIN_PETAL)
    # Far ones, and those under another ring, show little.
    sizes, tones = (layers[1:3] if look.radius < 90 or (tone < -0.1 and len(angles) > 3) else layers).T
    middle = outlines.mean(1, keepdims=True)
    scaled = np.stack([middle + (outlines - middle) * (1 - (1 - s) * 0.5, s) for s in sizes], 1)
    lit = tone + 0.12 * np.cos(angles - look.light) + rng.normal(0, 0.05, len(angles))
    colours = shade(look.petal, lit[:, None] + np.array(tones))
    pen.fill(frame, scaled.reshape(-1, *outlines.shape[1:]), colours.reshape(-1, 3))


def _disc(
    pen: Pen, frame: Array, rng: Generator, look: Look, colour: Array, radius: float, grains: int
) -> None:
    sizes = np.array([1.0, 0.93, 0.55])[:, None, None]
    pen.fill(frame, radius * sizes * CIRCLE, shade(colour, [-0.45, -0.15, -0.3]))
    _grains(pen, frame, rng, look, colour, radius, grains)


def _grains(
    pen: Pen, frame: Array, rng: Generator, look: Look, colour: Array, radius: float, count: int
) -> None:
    """Fills a disc with grains on the spiral that plants use."""
    count = round(count * min(1.0, look.radius / 120))
    k = np.arange(count) + 0.5
    spots = (
        np.column_stack([np.cos(k * GOLDEN_ANGLE), np.sin(k * GOLDEN_ANGLE)]) * np.sqrt(k / count)[:, None]
    )
    grain = CIRCLE[::5] * radius * 0.95 / np.sqrt(count)
    tones = rng.normal(0.08, 0.2, count) - 0.25 * (spots @ (0.5, 0.5))
    pen.fill(frame, radius * 0.95 * spots[:, None] + grain, shade(colour, tones))
