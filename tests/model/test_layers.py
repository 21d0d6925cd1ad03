"""Layers in order of depth, and patterns that name some of them: by hand, and MobileNetV2 as published."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from trainer.model.backbones import open_backbone
from trainer.model.classifier import Classifier
from trainer.model.freezing import summary, trained
from trainer.model.heads import Head
from trainer.model.layers import Layer, from_layer, network_layers, top_share
from trainer.model.variable_names import lasting_names, unique_names
from trainer.values import UsageError


@pytest.fixture(scope="module")
def backbone():
    return open_backbone("keras:MobileNetV2", weights="none", image_size=160)


@pytest.fixture(scope="module")
def binary(backbone):
    """The classifier of the tutorials: MobileNetV2 at 160 px and one logit."""
    return Classifier(backbone, Head("linear", num_logits=1, dropout=0.2, seed=0))


def test_layers_of_a_keras_network_are_those_of_keras_in_its_order(backbone):
    names = [layer.name for layer in backbone.layers]
    assert names == ["input_1", *(layer.name for layer in backbone._network.layers[1:-1]), names[-1]]
    assert names[-1] == "global_average_pooling2d"
    # 154 without the pooling.
    assert (len(names), names.index("block_11_expand_BN"), names[153]) == (155, 99, "out_relu")
    by_name = dict(backbone.layers)
    assert by_name["out_relu"] == by_name["input_1"] == ()
    assert by_name["Conv_1"] == ("Conv_1/kernel",)
    assert by_name["block_11_expand_BN"] == tuple(
        f"block_11_expand_BN/{name}" for name in ("gamma", "beta", "moving_mean", "moving_variance")
    )
    assert [name for layer in backbone.layers for name in layer.variables] == list(backbone.variables)


def test_names_last_although_keras_counts_on():
    def layers():
        images = tf_keras.Input([4, 4, 3])
        first, second = (tf_keras.layers.Dense(2) for _ in range(2))
        x = second(first(images))
        network = tf_keras.Model(images, tf_keras.layers.GlobalAveragePooling2D()(tf.nn.relu6(x)))
        variables = unique_names(network.variables, names=lasting_names(network))
        return network_layers(network, variables=variables)

    assert layers() == layers() == (
        ("input_1", ()),
        ("dense", ("dense/kernel", "dense/bias")),
        ("dense_1", ("dense_1/kernel", "dense_1/bias")),
        ("tf.nn.relu6", ()),
        ("global_average_pooling2d", ()),
    )  # fmt: skip


def test_a_classifier_has_the_layers_of_backbone_and_head(backbone):
    classifier = Classifier(backbone, Head("mlp(1024,512)", num_logits=5, dropout=0.2, seed=0))
    assert len(classifier.named_layers) == 155 + 4
    assert classifier.named_layers[-8:] == (
        ("Conv_1", ("backbone/Conv_1/kernel",)),
        ("Conv_1_bn", tuple(f"backbone/{name}" for name in dict(backbone.layers)["Conv_1_bn"])),
        ("out_relu", ()),
        ("global_average_pooling2d", ()),
        ("head/dense_0", ("head/dense_0/kernel", "head/dense_0/bias")),
        ("head/dense_1", ("head/dense_1/kernel", "head/dense_1/bias")),
        ("head/dropout", ()),
        ("head/logits", ("head/logits/kernel", "head/logits/bias")),
    )
    rows = classifier.freezing_table(["unfreeze_top_layers=8"])
    assert [row.name for row in rows if row.state == "train"] == [
        "backbone/Conv_1/kernel", "backbone/Conv_1_bn/gamma", "backbone/Conv_1_bn/beta",
        *classifier.head.named_variables(),
    ]  # fmt: skip
    no_dropout = Classifier(backbone, Head("linear", num_logits=5, dropout=0.0, seed=0))
    assert [layer.name for layer in no_dropout.named_layers[154:]] == [
        "global_average_pooling2d",
        "head/logits",
    ]


@pytest.mark.parametrize(
    ("pattern", "parameters", "variables"),
    [
        ("from_layer=block_11_expand_BN", "1,863,873", 58),
        ("from_layer=99", "1,863,873", 58),
        ("from_layer=-56", "1,863,873", 58),
        ("from_layer=100", "1,862,721", 56),
        ("from_layer=120", "1,626,177", 38),
        # Those after 120, and of the head dropout and logits.
        ("unfreeze_top_layers=37", "1,626,177", 38),
        ("unfreeze_top_layers=2", "1,281", 2),
        ("unfreeze_top_layers=1", "1,281", 2),
        ("from_layer=-1", "1,281", 2),
        ("from_layer=0", "2,225,153", 158),
        ("from_layer=-155", "2,225,153", 158),
        ("unfreeze_top_layers=157", "2,225,153", 158),
        ("top_share=1", "2,225,153", 158),
        (".*", "2,225,153", 158),
    ],
)
def test_parameters_of_mobilenet_v2_that_train(binary, pattern, parameters, variables):
    rows = binary.freezing_table([pattern])
    assert summary(rows) == (
        f"{parameters} of 2,259,265 parameters train, in {variables} of 262 variables "
        f"({variables - 2} of the backbone)"
    )


def test_the_pattern_trains_every_variable_from_there_on(binary):
    rows = binary.freezing_table(["from_layer=block_16_project"])
    assert [row.name for row in rows if row.state == "train"] == [
        "backbone/block_16_project/kernel",
        "backbone/block_16_project_BN/gamma", "backbone/block_16_project_BN/beta",
        "backbone/Conv_1/kernel", "backbone/Conv_1_bn/gamma", "backbone/Conv_1_bn/beta",
        "head/logits/kernel", "head/logits/bias",
    ]  # fmt: skip
    states = {row.name: row.state for row in rows}
    assert states["backbone/Conv_1_bn/moving_mean"] == "statistics"
    assert states["backbone/block_16_depthwise_BN/gamma"] == "frozen"


TOY = (
    *(Layer(name, (f"backbone/{name}/kernel",) if name[0] == "c" else ()) for name in ("in", "c1", "relu")),
    *(Layer(name, (f"backbone/{name}/kernel",)) for name in ("c2", "c3", "c4", "c5")),
    *(Layer("pool"), Layer("head/dropout"), Layer("head/logits", ("head/logits/kernel",))),
)


@pytest.mark.parametrize(
    ("share", "first"),
    [
        ("1", 1), ("0.91", 1), ("0.9", 1), ("0.89", 2), ("0.5", 3), ("0.49", 4),
        ("0.3", 4), ("0.29", 5), ("0.01", 5), ("1e-9", 5),
    ],
)  # fmt: skip
def test_a_share_counts_layers_with_variables_and_rounds_half_up(share, first):
    expected = [f"c{i}" for i in range(first, 6)]
    assert [layer.name for layer in top_share(share, TOY)] == [*expected, "head/dropout", "head/logits"]


def test_a_layer_of_the_head_can_be_named():
    assert from_layer("head/dropout", TOY) == TOY[-2:]
    assert from_layer("-1", TOY) == TOY[-3:]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("from_layer=155", "from_layer=155: the backbone has layers 0 to 154, from its end -1 to -155"),
        ("from_layer=-156", "layers 0 to 154, from its end -1 to -155"),
        (
            "from_layer=block_11",
            "from_layer=block_11: no layer has that name; 9 layers begin with it: did you mean "
            "from_layer=block_11_expand?",
        ),
        ("from_layer=out_", "one layer begins with it: did you mean from_layer=out_relu?"),
        ("from_layer=block_11_expnd_BN", "no layer has that name; did you mean block_11_expand_BN or "),
        ("from_layer=99.0", "names are such as input_1, block_8_project, head/logits"),
        ("unfreeze_top_layers=158", "unfreeze_top_layers=158 must be a whole number from 1 to 157"),
        ("unfreeze_top_layers=0", "must be a whole number from 1 to 157"),
        ("unfreeze_top_layers=-3", "must be a whole number from 1 to 157"),
        ("unfreeze_top_layers=all", "must be a whole number from 1 to 157"),
        ("top_share=0", "top_share=0 must be a number above 0 and at most 1"),
        ("top_share=1.01", "above 0 and at most 1"),
        ("top_share=nan", "above 0 and at most 1"),
        ("top_share=third", "top_share=third must be a number"),
        ("not:from_layer=155", "layers 0 to 154"),
    ],
)
def test_layers_that_are_not_there(binary, pattern, message):
    with pytest.raises(UsageError) as caught:
        binary.freezing_table([pattern, "head/"])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_cut_below_block_11_gives_the_same_gradients_of_what_trains(backbone, binary):
    rows = binary.freezing_table(["from_layer=block_11_expand_BN"])
    chosen = trained(binary.named_variables, rows)
    names = [name.removeprefix("backbone/") for name in chosen if name.startswith("backbone/")]
    cut = backbone.cut(names, bn_batch=False)
    # Block 11 adds its input, so that its first convolution stays above.
    assert (cut.name, cut.shape) == ("block_10_project_BN", (10, 10, 96))
    assert set(cut.variables).isdisjoint(names)
    images = tf.random.stateless_uniform([2, 160, 160, 3], [0, 0], 0, 255)
    found = []
    for x, place in ((images, None), (cut.below(images), cut)):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(binary.logits(binary.features(x, cut=place, backbone_trains=True))[:, 1])
        found.append(tape.gradient(loss, binary.named_variables))
    whole, above = found
    assert len(chosen) == 58
    for name in chosen:
        scale = np.abs(whole[name]).max()
        assert scale > 0
        np.testing.assert_allclose(above[name], whole[name], rtol=0, atol=1e-4 * scale)
    # Only block 11's first convolution is computed again although it is frozen.
    reached = {name for name, gradient in above.items() if gradient is not None}
    assert reached == {*chosen, "backbone/block_11_expand/kernel"}
