"""Random changes: pure functions of (image, seed), with answers known by hand."""

import numpy as np
import pytest
import tensorflow as tf

from trainer.data.augment import AUGMENTATIONS, make_augment
from trainer.values import UsageError

SIDE = 8
RAMP = np.linspace(0.0, 1.0, SIDE * SIDE * 3, dtype=np.float32).reshape(SIDE, SIDE, 3)


def seeds(count):
    return [tf.constant([7, i], tf.int32) for i in range(count)]


def apply(text, seed, image=RAMP):
    return make_augment(text)(tf.constant(image), seed).numpy()


def is_mirrored(image):
    if np.array_equal(image, RAMP):
        return False
    np.testing.assert_array_equal(image, RAMP[:, ::-1])
    return True


def test_flip_mirrors_about_half_and_leaves_the_rest():
    count = sum(is_mirrored(apply("flip", seed)) for seed in seeds(200))
    # Five standard deviations of a fair coin.
    assert 65 < count < 135


def test_crop_of_everything_is_nearly_the_identity():
    for seed in seeds(5):
        np.testing.assert_allclose(apply("crop(1.0)", seed), RAMP, atol=1e-5)
        np.testing.assert_allclose(apply("crop(1)", seed), RAMP, atol=1e-5)


def test_crop_shows_a_part_of_the_area_asked_for():
    # Pixels that hold their own position tell which box was cut.
    at = np.linspace(0.0, 1.0, SIDE, dtype=np.float32)
    image = np.stack(np.broadcast_arrays(at[:, None], at[None, :], np.float32(0.0)), axis=-1)
    areas, tops, lefts = [], [], []
    for seed in seeds(200):
        cut = apply("crop(0.25)", seed, image)
        height = cut[-1, 0, 0] - cut[0, 0, 0]
        width = cut[0, -1, 1] - cut[0, 0, 1]
        np.testing.assert_allclose(height, width, atol=1e-5)
        areas.append(height * width)
        tops.append(cut[0, 0, 0])
        lefts.append(cut[0, 0, 1])
    assert 0.25 - 1e-4 < min(areas) < 0.35
    assert 0.9 < max(areas) < 1 + 1e-4
    assert abs(np.corrcoef(tops, lefts)[0, 1]) < 0.9
    assert max(tops) > 0.2
    assert max(lefts) > 0.2


@pytest.mark.parametrize("text", ["flip", "crop(0.1)", "crop", "flip,crop(0.3)", "crop(0.5),flip"])
def test_stays_in_bounds_and_shape_for_any_picture(text):
    noise = np.random.default_rng(0).integers(0, 2, (SIDE, SIDE, 3)).astype(np.float32)
    for image in (noise, np.ones_like(noise), np.zeros_like(noise)):
        for seed in seeds(10):
            changed = apply(text, seed, image)
            assert changed.shape == image.shape
            assert changed.dtype == np.float32
            assert changed.min() >= image.min()
            assert changed.max() <= image.max()


@pytest.mark.parametrize("text", ["flip", "crop(0.3)", "flip,crop(0.3)"])
def test_is_the_same_eager_and_in_a_dataset(text):
    change = make_augment(text)
    dataset = tf.data.Dataset.from_tensor_slices(tf.stack(seeds(20)))
    piped = dataset.map(lambda seed: change(tf.constant(RAMP), seed), num_parallel_calls=2)
    for seed, image in zip(seeds(20), piped, strict=True):
        # The graph may round differently by an ulp or two, never more.
        np.testing.assert_allclose(image.numpy(), apply(text, seed), rtol=0, atol=1e-6)


def test_the_same_seed_gives_the_same_picture_and_others_do_not():
    pictures = [apply("crop(0.3)", seed) for seed in seeds(20)]
    for seed, image in zip(seeds(20), pictures, strict=True):
        np.testing.assert_array_equal(apply("crop(0.3)", seed), image)
    assert len({image.tobytes() for image in pictures}) == 20


def test_two_of_a_kind_draw_independently():
    # Were both flips drawn alike, they would always undo each other.
    mirrored = [is_mirrored(apply("flip,flip", seed)) for seed in seeds(200)]
    assert 65 < sum(mirrored) < 135
    first, second = (
        [is_mirrored(apply(f"{crop}flip", seed)) for seed in seeds(60)] for crop in ("", "flip,")
    )
    assert first != second


def test_nothing_is_none():
    assert make_augment("") is None
    assert make_augment("  ") is None


def test_every_augmentation_works_with_its_defaults():
    for name in AUGMENTATIONS:
        assert apply(name, seeds(1)[0]).shape == RAMP.shape


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("spin", "'spin' is not one of flip, crop"),
        ("flip,spin(3)", "'spin'"),
        ("flip(1)", "flip(1) has the wrong number or kind of arguments"),
        ("crop(0.5,0.6)", "wrong number"),
        ("crop(0)", "must be in (0, 1]"),
        ("crop(1.5)", "crop(1.5)"),
        ("crop(-1)", "crop(-1)"),
        ("crop('a')", "crop(a)"),
        ("crop(half)", "is not a list of names with arguments"),
        ("crop(", "is not a list of names with arguments"),
        ("crop(min_area=0.5)", "is not a list"),
        ("crop((1,2))", "crop((1, 2))"),
    ],
)
def test_unknown_names_and_wrong_arguments_are_refused(text, message):
    with pytest.raises(UsageError) as caught:
        make_augment(text)
    assert message in str(caught.value)
