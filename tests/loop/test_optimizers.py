"""Each rule gives what is worked out by hand and what tf_keras gives, at the rate of each variable."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from tests.loop.toys import dataset_of, plan_of, random_batches, run_of, state_of, values
from trainer.loop.optimizers import OPTIMIZERS, _FusedAdam, choose_optimizer, make_optimizer
from trainer.loop.phases import PhaseSchedule
from trainer.record.checkpoints import Checkpoints
from trainer.values import UsageError

# Two have a rank above 1.
SHAPES = {"kernel": (7, 5), "bias": (5,), "scale": (), "patches": (3, 2, 4)}
STEPS = 20
COURSES = {
    "constant": "",
    "cosine after a warm-up": "lr_schedule=cosine; warmup=4steps",
    "step": "lr_schedule=step",
}


def phase_of(recipe):
    return plan_of(f"for={STEPS}steps; train=head; lr=0.01; {recipe}").phases[0]


def bare(rule, **options):
    """Makes the optimizer of a phase by a rule as it is, without rates of ours."""

    def make(phase, variables):
        optimizer = rule(learning_rate=PhaseSchedule(phase), jit_compile=False, **options)
        vectors = [v for v in variables.values() if v.shape.rank < 2]
        optimizer.exclude_from_weight_decay(var_list=vectors)
        optimizer.build(list(variables.values()))
        return optimizer

    return make


keras_adam = bare(tf_keras.optimizers.Adam)


def start():
    random = np.random.default_rng(0)
    return {name: tf.Variable(random.normal(size=shape).astype(np.float32)) for name, shape in SHAPES.items()}


def gradients_of(step):
    """Gradients from 1e-5 to 1e3 times a random number, so that epsilon counts in some places."""
    random = np.random.default_rng([1, step])
    sizes = [random.choice([1e-5, 1.0, 1e3], size=shape) for shape in SHAPES.values()]
    found = [random.normal(size=size.shape) * size for size in sizes]
    return [tf.constant(gradient, tf.float32) for gradient in found]


def train(make, phase, *, steps=STEPS, before=lambda step: None):
    """Returns the weights after every step, and in the end the optimizer's own variables by name."""
    weights, seen = start(), []
    variables, optimizer = list(weights.values()), make(phase, weights)
    apply = tf.function(lambda gradients: optimizer.apply_gradients(zip(gradients, variables, strict=True)))
    for step in range(steps):
        before(step)
        apply(gradients_of(step))
        seen.append([variable.numpy() for variable in variables])
    return seen, {f"{i} {v.name}": v.numpy() for i, v in enumerate(optimizer.variables)}


def adam(g, slots, *, step, rate):
    """As in Kingma & Ba, 2015, before section 2.1."""
    rate = rate * np.sqrt(1 - 0.999 ** (step + 1)) / (1 - 0.9 ** (step + 1))
    slots[:] = 0.9 * slots[0] + 0.1 * g, 0.999 * slots[1] + 0.001 * g**2
    return rate * slots[0] / (np.sqrt(slots[1]) + 1e-7)


def sgd(g, slots, *, step, rate):
    slots[0] = 0.9 * slots[0] + rate * g
    return slots[0]


def rmsprop(g, slots, *, step, rate):
    slots[0] = 0.9 * slots[0] + 0.1 * g**2
    return rate * g / np.sqrt(slots[0] + 1e-7)


def lion(g, slots, *, step, rate):
    """Chen et al., 2023, algorithm 2."""
    c = 0.9 * slots[0] + 0.1 * g
    slots[0] = 0.99 * slots[0] + 0.01 * g
    return rate * np.sign(c)


def by_hand(rule, phase, *, steps=STEPS, decay=0.0, multipliers=(1, 1, 1, 1), factors=(1,) * STEPS):
    """Returns the weights after every step, in float64."""
    weights = [variable.numpy().astype(np.float64) for variable in start().values()]
    slots, seen = [[np.zeros(shape)] * 2 for shape in SHAPES.values()], []
    for step in range(steps):
        for i, gradient in enumerate(gradients_of(step)):
            rate = phase.learning_rate(step) * multipliers[i] * factors[step]
            lost = rate * decay * weights[i] if i in (0, 3) else 0.0
            change = rule(gradient.numpy().astype(np.float64), slots[i], step=step, rate=rate)
            weights[i] = weights[i] - lost - change
        seen.append(list(weights))
    return seen


def assert_close(got, expected, *, rounding, what):
    largest = np.abs(expected).max()
    np.testing.assert_allclose(got, expected, rtol=rounding, atol=rounding * largest, err_msg=what)


@pytest.mark.parametrize("course", COURSES)
def test_fused_adam_has_the_weights_and_slots_of_keras_and_by_hand(course):
    phase = phase_of(COURSES[course])
    got, ours = train(make_optimizer, phase)
    expected, keras = train(keras_adam, phase)
    for step, weights in enumerate(by_hand(adam, phase)):
        for one, other, third in zip(got[step], expected[step], weights, strict=True):
            assert_close(one, other, rounding=1e-6, what=f"keras, step {step}")
            assert_close(one, third, rounding=1e-6, what=f"by hand, step {step}")
    assert min(np.abs(now - then).max() for now, then in zip(got[-1], start().values(), strict=True)) > 0.01
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
    assert isinstance(ours, _FusedAdam)
    # The number of updates, and two moments of each variable.
    assert len(ours.variables) == 1 + 2 * len(SHAPES)


