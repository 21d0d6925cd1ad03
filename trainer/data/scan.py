"""One look at every encoded picture before training: its digest, and whether it can be read."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from trainer.data.decode import inspect_picture
from trainer.data.sources import Source


@dataclass(frozen=True)
class Scan:
    """What was found, by position in the source's order.

    `digests[i]` is the SHA-256 of the encoded bytes in hex; `orientations` is [N] int32, the EXIF
    orientation 1 to 8 that the decoder applies (all 1 with --exif=ignore).
    """

    digests: list[str]
    orientations: np.ndarray


def scan(source: Source, *, exif: str = "apply") -> Scan:
    """Reads every picture's bytes and header.

    Raises:
      TrainerError: a picture cannot be read; the message names it.
    """

    def look(index: int) -> tuple[str, int]:
        data = source.read(index)
        info = inspect_picture(data, name=source.ids[index])
        return hashlib.sha256(data).hexdigest(), info.orientation if exif == "apply" else 1

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(look, range(len(source.ids)), chunksize=64))
    return Scan([digest for digest, _ in found], np.array([turn for _, turn in found], np.int32))
