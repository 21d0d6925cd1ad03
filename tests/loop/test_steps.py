"""One update and one evaluation against numbers worked out by hand."""

import numpy as np
import pytest
import tensorflow as tf

from tests.loop.toys import batch_of, dataset_of, random_batches, run_of, softmax, state_of, values
from tests.model.modules import KERNEL, PENALTY
from trainer.loop.evaluator import Evaluator
from trainer.loop.gradient_rules import make_limit
from trainer.loop.losses import make_loss
from trainer.loop.objectives import supervised
from trainer.loop.stopwatch import timed
from trainer.model.backbones import open_backbone

FEATURES = np.array([[1, 0, 0.5], [0, 1, 0.25], [0.5, 0.5, 1], [0, 0, 0]], np.float32)
LABELS, MASK = np.array([0, 2, 1, 0]), np.array([1, 1, 1, 0], np.float32)
SGD = "for=9steps; train=head; lr=0.5; optimizer=sgd; momentum=0"


def updates(state, *batches, chunks=None, seed=0):
    run, iterator = run_of(state, seed=seed), iter(dataset_of(*batches))
    for count in chunks or (len(batches),):
        run(iterator, tf.constant(count))


def by_hand(kernel, bias, features=FEATURES, labels=LABELS, mask=MASK):
    """Loss and gradients of a linear softmax classifier; masked rows do not count."""
    probabilities = softmax(features @ kernel + bias)
    share = mask / mask.sum()
    loss = -(share * np.log(probabilities[np.arange(len(labels)), labels])).sum()
    error = share[:, None] * (probabilities - np.eye(3)[labels])
    return loss, features.T @ error, error.sum(axis=0)


def head(state):
    return [state.classifier.named_variables[f"head/logits/{name}"].numpy() for name in ("kernel", "bias")]


def test_one_sgd_step():
    state = state_of(SGD)
    kernel, bias = head(state)
    loss, d_kernel, d_bias = by_hand(kernel, bias)
    updates(state, batch_of(FEATURES, LABELS, MASK))
    new_kernel, new_bias = head(state)
    np.testing.assert_allclose(new_kernel, kernel - 0.5 * d_kernel, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(new_bias, bias - 0.5 * d_bias, rtol=1e-5, atol=1e-6)
    assert state.step == 1
    np.testing.assert_allclose(state.metrics.read()["loss"], loss, rtol=1e-5)
    norm = np.sqrt((d_kernel**2).sum() + (d_bias**2).sum())
    np.testing.assert_allclose(state.metrics.read()["gradient_norm"], norm, rtol=1e-5)


def test_label_smoothing_by_hand():
    state = state_of(SGD)
    kernel, bias = head(state)
    target = 0.8 * np.eye(3)[LABELS] + 0.2 / 3
    probabilities, share = softmax(FEATURES @ kernel + bias), (MASK / MASK.sum())[:, None]
    run = run_of(
        state, objective=supervised(loss=make_loss("cross_entropy", num_classes=3, label_smoothing=0.2))
    )
    run(iter(dataset_of(batch_of(FEATURES, LABELS, MASK))), tf.constant(1))
    step = 0.5 * FEATURES.T @ (share * (probabilities - target))
    np.testing.assert_allclose(head(state)[0], kernel - step, rtol=1e-5, atol=1e-6)
    loss = -(share * target * np.log(probabilities)).sum()
    np.testing.assert_allclose(state.metrics.read()["loss"], loss, rtol=1e-5)


@pytest.mark.parametrize("num_parts", [2, 4])
@pytest.mark.parametrize("optimizer", ["sgd; momentum=0.9", "adam"])
def test_a_batch_in_parts_is_the_batch_as_a_whole(num_parts, optimizer):
    phase = f"for=9steps; train=head; lr=0.1; optimizer={optimizer}"
    whole, parts = state_of(phase), state_of(phase)
    batches = random_batches(4)
    # A part may be all padding.
    batches[3]["mask"][:] = [1, 0, 0, 0]
    run_of(whole)(iter(dataset_of(*batches)), tf.constant(4))
    run_of(parts, num_parts=num_parts)(iter(dataset_of(*batches)), tf.constant(4))
    expected, got = values(whole), values(parts)
    assert set(expected) == set(got)
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=2e-5, atol=1e-6, err_msg=name)


