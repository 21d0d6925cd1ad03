"""What a report shows of examples that may have any number of labels: words, tables, figures."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from trainer.metrics.calibration import Bin
from trainer.metrics.several import calibration_bins, label_roc_curve
from trainer.report.figures import (
    MOST_CURVES,
    MOST_NUMBERS,
    Axes,
    matrix_figure,
    per_class_figure,
    reliability_figure,
    roc_figure,
)
from trainer.report.sections import AT_BOUND, VALIDATION_CHOSE, cards, in_vain, number, percent, shares, table
from trainer.report.shortening import shortened

_MEANINGS = {
    "mAP": "mean average precision: of each label, the mean precision at its pictures when all are sorted by "
    "its probability; then the mean of the labels. It needs no thresholds. 1 is best",
    "macro F1": "mean over the labels of F1, which is high where a label is both found and not seen "
    "elsewhere; each label counts the same, however rare it is. 1 is best",
    "micro F1": "F1 of all decisions together: frequent labels count most. 1 is best",
    "samples F1": "mean over the pictures of the F1 of their labels. 1 is best",
    "all labels right": "share of the pictures of which every label is right",
    "Hamming loss": "share of all decisions that are wrong. 0 is best",
    "log-loss": "how improbable what is true was taken to be, per picture and label. 0 is best",
    "calibration error": "how far the probability of a label is from the share that has it. 0 is best",
    "calibration error, scaled": "the same with all logits divided by the temperature",
    "Brier score": "mean squared error of the probabilities. 0 is best",
    "mean ROC AUC": "the chance that a picture with a label has a higher probability of it than one without, "
    "mean over the labels. 0.5 is guessing, 1 is best",
}


def headline(values: Mapping[str, Any], *, title: str) -> str:
    """Returns the mean average precision, and how many pictures have all labels right."""
    low, high = values["accuracy_95_percent_interval"]
    too_good = VALIDATION_CHOSE if values["split"] == "validation" else ""
    return (
        f"<h1>{escape(title)}</h1>\n"
        f'<p class="big">mAP {number(values["map"], ".3f")}</p>\n'
        f"<p>Macro F1 {values['macro']['f1']:.3f}, micro F1 {values['micro']['f1']:.3f}. All labels are "
        f"right on {values['num_correct']:,} of {values['num_examples']:,} pictures, "
        f"{percent(values['accuracy'])}; the 95\N{NO-BREAK SPACE}% interval is {percent(low)} to "
        f"{percent(high)}. Weights of step {values['step']:,}.</p>{in_vain(values)}{too_good}"
    )


def numbers(values: Mapping[str, Any]) -> str:
    """Returns the numbers of the split as a whole, and why one is missing."""
    calibration = values["calibration"]
    shown = [
        ("mAP", number(values["map"], ".4f")),
        *((f"{kind} F1", f"{values[kind]['f1']:.3f}") for kind in ("macro", "micro", "samples")),
        ("all labels right", percent(values["accuracy"])),
        ("Hamming loss", f"{values['hamming_loss']:.4f}"),
        ("log-loss", number(values["log_loss"], ".3f")),
        ("calibration error", percent(calibration["expected_calibration_error"])),
        ("Brier score", number(values["brier_score"], ".3f")),
        ("mean ROC AUC", number(values["roc_auc"], ".4f")),
    ]
    if calibration["temperature"] is not None:
        scaled = percent(calibration["expected_calibration_error_scaled"])
        shown.insert(-2, ("calibration error, scaled", scaled))
    return cards(shown, _MEANINGS, undefined=values["undefined"])


def by_label(values: Mapping[str, Any]) -> str:
    """Returns the numbers of each label with its threshold, and their means."""
    thresholds, errors = values.get("thresholds") or {}, values["calibration"]["by_label"]
    rows = [
        [
            name, f"{of['support']:,}", f"{of['predicted']:,}", *shares(of),
            number(of["average_precision"], ".4f"), number(of["roc_auc"], ".4f"), percent(errors.get(name)),
            number(thresholds.get(name), ".3f"),
        ]
        for name, of in values["classes"].items()
    ]  # fmt: skip
    ranked = [number(values["map"], ".4f"), number(values["roc_auc"], ".4f"), "", ""]
    means = [
        ["mean of labels", "", "", *shares(values["macro"]), *ranked],
        ["all decisions", "", "", *shares(values["micro"]), "", "", "", ""],
        ["mean of pictures", "", "", *shares(values["samples"]), "", "", "", ""],
    ]
    head = ["label", "pictures", "predicted", "recall", "precision", "F1"]
    head += ["average precision", "ROC AUC", "calibration error", "predicted from"]
    if values.get("thresholds_from"):
        told = (
            f"Each label is predicted from a threshold that was fitted on {values['thresholds_from']}, for a "
            "high F1: the nearest to 0.5 whose F1 there is within a standard error of the highest."
        )
    elif thresholds:
        told = "No thresholds were fitted."
    else:
        told = ""
    note = f'<p class="soft">{escape(told)}</p>' if told else ""
    return table(head, rows, means=means) + note


def together(values: Mapping[str, Any]) -> str:
    """Returns which labels are seen together, as a table; of many labels the figure alone says it."""
    names, matrix = list(values["classes"]), values["cooccurrence"]
    if len(names) > MOST_NUMBERS:
        return ""
    rows = [[name, *(f"{count:,}" for count in row)] for name, row in zip(names, matrix, strict=True)]
    return table(["pictures with", *names], rows)


def calibration(values: Mapping[str, Any]) -> str:
    """Returns how far the probabilities are off, and what a temperature changes."""
    found = values["calibration"]
    error, scaled = (found[f"expected_calibration_error{end}"] for end in ("", "_scaled"))
    if error is None:
        return f"<p>Not known: {escape(values['undefined'].get('calibration', ''))}.</p>"
    worst = max(found["by_label"], key=found["by_label"].__getitem__)
    text = (
        f"<p>The probability of a label is {percent(error)} away from the share of pictures that have it, on "
        f"average (expected calibration error over all labels, 15 bins); most of all that of "
        f"{escape(worst)}, {percent(found['by_label'][worst])}.</p>"
    )
    if found["temperature"] is None:
        return text
    return (
        text
        + (
            f"<p>With all logits divided by a temperature of {found['temperature']:.3g} (fitted on "
            f"{escape(found['temperature_from'])}) it is {percent(scaled)}, and the log-loss "
            f"{number(found['log_loss_scaled'], '.3f')}. No prediction changes by that: the thresholds are "
            "of the probabilities as they are.</p>"
        )
        + AT_BOUND * found["temperature_at_bound"]
    )


def figures(
    values: Mapping[str, Any], labels: np.ndarray, logits: np.ndarray, names: Sequence[str]
) -> dict[str, bytes]:
    """Draws what the numbers alone give: {name: PNG}. Labels are [N, K] 0 or 1, logits [N, K]."""
    split = shortened(values["split"], 24)
    drawn = {
        "cooccurrence": cooccurrence_figure(
            np.array(values["cooccurrence"]), names, title=f"{split}: labels seen together"
        ),
        "per_class": per_class_figure(values["classes"], title=f"{split}: by label (pictures)"),
    }
    found = values["calibration"]
    if found["bins"]:
        panels = [
            (f"{name}: off by {100 * found[f'expected_calibration_error{end}']:.1f} % on average",
             [Bin(**b) for b in found[f"bins{end}"]])
            for name, end in (
                ("as the network gives them", ""),
                (f"at temperature {found['temperature'] or 1:.3g}", "_scaled"),
            )
            if found[f"bins{end}"]
        ]  # fmt: skip
        drawn["reliability"] = reliability(panels, title=f"{split}: do the probabilities hold?")
    known = [
        (k, of["roc_auc"]) for k, of in enumerate(values["classes"].values()) if of["roc_auc"] is not None
    ]
    if known and len(names) <= MOST_CURVES:
        curves = [
            (f"{area:.4f} {names[k]}", *label_roc_curve(labels[:, k], logits[:, k])) for k, area in known
        ]
        drawn["roc_curve"] = roc_figure(
            curves, title=f"{split}: mean area of the labels {values['roc_auc']:.4f}"
        )
    return drawn


def evaluation_figures(
    labels: np.ndarray, probabilities: np.ndarray, *, finite: bool, title: str
) -> dict[str, bytes]:
    """Draws what TensorBoard shows of an evaluation under way: what the probabilities are worth."""
    if not finite:
        return {}
    return {"reliability": reliability([("", calibration_bins(labels, probabilities))], title=title)}


OF_LABELS = Axes("probability of a label", "share that has it", "share that has it", "share of decisions")


def reliability(panels: Sequence[tuple[str, Sequence[Bin]]], *, title: str) -> bytes:
    """Draws the share that has a label over its probability, of all labels."""
    return reliability_figure(panels, title=title, called=OF_LABELS)


def cooccurrence_figure(matrix: np.ndarray, names: Sequence[str], *, title: str) -> bytes:
    """Draws how often labels are seen together.

    Args:
      matrix: [K, K] pictures that have both; on the diagonal, that have the one. Colour is the share of the
        pictures of the row.
      names: [K].
      title: stands above.
    """
    whole = np.maximum(np.diag(matrix)[:, None], 1)
    return matrix_figure(matrix, matrix / whole, names, title=title, rows="pictures with", columns="also has")
