"""What goes by the numbers of evaluations: a rate that falls at a standstill, and the end of a phase."""

import pytest
import tensorflow as tf

from tests.loop.recording import Recorder, all_callbacks, run_loop
from tests.loop.toys import dataset_of, random_batches, run_of, state_of
from trainer.loop.best_and_stop import EarlyStop, Plateau
from trainer.loop.state import Standstill

PLATEAU = "name=a; for=12steps; train=head; lr=0.4; optimizer=sgd; lr_schedule=plateau(0.5,2)"


def scores(*losses, accuracy=0.5):
    return [{"accuracy": accuracy, "loss": loss} for loss in losses]


def judged(state, judge, *, losses, evaluate="1steps", recorder=None):
    """Trains with one judge, and returns what was asked of writers and savers."""
    recorder = recorder or Recorder(scores(*losses))
    callback_list = all_callbacks(recorder, state.plan, log="1steps", evaluate=evaluate)
    best = callback_list[4]
    callback_list[3]._then = [best, judge]
    run_loop(state, [*callback_list[:5], judge, callback_list[5]])
    return recorder


def test_standstill_counts_evaluations_since_the_best():
    standstill = Standstill("x")
    counts = []
    for step, loss in enumerate([1.0, 0.9, 0.95, 0.9, 0.89, 2.0], 1):
        assert standstill.offer({"loss": loss}, step=step, metric="loss")
        counts.append(int(standstill.count))
    assert counts == [0, 0, 1, 2, 0, 1]
    # An evaluation that is made again after a restart counts once.
    assert not standstill.offer({"loss": 0.1}, step=6, metric="loss")
    assert int(standstill.count) == 1
    standstill.reset()
    assert standstill.offer({"loss": 5.0}, step=1, metric="loss")
    assert int(standstill.count) == 0


def test_standstill_by_accuracy_and_with_a_smallest_change():
    standstill = Standstill("x")
    counts = []
    for step, accuracy in enumerate([0.5, 0.55, 0.61, 0.7, float("nan")], 1):
        standstill.offer({"accuracy": accuracy}, step=step, metric="accuracy", min_change=0.1)
        counts.append(int(standstill.count))
    assert counts == [0, 1, 0, 1, 2]


def test_the_rate_falls_after_evaluations_without_a_lower_loss():
    state, said = state_of(PLATEAU), []
    written = []
    recorder = Recorder(scores(1.0, 0.9, 0.9, 0.95, 0.9, 0.9, 0.1, 0.2, 0.05, 1, 1, 1))
    recorder.scalars = lambda split, step, values, timing=None: written.append((split, step, values))
    judged(state, Plateau(say=said.append), losses=[], recorder=recorder)
    rates = [values["learning_rate"] for split, _, values in written if split == "train"]
    # Lowered after steps 4, 6 and 11; the update after an evaluation is the first with the new rate.
    assert rates == pytest.approx([0.4] * 4 + [0.2] * 2 + [0.1] * 5 + [0.05])
    assert [line.split(":")[0] for line in said] == ["step 4", "step 6", "step 11"]
    assert said[0].endswith("has not fallen in 2 evaluations; learning rate 0.2")


def test_the_lowered_rate_is_what_updates_use():
    states = [state_of(PLATEAU), state_of(PLATEAU.replace("plateau(0.5,2)", "constant"))]
    states[0].lr_factor.assign(0.0)
    batches = random_batches(3)
    before = states[0].classifier.named_variables["head/logits/kernel"].numpy()
    for state in states:
        run_of(state)(iter(dataset_of(*batches)), tf.constant(3))
    kernels = [state.classifier.named_variables["head/logits/kernel"].numpy() for state in states]
    assert (kernels[0] == before).all()
    assert (kernels[1] != before).any()


def test_a_plateau_ends_with_its_phase():
    state = state_of(PLATEAU.replace("12steps", "4steps"), PLATEAU.replace("name=a; ", ""))
    judged(state, Plateau(say=lambda text: None), losses=[1.0] * 5 + [0.9] * 11)
    # The evaluation at the end of the first phase counts for neither; the second begins at its own rate.
    assert float(state.lr_factor) < 1.0
    state = state_of(PLATEAU.replace("12steps", "4steps"), PLATEAU.replace("name=a; ", ""))
    state.jump(4)
    state.lr_factor.assign(0.5)
    Plateau(say=lambda text: None).resume(state)
    assert float(state.lr_factor) == 1.0


def early(recorder, *, metric="loss", patience=2, min_change=0.0, said=None):
    said = [] if said is None else said
    return EarlyStop(metric, patience=patience, min_change=min_change, save=recorder.save, say=said.append)


TWO = ("name=a; for=8steps; train=head; lr=0.1", "name=b; for=4steps; train=head; lr=0.1")


def test_a_phase_ends_early_and_the_next_begins():
    state, said = state_of(*TWO), []
    recorder = Recorder(scores(1.0, 0.9, 0.95, 0.9, 5.0, 4.0, 3.0, 2.0))
    judged(state, early(recorder, said=said), losses=[], recorder=recorder)
    steps = [step for what, step in recorder.events if what == "write validation"]
    assert steps == [1, 2, 3, 4, 9, 10, 11, 12]
    assert said == [
        "step 4: validation loss has been no better for 2 evaluations; phase a ends here, 4 steps early"
    ]
    # The state is kept as it was before the jump, under its own step.
    assert ("save", 4) in recorder.events
    assert state.step == 12


def test_the_last_phase_ends_the_run():
    state = state_of(TWO[0])
    recorder = Recorder(scores(1.0, 1.0, 1.0))
    judged(state, early(recorder), losses=[], recorder=recorder)
    assert state.step == 8
    assert [step for what, step in recorder.events if what == "write validation"] == [1, 2, 3]


def test_nothing_is_cut_short_at_the_last_step():
    state, said = state_of("name=a; for=3steps; train=head; lr=0.1"), []
    recorder = Recorder(scores(1.0, 1.0, 1.0))
    judged(state, early(recorder, said=said), losses=[], recorder=recorder)
    assert said == []


def test_a_restart_at_the_evaluation_that_ended_a_phase_ends_it_again():
    state = state_of(*TWO)
    state.jump(4)
    state.early.best.assign(-0.9)
    state.early.count.assign(2)
    state.early.step.assign(4)
    recorder = Recorder(scores(0.95))
    recorder.counts = []
    recorder.save = lambda state: recorder.counts.append(int(state.early.count))
    judge = early(recorder)
    judge.offer({"accuracy": 0.5, "loss": 0.95})
    judge.resume(state)
    assert (state.step, state.phase.spec.name) == (8, "b")
    # Saved again, it is what it was; and the next phase counts for itself.
    assert recorder.counts == [2]
    assert int(state.early.count) == 0
