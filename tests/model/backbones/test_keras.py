"""keras: models of tf_keras.applications: names, sizes, preprocessing, weights."""

import gc
import re

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from trainer.applications import application_names, known_application
from trainer.model.backbones import keras as keras_apps
from trainer.model.backbones import open_backbone
from trainer.model.backbones.keras import KerasBackbone
from trainer.model.graphs import stateful_random_ops
from trainer.model.variable_names import lasting_layer_names
from trainer.values import Contract, TrainerError, UsageError

FETCHED_NAME = "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_96_no_top.h5"


@pytest.fixture(scope="module")
def mobilenet():
    return open_backbone("keras:mobilenetv2", weights="none", image_size=96)


@pytest.fixture(scope="module")
def ramp():
    """A MobileNetV2 whose kernels hold numbers that tell it from a freshly made one."""
    network = tf_keras.applications.MobileNetV2(input_shape=(96, 96, 3), weights=None)
    for number, layer in enumerate(network.layers):
        layer.set_weights([np.full_like(w, 0.001 * number) for w in layer.get_weights()])
    return network


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A fresh home folder, and a network where nobody answers."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    return tmp_path


def test_contract_and_names(mobilenet):
    assert mobilenet.name == "keras:MobileNetV2"
    assert mobilenet.contract == Contract(96, 96, (0.0, 255.0), feature_width=1280, any_size=True)
    assert "block_11_expand/kernel" in mobilenet.variables
    assert "bn_Conv1/moving_mean" in mobilenet.variables
    assert len(mobilenet.variables) == 260


def test_its_own_preprocessing_is_inside(mobilenet):
    images = tf.random.stateless_uniform([2, 96, 96, 3], [0, 0], 0, 255)
    network = tf_keras.applications.MobileNetV2(
        include_top=False, weights=None, input_shape=(96, 96, 3), pooling="avg"
    )
    network.set_weights([v.numpy() for v in mobilenet.variables.values()])
    expected = network(images / 127.5 - 1.0, training=False)
    features = mobilenet(images, training=False, bn_batch=False)
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)
    assert features.shape == (2, 1280)


def test_statistics_move_only_in_training_with_bn_batch():
    backbone = open_backbone("keras:MobileNetV2", weights="none", image_size=32)
    mean = backbone.variables["bn_Conv1/moving_mean"]
    images = tf.random.stateless_uniform([2, 32, 32, 3], [0, 0], 0, 255)
    for training, bn_batch in ((False, False), (True, False), (False, True)):
        backbone(images, training=training, bn_batch=bn_batch)
        np.testing.assert_array_equal(mean, np.zeros(32))
    backbone(images, training=True, bn_batch=True)
    assert np.abs(mean.numpy()).max() > 0


def test_random_weights_are_the_same_each_time(mobilenet):
    tf.random.set_seed(99)
    again = open_backbone("keras:MobileNetV2", weights="none", image_size=96)
    for name, variable in mobilenet.variables.items():
        np.testing.assert_array_equal(variable, again.variables[name])
    assert np.std(again.variables["Conv1/kernel"]) > 0


@pytest.mark.slow
def test_names_and_fingerprint_last_when_keras_counts_on():
    backbones = [open_backbone("keras:Xception", weights="none", image_size=71) for _ in range(2)]
    one, two = (backbone.variables for backbone in backbones)
    assert list(one) == list(two)
    assert {"conv2d/kernel", "conv2d_3/kernel", "batch_normalization/gamma"} <= set(one)
    layers = [{layer.name for layer in backbone._network.layers} for backbone in backbones]
    assert len(layers[0] - layers[1]) >= 12
    cuts = [backbone.cut(["block13_sepconv1_bn/gamma"], bn_batch=False) for backbone in backbones]
    assert [cut.name for cut in cuts] == ["add_10", "add_10"]
    assert backbones[0].fingerprint == backbones[1].fingerprint


