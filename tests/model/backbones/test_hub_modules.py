"""hub: with a local folder and savedmodel:, on modules whose answers are known by hand."""

import dataclasses
import re
import shutil

import numpy as np
import pytest
import tensorflow as tf

from tests.model.modules import (
    PENALTY,
    save_disconnected,
    save_keras_3_export,
    save_of_tensorflow_1,
    save_tiny,
    save_with_asset,
    save_with_signature,
)
from trainer.model.backbones import hub_modules, keep_rounding, open_backbone
from trainer.model.hub_handles import published_size
from trainer.model.variable_names import unique_names
from trainer.values import Contract, TrainerError, UsageError, told_by_tensorflow

RED, WHITE = [1.0, 0.0, 0.0], [1.0, 1.0, 1.0]


def pictures(*colours, size=4):
    return tf.constant(np.array([np.tile(c, (size, size, 1)) for c in colours], np.float32))


@pytest.fixture(scope="module")
def open_folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("open") / "tiny")


@pytest.fixture(scope="module")
def fixed_folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("fixed") / "tiny", image_size=8)


def traced_step(backbone, *, training, bn_batch):
    """A step as the loop traces it: features, penalties and gradients of all variables."""
    variables = list(backbone.variables.values())

    @tf.function
    def step(images):
        with tf.GradientTape() as tape:
            features = backbone(images, training=training, bn_batch=bn_batch)
            losses = backbone.regularization_losses()
            loss = tf.reduce_sum(features) + sum(losses)
        gradients = tape.gradient(loss, variables, unconnected_gradients="zero")
        return features, losses, gradients

    return step


def test_contract_of_an_open_module(open_folder):
    backbone = open_backbone(f"hub:{open_folder}", image_size=4)
    assert backbone.contract == Contract(4, 4, (0.0, 1.0), feature_width=2, any_size=True)
    other = open_backbone(f"hub:{open_folder}", image_size=4, resize="crop", antialias=True)
    fitted = dataclasses.replace(backbone.contract, fit="crop", antialias=True)
    assert other.contract == dataclasses.replace(fitted, resizes_bytes=True)
    # Of a run from before bytes were resized.
    keep_rounding(other, fitted)
    assert other.contract == fitted
    # Nothing of a run that smooths reaches a network that does not.
    before = backbone.contract
    keep_rounding(backbone, dataclasses.replace(fitted, resizes_bytes=True))
    assert backbone.contract == before
    assert other.fingerprint == backbone.fingerprint
    assert list(backbone.variables) == ["conv/kernel", "bn/beta", "bn/moving_mean"]
    assert backbone.layers == ()
    assert all(isinstance(v, tf.Variable) for v in backbone.variables.values())


def test_features_and_any_batch_size(open_folder):
    backbone = open_backbone(f"savedmodel:{open_folder}", image_size=4)
    for colours, expected in (([RED, WHITE], [[1, 0], [2, 2]]), ([WHITE], [[2, 2]])):
        features = backbone(pictures(*colours), training=False, bn_batch=False)
        np.testing.assert_allclose(features, expected)


def test_frozen_brings_no_penalty_and_moves_nothing(open_folder):
    backbone = open_backbone(f"hub:{open_folder}", image_size=4)
    # bn_batch without training must not move the statistics of a frozen backbone.
    _, losses, _ = traced_step(backbone, training=False, bn_batch=True)(pictures(RED))
    assert losses == []
    np.testing.assert_array_equal(backbone.variables["bn/moving_mean"], [0, 0])


def test_training_with_stored_statistics(open_folder):
    backbone = open_backbone(f"hub:{open_folder}", image_size=4)
    features, losses, gradients = traced_step(backbone, training=True, bn_batch=False)(pictures(RED, WHITE))
    np.testing.assert_allclose(features, [[1, 0], [2, 2]])
    np.testing.assert_allclose(losses, [PENALTY * 4])
    # d sum(features)/d beta = 2 pictures; d/d kernel = summed colours, plus 2 * PENALTY * kernel.
    np.testing.assert_allclose(gradients[1], [2, 2])
    np.testing.assert_allclose(gradients[0], [[3, 2], [1, 2], [2, 2]])
    np.testing.assert_array_equal(backbone.variables["bn/moving_mean"], [0, 0])


def test_training_with_batch_statistics(open_folder):
    backbone = open_backbone(f"hub:{open_folder}", image_size=4)
    features, _, _ = traced_step(backbone, training=True, bn_batch=True)(pictures(RED, WHITE))
    np.testing.assert_allclose(features, [[-0.5, -1], [0.5, 1]])
    np.testing.assert_allclose(backbone.variables["bn/moving_mean"], [0.75, 0.5])