def test_parts_draw_dropout_each_for_itself():
    state = state_of("for=9steps; train=head; lr=0.1", dropout=0.5)
    # Two equal halves: with the same mask they would have the same loss as one of them alone.
    half = batch_of(FEATURES[:2], LABELS[:2])
    twice = {name: np.concatenate([value, value]) for name, value in half.items()}
    one, other = state_of("for=9steps; train=head; lr=0.1", dropout=0.5), state
    run_of(one, num_parts=2)(iter(dataset_of(twice)), tf.constant(1))
    run_of(other)(iter(dataset_of(half)), tf.constant(1))
    assert one.metrics.read()["loss"] != pytest.approx(other.metrics.read()["loss"], rel=1e-3)


def test_penalties_count_once_in_parts(tiny_backbone):
    phase = "for=9steps; train=all; lr=0.1; optimizer=sgd; momentum=0"
    states = [
        state_of(phase, backbone=open_backbone(f"savedmodel:{tiny_backbone}", image_size=8)) for _ in range(2)
    ]
    batches = random_batches(2, side=8)
    for state, num_parts in zip(states, (1, 2), strict=True):
        run_of(state, num_parts=num_parts)(iter(dataset_of(*batches)), tf.constant(2))
    expected, got = map(values, states)
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=2e-5, atol=1e-6, err_msg=name)


def test_limits_on_the_gradient():
    kernel, bias = head(state_of(SGD))
    _, d_kernel, d_bias = by_hand(kernel, bias)
    norm = np.sqrt((d_kernel**2).sum() + (d_bias**2).sum())
    for limit, scale in ((norm / 2, 0.5), (norm * 2, 1.0)):
        state = state_of(SGD)
        run = run_of(state, limit=make_limit(norm=limit, value=0.0))
        run(iter(dataset_of(batch_of(FEATURES, LABELS, MASK))), tf.constant(1))
        np.testing.assert_allclose(head(state)[0], kernel - 0.5 * scale * d_kernel, rtol=1e-5, atol=1e-6)
        # What is written is the norm as it was.
        np.testing.assert_allclose(state.metrics.read()["gradient_norm"], norm, rtol=1e-5)
    state = state_of(SGD)
    run = run_of(state, limit=make_limit(norm=0.0, value=0.05))
    run(iter(dataset_of(batch_of(FEATURES, LABELS, MASK))), tf.constant(1))
    expected = kernel - 0.5 * np.clip(d_kernel, -0.05, 0.05)
    assert (np.abs(d_kernel) > 0.05).any()
    np.testing.assert_allclose(head(state)[0], expected, rtol=1e-5, atol=1e-6)
    assert make_limit(norm=0.0, value=0.0) is None


def test_soft_targets_and_class_weights_by_hand():
    weights = np.array([1.0, 2.0, 0.5], np.float32)
    targets = np.array([[0.7, 0.3, 0], [0, 0, 1], [0, 0.9, 0.1], [1, 0, 0]], np.float32)
    state = state_of(SGD)
    kernel, bias = head(state)
    run = run_of(
        state, objective=supervised(loss=make_loss("cross_entropy", num_classes=3, class_weights=weights))
    )
    run(iter(dataset_of({**batch_of(FEATURES, LABELS, MASK), "target": targets})), tf.constant(1))
    probabilities = softmax(FEATURES @ kernel + bias)
    # Divided by the number of examples, as Keras does, not by the sum of their weights.
    share = (MASK / MASK.sum() * (targets @ weights))[:, None]
    step = 0.5 * FEATURES.T @ (share * (probabilities - targets))
    np.testing.assert_allclose(head(state)[0], kernel - step, rtol=1e-5, atol=1e-6)
    loss = -(share * targets * np.log(probabilities)).sum()
    np.testing.assert_allclose(state.metrics.read()["loss"], loss, rtol=1e-5)


def test_what_padding_shows_makes_no_difference():
    states = [state_of(SGD), state_of(SGD)]
    strange = FEATURES.copy()
    strange[3] = [9, -9, 7]
    updates(states[0], batch_of(FEATURES, LABELS, MASK))
    updates(states[1], batch_of(strange, [0, 2, 1, 2], MASK))
    for one, other in zip(head(states[0]), head(states[1]), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)
    assert states[0].metrics.read() == pytest.approx(states[1].metrics.read())


def test_momentum_and_decoupled_weight_decay():
    state = state_of("for=9steps; train=head; lr=0.5; optimizer=sgd; momentum=0.9; weight_decay=0.1")
    weights, velocity = head(state), [0.0, 0.0]
    for _ in range(2):
        gradients = by_hand(*weights)[1:]
        velocity = [0.9 * v - 0.5 * g for v, g in zip(velocity, gradients, strict=True)]
        # The bias does not decay.
        decay = (0.5 * 0.1, 0.0)
        weights = [w * (1 - d) + v for w, d, v in zip(weights, decay, velocity, strict=True)]
    updates(state, *[batch_of(FEATURES, LABELS, MASK)] * 2)
    for got, expected in zip(head(state), weights, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "rmsprop"])
