"""kerashub: networks of keras-hub as keras-hub itself computes them; contract, layers, cuts, and refusals."""

import json
import subprocess
import sys
from importlib.metadata import version

import numpy as np
import pytest
import tensorflow as tf

from tests.helpers.presets import ARGUMENTS, CONVERTER, SIZE_PX, saved
from trainer.model.backbones import libraries_of, open_backbone
from trainer.model.batch_norm import Pool, move, pooling
from trainer.model.dropout import Draws, drawing_from
from trainer.values import Contract, TrainerError, UsageError

keras_hub = pytest.importorskip("keras_hub")
pytestmark = pytest.mark.extra


@pytest.fixture(scope="module")
def presets(tmp_path_factory):
    """Returns a function from a class to (its address, the network), each made once."""
    root, made = tmp_path_factory.mktemp("presets"), {}

    def preset(kind):
        if kind not in made:
            place, network = saved(keras_hub, kind, root)
            made[kind] = (f"kerashub:{place}", network)
        return made[kind]

    return preset


@pytest.fixture(scope="module")
def opened(presets):
    """Returns a function from a class to (the backbone, the network as keras-hub has it)."""
    made = {}

    def backbone(kind):
        if kind not in made:
            address, network = presets(kind)
            made[kind] = (open_backbone(address), network)
        return made[kind]

    return backbone


IMAGES = tf.random.stateless_uniform([2, SIZE_PX, SIZE_PX, 3], [0, 0], 0, 255)


def by_keras_hub(network, images=IMAGES):
    """Returns what keras-hub's own preprocessing and network make of images."""
    converter = keras_hub.layers.ImageConverter(scale=CONVERTER["scale"], offset=CONVERTER["offset"])
    pixels = converter(images)
    fed = {next(iter(network.input)): pixels} if isinstance(network.input, dict) else pixels
    return tf.convert_to_tensor(network(fed, training=False))


@pytest.mark.parametrize("kind", ARGUMENTS)
def test_features_are_those_of_keras_hub(kind, opened):
    backbone, network = opened(kind)
    expected = by_keras_hub(network)
    if expected.shape.rank == 4:
        expected = tf.reduce_mean(expected, [1, 2])
    elif expected.shape.rank == 3:
        has_token = kind != "SwinTransformerBackbone"
        expected = expected[:, 0] if has_token else tf.reduce_mean(expected, 1)
    scale = float(tf.reduce_max(tf.abs(expected)))
    plain = backbone(IMAGES, training=False, bn_batch=False)
    traced = tf.function(lambda images: backbone(images, training=False, bn_batch=False))(IMAGES)
    # BatchNorm is another operation here, one that is fast.
    rounding = 1e-5 if backbone.batch_norms else 1e-6
    np.testing.assert_allclose(plain, expected, rtol=0, atol=rounding * scale)
    np.testing.assert_allclose(traced, expected, rtol=0, atol=1e-5 * scale)
    how = {"resize": "bicubic", "fit": "crop", "antialias": True, "resizes_bytes": True}
    assert backbone.contract == Contract(
        SIZE_PX, SIZE_PX, (0.0, 255.0), expected.shape[1], any_size=True, **how
    )


@pytest.mark.parametrize("kind", ARGUMENTS)
def test_cut_anywhere_it_computes_the_same(kind, opened):
    """With each layer that has variables as the first that trains."""
    backbone, _ = opened(kind)
    whole = backbone(IMAGES, training=False, bn_batch=False).numpy()
    places = []
    layers = [layer for layer in backbone.layers if layer.variables]
    for layer in layers[1:]:
        trained = [name for name in layer.variables if backbone.variables[name].trainable]
        if trained and (cut := backbone.cut(trained, bn_batch=False)):
            places.append(cut.name)
            features = cut.above(cut.below(IMAGES), training=True, bn_batch=False)
            np.testing.assert_allclose(features, whole, rtol=0, atol=1e-5 * np.abs(whole).max())
            assert not set(cut.variables) & set(trained)
    assert len(set(places)) > 1
    assert backbone.cut(layers[0].variables[:1], bn_batch=False) is None
    assert backbone.why_no_cut(layers[0].variables[:1]) == "trains the network from its first layers on"


@pytest.mark.parametrize(
    "kind", ["ViTBackbone", "DINOV2Backbone", "SigLIPVisionEncoder", "EfficientNetBackbone"]
)
def test_opened_again_it_is_the_same_network(kind, opened, presets):
    """Though Keras has numbered on: names, layers, fingerprint, and random weights."""
    backbone, _ = opened(kind)
    one, other = (open_backbone(presets(kind)[0], weights="none") for _ in range(2))
    for again in (one, other):
        assert list(again.variables) == list(backbone.variables)
        assert again.layers == backbone.layers
        assert again.fingerprint == backbone.fingerprint
        assert libraries_of(again) == {"keras": version("keras"), "keras-hub": keras_hub.__version__}
    for name, variable in one.variables.items():
        np.testing.assert_array_equal(variable, other.variables[name])


