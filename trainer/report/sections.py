"""What the page of a report says in words and tables, and the files of predictions beside it."""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from trainer.record.spreadsheets import as_text
from trainer.report.words import told_bought, told_metrics
from trainer.tasks import SINGLE_LABEL, Task


@dataclass(frozen=True)
class Predictions:
    """What was predicted for N pictures of K classes."""

    ids: Sequence[str]
    labels: np.ndarray
    """[N], as the task has them."""
    logits: np.ndarray
    """[N, K]."""
    class_names: Sequence[str]
    """[K], all different."""
    digests: Sequence[str]
    """[N] SHA-256 of the encoded pictures, in hex; empty where it is not known."""
    task: Task = SINGLE_LABEL

    def words(self, labels: np.ndarray) -> list[str]:
        """Returns labels, or predictions, [N] as they are written."""
        return [self.task.label_words(label, self.class_names) for label in labels]


def as_csv(given: Predictions) -> str:
    """Returns id, label, prediction, probability_NAME of each class, 6 decimals or `nan`, sha256, and right.

    `right` is true or false: whether the prediction is the label, or all labels. Where an example has any
    number of labels, label_NAME and predicted_NAME of each class, 0 or 1, come before sha256. It is for
    spreadsheets: text that they would take for a formula is as `spreadsheets.as_text` makes it.
    """
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(_columns(given))
    probabilities, decided = given.task.probabilities(given.logits), given.task.predicted(given.logits)
    said, truth, each = given.words(decided), given.words(given.labels), _of_each_label(given, decided)
    right = ["true" if one else "false" for one in given.task.right(decided, given.labels)]
    for i, (name, digest) in enumerate(zip(given.ids, given.digests, strict=True)):
        shares = (f"{p:.6f}" for p in probabilities[i])
        row = [*map(as_text, (name, truth[i], said[i])), *shares, *each[i].tolist(), digest, right[i]]
        rows.writerow(row)
    return text.getvalue()


def as_parquet(given: Predictions) -> bytes:
    """Returns the same columns as an Apache Parquet file, probabilities in all their 64 bits."""
    task, decided = given.task, given.task.predicted(given.logits)
    columns = [
        pa.array(list(given.ids), pa.string()),
        pa.array(given.words(given.labels), pa.string()),
        pa.array(given.words(decided), pa.string()),
        *(pa.array(np.ascontiguousarray(row), pa.float64()) for row in task.probabilities(given.logits).T),
        *(pa.array(np.ascontiguousarray(row), pa.int8()) for row in _of_each_label(given, decided).T),
        pa.array(list(given.digests), pa.string()),
        pa.array(np.asarray(task.right(decided, given.labels), bool), pa.bool_()),
    ]
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.table(columns, names=_columns(given)), sink)
    return sink.getvalue().to_pybytes()


def _columns(given: Predictions) -> list[str]:
    kinds = ["probability"] if given.task.excludes else ["probability", "label", "predicted"]
    of_classes = [f"{kind}_{name}" for kind in kinds for name in given.class_names]
    return ["id", "label", "prediction", *of_classes, "sha256", "right"]


def _of_each_label(given: Predictions, decided: np.ndarray) -> np.ndarray:
    """Returns [N, 2 K] int8: 1 for each label that is there, then for each that is predicted; else [N, 0]."""
    if given.task.excludes:
        return np.zeros([len(given.ids), 0], np.int8)
    both = [given.task.indicators(labels, len(given.class_names)) for labels in (given.labels, decided)]
    return np.concatenate(both, axis=1).astype(np.int8)


MOST_CONFUSIONS = 10
MOST_MISSING = 20
MOST_PREVALENCES = 100
_LISTS = {
    "left_out_pictures": "Pictures that were left out",
    "left_out_batches": "Batches that training left out",
    "shared_pictures": "Identical pictures in several splits",
}
_LABELS = {
    "num_examples": "pictures", "how": "splits", "image_size_px": "side of a picture, px",
    "began": "begun on", "batch_size": "pictures per update",
}  # fmt: skip
# What the numbers on the cards mean; docs/report.md says when not to believe them.
_MEANINGS = {
    "top-k accuracy": "share of the pictures whose class is among the k most probable ones",
    "macro F1": "mean over the classes of F1, which is high where a class is both found and not seen "
    "elsewhere; each class counts the same, however many pictures it has. 1 is best",
    "log-loss": "how improbable the true classes were taken to be; confident mistakes cost most. 0 is best",
    "calibration error": "how far probabilities are from the share that is right, on average. 0 is best",
    "calibration error, scaled": "the same with all logits divided by the temperature",
    "Brier score": "mean squared error of the probabilities. 0 is best",
    "ROC AUC": "the chance that a picture of the second class has a higher probability of it than one of the "
    "first. 0.5 is guessing, 1 is best",
    "mean ROC AUC": "the chance that a picture of a class has a higher probability of it than one of "
    "another, mean over the classes. 0.5 is guessing, 1 is best",
}
# What has a place of its own on the page, or is there only for programs.
_NO_FACTS = {
    "format", "num_correct", "accuracy", "accuracy_95_percent_interval", "top_k_accuracy", "log_loss",
    "brier_score", "roc_auc", "macro", "weighted", "classes", "confusion_matrix", "calibration", "undefined",
    "worst_mistakes", "least_certain", "pictures_sha256", "source_place", "missing_classes", "pretrained",
    "several_labels", "assumed_prevalence", "map", "hamming_loss", "micro", "samples", "cooccurrence",
    "thresholds", "thresholds_from", "in_vain", "metrics",
    *_LISTS,
}  # fmt: skip


