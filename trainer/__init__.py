"""Transfer-learning image classification with the training loop in the open.

From Python: `train`, `load` and `prepare`; what plugins register, `register`. TensorFlow is imported when
one of them is called, not before. docs/python.md has an example of each.
"""

import logging
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Unpack

from trainer import register
from trainer.cli.keywords import Options, PathLike
from trainer.values import Interrupted, TrainerError, UsageError

if TYPE_CHECKING:
    from trainer.api import Run
    from trainer.run.experiment import Experiment

__all__ = [
    "Interrupted",
    "Options",
    "TrainerError",
    "UsageError",
    "__version__",
    "load",
    "prepare",
    "register",
    "train",
]
from trainer.version import __version__

# Without a handler Python writes warnings to standard error; who calls this decides what is shown.
logging.getLogger("trainer").addHandler(logging.NullHandler())


def train(**options: Unpack[Options]) -> "Run":
    """Trains, scores and reports, as the command `train` does, or goes on where the same call was stopped.

    Args:
      **options: by the names of the flags, such as source="folder:photos", schedule="frozen",
        workdir="runs/mine"; `flagfile` names a file of them. `--helpfull` explains all of them.

    Returns:
      The finished run, with its best weights.

    Raises:
      UsageError: an option is wrong.
      TrainerError: pictures or network cannot be had, or something else is wrong.
      Interrupted: Ctrl-C in a terminal or a notebook, a signal, or max_minutes; all is saved, and the same
        call goes on. Signals reach only a call from the main thread.
    """
    from trainer import api

    return api.train(**options)


def load(
    workdir: str | os.PathLike[str],
    *,
    checkpoint: str | int = "best",
    plugin: PathLike | Sequence[PathLike] = (),
) -> "Run":
    """Opens a run that has trained: `trainer.load("runs/mine").predict(["a.jpg", "folder"])`.

    Args:
      workdir: the folder of the run; the pictures it was trained with need not be there any more. Or a model
        that `export` wrote, a SavedModel folder or a .tflite file: it can only predict.
      checkpoint: of a run: best, latest, or a step.
      plugin: of an exported model whose task a plugin defines; a run brings its own.

    Raises:
      TrainerError: there is no such run, checkpoint or model, or it cannot be opened.
    """
    from trainer import api

    return api.load(workdir, checkpoint=checkpoint, plugin=plugin)


def prepare(**options: Unpack[Options]) -> "Experiment":
    """Opens what options name, checked against one another, for a loop of your own; nothing is written.

    Args:
      **options: as of `train`; no workdir is needed.

    Returns:
      The pictures, splits, batches, network and head; its attributes have their names.

    Raises:
      UsageError: options do not fit one another, the pictures or the network.
      TrainerError: pictures or network cannot be had.
    """
    from trainer import api

    return api.prepare(**options)
