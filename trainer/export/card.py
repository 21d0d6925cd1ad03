"""MODEL_CARD.md: what was trained on what, how good it is, and what nobody knows about it.

The parts follow Mitchell et al., "Model Cards for Model Reporting", 2019, arXiv 1810.03993.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from trainer.export.metadata import About
from trainer.store.files import told_size
from trainer.tasks import SINGLE_LABEL, Task

_SPECIAL = re.compile(r"([\\`*_\[\]<>&|#~!$])")


def escaped(text: object) -> str:
    """Returns text that Markdown shows as it is, on one line: names come from whoever has the pictures."""
    line = " ".join(str(text).split())
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)
    return _SPECIAL.sub(r"\\\1", shown)


def table(head: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    """Returns a table whose cells are escaped."""
    lines = [head, *rows]
    cells = [f"| {' | '.join(escaped(cell) for cell in line)} |" for line in lines]
    return "\n".join([cells[0], "|" + "---|" * len(head), *cells[1:]])


def fenced(text: str) -> str:
    """Returns a block of text as it is, whatever it holds."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text.rstrip()}\n{fence}"


def title_section(about: About, *, head: str, task: Task = SINGLE_LABEL) -> str:
    """Tells what the model is; `head` is the value of --head, and `task` what a prediction is."""
    run, contract = about.run, about.contract
    low, high = contract.value_range
    return "\n\n".join(
        [
            f"# {escaped(run['name'])}",
            f"Names what is on a picture: {task.one_of.format(count=len(about.class_names))}, "
            f"{', '.join(map(escaped, about.class_names))}.",
            f"{escaped(run['backbone'])} at {contract.height_px}x{contract.width_px} px, which takes pixels "
            f"in [{low:g}, {high:g}], with the head {escaped(head)}; the weights of step {run['step']:,} "
            f"({escaped(run['checkpoint'])}) of run {escaped(run['identity'])}.",
        ]
    )


def data_section(
    *,
    source: str,
    how: str,
    counts: Mapping[str, Mapping[str, int]],
    num_left_out: int,
    num_shared: int,
    dropped: bool,
    sizes: Mapping[str, int] | None = None,
) -> str:
    """Tells the pictures.

    Args:
      source: as on the command line.
      how: how the splits were taken.
      counts: {split: {class name: number of pictures}}.
      num_left_out: pictures that are in no split.
      num_shared: pictures that were in two splits.
      dropped: whether they were taken out of all but one.
      sizes: {split: number of pictures}, where one may have several classes; None: the sums of `counts`.
    """
    names = next(iter(counts.values()))
    rows = [[name, *(f"{of_split[name]:,}" for of_split in counts.values())] for name in names]
    sizes = sizes or {split: sum(of_split.values()) for split, of_split in counts.items()}
    total = ["all", *(f"{sizes[split]:,}" for split in counts)]
    both = "taken out of the earlier split" if dropped else "left in both"
    return "\n\n".join(
        [
            "## Data",
            f"Pictures of {escaped(source)}, divided as {escaped(how)}.",
            table(["class", *counts], [*rows, total]),
            f"Left out, as they could not be read or used, or by hand: {num_left_out:,}. Pictures that came "
            f"twice and were in two splits: {num_shared:,}, {both}.",
        ]
    )


def metrics_section(
    metrics: Mapping[str, Any] | None, *, step: int, temperature: float | None, task: Task = SINGLE_LABEL
) -> str:
    """Tells what the evaluation of these weights found, or that there was none.

    Args:
      metrics: what report/metrics.json of the run holds.
      step: of the weights that are exported.
      temperature: fitted on validation.
      task: says how a temperature is applied.
    """
    parts = ["## Metrics"]
    if metrics is None or metrics.get("step") != step:
        was = "" if metrics is None else f" What the run's report says is of step {metrics.get('step')}."
        parts.append(
            f"Not evaluated: the run has no report on the weights of step {step:,}.{was} `evaluate` writes "
            "one."
        )
    else:
        parts += _numbers(metrics)
    parts.append("## Calibration")
    error = ((metrics or {}).get("calibration") or {}).get("expected_calibration_error")
    if len(parts) > 3 and error is not None:
        parts.append(f"Expected calibration error, without any temperature: {error:.4f}.")
    if temperature is None:
        parts.append("No temperature is known for these weights.")
    else:
        parts.append(f"Temperature fitted on validation: {temperature:.4f}. {task.calibration_note}")
    return "\n\n".join(parts)


def _numbers(metrics: Mapping[str, Any]) -> list[str]:
    low, high = metrics["accuracy_95_percent_interval"]
    parts = [
        f"On the {escaped(metrics['split'])} split, {metrics['num_examples']:,} pictures: accuracy "
        f"{metrics['accuracy']:.2%}, 95 % interval {low:.1%} to {high:.1%} (Wilson)."
    ]
    if metrics["split"] == "validation":
        parts.append("Validation also chose these weights: read it as slightly too good.")
    if metrics.get("several_labels"):
        return [*parts, *_of_labels(metrics)]
    rows = [
        [name, *(f"{values[key]:.4f}" for key in ("precision", "recall", "f1")), f"{values['support']:,}"]
        for name, values in metrics.get("classes", {}).items()
    ]
    return [*parts, table(["class", "precision", "recall", "F1", "pictures"], rows)]


