"""Transfer-learning image classification with the training loop in the open."""

import os
from typing import Any

from trainer import register

__all__ = ["load", "register"]
__version__ = "0.1.0"


def load(workdir: str | os.PathLike[str], *, checkpoint: str = "best") -> Any:
    """Opens a finished run for predictions: `trainer.load("runs/mine").predict(["a.jpg", "folder"])`.

    TensorFlow is imported only now.

    Args:
      workdir: the folder of the run; the pictures it was trained with need not be there any more. Or a model
        that `export` wrote: a SavedModel folder or a .tflite file.
      checkpoint: of a run: best, latest, or a step number.

    Returns:
      A `trainer.commands.predict.Predictor`.

    Raises:
      trainer.values.TrainerError: there is no such run, checkpoint or model, or it cannot be opened.
    """
    from trainer import commands

    return commands.load(workdir, checkpoint=checkpoint)
