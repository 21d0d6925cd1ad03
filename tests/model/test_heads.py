"""Heads: shapes, names, seeds, and dropout in numbers. On several replicas: tests/loop/test_replicas.py."""

import numpy as np
import pytest
import tensorflow as tf

from tests.model.modules import draws
from trainer import plugins
from trainer.model.heads import Head, choose_head
from trainer.run.bit_rule import rule_head
from trainer.values import UsageError


def make(text="mlp(4)", *, num_logits=3, dropout=0.0, seed=0, width=6, **options):
    head = Head(text, num_logits=num_logits, dropout=dropout, seed=seed, **options)
    head.build(tf.TensorShape([None, width]))
    return head


def weights(head):
    return {name: variable.numpy() for name, variable in head.named_variables().items()}


@pytest.mark.parametrize(
    ("text", "shapes"),
    [
        ("linear", {"logits": (6, 3)}),
        ("linear()", {"logits": (6, 3)}),
        ("mlp(4)", {"dense_0": (6, 4), "logits": (4, 3)}),
        ("mlp(5, 4)", {"dense_0": (6, 5), "dense_1": (5, 4), "logits": (4, 3)}),
    ],
)
def test_names_and_shapes(text, shapes):
    head = make(text)
    expected = {}
    for layer, shape in shapes.items():
        expected[f"head/{layer}/kernel"] = shape
        expected[f"head/{layer}/bias"] = shape[1:]
    assert {name: value.shape for name, value in weights(head).items()} == expected
    assert len(head.trainable_variables) == len(expected)
    assert head(tf.ones([2, 6])).shape == (2, 3)


def test_computes_dense_relu_dense():
    head = make("mlp(4)")
    values = weights(head)
    head.named_variables()["head/dense_0/bias"].assign([0.1, -0.2, 0.3, -0.4])
    head.named_variables()["head/logits/bias"].assign([1.0, 2.0, 3.0])
    features = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    hidden = np.maximum(features @ values["head/dense_0/kernel"] + [0.1, -0.2, 0.3, -0.4], 0)
    expected = hidden @ values["head/logits/kernel"] + [1.0, 2.0, 3.0]
    np.testing.assert_allclose(head(tf.constant(features)), expected, rtol=1e-5, atol=1e-5)


def test_kernels_are_glorot_uniform_by_seed_and_biases_zero():
    tf.random.set_seed(1)
    first = weights(make("mlp(400,400)", seed=3, width=400))
    tf.random.set_seed(2)
    again, other = (
        weights(make("mlp(400,400)", seed=3, width=400)),
        weights(make("mlp(400,400)", seed=4, width=400)),
    )
    for name, value in first.items():
        np.testing.assert_array_equal(value, again[name])
        if name.endswith("bias"):
            assert not value.any()
        else:
            assert not np.array_equal(value, other[name])
    # Layers of one shape start apart; the bound is sqrt(6 / (fan in + fan out)).
    one, two = first["head/dense_0/kernel"], first["head/dense_1/kernel"]
    assert not np.array_equal(one, two)
    for kernel in (one, two):
        assert np.abs(kernel).max() <= np.sqrt(6 / 800)
        assert np.abs(kernel).max() > 0.99 * np.sqrt(6 / 800)
        assert abs(kernel.mean()) < 1e-3


def test_logits_can_start_at_zero():
    plain, zero = (weights(make(head, seed=3)) for head in ("mlp(4)", "zero_mlp(4)"))
    assert plain["head/logits/kernel"].any()
    assert not zero["head/logits/kernel"].any()
    np.testing.assert_array_equal(zero["head/dense_0/kernel"], plain["head/dense_0/kernel"])
    np.testing.assert_array_equal(make("zero_linear")(tf.ones([2, 6])), np.zeros([2, 3]))


@pytest.mark.parametrize(
    ("text", "dropout", "names"),
    [
        ("linear", 0.0, ["logits"]),
        ("linear", 0.2, ["dropout", "logits"]),
        ("mlp(5,4)", 0.2, ["dense_0", "dense_1", "dropout", "logits"]),
    ],
)
def test_layers_in_the_order_in_which_they_are_applied(text, dropout, names):
    head = make(text, dropout=dropout)
    assert [layer.name for layer in head.layers] == [f"head/{name}" for name in names]
    assert [name for layer in head.layers for name in layer.variables] == list(weights(head))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not one of linear, zero_linear, mlp, zero_mlp"),
        ("conv(3)", "--head=conv(3) is not one of linear, zero_linear, mlp, zero_mlp"),
        ("linear,linear", "is not one of"),
        ("linear(3)", "--head=linear(3): linear takes no arguments, and there is 3 besides"),
        ("mlp", "--head=mlp: there must be a width, as in mlp(1024,512)"),
        ("mlp()", "there must be a width"),
        ("mlp(0)", "widths=0 must be a whole number from 1 to 1e+06"),
        ("mlp(4,-1)", "widths=-1 must be a whole number"),
        ("mlp(2.5)", "widths=2.5 must be a whole number"),
        ("mlp('wide')", "widths='wide' must be a whole number"),
        ("mlp(", "is not one of linear, zero_linear, mlp, zero_mlp"),
    ],
)
def test_other_heads_are_refused(text, message):
    with pytest.raises(UsageError) as caught:
        make(text)
    assert message in str(caught.value)


