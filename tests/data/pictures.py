"""Encoded pictures for tests, made with Pillow."""

import io

import numpy as np
from PIL import Image


def encode(image: Image.Image, form: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def blocks(width: int = 40, height: int = 24) -> Image.Image:
    """Blue on the left quarter, else red above green: no two turns of it are alike."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2] = [200, 30, 40]
    pixels[height // 2 :] = [20, 180, 90]
    pixels[:, : width // 4] = [30, 40, 220]
    return Image.fromarray(pixels)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def jpeg(seed: int = 0) -> bytes:
    return encode(noise(16, 12, seed), "JPEG")
