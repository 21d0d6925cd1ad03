"""RandAugment: which operations, how strong, and that each picture gets its own."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageOps

from trainer.data.augment import AUGMENTATIONS, make_augment
from trainer.data.augment.randaugment import OPERATIONS

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (331, 30, 3)).astype(np.uint8)
PICTURE = PIXELS.astype(np.float32) / 255
NAMES = list(OPERATIONS)
GREY = 128 / 255


def done(name, strength, picture=PICTURE):
    """Returns what an operation alone makes of one picture."""
    return OPERATIONS[name](tf.constant(picture[None]), tf.constant([strength], tf.float32)).numpy()[0]


def test_the_fourteen_operations_are_those_of_the_paper():
    assert sorted(NAMES) == sorted(
        ["identity", "auto_contrast", "equalize", "rotate", "solarize", "color", "posterize", "contrast",
         "brightness", "sharpness", "shear_x", "shear_y", "translate_x", "translate_y"]
    )  # fmt: skip


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("auto_contrast", "equalize")])
def test_at_strength_0_nothing_is_changed(name):
    for zero in (0.0, -0.0):
        np.testing.assert_allclose(done(name, zero), PICTURE, atol=1e-4)


def pillow(enhance, factor):
    return np.asarray(enhance(Image.fromarray(PIXELS)).enhance(factor))


@pytest.mark.parametrize(
    ("name", "strength", "expected"),
    [
        ("identity", 1.0, PIXELS),
        ("auto_contrast", 1.0, np.asarray(ImageOps.autocontrast(Image.fromarray(PIXELS)))),
        ("equalize", 1.0, np.asarray(ImageOps.equalize(Image.fromarray(PIXELS)))),
        ("posterize", 1.0, PIXELS // 16 * 16),
        ("posterize", -0.5, PIXELS // 4 * 4),
        ("solarize", 1.0, 255 - PIXELS),
        ("solarize", -0.5, np.where(PIXELS >= 128, 255 - PIXELS, PIXELS)),
        ("color", 1.0, pillow(ImageEnhance.Color, 1.9)),
        ("color", -1.0, pillow(ImageEnhance.Color, 0.1)),
        ("contrast", -0.5, pillow(ImageEnhance.Contrast, 0.55)),
        ("brightness", 0.5, pillow(ImageEnhance.Brightness, 1.45)),
        ("sharpness", -1.0, pillow(ImageEnhance.Sharpness, 0.1)),
    ],
)
def test_strength_of_colours(name, strength, expected):
    np.testing.assert_allclose(done(name, strength) * 255, expected, atol=2.2)


def test_strength_of_geometry():
    # 150 of 331 rows, and that share of 30 columns.
    down = done("translate_y", 1.0)
    np.testing.assert_allclose(down[150:], PICTURE[:-150], atol=1e-4)
    np.testing.assert_allclose(down[:150], GREY, atol=1e-4)
    right = done("translate_x", 331 / 150 / 3)
    np.testing.assert_allclose(right[:, 10:], PICTURE[:, :-10], atol=1e-3)
    np.testing.assert_allclose(done("translate_y", -1.0)[:-150], PICTURE[150:], atol=1e-4)
    # A pixel 50 rows above the middle is 15 columns to the side.
    at = np.zeros((101, 101, 3), np.float32)
    at[:, 50] = 1
    assert done("shear_x", 1.0, at)[0, :, 0].argmax() == 65
    assert done("shear_x", -1.0, at)[0, :, 0].argmax() == 35
    assert done("shear_y", 1.0, at.swapaxes(0, 1))[:, 0, 0].argmax() == 65
    # A line upwards from the middle is turned by 30 degrees: tan(30 degrees) * 40 = 23.
    assert done("rotate", 1.0, at)[10, :, 0].argmax() == 50 - 23
    assert done("rotate", -1.0, at)[10, :, 0].argmax() == 50 + 23
    for name in ("rotate", "shear_x", "shear_y", "translate_x", "translate_y"):
        assert done(name, 1.0, np.zeros_like(at))[0, 0, 0] == pytest.approx(GREY, abs=1e-5)


def test_each_picture_gets_the_operations_it_draws():
    images = RNG.random((28, 20, 16, 3)).astype(np.float32)
    # Every operation with either sign, in no order; then the next of them with the other sign.
    first = RNG.permutation(28)
    second = (first + 1) % 28
    draws = np.stack([(first % 14 + 0.5) / 14, first // 14 / 2, (second % 14 + 0.5) / 14, second // 14 / 2])
    changed = (
        AUGMENTATIONS["randaugment"].make(2, 6).apply(tf.constant(images), tf.constant(draws.T, tf.float32))
    )
    for i, image in enumerate(images):
        for number in (first[i], second[i]):
            image = done(NAMES[number % 14], 0.6 if number // 14 else -0.6, image)
        np.testing.assert_array_equal(changed[i], image, err_msg=str(i))


def test_all_operations_and_both_signs_are_drawn_alike():
    augment = make_augment("randaugment(1,5)")
    seeds = tf.data.Dataset.range(1400, output_type=tf.int32).map(lambda i: tf.stack([3, i]))
    draws = next(iter(seeds.map(augment.draw).batch(1400))).numpy()
    counts = np.bincount((draws[:, 0] * 14).astype(int), minlength=14)
    # Five standard deviations.
    assert counts.shape == (14,)
    assert counts.min() > 50
    assert counts.max() < 150
    assert abs((draws[:, 1] < 0.5).mean() - 0.5) < 0.07
    assert abs(np.corrcoef(draws.T)[0, 1]) < 0.15
    assert make_augment("randaugment(3,5)").draw(tf.constant([3, 1])).shape == (6,)
