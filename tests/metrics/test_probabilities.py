"""Probabilities and their scores, by hand and against scikit-learn."""

import numpy as np
import pytest

from trainer.metrics.logits import predicted, softmax
from trainer.metrics.probabilities import (
    brier_score,
    least_certain,
    log_loss,
    log_odds,
    why_undefined,
    worst_mistakes,
)


def test_softmax_of_large_and_of_small_numbers():
    logits = np.array([[1000.0, 0, -1000], [0, 0, 0], [3e38, -3e38, 3e38]], np.float32)
    np.testing.assert_allclose(softmax(logits), [[1, 0, 0], [1 / 3] * 3, [0.5, 0, 0.5]])
    assert softmax(np.array([[1, 2]], np.float16)).dtype == np.float64
    assert np.isnan(softmax(np.array([[np.nan, 0], [np.inf, 0], [1, 1]]))).tolist() == [
        [True, True],
        [True, True],
        [False, False],
    ]


def test_log_odds():
    logits = 5 * np.random.default_rng(0).normal(size=(50, 4))
    probabilities = softmax(logits)
    np.testing.assert_allclose(log_odds(logits), np.log(probabilities / (1 - probabilities)), rtol=1e-9)
    # Where probabilities are 1 and 0 to the last bit.
    np.testing.assert_allclose(log_odds(np.array([[0.0, 2000.0]])), [[-2000, 2000]], rtol=1e-6, atol=2000)
    assert log_odds(np.array([[0.0, 2000.0]]))[0, 1] == 2000


def test_predictions_are_of_the_first_highest_and_never_nan():
    logits = np.array([[1.0, 1.0, 0.0], [np.nan, 0.0, 1.0], [-np.inf, -2.0, np.nan]])
    assert predicted(logits).tolist() == [0, 2, 1]
    assert why_undefined(logits) == "a logit of 2 of 3 pictures is no finite number"
    assert why_undefined(logits[:1]) == ""


def test_log_loss_by_hand():
    assert log_loss(np.array([0, 1]), np.array([[0.5, 0.5], [0.75, 0.25]])) == pytest.approx(
        (np.log(2) + np.log(4)) / 2
    )
    # A class that no picture is of; and a mistake that was said to be impossible.
    assert log_loss(np.array([0]), np.array([[0.0, 1.0, 0.0]])) == pytest.approx(-np.log(2.0**-52))


def test_brier_score_by_hand():
    labels = np.array([0, 1])
    assert brier_score(labels, np.array([[0.8, 0.2], [0.4, 0.6]])) == pytest.approx((0.2**2 + 0.4**2) / 2)
    three = np.array([[0.8, 0.1, 0.1], [0.2, 0.2, 0.6]])
    expected = (0.04 + 0.01 + 0.01 + 0.04 + 0.64 + 0.36) / 2
    assert brier_score(labels, three) == pytest.approx(expected)


def test_worst_and_least_certain():
    # Rows 1, 2, 4 and 5 are wrong; 1 and 2 are equally sure, and 4 has no probability.
    chances = np.array([[0.9, 0.1], [0.2, 0.8], [0.2, 0.8], [0.6, 0.4], [np.nan, 0.5], [0.49, 0.51]])
    logits, labels = np.log(chances), np.array([0, 0, 0, 0, 0, 0])
    wrong, confidence = predicted(logits) != labels, softmax(logits).max(axis=1)
    assert worst_mistakes(wrong, confidence, count=10) == [1, 2, 5]
    assert worst_mistakes(wrong, confidence, count=2) == [1, 2]
    assert least_certain(confidence, count=10) == [5, 3, 1, 2, 0]
    assert least_certain(confidence, count=1) == [5]
    assert worst_mistakes(wrong[:1], confidence[:1], count=3) == []