OPTIONS = {
    "adam": ("", bare(_FusedAdam), adam, 0.0),
    "adamw": ("weight_decay=4", bare(tf_keras.optimizers.AdamW, weight_decay=4), adam, 4.0),
    "sgd": ("weight_decay=4", bare(tf_keras.optimizers.SGD, momentum=0.9, weight_decay=4), sgd, 4.0),
    "rmsprop": ("", bare(tf_keras.optimizers.RMSprop), rmsprop, 0.0),
    "lion": ("weight_decay=4", bare(tf_keras.optimizers.Lion, weight_decay=4), lion, 4.0),
}


def test_each_rule_is_tried():
    assert list(OPTIONS) == list(OPTIMIZERS)


@pytest.mark.parametrize("name", OPTIONS)
def test_without_multipliers_each_rule_is_that_of_keras_to_the_last_bit(name):
    recipe, keras, _, _ = OPTIONS[name]
    phase = phase_of(f"optimizer={name}; {recipe}; lr_schedule=cosine")
    got, slots = train(make_optimizer, phase, steps=3)
    expected, keras_slots = train(keras, phase, steps=3)
    for ours, theirs in zip(got, expected, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(one, other)
    assert list(slots) == list(keras_slots)
    for slot, value in slots.items():
        np.testing.assert_array_equal(value, keras_slots[slot], err_msg=slot)


@pytest.mark.parametrize("name", OPTIONS)
def test_each_variable_has_its_own_rate_and_matrices_decay(name):
    recipe, _, rule, decay = OPTIONS[name]
    phase = phase_of(f"optimizer={name}; {recipe}; lr_schedule=cosine")
    factor, factors = tf.Variable(1.0), (0.5, 0.5, 0.25)

    def make(phase, variables):
        return make_optimizer(phase, variables, multipliers={"kernel": 0.25, "bias": 3.0}, factor=factor)

    got, _ = train(make, phase, steps=3, before=lambda step: factor.assign(factors[step]))
    rates = {"decay": decay, "multipliers": (0.25, 3.0, 1.0, 1.0), "factors": factors}
    expected = by_hand(rule, phase, steps=3, **rates)
    for step in range(3):
        for variable, one, other in zip(SHAPES, got[step], expected[step], strict=True):
            assert_close(one, other, rounding=2e-6, what=f"{variable}, step {step}")


def test_the_rate_that_is_told_is_that_without_multipliers():
    phase, factor = phase_of("lr_schedule=cosine; optimizer=sgd"), tf.Variable(0.5)
    variables = start()
    optimizer = make_optimizer(phase, variables, multipliers={"patches": 7.0}, factor=factor)
    optimizer.apply_gradients(zip(gradients_of(0), variables.values(), strict=True))
    assert float(optimizer.learning_rate) == pytest.approx(0.5 * phase.learning_rate(0))


def test_nesterov_looks_ahead():
    """Sutskever et al., 2013, equations 3 and 4, on the curve 1.5 w²: the variable is where they look."""
    phase = plan_of("for=9steps; train=head; lr=0.1; optimizer=sgd; momentum=0.8; nesterov=true").phases[0]
    variable = tf.Variable(2.0)
    optimizer = make_optimizer(phase, {"w": variable})
    theta, velocity = 2.0, 0.0
    for _ in range(4):
        velocity = 0.8 * velocity - 0.1 * 3 * (theta + 0.8 * velocity)
        theta += velocity
        optimizer.apply_gradients([(3 * variable, variable)])
        assert float(variable) == pytest.approx(theta + 0.8 * velocity, rel=1e-5)


def test_rates_under_a_strategy_that_mirrors():
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    phase = phase_of("optimizer=sgd; weight_decay=4")
    with strategy.scope():
        variables, factor = start(), tf.Variable(0.5)
        optimizer = make_optimizer(phase, variables, multipliers={"kernel": 0.25}, factor=factor)

    @tf.function
    def update(gradients):
        def apply():
            pairs = zip(gradients, variables.values(), strict=True)
            optimizer.apply_gradients(pairs, skip_gradients_aggregation=True)

        strategy.run(apply)

    for step in range(2):
        update(gradients_of(step))
    rates = {"decay": 4.0, "multipliers": (0.25, 1, 1, 1), "factors": (0.5, 0.5)}
    for variable, expected in zip(variables.values(), by_hand(sgd, phase, steps=2, **rates)[-1], strict=True):
        assert_close(variable.numpy(), expected, rounding=2e-6, what=variable.name)


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


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("optimizer=lamb", "optimizer=lamb is not one of adam, adamw, sgd, rmsprop, lion"),
        ("weight_decay=0.1", "weight_decay=0.1: adam has none; use adamw, sgd or lion, or 0"),
        ("nesterov=true", "nesterov: adam has none; it is a kind of the momentum of sgd"),
        (
            "nesterov=true; optimizer=sgd; momentum=0",
            "nesterov: sgd has none; it is a kind of the momentum of sgd",
        ),
        ("optimizer=adam(1)", "optimizer=adam(1): adam takes no arguments, and there is 1 besides"),
    ],
)
def test_rules_that_are_refused(recipe, message):
    spec = plan_of(f"for=1steps; train=head; {recipe}").phases[0].spec
    with pytest.raises(UsageError) as caught:
        choose_optimizer(spec)
    assert str(caught.value).startswith(message.removesuffix("..."))
