"""The evaluation of a split as files: numbers, a picture, and a line per example."""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn import metrics as sk_metrics

from trainer.files import write_bytes, write_json, write_text
from trainer.record.figures import confusion_figure, roc_figure

FORMAT = 1


def wilson_interval(num_correct: int, num_examples: int, *, z: float = 1.959964) -> tuple[float, float]:
    """Returns the 95 % interval of an accuracy (Wilson, 1927): honest for few examples and near 1."""
    share = num_correct / num_examples
    spread = z * z / num_examples
    middle = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / num_examples + spread / (4 * num_examples)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def roc_auc(labels: np.ndarray, logits: np.ndarray) -> float | None:
    """Returns the area under the receiver operating characteristic of two classes.

    It is the chance that a picture of the second class has a higher probability of that class than one of
    the first (Hanley and McNeil, 1982, Radiology 143, 29-36), and does not depend on where the line between
    the classes is drawn.

    Args:
      labels: [N] int.
      logits: [N, K].

    Returns:
      None where there is no such thing: K is not 2, a class has no picture, or a logit is no finite number.
    """
    if logits.shape[1] != 2 or len(np.unique(labels)) != 2:
        return None
    scores = _second_class_scores(logits)
    return float(sk_metrics.roc_auc_score(labels, scores)) if np.isfinite(scores).all() else None


def _second_class_scores(logits: np.ndarray) -> np.ndarray:
    """Returns [N] what rises with the probability of the second class and, unlike that, never rounds to 1."""
    with np.errstate(invalid="ignore"):
        return logits[:, 1].astype(np.float64) - logits[:, 0]


def write_report(
    folder: Path,
    *,
    split: str,
    step: int,
    loss: float,
    ids: Sequence[str],
    labels: np.ndarray,
    logits: np.ndarray,
    class_names: Sequence[str],
    **facts: Any,
) -> tuple[dict[str, Any], bytes]:
    """Writes SPLIT_metrics.json, SPLIT_confusion_matrix.png and SPLIT_predictions.csv.

    Of two classes also the area under the ROC curve, null where there is none, and SPLIT_roc_curve.png.

    Args:
      folder: where; made if missing.
      split: train, validation or test.
      step: updates made by the weights that were scored.
      loss: mean cross-entropy over the split.
      ids: [N].
      labels: [N] int.
      logits: [N, K].
      class_names: [K].
      **facts: what else to record in the JSON.

    Returns:
      What metrics.json holds, and the confusion matrix as PNG.
    """
    predictions = logits.argmax(axis=1)
    correct = int((predictions == labels).sum())
    classes = list(range(len(class_names)))
    precision, recall, f1, support = sk_metrics.precision_recall_fscore_support(
        labels, predictions, labels=classes, zero_division=0
    )
    matrix = sk_metrics.confusion_matrix(labels, predictions, labels=classes)
    low, high = wilson_interval(correct, len(labels))
    area = roc_auc(labels, logits)
    report = {
        "format": FORMAT,
        "split": split,
        "step": step,
        "num_examples": len(labels),
        "num_correct": correct,
        "accuracy": correct / len(labels),
        "accuracy_95_percent_interval": [low, high],
        "loss": loss,
        **({"roc_auc": area} if len(class_names) == 2 else {}),
        "classes": {
            name: {
                "precision": float(precision[k]),
                "recall": float(recall[k]),
                "f1": float(f1[k]),
                "support": int(support[k]),
            }
            for k, name in enumerate(class_names)
        },
        "confusion_matrix": matrix.tolist(),
        **facts,
    }
    title = f"{split}: {correct / len(labels):.1%} of {len(labels):,} right"
    png = confusion_figure(matrix, class_names, title=title)
    write_json(folder / f"{split}_metrics.json", report)
    write_bytes(folder / f"{split}_confusion_matrix.png", png)
    if area is not None:
        curve = sk_metrics.roc_curve(labels, _second_class_scores(logits), drop_intermediate=False)
        title = f"{split}: area under the curve {area:.4f}"
        roc_png = roc_figure(curve[0], curve[1], positive=class_names[1], title=title)
        write_bytes(folder / f"{split}_roc_curve.png", roc_png)
    write_text(folder / f"{split}_predictions.csv", _predictions(ids, labels, logits, class_names))
    return report, png


def _predictions(
    ids: Sequence[str], labels: np.ndarray, logits: np.ndarray, class_names: Sequence[str]
) -> str:
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    probabilities = shifted / shifted.sum(axis=1, keepdims=True)
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["id", "label", "prediction", *(f"probability_{name}" for name in class_names)])
    for name, label, row in zip(ids, labels, probabilities, strict=True):
        values = (f"{p:.6f}" for p in row)
        rows.writerow([name, class_names[label], class_names[int(row.argmax())], *values])
    return text.getvalue()
