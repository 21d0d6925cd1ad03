"""Changes of colours, against Pillow and answers known by hand."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageOps

from trainer.data.augment import change as levels
from trainer.data.augment import colors, make_augment

FACTORS = [0.0, 0.4, 1.0, 1.7]


def pictures():
    """A noisy one, a dark one of few levels, and one of a single colour; [3, 10, 14, 3] uint8."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (10, 14, 3))
    flat = np.broadcast_to([200, 30, 0], noise.shape)
    return np.stack([noise, rng.integers(20, 60, noise.shape), flat]).astype(np.uint8)


def floats(pixels):
    return tf.constant(pixels.astype(np.float32) / 255)


def assert_levels(images, expected, *, within=0.01):
    """`within` is in levels of 8 bits."""
    np.testing.assert_allclose(images.numpy() * 255, np.stack(expected).astype(np.float32), atol=within)


@pytest.mark.parametrize(
    ("change", "enhance"),
    [
        (colors.brightness, ImageEnhance.Brightness),
        (colors.contrast, ImageEnhance.Contrast),
        (colors.saturation, ImageEnhance.Color),
        (colors.sharpness, ImageEnhance.Sharpness),
    ],
)
def test_factors_are_those_of_pillow(change, enhance):
    for factor in FACTORS:
        expected = [np.asarray(enhance(Image.fromarray(one)).enhance(factor)) for one in pictures()]
        # Pillow rounds the luma, the mean and the result.
        assert_levels(change(floats(pictures()), tf.fill([3], factor)), expected, within=2.2)


def test_each_picture_has_its_own_factor_and_mean():
    whole = colors.contrast(floats(pictures()), tf.constant([0.0, 1.0, 0.0])).numpy()
    luma = pictures() @ np.array([0.299, 0.587, 0.114]) / 255
    np.testing.assert_allclose(whole[0], luma[0].mean(), atol=1e-5)
    np.testing.assert_allclose(whole[1], pictures()[1] / 255, atol=1e-5)
    np.testing.assert_allclose(whole[2], luma[2].mean(), atol=1e-5)


def test_a_third_of_a_circle_turns_red_into_green():
    red = tf.constant([[[[0.8, 0.2, 0.2]]], [[[0.8, 0.2, 0.2]]], [[[0.3, 0.3, 0.3]]]])
    turned = colors.hue(red, tf.constant([1 / 3, -1 / 3, 0.2])).numpy()[:, 0, 0]
    np.testing.assert_allclose(turned, [[0.2, 0.8, 0.2], [0.2, 0.2, 0.8], [0.3, 0.3, 0.3]], atol=1e-6)


def test_levels_are_those_of_pillow():
    expected = [np.asarray(ImageOps.autocontrast(Image.fromarray(one))) for one in pictures()]
    assert_levels(levels.auto_contrast(floats(pictures())), expected, within=1.0)
    for bits in (8, 4, 1):
        expected = [np.asarray(ImageOps.posterize(Image.fromarray(one), bits)) for one in pictures()]
        assert_levels(levels.posterize(floats(pictures()), tf.fill([3], bits)), expected)
    for threshold in (256, 128, 30, 0):
        expected = [np.asarray(ImageOps.solarize(Image.fromarray(one), threshold)) for one in pictures()]
        assert_levels(levels.solarize(floats(pictures()), tf.fill([3], float(threshold))), expected)


def test_equalize_is_that_of_pillow():
    # Of many pixels and of few levels, one of which is the brightest, or has them all.
    rng = np.random.default_rng(1)
    steep = np.clip(rng.normal(200, 60, (40, 50, 3)), 0, 255)
    few = rng.choice([3, 90, 91, 250], (40, 50, 3), p=[0.1, 0.5, 0.3, 0.1])
    crowded = np.where(rng.random((40, 50, 3)) < 0.9, 255, rng.integers(0, 256, (40, 50, 3)))
    batch = np.stack([steep, few, crowded, np.full_like(few, 77)]).astype(np.uint8)
    expected = [np.asarray(ImageOps.equalize(Image.fromarray(one))) for one in batch]
    assert_levels(levels.equalize(floats(batch)), expected)


def test_what_resizing_has_overshot_has_levels_too():
    over = tf.constant([[[[-0.1, 0.5, 1.2]] * 20] * 20])
    for changed in (
        levels.equalize(over),
        levels.posterize(over, tf.constant([4])),
        levels.solarize(over, tf.constant([0.0])),
    ):
        assert changed.numpy().min() >= 0.0
        assert changed.numpy().max() <= 1.0


def jittered(text, colour, count=200):
    """Returns [count, 3]: one colour, changed by that many seeds."""
    augment = make_augment(text)
    draws = tf.stack([augment.draw(tf.constant([3, i])) for i in range(count)])
    return augment.apply(tf.broadcast_to(tf.constant(colour), [count, 2, 2, 3]), draws).numpy()[:, 0, 0]


def test_jitter_draws_factors_from_the_ranges_asked_for():
    brightness = jittered("color_jitter(0.4,0,0,0)", [0.5, 0.5, 0.5])[:, 0] / 0.5
    assert 0.6 <= brightness.min() < 0.65
    assert 1.35 < brightness.max() <= 1.4
    assert abs(brightness.mean() - 1) < 0.07
    # The luma of a colour stays where its saturation changes: that of this is 0.5.
    colour = 0.5 + 0.3 * np.array([0.587, -0.299, 0.0])
    saturation = (jittered("color_jitter(0,0,0.5,0)", colour.tolist()) - 0.5)[:, 0] / (0.3 * 0.587)
    assert 0.5 - 1e-4 < saturation.min() < 0.56
    assert 1.44 < saturation.max() < 1.5 + 1e-4
    # A factor is never below 0, which would show the opposite colours.
    strong = (jittered("color_jitter(0,0,3,0)", colour.tolist()) - 0.5)[:, 0]
    assert -1e-4 < strong.min() < 0.03


def test_jitter_turns_the_hue_to_both_sides_as_far_as_asked_for():
    turned = tf.image.rgb_to_hsv(jittered("color_jitter(0,0,0,0.25)", [0.2, 0.2, 0.8])).numpy()[:, 0] - 2 / 3
    assert -0.25 - 1e-5 < turned.min() < -0.23
    assert 0.23 < turned.max() < 0.25 + 1e-5


def test_jitter_of_contrast_is_about_the_mean_of_the_picture():
    image = np.zeros((1, 2, 2, 3), np.float32)
    image[:, 0], image[:, 1] = 0.3, 0.7
    augment = make_augment("color_jitter(0,0.4,0,0)")
    draws = tf.stack([augment.draw(tf.constant([3, i])) for i in range(100)])
    seen = augment.apply(tf.constant(np.repeat(image, 100, axis=0)), draws).numpy()
    np.testing.assert_allclose(seen.mean(axis=(1, 2, 3)), 0.5, atol=1e-5)
    spread = (seen[:, 1, 0, 0] - seen[:, 0, 0, 0]) / 0.4
    assert 0.6 - 1e-4 < spread.min() < 0.65
    assert 1.35 < spread.max() < 1.4 + 1e-4


def test_jitter_of_nothing_is_the_identity():
    augment = make_augment("color_jitter(0,0,0,0)")
    images = floats(pictures())
    np.testing.assert_array_equal(augment.apply(images, tf.fill([3, 4], 0.9)), images)
