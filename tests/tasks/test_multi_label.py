"""What several labels an example mean, by hand."""

import numpy as np
import pytest
import tensorflow as tf

from trainer.data.sources import label_tuples
from trainer.loop.losses import make_loss
from trainer.tasks import make_task
from trainer.tasks.multi_label import NONE
from trainer.values import UsageError

TASK = make_task("multi_label")
NAMES = ("sea", "sun", "tree")
LABELS = np.array([[1, 0, 1], [0, 0, 0], [0, 1, 0]], np.float32)
LOGITS = np.array([[2.0, -1.0, 0.5], [-3.0, 0.1, -2.0], [0.0, 4.0, -0.5]], np.float32)


def test_tuples_become_k_hot():
    assert TASK.encoded(label_tuples([[0, 2], [], [1]]), 3).tolist() == LABELS.tolist()
    # Of a source with one class each, too.
    assert TASK.encoded(np.array([2, 0]), 3).tolist() == [[0, 0, 1], [1, 0, 0]]


def test_labels_in_words():
    assert [TASK.label_words(row, NAMES) for row in LABELS] == ["sea, tree", NONE, "sun"]
    assert TASK.class_counts(LABELS, NAMES) == {"sea": 1, "sun": 1, "tree": 1}
    assert TASK.renumbered(LABELS[:, :2], np.array([2, 0]), 4).tolist() == [
        [0, 0, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0],
    ]  # fmt: skip
    groups = TASK.groups(np.concatenate([LABELS, LABELS[:1]]))
    assert groups[0] == groups[3]
    assert len(set(groups.tolist())) == 3


def test_decisions_are_the_same_everywhere():
    task = TASK.with_thresholds((0.5, 0.6, 0.05))
    chances = task.probabilities(LOGITS)
    assert chances == pytest.approx(1 / (1 + np.exp(-LOGITS.astype(float))))
    said = [[1, 0, 1], [0, 0, 1], [1, 1, 1]]
    assert task.decisions(chances).tolist() == said
    assert task.decide(tf.constant(chances)).numpy().tolist() == said
    answers = task.answers(tf.constant(chances, tf.float32), tf.constant(NAMES))
    assert answers["class_ids"].numpy().tolist() == said
    words = [name.decode() for name in answers["class_names"].numpy()]
    assert words == ["sea, tree", "tree", "sea, sun, tree"]
    # Without thresholds of its own it is 0.5, and a picture may have none.
    answers = TASK.answers(tf.constant(chances - 0.5, tf.float32), tf.constant(NAMES))
    assert [name.decode() for name in answers["class_names"].numpy()] == [NONE] * 3
    assert make_task("multi_label(0.9)").decisions(chances).tolist() == [[0, 0, 0], [0, 0, 0], [0, 1, 0]]


def test_what_is_shown_beside_a_prediction_is_its_least_certain_label():
    [chances] = TASK.probabilities(LOGITS[:1])
    words, shown = TASK.told(np.array([1, 0, 1]), chances, NAMES)
    # tree at a logit of 0.5 is less certain than sea at 2, or than no sun at -1.
    assert (words, shown) == ("sea, tree", pytest.approx(1 / (1 + np.exp(-0.5))))


def test_all_labels_must_be_right():
    predictions = np.array([[1, 0, 1], [0, 1, 0], [0, 1, 0]], np.float32)
    assert TASK.right(predictions, LABELS).tolist() == [True, False, True]
    assert TASK.is_right(tf.constant(LOGITS), tf.constant(LABELS)).numpy().tolist() == [1, 0, 0]


def cross_entropies(targets):
    chances = 1 / (1 + np.exp(-LOGITS.astype(float)))
    return -(targets * np.log(chances) + (1 - targets) * np.log(1 - chances)).sum(axis=1)


def test_losses_by_hand():
    logits, labels = tf.constant(LOGITS), tf.constant(LABELS)
    plain = make_loss("cross_entropy", num_classes=3, task=TASK)
    assert plain(logits, labels, None).numpy() == pytest.approx(cross_entropies(LABELS), rel=1e-5)
    assert TASK.means(LABELS, LOGITS)["loss"] == pytest.approx(cross_entropies(LABELS).mean())
    smoothed = make_loss("cross_entropy", num_classes=3, label_smoothing=0.2, task=TASK)
    wanted = cross_entropies(0.8 * LABELS + 0.1)
    assert smoothed(logits, labels, None).numpy() == pytest.approx(wanted, rel=1e-5)
    weighted = make_loss(
        "cross_entropy", num_classes=3, class_weights=np.array([2, 5, 4], np.float32), task=TASK
    )
    # The mean of sea's and tree's; 1 of what has no label; sun's.
    assert weighted(logits, labels, None).numpy() == pytest.approx(
        cross_entropies(LABELS) * [3, 1, 5], rel=1e-5
    )


@pytest.mark.parametrize("targets", [None, np.full([3, 3], 0.3, np.float32)])
def test_asymmetric_loss_by_hand(targets):
    logits, labels = tf.constant(LOGITS), tf.constant(LABELS)
    wanted = LABELS if targets is None else targets
    given = None if targets is None else tf.constant(targets)
    loss = make_loss("asymmetric(4,1,0.05)", num_classes=3, task=TASK)
    p = 1 / (1 + np.exp(-LOGITS.astype(float)))
    q = np.maximum(p - 0.05, 0)
    by_hand = -(wanted * (1 - p) * np.log(p) + (1 - wanted) * q**4 * np.log(1 - q)).sum(axis=1)
    assert loss(logits, labels, given).numpy() == pytest.approx(by_hand, rel=1e-5)
    same = make_loss("asymmetric(0,0,0)", num_classes=3, task=TASK)
    assert same(logits, labels, given).numpy() == pytest.approx(cross_entropies(wanted), rel=1e-5)


def test_asymmetric_gradients_are_finite_where_the_network_is_sure():
    logits = tf.constant([[90.0, -90.0, 0.0]])
    loss = make_loss("asymmetric(0.5,0.5,0.05)", num_classes=3, task=TASK)
    for labels in ([[1.0, 0.0, 1.0]], [[0.0, 1.0, 0.0]]):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            total = loss(logits, tf.constant(labels), None)
        assert np.isfinite(tape.gradient(total, logits).numpy()).all()
        assert np.isfinite(total.numpy()).all()


@pytest.mark.parametrize(
    ("text", "task", "message"),
    [
        ("asymmetric(4)", "single_label", "it is for any number of labels an example"),
        ("focal(2)", "multi_label", "it is for examples of one class each"),
    ],
)
def test_losses_of_the_other_kind_are_refused(text, task, message):
    with pytest.raises(UsageError, match=message):
        make_loss(text, num_classes=3, task=make_task(task))
