"""What one class an example means, by hand."""

import numpy as np
import pytest
import tensorflow as tf

from trainer.loop.losses import make_loss
from trainer.tasks import SINGLE_LABEL, OneClass, make_task
from trainer.tasks.single_label import MOST_CLASS_SCALARS, SingleLabel
from trainer.values import UsageError

NAMES = ("a", "b", "c")
# Probabilities 1/6, 1/2, 1/3 and 3/5, 1/5, 1/5.
LOGITS = np.log(np.array([[1, 3, 2], [3, 1, 1]], np.float32))
SHARES = [[1 / 6, 1 / 2, 1 / 3], [3 / 5, 1 / 5, 1 / 5]]
LABELS = np.array([2, 0])


def test_there_is_one_such_task():
    assert type(make_task("single_label")) is type(SINGLE_LABEL)
    with pytest.raises(
        UsageError,
        match=r"^--task=single_labels is not one of single_label, multi_label: is it single_label\?",
    ):
        make_task("single_labels")
    with pytest.raises(UsageError, match=r"--task=single_label\(2\): single_label takes no arguments"):
        make_task("single_label(2)")


def test_labels_are_numbers_of_classes():
    assert SINGLE_LABEL.label_spec(4, 3) == tf.TensorSpec([4], tf.int64)
    assert [SINGLE_LABEL.label_words(label, NAMES) for label in LABELS] == ["c", "a"]
    assert SINGLE_LABEL.class_counts(np.array([2, 0, 2]), NAMES) == {"a": 1, "b": 0, "c": 2}
    assert SINGLE_LABEL.classes_in(np.array([2, 0, 2])) == {0, 2}
    assert SINGLE_LABEL.groups(LABELS).tolist() == [2, 0]
    assert SINGLE_LABEL.renumbered(LABELS, np.array([1, 2, 0]), 3).tolist() == [0, 1]
    targets = SINGLE_LABEL.targets(tf.constant(LABELS), 3)
    assert targets.numpy().tolist() == [[0, 0, 1], [1, 0, 0]]
    np.testing.assert_allclose(SINGLE_LABEL.smoothed(targets, 0.3), [[0.1, 0.1, 0.8], [0.8, 0.1, 0.1]])


def test_weights_are_of_the_label_or_the_mean_of_the_targets():
    weights = tf.constant([1.0, 2.0, 4.0])
    assert SINGLE_LABEL.weights(tf.constant(LABELS), None, weights).numpy().tolist() == [4, 1]
    halves = tf.constant([[0.5, 0.5, 0], [0, 0.5, 0.5]])
    assert SINGLE_LABEL.weights(tf.constant(LABELS), halves, weights).numpy().tolist() == [1.5, 3]


def test_a_head_has_a_logit_for_each_class_or_one_for_two():
    assert SINGLE_LABEL.num_logits(3, asked="per_class") == 3
    assert SINGLE_LABEL.num_logits(2, asked="one") == 1
    with pytest.raises(UsageError, match="--logits=one tells two classes apart, and there are 3"):
        SINGLE_LABEL.num_logits(3, asked="one")
    wide = SINGLE_LABEL.logits(tf.constant([[2.0], [-1.0]]))
    assert wide.numpy().tolist() == [[0, 2], [0, -1]]
    # 1 / (1 + e^-2), the sigmoid of the one logit.
    np.testing.assert_allclose(SINGLE_LABEL.activation(wide)[0, 1], 1 / (1 + np.exp(-2)), rtol=1e-6)
    assert SINGLE_LABEL.logits(tf.constant(LOGITS)).numpy().tolist() == LOGITS.tolist()


def test_probabilities_in_the_step_and_after_it():
    np.testing.assert_allclose(SINGLE_LABEL.activation(tf.constant(LOGITS)), SHARES, rtol=1e-6)
    np.testing.assert_allclose(SINGLE_LABEL.log_probabilities(tf.constant(LOGITS)), np.log(SHARES), rtol=1e-6)
    found = SINGLE_LABEL.probabilities(LOGITS)
    np.testing.assert_allclose(found, SHARES, rtol=1e-6)
    assert found.dtype == np.float64


