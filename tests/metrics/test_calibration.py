"""Calibration and temperature, against cases made by hand."""

import warnings

import numpy as np
import pytest

from trainer.metrics.calibration import (
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    apply,
    calibration_bins,
    expected_calibration_error,
    fit_temperature,
    is_at_bound,
)
from trainer.metrics.logits import softmax
from trainer.metrics.probabilities import log_loss


def test_the_error_by_hand():
    # Right, wrong; wrong, right: 0.55 and 0.6, a bin's upper edge, are both in (8/15, 9/15].
    probabilities = np.array([[0.9, 0.1], [0.1, 0.9], [0.45, 0.55], [0.6, 0.4]])
    bins = calibration_bins(np.array([0, 0, 0, 0]), probabilities)
    assert len(bins) == 15
    assert {i: b.count for i, b in enumerate(bins) if b.count} == {8: 2, 13: 2}
    assert (bins[8].confidence, bins[8].accuracy) == pytest.approx((0.575, 0.5))
    assert (bins[8].low, bins[8].high) == pytest.approx((8 / 15, 9 / 15))
    assert (bins[0].confidence, bins[0].accuracy) == (None, None)
    assert expected_calibration_error(bins) == pytest.approx((2 * 0.075 + 2 * 0.4) / 4)


def test_probabilities_that_hold_have_no_error():
    # Of four at 0.75 three are right; of two at 0.5 one.
    probabilities = np.array([[0.75, 0.25]] * 4 + [[0.5, 0.5]] * 2)
    bins = calibration_bins(np.array([0, 0, 0, 1, 0, 1]), probabilities, num_bins=4)
    assert [b.count for b in bins] == [0, 2, 4, 0]
    assert expected_calibration_error(bins) == pytest.approx(0.0)


def test_being_sure_of_everything_is_off_by_the_share_of_mistakes():
    bins = calibration_bins(np.array([0, 1, 0, 1]), np.array([[1.0, 0.0]] * 4))
    assert [b.count for b in bins] == [0] * 14 + [4]
    assert expected_calibration_error(bins) == pytest.approx(0.5)


@pytest.mark.parametrize("factor", [0.2, 1.0, 3.0, 15.0])
def test_the_temperature_is_what_the_logits_were_scaled_by(factor):
    # Odds of 3 : 1, and 3 of 4 are of the class: the probabilities hold.
    logits = np.log(np.array([[0.0 + 1, 3.0]] * 4)) * factor
    labels = np.array([1, 1, 1, 0])
    temperature = fit_temperature(labels, logits)
    assert temperature == pytest.approx(factor)
    assert not is_at_bound(temperature)
    np.testing.assert_allclose(softmax(apply(logits, temperature=temperature))[:, 1], 0.75)


def test_no_other_temperature_is_better():
    draw = np.random.default_rng(1)
    logits = 4 * draw.normal(size=(500, 6)).astype(np.float32)
    labels = np.array([draw.choice(6, p=row) for row in softmax(logits / 2)])
    best = fit_temperature(labels, logits)
    assert best == pytest.approx(2, rel=0.2)
    losses = [log_loss(labels, softmax(apply(logits, temperature=f * best))) for f in (0.98, 1.0, 1.02)]
    assert losses[1] < min(losses[0], losses[2])
    assert fit_temperature(labels, 3 * logits) == pytest.approx(3 * best)


@pytest.mark.parametrize(
    ("labels", "logits", "expected"),
    [
        # All right, by however much: the lower the better.
        ([0, 1], [[1.0, 0.0], [0.0, 1e30]], MIN_TEMPERATURE),
        ([0], [[1.0, 0.0]], MIN_TEMPERATURE),
        # All wrong.
        ([1, 0], [[1.0, 0.0], [0.0, 1e30]], MAX_TEMPERATURE),
        # Nothing to go by.
        ([0, 1], [[2.0, 2.0], [0.0, 0.0]], 1.0),
        ([0, 1], [[np.nan, 2.0], [0.0, np.inf]], 1.0),
        ([], np.zeros([0, 2]), 1.0),
        # One of two is not finite.
        ([0, 0], [[1.0, 0.0], [0.0, -np.inf]], MIN_TEMPERATURE),
    ],
)
def test_what_does_not_settle_a_temperature(labels, logits, expected):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = fit_temperature(np.array(labels, int), np.array(logits, np.float32))
    assert found == expected
    assert is_at_bound(found) == (expected != 1.0)