def test_phases_one_after_the_other(open_folder):
    backbone = open_backbone(f"hub:{open_folder}", image_size=4)
    for training, count in ((False, 0), (True, 1), (False, 0)):
        _, losses, _ = traced_step(backbone, training=training, bn_batch=False)(pictures(RED))
        assert len(losses) == count


def test_fixed_size(fixed_folder):
    for size in (0, 8):
        contract = open_backbone(f"hub:{fixed_folder}", image_size=size).contract
        assert (contract.height_px, contract.width_px, contract.any_size) == (8, 8, False)
    with pytest.raises(UsageError, match=r"--image_size=9: .*8x8 px, not 9x9"):
        open_backbone(f"hub:{fixed_folder}", image_size=9)


def test_unknown_module_of_open_size_asks(open_folder):
    with pytest.raises(UsageError, match="--image_size"):
        open_backbone(f"hub:{open_folder}")


def test_value_range(open_folder):
    backbone = open_backbone(f"hub:{open_folder}", image_size=4, value_range=(-1.0, 1.0))
    assert backbone.contract.value_range == (-1.0, 1.0)
    with pytest.raises(UsageError, match="--value_range"):
        open_backbone("efficientnet_lite0", value_range=(0, 1))
    with pytest.raises(UsageError, match="--weights=none"):
        open_backbone(f"hub:{open_folder}", weights="none")


def test_feature_maps_are_averaged(tmp_path, caplog):
    with caplog.at_level("INFO", "trainer"):
        backbone = open_backbone(f"hub:{save_tiny(tmp_path / 'maps', output='maps')}", image_size=4)
    assert "averaged" in caplog.text
    assert backbone.contract.feature_width == 2
    np.testing.assert_allclose(backbone(pictures(WHITE), training=False, bn_batch=False), [[2, 2]])


def test_a_module_is_cut_as_a_whole_or_not_at_all(open_folder):
    backbone = open_backbone(f"hub:{open_folder}", image_size=4)
    assert backbone.cut(["bn/beta"], bn_batch=False) is None
    assert backbone.cut([], bn_batch=True) is None
    backbone(pictures(RED), training=True, bn_batch=False)
    cut = backbone.cut([], bn_batch=False)
    assert (cut.name, cut.shape, cut.variables) == ("features", (2,), backbone.variables)
    features = cut.below(pictures(RED, WHITE))
    np.testing.assert_allclose(cut.above(features, training=False, bn_batch=False), [[1, 0], [2, 2]])


def test_fingerprint_is_of_what_the_folder_holds(open_folder, fixed_folder, tmp_path):
    backbone = open_backbone(f"hub:{open_folder}", image_size=4)
    before = backbone.fingerprint
    backbone.variables["bn/beta"].assign([5, 5])
    shutil.copytree(open_folder, tmp_path / "copy")
    (tmp_path / "copy" / "notes.txt").write_text("Not a part of the module.")
    copy = open_backbone(f"savedmodel:{tmp_path / 'copy'}", image_size=8)
    assert backbone.fingerprint == copy.fingerprint == before
    assert open_backbone(f"hub:{fixed_folder}").fingerprint != before


def test_fingerprint_covers_values_that_a_module_does_not_list(tmp_path):
    served = save_with_signature(tmp_path / "served")
    other = save_with_signature(tmp_path / "other", kernel=[[3.0, 0.0], [0.0, 3.0], [3.0, 3.0]])
    # Trained on by the same program, it has the same graph.
    (other / "saved_model.pb").write_bytes((served / "saved_model.pb").read_bytes())
    one, two = (open_backbone(f"savedmodel:{folder}") for folder in (served, other))
    assert one.variables == two.variables == {}
    white = [b(pictures(WHITE, size=8), training=False, bn_batch=False).numpy().tolist() for b in (one, two)]
    assert white == [[[2.0, 2.0]], [[6.0, 6.0]]]
    assert one.fingerprint != two.fingerprint


def test_signature_only_is_frozen_only(tmp_path):
    backbone = open_backbone(f"savedmodel:{save_with_signature(tmp_path / 'served')}")
    assert backbone.contract == Contract(8, 8, (0.0, 1.0), feature_width=2, any_size=False)
    np.testing.assert_allclose(backbone(pictures(WHITE, size=8), training=False, bn_batch=False), [[2, 2]])
    assert backbone.variables == {}
    with pytest.raises(UsageError, match="--schedule=frozen"):
        backbone(pictures(WHITE, size=8), training=True, bn_batch=False)


SIGNED = {"plain": save_with_signature, "Keras 3": save_keras_3_export, "TensorFlow 1": save_of_tensorflow_1}


