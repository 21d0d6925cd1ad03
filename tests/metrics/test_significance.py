"""McNemar's exact test against p-values worked out by hand."""

import numpy as np
import pytest

from trainer.metrics.significance import mcnemar


@pytest.mark.parametrize(
    ("both", "only_a", "only_b", "neither", "p_value"),
    [
        (3, 0, 0, 2, 1.0),
        # Two tails of six coins: 2 (1 + 6) / 64.
        (10, 1, 5, 0, 14 / 64),
        (0, 5, 1, 7, 14 / 64),
        # All ten heads or all ten tails.
        (4, 10, 0, 4, 2 / 1024),
        # The middle of a symmetric distribution: everything is as extreme.
        (4, 3, 3, 4, 1.0),
    ],
)
def test_mcnemar(both, only_a, only_b, neither, p_value):
    a = np.repeat([True, True, False, False], [both, only_a, only_b, neither])
    b = np.repeat([True, False, True, False], [both, only_a, only_b, neither])
    found = mcnemar(a, b)
    assert found == (only_a, only_b, pytest.approx(p_value))
    assert (found.only_a, found.only_b, found.p_value) == tuple(found)


def test_unpaired_pictures_are_refused():
    with pytest.raises(ValueError, match="2 and 3 pictures"):
        mcnemar(np.array([True, False]), np.array([True, False, True]))
