"""Geometric changes: the Keras layers they follow, boxes that were asked for, and turns known by hand."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from trainer.data.augment import AUGMENTATIONS, make_augment
from trainer.data.augment.change import shape_that_fits
from trainer.data.augment.geometry import transform

COUNT, HEIGHT, WIDTH = 200, 12, 16
NOISE = np.random.default_rng(0).random((5, HEIGHT, WIDTH, 3)).astype(np.float32)


def positions(height=HEIGHT, width=WIDTH):
    """A picture whose pixels hold where their middles are: y by height in red, x by width in green."""
    y, x = (np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width
    return np.stack(np.broadcast_arrays(y[:, None], x[None], 0.0), axis=-1).astype(np.float32)


def changed(text, image, count=COUNT):
    """Returns [count, H, W, 3], a picture changed by that many seeds."""
    augment = make_augment(text)
    draws = tf.stack([augment.draw(tf.constant([3, i])) for i in range(count)])
    return augment.apply(tf.constant(np.repeat(image[None], count, axis=0)), draws).numpy()


def by(name, *draws, argument):
    """Returns what a change makes of NOISE where it draws these numbers."""
    change = AUGMENTATIONS[name].make(argument)
    assert change.num_draws == len(draws)
    return change.apply(tf.constant(NOISE), tf.constant([draws] * len(NOISE), tf.float32)).numpy()


LAYERS = tf_keras.layers


@pytest.mark.parametrize(
    ("name", "draws", "argument", "layer"),
    [
        ("rotate", [1.0], 0.2, LAYERS.RandomRotation((0.2, 0.2))),
        ("rotate", [0.0], 0.2, LAYERS.RandomRotation((-0.2, -0.2))),
        ("rotate", [0.75], 0.2, LAYERS.RandomRotation((0.1, 0.1))),
        ("zoom", [1.0], 0.3, LAYERS.RandomZoom((0.3, 0.3))),
        ("zoom", [0.0], 0.3, LAYERS.RandomZoom((-0.3, -0.3))),
        ("translate", [1.0, 0.0], 0.25, LAYERS.RandomTranslation((0.25, 0.25), (-0.25, -0.25))),
        ("translate", [0.5, 0.9], 0.5, LAYERS.RandomTranslation((0.0, 0.0), (0.4, 0.4))),
    ],
)
def test_is_what_the_keras_layer_does(name, draws, argument, layer):
    expected = layer(NOISE, training=True).numpy()
    np.testing.assert_allclose(by(name, *draws, argument=argument), expected, atol=1e-4)


def test_a_quarter_turn_anticlockwise():
    square = NOISE[:, :, :HEIGHT]
    quarter = AUGMENTATIONS["rotate"].make(0.25).apply(tf.constant(square), tf.ones([len(square), 1]))
    np.testing.assert_allclose(quarter, np.rot90(square, axes=(1, 2)), atol=1e-5)


def test_the_middle_of_the_range_is_the_identity():
    for name, draws in (("rotate", [0.5]), ("zoom", [0.5]), ("translate", [0.5, 0.5])):
        np.testing.assert_allclose(by(name, *draws, argument=0.1), NOISE, atol=1e-5)


def test_translation_moves_down_and_right_and_reflects():
    moved = by("translate", 1.0, 1.0, argument=0.25)
    np.testing.assert_allclose(moved[:, 3:, 4:], NOISE[:, :-3, :-4], atol=1e-6)
    np.testing.assert_allclose(moved[:, :3, 4:], NOISE[:, 2::-1, :-4], atol=1e-6)


def test_translations_down_and_right_are_drawn_apart():
    image = np.zeros((9, 9, 3), np.float32)
    image[4, 4] = 1.0
    at = np.argwhere(changed("translate(0.3)", image)[..., 0] > 0.3)[:, 1:]
    assert {tuple(place) for place in at} >= {(2, 2), (2, 6), (6, 2), (6, 6), (4, 4)}


def test_a_fill_value_takes_the_place_of_the_reflection():
    moved = transform(tf.constant(NOISE), x=(1.0, 0.0), y=(0.0, 1.0), shift=(4.0, 0.0), fill=0.5).numpy()
    np.testing.assert_allclose(moved[:, :, :-4], NOISE[:, :, 4:], atol=1e-6)
    np.testing.assert_array_equal(moved[:, :, -4:], 0.5)


def boxes(text):
    """Returns height, width, top and left [COUNT] of what a crop shows, as shares of the picture's sides."""
    seen = changed(text, positions(96, 128))
    # Away from the edges, where pixels are reflected.
    y, x = seen[:, 8:-8, 60, 0], seen[:, 40, 8:-8, 1]
    steps = (y[:, -1] - y[:, 0]) / 79, (x[:, -1] - x[:, 0]) / 111
    height, width = steps[0] * 96, steps[1] * 128
    return height, width, y[:, 0] - 8.5 * steps[0], x[:, 0] - 8.5 * steps[1]


