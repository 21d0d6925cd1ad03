"""BatchNorm moved into convolutions: same values, same gradients, or left alone."""

import logging

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from trainer.model import folding
from trainer.model.backbones import open_backbone
from trainer.model.folding import Inference, fold_batch_norm
from trainer.precision import supported

layers = tf_keras.layers
SPEC = tf.TensorSpec([None, 6, 6, 3], tf.float32)
BFLOAT16 = "auto_mixed_precision_onednn_bfloat16"


def pictures(batch):
    return tf.random.stateless_uniform([batch, 6, 6, 3], [1, batch])


def network(*stack):
    """A network of layers one after the other, its variables (and variances) away from 0 and 1."""
    images = tf_keras.Input([6, 6, 3])
    x = images
    for layer in stack:
        x = layer(x)
    model = tf_keras.Model(images, tf.reduce_mean(x, [1, 2]))
    for number, variable in enumerate(model.variables):
        low = 0.5 if "variance" in variable.name else -1
        variable.assign(tf.random.stateless_uniform(variable.shape, [2, number], low, 1.5))
    return model


def traced(call):
    return tf.function(call, autograph=False).get_concrete_function(SPEC)


def stored(model):
    """The network as its users trace it: with stored statistics."""
    return traced(lambda images: model(images, training=False))


def saved_and_loaded(model, folder):
    model.save(folder)
    loaded = tf.saved_model.load(str(folder))
    return loaded, traced(lambda images: loaded(images, training=False))


def operations(function):
    return [operation.type for operation in function.get_concrete_function().graph.get_operations()]


def norms(function):
    return sum(name.startswith("FusedBatchNorm") for name in operations(function))


def gradients(function, variables):
    @tf.function
    def step(images):
        with tf.GradientTape() as tape:
            tape.watch(variables)  # Moving statistics, too.
            loss = tf.reduce_sum(function(images) ** 2)
        return tape.gradient(loss, variables)

    return step(pictures(3))


def assert_same(folded, function, variables):
    for batch in (1, 5):
        np.testing.assert_allclose(folded(pictures(batch)), function(pictures(batch)), rtol=1e-4, atol=1e-5)
    expected = gradients(function, variables)
    for found, wanted, variable in zip(gradients(folded, variables), expected, variables, strict=True):
        assert (found is None) == (wanted is None), variable.name
        if wanted is not None:
            scale = np.abs(wanted).max()
            assert scale > 0
            np.testing.assert_allclose(found / scale, wanted / scale, atol=1e-5, err_msg=variable.name)


def test_known_answer():
    kernel = tf.Variable(np.reshape([1.0, 2.0, 3.0], (1, 1, 3, 1)).astype(np.float32))
    gamma, beta, mean = tf.Variable([6.0]), tf.Variable([5.0]), tf.Variable([4.0])
    variance = tf.Variable([8.0])

    def call(images):
        maps = tf.nn.conv2d(images, kernel, 1, "SAME")
        maps = tf.compat.v1.nn.fused_batch_norm(
            maps, gamma, beta, mean, variance, epsilon=1.0, is_training=False
        )[0]
        return tf.reduce_mean(maps, [1, 2])

    folded = fold_batch_norm(traced(call))
    # White is 6 after the convolution: (6 - 4) / sqrt(8 + 1) * 6 + 5.
    np.testing.assert_allclose(folded(tf.ones([1, 6, 6, 3])), [[9.0]], rtol=1e-6)
    assert norms(folded) == 0
    # The values are those at the time of the call.
    for variable, value in ((kernel, kernel * 2), (mean, [3.0]), (variance, [80.0]), (gamma, [9.0])):
        variable.assign(value)
    beta.assign([-1.0])
    # (12 - 3) / 9 * 9 - 1.
    np.testing.assert_allclose(folded(tf.ones([1, 6, 6, 3])), [[8.0]], rtol=1e-6)


STACKS = {
    "plain": lambda: [layers.Conv2D(4, 3, use_bias=False), layers.BatchNormalization(), layers.ReLU()],
    "bias": lambda: [layers.Conv2D(4, 3, strides=2), layers.BatchNormalization(epsilon=0.1)],
    "without gamma": lambda: [layers.Conv2D(4, 1), layers.BatchNormalization(scale=False)],
    "without beta": lambda: [layers.Conv2D(4, 1, use_bias=False), layers.BatchNormalization(center=False)],
    "depthwise": lambda: [layers.DepthwiseConv2D(3, depth_multiplier=2), layers.BatchNormalization()],
    "depthwise without multiplier": lambda: [layers.DepthwiseConv2D(3), layers.BatchNormalization()],
    "swish": lambda: [
        layers.Conv2D(4, 3),
        layers.BatchNormalization(),
        layers.Activation("swish"),
        layers.Conv2D(2, 1),
    ],
}


