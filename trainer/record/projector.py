"""Pictures by their features, for TensorBoard's PROJECTOR tab."""

import math
import re
from collections.abc import Mapping, Sequence
from colorsys import hsv_to_rgb
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from google.protobuf import text_format
from tensorboard.plugins.projector import ProjectorConfig

from trainer.store.files import remove_parts, write_bytes, write_text

# What browsers can hold as one texture.
MAX_SPRITE_PX = 8192
THUMB_PX = 64
FOLDER = "projector"


class Sprite(NamedTuple):
    """Small pictures in one: `png` is that file, `size_px` the sides of each."""

    png: bytes
    size_px: int


def thumb_size(num_pictures: int) -> int:
    """Returns the sides of thumbnails, in pixels, with which so many fit into one picture."""
    return min(THUMB_PX, MAX_SPRITE_PX // max(1, math.ceil(math.sqrt(num_pictures))))


def make_sprite(thumbs: np.ndarray, labels: Sequence[str]) -> Sprite:
    """Puts pictures side by side, in frames of the colours of their labels.

    Args:
      thumbs: [N, S, S, 3] uint8, S as `thumb_size` says.
      labels: [N] words.
    """
    return Sprite(tf.io.encode_png(_side_by_side(framed(thumbs, labels))).numpy(), thumbs.shape[1])


def write_projector(
    run_folder: Path,
    *,
    name: str,
    features: np.ndarray,
    sprite: Sprite,
    columns: Mapping[str, Sequence[str]],
) -> None:
    """Writes vectors with a picture and a few words for each.

    Args:
      run_folder: holds event files, of one of the runs that TensorBoard shows: it looks there for
        projector_config.pbtxt, which is written last. The rest is in `projector/` below.
      name: of the vectors.
      features: [N, D] float.
      sprite: of the N pictures.
      columns: two or more, {what: [N] words}; the first is the label of a point.
    """
    folder = run_folder / FOLDER
    remove_parts(folder)
    row = "\t".join(["%.6g"] * features.shape[1]) + "\n"
    write_text(folder / "features.tsv", "".join(row % tuple(numbers) for numbers in features.tolist()))
    table = [tuple(columns), *zip(*columns.values(), strict=True)]
    lines = ("\t".join(map(_cell, row)) + "\n" for row in table)
    write_bytes(folder / "metadata.tsv", "".join(lines).encode(errors="replace"))
    write_bytes(folder / "sprite.png", sprite.png)
    config = ProjectorConfig()
    embedding = config.embeddings.add(
        tensor_name=name,
        tensor_path=f"{FOLDER}/features.tsv",
        metadata_path=f"{FOLDER}/metadata.tsv",
    )
    embedding.sprite.image_path = f"{FOLDER}/sprite.png"
    embedding.sprite.single_image_dim.extend([sprite.size_px] * 2)
    write_text(run_folder / "projector_config.pbtxt", text_format.MessageToString(config))


def framed(thumbs: np.ndarray, labels: Sequence[str]) -> np.ndarray:
    """Returns pictures in frames of the colours of their labels: the tab itself has no colours at first.

    Args:
      thumbs: [N, S, S, 3] uint8.
      labels: [N] words; those that are the same have the same colour.
    """
    names = sorted(set(labels))
    # Neighbours in the list are far apart in hue.
    hues = [(0.02 + k * 0.618034) % 1.0 for k in range(len(names))]
    colours = {
        name: np.round(255 * np.array(hsv_to_rgb(hue, 0.85, 0.9)))
        for name, hue in zip(names, hues, strict=True)
    }
    width = max(1, thumbs.shape[1] // 12)
    found = np.empty_like(thumbs)
    found[:] = np.array([colours[label] for label in labels], np.uint8)[:, None, None]
    found[:, width:-width, width:-width] = thumbs[:, width:-width, width:-width]
    return found


def _cell(text: str) -> str:
    """Returns a text as it may stand in a table: what divides rows or columns is written as in Python."""
    return re.sub(r"[\t\n\r]", lambda found: repr(found[0])[1:-1], text)


def _side_by_side(thumbs: np.ndarray) -> np.ndarray:
    """Returns a square of thumbnails [n * S, n * S, 3], row after row from the upper left."""
    num_pictures, size = thumbs.shape[:2]
    side = math.ceil(math.sqrt(num_pictures))
    places = np.zeros((side * side, size, size, 3), np.uint8)
    places[:num_pictures] = thumbs
    return places.reshape(side, side, size, size, 3).swapaxes(1, 2).reshape(side * size, side * size, 3)
