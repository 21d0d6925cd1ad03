"""Backbone and head together."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from tests.model.modules import KERNEL, draws
from trainer.model.backbones import open_backbone
from trainer.model.backbones.keras import KerasBackbone
from trainer.model.classifier import Classifier
from trainer.model.heads import Head
from trainer.values import Contract, UsageError


@pytest.fixture
def classifier(tiny_backbone):
    backbone = open_backbone(f"savedmodel:{tiny_backbone}", image_size=8)
    return Classifier(backbone, Head("linear", num_logits=3, dropout=0.5, seed=0))


IMAGES = np.random.default_rng(0).random((4, 8, 8, 3)).astype(np.float32)


def logits(classifier, *, draws=None, **training):
    """As a step of training has them."""
    return classifier.logits(classifier.features(IMAGES, draws=draws, **training), draws=draws)


def test_variables_have_lasting_names_in_order(classifier):
    assert list(classifier.named_variables) == [
        "backbone/conv/kernel",
        "backbone/bn/beta",
        "backbone/bn/moving_mean",
        "head/logits/kernel",
        "head/logits/bias",
    ]
    assert all(isinstance(v, tf.Variable) for v in classifier.named_variables.values())


def test_logits_are_head_of_features(classifier):
    weights = np.arange(6, dtype=np.float32).reshape(2, 3)
    classifier.named_variables["head/logits/kernel"].assign(weights)
    classifier.named_variables["head/logits/bias"].assign([1.0, 2.0, 3.0])
    expected = IMAGES.mean(axis=(1, 2)) @ np.array(KERNEL, np.float32) @ weights + [1.0, 2.0, 3.0]
    np.testing.assert_allclose(classifier(IMAGES), expected, rtol=1e-5)


def test_layers_of_a_module_are_not_known(classifier):
    assert classifier.named_layers == ()
    with pytest.raises(UsageError, match=r"order of layers in a hub module .*='head/ backbone/bn/'"):
        classifier.freezing_table(["unfreeze_top_layers=1"])
    rows = classifier.freezing_table(["head/", "backbone/bn/"])
    assert [row.state for row in rows] == ["frozen", "train", "statistics", "train", "train"]


def one_logit(*, kernel=(1.0, -1.0, 0.0)):
    classifier = Classifier(HalfPrecision(), Head("linear", num_logits=1, dropout=0.0, seed=0))
    classifier.named_variables["head/logits/kernel"].assign(np.reshape(kernel, [3, 1]))
    return classifier


def test_one_logit_stands_for_two_classes_and_decides_at_zero():
    # One colour less another: both sides of zero, zero itself, and as little above it as there is.
    colours = np.array([[1, 0, 0], [0, 0.5, 0], [0.5, 0.5, 1], [0, 0, 0], [2.0**-100, 0, 0]], np.float32)
    logits = one_logit()(np.tile(colours[:, None, None], (1, 8, 8, 1)))
    assert logits.dtype == tf.float32
    np.testing.assert_array_equal(logits, [[0, 1], [0, -0.5], [0, 0], [0, 0], [0, 2.0**-100]])
    np.testing.assert_array_equal(tf.argmax(logits, axis=-1), [1, 0, 0, 0, 1])


def test_cross_entropy_of_one_logit_is_binary_cross_entropy():
    classifier, labels = one_logit(kernel=(30.0, -70.0, 5.0)), np.array([0, 1, 1, 0])
    kernel = classifier.named_variables["head/logits/kernel"]
    with tf.GradientTape(persistent=True) as tape:
        logits = classifier(IMAGES)
        found = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        binary = tf.nn.sigmoid_cross_entropy_with_logits(labels.astype(np.float32), logits[:, 1])
    assert np.abs(logits[:, 1]).min() > 5
    np.testing.assert_allclose(found, binary, rtol=1e-5, atol=1e-7)
    gradients = [tape.gradient(losses, kernel) for losses in (found, binary)]
    np.testing.assert_allclose(*gradients, rtol=1e-5)
    assert np.abs(gradients[0]).min() > 0.1


def test_nothing_is_random_or_moves_without_being_asked(classifier):
    before = {name: v.numpy() for name, v in classifier.named_variables.items()}
    np.testing.assert_array_equal(classifier(IMAGES), classifier(IMAGES))
    for name, variable in classifier.named_variables.items():
        np.testing.assert_array_equal(variable, before[name])


def test_draws_of_dropout_drops_features(classifier):
    plain = classifier(IMAGES)
    dropped = logits(classifier, draws=draws([0, 1], 4))
    assert not np.array_equal(plain, dropped)
    np.testing.assert_array_equal(dropped, logits(classifier, draws=draws([0, 1], 4)))


def test_draws_of_dropout_reaches_a_keras_backbone_for_one_call():
    pictures = tf_keras.Input([8, 8, 3])
    features = tf_keras.layers.Dropout(0.5)(tf_keras.layers.GlobalAveragePooling2D()(pictures))
    backbone = KerasBackbone("keras:Toy", tf_keras.Model(pictures, features), tf.identity, size_px=8)
    classifier = Classifier(backbone, Head("linear", num_logits=3, dropout=0.0, seed=0))
    training = {"backbone_trains": True, "bn_batch": True}
    plain, *dropped = (
        logits(classifier, **training, draws=seed and draws(seed, 4))
        for seed in (None, [0, 1], [0, 1], [0, 2])
    )
    np.testing.assert_array_equal(plain, classifier(IMAGES))
    np.testing.assert_array_equal(dropped[0], dropped[1])
    assert len({found.numpy().tobytes() for found in (plain, *dropped)}) == 3
    np.testing.assert_array_equal(logits(classifier, **training), plain)
    # Stored statistics go without.
    np.testing.assert_array_equal(logits(classifier, backbone_trains=True, draws=draws([0, 1], 4)), plain)


def test_batch_statistics_move_only_when_asked_for(classifier):
    mean = classifier.named_variables["backbone/bn/moving_mean"]
    logits(classifier, backbone_trains=True, bn_batch=False)
    np.testing.assert_array_equal(mean, [0.0, 0.0])
    logits(classifier, backbone_trains=True, bn_batch=True)
    batch_mean = IMAGES.mean(axis=(0, 1, 2)) @ np.array(KERNEL, np.float32)
    np.testing.assert_allclose(mean, 0.5 * batch_mean, rtol=1e-5)


class HalfPrecision:
    """A backbone whose features are 16-bit numbers."""

    name = "half"
    contract = Contract(8, 8, (0.0, 1.0), feature_width=3, any_size=True)
    variables: dict = {}  # noqa: RUF012
    layers = batch_norms = ()

    def __call__(self, images, *, training, bn_batch):
        return tf.cast(tf.reduce_mean(images, [1, 2]), tf.bfloat16)

    def regularization_losses(self):
        return []


def test_logits_are_float32_whatever_the_features_are(classifier):
    assert classifier(IMAGES).dtype == tf.float32
    half = Classifier(HalfPrecision(), Head("mlp(4)", num_logits=2, dropout=0.5, seed=0))
    for drawn in (None, draws([0, 1], 4)):
        found = logits(half, draws=drawn)
        assert found.dtype == tf.float32
        assert found.shape == (4, 2)
