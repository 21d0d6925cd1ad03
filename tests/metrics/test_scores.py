"""All numbers of an evaluation, against numbers worked out by hand."""

import json
import math
import warnings

import numpy as np
import pytest

from trainer.metrics.intervals import wilson_interval
from trainer.metrics.scores import scores

# Rows are examples. Predictions: a a b c c c b; one example of a goes to b, one of b to c.
CHANCES = np.array([[8, 1, 1], [6, 2, 2], [1, 8, 1], [1, 2, 7], [2, 1, 7], [1, 1, 8], [2, 6, 2]]) / 10
LOGITS = np.log(CHANCES).astype(np.float32)
LABELS = np.array([0, 0, 0, 1, 2, 2, 1])
NAMES = ("a", "b", "c, with a comma")


def finite_json(values):
    """Returns what JSON makes of it, without the NaN and Infinity that only Python reads."""
    return json.loads(json.dumps(values, allow_nan=False))


def test_numbers_by_hand():
    found = scores(LABELS, LOGITS, NAMES)
    assert finite_json(found) == found
    assert found["confusion_matrix"] == [[2, 1, 0], [0, 1, 1], [0, 0, 2]]
    assert (found["num_correct"], found["num_examples"], found["accuracy"]) == (5, 7, 5 / 7)
    assert found["accuracy_95_percent_interval"] == list(wilson_interval(5, 7))
    # Of the third, classes a and c are equally probable: a counts as second.
    assert found["top_k_accuracy"] == {"1": 5 / 7, "2": 1.0}
    assert list(found["classes"]) == list(NAMES)
    expected = {
        "a": {"precision": 1.0, "recall": 2 / 3, "f1": 0.8, "support": 3},
        "b": {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 2},
        "c, with a comma": {"precision": 2 / 3, "recall": 1.0, "f1": 0.8, "support": 2},
    }
    for name, numbers in expected.items():
        assert {key: found["classes"][name][key] for key in numbers} == pytest.approx(numbers)
    assert found["macro"] == pytest.approx({"precision": 13 / 18, "recall": 13 / 18, "f1": 0.7})
    weighted = {"precision": (3 + 1 + 4 / 3) / 7, "recall": 5 / 7, "f1": (2.4 + 1 + 1.6) / 7}
    assert found["weighted"] == pytest.approx(weighted)
    true = CHANCES[np.arange(7), LABELS]
    assert found["log_loss"] == pytest.approx(-np.log(true).mean(), rel=1e-6)
    assert found["undefined"] == {}
    calibration = found["calibration"]
    assert (calibration["temperature"], calibration["log_loss_scaled"]) == (None, None)
    assert calibration["expected_calibration_error_scaled"] is None
    # By probability: 0.6 (2, right), 0.7 (one of 2), 0.8 (two of 3).
    expected = (2 * 0.4 + 2 * 0.2 + 3 * (0.8 - 2 / 3)) / 7
    assert calibration["expected_calibration_error"] == pytest.approx(expected, rel=1e-6)
    assert sum(b["count"] for b in calibration["bins"]) == 7


def test_a_temperature_changes_probabilities_and_no_prediction():
    plain, found = (
        scores(LABELS, 3 * LOGITS, NAMES, temperature=temperature, temperature_from="validation")
        for temperature in (None, 3.0)
    )
    changed = {key for key in found if found[key] != plain[key]}
    assert changed == {"calibration"}
    unscaled = scores(LABELS, LOGITS, NAMES)
    for key in ("expected_calibration_error", "bins"):
        assert found["calibration"][key] == plain["calibration"][key]
    close = pytest.approx(unscaled["calibration"]["expected_calibration_error"], abs=1e-6)
    assert found["calibration"]["expected_calibration_error_scaled"] == close
    assert found["calibration"]["log_loss_scaled"] == pytest.approx(unscaled["log_loss"], rel=1e-6)
    assert (found["calibration"]["temperature"], found["calibration"]["temperature_from"]) == (
        3.0,
        "validation",
    )
    assert not found["calibration"]["temperature_at_bound"]


def test_a_class_without_pictures():
    found = scores(np.array([0, 1, 1]), np.array([[3, 0, 0], [0, 3, 0], [0, 0, 3]], np.float32), NAMES)
    assert found["classes"]["c, with a comma"] == {
        "precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0, "roc_auc": None,
    }  # fmt: skip
    # It was predicted, so it counts in the mean; the area is of the classes that have one.
    assert found["macro"]["recall"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert found["roc_auc"] == pytest.approx((1.0 + 0.75) / 2)
    assert "c, with a comma" in found["undefined"]["roc_auc"]
    # One that is neither label nor prediction does not.
    absent = scores(np.array([0, 1]), np.array([[3, 0, 0], [0, 3, 0]], np.float32), NAMES)
    assert absent["macro"] == {"precision": 1.0, "recall": 1.0, "f1": 1.0}
    assert finite_json(absent) == absent


@pytest.mark.parametrize(
    ("labels", "logits"),
    [
        ([0], [[0.0, 2.0]]),
        ([1], [[0.0, 2.0]]),
        ([0, 0], [[0.0, 0.0], [0.0, 0.0]]),
        ([0, 1], [[3e38, -3e38], [-3e38, 3e38]]),
        ([0, 1], [[65504.0, -65504.0], [65504.0, 0.0]]),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_strange_logits_give_numbers_and_no_warning(labels, logits, dtype):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = scores(np.array(labels), np.array(logits, dtype), NAMES[: len(logits[0])])
    assert finite_json(found) == found
    assert math.isfinite(found["log_loss"])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_logit_that_is_no_number_leaves_what_needs_none(bad):
    logits = np.array([[1.0, 0.0], [0.0, bad], [0.0, 1.0]], np.float16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = scores(np.array([0, 0, 1]), logits, NAMES[:2], temperature=2.0)
    assert finite_json(found) == found
    reason = "a logit of 1 of 3 pictures is no finite number"
    missing = ("log_loss", "brier_score", "calibration", "roc_auc")
    assert found["undefined"] == dict.fromkeys(missing, reason)
    assert [found[key] for key in ("log_loss", "brier_score", "roc_auc")] == [None] * 3
    calibration = found["calibration"]
    assert (calibration["expected_calibration_error"], calibration["bins"], calibration["bins_scaled"]) == (
        None, [], [],
    )  # fmt: skip
    assert found["num_correct"] == (2 if bad == np.inf else 3)
