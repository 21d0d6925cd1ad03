"""What twice the pictures would buy, from curves whose course is known."""

import numpy as np
import pytest

from trainer.metrics.sample_size import outlook

SIZES = [100, 200, 400, 800, 1600]


def curve(errors, *, num_scored=20_000, draws=3):
    """Arrays as `outlook` takes them, in which the first pictures are the wrong ones."""
    return [
        np.tile(np.arange(num_scored) >= round(error * num_scored), (1 if i == 4 else draws, 1))
        for i, error in enumerate(errors)
    ]


def test_a_power_law_goes_on_as_it_went():
    # 0.4 at 100 pictures, and half of it with four times as many: 0.1 at 1,600 and 0.1 / sqrt(2) at 3,200.
    found = outlook(SIZES, curve([0.4, 0.2828, 0.2, 0.1414, 0.1]))
    assert found.num_train == 3200
    assert found.gain == pytest.approx(0.1 - 0.1 / 2**0.5, abs=0.003)
    assert found.low <= 0.1 - 0.1 / 2**0.5 <= found.high
    assert found.high - found.low < 0.015


def test_a_floor_ends_it_and_the_interval_reaches_down_to_where_it_does():
    # 0.1 and what falls by half each time: from 0.1125 to 0.10625.
    found = outlook(SIZES, curve([0.3, 0.2, 0.15, 0.125, 0.1125]))
    assert found.low <= 0.00625 <= found.high
    assert found.low == pytest.approx(0.00625, abs=0.003)


def test_where_nothing_helped_nothing_is_promised():
    found = outlook(SIZES, curve([0.2] * 5))
    assert found.gain == pytest.approx(0, abs=0.002)
    assert found.low == pytest.approx(0, abs=1e-3)
    # An error that rises is no reason to expect that it rises further: more pictures are worth nothing.
    assert outlook(SIZES, curve([0.1, 0.12, 0.14, 0.16, 0.2])).high == pytest.approx(0, abs=1e-3)


def test_few_scored_pictures_make_a_wide_interval():
    wide, narrow = (
        outlook(SIZES, curve([0.4, 0.28, 0.2, 0.14, 0.1], num_scored=count)) for count in (50, 20_000)
    )
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_the_same_curve_has_the_same_outlook():
    assert outlook(SIZES, curve([0.4, 0.3, 0.2, 0.15, 0.1])) == outlook(
        SIZES, curve([0.4, 0.3, 0.2, 0.15, 0.1])
    )