@pytest.mark.parametrize("save", SIGNED.values(), ids=SIGNED.keys())
def test_a_module_that_can_only_be_served_says_so_before_it_trains(tmp_path, save):
    backbone = open_backbone(f"savedmodel:{save(tmp_path / 'served')}")
    assert backbone(pictures(WHITE, size=8), training=False, bn_batch=False).shape == (1, 2)
    line = (
        f"savedmodel:{tmp_path}/served cannot be trained: it has only the signature 'serving_default', as "
        "modules of TensorFlow 1 and of model.export() in Keras have; use --schedule=frozen, or train=head "
        "in --phase"
    )
    for trained in ([], list(backbone.variables)):
        with pytest.raises(UsageError, match=f"^{re.escape(line)}$"):
            backbone.check_training(trained, bn_batch=False)


def test_a_module_without_gradients_says_so_before_it_trains(tmp_path, caplog):
    names = ["a/kernel", "b/kernel"]
    backbone = open_backbone(f"hub:{save_disconnected(tmp_path / 'none', parts=0)}")
    line = (
        "none cannot be trained: no gradient reaches its variables, such as a/kernel; use --schedule=frozen"
    )
    with pytest.raises(UsageError, match=line):
        backbone.check_training(names, bn_batch=False)
    backbone = open_backbone(f"hub:{save_disconnected(tmp_path / 'one', parts=1)}")
    backbone.check_training(["a/kernel"], bn_batch=False)
    assert caplog.messages == []
    backbone.check_training(names, bn_batch=True)
    (line,) = caplog.messages
    assert "one: no gradient reaches 1 of the 2 variables that are to train, such as b/kernel: they" in line
    assert backbone.regularization_losses() == []  # Frozen again, as it was.


def test_batch_statistics_need_an_argument_training(tmp_path):
    backbone = open_backbone(f"hub:{save_disconnected(tmp_path / 'm', parts=2, training=False)}")
    backbone.check_training(["a/kernel"], bn_batch=False)
    with pytest.raises(
        UsageError, match=r"m has no argument `training`, so bn=batch would change nothing: use bn="
    ):
        backbone.check_training(["a/kernel"], bn_batch=True)


@pytest.mark.parametrize("bn_batch", [True, False])
def test_a_module_with_gradients_can_train(open_folder, caplog, bn_batch):
    backbone = open_backbone(f"hub:{open_folder}", image_size=4)
    backbone.check_training(["conv/kernel", "bn/beta"], bn_batch=bn_batch)
    assert caplog.messages == []
    np.testing.assert_array_equal(backbone.variables["bn/moving_mean"], [0, 0])


@pytest.mark.parametrize("width", [1001, 1000, 21_843, 1280])
def test_as_many_outputs_as_there_are_classes_are_no_features(tmp_path, caplog, width):
    kernel = np.zeros([3, width], np.float32)
    backbone = open_backbone(f"savedmodel:{save_with_signature(tmp_path / 'classification', kernel=kernel)}")
    assert backbone.contract.feature_width == width
    if width == 1280:
        assert caplog.messages == []
        return
    (line,) = caplog.messages
    assert f": its {width:,} outputs look like scores of classes, not features (ImageNet" in line
    assert line.endswith("use the feature_vector module of the same network")


@pytest.mark.parametrize(
    ("handle", "key", "word"),
    [
        ("hub:https://tfhub.dev/google/imagenet/mobilenet_v2_100_224/classification/5", "", "classification"),
        ("hub:https://tfhub.dev/google/imagenet/mobilenet_v2_100_224/feature_vector/5", "", ""),
        ("hub:/flower_classification/of_mine", "", ""),
        ("savedmodel:x", "logits", "logits"),
        ("savedmodel:x", "Predictions", "predictions"),
        ("savedmodel:x", "biologits", ""),
    ],
)
def test_names_of_classifiers_are_warned_of(caplog, handle, key, word):
    interface = hub_modules._Interface(tf.TensorSpec([None, 8, 8, 3]), "serving_default" if key else "", key)
    hub_modules._warn_of_classes(handle, interface, 17)
    assert [f"(it is called '{word}')" in line for line in caplog.messages] == [True] * bool(word)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"output": "dict"}, "returns a dict of a, b"),
        ({"dtype": tf.uint8}, "wants uint8"),
        ({"batch": 1, "image_size": 4}, r"wants float32 \(1, 4, 4, 3\)"),
    ],
)
def test_modules_that_do_not_fit(tmp_path, kwargs, message):
    with pytest.raises(TrainerError, match=message) as caught:
        open_backbone(f"hub:{save_tiny(tmp_path / 'odd', **kwargs)}", image_size=4)
    assert "\n" not in str(caught.value)


def test_two_inputs_do_not_fit(tmp_path):
    with pytest.raises(TrainerError, match="picture_0, picture_1"):
        open_backbone(f"savedmodel:{save_with_signature(tmp_path / 'served', inputs=2)}")


