"""Numbers of examples that may have any number of K labels, each true or not whatever the others are."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import optimize
from sklearn import metrics as sk_metrics

from trainer.metrics.calibration import (
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    NUM_BINS,
    Bin,
    as_json,
    bins_of,
    expected_calibration_error,
    is_at_bound,
)
from trainer.metrics.intervals import wilson_interval
from trainer.metrics.logits import binary_cross_entropies, sigmoid
from trainer.metrics.probabilities import why_undefined
from trainer.metrics.ranking import area

LEAST_POSITIVES = 5
"""Examples with a label that a threshold of its own is fitted to; of fewer it would be chance."""
UNFITTED = 0.5
"""The threshold where none is fitted."""


def average_precisions(labels: np.ndarray, scores: np.ndarray) -> list[float | None]:
    """Returns the average precision of every label: the mean, over its examples, of the precision there.

    It is the area under precision over recall without interpolation, as scikit-learn has it.

    Args:
      labels: [N, K] 0 or 1.
      scores: [N, K], logits or probabilities. What is no number counts as the lowest.

    Returns:
      [K]. None where no example has the label.
    """
    known = _ranked(scores)
    return [
        float(sk_metrics.average_precision_score(labels[:, k], known[:, k])) if labels[:, k].any() else None
        for k in range(labels.shape[1])
    ]


def mean_of_known(values: Sequence[float | None]) -> float | None:
    """Returns the mean of the numbers that there are; None where there is none."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _ranked(scores: np.ndarray) -> np.ndarray:
    """Returns scores of which each can be ranked: what is infinite or no number is beyond all others."""
    return np.nan_to_num(scores.astype(np.float64), nan=-np.finfo(np.float64).max)


def counts(labels: np.ndarray, predictions: np.ndarray, *, axis: int) -> np.ndarray:
    """Returns right, predicted and true labels, [3, K] of each label (axis 0) or [3, N] of each example."""
    said, true = predictions > 0, labels > 0
    return np.stack([(said & true).sum(axis), said.sum(axis), true.sum(axis)])


def shares(right: float, predicted: float, true: float) -> dict[str, float]:
    """Returns precision, recall and F1 of how many were right, predicted and true.

    0 where there is nothing to divide by; but where nothing was true and nothing predicted, all are 1.
    """
    if not predicted and not true:
        return {"precision": 1.0, "recall": 1.0, "f1": 1.0}
    return {
        "precision": float(right / predicted) if predicted else 0.0,
        "recall": float(right / true) if true else 0.0,
        "f1": float(2 * right / (predicted + true)),
    }


def means(labels: np.ndarray, predictions: np.ndarray) -> dict[str, dict[str, float]]:
    """Returns {"micro", "macro", "samples"}: precision, recall and F1, averaged in three ways.

    micro: of all decisions together. macro: the mean over the labels that an example has, or that were
    predicted of one. samples: the mean over the examples; one that has no label, of which none was predicted,
    counts as 1.

    Args:
      labels: [N, K] 0 or 1.
      predictions: [N, K] 0 or 1.
    """
    of_label, of_example = (counts(labels, predictions, axis=axis) for axis in (0, 1))
    seen = of_label[1:].any(axis=0)
    return {
        "micro": shares(*of_label.sum(axis=1)),
        "macro": _mean([shares(*column) for column in of_label[:, seen].T]),
        "samples": _mean([shares(*column) for column in of_example.T]),
    }