def test_what_trains(opened):
    backbone, _ = opened("DINOV2Backbone")
    assert not [name for name in backbone.variables if "mask" in name]
    trainable = [variable for variable in backbone.variables.values() if variable.trainable]
    assert len(trainable) == len(backbone.variables)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(backbone(IMAGES, training=True, bn_batch=True))
    assert None not in tape.gradient(loss, trainable)
    backbone, _ = opened("EfficientNetBackbone")
    fixed = [name for name, variable in backbone.variables.items() if not variable.trainable]
    assert fixed
    assert all(name.endswith(("moving_mean", "moving_variance")) for name in fixed)


def test_blocks_of_a_transformer_are_layers(opened):
    names = [layer.name for layer in opened("ViTBackbone")[0].layers]
    assert names[1:] == [
        "vit_patching_and_embedding",
        "vit_encoder/dropout",
        *(f"vit_encoder/transformer_block_{i}" for i in (1, 2, 3)),
        "vit_encoder/ln",
    ]
    # What keras-hub calls the network is no part of the names.
    assert opened("DINOV2Backbone")[0].layers[1].name == "embeddings"


@pytest.mark.parametrize(
    ("kind", "leading"), [("ViTBackbone", 1), ("DeiTBackbone", 2), ("DINOV2Backbone", 3)]
)
def test_token_and_mean(kind, leading, presets):
    address, network = presets(kind)
    tokens = by_keras_hub(network)
    token, mean = tokens[:, 0], tf.reduce_mean(tokens[:, leading:], 1)
    wanted = {"cls": token, "mean": mean, "cls+mean": tf.concat([token, mean], -1)}
    prints = set()
    for features, expected in wanted.items():
        backbone = open_backbone(address, features=features)
        found = backbone(IMAGES, training=False, bn_batch=False)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
        assert backbone.contract.feature_width == expected.shape[1]
        prints.add(backbone.fingerprint)
        maps = backbone.feature_maps()
        assert (maps is not None) == (features == "mean")
        if maps:
            np.testing.assert_allclose(tf.reduce_mean(maps(IMAGES), [1, 2]), expected, rtol=0, atol=1e-5)
    assert len(prints) == 3


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("SwinTransformerBackbone", "averages its features"),
        ("SigLIPVisionEncoder", "pools its features itself"),
    ],
)
def test_without_class_token(kind, why, presets):
    with pytest.raises(UsageError, match=f"--features=cls: kerashub:.* has no class token; it {why}"):
        open_backbone(presets(kind)[0], features="cls")


def draws(places=(0, 1)):
    return Draws(tf.constant([3, 4]), tf.constant(places), 2)


@pytest.mark.parametrize(
    "kind", ["ViTBackbone", "DINOV2Backbone", "SwinTransformerBackbone", "EfficientNetBackbone"]
)
def test_what_is_drawn_goes_by_the_seed_and_the_place(kind, opened):
    """And only with bn=batch, as with other networks."""
    backbone, _ = opened(kind)

    def features(images, given, bn_batch=True):
        with drawing_from(given):
            return backbone(images, training=True, bn_batch=bn_batch).numpy()

    still = features(IMAGES, draws(), bn_batch=False)
    np.testing.assert_array_equal(still, features(IMAGES, draws()._replace(seed=tf.constant([5, 4])), False))
    if backbone.batch_norms:
        return  # Examples of a batch are not apart, then.
    both = features(IMAGES, draws())
    assert np.abs(both - still).max() > 1e-3
    np.testing.assert_array_equal(both, features(IMAGES, draws()))
    assert np.abs(both - features(IMAGES, draws()._replace(seed=tf.constant([5, 4])))).max() > 1e-3
    apart = [features(IMAGES[i : i + 1], draws([i])) for i in (0, 1)]
    np.testing.assert_allclose(np.concatenate(apart), both, atol=1e-5)