def test_wrong_folders(tmp_path, open_folder):
    for scheme in ("hub", "savedmodel"):
        with pytest.raises(TrainerError, match=f"{scheme}:.*no folder or archive .*/nowhere"):
            open_backbone(f"{scheme}:{tmp_path}/nowhere")
        with pytest.raises(TrainerError, match=r"not a whole SavedModel: saved_model.pb is missing"):
            open_backbone(f"{scheme}:{tmp_path}")
    folder = save_with_asset(tmp_path / "asset")
    (folder / "assets" / "names.txt").unlink()
    with pytest.raises(TrainerError, match=r"not a whole SavedModel: assets/names.txt is missing$"):
        open_backbone(f"hub:{folder}")
    with pytest.raises(UsageError, match=r"^--backbone=hub:gs://b/m: expected a path on this machine"):
        open_backbone("hub:gs://b/m")


def test_what_tensorflow_says_without_its_names():
    too_large = "OOM when allocating tensor with shape[1,8,8,3] and type float"
    error = tf.errors.ResourceExhaustedError(
        None, None, "{{function_node f}} " + too_large + " [Op:Fill] name: "
    )
    assert told_by_tensorflow(error) == too_large
    assert told_by_tensorflow(ValueError("Exception encountered when calling layer\n\nwrong")) == "wrong"
    assert told_by_tensorflow(ValueError()) == "ValueError"


def test_unknown_address():
    for address in ("resnet", "hub:", "keras:", "https://tfhub.dev/x"):
        with pytest.raises(UsageError, match=r"--backbone=.*(hub:HANDLE|keras:NAME)"):
            open_backbone(address)


def test_names_are_unique(tmp_path):
    backbone = open_backbone(f"hub:{save_tiny(tmp_path / 'twice', repeat_name=True)}", image_size=4)
    assert list(backbone.variables) == ["conv/kernel", "conv/kernel~2", "bn/moving_mean"]
    variables = [tf.Variable(0.0, name=name) for name in ("a", "a~2", "a")]
    assert list(unique_names(variables)) == ["a", "a~2", "a~3"]


@pytest.mark.parametrize(
    ("handle", "size"),
    [
        ("https://tfhub.dev/google/imagenet/inception_v3/feature_vector/4", 299),
        ("https://tfhub.dev/google/imagenet/inception_resnet_v2/feature_vector/5", 299),
        ("https://tfhub.dev/google/imagenet/mobilenet_v2_100_160/feature_vector/5", 160),
        ("https://tfhub.dev/google/imagenet/mobilenet_v3_small_075_224/feature_vector/5", 224),
        ("https://tfhub.dev/google/imagenet/resnet_v2_50/feature_vector/5", 224),
        ("https://tfhub.dev/google/imagenet/inception_v1/feature_vector/5", 224),
        ("https://tfhub.dev/google/imagenet/nasnet_large/feature_vector/5", 331),
        ("https://tfhub.dev/google/imagenet/nasnet_mobile/feature_vector/5", 224),
        ("https://tfhub.dev/google/imagenet/efficientnet_v2_imagenet1k_b0/feature_vector/2", 224),
        ("https://tfhub.dev/google/imagenet/efficientnet_v2_imagenet21k_s/feature_vector/2", 384),
        ("https://tfhub.dev/google/imagenet/efficientnet_v2_imagenet21k_ft1k_xl/feature_vector/2", 512),
        ("https://tfhub.dev/tensorflow/efficientnet/b4/feature-vector/1", 380),
        ("https://tfhub.dev/tensorflow/efficientnet/b7/feature-vector/1", 600),
        ("https://www.kaggle.com/models/google/bit/TensorFlow2/m-r50x1/1", 224),
        ("google/mobilenet-v2/tensorFlow2/100-160-feature-vector/2", 160),
        ("google/mobilenet-v3/tensorFlow2/large-100-224-feature-vector/1", 224),
        ("google/inception-v3/tensorFlow2/feature-vector/2", 299),
        ("google/resnet-v2/tensorFlow2/50-feature-vector/2", 224),
        ("google/nasnet/tensorFlow2/large-feature-vector/2", 331),
        ("google/efficientnet-v2/tensorFlow2/imagenet21k-ft1k-s-feature-vector/1", 384),
        ("google/efficientnet-v2/tensorFlow2/imagenet1k-b1-feature-vector/1", 240),
        ("tensorflow/efficientnet/tensorFlow2/b4-feature-vector/1", 380),
        ("tensorflow/efficientnet/tensorFlow2/b0-feature-vector/1", 224),
        ("https://tfhub.dev/somebody/something/1", 0),
    ],
)
def test_published_sizes(handle, size):
    assert published_size(handle) == size