@pytest.mark.parametrize("name", STACKS)
def test_values_and_gradients_stay(name):
    model = network(*STACKS[name]())
    function = stored(model)
    folded = fold_batch_norm(function)
    assert norms(folded) == 0
    assert_same(folded, function, model.variables)
    statistics = [v for v in model.variables if "moving" in v.name]
    assert len(statistics) == 2
    assert gradients(folded, statistics) == [None, None]


def test_a_saved_model_calls_a_function_for_each_layer(tmp_path):
    model = network(*STACKS["swish"](), layers.DepthwiseConv2D(2), layers.BatchNormalization())
    loaded, function = saved_and_loaded(model, tmp_path / "model")
    assert "StatefulPartitionedCall" in [o.type for o in function.graph.get_operations()]
    folded = fold_batch_norm(function)
    assert norms(folded) == 0
    assert_same(folded, function, loaded.trainable_variables)
    np.testing.assert_allclose(folded(pictures(2)), model(pictures(2)), rtol=1e-4, atol=1e-5)


def test_what_follows_no_convolution_of_its_own_is_left_alone():
    class Shared(layers.Layer):
        """The convolution feeds a BatchNorm and, past it, a sum; another one follows a concatenation."""

        def __init__(self):
            super().__init__()
            self.convs = [layers.Conv2D(2, 1) for _ in range(2)]
            self.norms = [layers.BatchNormalization() for _ in range(3)]

        def call(self, x):
            a, b = (conv(x) for conv in self.convs)
            y = self.norms[0](a) + a
            return self.norms[2](tf.concat([y, self.norms[1](b)], -1))

    model = network(Shared())
    function = stored(model)
    folded = fold_batch_norm(function)
    assert norms(folded) == 2
    assert_same(folded, function, model.trainable_variables)


def test_a_kernel_of_two_convolutions():
    kernel, x = tf.Variable(tf.ones([1, 1, 3, 2]) / 3), tf.ones([1, 6, 6, 3])
    gammas = [tf.Variable([2.0, 2.0]), tf.Variable([3.0, 3.0])]
    zeros, ones = tf.Variable(tf.zeros([2])), tf.Variable(tf.ones([2]))

    def call(images):
        maps = [
            tf.compat.v1.nn.fused_batch_norm(
                tf.nn.conv2d(images, kernel, 1, "SAME"), gamma, zeros, zeros, ones, 1e-6, is_training=False
            )[0]
            for gamma in gammas
        ]
        return tf.reduce_mean(tf.concat(maps, -1), [1, 2])

    folded = fold_batch_norm(traced(call))
    np.testing.assert_allclose(folded(x), [[2, 2, 3, 3]], rtol=1e-5)
    assert operations(folded).count("ReadVariableOp") == 5


def after(model, change):
    return traced(lambda images: change(model(images, training=False)))


def test_a_norm_whose_statistics_are_results_is_left_alone():
    kernel, ones = tf.Variable(tf.ones([1, 1, 3, 2])), tf.Variable(tf.ones([2]))

    def norm(maps):
        return tf.compat.v1.nn.fused_batch_norm(maps, ones, ones, ones, ones, is_training=False)

    def call(images):
        maps, mean, _ = norm(tf.nn.conv2d(images, kernel, 1, "SAME"))
        return tf.reduce_mean(norm(tf.nn.conv2d(images, kernel, 1, "SAME"))[0] + maps, [1, 2]) + mean

    function = traced(call)
    folded = fold_batch_norm(function)
    assert norms(folded) == 1
    assert_same(folded, function, [kernel])


@tf.custom_gradient
def backwards(x):
    return tf.identity(x), lambda dy: -dy


def switched(x):
    """As modules of the TF1 format do it."""
    return tf.raw_ops.Merge(inputs=list(tf.raw_ops.Switch(data=x, pred=x[0, 0] > 0)))[0]


TABLE = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer([0, 1], [1.0, 2.0]), -1.0)
UNUSUAL = {
    "there is none": lambda model: traced(lambda images: tf.reduce_mean(images, [1, 2])),
    "none uses stored": lambda model: traced(lambda images: model(images, training=True)),
    "may have side effects": lambda model: after(model, lambda x: x + tf.random.uniform([4])),
    "it calls": lambda model: after(model, lambda x: tf.cond(x[0, 0] > 0, lambda: x, lambda: -x)),
    "is control flow": lambda model: after(model, switched),
    "a gradient of its own": lambda model: after(model, backwards),
    "no variable": lambda model: after(model, lambda x: x + TABLE.lookup(tf.cast(x, tf.int32))),
    "one tensor to one tensor": lambda model: after(model, lambda x: (x, x)),
}