def test_batch_statistics_move_as_in_keras(presets):
    """By the layers themselves, and, where devices share a batch, by `batch_norm.move`."""
    address, _ = presets("MobileNetBackbone")
    one, other = open_backbone(address), open_backbone(address)
    before = {name: variable.numpy() for name, variable in one.variables.items()}
    one(IMAGES, training=True, bn_batch=True)
    pool = Pool(tf.constant(1.0), together=False)
    with pooling(pool):
        other(IMAGES, training=True, bn_batch=True)
    for layer in other.batch_norms:
        move(layer, pool.moments(layer))
    moved = 0
    for name, variable in one.variables.items():
        np.testing.assert_allclose(other.variables[name], variable, atol=1e-5)
        moved += bool(np.abs(variable.numpy() - before[name]).max() > 1e-6)
    assert moved == 2 * len(one.batch_norms)


def test_another_size(presets, opened):
    """Positions are resized; DINOv2's by itself, and for a network of convolutions there is nothing to do."""
    address, _ = presets("ViTBackbone")
    larger = open_backbone(address, image_size=48)
    name = "vit_patching_and_embedding/position_embedding/embeddings"
    small, large = opened("ViTBackbone")[0].variables[name].numpy(), larger.variables[name].numpy()
    assert (small.shape, large.shape) == ((17, 16), (37, 16))
    np.testing.assert_array_equal(large[0], small[0])
    grid = tf.image.resize(small[1:].reshape(1, 4, 4, 16), [6, 6], method="bicubic")
    np.testing.assert_allclose(large[1:].reshape(1, 6, 6, 16), grid, atol=1e-6)
    kernel = "vit_encoder/transformer_block_2/mha/query/kernel"
    np.testing.assert_array_equal(larger.variables[kernel], opened("ViTBackbone")[0].variables[kernel])
    assert open_backbone(presets("EfficientNetBackbone")[0], image_size=40).contract.height_px == 40

    address, _ = presets("DINOV2Backbone")
    mine = open_backbone(address, image_size=48).variables["embeddings/interpolated_position_embeddings"]
    theirs = keras_hub.models.Backbone.from_preset(
        address.removeprefix("kerashub:"), image_shape=(48, 48, 3)
    ).embeddings.interpolated_position_embeddings
    np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize(
    ("kind", "size", "said"),
    [
        ("ViTBackbone", 30, "cannot be built for images of 30x30 px: .*divisible by patch size 8"),
        ("SwinTransformerBackbone", 6, "--image_size=6|cannot be built for images of 6x6 px"),
    ],
)
def test_a_size_that_it_cannot_take(kind, size, said, presets):
    with pytest.raises(UsageError, match=said):
        open_backbone(presets(kind)[0], image_size=size)


def test_what_is_asked_for_comes_before_what_the_preset_says(presets):
    address, _ = presets("ViTBackbone")
    contract = open_backbone(address, resize="pad").contract
    assert (contract.fit, contract.antialias, contract.resize) == ("pad", False, "bicubic")
    with pytest.raises(UsageError, match=r"--value_range: kerashub:.* has its own preprocessing"):
        open_backbone(address, value_range=(-1.0, 1.0))


def test_without_preprocessing_the_range_is_left_open(tmp_path):
    place, _ = saved(keras_hub, "ViTBackbone", tmp_path, converter=None)
    assert open_backbone(f"kerashub:{place}").contract.value_range == (0.0, 1.0)
    contract = open_backbone(f"kerashub:{place}", value_range=(-1.0, 1.0)).contract
    assert (contract.value_range, contract.height_px) == ((-1.0, 1.0), SIZE_PX)
    assert (contract.resize, contract.fit, contract.antialias) == ("bilinear", "stretch", False)


def test_of_a_network_of_images_and_text_the_half_for_images_is_taken(tmp_path, presets):
    models = keras_hub.models
    images = models.SigLIPVisionEncoder(**ARGUMENTS["SigLIPVisionEncoder"])
    text = models.SigLIPTextEncoder(
        vocabulary_size=20, embedding_dim=16, hidden_dim=16, num_layers=1, num_heads=2, intermediate_dim=16,
        max_sequence_length=4,
    )  # fmt: skip
    models.SigLIPBackbone(images, text).save_to_preset(str(tmp_path / "both"))
    address = f"kerashub:{tmp_path / 'both'}"
    backbone = open_backbone(address)
    found = backbone(IMAGES / 255.0, training=False, bn_batch=False)
    np.testing.assert_allclose(found, images({"images": IMAGES / 255.0}), rtol=0, atol=1e-5)
    alone = open_backbone(presets("SigLIPVisionEncoder")[0])
    assert list(backbone.variables) == list(alone.variables)
    # The weights of the half for text do not stand in the way of another size.
    assert open_backbone(address, image_size=48).contract.width_px == 48


def changed(place, file, change):
    content = json.loads((place / file).read_text())
    change(content)
    (place / file).write_text(json.dumps(content))


