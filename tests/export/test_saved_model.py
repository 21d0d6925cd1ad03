"""The SavedModel beside the pipeline and the network that it was made of."""

import dataclasses
import functools
import struct
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests.data.kinds import KINDS
from tests.data.pictures import blocks, encode, noise
from trainer.data.loading import Loader
from trainer.data.picture_files import Found
from trainer.export.frozen import frozen_network
from trainer.export.loading import open_model
from trainer.export.metadata import About, read_about
from trainer.export.saved_model import write_saved_model
from trainer.model.backbones import open_backbone
from trainer.model.classifier import Classifier
from trainer.model.heads import Head
from trainer.values import Contract

SIZE = 8


NAMES = ("red", "green", "blue")
CONTRACT = Contract(SIZE, SIZE, (-1.0, 3.0), feature_width=2, any_size=True)
# Of each pixel for each class: nothing looks the same upside down.
WEIGHTS = np.random.default_rng(0).normal(size=[SIZE * SIZE * 3, 3]).astype(np.float32)


def network(images):
    return tf.nn.softmax(tf.reshape(images, [-1, SIZE * SIZE * 3]) @ WEIGHTS)


def write(folder: Path, network, *, exif: str = "apply", decoding: str = "exact") -> Path:
    about = About(NAMES, CONTRACT, exif, decoding, temperature=1.5)
    (folder / "export.json").write_text(about.to_json())
    write_saved_model(folder / "model", network, about=about, about_json=folder / "export.json")
    return folder / "model"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """written(exif, decoding) -> folder of a SavedModel of `network`."""
    made = functools.cache(
        lambda exif, decoding: write(tmp_path_factory.mktemp("export"), network, exif=exif, decoding=decoding)
    )
    return lambda exif="apply", decoding="exact": made(exif, decoding)


@functools.cache
def signatures(folder: Path):
    model = tf.saved_model.load(str(folder))
    return {**model.signatures, "of": model}  # They live as long as it does.


@pytest.mark.parametrize(
    ("exif", "decoding"),
    [("apply", "exact"), ("ignore", "exact"), pytest.param("apply", "scaled", marks=pytest.mark.slow)],
)
def test_every_kind_of_picture_as_the_loader_and_the_network_have_it(exif, decoding, written, tmp_path):
    for name, data in KINDS.items():
        (tmp_path / name.replace("/", " ")).write_bytes(data)
    contract = dataclasses.replace(CONTRACT, value_range=(0.0, 1.0))
    loader = Loader(contract, exif=exif, max_pixels=10**6, decoding=decoding)
    paths = [Found(f"{tmp_path}/{name.replace('/', ' ')}") for name in KINDS]
    pixels = np.array([one.pixels for one in loader.load_all(paths, ahead=3)])
    served = signatures(written(exif, decoding))
    found = served["serving_default"](image_bytes=tf.constant(list(KINDS.values())))
    wanted = network(tf.constant(pixels)).numpy()
    np.testing.assert_allclose(found["probabilities"].numpy(), wanted, atol=1e-6)
    assert found["probabilities"].dtype == tf.float32
    assert len({tuple(row) for row in wanted.round(3).tolist()}) > 10
    by_pixels = served["images"](images=tf.constant(pixels))
    np.testing.assert_allclose(by_pixels["probabilities"].numpy(), wanted, atol=1e-6)
    assert found["class_ids"].numpy().tolist() == wanted.argmax(axis=1).tolist()
    assert found["class_ids"].dtype == tf.int64
    names = np.array([b"red", b"green", b"blue"])
    assert found["class_names"].numpy().tolist() == names[wanted.argmax(axis=1)].tolist()
    assert by_pixels["class_names"].numpy().tolist() == found["class_names"].numpy().tolist()
    assert served["class_names"]()["class_names"].numpy().tolist() == names.tolist()


def test_a_picture_at_a_time_is_the_same(written):
    served = signatures(written())["serving_default"]
    pictures = [KINDS["turned jpeg"], KINDS["png alpha"], KINDS["webp lossy"]]
    together = served(image_bytes=tf.constant(pictures))["probabilities"].numpy()
    for row, data in zip(together, pictures, strict=True):
        alone = served(image_bytes=tf.constant([data]))["probabilities"].numpy()
        np.testing.assert_allclose(alone, [row], atol=1e-6)


def test_what_is_no_picture_is_an_error(written):
    served = signatures(written())["serving_default"]
    frames = [noise(40, 24, seed).convert("RGBA") for seed in (0, 1)]
    animated = encode(frames[0], "WEBP", save_all=True, append_images=frames[1:], duration=100)
    assert struct.unpack("<B", animated[20:21])[0] & 0x02
    for data, message in ((b"text", "Unknown image file format"), (animated, "an animated WebP: save its")):
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            served(image_bytes=tf.constant([encode(blocks(), "PNG"), data]))


def test_the_network_with_the_weights_of_the_moment_and_no_variables(tiny_backbone, tmp_path):
    backbone = open_backbone(f"savedmodel:{tiny_backbone}", image_size=SIZE, value_range=CONTRACT.value_range)
    assert backbone.contract == CONTRACT
    classifier = Classifier(backbone, Head("linear", num_logits=3, dropout=0.0, seed=0))
    kernel, bias = classifier.head.named_variables().values()
    kernel.assign([[3, 0, 1], [0, 2, -1]])
    bias.assign([0, 1, 2])
    images = np.random.default_rng(0).random([4, SIZE, SIZE, 3], np.float32)
    # Features are red + blue and green + blue, of pixels from -1 to 3.
    means = images.mean(axis=(1, 2)) * 4 - 1
    logits = (means[:, :2] + means[:, 2:]) @ kernel.numpy() + bias.numpy()
    wanted = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    folder = write(tmp_path, frozen_network(classifier, batch_size=None))
    kernel.assign(kernel * 0)
    np.testing.assert_allclose(open_model(folder).probabilities(images), wanted, atol=1e-5)
    reader = tf.train.load_checkpoint(str(folder / "variables" / "variables"))
    assert list(reader.get_variable_to_shape_map()) == ["_CHECKPOINTABLE_OBJECT_GRAPH"]


def test_what_it_says_of_itself_comes_back(written):
    assert read_about(written("ignore"), flag="x") == About(
        NAMES, CONTRACT, "ignore", "exact", temperature=1.5
    )
    model = open_model(written())
    assert (model.class_names, model.contract.value_range) == (NAMES, (0.0, 1.0))
    assert model.about.contract.value_range == (-1.0, 3.0)
