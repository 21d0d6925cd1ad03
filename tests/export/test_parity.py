"""The numbers of parity.json by hand."""

import numpy as np
import pytest

from trainer.export.fresh_process import Answers
from trainer.export.parity import Reference, failures, for_phones, parity, size_bytes, told, told_uses

# The network is right on the first three of four.
REFERENCE = Reference(
    np.array([0, 1, 2, 2]), np.array([[0.8, 0.1, 0.1], [0.2, 0.6, 0.2], [0, 0, 1], [0.5, 0.3, 0.2]])
)


def compared(rows, *, max_drop=0.0, classes=None, kept=()):
    rows = np.array(rows, np.float32)
    answers = {
        ("m.tflite", "images"): Answers(rows, rows.argmax(axis=1) if classes is None else classes, 12.34)
    }
    weights = {"step": 7, "sha256": "0f"}
    found = parity(
        REFERENCE, answers, sizes={"m.tflite": 1000}, max_drop=max_drop, weights=weights, kept=kept
    )
    model = found["models"][0]
    return found, model


def test_the_same_answers_pass():
    found, model = compared(REFERENCE.probabilities)
    assert found == {
        "format": 2, "split": "validation", "num_examples": 4, "max_accuracy_drop": 0.0, "passed": True,
        "weights": {"step": 7, "sha256": "0f"},
        "network": {"accuracy": 0.75, "precision": "float32"}, "models": [model],
    }  # fmt: skip
    assert model == {
        "file": "m.tflite", "input": "images", "accuracy": 0.75, "accuracy_drop": 0.0, "passed": True,
        "agreement": 1.0, "largest_probability_difference": pytest.approx(0, abs=1e-7), "num_not_finite": 0,
        "images_per_second": 12.3, "size_bytes": 1000,
    }  # fmt: skip
    assert failures(found) == []


def test_other_answers():
    _, model = compared([[0.8, 0.1, 0.1], [0.5, 0.3, 0.2], [0, 0.1, 0.9], [0.2, 0.3, 0.5]], max_drop=0.1)
    assert (model["accuracy"], model["accuracy_drop"], model["agreement"]) == (0.75, 0.0, 0.5)
    assert model["largest_probability_difference"] == pytest.approx(0.3)
    assert model["passed"]


def test_too_much_is_lost():
    rows = [[0.8, 0.1, 0.1], [0.5, 0.3, 0.2], [0, 0.1, 0.9], [0.6, 0.3, 0.1]]
    found, model = compared(rows, max_drop=0.2499)
    assert (model["accuracy"], model["accuracy_drop"], model["passed"], found["passed"]) == (
        0.5,
        0.25,
        False,
        False,
    )
    assert failures(found) == ["m.tflite (images) has accuracy 0.5000 on validation, and the network 0.7500"]
    assert compared(rows, max_drop=0.25)[0]["passed"]


def test_models_that_stay_are_held_to_what_is_allowed_now():
    row = {"file": "old.tflite", "input": "files", "accuracy": 0.5, "accuracy_drop": 0.25, "passed": True}
    found, _ = compared(REFERENCE.probabilities, max_drop=0.2, kept=[row])
    assert found["models"][1] == {**row, "passed": False}
    assert failures(found) == ["old.tflite (files) has accuracy 0.5000 on validation, and the network 0.7500"]
    assert compared(REFERENCE.probabilities, max_drop=0.25, kept=[row])[0]["passed"]


def test_what_is_no_number_is_no_answer():
    _, model = compared([[np.nan] * 3, *REFERENCE.probabilities[1:]], classes=np.array([0, 1, 2, 0]))
    assert (model["num_not_finite"], model["accuracy"], model["agreement"]) == (1, 0.5, 0.75)
    _, model = compared([[np.nan] * 3] * 4)
    assert (model["largest_probability_difference"], model["accuracy"]) == (None, 0.0)
    assert "a probability unknown" in told(model)


def test_sizes_of_files_and_folders(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "one").write_bytes(bytes(10))
    (tmp_path / "a" / "b" / "two").write_bytes(bytes(5))
    assert (size_bytes(tmp_path / "a"), size_bytes(tmp_path / "a" / "one")) == (15, 10)


def of_file(file, drop, *, way="images", size=4_600_000):
    return {"file": file, "input": way, "accuracy_drop": drop, "size_bytes": size}


@pytest.mark.parametrize(
    ("models", "lines"),
    [
        (
            [of_file("float32.tflite", 0.0, size=16_100_000), of_file("int8.tflite", 0.01)],
            ["phone:       int8.tflite, 4.6 MB", "browser:     float32.tflite, with LiteRT.js"],
        ),
        # The worse of two ways into a file counts.
        (
            [
                of_file("float16.tflite", 0.0, size=8_100_000),
                of_file("int8.tflite", 0.0),
                of_file("int8.tflite", 0.032),
            ],
            ["phone:       float16.tflite, 8.1 MB; int8.tflite loses 3.2 % of accuracy"],
        ),
        ([of_file("int8.tflite", 0.5)], ["phone:       int8.tflite, 4.6 MB"]),
        ([of_file("int8.tflite", -0.1)], ["phone:       int8.tflite, 4.6 MB"]),
        (
            [of_file("saved_model", 0.0), of_file("model.onnx", 0.0)],
            [
                "server:      saved_model, with TensorFlow alone: it takes files of pictures as they are",
                "elsewhere:   model.onnx, with any ONNX runtime",
            ],
        ),
        ([of_file("mine.bin", 0.0)], []),
    ],
)
def test_which_file_is_for_what(models, lines):
    assert told_uses({"models": models}) == lines
    told_for_phones = [line.split(",")[0].split()[-1] for line in lines if line.startswith("phone:")]
    assert for_phones({"models": models}) == "".join(told_for_phones)