LAMBDA = {
    "class_name": "Lambda",
    "module": "keras.layers",
    "config": {"function": "gASV"},
    "registered_name": None,
}


def test_a_preset_cannot_bring_code(tmp_path):
    place, _ = saved(keras_hub, "ViTBackbone", tmp_path)
    whole = (place / "config.json").read_text()
    for where in (lambda c: c["config"].update(dtype=LAMBDA), lambda c: c["config"].update(name=[LAMBDA])):
        changed(place, "config.json", where)
        with pytest.raises(TrainerError, match="names 'Lambda', which no preset of an image network needs"):
            open_backbone(f"kerashub:{place}")
        (place / "config.json").write_text(whole)
    changed(
        place,
        "config.json",
        lambda c: c.update(class_name="BertBackbone", registered_name="keras_hub>BertBackbone"),
    )
    with pytest.raises(UsageError, match="is a BertBackbone, no network from images to features"):
        open_backbone(f"kerashub:{place}")
    (place / "config.json").write_text(whole)
    changed(place, "image_converter.json", lambda c: c["config"].update(scale=LAMBDA))
    with pytest.raises(TrainerError, match=r"its image_converter\.json is none that is known"):
        open_backbone(f"kerashub:{place}")


def test_what_is_missing_or_wrong_is_said(tmp_path, presets):
    place, _ = saved(keras_hub, "ViTBackbone", tmp_path)
    (place / "model.weights.h5").write_bytes(b"no weights")
    with pytest.raises(TrainerError, match=r"model\.weights\.h5 does not fit the network"):
        open_backbone(f"kerashub:{place}")
    (place / "model.weights.h5").unlink()
    with pytest.raises(TrainerError, match=r"has no model\.weights\.h5; --weights=none draws random ones"):
        open_backbone(f"kerashub:{place}")
    assert open_backbone(f"kerashub:{place}", weights="none").variables
    whole = presets("ViTBackbone")[0].removeprefix("kerashub:")
    given = open_backbone(f"kerashub:{place}", weights=f"{whole}/model.weights.h5")
    np.testing.assert_array_equal(
        given.variables["vit_encoder/ln/gamma"],
        presets("ViTBackbone")[1].get_layer("vit_encoder").layer_norm.gamma,
    )
    (place / "config.json").unlink()
    with pytest.raises(TrainerError, match=r"has no config\.json"):
        open_backbone(f"kerashub:{place}")
    (place / "config.json").write_text('{"architecture": "mobilenetv4_conv_small"}')
    with pytest.raises(UsageError, match="is no preset in keras-hub's own format"):
        open_backbone(f"kerashub:{place}")
    with pytest.raises(UsageError, match="gemma_2b_en is a preset of no network from images to features"):
        open_backbone("kerashub:gemma_2b_en", weights="none")
    with pytest.raises(UsageError, match="did you mean dinov2_small"):
        open_backbone("kerashub:dinov2_smal")


def test_presets_by_name_are_fetched(tmp_path, monkeypatch, presets):
    """Without weights only what describes the network is; without network, the ways out are said."""
    import kagglehub

    place, asked = presets("DINOV2Backbone")[0].removeprefix("kerashub:"), []

    def model_download(handle, path):
        asked.append((handle, path))
        return f"{place}/{path}"

    monkeypatch.setattr(kagglehub, "model_download", model_download)
    backbone = open_backbone("kerashub:dinov2_small", weights="none")
    assert [path for _, path in asked] == ["config.json", "image_converter.json"]
    assert asked[0][0].startswith("keras/dinov2/keras/dinov2_small/")
    assert open_backbone("kerashub:dinov2_small").fingerprint == backbone.fingerprint
    assert asked[-1][1] == "model.weights.h5"

    def offline(handle, path):
        raise ConnectionError("nobody answers")

    monkeypatch.setattr(kagglehub, "model_download", offline)
    with pytest.raises(
        TrainerError, match=r"cannot get config\.json of keras/dinov2/.*nobody answers.*Ways out"
    ):
        open_backbone("kerashub:dinov2_small", weights="none")


@pytest.mark.parametrize("address", ["gs://bucket/preset", "/nowhere/preset", ""])
def test_an_address_that_can_be_none(address):
    from trainer.model.backbones import BACKBONES

    with pytest.raises(UsageError):
        BACKBONES.choose(f"kerashub:{address}").check()


def test_keras_3_comes_with_the_network_alone():
    code = (
        "import sys; from trainer.runtime import start_tensorflow; start_tensorflow(); import trainer.api; "
        "import trainer.model.backbones; late = {'keras', 'keras_hub', 'kagglehub'}; "
        "sys.exit(', '.join(late & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
