"""Where backbones are cut: by hand on small networks, and exactly the same function on real ones."""

import functools
import gc
import itertools
import re

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tf_keras import layers

from tests.loop.toys import PixelBackbone
from trainer.model import cuts
from trainer.model.backbones import open_backbone
from trainer.model.backbones.keras import KerasBackbone
from trainer.model.initializers import reseed


def backbone_of(images, features, size=8):
    network = tf_keras.Model(images, features)
    reseed(network, seed=0)
    return KerasBackbone("keras:Toy", network, lambda x: x / 255.0, size_px=size)


def residual_and_branches():
    """stem > stem_relu > (+ side) > merged > (left, right) > joined > last > pool, on 8x8 px."""
    conv = functools.partial(layers.Conv2D, kernel_size=3, padding="same")
    images = tf_keras.Input([8, 8, 3])
    x = layers.ReLU(name="stem_relu")(conv(4, name="stem")(images))
    x = layers.Add(name="merged")([x, conv(4, name="side")(x)])
    x = layers.Concatenate(name="joined")([conv(2, name="left")(x), conv(2, name="right")(x)])
    x = conv(8, name="last")(x)
    return backbone_of(images, layers.GlobalAveragePooling2D()(x))


@pytest.fixture(scope="module")
def toy():
    return residual_and_branches()


def matching(backbone, *patterns):
    names = [
        name
        for name, variable in backbone.variables.items()
        if variable.trainable and any(re.match(p, name) for p in patterns)
    ]
    assert names
    return names


def pictures(backbone, count=2):
    shape = [count, backbone.contract.height_px, backbone.contract.width_px, 3]
    return tf.random.stateless_uniform(shape, [0, 0], 0, 255)


def assert_same(one, other, *, tolerance=1e-5):
    scale = np.abs(other).max()
    assert scale > 0
    np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * scale)


def assert_exact(backbone, trained, *, gradient_tolerance=1e-5):
    """Compares the two halves with the whole: features, and gradients of what trains."""
    cut = backbone.cut(trained, bn_batch=False)
    variables = [backbone.variables[name] for name in trained]
    images = pictures(backbone)
    crossing = cut.below(images)
    assert (crossing.dtype, tuple(crossing.shape)) == (tf.float32, (2, *cut.shape))
    found = []
    for call, x in ((backbone, images), (cut.above, crossing)):
        with tf.GradientTape() as tape:
            features = call(x, training=True, bn_batch=False)
            loss = tf.reduce_sum(features * tf.range(1.0, 1.0 + features.shape[-1]))
        found.append((features, tape.gradient(loss, variables)))
    (whole, whole_gradients), (features, gradients) = found
    assert_same(features, whole)
    for gradient, whole_gradient in zip(gradients, whole_gradients, strict=True):
        assert_same(gradient, whole_gradient, tolerance=gradient_tolerance)
    return cut


@pytest.mark.parametrize(
    ("patterns", "name", "shape"),
    [
        (["last"], "joined", (8, 8, 4)),
        (["last/bias"], "joined", (8, 8, 4)),
        (["left"], "merged", (8, 8, 4)),
        (["right"], "merged", (8, 8, 4)),
        (["left", "right", "last"], "merged", (8, 8, 4)),
        (["side"], "stem_relu", (8, 8, 4)),
        (["side", "last"], "stem_relu", (8, 8, 4)),
    ],
)
def test_the_deepest_place(toy, patterns, name, shape):
    cut = assert_exact(toy, matching(toy, *patterns))
    assert (cut.name, cut.shape) == (name, shape)


def test_variables_are_those_below(toy):
    cut = toy.cut(["right/kernel"], bn_batch=False)
    assert list(cut.variables) == ["stem/kernel", "stem/bias", "side/kernel", "side/bias"]
    assert all(variable is toy.variables[name] for name, variable in cut.variables.items())


@pytest.mark.parametrize("patterns", [["stem/bias"], ["stem", "last"], [".*"]])
def test_no_cut_below_the_first_convolution(toy, patterns):
    assert toy.cut(matching(toy, *patterns), bn_batch=False) is None


@pytest.mark.parametrize(("filters", "name"), [(17, None), (16, "stem")])
def test_no_cut_with_next_to_nothing_below(filters, name):
    images = tf_keras.Input([4, 4, 3])
    x = layers.Conv2D(2, 1, name="stem")(images)
    x = layers.Conv2D(filters, 1, name="middle")(x)
    # Multiply-adds a pixel: 6 + 2 * filters + 5 * filters; 6 are 5 % of 120.
    x = layers.Conv2D(5, 1, name="top")(x)
    backbone = backbone_of(images, layers.GlobalAveragePooling2D()(x), size=4)
    cut = backbone.cut(["middle/bias"], bn_batch=False)
    assert (cut and cut.name) == name


