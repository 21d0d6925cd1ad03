"""What repeats say of noise, against numbers worked out by hand and the table of Tukey's test."""

import pytest

from trainer.metrics.repeats import spread_of


def test_by_hand():
    # Deviations of 1 within each of three; q(0.95; 3, 6) is 4.339 in the tables.
    found = spread_of([[1, 2, 3], [4, 5, 6], [2, 3, 4]], maximize=True)
    assert (found.means, found.best, found.deviation) == ([2, 5, 3], 1, 1)
    assert found.least == pytest.approx(4.339 / 3**0.5, abs=1e-3)
    assert found.is_noise
    least_is_best = spread_of([[1, 2, 3], [4, 5, 6], [2, 3, 4]], maximize=False)
    assert least_is_best.best == 0


def test_a_difference_that_is_none():
    assert not spread_of([[0.90, 0.91, 0.92], [0.80, 0.81, 0.82]], maximize=True).is_noise


def test_nothing_can_be_said_of_one_recipe_or_one_seed():
    assert spread_of([[1, 2, 3]], maximize=True) is None
    assert spread_of([[1], [2]], maximize=True) is None
