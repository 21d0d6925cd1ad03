"""Wilson's interval against published ones."""

import pytest

from trainer.metrics.intervals import wilson_interval


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