def test_no_cut_while_statistics_move(toy):
    assert toy.cut([], bn_batch=True) is None
    assert toy.cut(["last/bias"], bn_batch=True) is None


def test_halves_share_the_variables(toy):
    cut = toy.cut(["last/bias"], bn_batch=False)
    x = cut.below(pictures(toy))
    before = cut.above(x, training=True, bn_batch=False)
    toy.variables["last/bias"].assign_add(tf.ones(8))
    np.testing.assert_allclose(cut.above(x, training=True, bn_batch=False), before + 1, rtol=1e-5)


def test_dropout_stays_off_and_batchnorm_keeps_its_statistics():
    images = tf_keras.Input([8, 8, 3])
    x = layers.Conv2D(4, 3, name="stem")(images)
    x = layers.Dropout(0.5)(layers.BatchNormalization(name="norm")(layers.Conv2D(4, 3, name="top")(x)))
    backbone = backbone_of(images, layers.GlobalAveragePooling2D()(x))
    cut = assert_exact(backbone, matching(backbone, "top", "norm"))
    assert cut.name == "stem"
    np.testing.assert_array_equal(backbone.variables["norm/moving_mean"], np.zeros(4))


def test_penalties_are_those_of_the_whole():
    images = tf_keras.Input([8, 8, 3])
    x = layers.Conv2D(4, 3, kernel_regularizer="l2", name="stem")(images)
    x = layers.Conv2D(4, 3, kernel_regularizer="l2", name="top")(x)
    backbone = backbone_of(images, layers.GlobalAveragePooling2D()(x))
    cut = backbone.cut(["top/kernel"], bn_batch=False)
    for training in (True, False):
        backbone(pictures(backbone), training=training, bn_batch=False)
        expected = backbone.regularization_losses()
        assert len(expected) == 2 * training
        x = cut.below(pictures(backbone))
        backbone(pictures(backbone), training=not training, bn_batch=False)
        cut.above(x, training=training, bn_batch=False)
        np.testing.assert_array_equal(backbone.regularization_losses(), expected)


def test_functions_used_as_layers_and_outputs_left_unused():
    images = tf_keras.Input([8, 8, 3])
    x = tf.nn.relu6(layers.Conv2D(4, 3, name="stem")(images) * 2.0)
    one, two, _ = tf.split(x, [1, 1, 2], axis=-1)
    x = layers.Conv2D(4, 3, name="top")(one + two)
    backbone = backbone_of(images, tf.reduce_mean(x, [1, 2]))
    assert assert_exact(backbone, ["top/kernel"]).shape == (6, 6, 1)


def test_a_layer_used_twice_is_above_where_it_trains():
    images = tf_keras.Input([8, 8, 4])
    first, shared = (layers.Conv2D(4, 3, name=name, padding="same") for name in ("first", "shared"))
    last = layers.Conv2D(4, 3, name="last")
    x = last(shared(layers.ReLU(name="between")(shared(first(images)))))
    network = tf_keras.Model(images, layers.GlobalAveragePooling2D()(x))
    variables = {v.name.removesuffix(":0"): v for v in network.variables}
    cut = functools.partial(
        cuts.network_cut, cuts.KerasGraph(network), variables=variables, preprocess=tf.identity
    )
    assert cut(["shared/bias"]).name == "first"
    below_last = cut(["last/bias"])
    assert list(below_last.variables) == ["first/kernel", "first/bias", "shared/kernel", "shared/bias"]
    x = tf.random.stateless_normal([2, 8, 8, 4], [0, 0])
    assert_same(below_last.above(below_last.below(x), training=True, bn_batch=False), network(x))


@pytest.mark.parametrize(
    ("channels", "side", "name"),
    [
        # By hand: 4 * 4 * 2 = 32 numbers cross after `narrow`, 16 * channels after `wide`; `wide` has
        # 16 * 2 * channels * side^2 multiply-adds, `narrow` 16 * 9 * 3 * 2, `top` 16 * 9 * channels * 8.
        (4, 1, "narrow_relu"),  # Half as large, 128 of 5,600 (2.3 %) done again.
        (3, 1, "wide"),  # More than half as large.
        (4, 3, "wide"),  # 1,152 of 6,624 (17 %).
    ],
)
def test_a_smaller_place_is_taken_where_little_is_done_again(channels, side, name):
    images = tf_keras.Input([4, 4, 3])
    x = layers.Conv2D(2, 3, padding="same", name="narrow")(images)
    x = layers.ReLU(name="narrow_relu")(x)
    x = layers.Conv2D(channels, side, padding="same", name="wide")(x)
    x = layers.Conv2D(8, 3, padding="same", name="top")(x)
    backbone = backbone_of(images, layers.GlobalAveragePooling2D()(x), size=4)
    cut = assert_exact(backbone, ["top/kernel"])
    assert cut.name == name
    assert list(cut.variables)[-1] == f"{name.removesuffix('_relu')}/bias"


