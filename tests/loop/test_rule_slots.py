"""What a gradient rule keeps of each variable that trains, from update to update."""

import numpy as np
import pytest
import tensorflow as tf

from tests.loop.toys import batch_of, dataset_of, run_of, softmax, state_of
from trainer.values import UsageError

FEATURES, LABELS = np.array([[1.0, 0.2, 0.0], [0.1, 0.5, 1.0]]), np.array([0, 2])
RECIPE = "for=3steps; train=head; lr=0.5; optimizer=sgd; momentum=0"
NAMES = [f"gradient_rule/average/head/logits/{weight}" for weight in ("kernel", "bias")]


class Averaged:
    """Half of the gradient, and half of what it was in the updates before."""

    def slots(self, variables):
        return {"average": [tf.zeros(variable.shape) for variable in variables]}

    def __call__(self, compute, variables, slots):
        computed = compute()
        for average, gradient in zip(slots["average"], computed.gradients, strict=True):
            average.assign(0.5 * average + 0.5 * gradient)
        return computed._replace(gradients=[average.read_value() for average in slots["average"]])


def state_with(rule, *phases):
    return state_of(*phases or (RECIPE,), gradient_rule=rule)


def updates(state, rule, count, features=FEATURES, **options):
    batches = [batch_of(features, LABELS)] * count
    run_of(state, gradient_rule=rule, **options)(iter(dataset_of(*batches)), tf.constant(count))


def test_it_is_what_is_worked_out_by_hand():
    rule = Averaged()
    state = state_with(rule)
    weights = [v.numpy().astype(np.float64) for v in state.classifier.head.weights]
    averages = [np.zeros_like(weight) for weight in weights]
    for _ in range(3):
        difference = (softmax(FEATURES @ weights[0] + weights[1]) - np.eye(3)[LABELS]) / 2
        gradients = [FEATURES.T @ difference, difference.sum(axis=0)]
        averages = [0.5 * old + 0.5 * new for old, new in zip(averages, gradients, strict=True)]
        weights = [weight - 0.5 * average for weight, average in zip(weights, averages, strict=True)]
    updates(state, rule, 3)
    for variable, expected in zip(state.classifier.head.weights, weights, strict=True):
        np.testing.assert_allclose(variable, expected, rtol=1e-5, atol=1e-6)
    kept = [state.variables()[name] for name in NAMES]
    for variable, expected in zip(kept, averages, strict=True):
        np.testing.assert_allclose(variable, expected, rtol=1e-5, atol=1e-6)
        assert not variable.trainable


def test_a_phase_begins_it_anew_for_what_trains_there():
    rule = Averaged()
    state = state_with(rule, RECIPE, "for=2steps; train=head/logits/bias; lr=0.5; optimizer=sgd")
    assert [name for name in state.variables() if name.startswith("gradient_rule/")] == NAMES
    updates(state, rule, 3)
    state.enter(state.plan.phases[1])
    [name] = [name for name in state.variables() if name.startswith("gradient_rule/")]
    assert name == NAMES[1]
    np.testing.assert_array_equal(state.variables()[name], np.zeros(3))


def test_an_update_that_is_left_out_leaves_it_as_it_was():
    """In float16 gradients overflow now and then, and what has taken one in would never be finite again."""
    rule = Averaged()
    state = state_with(rule)
    updates(state, rule, 1, precision="float16")
    before = [state.variables()[name].numpy() for name in NAMES]
    assert all(np.abs(value).max() > 0 for value in before)
    state.loss_scale.scale.assign(2.0**127)
    updates(state, rule, 1, 100.0 * FEATURES, precision="float16")
    assert float(state.loss_scale.scale) == 2.0**126
    for name, expected in zip(NAMES, before, strict=True):
        np.testing.assert_array_equal(state.variables()[name], expected)


def test_of_each_variable_there_must_be_one():
    class Few:
        def slots(self, variables):
            return {"average": [tf.zeros([])]}

    with pytest.raises(UsageError) as caught:
        state_with(Few())
    assert str(caught.value) == ("the gradient rule keeps 1 tensors as 'average', and 2 variables train")
