"""How a picture of `synthetic:flowers` is composed: plants before a scene, seen through a camera."""

import io

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageFilter

from trainer.data.sources.synthetic.drawing import (
    CIRCLE,
    LEAF_COLOURS,
    Array,
    Pen,
    draw_leaves,
    draw_plant,
    pick,
    rotation,
    shade,
)

CLASS_NAMES = ("dandelion", "daisy", "tulips", "sunflowers", "roses")
PETAL_COLOURS = np.array([
    (246, 205, 30), (240, 238, 232), (205, 28, 38), (238, 120, 165), (245, 130, 30), (130, 60, 165),
    (250, 228, 120), (225, 170, 215), (120, 18, 45), (250, 190, 165),
], float)  # fmt: skip
SCENES: dict[str, Array | None] = {
    "sky": np.array([(80, 140, 215), (190, 215, 240), (225, 228, 230)], float),
    "grass": np.array([(60, 105, 35), (110, 150, 60), (40, 70, 30)], float),
    "soil": np.array([(105, 78, 55), (70, 52, 40), (150, 120, 90)], float),
    "bokeh": np.array([(18, 34, 18), (50, 70, 40), (30, 30, 44)], float),
    "gradient": None,
    "clutter": None,
}


def label_of(seed: int, index: int) -> int:
    """Returns the class of picture `index`."""
    block, place = divmod(index, len(CLASS_NAMES))
    return int(order_of(seed, block)[place])


def order_of(seed: int, block: int) -> np.ndarray:
    """Returns the classes of a block of pictures in their order, [5] int64."""
    return np.random.default_rng((seed, 0, block)).permutation(len(CLASS_NAMES))


def draw_picture(label: int, *, seed: int, index: int) -> bytes:
    """Returns one picture of class `CLASS_NAMES[label]` as RGB JPEG."""
    rng = np.random.default_rng((seed, 1, index))
    width, height = 240 + int(260 * rng.random() ** 2.5), int(rng.integers(200, 300))
    if rng.random() < 0.35:
        width, height = height, width
    petal = pick(rng, PETAL_COLOURS)
    image = _background(rng, label, petal, width, height)
    # Drawn at twice the size and averaged down, for smooth edges; the background has none that are sharp.
    image = image.resize((2 * width, 2 * height), Image.Resampling.NEAREST)
    pen, size = Pen.on(image), np.array([2 * width, 2 * height])
    count = int(rng.choice([1, 2, 3, 5], p=[0.62, 0.21, 0.11, 0.06]))
    largest = size.min() * rng.uniform(0.2, 0.42) / count**0.4
    for place in _places(rng, count):
        draw_plant(pen, rng, label, petal, place * size, largest * rng.uniform(0.75, 1.0), bottom=2 * height)
    _occlude(pen, rng, size)
    return _photograph(image.reduce(2), rng)


def _places(rng: Generator, count: int) -> Array:
    """Returns centres [count, 2] as shares of the picture, well apart, the lowest last."""
    tries = rng.uniform(0.2, 0.8, (12, count, 2)) if count > 1 else rng.uniform(0.36, 0.64, (1, 1, 2))
    gaps = np.linalg.norm(tries[:, :, None] - tries[:, None], axis=-1) + 9 * np.eye(count)
    best = tries[gaps.min((1, 2)).argmax()]
    return best[best[:, 1].argsort()]


