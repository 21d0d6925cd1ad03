"""McNemar's exact test against p-values worked out by hand, and the bootstrap against plain resampling."""

import numpy as np
import pytest

from trainer.metrics.several import average_precisions, mean_of_known
from trainer.metrics.significance import mcnemar, paired_bootstrap


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


def classifiers(*, count=60, better=1.5):
    """Returns labels [N, 3], and what two classifiers say, the first of which is better by so much."""
    rng = np.random.default_rng(3)
    labels = (rng.random([count, 3]) < [0.5, 0.3, 0.1]).astype(float)
    noise = rng.normal(size=[2, *labels.shape]).round(1)
    return labels, noise[0] + better * labels, noise[1]


def test_the_bootstrap_is_that_of_resampled_pictures():
    labels, first, second = classifiers()
    found = paired_bootstrap(labels, first, second, count=300)
    draw, differences = np.random.default_rng(0), []
    for times in draw.multinomial(60, np.full(60, 1 / 60), size=300):
        rows = np.repeat(np.arange(60), times)
        scores = [mean_of_known(average_precisions(labels[rows], of[rows])) for of in (first, second)]
        differences.append(scores[0] - scores[1])
    assert [found.low, found.high] == pytest.approx(np.quantile(differences, [0.025, 0.975]))
    whole = [mean_of_known(average_precisions(labels, of)) for of in (first, second)]
    assert found.difference == pytest.approx(whole[0] - whole[1])
    assert found.p_value == pytest.approx(2 * (1 + sum(d <= 0 for d in differences)) / 301)


def test_the_same_twice_does_not_differ_and_the_order_only_turns_it():
    labels, first, second = classifiers(better=0.4)
    same = paired_bootstrap(labels, first, first, count=50)
    assert same == (0.0, 0.0, 0.0, 1.0)
    one, other = paired_bootstrap(labels, first, second), paired_bootstrap(labels, second, first)
    assert one.difference == -other.difference
    assert (one.low, one.p_value) == (pytest.approx(-other.high), other.p_value)


def test_pictures_must_be_the_same_and_have_a_label():
    labels, first, second = classifiers()
    with pytest.raises(ValueError, match="the same pictures"):
        paired_bootstrap(labels, first[1:], second)
    with pytest.raises(ValueError, match="no picture has a label"):
        paired_bootstrap(np.zeros_like(labels), first, second)