AT_BOUND = (
    '<p class="note">The fit ended at the limit of the search: the pictures that it was made on, '
    "all right or mostly wrong, do not say what temperature is best. Do not use it.</p>"
)
VALIDATION_CHOSE = (
    '<p class="note">The validation split also chose these weights: read this number as slightly too '
    "good. Only a test split is free of that.</p>"
)


def headline(values: Mapping[str, Any], *, title: str) -> str:
    """Returns the accuracy with its interval."""
    low, high = values["accuracy_95_percent_interval"]
    too_good = VALIDATION_CHOSE if values["split"] == "validation" else ""
    return (
        f"<h1>{escape(title)}</h1>\n"
        f'<p class="big">{percent(values["accuracy"])} right</p>\n'
        f'<div class="interval"><i class="range" style="left:{low:.3%};right:{1 - high:.3%}"></i>'
        f'<i class="point" style="left:{values["accuracy"]:.3%}"></i></div>\n'
        '<div class="ends"><span>0</span><span>100 %</span></div>\n'
        f"<p>{values['num_correct']:,} of {values['num_examples']:,} pictures; the 95\N{NO-BREAK SPACE}% "
        f"interval is {percent(low)} to {percent(high)}. Weights of step {values['step']:,}.</p>"
        f"{in_vain(values)}{too_good}"
    )


def measured(values: Mapping[str, Any]) -> str:
    """Returns what --metrics asked for besides."""
    told = told_metrics(values)
    return f"<p>Besides, as means over the pictures: {escape(told)}.</p>" if told else ""


def in_vain(values: Mapping[str, Any]) -> str:
    """Returns that phases after these weights have not made them better, where it is so."""
    told = values.get("in_vain", "")
    return f'<p class="note">{escape(told[0].upper() + told[1:])}.</p>' if told else ""


_COMPARED = {"linear_probe": "linear probe", "knn": "nearest neighbours"}


def pretrained(values: Mapping[str, Any]) -> str:
    """Returns the accuracy beside that of heads fitted to the network as the run began."""
    if not (others := values.get("pretrained")):
        return ""
    if values.get("several_labels"):
        return _pretrained_on_labels(values, others)
    count = f"{values['num_examples']:,}"
    rows = [["this run", "", percent(values["accuracy"]), f"{values['num_correct']:,}", count, ""]]
    reasons: dict[str, list[str]] = {}
    for key, name in _COMPARED.items():
        if "accuracy" not in (one := others[key]):
            reasons.setdefault(one["why_not"], []).append(name)
            continue
        bought = f"{100 * (values['accuracy'] - one['accuracy']):+.1f}"
        cells = [percent(one["accuracy"]), f"{one['num_correct']:,}", f"{one['num_examples']:,}", bought]
        rows.append([name, f"{one['how']}", *cells])
    why = "".join(f"<p>No {' and '.join(n)}: {escape(reason)}.</p>" for reason, n in reasons.items())
    told = (
        '<p class="soft">What training has bought: the linear probe and the neighbours use the network as it '
        "was when the run began. They take seconds, and have no learning rate to choose.</p>"
    )
    shown = table(["", "fitted as", "right", "pictures right", "of", "points gained"], rows, num_names=2)
    bought = told_bought(others)
    verdict = f"<p>{escape(bought[0].upper() + bought[1:])}.</p>" if bought else ""
    return f"<h2>Beside the pretrained network</h2>{told + shown if len(rows) > 1 else ''}{verdict}{why}"


