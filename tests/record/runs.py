"""Folders of finished runs, made by hand."""

import csv
import hashlib
import json
from pathlib import Path
from typing import Any

from trainer.cli.config import Config
from trainer.record.workdir import Workdir

FACTS: dict[str, Any] = {
    "class_names": ["a", "b"],
    "contract": {
        "height_px": 8, "width_px": 8, "value_range": [0, 1], "feature_width": 2, "any_size": True,
        "resize": "bilinear", "dtype": "float32",
    },
    "precision": {}, "code": {}, "code_changes": [], "rollbacks": [],
}  # fmt: skip


def make_run(
    folder,
    right,
    *,
    ids=None,
    labels=None,
    split="test",
    bytes_of=lambda name: name,
    recorded=True,
    values=None,
    report="report",
    form=3,
    **options,
) -> Path:
    """Makes a run of two classes, a and b, with a report.

    Args:
      folder: where.
      right: for each picture, whether it was predicted right.
      ids: of the pictures; 0.jpg, 1.jpg, ... by default.
      labels: of the pictures; all a by default.
      split: what was scored.
      bytes_of: id -> what the picture's bytes are, as text.
      recorded: whether splits.json says who is in the split.
      values: what metrics.json holds besides, or instead.
      report: the folder of the report, below that of the run.
      form: the format of the report: 3 has the digests of the pictures, 2 has not.
      **options: of the run, by flag name.
    """
    folder = Path(folder)
    ids = [f"{i}.jpg" for i in range(len(right))] if ids is None else ids
    labels = ["a"] * len(ids) if labels is None else labels
    workdir = Workdir(str(folder))
    workdir.make()
    workdir.write_run(Config().replace(workdir=str(folder), **options), flagfile="", **FACTS)
    digests = [hashlib.sha256(bytes_of(name).encode()).hexdigest() for name in ids]
    if recorded:
        workdir.write_or_check_splits({split: list(zip(ids, labels, digests, strict=True))})
    place = folder / report
    place.mkdir(parents=True)
    with open(place / "predictions.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(
            ["id", "label", "prediction", "probability_a", "probability_b", *["sha256"] * (form > 2)]
        )
        for name, label, is_right, digest in zip(ids, labels, right, digests, strict=True):
            prediction = label if is_right else {"a": "b", "b": "a"}[label]
            rows.writerow([name, label, prediction, 0.5, 0.5, *[digest] * (form > 2)])
    found = {
        "format": form,
        "split": split,
        "step": 84,
        "num_examples": len(ids),
        "num_correct": sum(map(bool, right)),
        "accuracy": sum(map(bool, right)) / len(ids),
        "accuracy_95_percent_interval": [0.25, 0.75],
        "loss": 0.5,
        "log_loss": 0.4,
        "macro": {"precision": 0.6, "recall": 0.7, "f1": 0.65},
        "calibration": {"expected_calibration_error": 0.0625},
        "image_size_px": 224,
        **(values or {}),
    }
    (place / "metrics.json").write_text(json.dumps(found))
    return folder


def outcomes(both, only_first, only_second, neither):
    """Returns what two runs have right: so many both, only the one, only the other, and neither."""
    first = [True] * both + [True] * only_first + [False] * only_second + [False] * neither
    second = [True] * both + [False] * only_first + [True] * only_second + [False] * neither
    return first, second
