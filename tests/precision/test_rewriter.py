"""Arithmetic through the graph rewriter, told by how it rounds: 1 + 2^-12 is 1 in 16 bits."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import config_pb2
from tensorflow.python.eager import context

from trainer.model.hub import hub
from trainer.precision import rewriter
from trainer.precision.rewriter import (
    apart,
    arithmetic,
    in_precision,
    leaving_out,
    left_out,
    require_rewritten,
    require_supported,
    supported,
    was_rewritten,
)
from trainer.values import PRECISIONS, UsageError

FINE = 1 + 2.0**-12
EXACT, ROUNDED = 8 * FINE, 8.0
AMP = ("auto_mixed_precision_onednn_bfloat16", "auto_mixed_precision", "auto_mixed_precision_mkl")


@pytest.fixture(autouse=True)
def options_as_before():
    yield
    left = {**dict.fromkeys(AMP), "remapping": None, "min_graph_nodes": None, "disable_meta_optimizer": False}
    tf.config.optimizer.set_experimental_options(left)
    supported.cache_clear()


@pytest.fixture
def bfloat16():
    if "bfloat16" not in supported():
        pytest.skip("TensorFlow's rewriter does no bfloat16 on this machine")


def make_sum(kernel=None):
    """Returns a fresh tf.function [B, 4, 4, 8] -> [B, 1]: the largest sum over a pixel's channels."""

    @tf.function
    def channel_sum(images):
        ones = tf.ones([1, 1, 8, 1]) if kernel is None else kernel
        maps = tf.nn.conv2d(images, ones, strides=1, padding="SAME")
        return tf.reduce_max(tf.nn.relu(maps), [1, 2])

    return channel_sum


def fine_images():
    return tf.fill([2, 4, 4, 8], FINE)


def answer(function, precision):
    sums = in_precision(function, precision)(fine_images())
    assert sums.dtype == tf.float32
    return set(sums.numpy().ravel().tolist())


@pytest.mark.parametrize("precision", PRECISIONS)
def test_supported_is_what_really_rounds(precision):
    expected = ROUNDED if precision != "float32" and precision in supported() else EXACT
    assert answer(make_sum(), precision) == {expected}
    assert supported()[0] == "float32"


def test_nothing_is_supported_without_the_rewriter():
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    supported.cache_clear()
    assert supported() == ("float32",)
    require_supported("float32")
    with pytest.raises(UsageError) as error:
        require_supported("bfloat16")
    assert str(error.value) == (
        "--precision=bfloat16 has no effect on this machine: TensorFlow's rewriter leaves the graph as it is "
        "(here it does float32): use --precision=float32 or --precision=auto"
    )
    with pytest.raises(UsageError, match="here it does float32"):
        require_rewritten(make_sum(), fine_images(), precision="float16")


def test_what_fails_in_the_trial_is_not_supported(monkeypatch):
    def broken(images, kernel, matrix):
        return tf.ensure_shape(tf.py_function(lambda x: x, [images], tf.float32), [7])

    supported.cache_clear()
    monkeypatch.setattr(rewriter, "small_network", broken)
    assert supported() == ("float32",)


def test_the_trial_is_made_once(monkeypatch):
    supported()
    monkeypatch.setattr(rewriter, "takes_effect", None)
    assert supported()[0] == "float32"


def test_functions_of_two_precisions_live_side_by_side(bfloat16):
    first, second = make_sum(), make_sum()
    for _ in range(3):
        assert answer(first, "float32") == {EXACT}
        assert answer(second, "bfloat16") == {ROUNDED}


@pytest.mark.parametrize("order", [("float32", "bfloat16"), ("bfloat16", "float32")])
def test_one_function_computes_as_it_is_called(bfloat16, order):
    expected = {"float32": EXACT, "bfloat16": ROUNDED}
    function = make_sum()
    for precision in order * 2:
        assert answer(function, precision) == {expected[precision]}
    assert function.experimental_get_tracing_count() == 1


def test_each_arithmetic_is_optimized_once_and_float32_is_that_of_no_option(bfloat16):
    function = make_sum()
    function(fine_images())
    answer(function, "bfloat16")
    with context.collect_graphs() as graphs:
        for precision in ("float32", "bfloat16") * 2:
            answer(function, precision)
        function(fine_images())
    assert graphs == []


def make_depthwise():
    """Returns a fresh tf.function: images [2, 4, 4, 8] -> the largest output, and their sum as a gradient."""
    kernel = tf.Variable(tf.ones([1, 1, 8, 1]))

    @tf.function
    def both(images):
        with tf.GradientTape() as tape:
            maps = tf.nn.depthwise_conv2d(images, kernel, strides=[1, 1, 1, 1], padding="SAME")
        return tf.reduce_max(maps), tape.gradient(maps, kernel)[0, 0, 0, 0]

    return both