def test_names_of_functions_used_as_layers_last():
    def names():
        images = tf_keras.Input([4, 4, 3])
        network = tf_keras.Model(images, tf.reduce_mean(tf.nn.relu6(tf.nn.relu6(images)), [1, 2]))
        lasting = lasting_layer_names(network)
        return [lasting.get(layer.name, layer.name) for layer in network.layers[1:]]

    assert names() == names() == ["tf.nn.relu6", "tf.nn.relu6_1", "tf.math.reduce_mean"]


def test_fingerprint_tells_functions_apart():
    def fingerprint(name="keras:Toy", side=4, activation="relu", used=0, prefix="a"):
        images = tf_keras.Input([side, side, 3])
        convs = [tf_keras.layers.Conv2D(2, 1, name=f"{prefix}{i}")(images) for i in range(2)]
        x = tf_keras.layers.Activation(activation)(convs[0] + convs[1])
        x = tf_keras.layers.GlobalAveragePooling2D()(tf_keras.layers.Add()([x, convs[used]]))
        network = tf_keras.Model(images, x)
        return KerasBackbone(name, network, tf.identity, size_px=side).fingerprint

    different = [
        fingerprint(),
        fingerprint("keras:Other"),
        fingerprint(side=5),
        fingerprint(activation="tanh"),
        fingerprint(used=1),
    ]
    assert len(set(different)) == 5
    assert fingerprint(prefix="b") == different[0]
    assert re.fullmatch("[0-9a-f]{64}", different[0])


@pytest.mark.slow
def test_fingerprint_is_not_of_the_values(mobilenet):
    backbone = open_backbone("keras:MobileNetV2", weights="none", image_size=96)
    backbone.variables["Conv1/kernel"].assign_add(tf.ones([3, 3, 3, 32]))
    assert backbone.fingerprint == mobilenet.fingerprint
    other = open_backbone("keras:MobileNetV2", weights="none", image_size=64)
    assert other.fingerprint != mobilenet.fingerprint


def test_frozen_is_cut_as_a_whole(mobilenet):
    cut = mobilenet.cut([], bn_batch=False)
    assert (cut.name, cut.shape, cut.variables) == ("features", (1280,), mobilenet.variables)
    images = tf.random.stateless_uniform([2, 96, 96, 3], [0, 0], 0, 255)
    features = cut.above(cut.below(images), training=False, bn_batch=False)
    np.testing.assert_array_equal(features, mobilenet(images, training=False, bn_batch=False))
    assert mobilenet.cut([], bn_batch=True) is None


def test_every_application_resolves():
    names = application_names()
    assert len(names) >= 71
    for name in names:
        assert known_application(name.upper()) == name
    assert set(keras_apps.DEFAULT_SIZES_PX) <= set(names)


def test_wrong_names_and_sizes():
    with pytest.raises(UsageError, match=r"did you mean .*ResNet50"):
        open_backbone("keras:resnet5O")
    with pytest.raises(UsageError, match="there are ConvNeXtBase"):
        open_backbone("keras:zzzzzz")
    with pytest.raises(UsageError, match=r"--image_size=31: keras:MobileNetV2 takes 32 px"):
        open_backbone("keras:MobileNetV2", weights="none", image_size=31)


