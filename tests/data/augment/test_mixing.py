"""mixup and CutMix: with whom, how much, and that labels say what pixels show."""

import numpy as np
import pytest
import tensorflow as tf

from trainer.data.augment import make_augment
from trainer.data.augment.mixing import partners

COUNT, SIDE, CLASSES = 6, 20, 4
LABELS = tf.constant([0, 1, 1, 3, 2, 0], tf.int64)
ALL = tf.ones([COUNT])


def flat(count=COUNT):
    """[count, SIDE, SIDE, 3]: picture i is i / 10 everywhere."""
    return tf.constant(
        np.broadcast_to(np.arange(count)[:, None, None, None] / 10, [count, SIDE, SIDE, 3]), tf.float32
    )


def draw(text, count=COUNT, seed=7):
    augment = make_augment(text)
    seeds = tf.data.Dataset.range(count, output_type=tf.int32).map(lambda i: tf.stack([seed, i]))
    return augment, next(iter(seeds.map(augment.draw).batch(count)))


def mix(text, *, mask=ALL, seed=7):
    augment, draws = draw(text, seed=seed)
    images, targets = augment.mix(flat(), LABELS, draws, mask=mask, num_classes=CLASSES)
    return images.numpy(), targets.numpy()


def expected_targets(shares, others):
    own = np.eye(CLASSES)[LABELS.numpy()]
    return shares[:, None] * own + (1 - shares[:, None]) * own[others]


def test_a_partner_is_the_next_real_row():
    assert partners(tf.constant([1.0, 1, 1, 1])).numpy().tolist() == [1, 2, 3, 0]
    assert partners(tf.constant([1.0, 1, 1, 0, 0])).numpy().tolist() == [1, 2, 0, 3, 4]
    assert partners(tf.constant([0.0, 1, 0, 1])).numpy().tolist() == [0, 3, 2, 1]
    assert partners(tf.constant([1.0, 0])).numpy().tolist() == [0, 1]
    assert partners(tf.constant([0.0, 0])).numpy().tolist() == [0, 1]


def test_mixup_adds_the_share_that_the_target_says():
    images, targets = mix("mixup(1)")
    others = np.array([1, 2, 3, 4, 5, 0])
    shares = draw("mixup(1)")[1].numpy()[:, 0]
    for i in range(COUNT):
        np.testing.assert_allclose(images[i], (shares[i] * i + (1 - shares[i]) * others[i]) / 10, atol=1e-6)
    np.testing.assert_allclose(targets, expected_targets(shares, others), atol=1e-6)
    # Two of one class, mixed, are of that class.
    assert targets[1].tolist() == [0, 1, 0, 0]
    assert targets.dtype == np.float32


def test_cutmix_pastes_the_box_whose_share_the_target_says():
    others, some_cut = np.array([1, 2, 3, 4, 5, 0]), 0
    for seed in range(5):
        images, targets = mix("cutmix(1)", seed=seed)
        pasted = np.isclose(images, others[:, None, None, None] / 10).all(axis=-1)
        kept = np.isclose(images, np.arange(COUNT)[:, None, None, None] / 10).all(axis=-1)
        assert (pasted ^ kept).all()
        shares = kept.mean(axis=(1, 2))
        np.testing.assert_allclose(targets, expected_targets(shares, others), atol=1e-6)
        drawn = draw("cutmix(1)", seed=seed)[1].numpy()[:, 0]
        for one, own, most in zip(pasted, shares, drawn, strict=True):
            rows, columns = (np.flatnonzero(one.any(axis=axis)) for axis in (1, 0))
            if not len(rows):
                continue
            height, width = rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
            assert one.sum() == height * width
            side = int(np.sqrt(1 - most) * SIDE)
            # Beyond the edges, it is cut off.
            at_edge = rows[0] == 0 or rows[-1] == SIDE - 1, columns[0] == 0 or columns[-1] == SIDE - 1
            assert height == side or (at_edge[0] and height < side)
            assert width == side or (at_edge[1] and width < side)
            some_cut += (height, width) != (side, side)
            assert own >= most
    assert some_cut > 3