def test_gradients_of_depthwise_convolutions_stay_float32(bfloat16):
    def answers():
        with arithmetic("bfloat16"):
            return [float(number) for number in make_depthwise()(fine_images())]

    assert answers() == [1.0, 32 * FINE]
    with leaving_out(()):
        # As in runs that began before; they go on so.
        assert answers() == [1.0, 32.0]
        with arithmetic("float32"):
            assert [float(number) for number in make_depthwise()(fine_images())] == [FINE, 32 * FINE]
    assert answers() == [1.0, 32 * FINE]
    assert left_out() == list(rewriter.LEFT_OUT)


def test_a_list_of_the_users_own_is_left_alone_and_an_inherited_one_is_not():
    ours = ",".join(rewriter.LEFT_OUT)
    # The module looks once, when it is imported; a process of its own, as others here hold parts of it.
    code = (
        "import importlib, os, sys\n"
        "from trainer.precision import rewriter\n"
        "for given in sys.argv[1:]:\n"
        "    os.environ['TF_AUTO_MIXED_PRECISION_GRAPH_REWRITE_ALLOWLIST_REMOVE'] = given\n"
        "    importlib.reload(rewriter)\n"
        "    with rewriter.leaving_out(()), rewriter.arithmetic('bfloat16'):\n"
        "        print(os.environ['TF_AUTO_MIXED_PRECISION_GRAPH_REWRITE_ALLOWLIST_REMOVE'])\n"
    )
    line = [sys.executable, "-c", code, "Conv2D", ours, ""]
    found = subprocess.run(line, capture_output=True, text=True, check=True)
    assert found.stdout == "Conv2D\n\n\n"


def test_a_function_inside_another_computes_as_that_one_does(bfloat16):
    inner = in_precision(make_sum(), "bfloat16")
    assert answer(tf.function(lambda images: inner(images)), "float32") == {EXACT}


def options_here():
    """The options of the rewriter that this thread's calls are made with."""
    text = context.context().function_call_options.config_proto_serialized
    return config_pb2.ConfigProto.FromString(text).graph_options.rewrite_options


@pytest.mark.parametrize("order", [("float32", "bfloat16"), ("bfloat16", "float32")])
def test_what_is_apart_stays_float32_with_its_gradients(bfloat16, order):
    weight, matrix = tf.Variable(FINE), tf.Variable(tf.fill([1, 1], FINE))

    def last(sums):
        return tf.matmul(sums, matrix) * weight

    @tf.function
    def function(images):
        with tf.GradientTape() as tape:
            sums = make_sum()(images)
            result = apart(last, sums)
        with arithmetic("float32"):
            return sums, result, tape.gradient(result, matrix)

    for precision in order * 2:
        sums, result, gradient = in_precision(function, precision)(fine_images())
        expected = {"float32": EXACT, "bfloat16": ROUNDED}[precision]
        assert set(sums.numpy().ravel().tolist()) == {expected}
        np.testing.assert_allclose(result, [[expected * FINE * FINE]] * 2, rtol=1e-6)
        np.testing.assert_allclose(gradient, [[2 * expected * FINE]], rtol=1e-6)
    assert function.experimental_get_tracing_count() == 1


def test_what_is_apart_may_capture_and_be_traced_again():
    @tf.function
    def function(x):
        double = 2.0 * x
        return apart(lambda y, nothing: y + double, x, None)

    assert float(function(tf.constant(1.0))) == 3.0
    assert function(tf.ones([2])).numpy().tolist() == [3.0, 3.0]
    assert float(apart(lambda y: y + 1.0, tf.constant(1.0))) == 2.0


def test_options_are_restored_and_others_kept():
    tf.config.optimizer.set_experimental_options({"remapping": False, AMP[0]: True})
    before, public = options_here(), tf.config.optimizer.get_experimental_options()
    with arithmetic("float16"):
        inside = options_here()
        assert [getattr(inside, name) for name in AMP] == [inside.DEFAULT, inside.ON, inside.DEFAULT]
        assert inside.remapping == before.remapping == inside.OFF
        with arithmetic("float32"):
            assert {getattr(options_here(), name) for name in AMP} == {inside.DEFAULT}
        assert options_here() == inside
    assert options_here() == before
    assert tf.config.optimizer.get_experimental_options() == public


def test_options_are_restored_after_an_error():
    before = options_here()
    with pytest.raises(KeyError), arithmetic("bfloat16"):
        raise KeyError
    assert options_here() == before