def _of_labels(metrics: Mapping[str, Any]) -> list[str]:
    """Returns what was measured where a picture may have any number of labels; accuracy is of all of them."""
    mean = "not known" if metrics["map"] is None else f"{metrics['map']:.4f}"
    told = (
        f"A picture is right where all of its labels are. Mean average precision {mean}, macro F1 "
        f"{metrics['macro']['f1']:.4f}, micro F1 {metrics['micro']['f1']:.4f}."
    )
    thresholds = metrics.get("thresholds") or {}
    rows = [
        [
            name,
            f"{thresholds[name]:.4f}" if name in thresholds else "-",
            *(
                "-" if values[key] is None else f"{values[key]:.4f}"
                for key in ("average_precision", "precision", "recall", "f1")
            ),
            f"{values['support']:,}",
        ]
        for name, values in metrics.get("classes", {}).items()
    ]
    head = ["label", "predicted from", "average precision", "precision", "recall", "F1", "pictures"]
    return [told, table(head, rows)]


def models_section(found: Mapping[str, Any]) -> str:
    """Tells the files and how far they agree with the network; `found` is what parity.json holds."""
    rows = [
        [
            model["file"], model["input"], told_size(model["size_bytes"]), f"{model['accuracy']:.4f}",
            f"{model['accuracy_drop']:+.4f}", f"{model['agreement']:.4f}",
            "-" if (much := model["largest_probability_difference"]) is None else f"{much:.2g}",
            "yes" if model["passed"] else "NO",
        ]
        for model in found["models"]
    ]  # fmt: skip
    head = ["file", "input", "size", "accuracy", "lost", "same class", "largest difference", "passed"]
    return "\n\n".join(
        [
            "## Files",
            f"Each was run in a process of its own over the {found['num_examples']:,} validation pictures; "
            f"the network itself, in float32, has accuracy {found['network']['accuracy']:.4f} there. "
            "`parity.json` has all digits.",
            table(head, rows),
        ]
    )


def usage_section(about: About, *, has_saved_model: bool, tflite_files: Sequence[str]) -> str:
    """Tells how the files are loaded, in code that runs in the folder of the export."""
    size = f"{about.contract.height_px}x{about.contract.width_px}"
    parts = ["## How to load"]
    if has_saved_model:
        code = """\
import tensorflow as tf

model = tf.saved_model.load("saved_model")
pictures = tf.constant([open("picture.jpg", "rb").read()])
print(model.signatures["serving_default"](image_bytes=pictures))"""
        parts += ["`saved_model` needs TensorFlow alone:", fenced(code)]
    if tflite_files:
        takes_bytes = tflite_files[0] == "int8.tflite"
        code = f"""\
from ai_edge_litert.interpreter import Interpreter
from preprocess import read_picture

run = Interpreter("{tflite_files[0]}").get_signature_runner("images")
pixels = read_picture("picture.jpg"{", as_bytes=True" if takes_bytes else ""})
print(run(images=pixels)["probabilities"])"""
        parts += [
            f"The TFLite files need ai-edge-litert, and take one picture of {size} px: float32 from 0 to 1, "
            "or, for `int8.tflite`, uint8 from 0 to 255 (`read_picture(..., as_bytes=True)`), which gives "
            "probabilities in steps of 1/256, 255 being the highest. `preprocess.py`, which needs NumPy and "
            "Pillow, makes them of a file as training did; other ways of resizing cost accuracy. "
            "`labels.txt` has the class names, a line each:",
            fenced(code),
        ]
    return "\n\n".join(parts)


_ASPECTS = {
    "stretch": "Pictures are resized without regard to their aspect.",
    "crop": "Pictures are cropped to their middle: what is beside, above or below it is not seen.",
    "pad": "Pictures are seen whole and in their aspect, between bars of grey: the longer, the smaller.",
}
_LIMITS = """\
## Limits

- The metrics are of pictures that came from the same source as those it was trained with. Other cameras,
  other lighting, other places and other times are not tested.
- {names}
- {aspect}
- An interval of the accuracy is only about chance: about how many pictures there were, not about which.
- Pictures of the same thing taken twice, which are in two splits, make the metrics too good. {copies}"""


def limits_section(about: About, *, task: Task = SINGLE_LABEL, near_duplicates: str = "off") -> str:
    """Tells what the metrics do not say; `near_duplicates` is the value of --near_duplicates."""
    told = {"report": "Near duplicates are reported, and stay in their splits."}
    copies = (
        f"--near\\_duplicates={near_duplicates} kept apart those that it found."
        if near_duplicates in ("group", "drop")
        else told.get(near_duplicates, "Copies are found by their bytes only.")
    )
    names = (
        "It names one of its classes for any picture, also for one that shows none of them."
        if task.excludes
        else "It knows no other labels: a picture that shows something else may get some of these, or none."
    )
    return _LIMITS.format(aspect=_ASPECTS[about.contract.fit], names=names, copies=copies)
