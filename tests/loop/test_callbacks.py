"""What happens between updates, when, and in which order."""

from types import SimpleNamespace

import numpy as np
import pytest

from tests.loop.recording import TWO_PHASES, Recorder, Visits, all_callbacks, every, run_loop
from tests.loop.toys import random_batches, state_of
from trainer.loop import standard_callbacks
from trainer.loop import stopwatch as stopwatch_room
from trainer.loop.callbacks import Callback
from trainer.loop.standard_callbacks import Guard
from trainer.values import TrainerError, UsageError


@pytest.mark.parametrize(
    ("text", "due"),
    [
        ("3steps", [3, 4, 6, 9, 10]),
        ("1steps", list(range(1, 11))),
        ("100steps", [4, 10]),
        ("2epochs", [2, 4, 6, 8, 10]),
        ("20examples", [4, 5, 10]),
        ("30%", [3, 4, 6, 9, 10]),
    ],
)
def test_due_at_multiples_and_at_the_end_of_each_phase(text, due):
    rule = every(text)
    assert [step for step in range(11) if rule.now(step)] == due
    for step in range(10):
        assert rule.next(step) == next(at for at in due if at > step)


def test_the_order_at_a_step_where_everything_is_due():
    recorder = Recorder()
    state = state_of("for=2steps; train=head")
    stop_at_the_end = all_callbacks(recorder, state.plan, requested=lambda: state.step == 2)
    with pytest.raises(standard_callbacks.Interrupted, match="stopped at step 2 of 2"):
        run_loop(state, stop_at_the_end)
    at_the_end = recorder.events[recorder.events.index(("progress", 2)) :]
    assert at_the_end == [
        ("progress", 2),
        ("write train", 2),
        ("save", 2),
        ("evaluate", None),
        ("write validation", 2),
        ("told", 2),
        ("save best", 2),
        ("save", 2),
    ]


def test_a_gradient_that_is_not_finite_at_the_end_of_a_phase_is_told_with_that_phase():
    recorder = Recorder()
    state = state_of(*TWO_PHASES)
    batches = random_batches(10)
    batches[3]["image"][0] = np.inf
    with pytest.raises(TrainerError, match=r"step 3 \(phase a, learning rate 0.1\)"):
        run_loop(state, all_callbacks(recorder, state.plan), batches=batches)
    assert not [event for event in recorder.events if event[0].startswith("save")]


def test_the_loop_visits_the_due_steps_and_the_first_of_each_phase():
    state = state_of(*TWO_PHASES)
    visits = Visits(3, 7, 9)
    run_loop(state, [Guard(examples=lambda step: []), visits])
    assert visits.steps == [1, 3, 4, 5, 7, 9, 10]
    alone = Visits()
    run_loop(state_of(*TWO_PHASES), [alone])
    assert alone.steps == [1, 4, 5, 10]


@pytest.mark.parametrize("due", [lambda step: step, lambda step: None, lambda step: step + 0.5])
def test_a_callback_that_is_never_due_later_ends_the_run_in_words(due):
    class Late(Callback):
        next_due = staticmethod(due)

        def __call__(self, state):
            if state.step > 1:
                pytest.fail("the loop went on")

    with pytest.raises(
        UsageError, match=r"next_due\(1\) of the callback Late must be an int above 1; it is "
    ):
        run_loop(state_of("for=2steps; train=head"), [Late()])


def test_phases_are_announced_once_before_their_first_update():
    state, told = state_of(*TWO_PHASES), []
    run_loop(state, [Visits()], on_phase=lambda state: told.append((state.phase.spec.name, state.step)))
    assert told == [("a", 0), ("b", 4)]


def test_each_phase_begins_with_a_fresh_optimizer():
    def look(state):
        # The optimizer's own variables besides its slots are the count of updates and the rate.
        slots = [v.numpy() for v in state.optimizer.variables if v.shape.rank]
        return int(state.optimizer.iterations), any(slot.any() for slot in slots), state.phase.spec.name

    state = state_of(*TWO_PHASES)
    visits = Visits(*range(1, 11), look=look)
    run_loop(state, [visits])
    assert visits.steps == list(range(1, 11))
    in_a = [(i, True, "a") for i in (1, 2, 3)]
    # At the last step of a phase the state has moved on, so that what is saved there starts the next.
    assert visits.seen == [*in_a, (0, False, "b"), *((i, True, "b") for i in range(1, 7))]


def test_callbacks_that_make_up_for_a_restore_are_asked_before_the_first_update():
    recorder, state = Recorder(), state_of(*TWO_PHASES)
    state.jump(5)
    state.optimizer.iterations.assign(1)
    run_loop(state, all_callbacks(recorder, state.plan, evaluate="5steps"))
    assert recorder.events[:4] == [
        ("evaluate", None),
        ("write validation", 5),
        ("told", 5),
        ("save best", 5),
    ]
    assert ("write validation", 10) in recorder.events
    state, recorder = state_of(*TWO_PHASES), Recorder()
    state.jump(6)
    run_loop(state, all_callbacks(recorder, state.plan, evaluate="5steps"))
    assert recorder.events[0][0] == "progress"


def test_the_speed_that_is_logged_counts_no_padding(monkeypatch):
    """Batches of 4, of which every second one has 3 examples; each call takes two seconds."""
    clock = iter(range(0, 1000, 2))
    monkeypatch.setattr(stopwatch_room, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    recorder, state = Recorder(), state_of("for=9steps; train=head; lr=0.1")
    speeds = {}

    def note(split, step, values, timing=None):
        speeds[step] = timing.get("images_per_second")

    recorder.scalars = note
    # The loop comes back after steps 1, 3, 4, 5, 7, 8 and 9; the first step is not timed.
    run_loop(state, [all_callbacks(recorder, state.plan, log="4steps")[1], Visits(3, 5, 7)])
    assert speeds == {4: (3 + 4 + 3) / 4, 8: (4 + 3 + 4 + 3) / 6, 9: 4 / 2}


def test_what_log_writes_is_since_the_last_log():
    recorder, state = Recorder(), state_of("for=3steps; train=head; lr=0.1; warmup=2steps")
    writes = []
    recorder.scalars = lambda split, step, values, timing=None: writes.append((step, values, timing))
    run_loop(state, all_callbacks(recorder, state.plan, log="1steps", evaluate="100steps")[:2])
    assert [step for step, _, _ in writes] == [1, 2, 3]
    assert [values["learning_rate"] for _, values, _ in writes] == pytest.approx([0.05, 0.1, 0.1])
    for step, values, timing in writes:
        assert set(values) == {"loss", "accuracy", "learning_rate", "gradient_norm"}
        assert values["gradient_norm"] > 0
        # The first step traces and compiles: its time says nothing.
        assert set(timing) == (set() if step == 1 else {"images_per_second", "input_wait_share"})
    losses = [values["loss"] for _, values, _ in writes]
    whole = state_of("for=3steps; train=head; lr=0.1; warmup=2steps")
    run_loop(whole, [Visits()])
    counts = [4, 3, 4]  # Every second batch has a padded row.
    assert np.average(losses, weights=counts) == pytest.approx(whole.metrics.read()["loss"], rel=1e-5)


@pytest.mark.parametrize("text", ["3steps", "1steps", "4steps", "100steps", "30%"])
def test_how_many_are_due_between_two_steps(text):
    rule = every(text)
    for start in range(11):
        for stop in range(11):
            expected = sum(rule.now(step) for step in range(start + 1, stop + 1))
            assert rule.count(start, stop) == expected, (start, stop)
