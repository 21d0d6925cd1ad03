"""The report of a split, against numbers worked out by hand or published."""

import csv
import json
import warnings

import numpy as np
import pytest
import tensorflow as tf

from trainer.record.report import roc_auc, wilson_interval, write_report

# Rows are examples. Predictions: a a b c c c b; one example of a goes to b, one of b to c.
LOGITS = np.log(
    np.array([[8, 1, 1], [6, 2, 2], [1, 8, 1], [1, 2, 7], [2, 1, 7], [1, 1, 8], [2, 6, 2]], np.float32) / 10
)
LABELS = np.array([0, 0, 0, 1, 2, 2, 1])
NAMES = ("a", "b", "c, with a comma")
IDS = [f"x/{i}.jpg" for i in range(6)] + ['strange, "name".jpg']


@pytest.mark.parametrize(
    ("right", "of", "expected"),
    [
        # Newcombe (1998), Statistics in Medicine 17, table I, method 3.
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
        # n / (n + z^2) where all are right.
        (10, 10, (0.7225, 1.0)),
        (0, 10, (0.0, 0.2775)),
        (1, 2, (0.0945, 0.9055)),
    ],
)
def test_wilson_interval(right, of, expected):
    assert wilson_interval(right, of) == pytest.approx(expected, abs=5e-5)


def test_the_interval_is_within_0_and_1_and_holds_the_share():
    for of in (1, 2, 3, 7, 100, 10_000):
        for right in {0, 1, of // 2, of - 1, of}:
            low, high = wilson_interval(right, of)
            assert 0.0 <= low <= right / of + 1e-12
            assert right / of - 1e-12 <= high <= 1.0


@pytest.fixture
def written(tmp_path):
    report, png = write_report(
        tmp_path / "report",
        split="test",
        step=12,
        loss=0.5,
        ids=IDS,
        labels=LABELS,
        logits=LOGITS,
        class_names=NAMES,
    )
    return tmp_path / "report", report, png


def test_numbers_by_hand(written):
    folder, report, _ = written
    assert json.loads((folder / "test_metrics.json").read_text()) == report
    assert report["confusion_matrix"] == [[2, 1, 0], [0, 1, 1], [0, 0, 2]]
    assert (report["num_correct"], report["num_examples"]) == (5, 7)
    assert report["accuracy"] == 5 / 7
    assert report["accuracy_95_percent_interval"] == list(wilson_interval(5, 7))
    assert (report["split"], report["step"], report["loss"]) == ("test", 12, 0.5)
    assert list(report["classes"]) == list(NAMES)
    expected = {
        "a": {"precision": 1.0, "recall": 2 / 3, "f1": 0.8, "support": 3},
        "b": {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 2},
        "c, with a comma": {"precision": 2 / 3, "recall": 1.0, "f1": 0.8, "support": 2},
    }
    for name, numbers in expected.items():
        assert report["classes"][name] == pytest.approx(numbers)


def test_predictions_are_read_back(written):
    folder, _, _ = written
    with open(folder / "test_predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == IDS
    assert [row["label"] for row in rows] == [NAMES[k] for k in LABELS]
    assert [row["prediction"] for row in rows] == [NAMES[k] for k in (0, 0, 1, 2, 2, 2, 1)]
    probabilities = [[float(row[f"probability_{name}"]) for name in NAMES] for row in rows]
    np.testing.assert_allclose(probabilities, np.exp(LOGITS), atol=1e-6)


def test_the_picture_is_the_file(written):
    folder, _, png = written
    assert (folder / "test_confusion_matrix.png").read_bytes() == png
    assert tf.io.decode_png(png).shape[2] in (3, 4)


def test_a_class_that_is_never_there_or_never_said_counts_0(tmp_path):
    report, _ = write_report(
        tmp_path,
        split="validation",
        step=1,
        loss=1.0,
        ids=["x", "y"],
        labels=np.array([0, 0]),
        logits=np.array([[1000.0, 0, -1000], [2000.0, 0, 0]], np.float32),
        class_names=("a", "b", "c"),
    )
    assert report["classes"]["b"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0}
    assert report["confusion_matrix"] == [[2, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert report["accuracy_95_percent_interval"][1] == 1.0
    text = (tmp_path / "validation_predictions.csv").read_text().splitlines()
    assert text[1] == "x,a,a,1.000000,0.000000,0.000000"


# Logits [0, z] of a single one; by z: 1 (class 0), 2 (class 1), 2 (class 0), 3 (class 1), -1 (class 0).
Z = np.array([1.0, 2.0, 2.0, 3.0, -1.0], np.float32)
TWO_LOGITS = np.stack([np.zeros(5, np.float32), Z], axis=1)
TWO_LABELS = np.array([0, 1, 0, 1, 0])


def write_two(folder, *, labels=TWO_LABELS, logits=TWO_LOGITS):
    return write_report(
        folder,
        split="validation",
        step=1,
        loss=1.0,
        ids=[str(i) for i in range(len(labels))],
        labels=labels,
        logits=logits,
        class_names=("cat", "$dog$ and $_$"),
        rollbacks=[],
    )[0]


def test_the_area_under_the_curve_by_hand(tmp_path):
    # Six pairs of one of each class: five in the right order, one tie, which counts half.
    assert roc_auc(TWO_LABELS, TWO_LOGITS) == pytest.approx(5.5 / 6)
    # Only the difference of the logits counts.
    shifted = TWO_LOGITS + np.arange(5, dtype=np.float32)[:, None]
    assert roc_auc(TWO_LABELS, shifted) == pytest.approx(5.5 / 6)
    report = write_two(tmp_path)
    assert report["roc_auc"] == pytest.approx(5.5 / 6)
    assert json.loads((tmp_path / "validation_metrics.json").read_text()) == report
    # The side of logit 0: both of class 1 and the last of class 0.
    assert report["accuracy"] == 3 / 5
    png = (tmp_path / "validation_roc_curve.png").read_bytes()
    assert tf.io.decode_png(png).shape == (500, 500, 4)
    write_two(tmp_path)
    assert (tmp_path / "validation_roc_curve.png").read_bytes() == png


def test_large_logits_keep_their_order():
    # Their probabilities are all 1.0, even in 64 bits.
    logits = np.array([[0.0, 60.0], [0.0, 50.0], [0.0, 40.0]], np.float32)
    assert roc_auc(np.array([1, 0, 0]), logits) == 1.0
    assert roc_auc(np.array([0, 1, 1]), logits) == 0.0


@pytest.mark.parametrize(
    ("labels", "logits"),
    [
        ([1, 1], [[0.0, 1.0], [0.0, 2.0]]),
        ([0, 0], [[0.0, 1.0], [0.0, 2.0]]),
        ([0, 1], [[0.0, np.nan], [0.0, 2.0]]),
        ([0, 1], [[np.inf, np.inf], [0.0, 2.0]]),
    ],
)
def test_no_area_is_null_and_warns_of_nothing(labels, logits, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert roc_auc(np.array(labels), np.array(logits, np.float32)) is None
    if np.isfinite(logits).all():
        assert write_two(tmp_path, labels=np.array(labels), logits=np.array(logits))["roc_auc"] is None
        assert not (tmp_path / "validation_roc_curve.png").exists()


def test_more_classes_have_no_area(written):
    folder, report, _ = written
    assert roc_auc(LABELS, LOGITS) is None
    # Nor where pictures of only two of them are there.
    assert roc_auc(np.array([0, 1]), LOGITS[:2]) is None
    assert "roc_auc" not in report
    assert not (folder / "test_roc_curve.png").exists()
