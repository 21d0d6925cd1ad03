"""Saliency against answers known by hand: linear models, one channel that decides, two classes."""

import functools

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tf_keras import layers

from tests.model.modules import save_tiny, save_with_signature
from trainer.model.backbones import open_backbone
from trainer.model.backbones.keras import KerasBackbone
from trainer.model.classifier import Classifier
from trainer.model.heads import Head
from trainer.model.initializers import reseed
from trainer.model.saliency import (
    GRAD_CAM,
    INTEGRATED_GRADIENTS,
    Explainer,
    check_saliency,
    grad_cam,
    integrated_gradients,
    pixel_heat,
)
from trainer.tasks import SINGLE_LABEL
from trainer.values import Contract, TrainerError, UsageError

RANDOM = np.random.default_rng(0)


def score_and_gradient(score):
    """Returns pictures [N, ...] -> (scores [N], gradients) of a score of single pictures."""

    def both(points):
        with tf.GradientTape() as tape:
            tape.watch(points)
            scores = score(points)
        return scores, tape.gradient(scores, points)

    return both


@pytest.mark.parametrize("steps", [1, 16, 37])
def test_integrated_gradients_of_a_linear_score_are_weights_times_differences(steps):
    weights, image, baseline = RANDOM.normal(size=(3, 4, 5, 3)).astype(np.float32)
    linear = score_and_gradient(lambda x: tf.reduce_sum(weights * x, [1, 2, 3]) + 7)
    found, gain = integrated_gradients(linear, image, baseline=baseline, steps=steps)
    np.testing.assert_allclose(found, weights * (image - baseline), rtol=1e-5, atol=1e-6)
    assert gain == pytest.approx((weights * (image - baseline)).sum(), abs=1e-4)


@pytest.mark.parametrize("steps", [1, 5])
def test_the_midpoint_rule_is_exact_where_the_gradient_is_linear(steps):
    image, baseline = RANDOM.normal(size=(2, 6)).astype(np.float32)
    squares = score_and_gradient(lambda x: tf.reduce_sum(x**2, 1))
    found, _ = integrated_gradients(squares, image, baseline=baseline, steps=steps)
    np.testing.assert_allclose(found, image**2 - baseline**2, rtol=1e-4, atol=1e-5)


def test_not_more_points_at_once_than_memory_is_meant_for():
    seen = []

    def counted(points):
        seen.append(len(points))
        return tf.zeros(len(points)), tf.zeros_like(points)

    integrated_gradients(counted, np.ones(3, np.float32), baseline=np.zeros(3, np.float32), steps=40)
    assert seen == [16, 16, 8, 2]


def test_completeness_on_a_small_network():
    network = tf_keras.Sequential(
        [layers.Conv2D(4, 3, activation="tanh"), layers.Flatten(), layers.Dense(1, "sigmoid")]
    )
    network.build([None, 8, 8, 3])
    reseed(network, seed=0)
    image, baseline = RANDOM.random((2, 8, 8, 3)).astype(np.float32)
    both = score_and_gradient(lambda x: network(x)[:, 0])
    attributions, gain = integrated_gradients(both, image, baseline=baseline, steps=50)
    before, after = network(np.stack([baseline, image])).numpy()[:, 0]
    assert gain == pytest.approx(after - before)
    assert abs(gain) > 0.01
    assert attributions.sum() == pytest.approx(gain, abs=1e-4)


def test_grad_cam_by_hand():
    maps = RANDOM.normal(size=(1, 2, 3, 4)).astype(np.float32)
    # The gradient differs from place to place, so that its mean counts.
    slopes = RANDOM.normal(size=(2, 3, 4)).astype(np.float32)
    found = grad_cam(tf.constant(maps), lambda x: tf.reduce_sum(slopes * x, [1, 2, 3]))
    wanted = np.maximum((slopes.mean(axis=(0, 1)) * maps[0]).sum(axis=-1), 0)
    assert (wanted > 0).any()
    assert (wanted == 0).any()
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_of_two_classes_the_difference_counts():
    assert SINGLE_LABEL.class_scores(tf.constant([[1.0, 4.0]])).numpy().tolist() == [[-3.0, 3.0]]
    assert SINGLE_LABEL.class_scores(tf.constant([[1.0, 4.0, 2.0]])).numpy().tolist() == [[1.0, 4.0, 2.0]]


