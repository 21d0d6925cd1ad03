"""Distributions, figures and profiles: what is watched, when, and that it is the same after a restart."""

import contextlib

import numpy as np
import pytest
import tensorflow as tf

from tests.loop.recording import TWO_PHASES, Recorder, Visits, all_callbacks, every, run_loop
from tests.loop.toys import dataset_of, random_batches, run_of, state_of
from trainer.loop import standard_callbacks
from trainer.loop.best_and_stop import EarlyStop
from trainer.loop.loop import train
from trainer.loop.monitoring import Figures, Histograms, Profile, profile_range, real_values
from trainer.values import UsageError


@pytest.mark.parametrize(
    ("text", "last"),
    [
        ("3steps", {1: 0, 3: 0, 4: 3, 5: 4, 6: 4, 7: 6, 9: 6, 10: 9}),
        ("100steps", {1: 0, 4: 0, 5: 4, 10: 4}),
    ],
)
def test_what_was_due_last(text, last):
    rule = every(text)
    for step, expected in last.items():
        assert rule.last(step) == expected
        assert expected == max([0, *(at for at in range(step) if rule.now(at))])


def test_distributions_of_what_holds_real_numbers():
    state = state_of("for=3steps; train=head; lr=0.1")
    named = state.classifier.named_variables
    named["counter"] = tf.Variable(3, dtype=tf.int64)
    named["text"] = tf.Variable("word")
    seen = {}
    callback = Histograms(every("2steps", state.plan), write=seen.__setitem__)
    run_loop(state, [callback])
    assert list(seen) == [2, 3]
    assert {name: value.shape for name, value in seen[3].items()} == {
        name: tuple(named[name].shape) for name in ("head/logits/kernel", "head/logits/bias")
    }
    np.testing.assert_array_equal(seen[3]["head/logits/kernel"], named["head/logits/kernel"].numpy())
    assert (seen[2]["head/logits/kernel"] != seen[3]["head/logits/kernel"]).any()
    assert set(real_values(named)) == set(seen[3])


def go(state, callback_list, *, around=lambda run: run, on_phase=lambda state: None):
    """The loop with updates that do nothing but count."""

    def run(iterator, num_steps):
        state.step_variable.assign_add(tf.cast(num_steps, tf.int64))
        return tf.constant(0.0)

    train(
        state,
        batches=lambda phase, step: tf.data.Dataset.range(1),
        make_run=lambda state, phase: around(run),
        callbacks=callback_list,
        on_phase=on_phase,
    )


class Drawn:
    """A run with evaluations and figures; `steps` are those that were drawn."""

    def __init__(self, figures, *, evaluate, phases=TWO_PHASES, start=0, early=None):
        self.state, self.steps, recorder = state_of(*phases), [], Recorder()
        plan = self.state.plan
        callback = Figures(
            every(figures, plan),
            evaluations=every(evaluate, plan),
            draw=lambda scored, step: self.steps.append((scored, step)),
        )
        recorder.evaluate = lambda: self._evaluate(callback)
        all_of_them = all_callbacks(recorder, plan, evaluate=evaluate)
        judges = [early] if early else []
        all_of_them[3]._then.extend(judges)
        all_of_them[-1:-1] = [*judges, callback]
        if start:
            self.state.jump(start)
        go(self.state, all_of_them)

    def _evaluate(self, callback):
        callback.keep(f"evaluation of {self.state.step}", step=self.state.step)
        return {"accuracy": 0.5, "loss": 1.0}


@pytest.mark.parametrize(
    ("figures", "evaluate", "steps"),
    [
        ("3steps", "1steps", [3, 4, 6, 9, 10]),
        ("5steps", "1steps", [4, 5, 10]),
        # The first evaluation at or after 3, 6 and 9, and those of the ends, 4 and 10.
        ("3steps", "2steps", [4, 6, 10]),
        ("3steps", "4steps", [4, 8, 10]),
        ("1steps", "3steps", [3, 4, 6, 9, 10]),
        ("100steps", "1steps", [4, 10]),
    ],
)
def test_which_evaluations_are_drawn(figures, evaluate, steps):
    assert Drawn(figures, evaluate=evaluate).steps == [(f"evaluation of {step}", step) for step in steps]


@pytest.mark.parametrize("start", [2, 4, 6, 9])
def test_a_run_that_goes_on_draws_what_it_would_have_drawn(start):
    whole = [step for _, step in Drawn("3steps", evaluate="2steps").steps]
    # The checkpoint of a step is older than the figures of that step.
    assert [step for _, step in Drawn("3steps", evaluate="2steps", start=start).steps] == [
        step for step in whole if step >= start
    ]