def test_a_place_where_no_model_can_start_is_passed_over(toy, monkeypatch):
    def model(start, end):
        if start.node.layer.name == "joined":
            raise ValueError("Graph disconnected")
        return whole(start, end)

    whole = tf_keras.Model
    monkeypatch.setattr(tf_keras, "Model", model)
    assert toy.cut(["last/bias"], bn_batch=False).name == "merged"


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (layers.Conv2D(5, 3, 2), [9, 9, 2], 4 * 4 * 3 * 3 * 2 * 5),
        (layers.Conv2D(4, 3, groups=2), [5, 5, 4], 3 * 3 * 3 * 3 * 2 * 4),
        (layers.DepthwiseConv2D(3), [5, 5, 2], 3 * 3 * 3 * 3 * 2),
        (layers.SeparableConv2D(7, 3), [5, 5, 2], 3 * 3 * (3 * 3 * 2 + 2 * 7)),
        (layers.Dense(7), [5], 5 * 7),
        (layers.BatchNormalization(), [5, 5, 2], 0),
        (layers.ReLU(), [5, 5, 2], 0),
    ],
)
def test_multiply_adds(layer, shape, expected):
    images = tf_keras.Input(shape)
    graph = cuts.KerasGraph(tf_keras.Model(images, layer(images)))
    assert cuts._multiply_adds(graph.nodes[-1]) == expected


def test_whole_backbones():
    pixel = PixelBackbone()
    cut = pixel.cut([], bn_batch=False)
    assert (cut.name, cut.shape, cut.variables) == ("features", (3,), {})
    features = cut.below(tf.ones([2, 1, 1, 3]))
    assert cut.above(features, training=False, bn_batch=False) is features
    np.testing.assert_array_equal(features, np.ones([2, 3]))
    assert pixel.cut([], bn_batch=True) is None


