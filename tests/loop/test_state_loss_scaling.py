"""Loss scaling by hand: what is left out, what is not, and how the scale moves."""

import numpy as np
import pytest
import tensorflow as tf

from tests.loop.recording import Recorder, all_callbacks
from tests.loop.toys import batch_of, dataset_of, random_batches, run_of, state_of, values
from trainer.loop.loop import train
from trainer.loop.standard_callbacks import Guard
from trainer.loop.state import GOOD_STEPS_TO_DOUBLE, INITIAL_SCALE, LossScale
from trainer.record.checkpoints import Checkpoints
from trainer.values import TrainerError

FEATURES = np.array([[1, 0, 0.5], [0, 1, 0.25], [0.5, 0.5, 1], [0, 0, 0]], np.float32)
LABELS, MASK = [0, 2, 1, 0], [1, 1, 1, 0]
RECIPE = "for=9steps; train=head; lr=0.1"
# Some gradients of FEATURES times this are above 2, so that 2.0**127 times them is infinite.
LARGE = 100.0


def told(*noted, scale=INITIAL_SCALE, good_steps=0):
    """Returns scale and count after updates whose gradients were finite, or not."""
    loss_scale = LossScale()
    loss_scale.scale.assign(scale)
    loss_scale.good_steps.assign(good_steps)
    for finite in noted:
        loss_scale.note(tf.constant(finite))
    return float(loss_scale.scale), int(loss_scale.good_steps)


def test_the_constants_are_those_of_keras():
    assert (INITIAL_SCALE, GOOD_STEPS_TO_DOUBLE) == (32768.0, 2000)
    assert told() == (32768.0, 0)


@pytest.mark.parametrize(
    ("noted", "before", "after"),
    [
        ([True], {"scale": 8.0, "good_steps": 5}, (8.0, 6)),
        ([False], {"scale": 8.0, "good_steps": 1998}, (4.0, 0)),
        ([False, False], {"scale": 8.0}, (2.0, 0)),
        ([False], {"scale": 1.5}, (1.0, 0)),
        ([False], {"scale": 1.0}, (1.0, 0)),
        ([True], {"scale": 8.0, "good_steps": 1998}, (8.0, 1999)),
        ([True], {"scale": 8.0, "good_steps": 1999}, (16.0, 0)),
        ([True], {"scale": 2.0**127, "good_steps": 1999}, (2.0**127, 0)),
        ([True, True, False, True], {"scale": 8.0, "good_steps": 1999}, (8.0, 1)),
        ([False, True], {"scale": 8.0, "good_steps": 1999}, (4.0, 1)),
    ],
)
def test_it_halves_and_doubles(noted, before, after):
    assert told(*noted, **before) == after


def state_at(scale):
    state = state_of(RECIPE)
    state.loss_scale.scale.assign(scale)
    return state


def updates(state, *batches, loss_scaling=True):
    run = run_of(state, precision="float16" if loss_scaling else "float32")
    run(iter(dataset_of(*batches)), tf.constant(len(batches)))


def trained(state):
    """{name: value} of what an update changes."""
    return {name: value for name, value in values(state).items() if name.startswith(("model/", "optimizer/"))}


def assert_same(state, expected):
    for name, value in trained(state).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


@pytest.mark.parametrize("scale", [1.0, 3.0, INITIAL_SCALE])
def test_where_gradients_are_finite_it_makes_no_difference(scale):
    plain, scaled = state_of(RECIPE), state_at(scale)
    updates(plain, *random_batches(5), loss_scaling=False)
    updates(scaled, *random_batches(5))
    expected = values(plain)
    for name, value in values(scaled).items():
        if not name.startswith("loss_scale/"):
            np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-7, err_msg=name)
    assert (float(scaled.loss_scale.scale), int(scaled.loss_scale.good_steps)) == (scale, 5)
    assert (float(plain.loss_scale.scale), int(plain.loss_scale.good_steps)) == (INITIAL_SCALE, 0)


def test_an_update_whose_gradients_overflow_is_left_out():
    state = state_at(2.0**127)
    before = trained(state)
    updates(state, batch_of(LARGE * FEATURES, LABELS, MASK))
    assert_same(state, before)
    assert int(state.optimizer.iterations) == 0
    assert (float(state.loss_scale.scale), int(state.loss_scale.good_steps)) == (2.0**126, 0)
    # It is a step of the run, and nothing for the guard; its loss counts, its gradient does not.
    assert (state.step, int(state.unfit.step)) == (1, -1)
    Guard(examples=lambda step: [])(state)
    assert 0 < state.metrics.read()["loss"] < np.inf
    assert state.metrics.count("gradient_norm") == 0


