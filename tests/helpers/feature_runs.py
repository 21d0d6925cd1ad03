"""What the tests of the feature cache share: a small Keras network, and the numbers that a run leaves."""

import contextlib
import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests.record.events import scalars


def preprocess_input(images):
    return images / 127.5 - 1.0


def TinyNet(*, include_top, weights, input_shape, pooling):
    """stem > stem_bn > stem_relu > middle > middle_relu > last > average; it can tell left from right."""
    from tf_keras import Input, Model, layers

    assert (include_top, weights, pooling) == (False, None, "avg")
    images = Input(input_shape)
    x = layers.Conv2D(4, 3, strides=2, padding="same", use_bias=False, name="stem")(images)
    x = layers.ReLU(name="stem_relu")(layers.BatchNormalization(name="stem_bn")(x))
    x = layers.ReLU(name="middle_relu")(layers.Conv2D(6, 3, padding="same", name="middle")(x))
    x = layers.Conv2D(5, 3, padding="same", activation="relu", name="last")(x)
    return Model(images, layers.GlobalAveragePooling2D(name="average")(x))


@contextlib.contextmanager
def tiny_net():
    """Makes --backbone=keras:TinyNet one of the networks of Keras."""
    import tf_keras

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tf_keras.applications, "TinyNet", TinyNet, raising=False)
        yield


def computed(out):
    """Returns of which splits, and views, a run computed features, by what it printed."""
    return re.findall(r"^features of (.+): [\d,]+ pictures in ", out, re.MULTILINE)


def metrics(workdir):
    return [json.loads(line) for line in (Path(workdir) / "metrics.jsonl").read_text().splitlines()]


def predictions(workdir, folder=""):
    """Returns [(id, label, prediction)] and the probabilities [N, K] of a report."""
    with open(Path(workdir) / "report" / folder / "predictions.csv") as file:
        _, *rows = csv.reader(file)
    return [tuple(row[:3]) for row in rows], np.array([row[3:-2] for row in rows], float)


def weights(workdir):
    """{name: value} of all that the last checkpoint of a run holds."""
    reader = tf.train.load_checkpoint(tf.train.latest_checkpoint(str(Path(workdir) / "checkpoints")))
    names = [name for name in reader.get_variable_to_shape_map() if name.startswith("variables/")]
    return {name: reader.get_tensor(name) for name in names}


def assert_same_numbers(workdir, expected):
    """Compares all that two runs leave, within 1e-5."""
    shape, others = [], []
    for line in (metrics(workdir), metrics(expected)):
        shape.append([(row["split"], row["step"], row["phase"], row["accuracy"]) for row in line])
        others.append([(row["loss"], row.get("gradient_norm", 0.0)) for row in line])
    assert shape[0] == shape[1]
    np.testing.assert_allclose(others[0], others[1], rtol=1e-5, atol=1e-5)
    (rows, got), (wanted_rows, wanted) = predictions(workdir), predictions(expected)
    assert rows == wanted_rows
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5)
    got, wanted = weights(workdir), weights(expected)
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-5, atol=1e-5, err_msg=name)


def left(workdir):
    """All that a run leaves, to the last bit; times are left out."""
    workdir = Path(workdir)
    return {
        "metrics.jsonl": (workdir / "metrics.jsonl").read_bytes(),
        "weights": {name: value.tobytes() for name, value in weights(workdir).items()},
        **{path.name: path.read_bytes() for path in (workdir / "report").iterdir()},
        **{
            f"{split} {tag}": sorted(points)
            for split in ("train", "validation", "test")
            for tag, points in scalars(workdir / split).items()
            if tag not in ("images_per_second", "input_wait_share")
        },
    }


def entries(cache):
    """{(describe, digest of the key): (inode, time of the last change, bytes)} of the numbers in a cache."""
    found = {}
    for folder in (Path(cache) / "features").glob("[0-9a-f]*"):
        if folder.is_dir():
            file = folder / "features.npy"
            describe = json.loads((folder / "entry.json").read_text())["describe"]
            stat = file.stat()
            found[describe, folder.name] = (stat.st_ino, stat.st_mtime_ns, file.read_bytes())
    return found
