"""The record of a sweep that others share, and a database that is away for a while."""

import contextlib

import pytest

pytest.importorskip("optuna")

import optuna
import sqlalchemy
from optuna.trial import TrialState

from trainer.cli.search import read_space
from trainer.run import study as of_study
from trainer.run.study import Study, make_sampler, patiently
from trainer.values import MachineError


@pytest.fixture
def study_of(tmp_path):
    """study_of(folder, ...) -> a study whose folder and database are below tmp_path."""

    def make(folder="a", *, url="", pruner="none", asked=None):
        (tmp_path / folder).mkdir(exist_ok=True)
        space = read_space(["dropout=uniform(0,1)"], "")
        sampler = make_sampler("random", space, seed=0)
        url = url and f"sqlite:///{tmp_path}/{url}"
        return Study(
            tmp_path / folder, url, sampler=sampler, pruner=pruner, maximize=True, asked=asked or {"a": "b"}
        )

    return make


def away():
    raise sqlalchemy.exc.OperationalError("SELECT 1", {}, Exception("no route to host"))


def test_a_trial_that_another_process_has_finished_ends_here_in_words(study_of, caplog):
    study = study_of(pruner="median")
    with study.take(1) as taken:
        study.storage.set_trial_state_values(taken.trial_id, TrialState.FAIL)
        assert taken.report(1, 0.5)
        taken.note(step=1)
        taken.finish(0.5)
        assert taken.is_lost
    [told] = [line for line in caplog.messages if "another process" in line]
    assert told.startswith("trial 1 was given to another process")


def test_others_are_not_taken_for_dead_as_soon_as_a_database_answers_again(study_of, monkeypatch):
    asked = []
    monkeypatch.setattr(optuna.storages, "fail_stale_trials", asked.append)
    monkeypatch.setattr(of_study.time, "sleep", lambda secs: None)
    study = study_of(url="sweeps.db")

    def looks():
        asked.clear()
        with study.take(0):
            return bool(asked)

    assert not looks()
    monkeypatch.setattr(of_study, "GRACE_SECS", 0.3)
    now, clock = [1], of_study.time.monotonic
    monkeypatch.setattr(of_study.time, "monotonic", lambda: clock() + now[0])
    assert looks()
    answers = iter([away, lambda: 1])
    assert patiently(lambda: next(answers)()) == 1
    assert not looks()
    now[0] += 1
    assert looks()


def test_a_database_that_stays_away_is_no_fault_of_a_trial(monkeypatch):
    monkeypatch.setattr(of_study, "PATIENCE_SECS", -1)
    with pytest.raises(MachineError, match=r"the database of --study does not answer: .*no route to host"):
        patiently(away)


@pytest.mark.parametrize("pruner", ["hyperband", "median"])
def test_stopped_and_continued_trials_are_drawn_and_end_early_as_without(study_of, pruner):
    space = read_space(["dropout=uniform(0,1)"], "")

    def all_of(folder, *, dies):
        """Returns all trials, where each dies once or not at all: at its second evaluation, or its end."""
        study, died = study_of(folder, pruner=pruner), set()
        while True:
            with study.take(14) as taken:
                if taken is None:
                    return [(trial.params, trial.state.name, trial.last_step) for trial in study.trials()]
                quality = float(taken.texts(space)["dropout"])
                is_first = dies and taken.number not in died
                died.add(taken.number)
                last = 2 if is_first else 5 + taken.number % 4
                is_over = any(taken.report(count, quality * count) for count in range(1, last + 1))
                if not is_first:
                    taken.finish(quality, pruned=is_over)
            study = study_of(folder, pruner=pruner) if dies else study

    without = all_of("a", dies=False)
    assert {state for _, state, _ in without} == {"COMPLETE", "PRUNED"}
    assert all_of("b", dies=True) == without


def test_a_trial_killed_before_it_is_noted_that_it_is_over_is_over_when_it_is_asked_again(
    study_of, monkeypatch
):
    class Killed(BaseException):
        pass

    def all_of(folder, *, dies):
        real, died = optuna.trial.Trial.set_user_attr, set()

        def note(trial, name, fact):
            if dies and name == "ended" and trial.number not in died:
                died.add(trial.number)
                raise Killed
            real(trial, name, fact)

        study = study_of(folder, pruner="hyperband")
        monkeypatch.setattr(optuna.trial.Trial, "set_user_attr", note)
        while len(study.trials(TrialState.COMPLETE, TrialState.PRUNED)) < 16:
            with contextlib.suppress(Killed), study.take(16) as taken:
                # Worse and worse, and one in three better again.
                quality = 1 - taken.number / 99 + (taken.number % 3 == 2) / 9
                is_over = any(taken.report(count, quality * count) for count in range(1, 10))
                taken.finish(quality, pruned=is_over)
        monkeypatch.setattr(optuna.trial.Trial, "set_user_attr", real)
        assert not dies or len(died) > 4
        return [(trial.state.name, trial.last_step) for trial in study.trials()]

    assert all_of("b", dies=True) == all_of("a", dies=False)


@pytest.mark.slow
def test_a_trial_that_another_machine_makes_again_is_begun_there_for_the_first_time(study_of, monkeypatch):
    # What a lost machine had come to is in its own folder.
    monkeypatch.setattr(of_study.Taken, "leave", lambda taken: None)
    monkeypatch.setattr(of_study, "LOSSES", of_study.BEGINNINGS + 1)
    for number in range(of_study.LOSSES + 1):
        study = study_of(f"machine {number}", url="sweeps.db")
        with study.take(1) as taken:
            if number == of_study.LOSSES:
                assert taken is None
                break
            assert taken.number == number
            assert study.trials()[0].user_attrs["begun"] == [1, 0, number]
        study.storage.set_trial_state_values(taken.trial_id, TrialState.FAIL)
        study.storage.get_heartbeat_stale_trial_callback()(
            study.optuna, study.storage.get_trial(taken.trial_id)
        )
    [trial] = study.trials()
    assert trial.state == TrialState.FAIL
    assert trial.user_attrs["why"].startswith("its process was lost 4 times, each time with its machine: ")


def test_half_a_line_of_the_record_is_in_nobodys_way(study_of, tmp_path):
    living = study_of()
    with living.take(9) as taken:
        # Somebody else was writing on a full disk, and is gone.
        with open(tmp_path / "a" / "study.journal", "ab") as journal:
            journal.write(b'{"op_code":6,"worker_id":"else')
        taken.note(step=1)
        taken.finish(0.5)
    for study in (living, study_of()):
        [trial] = study.trials()
        assert (trial.value, trial.user_attrs["step"]) == (0.5, 1)