@pytest.mark.parametrize(
    ("ending", "with_classifier"),
    [
        (".weights.h5", False),
        pytest.param(".h5", True, marks=pytest.mark.slow),
        pytest.param(".keras", True, marks=pytest.mark.slow),
        pytest.param(".h5", False, marks=pytest.mark.slow),
        pytest.param(".weights.h5", True, marks=pytest.mark.slow),
        pytest.param(".keras", False, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_weights_file(tmp_path, ramp, ending, with_classifier):
    body = tf_keras.Model(
        ramp.input, tf_keras.layers.GlobalAveragePooling2D()(ramp.get_layer("out_relu").output)
    )
    path = tmp_path / f"mine{ending}"
    saved = ramp if with_classifier else body
    saved.save(path) if ending == ".keras" else saved.save_weights(path)
    backbone = open_backbone("keras:MobileNetV2", weights=str(path), image_size=96)
    expected = [w for layer in ramp.layers[:-1] for w in layer.get_weights()]
    assert len(expected) == len(backbone.variables)
    by_name = {v.name.removesuffix(":0"): v for v in ramp.variables}
    for name, variable in backbone.variables.items():
        np.testing.assert_array_equal(variable, by_name[name])


@pytest.mark.slow
def test_weights_files_that_do_not_fit(tmp_path, ramp):
    with pytest.raises(TrainerError, match=r"no file .*nowhere.h5"):
        open_backbone("keras:MobileNetV2", weights=str(tmp_path / "nowhere.h5"))
    with pytest.raises(UsageError, match="neither imagenet"):
        open_backbone("keras:MobileNetV2", weights="imagnet")
    other = tf_keras.Sequential([tf_keras.layers.Dense(3, input_shape=(2,))])
    for ending in (".h5", ".weights.h5"):
        other.save_weights(tmp_path / f"other{ending}")
        (tmp_path / f"broken{ending}").write_bytes((tmp_path / f"other{ending}").read_bytes()[:700])
        for name in ("other", "broken"):
            with pytest.raises(TrainerError, match="does not fit keras:MobileNetV2") as caught:
                open_backbone("keras:MobileNetV2", weights=str(tmp_path / f"{name}{ending}"), image_size=96)
            assert "\n" not in str(caught.value)


def test_no_network(home):
    with pytest.raises(TrainerError, match=r"(?s)URL fetch failure.*Ways out.*--weights=PATH") as caught:
        open_backbone("keras:MobileNetV2", image_size=96)
    assert str(home / ".keras" / "models") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_fetched_weights_are_read_and_a_cut_file_is_noticed(home, mobilenet, caplog):
    path = home / ".keras" / "models" / FETCHED_NAME
    path.parent.mkdir(parents=True)
    mobilenet._network.save_weights(path)
    backbone = open_backbone("keras:MobileNetV2", image_size=96)
    np.testing.assert_array_equal(backbone.variables["Conv1/kernel"], mobilenet.variables["Conv1/kernel"])
    path.write_bytes(path.read_bytes()[:100_000])
    with caplog.at_level("WARNING", "trainer"), pytest.raises(TrainerError, match="Ways out"):
        open_backbone("keras:MobileNetV2", image_size=96)
    assert "cut short" in caplog.text
    assert path.with_name(path.name + ".broken").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", application_names())
def test_default_size_of_every_application(name):
    size = keras_apps.DEFAULT_SIZES_PX.get(name, 224)
    # In a graph of its own no weight is drawn, which is most of the time that the large ones take.
    with tf.Graph().as_default():
        shape = getattr(tf_keras.applications, name)(weights=None).input_shape
    # MobileNetV3 leaves its size open, and is documented for 224.
    wanted = (None, None, None, 3) if name.startswith("MobileNetV3") else (None, size, size, 3)
    assert shape == wanted


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "ConvNeXtTiny", "DenseNet121", "EfficientNetB0", "EfficientNetV2B0", "InceptionResNetV2",
        "InceptionV3", "MobileNet", "MobileNetV2", "MobileNetV3Small", "NASNetMobile", "RegNetX002",
        "ResNet50", "ResNet50V2", "ResNetRS50", "VGG16", "Xception",
    ],
)  # fmt: skip
def test_one_of_every_family_with_random_weights(name):
    backbone = open_backbone(f"keras:{name}", weights="none")
    assert len(backbone.variables) == len(backbone._network.variables)
    height, width = backbone.contract.height_px, backbone.contract.width_px
    features = backbone(tf.zeros([1, height, width, 3]), training=False, bn_batch=False)
    assert features.shape == (1, backbone.contract.feature_width)
    forward = tf.function(lambda images: backbone(images, training=True, bn_batch=True), autograph=False)
    # What draws random numbers, and by no seed of the run.
    graph = forward.get_concrete_function(tf.TensorSpec([2, height, width, 3])).graph
    assert stateful_random_ops(graph) == []
    tf_keras.backend.clear_session()
    gc.collect()
