"""How often rare classes are seen: counts by hand, the same again, and no picture out of its turn."""

import numpy as np
import pytest

from trainer.data.pipeline import OrderedBatches
from trainer.data.sampling import assumed_shares, chances
from trainer.tasks import make_task

# 60, 30 and 10 of 100; positions 100 to 199 of a source are others'.
LABELS = np.repeat([0, 1, 2], [60, 30, 10])
TRAIN = np.arange(100)


def batches(text, *, seed=0, size=8):
    of_train = chances(text, LABELS, task=make_task("single_label"), num_classes=3)
    of_all = None if of_train is None else np.concatenate([of_train, np.zeros(100)])
    return OrderedBatches(batch_size=size, seed=seed, chances=of_all)


def epoch(made, number, *, size=8):
    steps = -(-100 // size)
    return np.concatenate([made.positions(TRAIN, step=number * steps + i) for i in range(steps)])


@pytest.mark.parametrize(
    ("text", "shares"),
    # By the roots of 60, 30 and 10: 7.746, 5.477 and 3.162 of 16.385.
    [("balanced", [100 / 3] * 3), ("sqrt", [47.27, 33.43, 19.30])],
)
def test_classes_have_their_share_of_every_epoch(text, shares):
    made = batches(text)
    for number in range(4):
        seen = np.bincount(LABELS[epoch(made, number)], minlength=3)
        assert seen.sum() == 100
        assert np.abs(seen - shares).max() < 1.001


@pytest.mark.slow
def test_over_epochs_each_picture_of_a_class_is_seen_as_often():
    made = batches("balanced")
    seen = sum(np.bincount(epoch(made, number), minlength=100) for number in range(30))
    # 16.7, 33.3 and 100 times in 30 epochs; never more than once more than expected in each.
    for label, times in ((0, 16.7), (1, 33.3), (2, 100.0)):
        of_class = seen[label == LABELS]
        assert of_class.mean() == pytest.approx(times, rel=0.02)
        assert of_class.min() > 0.4 * times


def test_an_epoch_is_a_function_of_seed_and_number():
    one, other = batches("balanced"), batches("balanced", seed=1)
    assert epoch(one, 3).tolist() == epoch(batches("balanced"), 3).tolist()
    assert epoch(one, 3).tolist() != epoch(one, 4).tolist()
    assert epoch(one, 3).tolist() != epoch(other, 3).tolist()


def test_naturally_each_is_seen_once():
    assert chances("natural", LABELS, task=make_task("single_label"), num_classes=3) is None
    assert sorted(epoch(batches("natural"), 2).tolist()) == TRAIN.tolist()


def test_of_several_labels_the_rarest_counts():
    labels = np.array([[1, 0], [1, 0], [1, 1], [1, 0], [0, 0]], np.float32)
    task = make_task("multi_label")
    # Four have the first label, one the second; who has none is as one of the first.
    assert chances("balanced", labels, task=task, num_classes=2).tolist() == [0.25, 0.25, 1, 0.25, 0.25]
    found = chances("balanced", labels, task=task, num_classes=2)
    shares = assumed_shares(labels, found, task=task, class_names=["a", "b"])
    # 1.75 of 2 for a, 1 of 2 for b.
    assert shares["a"] == {"train": pytest.approx(0.8), "assumed": pytest.approx(0.875)}
    assert shares["b"] == {"train": pytest.approx(0.2), "assumed": pytest.approx(0.5)}
