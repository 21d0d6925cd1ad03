"""Writes the folder of an evaluation."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainer.metrics.calibration import Bin, calibration_bins
from trainer.metrics.probabilities import least_certain, why_undefined, worst_mistakes
from trainer.metrics.ranking import roc_curve
from trainer.record.report_place import FIGURES, TABLES, pictures_sha256, report_manifest
from trainer.record.spreadsheets import unique_names
from trainer.report import several
from trainer.report.figures import (
    MOST_CURVES,
    confusion_figure,
    per_class_figure,
    picture_grid,
    reliability_figure,
    roc_figure,
)
from trainer.report.page import make_page
from trainer.report.sections import Predictions, as_csv, as_parquet
from trainer.report.shortening import shortened
from trainer.store.files import write_bytes, write_json, write_text
from trainer.tasks import Task

FORMAT = 3
MOST_LISTED = 16
"""Pictures among the worst mistakes, and among the least certain ones."""


@dataclass(frozen=True)
class Report:
    """What an evaluation found.

    Attributes:
      values: what metrics.json holds.
      figures: {name of a file without .png: what it holds}.
    """

    values: dict[str, Any]
    figures: dict[str, bytes]


def write_report(
    folder: Path,
    predictions: Predictions,
    *,
    split: str,
    step: int,
    loss: float,
    temperature: tuple[float | None, str] = (None, ""),
    pictures: Callable[[Sequence[int]], np.ndarray] | None = None,
    curves_png: bytes | None = None,
    **facts: Any,
) -> Report:
    """Writes metrics.json, predictions.csv, predictions.parquet, figures and index.html.

    What docs/report.md describes. What an earlier evaluation wrote there and this one does not is removed,
    event files included; other files in the folder stay as they are. The same input gives the same bytes.

    Args:
      folder: where; made if missing.
      predictions: of the N pictures of the split.
      split: train, validation or test, or the name of other pictures.
      step: updates made by the weights that were scored.
      loss: mean cross-entropy over the split.
      temperature: what the logits are divided by for scaled probabilities, and the pictures it was fitted
        on, in words; (None, ""): there are none.
      pictures: from positions in `predictions.ids` to the pictures there, [n, H, W, 3] float in [0, 1]; None:
        the report shows none.
      curves_png: learning curves for the page.
      **facts: what else to record in metrics.json, and to show on the page.
    """
    names = unique_names(predictions.class_names)
    given = dataclasses.replace(predictions, labels=np.asarray(predictions.labels), class_names=names)
    said, confidence = given.task.predicted(given.logits), _confidence(given)
    values = _values(given, split=split, step=step, loss=loss, temperature=temperature)
    worst = worst_mistakes(~given.task.right(said, given.labels), confidence, count=MOST_LISTED)
    doubtful = least_certain(confidence, count=MOST_LISTED)
    describe = _describer(given.ids, given.words(given.labels), given.words(said), confidence)
    values |= {"worst_mistakes": list(map(describe, worst)), "least_certain": list(map(describe, doubtful))}
    values |= facts
    rows = sorted({*worst, *doubtful})
    shown = dict(zip(rows, pictures(rows), strict=True)) if pictures and rows else {}
    figures = _figures(values, given)
    for name, listed in (("mistakes", worst), ("least_certain", doubtful)):
        if shown and listed:
            figures[name] = _grid([shown[i] for i in listed], list(map(describe, listed)))
    page = make_page(
        values,
        figures=figures | ({"learning_curves": curves_png} if curves_png else {}),
        mistakes=[shown.get(i) for i in worst],
        doubtful=[shown.get(i) for i in doubtful],
    )
    _write_files(folder, given, figures, page, values)
    return Report(values, figures)


def _values(
    given: Predictions, *, split: str, step: int, loss: float, temperature: tuple[float | None, str]
) -> dict[str, Any]:
    """Returns the numbers of metrics.json."""
    written = given.words(given.labels)
    values: dict[str, Any] = {
        "format": FORMAT,
        "split": split,
        "step": step,
        "pictures_sha256": pictures_sha256(given.digests, written) if all(given.digests) else None,
        "loss": loss if math.isfinite(loss) else None,
        **given.task.scores(
            given.labels,
            given.logits,
            given.class_names,
            temperature=temperature[0],
            temperature_from=temperature[1],
        ),
    }
    if thresholds := given.task.thresholds(len(given.class_names)):
        values["thresholds"] = dict(zip(given.class_names, thresholds, strict=True))
        values["thresholds_from"] = temperature[1] if given.task.fits_thresholds else ""
    if values["loss"] is None:
        values["undefined"]["loss"] = "it is no finite number"
    return values


def _write_files(
    folder: Path, predictions: Predictions, figures: Mapping[str, bytes], page: str, values: dict[str, Any]
) -> None:
    names = [*TABLES, *(f"{name}.png" for name in FIGURES if name in figures)]
    manifest = report_manifest(folder)
    manifest.begin(names)
    write_text(folder / "predictions.csv", as_csv(predictions))
    write_bytes(folder / "predictions.parquet", as_parquet(predictions))
    for name, png in figures.items():
        write_bytes(folder / f"{name}.png", png)
    write_text(folder / "index.html", page)
    write_json(folder / "metrics.json", values)
    manifest.finish(names)


def _confidence(given: Predictions) -> np.ndarray:
    """Returns [N] float64, the probabilities that are shown beside the predictions."""
    task, probabilities = given.task, given.task.probabilities(given.logits)
    rows = zip(task.predicted(given.logits), probabilities, strict=True)
    return np.array([task.told(said, row, given.class_names)[1] for said, row in rows])


def _describer(
    ids: Sequence[str], labels: Sequence[str], predictions: Sequence[str], confidence: np.ndarray
) -> Callable[[int], dict[str, Any]]:
    def describe(row: int) -> dict[str, Any]:
        return {
            "id": ids[row],
            "label": labels[row],
            "prediction": predictions[row],
            "probability": float(confidence[row]),
        }

    return describe


def evaluation_figures(
    labels: np.ndarray, logits: np.ndarray, names: Sequence[str], *, task: Task, title: str
) -> dict[str, bytes]:
    """Draws what TensorBoard shows of an evaluation under way: {name: PNG}.

    That is which classes are taken for which, and what the probabilities are worth.

    Args:
      labels: [N], as the task has them.
      logits: [N, K].
      names: [K].
      task: what the labels mean.
      title: stands above each.
    """
    finite = not why_undefined(logits)
    if not task.excludes:
        truth, probabilities = task.indicators(labels, len(names)), task.probabilities(logits)
        return several.evaluation_figures(truth, probabilities, finite=finite, title=title)
    matrix = np.zeros([len(names)] * 2, np.int64)
    np.add.at(matrix, (labels, task.predicted(logits)), 1)
    figures = {"confusion_matrix": confusion_figure(matrix, names, title=title)}
    if finite:
        bins = calibration_bins(labels, task.probabilities(logits))
        figures["reliability"] = reliability_figure([("", bins)], title=title)
    return figures


def _figures(values: Mapping[str, Any], given: Predictions) -> dict[str, bytes]:
    """Draws what the numbers alone give."""
    labels, logits, names = given.labels, given.logits, given.class_names
    if not given.task.excludes:
        return several.figures(values, given.task.indicators(labels, len(names)), logits, names)
    # Other pictures are called by their source, which may be a long path.
    split, matrix = shortened(values["split"], 24), np.array(values["confusion_matrix"])
    title = f"{split}: {100 * values['accuracy']:.1f} % of {values['num_examples']:,} right"
    figures = {
        "confusion_matrix": confusion_figure(matrix, names, title=title),
        "per_class": per_class_figure(values["classes"], title=f"{split}: by class (pictures)"),
    }
    calibration = values["calibration"]
    if calibration["bins"]:
        panels = [_panel("as the network gives them", calibration, "")]
        if calibration["bins_scaled"]:
            panels.append(_panel(f"at temperature {calibration['temperature']:.3g}", calibration, "_scaled"))
        figures["reliability"] = reliability_figure(panels, title=f"{split}: do the probabilities hold?")
    areas = [(k, values["classes"][name]["roc_auc"]) for k, name in enumerate(names)]
    known = [(k, area) for k, area in areas if area is not None]
    # As the areas do, the curves go by the probabilities of the task.
    logits = given.task.softmax_logits(logits)
    if len(names) == 2 and known:
        title = f"{split}: area under the curve {values['roc_auc']:.4f}"
        curve = (names[1], *roc_curve(labels, logits, positive=1))
        figures["roc_curve"] = roc_figure([curve], title=title, of=names[1])
    elif known and len(names) <= MOST_CURVES:
        curves = [(f"{area:.4f} {names[k]}", *roc_curve(labels, logits, positive=k)) for k, area in known]
        title = f"{split}: mean area of the classes {values['roc_auc']:.4f}"
        figures["roc_curve"] = roc_figure(curves, title=title)
    return figures


def _panel(name: str, calibration: Mapping[str, Any], suffix: str) -> tuple[str, list[Bin]]:
    error = calibration[f"expected_calibration_error{suffix}"]
    return f"{name}: off by {100 * error:.1f} % on average", [Bin(**b) for b in calibration[f"bins{suffix}"]]


def _grid(images: Sequence[np.ndarray], pictures: Sequence[Mapping[str, Any]]) -> bytes:
    """Draws pictures, each with its label and what it was taken for: red where that is wrong."""
    titles = [f"{p['label']} >\n{p['prediction']} {p['probability']:.2f}" for p in pictures]
    right = [p["label"] == p["prediction"] for p in pictures]
    return picture_grid(np.stack(images), titles, colours=["tab:green" if r else "tab:red" for r in right])