def test_the_last_evaluation_of_a_phase_that_ends_early_is_drawn():
    def stop():
        return EarlyStop("loss", patience=1, min_change=1000, save=lambda state: None, say=lambda line: None)

    phases = ("name=a; for=8steps; train=head", "name=b; for=3steps; train=head")
    drawn = Drawn("100steps", evaluate="2steps", phases=phases, early=stop())
    assert [step for _, step in drawn.steps] == [4, 11]


class Fake:
    """A profiler that only notes what it is asked for."""

    def __init__(self, state):
        self.events, self._state = [], state

    def start(self):
        self.events.append(("start", self._state.step))

    @contextlib.contextmanager
    def update(self, step):
        yield
        self.events.append(("update", step, self._state.step))

    def stop(self, name):
        self.events.append(("stop", name, self._state.step))

    def discard(self):
        self.events.append(("discard", self._state.step))


def profiled(first, last, *, start=0, stop_at=0):
    """Returns what a profiler was asked for in a run of two phases, and where the loop came back."""
    state = state_of(*TWO_PHASES)
    if start:
        state.jump(start)
    profiler, visits = Fake(state), Visits(stop_at)
    stop = standard_callbacks.Stop(
        requested=lambda: "enough" * (state.step == stop_at), save=lambda state: None
    )
    stop.next_due = lambda step: 2**62
    callback = Profile(first, last, profiler=profiler)
    try:
        go(
            state,
            [callback, visits, stop],
            around=lambda run: callback.around(run, state),
            on_phase=lambda state: profiler.events.append(("phase", state.phase.spec.name)),
        )
    except standard_callbacks.Interrupted:
        pass
    finally:
        callback.close()
    return [event for event in profiler.events if event[0] != "phase"], profiler.events, visits.steps


def test_just_these_updates_are_watched_one_by_one():
    events, _, visits = profiled(7, 9)
    assert events == [
        ("start", 6), ("update", 7, 7), ("update", 8, 8), ("update", 9, 9), ("stop", "updates_7-9", 9),
    ]  # fmt: skip
    # 1 and 5 are the first of their phases; besides, the loop stops only where it must.
    assert visits == [1, 4, 5, 6, 7, 8, 9, 10]
    assert profiled(3, 3)[0] == [("start", 2), ("update", 3, 3), ("stop", "updates_3-3", 3)]


def test_the_first_update_of_a_phase_is_watched_without_what_makes_the_phase():
    _, events, _ = profiled(5, 6)
    assert events[1:] == [
        ("phase", "b"), ("start", 4), ("update", 5, 5), ("update", 6, 6), ("stop", "updates_5-6", 6),
    ]  # fmt: skip
    assert profiled(1, 1)[1][:2] == [("phase", "a"), ("start", 0)]


def test_of_a_run_that_goes_on_within_them_the_rest_is_watched():
    assert profiled(5, 8, start=6)[0] == [
        ("start", 6), ("update", 7, 7), ("update", 8, 8), ("stop", "updates_7-8", 8),
    ]  # fmt: skip
    for start in (8, 9):
        assert profiled(5, 8, start=start)[0] == []
    assert profiled(5, 8, start=4)[0][0] == ("start", 4)


def test_a_run_that_ends_within_them_leaves_no_profiler_running():
    assert profiled(2, 8, stop_at=3)[0] == [
        ("start", 1), ("update", 2, 2), ("update", 3, 3), ("discard", 3),
    ]  # fmt: skip


def test_the_numbers_are_those_of_a_run_that_nobody_watched():
    watched, plain = state_of(*TWO_PHASES), state_of(*TWO_PHASES)
    callback, batches = Profile(3, 7, profiler=Fake(watched)), random_batches(10)
    train(
        watched,
        batches=lambda phase, step: dataset_of(*batches[step : phase.stop_step]),
        make_run=lambda state, phase: callback.around(run_of(state), state),
        callbacks=[callback],
    )
    run_loop(plain, [Visits()], batches=batches)
    for name, variable in plain.variables().items():
        np.testing.assert_array_equal(watched.variables()[name], variable, err_msg=name)


def test_updates_are_named_by_one_number_or_two():
    assert profile_range("3", total_steps=9) == (3, 3)
    assert profile_range("1-9", total_steps=9) == (1, 9)
    assert profile_range("4-4", total_steps=9) == (4, 4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("first", "is not the number of an update, or two such as 100-110"),
        ("3-", "is not the number of an update"),
        ("-3", "is not the number of an update"),
        ("1,3", "is not the number of an update"),
        ("1-2-3", "is not the number of an update"),
        ("0-3", "updates count from 1, and the first comes before the last"),
        ("0", "updates count from 1"),
        ("5-4", "the first comes before the last"),
        ("10", "the run has only 9 updates"),
        ("3-10", "the run has only 9 updates"),
    ],
)
def test_wrong_numbers_of_updates_are_told(text, message):
    with pytest.raises(UsageError, match=f"--profile_steps={text}.*{message}"):
        profile_range(text, total_steps=9)
