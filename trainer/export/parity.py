"""How far exported models agree with the network that they were made of, as numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from trainer.export.fresh_process import Answers
from trainer.store.files import told_size
from trainer.tasks import SINGLE_LABEL, Task

# 1 had no weights, and nothing of models but SavedModels was checked from files.
FORMAT = 2


@dataclass(frozen=True)
class Reference:
    """What the network itself says, in float32: labels [N], probabilities [N, K] float64; `task` decides."""

    labels: np.ndarray
    probabilities: np.ndarray
    task: Task = SINGLE_LABEL

    @property
    def predictions(self) -> np.ndarray:
        """[N, ...], as labels are."""
        return self.task.decisions(self.probabilities)

    @property
    def accuracy(self) -> float:
        """The share of pictures that it names right, from 0 to 1."""
        return float(self.task.right(self.predictions, self.labels).mean())


def parity(
    reference: Reference,
    answers: Mapping[tuple[str, str], Answers],
    *,
    sizes: Mapping[str, int],
    max_drop: float,
    weights: Mapping[str, Any],
    kept: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Compares what models say with what the network says of the same pictures.

    Args:
      reference: of the network.
      answers: {(file, way into it): what it says}.
      sizes: {file: bytes}.
      max_drop: how much accuracy may be lost, a share from 0 to 1.
      weights: which they are: `step` and `sha256`.
      kept: what was found of other models with these weights, which stay beside them.

    Returns:
      What parity.json holds; docs/export.md explains its keys.
    """
    models = [
        {
            "file": file,
            "input": way,
            **_compared(reference, answer, max_drop=max_drop),
            "size_bytes": sizes[file],
        }
        for (file, way), answer in answers.items()
    ]
    models += [{**row, "passed": _passes(row["accuracy_drop"], max_drop)} for row in kept]
    return {
        "format": FORMAT,
        "split": "validation",
        "num_examples": len(reference.labels),
        "network": {"accuracy": reference.accuracy, "precision": "float32"},
        "weights": dict(weights),
        "max_accuracy_drop": max_drop,
        "passed": all(model["passed"] for model in models),
        "models": models,
    }


def failures(found: Mapping[str, Any]) -> list[str]:
    """Returns a line for each model of a `parity` that loses too much."""
    was = found["network"]["accuracy"]
    return [
        f"{model['file']} ({model['input']}) has accuracy {model['accuracy']:.4f} on validation, and the "
        f"network {was:.4f}"
        for model in found["models"]
        if not model["passed"]
    ]


_GIVEN = {"serving_default": "encoded files", "images": "pixels"}


def _given(way: str) -> str:
    """Returns a way into a model, and what it is given."""
    return f"{way}: {_GIVEN[way]}" if way in _GIVEN else way


def told(model: Mapping[str, Any]) -> str:
    """Returns what a `parity` found of a model, in a line."""
    much = model["largest_probability_difference"]
    return (
        f"{model['file']} ({_given(model['input'])}): {told_size(model['size_bytes'])}, accuracy "
        f"{100 * model['accuracy']:.2f} %, same prediction on {100 * model['agreement']:.2f} %; largest "
        f"difference of a probability {'unknown' if much is None else f'{much:.2g}'}, "
        f"{model['images_per_second']:,.0f} images a second"
    )


def for_phones(found: Mapping[str, Any]) -> str:
    """Returns the smallest model of a `parity` that keeps the accuracy; empty where none is for phones."""
    lost = _lost(found)
    small = [file for file in _FOR_PHONES if file in lost]
    # If all lose too much, the last one is nearest to the network.
    return next((file for file in small if _passes(lost[file], _LITTLE)), small[-1] if small else "")


def _lost(found: Mapping[str, Any]) -> dict[str, float]:
    lost: dict[str, float] = {}
    for model in found["models"]:
        lost[model["file"]] = max(model["accuracy_drop"], lost.get(model["file"], 0.0))
    return lost


def told_uses(found: Mapping[str, Any]) -> list[str]:
    """Returns a line for each place that a `parity` has a model for: which file is meant for it."""
    lost = _lost(found)
    sizes = {model["file"]: told_size(model["size_bytes"]) for model in found["models"]}
    lines = []
    if best := for_phones(found):
        small = [file for file in _FOR_PHONES if file in lost]
        worse = [
            f"; {file} loses {100 * lost[file]:.1f} % of accuracy" for file in small[: small.index(best)]
        ]
        lines.append(f"phone:       {best}, {sizes[best]}{''.join(worse)}")
    lines += [f"{place:<13}{file}, {how}" for place, file, how in _FOR_OTHERS if file in lost]
    return lines


# The first one that keeps the accuracy is for phones; docs/guides/phone.md says so, too.
_FOR_PHONES = ("int8.tflite", "float16.tflite", "float32.tflite")
_LITTLE = 0.01
_FOR_OTHERS = (
    ("browser:", "float32.tflite", "with LiteRT.js"),
    ("server:", "saved_model", "with TensorFlow alone: it takes files of pictures as they are"),
    ("elsewhere:", "model.onnx", "with any ONNX runtime"),
)


def size_bytes(path: Path) -> int:
    """Returns the size of a file, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _passes(drop: float, max_drop: float) -> bool:
    # Within rounding: differences of shares are not exact.
    return bool(drop <= max_drop + 1e-9)


def _compared(reference: Reference, answer: Answers, *, max_drop: float) -> dict[str, Any]:
    finite = np.isfinite(answer.probabilities).all(axis=1)
    # What is no number is no answer, either.
    right = partial(reference.task.right, answer.class_ids)
    accuracy = float((right(reference.labels) & finite).mean())
    differences = np.abs(answer.probabilities[finite] - reference.probabilities[finite])
    drop = reference.accuracy - accuracy
    return {
        "accuracy": accuracy,
        "accuracy_drop": drop,
        "passed": _passes(drop, max_drop),
        "agreement": float((right(reference.predictions) & finite).mean()),
        "largest_probability_difference": float(differences.max()) if differences.size else None,
        "num_not_finite": int((~finite).sum()),
        "images_per_second": round(answer.images_per_second, 1),
    }