def test_the_highest_is_predicted_and_the_first_of_equal_ones():
    shares = np.array([*SHARES, [0.4, 0.4, 0.2]])
    assert SINGLE_LABEL.decisions(shares).tolist() == [1, 0, 0]
    assert SINGLE_LABEL.decide(tf.constant(shares)).numpy().tolist() == [1, 0, 0]
    assert SINGLE_LABEL.predicted(np.array([[0, np.nan, 1], [1, 1, 0]])).tolist() == [2, 0]
    # Their probabilities are equal in 64 bits, the logits are not.
    assert SINGLE_LABEL.predicted(np.array([[0, 1e-20]])).tolist() == [1]
    right = SINGLE_LABEL.is_right(tf.constant(LOGITS), tf.constant(LABELS, tf.int64))
    assert (right.numpy().tolist(), right.dtype) == ([0, 1], tf.float32)
    assert SINGLE_LABEL.right(np.array([1, 0]), LABELS).tolist() == [False, True]
    assert SINGLE_LABEL.told(1, np.array(SHARES[0]), NAMES) == ("b", 1 / 2)
    assert SINGLE_LABEL.explained_class(np.array(SHARES[0])) == 1
    given = SINGLE_LABEL.answers(tf.constant(SHARES), tf.constant(NAMES))
    assert given["class_ids"].numpy().tolist() == [1, 0]
    assert given["class_names"].numpy().tolist() == [b"b", b"a"]


def test_what_is_explained_is_the_difference_of_two_and_else_the_logit():
    assert SINGLE_LABEL.class_scores(tf.constant([[1.0, 4.0]])).numpy().tolist() == [[-3.0, 3.0]]
    assert SINGLE_LABEL.class_scores(tf.constant([[1.0, 4.0, 2.0]])).numpy().tolist() == [[1.0, 4.0, 2.0]]


def test_the_loss_is_minus_the_logarithm_of_the_labels_probability():
    expected = -np.log([1 / 3, 3 / 5])
    loss = SINGLE_LABEL.cross_entropy()(tf.constant(LOGITS), tf.constant(LABELS), None)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    found = SINGLE_LABEL.means(LABELS, LOGITS)
    assert found == {"loss": pytest.approx(expected.mean(), rel=1e-6), "accuracy": 0.5}
    # With 0.3 spread over three: 0.7 of the loss, and 0.3 of the mean of all three.
    smooth = SINGLE_LABEL.cross_entropy(smoothing=0.3)(tf.constant(LOGITS), tf.constant(LABELS), None)
    even = -np.log(SHARES).mean(axis=1)
    np.testing.assert_allclose(smooth, 0.7 * expected + 0.3 * even, rtol=1e-6)


def test_numbers_of_a_split():
    labels, logits = np.array([0, 0, 1]), np.array([[2, 0], [0, 1], [0, 3]], np.float32)
    assert SINGLE_LABEL.split_metrics(labels, logits, ("a", "b")) == {
        "auc": 1.0, "precision/a": 1.0, "recall/a": 0.5, "precision/b": 0.5, "recall/b": 1.0,
    }  # fmt: skip
    # Of three classes there is no one curve, and of a class without an example no recall.
    found = SINGLE_LABEL.split_metrics(LABELS, LOGITS, NAMES)
    assert found == {"precision/a": 1.0, "recall/a": 1.0, "precision/c": 0.0, "recall/c": 0.0}
    many = [f"class {k}" for k in range(MOST_CLASS_SCALARS + 1)]
    assert SINGLE_LABEL.split_metrics(LABELS, np.zeros([2, len(many)], np.float32), many) == {}


def test_the_area_under_the_curve_needs_both_of_two_classes():
    SINGLE_LABEL.check_watched("auc", {"a": 1, "b": 2})
    SINGLE_LABEL.check_watched("accuracy", {"a": 1, "b": 0})
    with pytest.raises(UsageError, match=r"^ is for two classes, and there are 3$"):
        SINGLE_LABEL.check_watched("auc", {"a": 1, "b": 2, "c": 1})
    with pytest.raises(UsageError, match=r"^: validation has no example of class 'b'"):
        SINGLE_LABEL.check_watched("auc", {"a": 1, "b": 0})


