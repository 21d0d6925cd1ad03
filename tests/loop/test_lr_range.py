"""The rate that a range test proposes, by curves whose steepest place is known."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tests.loop.toys import dataset_of, plan_of, random_batches, run_of, state_of
from trainer.loop.lr_range import propose, range_spec, rising, smoothed
from trainer.loop.phases import make_plan
from trainer.values import Call, Duration

RATES = np.logspace(-6, 0, 121)


def sigmoid(centre, *, noise=0.0):
    """Falls from 2 to 0 around a rate, and rises from 0.1 on."""
    losses = 2 / (1 + np.exp(4 * (np.log10(RATES) - np.log10(centre))))
    losses += 50 * np.maximum(RATES - 0.1, 0)
    return (losses + noise * np.random.default_rng(0).normal(size=len(RATES))).tolist()


def test_smoothing_is_an_average_without_the_bias_of_its_start():
    np.testing.assert_allclose(smoothed([3.0, 3.0, 3.0]), [3.0, 3.0, 3.0])
    # After two values: (0.9 * 0.1 * 1 + 0.1 * 2) / (1 - 0.81).
    np.testing.assert_allclose(smoothed([1.0, 2.0]), [1.0, 0.29 / 0.19])


@pytest.mark.parametrize("noise", [0.0, 0.1])
@pytest.mark.parametrize("centre", [1e-4, 1e-3])
def test_the_place_of_the_steepest_fall(centre, noise):
    # Smoothing is late by some ten of the twenty updates in a power of ten.
    proposed = propose(RATES.tolist(), sigmoid(centre, noise=noise))
    assert centre <= proposed <= 5 * centre


def test_a_single_jump_at_the_start_is_not_a_fall():
    losses = sigmoid(1e-3)
    losses[0] = 3.0
    assert 1e-3 <= propose(RATES.tolist(), losses) <= 5e-3


@pytest.mark.parametrize(
    ("rates", "losses"),
    [
        (RATES.tolist(), np.linspace(1, 2, 121).tolist()),
        ([1e-3, 2e-3, 3e-3, 4e-3], [1.0, 0.9, 0.8, 0.7]),
        ([1e-6], [1.0]),
        (RATES.tolist(), [1.0] * 121),
    ],
)
def test_nothing_is_proposed_where_nothing_falls(rates, losses):
    with pytest.raises(ValueError, match="does not fall over a decade"):
        propose(rates, losses)


def test_the_rate_rises_from_the_lowest_to_the_highest():
    spec = range_spec(
        plan_of("for=3steps; train=head; lr=0.5; optimizer=sgd; warmup=1steps").phases[0].spec,
        low=1e-4,
        high=1e-1,
        num_steps=30,
    )
    assert (spec.optimizer, spec.warmup.amount, spec.duration) == (Call("sgd"), 0, Duration(30, "steps"))
    state = state_of("for=3steps; train=head; lr=0.5")
    state.plan = make_plan([spec], num_examples=4, batch_size=4)
    state.jump(0)
    batches = random_batches(30)
    curve = list(rising(state, run_of(state), iter(dataset_of(*batches))))
    np.testing.assert_allclose([rate for rate, _ in curve], 1e-4 * 1000 ** (np.arange(30) / 30), rtol=1e-4)
    assert state.step == 30
    # Each loss is that of its own batch.
    again = state_of("for=3steps; train=head; lr=0.5")
    again.plan = state.plan
    again.jump(0)
    run_of(again)(iter(dataset_of(*batches)), tf.constant(30))
    counts = [4 - i % 2 for i in range(30)]
    mean = np.average([loss for _, loss in curve], weights=counts)
    assert mean == pytest.approx(again.metrics.read()["loss"], rel=1e-5)


def test_it_ends_where_the_loss_is_hopeless_or_no_number():
    phase = plan_of("for=3steps; train=head; lr=1; optimizer=sgd; momentum=0").phases[0]
    spec = dataclasses.replace(range_spec(phase.spec, low=1e-3, high=1e6, num_steps=60))
    state = state_of("for=3steps; train=head; lr=1")
    state.plan = make_plan([spec], num_examples=4, batch_size=4)
    state.jump(0)
    curve = list(rising(state, run_of(state), iter(dataset_of(*random_batches(60)))))
    assert 3 < len(curve) < 60
    means = smoothed([loss for _, loss in curve])
    assert means[-1] > 4 * means.min()
    batches = random_batches(10)
    batches[4]["image"][0] = np.inf
    state.jump(0)
    for variable in state.classifier.variables:
        variable.assign(tf.zeros_like(variable))
    assert len(list(rising(state, run_of(state), iter(dataset_of(*batches))))) == 4