def test_the_first_update_follows_the_rule(optimizer):
    state = state_of(f"for=9steps; train=head; lr=0.01; optimizer={optimizer}; lr_schedule=cosine")
    kernel, bias = head(state)
    _, d_kernel, _ = by_hand(kernel, bias)
    updates(state, batch_of(FEATURES, LABELS, MASK))
    # Adam's first update is the rate times the sign; RMSprop's, with a decay of 0.9, that / sqrt(0.1).
    size = 0.01 / np.sqrt(0.1) if optimizer == "rmsprop" else 0.01
    clear = np.abs(d_kernel) > 1e-3
    assert clear.sum() >= 7
    np.testing.assert_allclose((head(state)[0] - kernel)[clear], -size * np.sign(d_kernel[clear]), rtol=1e-2)


def test_the_rate_follows_the_schedule():
    state = state_of("for=2steps; train=head; lr=0.5; optimizer=sgd; momentum=0; warmup=2steps")
    weights = head(state)
    for rate in (0.25, 0.5):
        weights = [w - rate * g for w, g in zip(weights, by_hand(*weights)[1:], strict=True)]
    updates(state, *[batch_of(FEATURES, LABELS, MASK)] * 2)
    np.testing.assert_allclose(head(state)[0], weights[0], rtol=1e-5, atol=1e-6)


def test_metrics_are_sums_over_all_steps():
    state = state_of("for=9steps; train=head; lr=0; optimizer=sgd; momentum=0")
    batches = random_batches(5)
    updates(state, *batches)
    kernel, bias = head(state)
    right, losses = [], []
    for batch in batches:
        probabilities = softmax(batch["image"][:, 0, 0] @ kernel + bias)
        real = batch["mask"] > 0
        right += (probabilities.argmax(axis=1) == batch["label"])[real].tolist()
        losses += (-np.log(probabilities[range(4), batch["label"]]))[real].tolist()
    assert len(right) == 18
    read = state.metrics.read()
    np.testing.assert_allclose(read["accuracy"], np.mean(right), rtol=1e-6)
    np.testing.assert_allclose(read["loss"], np.mean(losses), rtol=1e-5)
    state.metrics.reset()
    assert state.metrics.read() == {"loss": 0.0, "accuracy": 0.0, "gradient_norm": 0.0}


@pytest.mark.parametrize("chunks", [(1, 1, 1, 1), (3, 1), (1, 0, 3)])
def test_how_steps_are_grouped_makes_no_difference(chunks):
    whole, parts = (state_of("for=9steps; train=head; lr=0.1", dropout=0.5) for _ in range(2))
    updates(whole, *random_batches(4))
    updates(parts, *random_batches(4), chunks=chunks)
    expected = values(whole)
    assert expected["step"] == 4
    for name, value in values(parts).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


def test_dropout_depends_on_seed_and_step_alone():
    def after(first_step, seed):
        state = state_of(SGD, dropout=0.5)
        state.step_variable.assign(first_step)
        updates(state, batch_of(FEATURES, LABELS, MASK), seed=seed)
        return head(state)[0].tobytes()

    assert after(0, 0) == after(0, 0)
    assert len({after(0, 0), after(1, 0), after(2, 0), after(0, 1), after(1, 1)}) > 2


def test_stops_at_the_first_step_that_is_not_finite():
    state = state_of(SGD)
    batches = [batch_of(FEATURES * scale, LABELS, MASK) for scale in (1, 1, np.nan, 1, 1)]
    updates(state, *batches)
    assert int(state.unfit.step) == 2
    assert state.step == 3


def test_the_stopwatch_counts_the_steps_made():
    state = state_of(SGD)
    timed(run_of(state), state, iter(dataset_of(*random_batches(4))), 3)
    watch = state.stopwatch
    assert watch.num_steps == 3
    assert 0 <= watch.waiting_secs <= watch.seconds


# A real module: conv/kernel, bn/beta, and bn/moving_mean, which moves half way to each batch's mean.


def tiny_state(tiny_backbone, recipe):
    backbone = open_backbone(f"savedmodel:{tiny_backbone}", image_size=8)
    state = state_of(f"for=9steps; lr=0.1; optimizer=sgd; momentum=0; {recipe}", backbone=backbone)
    return state, {name: v.numpy() for name, v in state.classifier.named_variables.items()}


