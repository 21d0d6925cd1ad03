"""Adam by one kernel is tf_keras's Adam, and goes on from a checkpoint to the last bit."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from tests.loop.toys import dataset_of, plan_of, random_batches, run_of, state_of, values
from trainer.loop.optimizers import _FusedAdam, make_optimizer
from trainer.loop.phases import PhaseSchedule
from trainer.record.checkpoints import Checkpoints

SHAPES = [(7, 5), (5,), (), (3, 2, 4)]
STEPS = 20
COURSES = {
    "constant": "",
    "cosine after a warm-up": "lr_schedule=cosine; warmup=4steps",
    "step": "lr_schedule=step",
}


def phase_of(recipe):
    return plan_of(f"for={STEPS}steps; train=head; lr=0.01; {recipe}").phases[0]


def keras_adam(phase, variables):
    optimizer = tf_keras.optimizers.Adam(learning_rate=PhaseSchedule(phase), jit_compile=False)
    optimizer.build(variables)
    return optimizer


def start():
    random = np.random.default_rng(0)
    return [tf.Variable(random.normal(size=shape).astype(np.float32)) for shape in SHAPES]


def gradients_of(step):
    """Gradients from 1e-5 to 1e3 times a random number, so that epsilon counts in some places."""
    random = np.random.default_rng([1, step])
    sizes = [random.choice([1e-5, 1.0, 1e3], size=shape) for shape in SHAPES]
    found = [random.normal(size=size.shape) * size for size in sizes]
    return [tf.constant(gradient, tf.float32) for gradient in found]


def train(make, phase):
    """Returns the weights after every step, and in the end the optimizer's own variables by name."""
    variables, seen = start(), []
    optimizer = make(phase, variables)
    apply = tf.function(lambda gradients: optimizer.apply_gradients(zip(gradients, variables, strict=True)))
    for step in range(STEPS):
        apply(gradients_of(step))
        seen.append([variable.numpy() for variable in variables])
    return seen, {f"{i} {v.name}": v.numpy() for i, v in enumerate(optimizer.variables)}


def by_hand(phase):
    """Adam as in Kingma & Ba, 2015, before section 2.1, in float64."""
    weights, seen = [variable.numpy().astype(np.float64) for variable in start()], []
    m, v = ([np.zeros(shape) for shape in SHAPES] for _ in range(2))
    for step in range(STEPS):
        rate = phase.learning_rate(step) * np.sqrt(1 - 0.999 ** (step + 1)) / (1 - 0.9 ** (step + 1))
        for i, gradient in enumerate(gradients_of(step)):
            g = gradient.numpy().astype(np.float64)
            m[i], v[i] = 0.9 * m[i] + 0.1 * g, 0.999 * v[i] + 0.001 * g**2
            weights[i] = weights[i] - rate * m[i] / (np.sqrt(v[i]) + 1e-7)
        seen.append(list(weights))
    return seen


def assert_close(got, expected, *, rounding, what):
    largest = np.abs(expected).max()
    np.testing.assert_allclose(got, expected, rtol=rounding, atol=rounding * largest, err_msg=what)


@pytest.mark.parametrize("course", COURSES)
def test_the_same_weights_and_slots_as_keras_and_by_hand(course):
    phase = phase_of(COURSES[course])
    got, ours = train(make_optimizer, phase)
    expected, keras = train(keras_adam, phase)
    for step, weights in enumerate(by_hand(phase)):
        for one, other, third in zip(got[step], expected[step], weights, strict=True):
            assert_close(one, other, rounding=1e-6, what=f"keras, step {step}")
            assert_close(one, third, rounding=1e-6, what=f"by hand, step {step}")
    assert min(np.abs(now - then).max() for now, then in zip(got[-1], start(), strict=True)) > 0.01
    assert list(ours) == list(keras)
    for name, value in ours.items():
        # The kernel has 1 - 0.999 in float32, which is 1.3e-5 too large, and so is all of v.
        assert_close(value, keras[name], rounding=1.5e-5 if "v/" in name else 1e-6, what=name)


def test_the_optimizer_has_the_variables_of_keras():
    phase, variables = phase_of(""), start()
    ours, keras = make_optimizer(phase, variables), keras_adam(phase, variables)
    assert [(v.name, v.shape, v.dtype) for v in ours.variables] == [
        (v.name, v.shape, v.dtype) for v in keras.variables
    ]
    # The number of updates, and two moments of each variable.
    assert (type(ours), len(ours.variables)) == (_FusedAdam, 1 + 2 * len(SHAPES))


RECIPE = "for=9steps; train=head; lr=0.1; lr_schedule=cosine; warmup=3steps"


def test_a_run_goes_on_from_a_checkpoint_to_the_last_bit(tmp_path):
    batches = random_batches(9)
    whole = state_of(RECIPE)
    run_of(whole)(iter(dataset_of(*batches)), tf.constant(9))
    checkpoints, first = Checkpoints(tmp_path, keep=1), state_of(RECIPE)
    run_of(first)(iter(dataset_of(*batches)), tf.constant(4))
    checkpoints.save(first.variables(), step=4)
    second = state_of(RECIPE, seed=1)
    checkpoints.restore(second.variables(), checkpoints.find("latest"))
    run_of(second)(iter(dataset_of(*batches[4:])), tf.constant(5))
    assert (second.step, int(second.optimizer.iterations)) == (9, 9)
    expected = values(whole)
    moments = [name for name in expected if "/m/" in name or "/v/" in name]
    assert len(moments) == 4
    assert all(np.any(expected[name]) for name in moments)
    for name, value in values(second).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)
