"""Losses and weights of classes: by hand, and against Keras and scikit-learn."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from sklearn.utils.class_weight import compute_class_weight

from trainer.loop.losses import LOSSES, PLAIN_LOSS, check_class_weights, class_weights_from, make_loss
from trainer.tasks import make_task
from trainer.values import UsageError

# Softmax of these is 1/4, 3/4 and 1/2, 1/2.
LOGITS = np.array([[0, np.log(3)], [2, 2]], np.float32)
RANDOM = np.random.default_rng(0)
SCORES = RANDOM.normal(0, 3, (64, 5)).astype(np.float32)
LABELS = RANDOM.integers(0, 5, 64)
SHARES = RANDOM.dirichlet(np.ones(5), 64).astype(np.float32)
EXTREMES = np.array([[1e4, -1e4, 0], [-1e4, 1e4, 1e4], [0, 0, 0], [1e4, 1e4, 1e4], [20, 0, 0]], np.float32)
EVERY = ["cross_entropy", "focal(0)", "focal(0.5)", "focal(1)", "focal", "focal(5)"]


def with_gradient(loss, logits, labels, targets=None):
    """Returns losses [B] and the gradient of their sum, [B, K]."""
    logits = tf.constant(logits)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        losses = loss(logits, tf.constant(labels, tf.int64), targets)
    return losses.numpy(), tape.gradient(losses, logits).numpy()


def given_targets(keras):
    return lambda logits, labels, targets: keras(targets, logits)


@pytest.mark.parametrize(
    ("text", "smoothing", "label", "expected"),
    [
        ("cross_entropy", 0.0, 0, [np.log(4), np.log(2)]),
        ("cross_entropy", 0.0, 1, [np.log(4 / 3), np.log(2)]),
        ("cross_entropy", 0.2, 0, [0.9 * np.log(4) + 0.1 * np.log(4 / 3), np.log(2)]),
        ("focal(0)", 0.2, 0, [0.9 * np.log(4) + 0.1 * np.log(4 / 3), np.log(2)]),
        ("focal", 0.0, 0, [9 / 16 * np.log(4), np.log(2) / 4]),
        ("focal(2)", 0.0, 1, [1 / 16 * np.log(4 / 3), np.log(2) / 4]),
        ("focal(0.5)", 0.0, 1, [0.5 * np.log(4 / 3), np.log(2) / np.sqrt(2)]),
        ("focal(1)", 0.2, 0, [0.9 * 3 / 4 * np.log(4) + 0.1 / 4 * np.log(4 / 3), np.log(2) / 2]),
    ],
)
def test_by_hand(text, smoothing, label, expected):
    loss = make_loss(text, num_classes=2, label_smoothing=smoothing)
    np.testing.assert_allclose(loss(LOGITS, tf.constant([label, label]), None), expected, rtol=1e-6)
    # The label says nothing where there are targets.
    hard = tf.one_hot([label, label], 2)
    np.testing.assert_allclose(loss(LOGITS, tf.constant([0, 1]), hard), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("text", "smoothing", "expected"),
    [
        ("cross_entropy", 0.0, 0.8 * np.log(4) + 0.2 * np.log(4 / 3)),
        ("cross_entropy", 0.5, 0.65 * np.log(4) + 0.35 * np.log(4 / 3)),
        ("focal(2)", 0.0, 0.8 * 9 / 16 * np.log(4) + 0.2 / 16 * np.log(4 / 3)),
        ("focal(2)", 0.5, 0.65 * 9 / 16 * np.log(4) + 0.35 / 16 * np.log(4 / 3)),
    ],
)
def test_soft_targets_by_hand(text, smoothing, expected):
    loss = make_loss(text, num_classes=2, label_smoothing=smoothing)
    losses = loss(LOGITS[:1], tf.constant([1]), tf.constant([[0.8, 0.2]]))
    np.testing.assert_allclose(losses, [expected], rtol=1e-6)


def test_cross_entropy_of_labels_is_that_of_keras_bit_for_bit():
    keras = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="none")

    def smoothed(logits, labels, targets):
        even = -tf.reduce_mean(tf.nn.log_softmax(logits), axis=-1)
        return (1.0 - 0.1) * keras(labels, logits) + 0.1 * even

    for ours, theirs in (
        (PLAIN_LOSS, lambda logits, labels, targets: keras(labels, logits)),
        (make_loss("cross_entropy", num_classes=5), lambda logits, labels, targets: keras(labels, logits)),
        (make_loss("cross_entropy", num_classes=5, label_smoothing=0.1), smoothed),
    ):
        for one, other in zip(
            with_gradient(ours, SCORES, LABELS), with_gradient(theirs, SCORES, LABELS), strict=True
        ):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_soft_losses_and_gradients_are_those_of_keras(smoothing):
    for text, keras in (
        ("cross_entropy", tf_keras.losses.CategoricalCrossentropy),
        ("focal(0)", tf_keras.losses.CategoricalCrossentropy),
        ("focal(3)", lambda **options: tf_keras.losses.CategoricalFocalCrossentropy(1.0, 3.0, **options)),
    ):
        theirs = keras(from_logits=True, label_smoothing=smoothing, reduction="none")
        ours = make_loss(text, num_classes=5, label_smoothing=smoothing)
        found = with_gradient(ours, SCORES, LABELS, SHARES)
        expected = with_gradient(given_targets(theirs), SCORES, LABELS, SHARES)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_a_single_logit_is_a_binary_problem(smoothing):
    z = tf.constant(np.concatenate([RANDOM.normal(0, 4, 30), [0.0, 60.0]])[:, None], tf.float32)
    labels = np.arange(32) % 2
    ours = make_loss("cross_entropy", num_classes=2, label_smoothing=smoothing)
    binary = tf_keras.losses.BinaryCrossentropy(from_logits=True, label_smoothing=smoothing, reduction="none")

    def padded(logits, labels, targets):
        return ours(tf.pad(logits, [[0, 0], [1, 0]]), labels, targets)

    found = with_gradient(padded, z, labels)
    expected = with_gradient(lambda logits, labels, _: binary(labels[:, None], logits), z, labels)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    chosen = np.argmax(np.pad(z, [(0, 0), (1, 0)]), axis=1)
    accuracy = tf_keras.metrics.BinaryAccuracy(threshold=0.0)
    for label, z_of_one, choice in zip(labels, z, chosen, strict=True):
        accuracy.reset_state()
        accuracy.update_state([[label]], [z_of_one])
        assert (choice == label) == bool(accuracy.result())


def test_binary_focal_is_that_of_keras():
    z = RANDOM.normal(0, 2, (30, 1)).astype(np.float32)
    labels = np.arange(30) % 2
    focal = make_loss("focal(2)", num_classes=2)
    binary = tf_keras.losses.BinaryFocalCrossentropy(gamma=2.0, from_logits=True, reduction="none")
    losses = focal(tf.pad(z, [[0, 0], [1, 0]]), labels, None)
    np.testing.assert_allclose(losses, binary(labels[:, None], z), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("text", EVERY)
def test_extreme_logits_give_numbers(text, smoothing):
    loss = make_loss(text, num_classes=3, label_smoothing=smoothing)
    for label in range(3):
        labels = np.full(len(EXTREMES), label)
        for targets in (None, tf.one_hot(labels, 3), tf.fill([len(EXTREMES), 3], 1 / 3)):
            losses, gradient = with_gradient(loss, EXTREMES, labels, targets)
            assert np.isfinite(losses).all()
            assert np.isfinite(gradient).all()
            assert (losses >= 0).all()
            # Adding the same to all logits changes nothing.
            np.testing.assert_allclose(gradient.sum(axis=1), 0, atol=1e-5)
    sure, _ = with_gradient(make_loss(text, num_classes=3), EXTREMES[:1], [0])
    wrong, gradient = with_gradient(make_loss(text, num_classes=3), EXTREMES[:1], [1])
    assert (sure.item(), wrong.item()) == (0, 2e4)
    np.testing.assert_allclose(gradient, [[1, -1, 0]])


def test_weights_of_classes():
    weights = np.array([1, 3], np.float32)
    for smoothing in (0.0, 0.2):
        for text in EVERY:
            plain = make_loss(text, num_classes=2, label_smoothing=smoothing)
            weighted = make_loss(text, num_classes=2, label_smoothing=smoothing, class_weights=weights)
            labels, targets = tf.constant([1, 0]), tf.constant([[0.5, 0.5], [0.75, 0.25]])
            np.testing.assert_allclose(
                weighted(LOGITS, labels, None), plain(LOGITS, labels, None) * [3, 1], rtol=1e-6
            )
            np.testing.assert_allclose(
                weighted(LOGITS, labels, targets), plain(LOGITS, labels, targets) * [2, 1.5], rtol=1e-6
            )
    with pytest.raises(ValueError, match="for 3 classes"):
        make_loss("focal", num_classes=3, class_weights=weights)


def test_weights_of_classes_are_those_of_keras():
    weights = np.array([0.5, 1, 2, 3, 4], np.float32)
    model = tf_keras.Sequential([tf_keras.layers.Activation("linear", input_shape=(5,))])
    model.compile("sgd", tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True), run_eagerly=True)
    theirs = model.train_on_batch(SCORES, LABELS, class_weight=dict(enumerate(weights)))
    ours = make_loss("cross_entropy", num_classes=5, class_weights=weights)
    np.testing.assert_allclose(tf.reduce_mean(ours(SCORES, LABELS, None)), theirs, rtol=1e-6)


def test_losses_are_the_same_in_a_graph():
    weights = np.array([0.5, 1, 2, 3, 4], np.float32)
    for name in LOSSES:
        # That of several labels knows no others.
        several = name == "asymmetric"
        task = make_task("multi_label" if several else "single_label")
        labels = tf.constant(task.encoded(LABELS, 5) if several else LABELS)
        loss = make_loss(name, num_classes=5, label_smoothing=0.1, class_weights=weights, task=task)
        for targets in (None, tf.constant(SHARES)):
            eager = loss(tf.constant(SCORES), labels, targets)
            graph = tf.function(loss)(tf.constant(SCORES), labels, targets)
            assert (eager.shape, eager.dtype) == ([64], tf.float32)
            np.testing.assert_allclose(graph, eager, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is not one of cross_entropy, focal, asymmetric"),
        ("focl(2)", "cross_entropy, focal, asymmetric: is it focal?"),
        ("cross_entrop", "cross_entropy, focal, asymmetric: is it cross_entropy?"),
        ("focal,focal", "is not one of"),
        ("focal(x)", "is not one of"),
        ("cross_entropy(1)", ": cross_entropy takes no arguments, and there is 1 besides"),
        ("focal(1,2)", ": focal takes gamma=2.0 (a number from 0 to 100), and there is 2 besides"),
        ("focal(-1)", ": gamma=-1 must be a number from 0 to 100"),
        ("focal(gama=1)", ": focal has no gama; it takes gamma=2.0 (a number from 0 to 100): is it gamma?"),
        ("focal(1,gamma=1)", ": gamma is given twice"),
        ("focal(1e999)", ": gamma=inf must be a number from 0"),
        ("focal(True)", ": gamma=True must be a number from 0"),
        ("focal('a')", ": gamma='a' must be a number from 0"),
    ],
)
def test_losses_that_are_refused(text, reason):
    with pytest.raises(UsageError) as caught:
        make_loss(text, num_classes=2)
    assert str(caught.value).startswith(f"--loss={text}")
    assert reason in str(caught.value)


NAMES = ("daisy", "roses", "rose", "a,b", "x", "x=1", "x=1,y", "big tulips")


def weights_of(text, names=NAMES):
    check_class_weights(text)
    found = class_weights_from(text, class_names=names, counts=dict.fromkeys(names, 1))
    return {name: weight for name, weight in zip(names, found.tolist(), strict=True) if weight != 1}


def test_weights_that_are_given():
    assert class_weights_from("", class_names=NAMES, counts={}) is None
    assert weights_of("roses=2") == {"roses": 2}
    assert weights_of(" rose = 0.25 , roses=2e1,big tulips=3,") == {
        "roses": 20,
        "rose": 0.25,
        "big tulips": 3,
    }
    assert weights_of("a,b=4,daisy=5") == {"a,b": 4, "daisy": 5}
    assert weights_of("x=2,x=1=3,x=1,y=4") == {"x": 2, "x=1": 3, "x=1,y": 4}
    assert weights_of("balanced=2", ("balanced", "other")) == {"balanced": 2}
    found = class_weights_from("b=2", class_names=("a", "b"), counts={})
    assert (found.dtype, found.tolist()) == (np.float32, [1, 2])


def test_balanced_weights_are_those_of_scikit_learn():
    counts = {"a": 6, "b": 1, "c": 3}
    found = class_weights_from("balanced", class_names=("c", "a", "b"), counts=counts)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [10 / 9, 10 / 18, 10 / 3])
    labels = np.repeat([0, 1, 2], [3, 6, 1])
    theirs = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    np.testing.assert_allclose(found, theirs, rtol=1e-6)
    with pytest.raises(UsageError, match=r"^--class_weights=balanced: the training split has no .* of b: "):
        class_weights_from("balanced", class_names=("a", "b"), counts={"a": 3, "b": 0})


@pytest.mark.parametrize(
    ("text", "reason", "at_start"),
    [
        ("balance", "is neither balanced nor weights of classes", True),
        ("=2", "is neither balanced nor weights of classes", True),
        (" ", "is neither balanced nor weights of classes", True),
        ("daisy=2,roses", "roses is given no weight", True),
        ("roses=", "'' is not a weight, a number above 0", True),
        ("roses=0", "'0' is not a weight", True),
        ("roses=-1", "'-1' is not a weight", True),
        ("roses=nan", "'nan' is not a weight", True),
        ("roses=inf", "'inf' is not a weight", True),
        ("roses=1e39", "'1e39' is not a weight", True),
        ("roses=much,daisy=2", "'much' is not a weight", False),
        ("daisy,roses=2", "daisy is given no weight", False),
        ("roses=2,daisy=3,roses=2", "roses is named twice", False),
        ("rosse=2", "'rosse' is not one of the classes daisy, roses, rose, a,b, ", False),
        ("rosse=2", ": is it rose or roses?", False),
        ("qqqq=2", "'qqqq' is not one of the classes daisy", False),
    ],
)
def test_weights_that_are_refused(text, reason, at_start):
    with pytest.raises(UsageError) as caught:
        class_weights_from(text, class_names=NAMES, counts={})
    assert str(caught.value).startswith(f"--class_weights={text}: ")
    assert reason in str(caught.value)
    if at_start:
        with pytest.raises(UsageError) as at_once:
            check_class_weights(text)
        assert str(at_once.value) == str(caught.value)
    else:
        check_class_weights(text)


def test_many_classes_are_not_all_told():
    names = [f"species {i}" for i in range(100)]
    with pytest.raises(
        UsageError, match=r"'cat' is not one of the classes species 0, .*, \.\.\., species 99$"
    ):
        class_weights_from("cat=2", class_names=names, counts={})
