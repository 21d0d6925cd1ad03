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


def test_draws_of_flip_and_crop_are_those_of_earlier_runs():
    # Kept features and runs that go on depend on them.
    expected = [0.396539568901062, 0.29924559593200684, 0.3130592107772827, 0.5840867757797241]
    assert make_augment("flip,crop").draw(seeds(1)[0]).numpy().tolist() == expected


def test_crop_cuts_the_boxes_of_earlier_runs():
    draws = tf.constant([[0.25, 0.5, 0.0], [0.0, 1.0, 0.5]])
    images = tf.constant(np.stack([RAMP, RAMP[::-1]]))
    side = np.sqrt([0.5 + 0.5 * 0.25, 0.5])
    top, left = [0.5, 1.0] * (1 - side), [0.0, 0.5] * (1 - side)
    boxes = np.stack([top, left, top + side, left + side], axis=1)
    expected = tf.image.crop_and_resize(images, boxes, [0, 1], [SIDE, SIDE])
    np.testing.assert_allclose(AUGMENTATIONS["crop"].make().apply(images, draws), expected, atol=1e-6)


@pytest.mark.parametrize(
    "text", ["flip", "crop(0.1)", "crop", "crop(0.5),flip", "rotate,zoom,translate", "random_resized_crop"]
)
def test_stays_in_bounds_and_shape_for_any_picture(text):
    noise = np.random.default_rng(0).integers(0, 2, (SIDE, SIDE, 3)).astype(np.float32)
    for image in (noise, np.ones_like(noise), np.zeros_like(noise)):
        for seed in seeds(10):
            changed = apply(text, seed, image)
            assert changed.shape == image.shape
            assert changed.dtype == np.float32
            assert changed.min() >= image.min()
            assert changed.max() <= image.max()


EVERY = [
    *AUGMENTATIONS,
    pytest.param("color_jitter,randaugment(1,7),color_jitter", marks=pytest.mark.slow),
    pytest.param("rotate,random_resized_crop,erase(1),zoom,translate,crop,flip", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("text", EVERY)
def test_is_the_same_in_any_batch_eager_and_in_a_dataset(text):
    # To the last bit. An odd number of pictures of odd sides, so that vectors end somewhere in them.
    count, shape = 37, (15, 13, 3)
    pixels = np.random.default_rng(0).integers(0, 256, (count, *shape))
    images = tf.constant((pixels / 255).astype(np.float32))
    augment = make_augment(text)
    draws = tf.stack([augment.draw(seed) for seed in seeds(count)])
    whole = augment.apply(images, draws).numpy()
    assert whole.dtype == np.float32
    assert whole.shape == images.shape
    assert 0 <= whole.min() < whole.max() <= 1
    for i in (0, 9, *range(32, count)):
        np.testing.assert_array_equal(augment(images[i], seeds(count)[i]), whole[i])
    piped = (
        tf.data.Dataset.from_tensor_slices((images, tf.stack(seeds(count))))
        .map(lambda image, seed: (image, augment.draw(seed)))
        .batch(count, drop_remainder=True)
        .map(augment.apply)
    )
    np.testing.assert_array_equal(next(iter(piped)), whole)


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


def test_every_augmentation_says_what_it_is():
    assert all(AUGMENTATIONS[name].help for name in AUGMENTATIONS)


@pytest.mark.parametrize(
    "text",
    ["crop(1)", "random_resized_crop(1,2)", "rotate(1)", "zoom(0)", "translate(1)", "color_jitter(1,1,1,0)",
     "randaugment(1,5)", "erase(1)", "mixup(1)", "cutmix(1)"],
)  # fmt: skip
def test_whole_numbers_are_numbers(text):
    assert apply(text, seeds(1)[0]).shape == RAMP.shape


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("spin", f"augment=spin is not one of {', '.join(AUGMENTATIONS)}"),
        ("rotat(0.2)", ": is it rotate?"),
        ("colour_jitter", "is it color_jitter?"),
        ("mix", "is it mixup or cutmix?"),
        ("flip,spin(3)", "augment=spin(3) is not one of"),
        ("flip(1)", "augment=flip(1): flip takes no arguments, and there is 1 besides"),
        ("erase('a')", "augment=erase('a'): probability='a' must be a number from 0 to 1"),
        ("crop(0.5,0.6)", "crop takes min_area=0.5 (a number above 0 and at most 1), and there is 0.6"),
        ("crop(0)", "augment=crop(0): min_area=0 must be a number above 0 and at most 1"),
        ("crop(1.5)", "min_area=1.5 must be"),
        ("crop(-1)", "min_area=-1 must be"),
        ("crop('a')", "min_area='a' must be"),
        ("crop(half)", "is not a list of names with arguments"),
        ("crop(", "is not a list of names with arguments"),
        ("crop(area=0.5)", "crop has no area; it takes min_area=0.5 (a number above 0 and at most 1): is it"),
        ("crop((1,2))", "min_area=(1, 2) must be"),
        ("crop(None)", "min_area=None must be"),
        ("random_resized_crop(0)", "min_area=0 must be a number above 0 and at most 1"),
        ("random_resized_crop(0.5,0.9)", "max_aspect=0.9 must be a number from 1 to 100"),
        ("rotate(-0.1)", "max_turn=-0.1 must be a number from 0 to 1"),
        ("zoom(1)", "max_share=1 must be a number 0 or more and below 1"),
        ("translate(1.1)", "max_share=1.1 must be a number from 0 to 1"),
        ("color_jitter(-1)", "brightness=-1 must be a number from 0 to 10"),
        ("color_jitter(0.4,0.4,0.4,0.6)", "hue=0.6 must be a number from 0 to 0.5"),
        ("randaugment(2,11)", "randaugment(2,11): magnitude=11 must be a number from 0 to 10"),
        ("randaugment(0)", "num_layers=0 must be a whole number from 1 to 10"),
        ("randaugment(1.5)", "num_layers=1.5 must be a whole number from 1 to 10"),
        ("erase(1.5)", "probability=1.5 must be a number from 0 to 1"),
        ("erase(0.5,0.4,0.3)", "min_area must be max_area or less"),
        ("mixup(0)", "alpha=0 must be a number from 0.01 to 100"),
        ("cutmix(-1)", "alpha=-1 must be a number from 0.01 to 100"),
        ("mixup,flip", "augment: mixup mixes pictures that are done, and must come last, not before flip"),
        ("mixup,flip,cutmix(0.5)", "augment: mixup and cutmix(0.5) both mix a picture with the next"),
    ],
)
def test_unknown_names_and_wrong_arguments_are_refused(text, message):
    with pytest.raises(UsageError) as caught:
        make_augment(text)
    assert message in str(caught.value)
