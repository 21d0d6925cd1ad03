"""Distributions are those that `tf.summary` writes."""

import numpy as np
import pytest
import tensorflow as tf
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.histogram.summary_v2 import histogram_pb

from trainer.record.summaries import histogram_summary, image_summary

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize(
    "values",
    [
        np.arange(-3.0, 7.0).reshape(2, 5),
        RANDOM.normal(size=(40, 30)).astype(np.float32),
        np.zeros(5),
        np.array(2.5),
        np.full([3, 2], -1e30, np.float32),
        np.array([1e-45, 0, -1e-45], np.float32),
    ],
)
def test_a_histogram_is_as_tensorboard_makes_it(values):
    expected = histogram_pb("x", values)
    found = Summary.FromString(histogram_summary({"x": values}))
    assert found.value[0].metadata == expected.value[0].metadata
    mine, theirs = (tf.make_ndarray(one.value[0].tensor) for one in (found, expected))
    assert mine.shape == theirs.shape == (30, 3)
    assert mine[:, 2].sum() == values.size
    np.testing.assert_allclose(mine[:, :2], theirs[:, :2], rtol=1e-6)
    # A value right at the edge of two bins may be in either.
    np.testing.assert_allclose(np.cumsum(mine[:, 2]), np.cumsum(theirs[:, 2]), atol=values.size / 100)


def test_a_picture_is_as_tensorboard_writes_it(tmp_path):
    pixels = RANDOM.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    png = tf.io.encode_png(pixels).numpy()
    with tf.summary.create_file_writer(str(tmp_path)).as_default(1):
        tf.summary.image("x", pixels[None])
    [path] = tmp_path.iterdir()
    events = [tf.compat.v1.Event.FromString(record.numpy()) for record in tf.data.TFRecordDataset(str(path))]
    expected = events[-1].summary.value[0]
    [found] = Summary.FromString(image_summary("x", png)).value
    assert found.metadata.SerializeToString() == expected.metadata.SerializeToString()
    assert tf.make_ndarray(found.tensor).tolist() == tf.make_ndarray(expected.tensor).tolist()
    assert tf.make_ndarray(found.tensor).tolist()[:2] == [b"7", b"5"]


def test_what_is_not_finite_is_left_out():
    found = Summary.FromString(
        histogram_summary(
            {"x": np.array([np.nan, 1.0, np.inf, 3.0]), "y": np.array([]), "z": np.array([-np.inf])}
        )
    )
    assert [value.tag for value in found.value] == ["x"]
    histogram = tf.make_ndarray(found.value[0].tensor)
    assert histogram[0, 0] == 1
    assert histogram[-1, 1] == 3
    assert histogram[:, 2].sum() == 2


def test_numbers_that_hardly_differ_are_one():
    values = np.array([1.0, 1.0 + 2e-16])
    histogram = tf.make_ndarray(Summary.FromString(histogram_summary({"x": values})).value[0].tensor)
    assert histogram[:, 2].tolist() == [0] * 29 + [2]