def _mean(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    return {
        name: float(np.mean([row[name] for row in rows])) if rows else 0.0
        for name in ("precision", "recall", "f1")
    }


def fit_thresholds(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Returns for every label from which probability on it is to be predicted, so that its F1 is high.

    Of all thresholds whose F1 is within a standard error of the highest, that which is nearest to 0.5 (the
    rule of one standard error of Breiman et al., 1984, "Classification and regression trees", 3.4.3): the
    highest itself is mostly chance, and was lower than that of 0.5 on other pictures (docs/labels.md). The
    error is that of a share, sqrt(F1 (1 - F1) / n), n being the examples with the label. Of labels that the
    network is never sure of, the best is below 0.5: half of the F1 that can be reached, if probabilities hold
    (Lipton, Elkan and Naryanaswamy, 2014, arXiv 1402.1892). Fit them on pictures that are neither trained nor
    tested on.

    Args:
      labels: [N, K] 0 or 1.
      probabilities: [N, K]. Examples with one that is no finite number are left out.

    Returns:
      [K] float64, numbers that a float32 holds. `UNFITTED` where fewer than `LEAST_POSITIVES` examples have
      the label, or all have.
    """
    rows = np.isfinite(probabilities).all(axis=1)
    found = [_threshold(labels[rows, k] > 0, probabilities[rows, k]) for k in range(labels.shape[1])]
    # An exported network compares in float32: what is decided here is decided there.
    return np.array(found, np.float32).astype(np.float64)


def _threshold(truth: np.ndarray, chances: np.ndarray) -> float:
    positives = int(truth.sum())
    if positives < LEAST_POSITIVES or truth.all():
        return UNFITTED
    order = np.argsort(-chances, kind="stable")
    high, right = chances[order], np.cumsum(truth[order])
    f1 = 2 * right / (np.arange(1, len(high) + 1) + positives)
    # A threshold lies between two probabilities that differ, or below all of them.
    low = np.append(high[1:], 0.0)
    best = f1[high > low].max(initial=0.0)
    good = np.flatnonzero((high > low) & (f1 >= best - np.sqrt(best * (1 - best) / positives)))
    # All between two probabilities are alike: 0.5 where it is there, else the middle.
    is_between = (low[good] < UNFITTED) & (high[good] >= UNFITTED)
    between = np.where(is_between, UNFITTED, (high[good] + low[good]) / 2)
    return float(between[np.abs(between - UNFITTED).argmin()])


def fit_temperature(labels: np.ndarray, logits: np.ndarray) -> float:
    """Returns by what to divide all logits, so that the probabilities of these pictures fit best.

    As `calibration.fit_temperature`, with binary cross-entropy, and with the same bounds.

    Args:
      labels: [N, K] 0 or 1.
      logits: [N, K]. Pictures with a logit that is no finite number are left out.
    """
    rows = np.isfinite(logits).all(axis=1)
    wide, truth = logits[rows].astype(np.float64), labels[rows]
    if not wide.any():
        return 1.0

    def slope(inverse: float) -> float:
        """Returns the derivative of the mean loss by 1 / temperature: it never falls."""
        return float(((sigmoid(inverse * wide) - truth) * wide).mean())

    low, high = 1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE
    if slope(low) >= 0:
        return MAX_TEMPERATURE
    if slope(high) <= 0:
        return MIN_TEMPERATURE
    return float(1 / optimize.brentq(slope, low, high, xtol=1e-12, rtol=1e-12))


def calibration_bins(labels: np.ndarray, probabilities: np.ndarray, *, num_bins: int = NUM_BINS) -> list[Bin]:
    """Sorts decisions by the probability of the label into bins of equal width.

    Args:
      labels: [...] 0 or 1, of one label or of several.
      probabilities: [...], finite.
      num_bins: how many.

    Returns:
      Of each bin the mean probability, and as `accuracy` the share that has the label.
    """
    return bins_of(probabilities.ravel(), labels.ravel() > 0, num_bins=num_bins)


def scores(
    labels: np.ndarray,
    logits: np.ndarray,
    class_names: Sequence[str],
    *,
    predictions: np.ndarray,
    probabilities: np.ndarray,
    scaled: np.ndarray | None,
    about_scaled: Mapping[str, Any],
) -> dict[str, Any]:
    """Scores what a network says of labels that may all be true or none.

    Args:
      labels: [N, K] 0 or 1, N at least 1.
      logits: [N, K].
      class_names: [K], all different.
      predictions: [N, K] 0 or 1.
      probabilities: [N, K].
      scaled: [N, K], probabilities at a temperature; None: there is none.
      about_scaled: what `about_temperature` says of it.

    Returns:
      What docs/labels.md describes, ready for JSON. A number that does not exist is None, and the key
      `undefined` says why, {name: reason}.
    """
    said, true = predictions > 0, labels > 0
    right = int((said == true).all(axis=1).sum())
    why = why_undefined(logits)
    undefined = dict.fromkeys(("log_loss", "brier_score", "calibration"), why) if why else {}
    precisions = average_precisions(labels, logits)
    areas = [None] * len(class_names) if why else class_areas(labels, logits)
    unknown = [name for name, value in zip(class_names, precisions, strict=True) if value is None]
    if unknown:
        undefined["map"] = f"no picture has {_few(unknown)}; it is the mean of the other labels"
    if any(value is None for value in areas):
        undefined["roc_auc"] = why or "a label needs pictures with it and pictures without it"
    averaged = means(labels, predictions)
    return {
        "several_labels": True,
        "num_examples": len(labels),
        "num_correct": right,
        "accuracy": right / len(labels),
        "accuracy_95_percent_interval": list(wilson_interval(right, len(labels))),
        "map": mean_of_known(precisions),
        "roc_auc": mean_of_known(areas),
        "hamming_loss": float((said != true).mean()),
        "log_loss": None if why else float(binary_cross_entropies(labels, logits).mean()),
        "brier_score": None if why else float(((probabilities - labels) ** 2).mean()),
        **averaged,
        "classes": _by_label(labels, predictions, class_names, precisions, areas),
        "cooccurrence": (true.T.astype(int) @ true.astype(int)).tolist(),
        "calibration": {
            **about_scaled,
            **_calibration(labels, None if why else probabilities, scaled, class_names),
        },
        "undefined": undefined,
    }


def class_areas(labels: np.ndarray, scores: np.ndarray) -> list[float | None]:
    """Returns the area under the receiver operating characteristic of every label, [K].

    None where no example has the label, or all have.
    """
    ranked = np.ascontiguousarray(_ranked(scores).T)
    return [area(labels[:, k] > 0, row) for k, row in enumerate(ranked)]


def label_roc_curve(truth: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the curve whose area `class_areas` gives of a label, as `ranking.roc_curve` does.

    Args:
      truth: [N] 0 or 1, some of each.
      scores: [N].
    """
    ranked = _ranked(scores)
    false_rates, true_rates, _ = sk_metrics.roc_curve(truth > 0, ranked, drop_intermediate=False)
    return false_rates, true_rates


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5:,} more" if len(names) > 5 else "")


def _by_label(
    labels: np.ndarray,
    predictions: np.ndarray,
    class_names: Sequence[str],
    precisions: Sequence[float | None],
    areas: Sequence[float | None],
) -> dict[str, dict[str, Any]]:
    found = counts(labels, predictions, axis=0)
    return {
        name: {
            **shares(*found[:, k]),
            "support": int(found[2, k]),
            "predicted": int(found[1, k]),
            "average_precision": precisions[k],
            "roc_auc": areas[k],
        }
        for k, name in enumerate(class_names)
    }


def _calibration(
    labels: np.ndarray, plain: np.ndarray | None, scaled: np.ndarray | None, class_names: Sequence[str]
) -> dict[str, Any]:
    """Returns how far probabilities are from shares, of all decisions together and of every label."""
    found: dict[str, Any] = {}
    for end, chances in (("", plain), ("_scaled", None if plain is None else scaled)):
        bins = [] if chances is None else calibration_bins(labels, chances)
        found[f"expected_calibration_error{end}"] = expected_calibration_error(bins) if bins else None
        found[f"bins{end}"] = as_json(bins)
        found[f"by_label{end}"] = {} if chances is None else {
            name: expected_calibration_error(calibration_bins(labels[:, k], chances[:, k]))
            for k, name in enumerate(class_names)
        }  # fmt: skip
    unknown = plain is None or scaled is None
    found["log_loss_scaled"] = None if scaled is None or unknown else _log_loss(labels, scaled)
    return found


def _log_loss(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Returns the mean binary cross-entropy of probabilities [N, K], each at least 1e-15 from 0 and 1."""
    clipped = np.clip(probabilities, 1e-15, 1 - 1e-15)
    return float(-np.where(labels > 0, np.log(clipped), np.log1p(-clipped)).mean())


def about_temperature(temperature: float | None, temperature_from: str) -> dict[str, Any]:
    """Returns what `calibration` says besides of the temperature that logits are divided by."""
    return {
        "temperature": temperature,
        "temperature_from": temperature_from,
        "temperature_at_bound": temperature is not None and is_at_bound(temperature),
    }
