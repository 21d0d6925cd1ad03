"""Numbers that nobody can go on with: told with their step and batch, never saved, and left out on demand."""

import re

import numpy as np
import pytest

from tests.loop.recording import TWO_PHASES, Recorder, all_callbacks, every, run_loop
from tests.loop.toys import dataset_of, random_batches, run_of, state_of, values
from trainer.loop import standard_callbacks
from trainer.loop.standard_callbacks import Guard, NonFinite
from trainer.values import TrainerError


def with_bad(step, value, count=10):
    batches = random_batches(count)
    batches[step]["image"][0] = value
    return batches


def callbacks_with(guard, recorder, state, **options):
    return [guard, *all_callbacks(recorder, state.plan, save="1steps", log="1steps", **options)[1:]]


@pytest.mark.parametrize(("value", "told"), [(np.nan, "nan"), (np.inf, "nan")])
def test_a_loss_that_is_not_finite_is_never_saved(value, told):
    recorder, state = Recorder(), state_of(*TWO_PHASES)
    guard = Guard(examples=lambda step: [f"picture {step}-{i}" for i in range(70)])
    with pytest.raises(NonFinite) as caught:
        run_loop(state, callbacks_with(guard, recorder, state), batches=with_bad(5, value))
    text = str(caught.value)
    assert text.startswith(f"the loss is not finite ({told}) at step 5 (phase b, learning rate 0.2); ")
    assert "The batch: picture 5-0, picture 5-1, " in text
    assert "picture 5-63 and 6 more." in text
    assert isinstance(caught.value, TrainerError)
    assert "\n" not in text
    assert (caught.value.step, len(caught.value.examples)) == (5, 70)
    assert [step for kind, step in recorder.events if kind == "save"] == [1, 2, 3, 4, 5]
    assert max(step for _, step in recorder.events if step) == 5


def test_a_loss_above_the_limit_counts_as_one_that_is_not_finite():
    recorder, state = Recorder(), state_of(*TWO_PHASES)
    # Of K = 3 equal logits the loss is ln 3 = 1.0986.
    with pytest.raises(NonFinite, match=r"the loss of 1\.0986\d* is above --max_loss=1.09 at step 0"):
        run_loop(
            state,
            callbacks_with(Guard(examples=lambda step: [], max_loss=1.09), recorder, zero_head(state)),
            max_loss=1.09,
        )
    assert not [kind for kind, _ in recorder.events if kind == "save"]
    state = zero_head(state_of(*TWO_PHASES))
    run_loop(state, callbacks_with(limit(9.0), recorder, state), max_loss=9.0)
    assert state.step == 10


def limit(max_loss):
    return Guard(examples=lambda step: [], max_loss=max_loss)


def zero_head(state):
    for variable in state.trained.values():
        variable.assign(np.zeros(variable.shape, np.float32))
    return state


@pytest.mark.parametrize("part", ["model/head/logits/kernel", "optimizer/.*/v/", "metrics/loss/total"])
def test_weights_that_the_last_update_ruined_are_not_saved(part):
    state = state_of("for=9steps; train=head")
    run_of(state)(iter(dataset_of(*random_batches(2))), np.int32(2))
    guard = Guard(examples=lambda step: [f"picture {step}"])
    guard(state)
    guard.check_weights(state)
    name, variable = next((n, v) for n, v in state.variables().items() if re.match(part, n))
    value = np.array(variable.numpy())
    value.flat[-1] = np.inf
    variable.assign(value)
    # Nothing was wrong with loss and gradient.
    guard(state)
    with pytest.raises(NonFinite, match=f"{name} is not finite after the update at step 1 .*: picture 1\\."):
        guard.check_weights(state)


@pytest.mark.parametrize("chunks", [(1,) * 8, (8,), (3, 5)])
def test_a_batch_that_is_left_out_changes_nothing_but_the_step(chunks):
    recipe = "for=8steps; train=head; lr=0.1; lr_schedule=cosine; optimizer=sgd; momentum=0"
    batches = with_bad(3, np.nan, count=8)
    state = state_of(recipe)
    run = run_of(state, left_out=[3, 100])
    iterator = iter(dataset_of(*batches))
    for count in chunks:
        run(iterator, np.int32(count))
    assert (state.step, int(state.unfit.step)) == (8, -1)
    assert int(state.optimizer.iterations) == 7
    # By hand: the same updates, each at the rate of its step.
    other = state_of(recipe)
    step = run_of(other)
    for at, batch in enumerate(batches):
        if at == 3:
            other.step_variable.assign_add(1)
        else:
            step(iter(dataset_of(batch)), np.int32(1))
    got, expected = values(state), values(other)
    for name, value in expected.items():
        np.testing.assert_array_equal(got[name], value, err_msg=name)


def test_saving_by_the_clock():
    now, saved = [0.0], []
    state = state_of("for=100steps; train=head")
    save = standard_callbacks.Save(
        every("100steps", state.plan),
        save=lambda s: saved.append(s.step),
        every_secs=60,
        clock=lambda: now[0],
    )
    assert save.next_due(0) == 100
    for step, secs in ((1, 30), (2, 59), (3, 61), (4, 90), (5, 122), (100, 123), (101, 182), (102, 183)):
        state.step_variable.assign(step)
        now[0] = secs
        save(state)
    assert saved == [3, 5, 100, 102]
    never = standard_callbacks.Save(
        every("100steps", state.plan), save=lambda s: saved.append(s.step), clock=lambda: 1e9 * now[0]
    )
    now[0] = 1e9
    never(state)
    assert len(saved) == 4
