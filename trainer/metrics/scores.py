"""All numbers of an evaluation in one dictionary, as metrics.json holds them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn import metrics as sk_metrics

from trainer.metrics.calibration import (
    apply,
    as_json,
    calibration_bins,
    expected_calibration_error,
    is_at_bound,
)
from trainer.metrics.intervals import wilson_interval
from trainer.metrics.logits import predicted, softmax
from trainer.metrics.probabilities import brier_score, log_loss, why_undefined
from trainer.metrics.ranking import class_roc_aucs, top_k_accuracies


def scores(
    labels: np.ndarray,
    logits: np.ndarray,
    class_names: Sequence[str],
    *,
    temperature: float | None = None,
    temperature_from: str = "",
    predictions: np.ndarray | None = None,
) -> dict[str, Any]:
    """Scores logits against labels.

    Args:
      labels: [N] int, N at least 1.
      logits: [N, K], K at least 2.
      class_names: [K], all different.
      temperature: what the logits are divided by for the numbers that end in `_scaled`.
      temperature_from: where it was fitted, such as `validation`.
      predictions: [N] int; None: the classes of the highest logits.

    Returns:
      What docs/report.md describes, ready for JSON. A number that does not exist is None, and the key
      `undefined` says why, {name: reason}.
    """
    labels = np.asarray(labels)
    predictions = predicted(logits) if predictions is None else predictions
    classes = list(range(len(class_names)))
    correct = int((predictions == labels).sum())
    why = why_undefined(logits)
    undefined = dict.fromkeys(("log_loss", "brier_score", "calibration"), why) if why else {}
    areas = class_roc_aucs(labels, logits)
    known = [area for area in areas if area is not None]
    if len(known) < len(areas):
        undefined["roc_auc"] = why or _no_area(areas, class_names)
    chances = None if why else softmax(logits)
    return {
        "num_examples": len(labels),
        "num_correct": correct,
        "accuracy": correct / len(labels),
        "accuracy_95_percent_interval": list(wilson_interval(correct, len(labels))),
        "top_k_accuracy": {str(k): share for k, share in top_k_accuracies(labels, logits).items()},
        "log_loss": None if chances is None else log_loss(labels, chances),
        "brier_score": None if chances is None else brier_score(labels, chances),
        "roc_auc": sum(known) / len(known) if known else None,
        "macro": _means(labels, predictions, "macro"),
        "weighted": _means(labels, predictions, "weighted"),
        "classes": _by_class(labels, predictions, class_names, areas),
        "confusion_matrix": sk_metrics.confusion_matrix(labels, predictions, labels=classes).tolist(),
        "calibration": _calibration(
            labels, logits, temperature=temperature, temperature_from=temperature_from
        ),
        "undefined": undefined,
    }


def _no_area(areas: Sequence[float | None], class_names: Sequence[str]) -> str:
    missing = [name for name, area in zip(class_names, areas, strict=True) if area is None]
    shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5:,} more" if len(missing) > 5 else "")
    return f"a class needs pictures of its own and of others; not so for {shown}"


def _means(labels: np.ndarray, predictions: np.ndarray, average: str) -> dict[str, float]:
    """Returns means over the classes that are the label or the prediction of a picture."""
    numbers = sk_metrics.precision_recall_fscore_support(
        labels, predictions, average=average, zero_division=0
    )
    return dict(zip(("precision", "recall", "f1"), map(float, numbers[:3]), strict=True))


def _by_class(
    labels: np.ndarray,
    predictions: np.ndarray,
    class_names: Sequence[str],
    areas: Sequence[float | None],
) -> dict[str, dict[str, Any]]:
    precision, recall, f1, support = sk_metrics.precision_recall_fscore_support(
        labels, predictions, labels=range(len(class_names)), zero_division=0
    )
    return {
        name: {
            "precision": float(precision[k]),
            "recall": float(recall[k]),
            "f1": float(f1[k]),
            "support": int(support[k]),
            "roc_auc": areas[k],
        }
        for k, name in enumerate(class_names)
    }


def _calibration(
    labels: np.ndarray, logits: np.ndarray, *, temperature: float | None, temperature_from: str
) -> dict[str, Any]:
    finite = not why_undefined(logits)
    plain, scaled = (
        softmax(logits),
        None if temperature is None else softmax(apply(logits, temperature=temperature)),
    )
    bins = calibration_bins(labels, plain) if finite else []
    bins_scaled = calibration_bins(labels, scaled) if finite and scaled is not None else []
    return {
        "expected_calibration_error": expected_calibration_error(bins) if bins else None,
        "bins": as_json(bins),
        "temperature": temperature,
        "temperature_from": temperature_from,
        "temperature_at_bound": temperature is not None and is_at_bound(temperature),
        "expected_calibration_error_scaled": expected_calibration_error(bins_scaled) if bins_scaled else None,
        "log_loss_scaled": log_loss(labels, scaled) if bins_scaled and scaled is not None else None,
        "bins_scaled": as_json(bins_scaled),
    }
