"""What an exported model says of itself: a JSON file that travels inside of it."""

import dataclasses
import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.store.files import require_shape
from trainer.tasks import Task, make_task
from trainer.values import CONTRACT_SHAPE, Contract, TrainerError, UsageError

FORMAT = 1
NAME = "export.json"
# Of a hundred thousand classes it has some megabytes; what is packed can say that it is anything.
_MAX_BYTES = 10**8
_SHAPE = {
    "class_names": [str],
    "contract": CONTRACT_SHAPE,
    "exif": str,
    "decoding": str,
    "task?": str,
    "temperature": float | None,
    "thresholds?": [float],
    "run": {str: object},
    "versions": {str: object},
}
LABELS_NAME = "labels.txt"


@dataclass(frozen=True)
class About:
    """What whoever runs an exported model has to know.

    `contract` is that of the network. The model itself takes pixels in [0, 1], and maps them to
    `contract.value_range` inside.
    """

    class_names: tuple[str, ...]
    """In the order of the probabilities."""
    contract: Contract
    exif: str
    """apply or ignore: whether pictures were turned upright in training."""
    decoding: str
    """exact or scaled: how JPEGs were decoded in training."""
    task: str = "single_label"
    """What the probabilities mean, as --task has it; a model that does not say it is older than --task."""
    temperature: float | None = None
    """What logits are to be divided by, as fitted on validation; None: not known. It is not applied."""
    thresholds: tuple[float, ...] | None = None
    """From which probability on each class is predicted, as fitted on validation; None: by the task."""
    run: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Which run and which weights: identity, name, step, checkpoint, backbone."""
    versions: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Of what wrote the model."""

    def make_task(self) -> Task:
        """Returns what the probabilities mean, with the thresholds.

        Raises:
          UsageError: it is of a plugin that was not loaded.
        """
        task = make_task(self.task)
        return task if self.thresholds is None else task.with_thresholds(self.thresholds)

    def to_json(self) -> str:
        """Returns what is written into a model."""
        values = dataclasses.asdict(self)
        if self.thresholds is None:
            del values["thresholds"]
        marks = {
            "format": FORMAT,
            "kind": "hub-trainer export",
            "input_range": [0, 1],
            "temperature_applied": False,
        }
        return json.dumps({**marks, **values}, indent=2) + "\n"

    def labels(self) -> str:
        """Returns the class names, a line each, whatever they hold."""
        return "".join(f"{' '.join(name.splitlines())}\n" for name in self.class_names)


def read_about(path: Path, *, flag: str) -> About:
    """Reads what an exported model, a SavedModel folder or a .tflite file, says of itself.

    Args:
      path: of the model.
      flag: what messages begin with, such as `--model=x.tflite`.

    Raises:
      UsageError: there is nothing at the path, or no model that `export` wrote.
      TrainerError: it is damaged, or of another version's format.
    """
    text = _text(path, flag)
    try:
        values = json.loads(text)
        if not isinstance(values, dict) or not isinstance(values.get("format"), int):
            raise ValueError("it does not say its format")
        if values["format"] == FORMAT:
            return _from_values(values)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise TrainerError(f"{flag} is damaged: {NAME} inside of it cannot be read ({error})") from None
    raise TrainerError(
        f"{flag} has format {values['format']}, and this version reads {FORMAT}: use the version that "
        "wrote it"
    )


def is_model(path: Path) -> bool:
    """Tells whether a path looks like a model rather than the folder of a run."""
    return path.suffix == ".tflite" or (path / "saved_model.pb").exists()


def _from_values(values: Mapping[str, Any]) -> About:
    require_shape(values, _SHAPE)
    contract = Contract.from_json(values["contract"])
    names = [field.name for field in dataclasses.fields(About)]
    kept = {name: values[name] for name in names if name in values}
    if kept.get("thresholds") is not None:
        kept["thresholds"] = tuple(kept["thresholds"])
        if len(kept["thresholds"]) != len(values["class_names"]):
            raise ValueError("it has not one threshold for each class")
    return About(**{**kept, "class_names": tuple(values["class_names"]), "contract": contract})


def _text(path: Path, flag: str) -> str:
    if not path.exists():
        raise UsageError(f"{flag} is not there: name a SavedModel folder or a .tflite file that export wrote")
    if path.is_dir() and (path / "saved_model" / "saved_model.pb").exists():
        raise UsageError(f"{flag} holds several models: name one of them, such as {path / 'saved_model'}")
    try:
        if path.is_dir():
            return (path / "assets" / NAME).read_text(encoding="utf-8")
        with zipfile.ZipFile(path) as files:
            if (size := files.getinfo(NAME).file_size) > _MAX_BYTES:
                raise TrainerError(f"{flag} is damaged: {NAME} inside of it has {size:,} bytes")
            return files.read(NAME).decode()
    except (FileNotFoundError, KeyError, zipfile.BadZipFile):
        if path.suffix == ".onnx":
            raise UsageError(
                f"{flag} is no file that predict takes, which are .tflite files and SavedModel folders: ONNX "
                "Runtime runs it"
            ) from None
        inside = sorted(one.name for one in path.glob("*.tflite")) if path.is_dir() else []
        if inside:
            raise UsageError(
                f"{flag} is a folder of models: name one of them, such as {path / inside[0]}"
            ) from None
        raise UsageError(
            f"{flag} is no model that export wrote: there is no {NAME} "
            f"{'in its assets' if path.is_dir() else 'inside of it'}"
        ) from None
    except (OSError, UnicodeDecodeError, zlib.error, EOFError, RuntimeError) as error:
        raise TrainerError(f"{flag} cannot be read: {error or type(error).__name__}") from None