def _pretrained_on_labels(values: Mapping[str, Any], others: Mapping[str, Any]) -> str:
    """Returns the same where pictures have any number of labels."""
    rows = [["this run", number(values["map"], ".4f"), f"{values['macro']['f1']:.3f}", ""]]
    rows += [
        [name, number(one["map"], ".4f"), f"{one['macro_f1']:.3f}", one["how"]]
        for name, one in ((name, others[key]) for key, name in _COMPARED.items())
        if "map" in one
    ]
    reasons = [f"No {_COMPARED[key]}: {one['why_not']}." for key, one in others.items() if "why_not" in one]
    why = "".join(f"<p>{escape(reason)}</p>" for reason in reasons)
    told = (
        '<p class="soft">What training has bought: the linear probe is a logistic regression for each label, '
        "on the network as it was when the run began. Its labels are predicted from 0.5 on.</p>"
    )
    shown = table(["", "mAP", "macro F1", "fitted as"], rows)
    return f"<h2>Beside the pretrained network</h2>{told + shown if len(rows) > 1 else ''}{why}"


def prevalence(values: Mapping[str, Any]) -> str:
    """Returns which share of each class the probabilities assume, where it is not that of the pictures."""
    if not (assumed := values.get("assumed_prevalence")):
        return ""
    rows = [[name, percent(of["train"]), percent(of["assumed"])] for name, of in assumed["classes"].items()]
    told = (
        f"{escape(assumed['why'])} made training see other shares of the classes than the pictures have. The "
        "probabilities assume these: where classes are as frequent as in the pictures, those of rare classes "
        "are too high."
    )
    shown = table(["class", "of the training pictures", "assumed"], rows[:MOST_PREVALENCES])
    return f'<h2>Assumed shares</h2><p class="note">{told}</p>{shown}'


def missing(values: Mapping[str, Any]) -> str:
    """Returns which classes a split has no picture of, so that its number says nothing about them."""
    lines = []
    for split, names in (values.get("missing_classes") or {}).items():
        more = f" and {len(names) - MOST_MISSING:,} more classes" if len(names) > MOST_MISSING else ""
        what, it = ", ".join(names[:MOST_MISSING]) + more, "it" if len(names) == 1 else "them"
        effect = f"this score says nothing about {it}"
        if split != values["split"]:
            chosen = f"the best weights were chosen without {it}"
            effect = chosen if split == "validation" else f"its score says nothing about {it}"
        lines.append(f'<p class="note">{escape(f"No picture of {what} is in {split}: {effect}.")}</p>')
    return "\n".join(lines)


def numbers(values: Mapping[str, Any]) -> str:
    """Returns the numbers of the split as a whole, and why one is missing."""
    found, calibration = values["undefined"], values["calibration"]
    shown = [
        (f"top-{k} accuracy", percent(share)) for k, share in values["top_k_accuracy"].items() if k != "1"
    ]
    shown += [
        ("macro F1", f"{values['macro']['f1']:.3f}"),
        ("log-loss", number(values["log_loss"], ".3f")),
        ("calibration error", percent(calibration["expected_calibration_error"])),
        ("Brier score", number(values["brier_score"], ".3f")),
        ("ROC AUC" if len(values["classes"]) < 3 else "mean ROC AUC", number(values["roc_auc"], ".4f")),
    ]
    if calibration["temperature"] is not None:
        scaled = calibration["expected_calibration_error_scaled"]
        shown.insert(-2, ("calibration error, scaled", percent(scaled)))
    meanings = {name: _MEANINGS[re.sub(r"^top-\d+", "top-k", name)] for name, _ in shown}
    return cards(shown, meanings, undefined=found)


def cards(
    shown: Sequence[tuple[str, str]], meanings: Mapping[str, str], *, undefined: Mapping[str, str]
) -> str:
    """Returns numbers on cards, what each means, and why others are missing.

    Args:
      shown: (name, number as it is written).
      meanings: {name: what it means}.
      undefined: {name: why there is no such number}.
    """
    cells = "".join(
        f'<div class="card" title="{escape(meanings[name])}"><b>{value}</b><span>{name}</span></div>'
        for name, value in shown
    )
    listed = "".join(f"<li><b>{name}</b>: {meanings[name]}</li>" for name, _ in shown)
    told = f"<details><summary>What these numbers mean</summary><ul>{listed}</ul></details>"
    notes = "".join(f"<li>{escape(name)}: {escape(reason)}</li>" for name, reason in undefined.items())
    missing = f'<div class="note">Not defined here:<ul>{notes}</ul></div>' if notes else ""
    return f'<div class="cards">{cells}</div>{told}{missing}'


def confusions(values: Mapping[str, Any]) -> str:
    """Returns the most frequent mistakes, by pair of classes."""
    matrix, names = np.array(values["confusion_matrix"]), list(values["classes"])
    wrong = matrix - np.diag(np.diag(matrix))
    order = np.argsort(-wrong, axis=None, kind="stable")[:MOST_CONFUSIONS]
    pairs = [divmod(int(at), len(names)) for at in order if wrong.flat[at]]
    if not pairs:
        return "<p>No class is taken for another.</p>"
    rows = [
        [names[k], names[j], f"{wrong[k, j]:,}", percent(wrong[k, j] / matrix[k].sum())] for k, j in pairs
    ]
    return table(["true", "taken for", "pictures", "of the true class"], rows, num_names=2)


