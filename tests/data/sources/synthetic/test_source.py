import hashlib
import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from trainer.data.sources.synthetic.picture import CLASS_NAMES
from trainer.data.sources.synthetic.source import open_synthetic
from trainer.values import UsageError


def draw(num_examples, seed=0):
    return open_synthetic("flowers", name="synthetic:flowers", num_examples=num_examples, seed=seed)


@pytest.fixture(scope="module")
def source():
    return draw(450)


def decode(source, index):
    return Image.open(io.BytesIO(source.read(index)))


def digest(source):
    return hashlib.sha256(b"".join(source.encoded)).hexdigest()


def test_describes_itself_as_a_source(source):
    assert source.name == "synthetic:flowers"
    assert source.class_names == ("dandelion", "daisy", "tulips", "sunflowers", "roses")
    assert source.labels.dtype == np.int64
    assert source.labels.shape == (450,)
    assert not source.sorted_by_class
    assert source.native_splits == {"train": (0, 450)}
    assert source.ids[123] == "flowers-seed0-000123"
    assert len(set(source.ids)) == 450


def test_pictures_are_rgb_jpeg_of_varied_sizes(source):
    images = [decode(source, i) for i in range(60)]
    assert {(image.format, image.mode) for image in images} == {("JPEG", "RGB")}
    sizes = np.array([image.size for image in images])
    assert sizes.min() >= 200
    assert sizes.max() <= 500
    assert len(np.unique(sizes, axis=0)) > 50
    wide = (sizes[:, 0] > sizes[:, 1]).mean()
    assert 0.3 < wide < 0.9
    # Quantisation tables grow as quality falls.
    assert len({tuple(image.quantization[0]) for image in images}) > 15


def test_every_picture_is_another(source):
    assert len({source.read(i) for i in range(450)}) == 450


def test_each_five_in_a_row_show_all_classes_in_varied_order(source):
    blocks = source.labels.reshape(-1, 5)
    assert (np.sort(blocks, axis=1) == np.arange(5)).all()
    assert len({tuple(block) for block in blocks.tolist()}) > 30


@pytest.mark.parametrize("count", [1, 7, 100])
def test_fewer_are_the_first_of_more(source, count):
    fewer = draw(count)
    assert list(fewer.encoded) == list(source.encoded[:count])
    assert list(fewer.ids) == list(source.ids[:count])
    assert fewer.labels.tolist() == source.labels[:count].tolist()


def test_same_seed_gives_the_same_bytes_in_another_process(source):
    program = (
        "import hashlib; from trainer.data.sources.synthetic.source import open_synthetic as f\n"
        "s = f('flowers', name='x', num_examples=30, seed=7)\n"
        "print(hashlib.sha256(b''.join(s.encoded)).hexdigest(), s.labels.tolist())"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    here = draw(30, seed=7)
    assert result.stdout.split(maxsplit=1) == [digest(here), f"{here.labels.tolist()}\n"]


def test_another_seed_gives_other_pictures_labels_and_ids(source):
    other = draw(30, seed=1)
    assert not {other.read(i) for i in range(30)} & {source.read(i) for i in range(30)}
    assert other.labels.tolist() != source.labels[:30].tolist()
    assert not set(other.ids) & set(source.ids)


def test_other_kinds_are_refused_by_name():
    with pytest.raises(UsageError, match="synthetic:birds"):
        open_synthetic("birds", name="synthetic:birds", num_examples=5, seed=0)


def colour_statistics(image):
    """A histogram of 4x4x4 colours, the mean and the standard deviation of each channel, [70]."""
    pixels = np.asarray(image.resize((96, 96))).reshape(-1, 3)
    bins = (pixels // 64) @ (16, 4, 1)
    histogram = np.bincount(bins, minlength=64) / len(pixels)
    return np.concatenate([np.sqrt(histogram), pixels.mean(0) / 255, pixels.std(0) / 255])


def accuracy_from_colours(features, labels):
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
    return classifier.fit(features[:300], labels[:300]).score(features[300:], labels[300:])


def test_colours_alone_do_not_tell_the_classes_apart(source):
    features = np.stack([colour_statistics(decode(source, i)) for i in range(450)])
    # Chance is 20 %.
    assert accuracy_from_colours(features, source.labels) < 0.45
    # The measure itself can see colour: it finds which class was dyed.
    dyed = features + 0.5 * np.eye(5)[source.labels] @ np.eye(5, features.shape[1], k=64)
    assert accuracy_from_colours(dyed, source.labels) > 0.9


def test_class_names_have_a_drawing_each(source):
    assert set(source.labels.tolist()) == set(range(len(CLASS_NAMES)))