def identity(width, *, dropout):
    head = make("linear", num_logits=width, dropout=dropout, width=width)
    head.named_variables()["head/logits/kernel"].assign(np.eye(width, dtype=np.float32))
    return head


@pytest.mark.parametrize("rate", [0.25, 0.5, 0.9])
def test_dropout_zeroes_a_share_and_scales_up_the_rest(rate):
    dropped = identity(100, dropout=rate)(tf.ones([200, 100]), draws=draws([0, 1], 200)).numpy()
    np.testing.assert_allclose(np.unique(dropped), [0, 1 / (1 - rate)], rtol=1e-6)
    # 20,000 draws: five standard deviations are below 0.018.
    assert abs((dropped == 0).mean() - rate) < 0.018
    assert len({row.tobytes() for row in dropped}) == 200


def test_dropout_is_a_function_of_the_seed_and_off_without_one():
    head, ones = identity(20, dropout=0.5), tf.ones([4, 20])
    first = head(ones, draws=draws([0, 1], 4)).numpy()
    np.testing.assert_array_equal(head(ones, draws=draws([0, 1], 4)), first)
    assert not np.array_equal(head(ones, draws=draws([0, 2], 4)), first)
    np.testing.assert_array_equal(head(ones), ones)
    np.testing.assert_array_equal(identity(20, dropout=0.0)(ones, draws=draws([0, 1], 4)), ones)


def test_dropout_is_applied_to_the_last_features_only():
    head = make("mlp(50)", num_logits=2, dropout=0.5, width=6)
    head.named_variables()["head/dense_0/bias"].assign(np.full(50, 10.0, np.float32))
    kernel = weights(head)["head/logits/kernel"]
    features = np.ones([3, 6], np.float32)
    hidden = np.maximum(features @ weights(head)["head/dense_0/kernel"] + 10.0, 0)
    assert hidden.min() > 0
    kept = tf.random.stateless_uniform([3, 50], [5, 6]).numpy() >= 0.5
    expected = (2 * hidden * kept) @ kernel
    np.testing.assert_allclose(
        head(tf.constant(features), draws=draws([5, 6], 3)), expected, rtol=1e-4, atol=1e-4
    )


NARROW = """
import trainer


@trainer.register.head("narrow")
def narrow(width: int = 8):
    '''One small hidden layer.'''
    return [width]


@trainer.register.head("mine")
@trainer.register.head("zero_mine")
def mine():
    '''Straight to logits.'''
    return []
"""


@pytest.mark.usefixtures("without_plugins")
def test_the_logits_of_the_head_of_a_plugin_start_at_zero_where_that_is_asked_for(tmp_path):
    (tmp_path / "narrow.py").write_text(NARROW)
    plugins.load_plugins([str(tmp_path / "narrow.py")])
    # --schedule=auto asks for it.
    for text in (rule_head("narrow(4)"), "zero_narrow(width=4)", " zero_narrow( 4 )"):
        zero, drawn = weights(make(text)), weights(make("narrow(4)"))
        assert {name: value.shape for name, value in zero.items()} == {
            "head/dense_0/kernel": (6, 4), "head/dense_0/bias": (4,),
            "head/logits/kernel": (4, 3), "head/logits/bias": (3,),
        }  # fmt: skip
        np.testing.assert_array_equal(zero["head/dense_0/kernel"], drawn["head/dense_0/kernel"])
        assert not zero["head/logits/kernel"].any()
        assert drawn["head/logits/kernel"].all()
    assert choose_head("zero_mine")[0].name == "zero_mine"
    assert not weights(make("zero_mine"))["head/logits/kernel"].any()
    with pytest.raises(UsageError, match=r"^--head=narrow\(0\.5\): width=0\.5 must be a whole number"):
        choose_head("zero_narrow(0.5)")
    # One that is fitted starts with what it is fitted to.
    for text in ("zero_probe", "zero_wide(4)", "zero_"):
        with pytest.raises(UsageError, match=r"^--head=zero_\S* is not one of linear, "):
            choose_head(text)
