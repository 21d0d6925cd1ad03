"""Pictures that are blurred, dark or tiny, by what can be counted of their pixels."""

from dataclasses import dataclass

import numpy as np

from trainer.data.inspect.headers import inspect_picture
from trainer.data.inspect.scan import Scan
from trainer.data.pipeline import Pipeline
from trainer.data.sources import Source
from trainer.tasks import Task
from trainer.values import Contract

SIDE_PX = 224
_BATCH_SIZE = 32
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(frozen=True)
class Quality:
    """What was counted of n pictures.

    `sharpness` is [n], the deviation of the Laplacian of the grey values over that of the grey values, of the
    picture at `SIDE_PX`; `brightness` is [n], the 95th percentile of the grey values, from 0 to 1; `short_px`
    is [n], the shorter side of the file in px.
    """

    sharpness: np.ndarray
    brightness: np.ndarray
    short_px: np.ndarray


def measure_quality(source: Source, scan: Scan, indices: np.ndarray, *, task: Task) -> Quality:
    """Looks at pictures at positions [n] of a source, whose labels are of a task, each decoded once."""
    contract = Contract(SIDE_PX, SIDE_PX, (0.0, 1.0), 0, any_size=True, antialias=True, resizes_bytes=True)
    pipeline = Pipeline(
        source, scan, contract=contract, batch_size=_BATCH_SIZE, seed=0, decoding="scaled", task=task
    )
    sharpness, brightness = [], []
    for batch in pipeline.once(indices):
        grey = np.clip(batch["image"].numpy()[batch["mask"].numpy() > 0], 0, 1) @ _LUMA
        around = grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:]
        laplacian = around - 4 * grey[:, 1:-1, 1:-1]
        sharpness.append(laplacian.std(axis=(1, 2)) / np.maximum(grey.std(axis=(1, 2)), 1e-3))
        brightness.append(np.quantile(grey, 0.95, axis=(1, 2)))
    infos = [
        inspect_picture(source.read(at), name=source.ids[at], max_pixels=2**62) for at in indices.tolist()
    ]
    short = np.array([min(info.width_px, info.height_px) for info in infos])
    return Quality(np.concatenate(sharpness), np.concatenate(brightness), short)