class ColourBackbone:
    """Maps half as large as the picture, a map a colour; the features are their averages."""

    name = fingerprint = "colours"
    contract = Contract(8, 8, (-1.0, 1.0), feature_width=3, any_size=False)
    layers = ()

    def __init__(self, *, maps=True, side=4, differentiable=True):
        self.variables = {}
        self._maps, self._side = maps, side
        self._pass_on = tf.identity if differentiable else tf.stop_gradient

    def _colours(self, images):
        return tf.nn.avg_pool2d(self._pass_on(images), 8 // self._side, 8 // self._side, "VALID")

    def __call__(self, images, *, training, bn_batch):
        return tf.reduce_mean(self._colours(images), [1, 2])

    def feature_maps(self):
        return self._colours if self._maps else None


def classifier_of(kernel, **options):
    """A linear head on the three colours."""
    classifier = Classifier(
        ColourBackbone(**options), Head("linear", num_logits=len(kernel[0]), dropout=0, seed=0)
    )
    classifier.named_variables["head/logits/kernel"].assign(kernel)
    return classifier


def quarters():
    """8x8 px in [-1, 1]: upper left red, upper right green, lower left blue, lower right black."""
    image = np.full([8, 8, 3], -1.0, np.float32)
    image[:4, :4, 0] = image[:4, 4:, 1] = image[4:, :4, 2] = 1.0
    return image


def hottest(heat):
    """Means of the four quarters, in the order of `quarters`, as truths: which are hot."""
    means = heat.reshape(2, 4, 2, 4).mean(axis=(1, 3)).ravel()
    return (means > means.max() / 2).tolist()


RED, GREEN, BLUE = ([True, False, False, False], [False, True, False, False], [False, False, True, False])


@pytest.mark.parametrize("method", [GRAD_CAM, INTEGRATED_GRADIENTS])
def test_the_channel_that_decides_is_where_the_heat_is(method):
    explainer = Explainer(classifier_of(np.eye(3)), asked=method, steps=8)
    assert explainer.method == method
    for label, wanted in enumerate((RED, GREEN, BLUE)):
        found = explainer.explain(quarters(), label)
        assert (found.heat.shape, found.heat.dtype) == ((8, 8), np.float32)
        assert (found.heat.min(), found.heat.max()) == (0, 1)
        assert hottest(found.heat) == wanted
    if method == GRAD_CAM:
        assert (found.gain, found.completeness_error) == (None, None)


@pytest.mark.parametrize("method", [GRAD_CAM, INTEGRATED_GRADIENTS])
def test_with_one_logit_each_class_has_what_speaks_for_it(method):
    # What is red speaks for the second class, what is blue for the first.
    explainer = Explainer(classifier_of([[4.0], [0.0], [-4.0]]), asked=method, steps=8)
    assert hottest(explainer.explain(quarters(), 1).heat) == RED
    assert hottest(explainer.explain(quarters(), 0).heat) == BLUE


def test_a_linear_network_is_explained_in_full():
    kernel = [[1.0, 0.0, 2.0], [0.0, 3.0, 0.0], [0.5, 0.0, 0.0]]
    classifier = classifier_of(kernel, maps=False)
    image = RANDOM.uniform(-1, 1, (8, 8, 3)).astype(np.float32)
    found = Explainer(classifier, asked="auto", steps=3).explain(image, 2)
    # A picture in the mean colour of this one has the same averages: nothing is gained.
    assert found.gain == pytest.approx(0, abs=1e-6)
    assert found.completeness_error == pytest.approx(0, abs=1e-6)
    red = image[..., 0] - image[..., 0].mean()
    np.testing.assert_allclose(found.heat, pixel_heat(red[..., None]), atol=1e-4)


def test_heat_of_pixels():
    even = pixel_heat(np.full((20, 30, 3), 0.25))
    np.testing.assert_allclose(even, 1.0, rtol=1e-5)
    assert not pixel_heat(np.full((20, 30, 3), -0.25)).any()
    assert not pixel_heat(np.zeros((20, 30, 3))).any()
    one = np.zeros((112, 112, 3))
    one[30, 70] = [1, 2, -1]
    heat = pixel_heat(one)
    assert np.average(np.indices(heat.shape).reshape(2, -1), axis=1, weights=heat.ravel()) == pytest.approx(
        (30, 70)
    )
    # Two pixels are a standard deviation; within three of them nearly all is at full heat.
    assert heat[30, 78] / heat[30, 76] == pytest.approx(np.exp(-8 + 4.5), rel=1e-4)
    assert heat[30, 76] == pytest.approx(heat[24, 70]) == pytest.approx(heat[36, 70])


def test_auto_takes_grad_cam_where_it_says_something():
    kernel = np.eye(3)
    assert Explainer(classifier_of(kernel), asked="auto", steps=8).method == GRAD_CAM
    assert Explainer(classifier_of(kernel, maps=False), asked="auto", steps=8).method == INTEGRATED_GRADIENTS
    assert Explainer(classifier_of(kernel, side=1), asked="auto", steps=8).method == INTEGRATED_GRADIENTS
    with pytest.raises(UsageError, match="the last maps of colours at 8x8 px are of a single place"):
        Explainer(classifier_of(kernel, side=1), asked=GRAD_CAM, steps=8)


def test_grad_cam_of_an_opaque_module_is_refused(tiny_backbone):
    backbone = open_backbone(f"savedmodel:{tiny_backbone}", image_size=8)
    classifier = Classifier(backbone, Head("linear", num_logits=3, dropout=0, seed=0))
    with pytest.raises(
        UsageError, match=r"inside of a SavedModel is not known\. --saliency=integrated_gradients"
    ):
        Explainer(classifier, asked=GRAD_CAM, steps=8)


@pytest.mark.parametrize("maps", [True, False])
def test_a_network_without_a_gradient(maps):
    classifier = classifier_of(np.eye(3), maps=maps, differentiable=False)
    # Grad-CAM needs a gradient only from the maps on.
    explainer = Explainer(classifier, asked="auto", steps=8)
    if maps:
        assert hottest(explainer.explain(quarters(), 0).heat) == RED
        return
    with pytest.raises(TrainerError, match="colours says cannot be explained: it has no gradient"):
        explainer.explain(quarters(), 0)


@pytest.mark.parametrize("signature", [False, True])
def test_modules_are_explained_by_their_gradient(signature, tmp_path):
    save = save_with_signature if signature else functools.partial(save_tiny, image_size=8)
    backbone = open_backbone(f"savedmodel:{save(tmp_path / 'module')}")
    classifier = Classifier(backbone, Head("linear", num_logits=2, dropout=0, seed=0))
    # Features are red + blue and green + blue: the second class is green less red.
    classifier.named_variables["head/logits/kernel"].assign([[1.0, 0.0], [0.0, 1.0]])
    explainer = Explainer(classifier, asked="auto", steps=4)
    assert hottest(explainer.explain((quarters() + 1) / 2, 0).heat) == RED
    assert hottest(explainer.explain((quarters() + 1) / 2, 1).heat) == GREEN


def assert_averages(backbone, *, shape):
    contract = backbone.contract
    images = RANDOM.uniform(*contract.value_range, (2, *contract.image_shape)).astype(np.float32)
    maps = backbone.feature_maps()(tf.constant(images))
    features = backbone(tf.constant(images), training=False, bn_batch=False)
    assert maps.shape == (2, *shape)
    np.testing.assert_allclose(tf.reduce_mean(maps, [1, 2]), features, rtol=1e-4, atol=1e-5)
    assert np.std(maps, axis=(1, 2)).max() > 0


def test_maps_of_efficientnet_lite0_follow_its_weights():
    backbone = open_backbone("efficientnet_lite0", image_size=64)
    backbone.variables["head_conv/kernel"].assign(backbone.variables["head_conv/kernel"] * 0.5)
    assert_averages(backbone, shape=(2, 2, 1280))


def test_maps_of_a_module_that_gives_them(tmp_path):
    backbone = open_backbone(f"savedmodel:{save_tiny(tmp_path / 'maps', output='maps')}", image_size=8)
    assert_averages(backbone, shape=(8, 8, 2))


def test_maps_of_a_keras_network_are_what_is_averaged_last():
    images = tf_keras.Input([8, 8, 3])
    x = layers.ReLU()(layers.Conv2D(4, 3, strides=2)(images))

    def backbone_of(features):
        network = tf_keras.Model(images, features)
        reseed(network, seed=0)
        return KerasBackbone("keras:Toy", network, lambda pixels: pixels / 255.0, size_px=8)

    assert_averages(backbone_of(layers.GlobalAveragePooling2D()(x)), shape=(3, 3, 4))
    assert backbone_of(layers.GlobalMaxPooling2D()(x)).feature_maps() is None


def test_methods_by_name():
    classifier = classifier_of(np.eye(3))
    with pytest.raises(UsageError) as caught:
        check_saliency("grad_cm")
    names = "grad_cam, integrated_gradients"
    assert str(caught.value) == f"--saliency=grad_cm is not one of {names}: is it grad_cam?"
    check_saliency("auto")
    explainer = Explainer(classifier, asked="integrated_gradients(3)", steps=8)
    assert (explainer.method, explainer.title) == (INTEGRATED_GRADIENTS, "integrated gradients")
    image = RANDOM.random(classifier.backbone.contract.image_shape).astype(np.float32)
    plain = Explainer(classifier, asked=INTEGRATED_GRADIENTS, steps=3).explain(image, 1)
    found = explainer.explain(image, 1)
    np.testing.assert_array_equal(found.heat, plain.heat)
    assert found.completeness_error == plain.completeness_error
    with pytest.raises(UsageError, match="steps=-1 must be a whole number 0 or more"):
        check_saliency("integrated_gradients(-1)")
