"""Batches with padding, as a whole and in parts, against a loop written by hand over the examples alone."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tf_keras import layers

from tests.loop.toys import dataset_of, run_of, state_of, values
from tests.model.modules import KERNEL
from trainer.data.pipeline import OrderedBatches
from trainer.model.backbones import open_backbone
from trainer.model.backbones.keras import KerasBackbone
from trainer.model.initializers import reseed

COUNT, BATCH, SIDE = 17, 8, 6
RANDOM = np.random.default_rng(0)
IMAGES = (0.8 + 0.1 * RANDOM.random((COUNT, SIDE, SIDE, 3))).astype(np.float32)
LABELS = RANDOM.integers(0, 3, COUNT)
TRAIN = "for=9steps; lr=0.05; optimizer=sgd"


class Images(OrderedBatches):
    """Of an array; padding is black."""

    def load(self, steps, augment):
        def batch(index, epoch):
            real = tf.cast(index >= 0, tf.float32)
            image = tf.gather(IMAGES, tf.maximum(index, 0)) * real[:, None, None, None]
            label = tf.gather(tf.constant(LABELS), tf.maximum(index, 0))
            return {"image": image, "label": label, "mask": real, "id": index}

        return steps.map(batch)


def batches(num_shares=1):
    made = Images(batch_size=BATCH, seed=0)
    return made.training(np.arange(COUNT), start_step=0, stop_step=3, num_shares=num_shares)


def a_network(*, norm=True, drop=0.0):
    images = tf_keras.Input([SIDE, SIDE, 3])
    x = layers.Conv2D(4, 3, name="conv")(images)
    x = layers.BatchNormalization(momentum=0.5, name="norm")(x) if norm else x
    x = layers.Dropout(drop, noise_shape=(None, 1, 1, 1))(layers.Activation("relu")(x))
    network = tf_keras.Model(images, layers.GlobalAveragePooling2D()(layers.SpatialDropout2D(drop)(x)))
    reseed(network, seed=0)
    return network


def keras_state(recipe, *, dropout=0.0, **network):
    backbone = KerasBackbone("keras:Toy", a_network(**network), tf.identity, size_px=SIDE)
    return state_of(f"{TRAIN}; {recipe}", backbone=backbone, dropout=dropout)


def trained(state, *, num_parts=1, steps=3):
    run = run_of(state, num_parts=num_parts)
    run(iter(batches(num_parts)), tf.constant(steps))
    assert run.experimental_get_tracing_count() == 1
    return values(state)


def by_hand(state):
    """The same updates in plain Keras, over batches of 8, 8 and 1 examples."""
    network, head = a_network(), [v.numpy() for v in state.classifier.head.weights]
    kernel, bias = (tf.Variable(value) for value in head)
    variables = [*network.trainable_variables, kernel, bias]
    velocity = [np.zeros(v.shape, np.float32) for v in variables]
    for batch in batches():
        real = batch["mask"] > 0
        images, labels = batch["image"][real], batch["label"][real]
        with tf.GradientTape() as tape:
            logits = network(images, training=True) @ kernel + bias
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
        for i, gradient in enumerate(tape.gradient(loss, variables)):
            velocity[i] = 0.9 * velocity[i] - 0.05 * gradient
            variables[i].assign_add(velocity[i])
    found = {f"model/backbone/{v.name.removesuffix(':0')}": v.numpy() for v in network.variables}
    return {**found, "model/head/logits/kernel": kernel.numpy(), "model/head/logits/bias": bias.numpy()}


def close(got, expected, names=None, atol=1e-6):
    for name in names or expected:
        np.testing.assert_allclose(got[name], expected[name], rtol=1e-6, atol=atol, err_msg=name)


STATISTICS = ["model/backbone/norm/moving_mean", "model/backbone/norm/moving_variance"]


def test_padding_is_not_in_the_statistics_and_the_update_is_that_of_the_examples():
    state = keras_state("train=all; bn=batch")
    expected = by_hand(state)
    assert set(expected) == {f"model/{name}" for name in state.classifier.named_variables}
    close(trained(state), expected)
    assert np.abs(expected[STATISTICS[0]]).max() > 0.1


@pytest.mark.parametrize("num_parts", [2, 4, 8])
def test_statistics_move_once_an_update_towards_those_of_all_parts(num_parts):
    # What comes before the layer does not train, so that it sees the same in parts.
    whole, parts = (keras_state("train=head; bn=batch") for _ in range(2))
    expected = trained(whole)
    close(trained(parts, num_parts=num_parts), expected, STATISTICS)


@pytest.mark.parametrize("num_parts", [1, 2, 8])
def test_statistics_that_a_module_moves_are_those_of_the_examples(tiny_backbone, num_parts):
    backbone = open_backbone(f"savedmodel:{tiny_backbone}", image_size=SIDE)
    state = state_of(f"{TRAIN}; train=head; bn=batch", backbone=backbone)
    found = trained(state, num_parts=num_parts)["model/backbone/bn/moving_mean"]
    mean = np.zeros(2)
    for batch in batches():
        examples = batch["image"][batch["mask"] > 0].numpy()
        mean = 0.5 * mean + 0.5 * examples.mean(axis=(0, 1, 2)) @ np.array(KERNEL)
    np.testing.assert_allclose(found, mean, rtol=1e-6)
    # Black pictures would have halved it: all features are near 1.7.
    assert found.min() > 0.87 * 1.65


@pytest.mark.parametrize("bn", ["frozen", "batch"])
@pytest.mark.parametrize("num_parts", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_dropout_is_the_same_in_parts(bn, num_parts):
    # Without BatchNorm, what bn=batch switches on in the network is dropout.
    recipe = f"train=all; bn={bn}"
    whole, parts = (keras_state(recipe, dropout=0.5, norm=False, drop=0.4) for _ in range(2))
    plain = trained(keras_state(recipe, norm=False))
    expected = trained(whole)
    close(trained(parts, num_parts=num_parts), expected, atol=2e-6)
    assert np.abs(expected["model/head/logits/kernel"] - plain["model/head/logits/kernel"]).max() > 1e-3


def test_a_part_of_padding_alone_leaves_everything_finite():
    state = keras_state("train=all; bn=batch")
    found = trained(state, num_parts=8)
    assert all(np.isfinite(value).all() for name, value in found.items() if name.startswith("model/"))
    assert int(state.unfit.step) == -1


def test_a_single_example_and_a_batch_larger_than_the_split():
    state = keras_state("train=all; bn=batch")
    one = {"image": IMAGES[:4], "label": LABELS[:4], "mask": np.float32([1, 0, 0, 0]), "id": np.arange(4)}
    run_of(state)(iter(dataset_of(one)), tf.constant(1))
    maps = a_network().get_layer("conv")(IMAGES[:1]).numpy()
    got = values(state)
    np.testing.assert_allclose(got[STATISTICS[0]], 0.5 * maps.mean(axis=(0, 1, 2)), rtol=1e-5)
    unbiased = maps.var(axis=(0, 1, 2), ddof=1)
    np.testing.assert_allclose(got[STATISTICS[1]], 0.5 + 0.5 * unbiased, rtol=1e-5)