def _background(rng: Generator, label: int, petal: Array, width: int, height: int) -> Image.Image:
    """Returns a scene out of focus, drawn at a quarter of the size and blurred."""
    kind = list(SCENES)[rng.integers(len(SCENES))]
    colours = SCENES[kind]
    if colours is None:
        colours = rng.uniform(20, 235, (3, 1)) * 0.6 + rng.uniform(20, 235, (3, 3)) * 0.4
    rows = np.arange(6)[:, None] // 2 if kind == "sky" else rng.integers(3, size=(5, 1))
    patches = rng.integers(2, size=(len(rows), 6)) * (kind != "sky")
    cells = colours[(rows + patches) % 3]
    cells = (cells * rng.uniform(0.8, 1.2) + rng.normal(0, 12, cells.shape)).clip(0, 255).astype(np.uint8)
    size = np.array([width // 4, height // 4])
    image = Image.fromarray(cells).resize((width // 4, height // 4), Image.Resampling.BICUBIC)
    pen = Pen.on(image)
    _scatter(pen, rng, kind, colours, size)
    for _ in range(rng.choice([0, 1, 2, 3], p=[0.66, 0.16, 0.1, 0.08])):
        far = size[1] * rng.uniform(0.08, 0.2)
        draw_plant(pen, rng, label, petal, rng.uniform(0, 1, 2) * size, far, bottom=size[1])
    image = image.filter(ImageFilter.GaussianBlur(float(rng.choice([0.8, 2.0, 4.0]))))
    return image.resize((width // 2, height // 2), Image.Resampling.BILINEAR)


def _scatter(pen: Pen, rng: Generator, kind: str, colours: Array, size: Array) -> None:
    """Draws what lies about in a scene of that kind: blades, pebbles, lights, clouds, boards."""

    def spots(count: int, low: float, high: float) -> Array:
        radii = rng.uniform(low, high, (count, 1, 1)) * size[0]
        return rng.uniform(0, 1, (count, 1, 2)) * size + CIRCLE[::2] * radii

    if kind in ("grass", "clutter"):
        count, upwards = (40, 0.4) if kind == "grass" else (12, 3.0)
        tones = np.stack([pick(rng, LEAF_COLOURS) for _ in range(count)]) * rng.uniform(0.6, 1.4, (count, 1))
        angles, lengths = rng.normal(-np.pi / 2, upwards, count), size[1] * rng.uniform(0.2, 0.5, count)
        feet = rng.uniform(0, 1.2, (count, 2)) * size
        draw_leaves(
            pen, tones.clip(0, 255), feet, angles, lengths, 0.05 if kind == "grass" else 0.2, plain=True
        )
    if kind == "clutter":
        boards = rng.uniform(0, 1, (6, 1, 2)) + rng.normal(0, 0.16, (6, 4, 2))
        pen.fill(None, boards * size, rng.uniform(20, 220, (6, 1)) * 0.6 + rng.uniform(20, 220, (6, 3)) * 0.4)
    if kind == "soil":
        pen.fill(None, spots(80, 0.004, 0.03), shade(colours[0], rng.normal(0, 0.3, 80)))
    if kind == "bokeh":
        tints = shade(pick(rng, PETAL_COLOURS), rng.normal(0, 0.3, 25))
        pen.fill(None, spots(25, 0.02, 0.1), np.column_stack([tints, rng.uniform(20, 110, 25)]))
    if kind == "sky":
        pen.fill(None, spots(9, 0.05, 0.16), np.column_stack([np.full((9, 3), 245), rng.uniform(30, 110, 9)]))


def _occlude(pen: Pen, rng: Generator, size: Array) -> None:
    """Draws leaves, blades of grass, a twig or a ladybird in front of everything."""
    colour = pick(rng, LEAF_COLOURS) * rng.uniform(0.5, 1.2)
    count = int(rng.choice([0, 1, 3], p=[0.4, 0.35, 0.25]))
    feet = rng.uniform(0, 1, (count, 2)) * size
    inwards = np.arctan2(*(size / 2 - feet).T[::-1]) + rng.normal(0, 0.6, count)
    tones = shade(colour, rng.normal(0, 0.1, count))
    draw_leaves(pen, tones, feet, inwards, size.min() * rng.uniform(0.2, 0.5, count), rng.uniform(0.1, 0.25))
    if rng.random() < 0.3:
        count = int(rng.integers(3, 14))
        feet = np.column_stack([rng.uniform(0, 1, count), np.full(count, 1.05)]) * size
        lengths = size[1] * rng.uniform(0.2, 0.9, count)
        draw_leaves(
            pen, shade(colour, rng.normal(0, 0.15, count)), feet, rng.normal(-1.7, 0.2, count), lengths, 0.02
        )
    if rng.random() < 0.15:
        ends = rng.uniform(-0.1, 1.1, (2, 2)) * size
        pen.opaque.line(ends.ravel().tolist(), fill=(70, 55, 42), width=int(rng.integers(3, 14)))
    if rng.random() < 0.1:
        across = size.min() * 0.03 * rotation(rng.uniform(0, 2 * np.pi))
        body = np.stack(
            [CIRCLE * s + at for s, at in ((0.6, (0.9, 0)), (1, (0, 0)), (0.2, (0, 0.5)), (0.2, (0, -0.5)))]
        )
        colours = np.array([(20, 20, 20), (190, 30, 20), (15, 15, 15), (15, 15, 15)])
        pen.fill(np.column_stack([across, size * rng.uniform(0.3, 0.7, 2)]), body, colours)


def _photograph(image: Image.Image, rng: Generator) -> bytes:
    """Returns the picture as JPEG after uneven light, exposure, white balance and noise."""
    dark = Image.fromarray(rng.uniform(0, 106, (3, 3)).astype(np.uint8))
    dark = dark.resize((image.width // 2, image.height // 2), Image.Resampling.BILINEAR).resize(
        image.size, Image.Resampling.NEAREST
    )
    noise = Image.frombytes("L", image.size, rng.bytes(image.width * image.height))
    image.paste((0, 0, 0), (0, 0), Image.blend(dark, noise, rng.uniform(0, 0.14)))
    gains = rng.uniform(0.8, 1.25) * rng.normal(1.15, 0.05, (3, 1))
    curves = 255 * (np.arange(256) / 255 * gains).clip(0, 1) ** rng.uniform(0.9, 1.1)
    image = image.point(np.rint(curves).astype(int).ravel().tolist())
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=int(rng.integers(40, 96)))
    return buffer.getvalue()