@pytest.mark.parametrize("reason", UNUSUAL)
def test_unusual_networks_stay_as_they_are(reason, caplog):
    function = UNUSUAL[reason](network(*STACKS["plain"]()))
    with caplog.at_level(logging.DEBUG, "trainer"):
        assert fold_batch_norm(function) is None
    assert reason in caplog.text


def test_a_network_that_comes_out_different_is_noticed(monkeypatch, caplog):
    fold_pair = folding.fold_pair

    def wrong(pair, graph):
        pair.norm.attr["epsilon"].f += 1e-3
        fold_pair(pair, graph)

    monkeypatch.setattr(folding, "fold_pair", wrong)
    with caplog.at_level(logging.DEBUG, "trainer"):
        assert fold_batch_norm(stored(network(*STACKS["plain"]()))) is None
    assert "folded, features differ by" in caplog.text


@pytest.fixture
def in_bfloat16():
    tf.config.optimizer.set_experimental_options({BFLOAT16: True})
    yield
    tf.config.optimizer.set_experimental_options({BFLOAT16: False})


def test_sixteen_bits_on_top(in_bfloat16):
    model = network(*STACKS["plain"](), layers.Conv2D(4, 3), layers.BatchNormalization())
    expected = model(pictures(4))
    folded = fold_batch_norm(stored(model))
    assert folded is not None  # The comparison of the two is in float32.
    assert tf.config.optimizer.get_experimental_options()[BFLOAT16]
    assert not tf.config.optimizer.get_experimental_options()["disable_meta_optimizer"]
    found = tf.function(lambda images: folded(images))(pictures(4))
    error = np.abs(found - expected).max() / np.abs(expected).max()
    # Where the processor has no 16 bits, what TensorFlow was asked for changes nothing.
    assert error < 3e-2
    assert error > 1e-5 or "bfloat16" not in supported()


def test_inference_folds_once_and_only_while_tracing(monkeypatch):
    model, calls = network(*STACKS["plain"]()), []
    monkeypatch.setattr(folding, "fold_batch_norm", lambda f: calls.append(f) or fold_batch_norm(f))
    inference = Inference(lambda images: model(images, training=False), shape=(6, 6, 3))
    expected = inference(pictures(2))
    assert calls == []
    for batch in (3, 2):
        found = tf.function(lambda images: inference(images))(pictures(batch))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert len(calls) == 1


@pytest.mark.parametrize("case", ["several replicas", "other size"])
def test_inference_that_is_not_folded(case, monkeypatch):
    monkeypatch.setattr(folding, "fold_batch_norm", lambda f: pytest.fail("was folded"))
    inference = Inference(lambda images: tf.reduce_mean(images, [1, 2]), shape=(6, 6, 3))
    images = tf.ones([2, 8 if case == "other size" else 6, 6, 3])
    if case == "other size":
        np.testing.assert_allclose(tf.function(inference)(images), tf.ones([2, 3]))
        return
    with tf.distribute.OneDeviceStrategy("/cpu:0").scope():
        np.testing.assert_allclose(tf.function(inference)(images), tf.ones([2, 3]))


def save_module(model, folder):
    """A reusable module: it is called with `training`, and brings a penalty."""
    module = tf.train.Checkpoint()
    module.__call__ = tf.function(lambda inputs, training=False: model(inputs, training=training))
    for training in (True, False):
        module.__call__.get_concrete_function(tf.TensorSpec([None, None, None, 3], tf.float32), training)
    module.variables, module.trainable_variables = model.variables, model.trainable_variables
    module.regularization_losses = [tf.function(lambda: tf.reduce_sum(model.variables[0] ** 2))]
    module.regularization_losses[0].get_concrete_function()
    tf.saved_model.save(module, str(folder))


def test_a_hub_module_is_folded_with_stored_statistics_only(tmp_path):
    model = network(*STACKS["plain"]())
    save_module(model, tmp_path / "module")
    backbone = open_backbone(f"hub:{tmp_path / 'module'}", image_size=6)
    counts = {}
    for training, bn_batch in ((False, False), (True, False), (True, True)):

        @tf.function(input_signature=[SPEC])
        def step(images, training=training, bn_batch=bn_batch):
            features = backbone(images, training=training, bn_batch=bn_batch)
            return features, backbone.regularization_losses()

        features, penalties = step(pictures(2))
        np.testing.assert_allclose(penalties, [np.sum(model.variables[0] ** 2)] * training, rtol=1e-5)
        if not bn_batch:
            np.testing.assert_allclose(features, model(pictures(2)), rtol=1e-4, atol=1e-5)
        bodies = step.get_concrete_function().graph.as_graph_def().library.function
        counts[training, bn_batch] = sum(node.op in folding.NORMS for f in bodies for node in f.node_def)
    assert counts == {(False, False): 0, (True, False): 0, (True, True): 1}
