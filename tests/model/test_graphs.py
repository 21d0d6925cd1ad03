"""Random operations that no seed reaches: found wherever they are, and told."""

import contextlib

import pytest
import tensorflow as tf
import tf_keras
from tensorflow.python.framework import op_def_registry
from tensorflow.python.framework.config import disable_op_determinism

from tests.loop.toys import dataset_of, plan_of, random_batches, run_of, state_of
from tests.model.modules import draws
from trainer.model import graphs as random_operations
from trainer.model.backbones import open_backbone
from trainer.model.backbones.keras import KerasBackbone
from trainer.model.dropout import drawing_from
from trainer.model.graphs import report_random_ops, stateful_random_ops
from trainer.values import UsageError


def graph_of(function, *specs):
    return tf.function(function).get_concrete_function(*specs).graph


def spec_of(bn):
    return plan_of(f"name=top; for=2steps; train=all; lr=0.1; bn={bn}").phases[0].spec


def save_dropping(folder, *, seed=None):
    """A reusable SavedModel that drops features while it trains."""
    module = tf.train.Checkpoint()
    module.variables = module.trainable_variables = [tf.Variable(tf.ones([3, 2]), name="kernel")]

    @tf.function
    def call(images, training=False):
        features = tf.reduce_mean(tf.tensordot(images, module.variables[0], 1), [1, 2])
        return tf.nn.dropout(features, 0.5, seed=seed) if training else features

    for training in (True, False):
        call.get_concrete_function(tf.TensorSpec([None, 8, 8, 3]), training)
    module.__call__ = call
    module.regularization_losses = []
    tf.saved_model.save(module, str(folder))
    return folder


def test_every_name_is_a_stateful_operation():
    known = {name: op_def_registry.get(name) for name in random_operations._OF_GENERATORS}
    seeded = {name: op_def_registry.get(name) for name in random_operations._WITH_SEED}
    assert all(definition.is_stateful for definition in (known | seeded).values())
    assert all({"seed", "seed2"} <= {a.name for a in definition.attr} for definition in seeded.values())


def test_what_draws_from_a_state_is_found_wherever_it_is():
    generator = tf.random.Generator.from_seed(1)
    inner = tf.function(lambda: tf.random.normal([2]))

    def hidden():
        return tf.while_loop(lambda i, x: i < 3, lambda i, x: (i + 1, x + inner()), [0, tf.zeros([2])])

    def branch(x):
        return tf.cond(x > 0, lambda: tf.random.shuffle(tf.range(3)), lambda: tf.range(3))

    assert stateful_random_ops(graph_of(hidden)) == ["RandomStandardNormal"]
    assert stateful_random_ops(graph_of(branch, tf.TensorSpec([]))) == ["RandomShuffle"]
    assert stateful_random_ops(graph_of(lambda: generator.normal([2]))) == ["RngReadAndSkip"]
    assert stateful_random_ops(graph_of(lambda: tf.random.uniform([2]) + tf.random.normal([2]))) == [
        "RandomStandardNormal",
        "RandomUniform",
    ]
    assert stateful_random_ops(graph_of(lambda: tf.random.stateless_normal([2], [0, 1]))) == []


@pytest.mark.parametrize(("bn", "found"), [("batch", ["RandomUniform"]), ("frozen", [])])
def test_a_module_draws_where_it_is_called_as_in_training(tmp_path, bn, found):
    backbone = open_backbone(f"savedmodel:{save_dropping(tmp_path / 'module')}", image_size=8)
    state = state_of(f"for=9steps; train=all; lr=0.1; bn={bn}", backbone=backbone, dropout=0.5)
    run, batches = run_of(state), dataset_of(*random_batches(2, side=8))
    graph = run.get_concrete_function(iter(batches), tf.constant(0)).graph
    assert stateful_random_ops(graph) == found
    # Looking costs no trace: the run is the one that was looked at.
    run(iter(batches), tf.constant(2))
    assert run.experimental_get_tracing_count() == 1


def test_a_layer_that_takes_no_seed_is_found():
    images = tf_keras.Input([8, 8, 3])
    x = tf_keras.layers.GlobalAveragePooling2D()(tf_keras.layers.GaussianNoise(0.5)(images))
    backbone = KerasBackbone("keras:Toy", tf_keras.Model(images, x), tf.identity, size_px=8)

    def forward(images):
        with drawing_from(draws([0, 1], 2)):
            return backbone(images, training=True, bn_batch=True)

    assert stateful_random_ops(graph_of(forward, tf.TensorSpec([2, 8, 8, 3]))) == ["RandomStandardNormal"]


@pytest.mark.parametrize(("bn", "way"), [("batch", "bn=frozen in --phase"), ("frozen", "--backbone")])
def test_a_warning_of_one_line(caplog, bn, way):
    with caplog.at_level("WARNING", "trainer"):
        report_random_ops(graph_of(lambda: tf.random.uniform([2]) + tf.random.uniform([2])), spec_of(bn))
        report_random_ops(graph_of(lambda: tf.random.stateless_normal([2], [0, 1])), spec_of(bn))
    [message] = caplog.messages
    assert message.startswith("phase top: the network draws random numbers of its own (RandomUniform): ")
    assert way in message
    assert "\n" not in message


def test_a_plugin_may_be_what_draws(caplog):
    with caplog.at_level("WARNING", "trainer"):
        report_random_ops(graph_of(lambda: tf.random.uniform([2])), spec_of("frozen"), has_plugins=True)
    [message] = caplog.messages
    assert message.startswith("phase top: the network, or a plugin, draws random numbers of its own (Random")
    assert "a plugin that draws from the seed it is handed, avoids that" in message


@contextlib.contextmanager
def determinism():
    tf.config.experimental.enable_op_determinism()
    try:
        yield
    finally:
        disable_op_determinism()


def test_what_fails_where_all_is_deterministic_is_refused(tmp_path, caplog):
    """As on a GPU: TensorFlow computes what has a seed, and nothing else."""
    # One that another test has set would give every operation a seed.
    tf.random.set_seed(None)
    for bn, seed in (("batch", None), ("batch", 7), ("frozen", None)):
        module = tf.saved_model.load(str(save_dropping(tmp_path / f"{bn}-{seed}", seed=seed)))
        call = tf.function(lambda images, module=module: module(images, True))
        graph = call.get_concrete_function(tf.TensorSpec([4, 8, 8, 3])).graph
        caplog.clear()
        with determinism():
            if bn == "batch" and not seed:
                with pytest.raises(UsageError, match=r"^phase top: .*RandomUniform.* bn=frozen in --phase$"):
                    report_random_ops(graph, spec_of(bn))
            else:
                report_random_ops(graph, spec_of(bn))
                assert len(caplog.messages) == 1
