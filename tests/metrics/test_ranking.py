"""Areas under curves and top-k accuracies, by hand and against scikit-learn."""

import warnings

import numpy as np
import pytest
from sklearn import metrics as sk_metrics

from trainer.metrics.logits import softmax
from trainer.metrics.ranking import class_roc_aucs, roc_auc, roc_curve, top_k_accuracies

# Logits [0, z] of a single one; by z: 1 (class 0), 2 (class 1), 2 (class 0), 3 (class 1), -1 (class 0).
TWO_LOGITS = np.stack([np.zeros(5, np.float32), np.array([1, 2, 2, 3, -1], np.float32)], axis=1)
TWO_LABELS = np.array([0, 1, 0, 1, 0])


def test_the_area_under_the_curve_by_hand():
    # Six pairs of one of each class: five in the right order, one tie, which counts half.
    assert roc_auc(TWO_LABELS, TWO_LOGITS) == pytest.approx(5.5 / 6)
    # Only the difference of the logits counts.
    shifted = TWO_LOGITS + np.arange(5, dtype=np.float32)[:, None]
    assert roc_auc(TWO_LABELS, shifted) == pytest.approx(5.5 / 6)
    # Whichever of the two is looked for.
    assert class_roc_aucs(TWO_LABELS, TWO_LOGITS) == pytest.approx([5.5 / 6] * 2)


def test_the_area_is_that_of_the_curve():
    for positive in (0, 1):
        false_rates, true_rates = roc_curve(TWO_LABELS, TWO_LOGITS, positive=positive)
        assert sk_metrics.auc(false_rates, true_rates) == pytest.approx(5.5 / 6)


def test_large_logits_keep_their_order():
    # Their probabilities are all 1.0, even in 64 bits.
    logits = np.array([[0.0, 60.0], [0.0, 50.0], [0.0, 40.0]], np.float32)
    assert roc_auc(np.array([1, 0, 0]), logits) == 1.0
    assert roc_auc(np.array([0, 1, 1]), logits) == 0.0
    three = np.concatenate([logits, np.full([3, 1], -1e30, np.float32)], axis=1)
    assert class_roc_aucs(np.array([1, 0, 0]), three)[1] == 1.0
    # So do those of a class that is never the highest: the logarithms of its probabilities are -60, -50, -40.
    assert class_roc_aucs(np.array([1, 1, 0]), three)[0] == 1.0


@pytest.mark.parametrize(
    ("labels", "logits"),
    [
        ([1, 1], [[0.0, 1.0], [0.0, 2.0]]),
        ([0, 0], [[0.0, 1.0], [0.0, 2.0]]),
        ([0, 1], [[0.0, np.nan], [0.0, 2.0]]),
        ([0, 1], [[np.inf, np.inf], [0.0, 2.0]]),
    ],
)
def test_no_area_is_none_and_warns_of_nothing(labels, logits):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert roc_auc(np.array(labels), np.array(logits, np.float32)) is None


def test_areas_of_many_classes_are_those_of_scikit_learn():
    draw = np.random.default_rng(0)
    labels, logits = draw.integers(0, 5, 300), draw.normal(size=(300, 5)).astype(np.float32)
    logits[np.arange(300), labels] += 1
    found = class_roc_aucs(labels, logits)
    for k in range(5):
        expected = sk_metrics.roc_auc_score(labels == k, softmax(logits)[:, k])
        assert found[k] == pytest.approx(expected, abs=1e-12)
    macro = sk_metrics.roc_auc_score(labels, softmax(logits), multi_class="ovr")
    assert np.mean(found) == pytest.approx(macro)
    assert roc_auc(labels, logits) is None


def test_only_classes_without_pictures_have_no_area():
    logits = np.array([[2, 1, 0], [1, 2, 0], [3, 0, 1]], np.float32)
    assert class_roc_aucs(np.array([0, 1, 0]), logits) == [1.0, 1.0, None]


def test_top_k_by_hand():
    logits = np.array([[5, 4, 3, 2], [5, 4, 3, 2], [5, 4, 3, 2], [1, 1, 1, 1]], np.float32)
    # First, second, fourth; and of equal ones the first class is the highest, as in the accuracy.
    labels = np.array([0, 1, 3, 0])
    assert top_k_accuracies(labels, logits) == {1: 2 / 4, 2: 3 / 4, 3: 3 / 4}
    assert top_k_accuracies(np.array([0, 1]), logits[:2, :2]) == {1: 1 / 2}
    assert list(top_k_accuracies(labels, np.zeros([4, 6]))) == [1, 2, 3, 5]
    assert top_k_accuracies(np.array([1]), np.array([[np.nan, 0.0]])) == {1: 1.0}