@pytest.mark.parametrize(
    ("name", "size", "patterns", "cut_name", "shape"),
    [
        # Block 11 adds its input, so that it cannot be cut after its first convolution.
        ("MobileNetV2", 96, ["block_11_(?!expand/)", "block_1[2-6]"], "block_10_project_BN", (6, 6, 96)),
        # Of block 3, which adds nothing, 24 numbers a pixel are kept in place of 144.
        ("MobileNetV2", 96, ["block_3_depthwise/"], "block_2_add", (24, 24, 24)),
        pytest.param(
            "InceptionV3", 75, ["conv2d_9[0-3]", "batch_normalization_9[0-3]"], "mixed9", (1, 1, 2048),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "EfficientNetB0", 64, ["block6a_se", "top"], "block6a_activation", (2, 2, 672),
            marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_real_networks(name, size, patterns, cut_name, shape):
    backbone = real_network(name, size)
    cut = assert_exact(backbone, matching(backbone, *patterns))
    assert (cut.name, cut.shape) == (cut_name, shape)


@functools.lru_cache(maxsize=1)
def real_network(name, size):
    return open_backbone(f"keras:{name}", weights="none", image_size=size)


def test_multiply_adds_of_mobilenet_v2_are_the_published_ones():
    backbone = real_network("MobileNetV2", 96)
    total = sum(map(cuts._multiply_adds, cuts.KerasGraph(backbone._network).nodes))
    # 300 million at 224 px (arXiv 1801.04381, table 4), 1.3 million of them in the classifier.
    assert total == pytest.approx((300e6 - 1.3e6) * (96 / 224) ** 2, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("ConvNeXtTiny", 64), ("DenseNet121", 64), ("EfficientNetB0", 64), ("EfficientNetV2B0", 64),
        ("InceptionResNetV2", 75), ("InceptionV3", 96), ("MobileNet", 64), ("MobileNetV2", 64),
        ("MobileNetV3Small", 64), ("RegNetX002", 64), ("RegNetY002", 64), ("ResNet50", 64),
        ("ResNet50V2", 64), ("ResNetRS50", 64), ("VGG16", 64), ("Xception", 71),
    ],
)  # fmt: skip
def test_one_of_every_family(name, size):
    backbone = open_backbone(f"keras:{name}", weights="none", image_size=size)
    again = open_backbone(f"keras:{name}", weights="none", image_size=size)
    trainable = matching(backbone, "")
    # See test_gradients_jump_only_where_a_relu_turns.
    tolerance = RELU_JUMP if name == "ResNet50V2" else 1e-5
    for share in (0.3, 0.6, 0.9):
        trained = trainable[int(share * len(trainable)) :]
        cut = assert_exact(backbone, trained, gradient_tolerance=tolerance)
        assert set(cut.variables).isdisjoint(trained)
        # Names last although Keras counts on, and making a cut changes nothing.
        assert again.cut(trained, bn_batch=False).name == cut.name
    assert backbone.fingerprint == again.fingerprint
    tf_keras.backend.clear_session()
    gc.collect()


# Of the largest gradient of a variable: what some units that turn on or off were seen to change.
RELU_JUMP = 0.1


@pytest.mark.slow
def test_gradients_jump_only_where_a_relu_turns():
    """Why gradients of a network and of its two halves may differ by far more than rounding.

    What crosses may be rounded otherwise in the last bit: what is below may be folded or computed in another
    batch. Features follow by as much. But a ReLU whose input is that close to zero turns on or off, and its
    gradient jumps from 0 to 1. On ResNet50V2 at 96 px, noise of 1e-7 moved the gradients of ten of twelve
    pictures by 1e-6, and those of two by 5.7e-3 and 1.1e-2; noise of 1e-5 turned units in all of them, and
    moved gradients by 2e-4 to 1.1e-1. Where none turns, gradients follow within rounding.
    """
    backbone = open_backbone("keras:ResNet50V2", weights="none", image_size=64)
    trained = matching(backbone, "")[14:]
    cut = backbone.cut(trained, bn_batch=False)
    variables = [backbone.variables[name] for name in trained]
    start = backbone._network.get_layer(cut.name).output
    relus = [layer.output for layer in backbone._network.layers if layer.name.endswith("_relu")]
    above = relus[[relu.node.layer.name for relu in relus].index("conv2_block2_preact_relu") :]
    units = tf_keras.Model(start, above)

    def run(x):
        with tf.GradientTape() as tape:
            features = cut.above(x, training=True, bn_batch=False)
            loss = tf.reduce_sum(features * tf.range(1.0, 1.0 + features.shape[-1]))
        return features, tape.gradient(loss, variables), [u > 0 for u in units(x, training=False)]

    jumps = {True: [], False: []}
    crossing = tf.split(cut.below(pictures(backbone, 4)), 4)
    for number, (x, level) in enumerate(itertools.product(crossing, (1e-7, 1e-5))):
        noise = tf.random.stateless_normal(x.shape, [1, number])
        (one, gradients, on), (other, moved, now_on) = run(x), run(x * (1 + level * noise))
        assert_same(other, one)
        turned = any(tf.reduce_any(a != b) for a, b in zip(on, now_on, strict=True))
        jumps[turned].append(
            max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in zip(gradients, moved, strict=True))
        )
    assert max(jumps[False]) < 1e-4
    assert 1e-4 < max(jumps[True]) < 2 * RELU_JUMP


@pytest.mark.slow
def test_nasnet_is_cut_through_the_two_cells_that_the_next_one_takes():
    one, two = (open_backbone("keras:NASNetMobile", weights="none") for _ in range(2))
    trained = [name for name in matching(one, "") if name.endswith(("_12/kernel", "_12/gamma"))]
    cut = assert_exact(one, trained)
    assert cut.name == "normal_concat_10+activation_176"
    assert cut.shape == (2 * 7 * 7 * 1056,)
    assert set(cut.variables).isdisjoint(trained)
    assert one.fingerprint == two.fingerprint


def cells(*, reaching):
    """Convolutions of which each takes what the `reaching` ones before it give, as the cells of NASNet do."""
    images = tf_keras.Input([8, 8, 3])
    found = [layers.Conv2D(4, 3, padding="same", name=f"stem_{i}")(images) for i in range(reaching)]
    for number in range(5):
        conv = layers.Conv2D(4 + number, 3, padding="same", name=f"cell_{number}")
        found.append(conv(layers.Concatenate(name=f"inputs_{number}")(found[-reaching:])))
    return backbone_of(images, layers.GlobalAveragePooling2D()(layers.Concatenate()(found[-reaching:])))


def test_two_tensors_cross_where_none_is_ever_alone():
    backbone = cells(reaching=2)
    cut = assert_exact(backbone, ["cell_3/kernel", "cell_4/bias"])
    assert (cut.name, cut.shape) == ("cell_2+inputs_3", (8 * 8 * (6 + 5 + 6),))
    assert "cell_2/bias" in cut.variables
    assert set(cut.variables).isdisjoint(["cell_3/kernel", "cell_4/kernel"])


def test_why_there_is_no_cut():
    backbone = cells(reaching=3)
    assert backbone.cut(["cell_4/bias"], bn_batch=False) is None
    assert backbone.why_no_cut(["cell_4/bias"]) == (
        "trains upper layers only, but below them the network goes through more than 2 tensors at once "
        "everywhere, so there is no place to cut it"
    )
    stems = [f"stem_{i}/kernel" for i in range(3)]
    assert backbone.why_no_cut(stems) == "trains the network from its first layers on"
