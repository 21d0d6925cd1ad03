"""Dropout by the step's seed: alone, in Keras networks, and in runs that go on from a checkpoint."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tf_keras import layers

from tests.loop.toys import dataset_of, random_batches, run_of, state_of, values
from trainer.model.backbones import open_backbone
from trainer.model.backbones.keras import KerasBackbone
from trainer.model.dropout import Draws, drawing_from, dropout, seed_dropout
from trainer.model.fingerprints import network_fingerprint
from trainer.model.graphs import stateful_random_ops
from trainer.model.initializers import reseed

IMAGES = np.random.default_rng(0).random((6, 8, 8, 3)).astype(np.float32)


def seed_of(step):
    return tf.random.experimental.stateless_fold_in([0, 3], tf.constant(step, tf.int64))


def draws_of(step, size=6):
    return Draws(seed_of(step), tf.range(size), size)


def a_network():
    """A convolution, BatchNorm, a block that may be skipped, and dropout of maps and of features."""
    images = tf_keras.Input([8, 8, 3])
    x = layers.BatchNormalization(momentum=0.5, name="norm")(layers.Conv2D(8, 3, name="stem")(images))
    block = layers.Dropout(0.4, noise_shape=(None, 1, 1, 1))(layers.Conv2D(8, 1, name="block")(x))
    x = layers.SpatialDropout2D(0.3)(layers.Add()([x, block]))
    network = tf_keras.Model(images, layers.Dropout(0.2)(layers.GlobalAveragePooling2D()(x)))
    reseed(network, seed=0)
    return network


def ones_through(*drops, rows=6):
    """Returns what each layer alone makes of ones [rows, 4, 4, 8] in a network of all of them."""
    ones = tf_keras.Input([4, 4, 8])
    network = tf_keras.Model(ones, [drop(ones) for drop in drops])
    seed_dropout(network)
    with drawing_from(draws_of(5, rows)):
        outputs = network(tf.ones([rows, 4, 4, 8]), training=True)
    return [output.numpy() for output in tf.nest.flatten(outputs)]


def test_some_are_dropped_and_the_others_scaled_up():
    dropped = dropout(tf.ones([100, 100]), rate=0.2, draws=draws_of(0, 100)).numpy()
    assert set(np.unique(dropped)) == {np.float32(0), np.float32(1.25)}
    # Of 10,000 draws, within five standard deviations.
    assert np.mean(dropped == 0) == pytest.approx(0.2, abs=0.02)


def test_the_draw_is_a_function_of_the_seed_alone():
    # Written down once: any process must come to these.
    kept = [
        "".join("01"[int(v > 0)] for v in dropout(tf.ones([16]), rate=0.5, draws=draws_of(step, 16)))
        for step in (0, 1, 1)
    ]
    assert kept == ["0010110001110010", "0011010101010001", "0011010101010001"]


@pytest.mark.parametrize("noise", [None, (1, 1, 1, 8)])
def test_examples_drop_by_their_places_wherever_they_are_computed(noise):
    x = tf.ones([6, 4, 4, 8])

    def drop(*places):
        shape = noise and (len(places), *noise[1:])
        draws = Draws(seed_of(0), tf.constant(places), 6)
        return dropout(x[: len(places)], rate=0.5, draws=draws, noise_shape=shape).numpy()

    whole = drop(0, 1, 2, 3, 4, 5)
    np.testing.assert_array_equal(drop(4, 1), whole[[4, 1]])
    np.testing.assert_array_equal(np.concatenate([drop(0, 1), drop(2, 3), drop(4, 5)]), whole)
    assert len({row.tobytes() for row in whole}) == 6


def test_one_draw_for_all_examples_is_the_same_in_every_part():
    same, ones = layers.Dropout(0.5, noise_shape=(1, 1, 1, 8)), tf.ones([6, 4, 4, 8])
    inputs = tf_keras.Input([4, 4, 8])
    network = tf_keras.Model(inputs, same(inputs))
    seed_dropout(network)
    with drawing_from(draws_of(5)):
        whole = network(ones, training=True).numpy()
    with drawing_from(Draws(seed_of(5), tf.constant([4, 5]), 6)):
        part = network(ones[:2], training=True).numpy()
    np.testing.assert_array_equal(part, whole[4:])
    assert set(np.unique(whole)) == {0, 2}
    np.testing.assert_array_equal(whole, np.broadcast_to(whole[:1], whole.shape))


def test_layers_drop_in_their_own_shapes_and_each_for_itself():
    by_example = [layers.Dropout(0.5, noise_shape=(None, 1, 1, 1)) for _ in range(2)]
    one, other, by_map, each = ones_through(*by_example, layers.SpatialDropout2D(0.5), layers.Dropout(0.5))
    for output, axes in ((one, (1, 2, 3)), (other, (1, 2, 3)), (by_map, (1, 2))):
        np.testing.assert_array_equal(output, output.max(axis=axes, keepdims=True) + 0 * output)
        assert set(np.unique(output)) == {0.0, 2.0}
    assert not np.array_equal(one, other)
    assert 0.4 < each.mean() / 2 < 0.6
    assert len(np.unique(by_map.mean(axis=(1, 2)), axis=0)) > 1


def test_a_step_draws_the_same_in_every_trace():
    network = a_network()
    seed_dropout(network)
    variables = network.trainable_variables

    def outcome(step, training=True):
        @tf.function  # A new trace each time.
        def forward(images, seed):
            with tf.GradientTape() as tape, drawing_from(Draws(seed, tf.range(6), 6)):
                features = network(images, training=training)
            return features, tape.gradient(features, variables)

        return b"".join(part.numpy().tobytes() for part in tf.nest.flatten(forward(IMAGES, seed_of(step))))

    assert outcome(3) == outcome(3)
    assert len({outcome(step) for step in (3, 4, 5)}) == 3
    assert outcome(3, training=False) == outcome(4, training=False)


def test_features_are_on_average_those_without_dropout():
    images = tf_keras.Input([8])
    network = tf_keras.Model(images, layers.Dense(3)(layers.Dropout(0.5)(images)))
    reseed(network, seed=0)
    seed_dropout(network)
    x = tf.random.stateless_uniform([1, 8], [0, 0])
    expected = network(x, training=False)[0]
    with drawing_from(draws_of(0, 20_000)):
        drawn = network(tf.repeat(x, 20_000, axis=0), training=True).numpy()
    error = drawn.std(axis=0) / np.sqrt(len(drawn))
    np.testing.assert_allclose(drawn.mean(axis=0), expected, atol=5 * error.max())


def test_nothing_is_dropped_without_a_seed():
    backbone = KerasBackbone("keras:Toy", a_network(), tf.identity, size_px=8)
    with drawing_from(draws_of(0)):
        dropped = backbone(IMAGES, training=True, bn_batch=True)
    plain = [backbone(IMAGES, training=True, bn_batch=True) for _ in range(2)]
    np.testing.assert_array_equal(*plain)
    assert not np.array_equal(plain[0], dropped)


def test_a_network_keeps_its_names_weights_and_fingerprint(tmp_path):
    plain, seeded = a_network(), a_network()
    seed_dropout(seeded)
    assert network_fingerprint(seeded, name="") == network_fingerprint(plain, name="")
    for ending in (".h5", ".weights.h5"):
        plain.save_weights(tmp_path / f"plain{ending}")
        seeded.set_weights([0 * weight for weight in seeded.get_weights()])
        seeded.load_weights(tmp_path / f"plain{ending}")
        for one, other in zip(plain.get_weights(), seeded.get_weights(), strict=True):
            np.testing.assert_array_equal(one, other)
    np.testing.assert_allclose(seeded(IMAGES, training=False), plain(IMAGES, training=False), rtol=1e-6)


def test_a_network_can_be_saved_as_a_module(tmp_path):
    images = tf_keras.Input([3])
    network = tf_keras.Model(images, layers.Dropout(0.5)(images))
    seed_dropout(network)
    tf.saved_model.save(network, str(tmp_path))
    for training in (False, True):  # Nobody gives it a seed.
        found = tf.saved_model.load(str(tmp_path))(tf.ones([2, 3]), training=training)
        np.testing.assert_array_equal(found, np.ones([2, 3]))


def test_a_cut_network_is_the_same_function():
    backbone = KerasBackbone("keras:Toy", a_network(), tf.identity, size_px=8)
    cut = backbone.cut(["block/kernel"], bn_batch=False)
    with drawing_from(draws_of(0)):  # Stored statistics mean no dropout, with a seed or without.
        features = cut.above(cut.below(IMAGES), training=True, bn_batch=False)
    np.testing.assert_allclose(features, backbone(IMAGES, training=False, bn_batch=False), rtol=1e-5)


def test_a_run_goes_on_with_the_same_draws():
    batches = random_batches(4, size=6, side=8)

    def run(*parts):
        kept = None
        for part in parts:
            # As a new process does: a new network, a new trace, and what a checkpoint holds.
            backbone = KerasBackbone("keras:Toy", a_network(), tf.identity, size_px=8)
            state = state_of("for=9steps; train=all; lr=0.01; bn=batch", backbone=backbone, dropout=0.5)
            for name, variable in state.variables().items() if kept else ():
                variable.assign(kept[name])
            run_of(state)(iter(dataset_of(*batches[part])), tf.constant(len(batches[part])))
            kept = values(state)
        return kept

    whole, parts = run(slice(4)), run(slice(2), slice(2, 4))
    assert whole["step"] == 4
    assert list(whole) == list(parts)
    for name, value in whole.items():
        np.testing.assert_array_equal(parts[name], value, err_msg=name)


@pytest.mark.slow
def test_efficientnet_draws_by_the_seed_alone():
    backbone = open_backbone("keras:EfficientNetB0", weights="none", image_size=32)

    def forward(images, seed):
        with drawing_from(Draws(seed, tf.range(8), 8)):
            return backbone(images, training=True, bn_batch=True)

    images = 255 * tf.random.stateless_uniform([8, 32, 32, 3], [0, 0])
    outcomes = [forward(images, seed_of(step)).numpy().tobytes() for step in (1, 2, 1)]
    assert outcomes[0] == outcomes[2] != outcomes[1]
    graph = tf.function(forward, autograph=False).get_concrete_function(images, seed_of(0)).graph
    assert stateful_random_ops(graph) == []
    draws = [op for op in graph.get_operations() if op.type.startswith("StatelessRandomUniformV2")]
    assert len(draws) == 9  # Of its 16 blocks those with a shortcut.
