"""Every part its share of every class: counts known by hand, and what holds of any."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.data.strata import stratify, stratify_labels

TRAIN_TEST_VALIDATION = (0, 2, 1)


def divided(counts, sizes, *, seed=0):
    """Returns how many of each class [K] are in each part, [K, parts]."""
    groups = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    parts = stratify(groups, sizes, order=TRAIN_TEST_VALIDATION[: len(sizes)] if len(sizes) == 3 else (0, 1))
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(len(groups)))
    assert all(np.array_equal(part, np.sort(part)) and part.dtype == np.int64 for part in parts)
    return np.stack([np.bincount(groups[part], minlength=len(counts)) for part in parts], axis=1)


@pytest.mark.parametrize(
    ("counts", "sizes", "expected"),
    [
        ([10, 20, 30], [48, 6, 6], [[8, 1, 1], [16, 2, 2], [24, 3, 3]]),
        # What is rare is in train, and then in test rather than in validation.
        ([300, 3], [242, 31, 30], [[240, 31, 29], [2, 0, 1]]),
        ([10, 2], [9, 1, 2], [[8, 1, 1], [1, 0, 1]]),
        # What is over goes to the largest remainder: 5.15, 5.67 and 6.18 are 5, 6 and 6.
        ([10, 11, 12], [17, 16], [[5, 5], [6, 5], [6, 6]]),
        # Of 5.6 in train and 239.4 the larger remainder is the small class's, which keeps one for each part.
        ([300, 7], [245, 31, 31], [[240, 30, 30], [5, 1, 1]]),
        # A single picture is one to learn from, even where larger classes give way.
        ([1, 1, 1, 1, 40], [35, 4, 5], [[1, 0, 0]] * 4 + [[31, 4, 5]]),
        ([1, 1, 1, 9], [6, 6], [[1, 0], [1, 0], [1, 0], [3, 6]]),
    ],
)
def test_counts_known_by_hand(counts, sizes, expected):
    assert divided(counts, sizes).tolist() == expected


def test_a_thousand_classes_of_three_pictures_are_divided_with_any_seed():
    for seed in range(20):
        found = divided([3] * 1000, [2400, 300, 300], seed=seed)
        assert found.sum(axis=0).tolist() == [2400, 300, 300]
        assert found[:, 0].min() == 2
        assert found[:, 1:].max() == 1


def test_ties_go_by_the_order_that_the_examples_are_in_and_not_by_the_number_of_a_class():
    sole = [np.flatnonzero(divided([3] * 100, [240, 30, 30], seed=seed)[:, 2]) for seed in (0, 1)]
    assert sole[0].tolist() != sole[1].tolist()
    assert all(20 < np.median(classes) < 80 for classes in sole)


@settings(max_examples=200, deadline=None)
@given(
    counts=st.lists(st.integers(1, 80), min_size=1, max_size=12),
    share=st.floats(0.3, 0.95),
    seed=st.integers(0, 1000),
)
def test_of_any_classes_each_part_has_its_share_to_within_a_picture_or_two(counts, share, seed):
    total = sum(counts)
    train = int(total * share)
    test = (total - train) // 2
    sizes = [train, total - train - test, test]
    found = divided(counts, sizes, seed=seed)
    assert found.sum(axis=0).tolist() == sizes
    assert found.sum(axis=1).tolist() == counts
    if train >= len(counts):
        assert found[:, 0].min() >= 1
    ideal = np.outer(counts, sizes) / total
    # Of a class that would be missing in train, and of no other, more may be taken.
    if ideal[:, 0].min() >= 1:
        assert np.abs(found[:, 0] - ideal[:, 0]).max() < 1
        assert np.abs(found - ideal).max() < 2


def test_the_same_examples_are_always_divided_alike():
    groups = np.random.default_rng(3).integers(0, 9, 500)
    one, two = (stratify(groups, [400, 50, 50], order=(0, 2, 1)) for _ in range(2))
    assert all(map(np.array_equal, one, two))


def test_nothing_and_parts_of_nothing():
    assert [part.tolist() for part in stratify(np.array([5, 5]), [2, 0, 0], order=(0, 2, 1))] == [
        [0, 1],
        [],
        [],
    ]
    assert [part.tolist() for part in stratify(np.empty(0, np.int64), [0, 0], order=(0, 1))] == [[], []]


def of_labels(seed, count, shares):
    return np.random.default_rng(seed).random([count, len(shares)]) < shares


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("sizes", [[160, 20, 20], [66, 67, 67], [100, 100], [198, 1, 1]])
def test_several_labels_are_spread_as_they_are_in_all(seed, sizes):
    labels = of_labels(seed, 200, [0.5, 0.3, 0.1, 0.05])
    parts = stratify_labels(labels, sizes, order=[0, *reversed(range(1, len(sizes)))])
    assert [len(part) for part in parts] == sizes
    assert sorted(np.concatenate(parts).tolist()) == list(range(200))
    for part, size in zip(parts, sizes, strict=True):
        expected = labels.sum(axis=0) * size / 200
        assert np.abs(labels[part].sum(axis=0) - expected).max() <= 2
    again = stratify_labels(labels, sizes, order=[0, *reversed(range(1, len(sizes)))])
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))


def test_several_labels_are_spread_better_than_by_chance():
    def distance(parts):
        return sum(np.abs(labels[part].mean(axis=0) - labels.mean(axis=0)).sum() for part in parts)

    for seed in range(5):
        labels = of_labels(seed, 300, np.linspace(0.02, 0.4, 12))
        dealt = stratify_labels(labels, [240, 30, 30], order=[0, 2, 1])
        shuffled = np.random.default_rng(seed).permutation(300)
        assert distance(dealt) < 0.5 * distance(np.split(shuffled, [240, 270]))


def test_a_rare_label_goes_where_it_is_needed_first():
    # Three of the first label: one in each part. One of the second: to train. Nobody has the third.
    labels = np.zeros([30, 3], bool)
    labels[[3, 4, 5], 0] = labels[7, 1] = True
    train, validation, test = stratify_labels(labels, [24, 3, 3], order=[0, 2, 1])
    assert [labels[part, 0].sum() for part in (train, validation, test)] == [1, 1, 1]
    assert labels[train, 1].sum() == 1
    # Two: train has one, and the part that the score is of.
    labels[5, 0] = False
    train, validation, test = stratify_labels(labels, [24, 3, 3], order=[0, 2, 1])
    assert [labels[part, 0].sum() for part in (train, validation, test)] == [1, 0, 1]


def test_examples_without_any_label_fill_what_is_left():
    parts = stratify_labels(np.zeros([7, 2], bool), [5, 1, 1], order=[0, 2, 1])
    assert [len(part) for part in parts] == [5, 1, 1]
    assert [len(part) for part in stratify_labels(np.zeros([0, 2], bool), [0, 0], order=[0, 1])] == [0, 0]