def by_class(values: Mapping[str, Any]) -> str:
    """Returns precision, recall, F1 and area of each class, and their means."""
    rows = [
        [name, f"{of['support']:,}", *shares(of), number(of["roc_auc"], ".4f")]
        for name, of in values["classes"].items()
    ]
    total = f"{values['num_examples']:,}"
    means = [
        ["mean of classes", total, *shares(values["macro"]), number(values["roc_auc"], ".4f")],
        ["mean of pictures", total, *shares(values["weighted"]), ""],
    ]
    return table(["class", "pictures", "recall", "precision", "F1", "ROC AUC"], rows, means=means)


def calibration(calibration: Mapping[str, Any], *, why_not: str) -> str:
    """Returns how far the probabilities are off, and what a temperature changes."""
    error, scaled = (calibration[f"expected_calibration_error{end}"] for end in ("", "_scaled"))
    if error is None:
        return f"<p>Not known: {escape(why_not)}.</p>"
    text = (
        f"<p>The probability of the predicted class is {percent(error)} away from the share that is right, "
        "on average (expected calibration error, 15 bins).</p>"
    )
    temperature = calibration["temperature"]
    if temperature is None:
        return text
    where = calibration["temperature_from"]
    text += (
        f"<p>With all logits divided by a temperature of {temperature:.3g}"
        f"{f' (fitted on {escape(where)})' if where else ''} it is {percent(scaled)}, and the log-loss "
        f"{calibration['log_loss_scaled']:.3f}. No prediction changes by that.</p>"
    )
    return text + AT_BOUND * calibration["temperature_at_bound"]


def left_out(values: Mapping[str, Any]) -> str:
    """Returns what is not in the numbers, or twice in them."""
    parts = []
    for key, title in _LISTS.items():
        if rows := values.get(key):
            items = "".join(f"<li>{escape(_told(row))}</li>" for row in rows)
            opened = " open" if len(rows) <= 10 else ""
            parts.append(
                f"<details{opened}><summary>{title}: {len(rows):,}</summary><ul>{items}</ul></details>"
            )
    known = [key for key in _LISTS if key in values]
    none = "<p>Nothing was left out.</p>" if known and not parts else ""
    return f"<h2>Left out</h2>{none}{''.join(parts)}" if known else ""


def facts(values: Mapping[str, Any]) -> str:
    """Returns what else metrics.json says, a line each."""
    known = {key: value for key, value in values.items() if key not in _NO_FACTS}
    rows = [[_LABELS.get(key, key.replace("_", " ")), _told(value)] for key, value in known.items()]
    return table(["", ""], [row for row in rows if row[1]], num_names=2)


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    num_names: int = 1,
    means: Sequence[Sequence[str]] = (),
) -> str:
    """Returns a table whose first columns are names, and all others numbers; cells are plain text."""

    def line(cells: Sequence[str], kind: str = "") -> str:
        names = "".join(f'<th class="name" scope="row">{escape(cell)}</th>' for cell in cells[:num_names])
        others = "".join(f'<td class="n">{escape(cell)}</td>' for cell in cells[num_names:])
        return f"<tr{kind}>{names}{others}</tr>"

    titles = "".join(
        f"<th{'' if i < num_names else ' class=n'}>{escape(name)}</th>" for i, name in enumerate(head)
    )
    body = "".join([*map(line, rows), *(line(cells, ' class="mean"') for cells in means)])
    top = f"<thead><tr>{titles}</tr></thead>" if any(head) else ""
    return f'<div class="scroll"><table>{top}<tbody>{body}</tbody></table></div>'


def percent(share: float | None) -> str:
    """Returns e.g. '95.3 %', which no line break parts."""
    return "n/a" if share is None else f"{100 * share:.1f}\N{NO-BREAK SPACE}%"


def shares(numbers: Mapping[str, float]) -> list[str]:
    """Returns recall, precision and F1 as they are written."""
    return [percent(numbers["recall"]), percent(numbers["precision"]), f"{numbers['f1']:.3f}"]


def number(value: float | None, form: str) -> str:
    """Returns a number as it is written, n/a where there is none."""
    return "n/a" if value is None else f"{value:{form}}"


def _told(value: Any) -> str:
    """Returns a value of metrics.json as one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_told(part)}" for key, part in value.items())
    if isinstance(value, list | tuple):
        return ("; " if any("," in str(part) for part in value) else ", ").join(map(_told, value))
    if isinstance(value, float):
        return f"{value:.6g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
