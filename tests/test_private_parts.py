"""What has no public name in TensorFlow, and what happens where it is gone."""

import ast
import builtins
import logging
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tensorflow.python.eager import context

from trainer.export import frozen
from trainer.model import graphs as inference_graphs
from trainer.model.folding import fold_batch_norm
from trainer.precision import rewriter
from trainer.record.event_files import EventFile
from trainer.values import TrainerError

TRAINER = Path(__file__).parent.parent / "trainer"
# Private names of other people's objects. Each is asked for with a default, or late, and tested below.
KNOWN = {"_run_inline_graph_optimization", "_is_hub_module_v1", "_resource"}
# Of Keras 3, in the files that alone know it: what leads from a layer to the next has no public name there.
OF_KERAS_3 = {"_flatten_layers", "_inbound_nodes", "_keras_history", "_layers"}


@pytest.fixture
def hidden(monkeypatch):
    """hide(name): imports of a name from TensorFlow fail from now on, as if it were not there."""

    def hide(name):
        original = builtins.__import__

        def without(module, globals=None, locals=None, fromlist=(), level=0):
            ours = (globals or {}).get("__name__", "").startswith("trainer.")
            if ours and name in (fromlist or ()) and module.startswith("tensorflow."):
                raise ImportError(f"cannot import name {name!r} from {module!r}")
            return original(module, globals, locals, fromlist, level)

        monkeypatch.setattr(builtins, "__import__", without)
        inference_graphs._inliner.cache_clear()

    yield hide
    inference_graphs._inliner.cache_clear()


def test_no_other_private_name_is_used():
    found, of_keras_3 = set(), set()
    for path in sorted(TRAINER.rglob("*.py")):
        tree, here = ast.parse(path.read_text()), set()
        # Of classes of our own: methods and what they keep.
        ours = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        for node in ast.walk(tree):
            names = []
            if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") not in ("self", "cls"):
                names = [node.attr]
            elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("trainer"):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "getattr":
                names = [str(node.args[1].value)] if isinstance(node.args[1], ast.Constant) else []
            here |= {name for name in names if name.startswith("_") and not name.startswith("__")} - ours
        (of_keras_3 if path.stem.startswith("keras3") else found).update(here)
    # Those of named tuples, dataclasses and os are documented.
    documented = {"_asdict", "_replace", "_fields", "_exit"}
    assert found - documented == KNOWN
    assert of_keras_3 - documented == OF_KERAS_3


def test_without_the_inliner_networks_are_not_folded_and_it_is_said_once(hidden, caplog):
    images = tf_keras.Input([8, 8, 3])
    maps = tf_keras.layers.BatchNormalization()(tf_keras.layers.Conv2D(2, 3)(images))
    network = tf_keras.Model(images, maps)
    call = tf.function(lambda x: network(x, training=False), autograph=False)
    function = call.get_concrete_function(tf.TensorSpec([None, 8, 8, 3]))
    assert fold_batch_norm(function) is not None
    hidden("_run_inline_graph_optimization")
    assert fold_batch_norm(function) is None
    assert fold_batch_norm(function) is None
    (line,) = [
        line for name, level, line in caplog.record_tuples if (name, level) == ("trainer", logging.WARNING)
    ]
    assert line.endswith(f"TensorFlow {tf.__version__} has no _run_inline_graph_optimization")


def test_without_the_collector_of_graphs_casts_are_found_all_the_same(hidden):
    if "bfloat16" not in rewriter.supported():
        pytest.skip("TensorFlow's rewriter does no bfloat16 on this machine")
    hidden("collect_graphs")
    convolve = tf.function(lambda x: tf.nn.conv2d(x, tf.ones([3, 3, 8, 8]), 1, "SAME"))
    try:
        for _ in range(2):  # The second time, nothing needs to be optimized.
            assert rewriter.was_rewritten(convolve, tf.ones([2, 8, 8, 8]), precision="bfloat16")
        assert not rewriter.was_rewritten(tf.function(lambda x: x + 1), tf.ones([2]), precision="bfloat16")
    finally:
        # What tf.summary.trace_off leaves on.
        context.context().disable_graph_collection()


def test_without_options_of_threads_all_is_float32(hidden, caplog):
    hidden("context")
    rewriter.supported.cache_clear()
    try:
        assert rewriter.supported() == ("float32",)
    finally:
        rewriter.supported.cache_clear()
    (line,) = [line for name, _, line in caplog.record_tuples if name == "trainer"]
    assert line.startswith("this TensorFlow computes in float32 only: ")


def test_without_the_conversion_to_constants_export_says_so(hidden):
    variable = tf.Variable(2.0)
    function = tf.function(lambda x: x * variable).get_concrete_function(tf.TensorSpec([]))
    np.testing.assert_array_equal(frozen._with_constants(function)(tf.constant(3.0)), [6.0])
    hidden("convert_variables_to_constants_v2")
    with pytest.raises(TrainerError, match=r"^export makes constants .*: use the version in "):
        frozen._with_constants(function)


def test_without_the_resource_of_a_writer_events_are_written_all_the_same(tmp_path, caplog):
    class Writer:
        def __init__(self, folder):
            self._writer = tf.summary.create_file_writer(folder)

        def __getattr__(self, name):
            if name == "_resource":
                raise AttributeError(name)
            return getattr(self._writer, name)

    file = EventFile(tmp_path, create=Writer)
    file.begin_again(3)
    with file.writing(3, num_events=1):
        tf.summary.scalar("loss", 0.5)
    file.close()
    assert "must be started again" in caplog.text
    assert file.path.stat().st_size > 0
