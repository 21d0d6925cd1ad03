"""The one way from encoded pictures to probabilities and predictions, whoever asks and whatever answers.

Bytes become pixels as the model's contract says (`data.loading.Loader`), the model makes probabilities of
them, and its task makes predictions of these. `predict`, `explain`, `serve` and the Python API come this way,
with the network of a run or an exported model.
"""

from collections.abc import Generator, Iterable, Sequence
from typing import Protocol

import numpy as np

from trainer.cli.config import Config
from trainer.data.loading import Loaded, Loader
from trainer.data.picture_files import Found
from trainer.tasks import Task
from trainer.values import Contract


class Model(Protocol):
    """What makes probabilities: `run.finished_run.RunModel` or `export.loading.ExportedModel`."""

    class_names: tuple[str, ...]

    @property
    def task(self) -> Task:
        """Says what the probabilities mean."""
        ...

    @property
    def contract(self) -> Contract:
        """What `probabilities` wants to be fed."""
        ...

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Maps images [B, H, W, 3] float32 in `contract.value_range` to probabilities [B, K] float64."""
        ...


class Inference:
    """A model, asked about encoded pictures. `class_names` are in the order of its probabilities."""

    def __init__(self, model: Model, config: Config):
        """Notes what to ask.

        Args:
          model: what answers.
          config: says how pictures are read.
        """
        data = config.data
        self.class_names, self.task, self.contract = model.class_names, model.task, model.contract
        self._model = model
        self._loader = Loader(
            model.contract, exif=data.exif, max_pixels=data.max_pixels, decoding=data.decode
        )

    def pixels(self, data: bytes, *, name: str) -> np.ndarray:
        """Returns [H, W, 3] float32 in the contract's size and range of an encoded picture.

        Raises:
          BadPictureError: it is no picture, or one that training would refuse.
          TrainerError: there is too little memory for it.
        """
        return self._loader.pixels(data, name=name)

    def load_all(self, found: Iterable[Found], *, ahead: int) -> Generator[Loaded, None, None]:
        """Yields the pixels of all that was found, or why there are none, `ahead` of whoever takes them."""
        return self._loader.load_all(found, ahead=ahead)

    def probabilities(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
        """Maps n times [H, W, 3], as `pixels` gives them, to [n, K] float64."""
        if not pixels:
            return np.zeros([0, len(self.class_names)])
        return self._model.probabilities(np.stack(pixels))

    def labels(self, probabilities: np.ndarray) -> list[tuple[str, ...] | None]:
        """Returns of each row [K] which classes are predicted; None where it is always one."""
        if self.task.excludes:
            return [None] * len(probabilities)
        return [self.task.names(one, self.class_names) for one in self.task.decisions(probabilities)]

    def told(self, probabilities: np.ndarray) -> list[tuple[str, float]]:
        """Returns of each row [K] how its prediction is written, and the probability shown beside it."""
        decisions = self.task.decisions(probabilities)
        return [
            self.task.told(one, row, self.class_names)
            for one, row in zip(decisions, probabilities, strict=True)
        ]
