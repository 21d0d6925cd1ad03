"""Which state is kept as the best, and how a run ends when asked to."""

import math

import pytest

from tests.loop.recording import TWO_PHASES, Recorder, Visits, run_loop
from tests.loop.toys import state_of
from trainer.loop import standard_callbacks
from trainer.loop.best_and_stop import Best
from trainer.loop.standard_callbacks import Guard


@pytest.mark.parametrize(
    ("scores", "saved"),
    [
        ([(0.5, 1.0), (0.6, 2.0), (0.4, 0.1)], [1, 2]),
        ([(0.5, 1.0), (0.5, 0.9), (0.5, 0.9), (0.5, 1.1)], [1, 2]),
        ([(0.5, math.nan), (0.5, 3.0), (0.5, math.nan)], [1, 2]),
        ([(0.5, math.inf), (0.5, math.nan)], [1]),
        ([(0.0, 9.0)], [1]),
    ],
)
def test_best_keeps_the_highest_accuracy_and_then_the_lowest_loss(scores, saved):
    recorder, state = Recorder(), state_of(*TWO_PHASES)
    best = Best(save_best=recorder.save_best)
    for step, (accuracy, loss) in enumerate(scores, 1):
        state.step_variable.assign(step)
        best.offer({"accuracy": accuracy, "loss": loss})
        best(state)
        best(state)  # Without a new offer there is nothing to do.
    assert recorder.events == [("save best", step) for step in saved]
    accuracy, loss = scores[saved[-1] - 1]
    # The numbers were in the state before it was saved.
    assert recorder.best == {
        "accuracy": accuracy,
        "loss": loss if math.isfinite(loss) else math.inf,
        "step": saved[-1],
    }


def test_stop_saves_and_raises_at_the_step_it_is_asked():
    recorder, state = Recorder(), state_of(*TWO_PHASES)
    stop = standard_callbacks.Stop(requested=lambda: state.step >= 6, save=recorder.save)
    every_step = Visits(*range(1, 11))
    with pytest.raises(standard_callbacks.Interrupted, match="stopped at step 6 of 10"):
        run_loop(state, [Guard(examples=lambda step: []), every_step, stop])
    assert recorder.events == [("save", 6)]
    assert every_step.steps == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("secs_per_step", [0.0004, 0.01, 0.3, 0.999, 5.0])
def test_stop_looks_about_once_a_second(secs_per_step):
    now = [0.0]
    stop = standard_callbacks.Stop(requested=lambda: False, save=lambda state: None, clock=lambda: now[0])
    step, intervals = 0, []
    for _ in range(12):
        ahead = stop.next_due(step) - step
        assert ahead >= 1
        step += ahead
        now[0] += ahead * secs_per_step
        intervals.append(ahead * secs_per_step)
    assert intervals[0] == secs_per_step
    settled = intervals[6:]
    assert max(settled) <= max(1.0, secs_per_step) + 1e-9
    assert min(settled) > 0.45
    # When steps become ten times as slow, the next look is late once, and then in time again.
    secs_per_step *= 10
    for late in (True, False):
        ahead = stop.next_due(step) - step
        step, now[0] = step + ahead, now[0] + ahead * secs_per_step
        assert late or ahead * secs_per_step <= max(1.0, secs_per_step) + 1e-9