def test_a_temperature_of_the_validation_split():
    # Of three examples alike two are right: best where the probability of that class is 2/3, with
    # logits 2 and 0 divided by 2 / log(2).
    logits = np.array([[2, 0]] * 3, np.float32)
    found = SINGLE_LABEL.fit_temperature(np.array([0, 0, 1]), logits)
    assert found == pytest.approx(2 / np.log(2), rel=1e-4)


class SecondBest(OneClass):
    """Predicts what is second."""

    def decide(self, probabilities):
        return tf.math.top_k(probabilities, 2).indices[:, 1]


def test_another_decision_is_made_in_one_place():
    task = SecondBest()
    assert task.decisions(np.array(SHARES)).tolist() == [2, 1]
    assert task.predicted(LOGITS).tolist() == [2, 1]
    assert task.is_right(tf.constant(LOGITS), tf.constant([2, 0])).numpy().tolist() == [1, 0]
    assert task.means(LABELS, LOGITS)["accuracy"] == 0.5
    assert task.split_metrics(LABELS, LOGITS, NAMES)["recall/c"] == 1
    assert task.explained_class(np.array(SHARES[0])) == 2


class Several(SingleLabel):
    excludes = False


def test_a_loss_of_one_class_refuses_several():
    with pytest.raises(UsageError, match=r"--loss=focal\(2\): it is for examples of one class each"):
        make_loss("focal(2)", num_classes=3, task=Several())
    make_loss("cross_entropy", num_classes=3, task=Several())


class Sparse(SingleLabel):
    """Probabilities that are proportional to the squares of the logits."""

    def activation(self, logits):
        return logits**2 / tf.reduce_sum(logits**2, axis=-1, keepdims=True)

    def log_probabilities(self, logits):
        return tf.math.log(self.activation(logits))


def test_scores_go_by_the_probabilities_of_the_task():
    logits = np.array([[1, 3, 2], [3, 1, 1]], np.float32)
    found = Sparse().scores(LABELS, logits, NAMES, temperature=2.0, temperature_from="here")
    shares = logits**2 / (logits**2).sum(axis=1, keepdims=True)
    assert found["log_loss"] == pytest.approx(-np.log([4 / 14, 9 / 11]).mean())
    assert found["brier_score"] == pytest.approx(((shares - np.eye(3)[LABELS]) ** 2).sum(axis=1).mean())
    # As the note beside it says: softmax(log(p) / temperature).
    assert found["calibration"]["log_loss_scaled"] == pytest.approx(-np.log([2 / 6, 3 / 5]).mean())
    assert SINGLE_LABEL.softmax_logits(logits) is logits


def test_the_area_of_validation_goes_by_the_probabilities_of_the_task():
    # By the logits themselves, no picture of the second class is above one of the first.
    labels, logits = np.array([0, 1, 0, 1]), np.array([[2, 1], [-1, -3], [2, 1], [-1, -3]], np.float32)
    assert Sparse().split_metrics(labels, logits, ("a", "b"))["auc"] == 1.0


def test_probabilities_that_a_task_has_made_do_not_go_through_its_activation_again():
    task, logits = Sparse(), np.array([[1, 3, 2], [3, 1, 1]], np.float32)
    shares, plain = task.probabilities(logits), task.plain()
    again = plain.logits_of(shares)
    np.testing.assert_allclose(plain.probabilities(again), shares)
    given = {"temperature": 2.0, "temperature_from": "here"}
    found, wanted = plain.scores(LABELS, again, NAMES, **given), task.scores(LABELS, logits, NAMES, **given)
    for name in ("log_loss", "brier_score", "roc_auc"):
        assert found[name] == pytest.approx(wanted[name])
    assert task.probabilities(logits) == pytest.approx(shares)