@pytest.mark.parametrize("text", ["mixup(0.4)", "cutmix"])
def test_padding_is_nobody_s_partner(text):
    mask = tf.constant([1.0, 1, 1, 1, 0, 0])
    images, targets = mix(text, mask=mask)
    # The last real one is mixed with the first.
    assert images[3].min() >= 0
    assert images[3].max() <= 0.3 + 1e-6
    assert targets[3].nonzero()[0].tolist() in ([3], [0, 3])
    np.testing.assert_allclose(images[4:], flat()[4:], atol=1e-6)
    np.testing.assert_array_equal(targets[4:], np.eye(CLASSES)[[2, 0]])


@pytest.mark.parametrize("text", ["mixup(0.4)", "cutmix"])
def test_one_picture_alone_stays_as_it_is(text):
    images, targets = mix(text, mask=tf.constant([0.0, 0, 1, 0, 0, 0]))
    np.testing.assert_allclose(images, flat(), atol=1e-6)
    np.testing.assert_array_equal(targets, np.eye(CLASSES)[LABELS.numpy()])


@pytest.mark.parametrize("text", ["mixup(0.1)", "mixup", "mixup(1)", "cutmix", "cutmix(0.3)"])
def test_the_own_label_dominates_and_rows_sum_to_one(text):
    augment, draws = draw(text, count=300)
    labels = tf.constant(np.arange(300) % CLASSES)
    _, targets = augment.mix(flat(300) / 30, labels, draws, mask=tf.ones([300]), num_classes=CLASSES)
    np.testing.assert_allclose(targets.numpy().sum(axis=1), 1, atol=1e-6)
    assert targets.numpy()[np.arange(300), labels.numpy()].min() >= 0.5


def test_shares_are_those_of_the_beta_distribution():
    # E|2 l - 1| is 1/2 for Beta(1, 1), and larger the smaller alpha is: for alpha = 1/2, 2 / pi.
    # Where alpha is small, all are near 1.
    for alpha, expected in ((1, 0.5), (0.5, 2 / np.pi), (100, np.sqrt(2 / np.pi / 201)), (0.01, 0.99)):
        shares = draw(f"mixup({alpha})", count=600)[1].numpy()[:, 0]
        assert shares.min() >= 0.5
        assert abs((2 * shares - 1).mean() - expected) < 0.06


def test_only_mixup_and_cutmix_mix():
    assert make_augment("flip,crop,mixup").mixes
    assert make_augment("cutmix").mixes
    assert not make_augment("flip,randaugment").mixes
    with pytest.raises(ValueError, match="no mixup or cutmix"):
        make_augment("flip").mix(flat(), LABELS, tf.ones([COUNT, 1]), mask=ALL, num_classes=CLASSES)


def test_a_mixing_leaves_the_draws_and_pixels_of_the_others():
    plain, mixing = draw("flip,crop(0.3)"), draw("flip,crop(0.3),cutmix")
    np.testing.assert_array_equal(mixing[1][:, :4], plain[1])
    noise = tf.random.stateless_uniform([COUNT, SIDE, SIDE, 3], [1, 2])
    np.testing.assert_array_equal(mixing[0].apply(noise, mixing[1]), plain[0].apply(noise, plain[1]))


@pytest.mark.parametrize("text", ["mixup", "cutmix"])
def test_is_the_same_eager_and_in_a_dataset(text):
    augment, draws = draw(text)
    noise = tf.random.stateless_uniform([COUNT, SIDE, SIDE, 3], [1, 2])

    def mixed(images, draws):
        return augment.mix(images, LABELS, draws, mask=ALL, num_classes=CLASSES)

    piped = next(iter(tf.data.Dataset.from_tensors((noise, draws)).map(mixed)))
    for one, other in zip(mixed(noise, draws), piped, strict=True):
        np.testing.assert_array_equal(one, other)
