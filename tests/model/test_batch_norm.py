"""BatchNorm by moments: pooled, and as Keras does it."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tf_keras import layers

from trainer.model.batch_norm import Moments, Pool, move, no_moments, pool_batch_norm, pooled, pooling
from trainer.model.fingerprints import network_fingerprint
from trainer.model.initializers import reseed

X = np.random.default_rng(0).normal(3, 0.1, [7, 5, 5, 4]).astype(np.float32)


def moments_of(x):
    return Moments(*(tf.constant(v, tf.float32) for v in (len(x), x.mean(axis=0), len(x) * x.var(axis=0))))


@pytest.mark.parametrize("sizes", [(20, 20), (1, 39), (40, 0), (0, 40), (10, 20, 10)])
def test_moments_of_parts_are_those_of_the_whole(sizes):
    x = np.random.default_rng(1).normal(1.73, 1e-3, [40, 3])
    total = Moments(tf.zeros([]), tf.zeros([3]), tf.zeros([3]))
    for part in np.split(x, np.cumsum(sizes)[:-1]):
        nothing = Moments(tf.zeros([]), tf.fill([3], 9.0), tf.zeros([3]))
        total = pooled(total, moments_of(part) if len(part) else nothing)
    assert total.count == 40
    np.testing.assert_allclose(total.mean, x.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(total.squares, 40 * x.var(axis=0), rtol=1e-3)


def two_norms(pooled_axis=-1):
    """One on maps, which Keras computes by its kernel for them, and one on features, without gamma."""
    images = tf_keras.Input([5, 5, 4])
    x = layers.BatchNormalization(axis=pooled_axis, momentum=0.9, name="maps")(images)
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(3, 2)(x))
    network = tf_keras.Model(images, layers.BatchNormalization(momentum=0.5, scale=False, name="features")(x))
    reseed(network, seed=0)
    gamma = network.get_layer("maps").gamma
    gamma.assign(tf.linspace(-1.0, 2.0, gamma.shape[0]))
    return network


def outcome(network, *, pool=None, norms=()):
    variables = network.trainable_variables
    with tf.GradientTape() as tape, pooling(pool):
        outputs = network(X, training=True)
        loss = tf.reduce_sum(outputs**3)
    for norm in norms:
        move(norm, pool.moments(norm))
    return [outputs, *tape.gradient(loss, variables), *network.non_trainable_variables]


def test_a_layer_that_tells_its_moments_does_what_keras_does():
    plain, network = two_norms(), two_norms()
    norms = pool_batch_norm(network)
    assert [norm.name for norm in norms] == ["maps", "features"]
    pool = Pool(tf.ones([]), together=False)
    for got, expected in zip(outcome(network, pool=pool, norms=norms), outcome(plain), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    assert pool.moments(norms[0]).count == 7 * 5 * 5
    # Outside of a block nothing is changed, to the last digit.
    for got, expected in zip(outcome(network), outcome(network), strict=True):
        assert got.shape == expected.shape
    fresh, patched = two_norms(), two_norms()
    pool_batch_norm(patched)
    for got, expected in zip(outcome(patched), outcome(fresh), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_what_only_stands_in_leaves_no_trace():
    network = two_norms()
    norms = pool_batch_norm(network)
    before = [v.numpy() for v in network.non_trainable_variables]
    pool = Pool(tf.zeros([]), together=False)
    *_, maps_mean, maps_variance, mean, variance = outcome(network, pool=pool, norms=norms)
    for got, expected in zip((maps_mean, maps_variance, mean, variance), before, strict=True):
        np.testing.assert_array_equal(got, expected)
    assert pool.moments(norms[0]).count == 0
    assert Pool(tf.ones([]), together=False).moments(norms[1]).count == no_moments(norms[1]).count == 0


def test_a_layer_over_another_axis_is_left_to_keras():
    assert [norm.name for norm in pool_batch_norm(two_norms(pooled_axis=1))] == ["features"]


def test_a_network_keeps_its_names_and_fingerprint(tmp_path):
    plain, network = two_norms(), two_norms()
    pool_batch_norm(network)
    assert network_fingerprint(network, name="") == network_fingerprint(plain, name="")
    tf.saved_model.save(network, str(tmp_path))
    found = tf.saved_model.load(str(tmp_path))(X, training=False)
    np.testing.assert_allclose(found, plain(X, training=False), rtol=1e-5)