def test_training_goes_on_until_the_scale_fits():
    batch = batch_of(LARGE * FEATURES, LABELS, MASK)
    state, plain = state_at(2.0**127), state_of(RECIPE)
    updates(state, *[batch] * 9)
    left_out = 127 - int(np.log2(float(state.loss_scale.scale)))
    assert 1 <= left_out < 9
    assert (state.step, int(state.unfit.step)) == (9, -1)
    assert int(state.optimizer.iterations) == int(state.loss_scale.good_steps) == 9 - left_out
    updates(plain, *[batch] * (9 - left_out), loss_scaling=False)
    for name, value in trained(state).items():
        np.testing.assert_allclose(value, trained(plain)[name], rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_the_rate_is_that_of_the_step_whatever_was_left_out_before(monkeypatch):
    """A warm-up from 0.5 / 8 a step: what was left out makes no later step slower, and none is told wrong."""
    recipe = "for=9steps; train=head; lr=0.5; optimizer=sgd; momentum=0; warmup=8steps"
    state, recorder = state_of(recipe), Recorder()
    overflowing, small = batch_of(LARGE * FEATURES, LABELS, MASK), batch_of(FEATURES, LABELS, MASK)
    bias = next(v for name, v in state.trained.items() if "bias" in name)
    moved, logged = [], []

    def log(split, step, values, timing=None):
        logged.append(values["learning_rate"])

    monkeypatch.setattr(recorder, "scalars", log)
    callback = all_callbacks(recorder, state.plan, log="1steps", save="9steps", evaluate="9steps")[1]
    for step in range(9):
        state.loss_scale.scale.assign(2.0**127 if step < 3 else 1.0)
        before = bias.numpy()
        # Always the same weights, and so the same gradient: the change is the rate, but for a factor.
        updates(state, overflowing if step < 3 else small)
        moved.append(np.abs(bias.numpy() - before).sum())
        for variable in state.trained.values():
            variable.assign(tf.zeros_like(variable))
        callback(state)
    rates = [0.5 * min(step + 1, 8) / 8 for step in range(9)]
    assert (state.step, int(state.optimizer.iterations)) == (9, 6)
    assert moved[:3] == [0, 0, 0]
    np.testing.assert_allclose(np.array(moved[3:]) / moved[-1], np.array(rates[3:]) / rates[-1], rtol=1e-5)
    assert logged == pytest.approx(rates)


def test_a_loss_that_is_not_finite_stops_the_run_at_any_scale():
    state = state_at(INITIAL_SCALE)
    bad = FEATURES.copy()
    bad[0] = np.nan
    batches = [batch_of(features, LABELS, MASK) for features in (FEATURES, bad, FEATURES)]
    updates(state, batches[0])
    before = trained(state)
    updates(state, *batches[1:])
    assert (state.step, int(state.unfit.step)) == (2, 1)
    assert_same(state, before)
    with pytest.raises(TrainerError, match=r"the loss is not finite \(nan\) at step 1 "):
        Guard(examples=lambda step: [])(state)


# Its gradients are finite, their norm is not, and the loss is: no scale helps.
HOPELESS = batch_of(1e25 * FEATURES, LABELS, MASK)


def test_at_scale_one_a_gradient_that_is_not_finite_stops_the_run():
    state = state_at(4.0)
    before = trained(state)
    updates(state, *[HOPELESS] * 5)
    # Left out at 4 and at 2, and given up at 1.
    assert (state.step, int(state.unfit.step), float(state.loss_scale.scale)) == (3, 2, 1.0)
    assert np.isfinite(state.metrics.read()["loss"])
    assert_same(state, before)


def test_without_loss_scaling_it_stops_at_once():
    state = state_at(INITIAL_SCALE)
    updates(state, HOPELESS, HOPELESS, loss_scaling=False)
    assert (state.step, int(state.unfit.step), float(state.loss_scale.scale)) == (1, 0, INITIAL_SCALE)


def test_the_loop_logs_steps_and_stops_as_ever():
    state, recorder = state_at(2.0), Recorder()
    with pytest.raises(TrainerError, match=r"the gradient is not finite \(norm inf\) at step 1 "):
        train(
            state,
            batches=lambda phase, step: dataset_of(*[HOPELESS] * 9),
            make_run=lambda state, phase: run_of(state, precision="float16"),
            callbacks=all_callbacks(recorder, state.plan, save="1steps", log="1steps"),
        )
    assert [step for kind, step in recorder.events if kind == "save"] == [1]


def test_the_scale_is_kept_in_checkpoints(tmp_path):
    batches = [batch_of(LARGE * FEATURES, LABELS, MASK)] * 9
    whole, first, second = state_at(2.0**127), state_at(2.0**127), state_of(RECIPE)
    updates(whole, *batches)
    updates(first, *batches[:3])
    assert {"loss_scale/scale", "loss_scale/good_steps"} <= set(first.variables())
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(first.variables(), step=3)
    checkpoints.restore(second.variables(), checkpoints.find("latest"))
    assert float(second.loss_scale.scale) == float(first.loss_scale.scale) < 2.0**127
    assert int(second.loss_scale.good_steps) == int(first.loss_scale.good_steps)
    updates(second, *batches[3:])
    for name, value in values(second).items():
        np.testing.assert_array_equal(value, values(whole)[name], err_msg=name)
