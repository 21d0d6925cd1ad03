"""MODEL_CARD.md: what it says, and that names cannot change its layout."""

from types import SimpleNamespace

import pytest

from trainer.export import card
from trainer.export.metadata import About
from trainer.values import Contract

METRICS = {
    "step": 520, "split": "validation", "num_examples": 514, "accuracy": 0.8833,
    "accuracy_95_percent_interval": [0.8526, 0.9082],
    "classes": {"a|b": {"precision": 0.5, "recall": 0.25, "f1": 0.3333, "support": 77}},
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("daisy", "daisy"),
        ("a|b", "a\\|b"),
        ("<script>", "\\<script\\>"),
        ("[x](http://y)", "\\[x\\](http://y)"),
        ("`*_#~\\", "\\`\\*\\_\\#\\~\\\\"),
        ("two\nlines\t|", "two lines \\|"),
        ("\x1b[31m", "\N{REPLACEMENT CHARACTER}\\[31m"),
        ("Löwenzahn", "Löwenzahn"),
    ],
)
def test_names_are_shown_as_they_are(name, shown):
    assert card.escaped(name) == shown
    assert card.table(["class", "n"], [[name, 3]]).splitlines()[2] == f"| {shown} | 3 |"


def test_a_block_holds_any_text():
    assert card.fenced("a\n```\nb") == "````\na\n```\nb\n````"
    assert card.fenced("a\n") == "```\na\n```"


def test_metrics_with_their_interval():
    text = card.metrics_section(METRICS, step=520, temperature=None)
    assert (
        "On the validation split, 514 pictures: accuracy 88.33%, 95 % interval 85.3% to 90.8% (Wilson)."
        in text
    )
    assert "Validation also chose these weights" in text
    assert "| a\\|b | 0.5000 | 0.2500 | 0.3333 | 77 |" in text
    assert text.endswith("## Calibration\n\nNo temperature is known for these weights.")
    calibrated = {**METRICS, "split": "test", "calibration": {"expected_calibration_error": 0.0321}}
    text = card.metrics_section(calibrated, step=520, temperature=1.25)
    assert "Validation also chose" not in text
    assert "Expected calibration error, without any temperature: 0.0321." in text
    assert "Temperature fitted on validation: 1.2500. It is not applied" in text


@pytest.mark.parametrize(
    "metrics", [None, {**METRICS, "step": 325, "calibration": {"expected_calibration_error": 0.1}}]
)
def test_what_was_not_evaluated_is_said(metrics):
    text = card.metrics_section(metrics, step=520, temperature=None)
    assert "Not evaluated: the run has no report on the weights of step 520." in text
    assert ("is of step 325" in text) == bool(metrics)
    assert "88.33" not in text
    assert "0.1" not in text


def test_pictures_by_class_and_split():
    counts = {"train": {"a": 1200, "b": 3}, "validation": {"a": 5, "b": 0}}
    text = card.data_section(
        source="folder:x_y",
        how="80%,20%",
        counts=counts,
        num_left_out=1,
        num_shared=0,
        dropped=False,
    )
    assert "Pictures of folder:x\\_y, divided as 80%,20%." in text
    assert "| a | 1,200 | 5 |\n| b | 3 | 0 |\n| all | 1,203 | 5 |" in text
    assert "or by hand: 1. Pictures that came twice and were in two splits: 0, left in both." in text


def test_how_to_load_names_files_that_are_there():
    about = About(("a",), Contract(8, 9, (0.0, 1.0), 2, True), "apply", "exact")
    text = card.usage_section(about, has_saved_model=False, tflite_files=["int8.tflite"])
    assert 'Interpreter("int8.tflite")' in text
    assert "8x9 px" in text
    assert 'read_picture("picture.jpg", as_bytes=True)' in text
    assert "saved_model" not in text
    # Beside models that were there before.
    text = card.usage_section(about, has_saved_model=False, tflite_files=["int8.tflite", "float32.tflite"])
    assert 'read_picture("picture.jpg", as_bytes=True)' in text
    text = card.usage_section(about, has_saved_model=False, tflite_files=["float32.tflite", "int8.tflite"])
    assert 'read_picture("picture.jpg")' in text
    text = card.usage_section(about, has_saved_model=True, tflite_files=[])
    assert "tf.saved_model.load" in text
    assert "tflite" not in text


@pytest.mark.parametrize(
    ("value", "told"), [("off", "are found by their bytes only"), ("drop", "=drop kept apart")]
)
def test_the_limits_say_which_copies_were_looked_for(value, told):
    about = SimpleNamespace(contract=SimpleNamespace(fit="crop"))
    assert told in card.limits_section(about, near_duplicates=value)