def changed(state, before):
    """Names of the variables that are no longer the same to the last bit."""
    now = {name: v.numpy() for name, v in state.classifier.named_variables.items()}
    return {name for name in before if now[name].tobytes() != before[name].tobytes()}


HEAD = {"head/logits/kernel", "head/logits/bias"}
BACKBONE = {"backbone/conv/kernel", "backbone/bn/beta"}
MEAN = {"backbone/bn/moving_mean"}


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ("train=head; bn=frozen", HEAD),
        ("train=all; bn=frozen", HEAD | BACKBONE),
        ("train=backbone/conv; bn=frozen", {"backbone/conv/kernel"}),
        ("train=not:backbone/bn all; bn=frozen", HEAD | {"backbone/conv/kernel"}),
        ("train=all; bn=batch", HEAD | BACKBONE | MEAN),
        ("train=head; bn=batch", HEAD | MEAN),
    ],
)
def test_only_what_a_phase_trains_changes(tiny_backbone, recipe, expected):
    state, before = tiny_state(tiny_backbone, recipe)
    updates(state, *random_batches(3, side=8))
    assert changed(state, before) == expected


def test_batch_statistics_by_hand(tiny_backbone):
    state, _ = tiny_state(tiny_backbone, "train=head; bn=batch")
    batch = random_batches(1, side=8)[0]
    updates(state, batch)
    mean = batch["image"].mean(axis=(0, 1, 2)) @ np.array(KERNEL, np.float32)
    got = state.classifier.named_variables["backbone/bn/moving_mean"].numpy()
    np.testing.assert_allclose(got, 0.5 * mean, rtol=1e-5)


@pytest.mark.parametrize(
    ("recipe", "joins"), [("train=all", True), ("train=head", False), ("train=head; bn=batch", False)]
)
def test_penalties_join_only_when_the_backbone_trains(tiny_backbone, recipe, joins):
    state, before = tiny_state(tiny_backbone, recipe)
    # Logits that ignore the features: no gradient of the cross-entropy reaches the backbone.
    kernel = state.classifier.named_variables["head/logits/kernel"]
    kernel.assign(tf.zeros_like(kernel))
    batch = random_batches(1, side=8)[0]
    updates(state, batch)
    # The penalty is PENALTY * sum of squares; the rate is 0.1.
    factor = 1 - 0.1 * 2 * PENALTY if joins else 1.0
    got = state.classifier.named_variables["backbone/conv/kernel"].numpy()
    np.testing.assert_allclose(got, factor * before["backbone/conv/kernel"], rtol=1e-6)
    # What is reported stays the cross-entropy alone: log 3 for three logits of zero.
    np.testing.assert_allclose(state.metrics.read()["loss"], np.log(3), rtol=1e-5)


def always_2(num_logits=3):
    state = state_of(SGD, num_logits=num_logits)
    kernel, bias = (state.classifier.named_variables[f"head/logits/{name}"] for name in ("kernel", "bias"))
    kernel.assign(tf.zeros_like(kernel))
    bias.assign(4.0 * tf.one_hot(2, num_logits))
    return state.classifier


def test_a_model_that_always_says_class_2():
    labels = [2, 0, 1, 2, 2, 1, 2]
    batches = [batch_of(np.ones([4, 3]), labels[:4]), batch_of(np.ones([4, 3]), [*labels[4:], 2], MASK)]
    evaluator = Evaluator(always_2(), strategy=tf.distribute.get_strategy())
    for _ in range(2):  # Nothing is left of the first evaluation in the second.
        scored = evaluator(dataset_of(*batches))
        assert scored.metrics["accuracy"] == pytest.approx(4 / 7, abs=1e-7)
        # -log softmax: log(e^4 + 2) - 4 where right, log(e^4 + 2) where wrong.
        assert scored.loss == pytest.approx(np.log(np.exp(4) + 2) - 4 * 4 / 7, rel=1e-6)
    assert scored.labels.tolist() == labels
    assert scored.ids.tolist() == [0, 1, 2, 3, 0, 1, 2]
    np.testing.assert_allclose(scored.logits, np.tile([0, 0, 4], (7, 1)))


def test_evaluation_changes_no_variable(tiny_backbone):
    state, before = tiny_state(tiny_backbone, "train=all; bn=batch")
    everything = values(state)
    Evaluator(state.classifier, strategy=tf.distribute.get_strategy())(dataset_of(*random_batches(2, side=8)))
    assert changed(state, before) == set()
    for name, value in values(state).items():
        np.testing.assert_array_equal(value, everything[name], err_msg=name)