def test_other_threads_compute_as_before(bfloat16):
    # Options of the process would be those of a thread for good that begins while they are set.
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other, arithmetic("bfloat16"):
        plain = make_sum()
        assert set(one.submit(plain, fine_images()).result().numpy().ravel().tolist()) == {EXACT}
        assert other.submit(answer, make_sum(), "bfloat16").result() == {ROUNDED}
        assert set(plain(fine_images()).numpy().ravel().tolist()) == {ROUNDED}
        with arithmetic("float32"):
            assert set(other.submit(plain, fine_images()).result().numpy().ravel().tolist()) == {EXACT}
            assert one.submit(answer, plain, "bfloat16").result() == {ROUNDED}
        assert set(one.submit(plain, fine_images()).result().numpy().ravel().tolist()) == {EXACT}


def test_threads_that_take_turns_disturb_nobody(bfloat16):
    function, expected = make_sum(), {"float32": {EXACT}, "bfloat16": {ROUNDED}}

    def often(precision):
        return all(answer(function, precision) == expected[precision] for _ in range(50))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(often, ["float32", "bfloat16"] * 4))
    assert answer(function, "float32") == {EXACT}


def test_a_precision_that_is_none_is_refused():
    with pytest.raises(ValueError, match="'float64' is none of float32, bfloat16, float16"):
        in_precision(make_sum(), "float64")(fine_images())


def test_the_function_itself_stays_at_hand():
    function = make_sum()
    wrapped = in_precision(function, "float32")
    assert wrapped.__wrapped__ is function
    assert not set(vars(wrapped)) - {"__wrapped__"}


def test_casts_are_found(bfloat16):
    function = make_sum()
    assert not was_rewritten(function, fine_images(), precision="float32")
    assert was_rewritten(function, fine_images(), precision="bfloat16")


def test_casts_are_found_in_what_ran_before(bfloat16):
    function = make_sum()
    answer(function, "bfloat16")
    before = tf.config.optimizer.get_experimental_options()
    # An operation outside of functions has a graph, too, when it first runs.
    for outside in (tf.math.erfinv, tf.math.lgamma):
        assert was_rewritten(lambda x, op=outside: op(function(x)), fine_images(), precision="bfloat16")
    assert tf.config.optimizer.get_experimental_options() == before


def test_casts_are_found_in_nested_functions_behind_python(bfloat16):
    inner = make_sum()
    outer = tf.function(lambda images: inner(images) + 1.0)
    assert was_rewritten(lambda images: outer(images).numpy(), fine_images(), precision="bfloat16")


def make_training():
    """Returns a variable and a tf.function that takes any number of steps of gradient descent on it."""
    kernel = tf.Variable(tf.fill([1, 1, 8, 1], FINE))
    channel_sum = make_sum(kernel)

    @tf.function
    def run(num_steps):
        for _ in tf.range(num_steps):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(channel_sum(fine_images()))
            gradient = tape.gradient(loss, kernel)
            kernel.assign_sub(gradient)

    return kernel, run


def test_casts_are_found_in_a_loop_that_takes_no_step(bfloat16):
    kernel, run = make_training()
    assert was_rewritten(run, tf.constant(0), precision="bfloat16")
    assert kernel.numpy().ravel().tolist() == [FINE] * 8


def test_variables_stay_float32(bfloat16):
    kernel, run = make_training()
    in_precision(run, "bfloat16")(tf.constant(1))
    assert kernel.dtype == tf.float32
    # The gradient is rounded to 1, the variable is not.
    assert kernel.numpy().ravel().tolist() == [FINE - 1] * 8


def test_casts_are_found_in_a_saved_model(bfloat16, tiny_backbone):
    module = hub.load(str(tiny_backbone))
    function = tf.function(lambda images: module(images, False))
    images = tf.fill([1, 4, 4, 3], FINE)
    assert was_rewritten(function, images, precision="bfloat16")
    assert in_precision(function, "bfloat16")(images).numpy().tolist() == [[2.0, 2.0]]
    assert in_precision(function, "float32")(images).numpy().tolist() == [[2 * FINE, 2 * FINE]]


@tf.function
def nothing_to_convert(images):
    own = tf.cast(tf.cast(images, tf.bfloat16), tf.float32)
    return tf.reduce_sum(tf.exp(own) + tf.sin(images) + tf.cos(images))


def test_casts_of_the_network_itself_do_not_count():
    assert not was_rewritten(nothing_to_convert, fine_images(), precision="bfloat16")


def test_a_precision_without_effect_is_an_error(bfloat16):
    require_rewritten(make_sum(), fine_images(), precision="bfloat16")
    with pytest.raises(UsageError) as error:
        require_rewritten(nothing_to_convert, fine_images(), precision="bfloat16")
    assert str(error.value) == (
        "--precision=bfloat16 has no effect on this machine: TensorFlow's rewriter leaves the graph as it is "
        "(it found nothing in this network that it could convert): use --precision=float32 or "
        "--precision=auto"
    )


def test_in_float32_nothing_is_called():
    require_rewritten(None, precision="float32")
    assert not was_rewritten(None, precision="float32")