def test_random_resized_crop_shows_boxes_of_the_areas_and_shapes_asked_for():
    height, width, top, left = boxes("random_resized_crop(0.1,2)")
    area, aspect = height * width, width / height
    assert 0.1 - 1e-3 < area.min() < 0.15
    assert 0.9 < area.max() < 1 + 1e-3
    assert abs(area.mean() - 0.55) < 0.06
    assert 0.5 - 1e-3 < aspect.min() < 0.6
    assert 1.7 < aspect.max() < 2 + 1e-3
    assert abs(np.log(aspect).mean()) < 0.1
    for start, side in ((top, height), (left, width)):
        assert start.min() > -1e-3
        assert (start + side).max() < 1 + 1e-3
        free = side < 0.9
        share = start[free] / (1 - side[free])
        assert share.min() < 0.1 < 0.9 < share.max()
    assert abs(np.corrcoef(top / (1.001 - height), left / (1.001 - width))[0, 1]) < 0.3


def test_shapes_are_as_wide_and_as_tall_as_fit():
    area, draws = tf.constant([0.25] * 3, tf.float64), tf.constant([0.0, 0.5, 1.0])
    height, width = shape_that_fits(area, draws, max_aspect=100)
    np.testing.assert_allclose(height, [1, 0.5, 0.25])
    np.testing.assert_allclose(width, [0.25, 0.5, 1])
    height, width = shape_that_fits(area, draws, max_aspect=2.25)
    np.testing.assert_allclose(height, [0.75, 0.5, 1 / 3])
    np.testing.assert_allclose(width, [1 / 3, 0.5, 0.75])


def test_random_resized_crop_of_everything_is_the_identity():
    np.testing.assert_allclose(changed("random_resized_crop(1,1)", NOISE[0], 3), [NOISE[0]] * 3, atol=1e-5)
    # A whole picture has no other shape.
    np.testing.assert_allclose(changed("random_resized_crop(1,2)", NOISE[0], 3), [NOISE[0]] * 3, atol=1e-5)


def test_erase_paints_boxes_of_the_areas_asked_for():
    image = positions(60, 80)
    seen = changed("erase(0.6,0.1,0.3)", image)
    painted = (seen != image).any(axis=-1)
    np.testing.assert_array_equal(seen[painted], 0.5)
    chosen = painted.any(axis=(1, 2))
    assert 0.6 - 0.17 < chosen.mean() < 0.6 + 0.17
    areas, aspects, tops, lefts = [], [], [], []
    for one in painted[chosen]:
        rows, columns = np.flatnonzero(one.any(axis=1)), np.flatnonzero(one.any(axis=0))
        # One box without holes.
        height, width = rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
        assert one.sum() == height * width
        areas.append(height * width / (60 * 80))
        aspects.append((width / 80) / (height / 60))
        tops.append(rows[0] == 0 or rows[0] + height == 60)
        lefts.append(columns[0] == 0 or columns[0] + width == 80)
    assert 0.09 < min(areas) < 0.13
    assert 0.27 < max(areas) < 0.31
    assert 0.3 - 0.05 < min(aspects) < 0.5
    assert 2 < max(aspects) < 1 / 0.3 + 0.4
    # Anywhere, up to the edges.
    assert 0 < np.mean(tops) < 0.5
    assert 0 < np.mean(lefts) < 0.5


def test_erase_never_and_always():
    assert np.array_equal(changed("erase(0)", NOISE[0], 30), [NOISE[0]] * 30)
    assert (changed("erase(1)", NOISE[0], 30) != NOISE[0]).any(axis=(1, 2, 3)).all()
    np.testing.assert_array_equal(changed("erase(1,1,1)", NOISE[0], 3), 0.5)
