"""How long a run still takes, on a clock of its own: what is told is compared with what it comes to."""

import json
import math

import pytest

from trainer.record.progress import PhaseLength, Speed, TimeLeft, remember, remembered


class Run:
    """Phases of [steps, seconds of a step, of an evaluation, of the start, of the first evaluation besides].

    They are evaluated every `every` steps; the clock moves only here. What is told is noted at every visit.
    """

    def __init__(self, *phases, every=10, end=0.0, expected=(), least=0.0, batches=4, once=()):
        self.now, self.once, self.told, self.phases = 100.0, 0.0, [], phases
        self.every, self.end, self.once_after = every, end, dict(once)
        lengths, start = [], 0
        for number, (steps, *_) in enumerate(phases):
            stop = start + steps
            lengths.append(
                PhaseLength(
                    start, stop, expected[number] if number < len(expected) else Speed(),
                    evaluations_after=lambda step, stop=stop: self.evaluations(step, stop),
                    evaluation_batches=batches, least_step_secs=lambda: least,
                )
            )  # fmt: skip
            start = stop
        self.left = TimeLeft(
            lengths,
            end_secs=end,
            once_secs=lambda: self.once,
            clock=lambda: self.now,
        )

    def evaluations(self, start, stop):
        return sum(1 for step in range(start + 1, stop + 1) if step % self.every == 0 or step == stop)

    def go(self):
        """Returns [(phase, share of it that is done, told seconds, actual ones, whether all was known)]."""
        step = 0
        for number, (steps, step_secs, evaluation_secs, start_secs, first_secs) in enumerate(self.phases):
            self.now += start_secs
            if number in self.once_after:
                self.once += self.once_after[number]
                self.now += self.once_after[number]
            for done in range(1, steps + 1):
                step += 1
                self.now += step_secs
                self.left.at(step)
                self.told.append((number, done / steps, *self.left.estimate(), self.now))
                if step % self.every == 0 or done == steps:
                    self.now += evaluation_secs + (first_secs if done <= self.every else 0)
                    self.left.evaluated(step)
        stopped = self.now + self.end
        return [(n, share, told, stopped - now, known) for n, share, told, known, now in self.told]


# A head on cached features, then all of the network: 200 quick steps and 100 slow ones.
FAST, SLOW = (200, 0.01, 0.1, 3.0, 1.0), (100, 2.0, 3.0, 8.0, 4.0)


def test_once_both_are_known_it_is_right_within_a_quarter_from_the_first_tenth_of_a_phase_on():
    """The mean over all steps so far is not: 10 s left where there are five minutes."""
    first = Run(FAST, SLOW)
    first.go()
    speeds = [first.left.measured(number) for number in (0, 1)]
    assert speeds[0].step_secs == pytest.approx(0.01)
    assert speeds[1] == Speed(*map(pytest.approx, (2.0, 3.0, 8.0 + 2.0 + 4.0)))
    # Remembered by another run.
    for _, share, told, actual, known in Run(FAST, SLOW, expected=speeds).go():
        assert known
        if share >= 0.1:
            assert told == pytest.approx(actual, rel=0.25)


def test_a_phase_of_which_nothing_is_known_is_told_as_that():
    rows = Run(FAST, SLOW, least=0.5).go()
    for number, share, told, actual, known in rows:
        # Of the first step of a phase the time is not known: it traces.
        assert known == (number == 1 and share > 0.01)
        if number == 0:
            # 100 steps of half a second are sure to come.
            assert 50 <= told <= actual
        elif share >= 0.1:
            assert told == pytest.approx(actual, rel=0.25)


def test_in_the_middle_of_the_only_phase():
    rows = Run((100, 1.0, 20.0, 50.0, 0.0), every=10, batches=40, end=7.0).go()
    halfway = rows[49]
    # 50 steps, 6 evaluations of which the one of this step is still to come, and the end.
    assert halfway[2:] == (pytest.approx(50 + 6 * 20 + 7), pytest.approx(50 + 6 * 20 + 7), True)


def test_before_the_first_evaluation_it_is_half_the_time_of_as_many_updates():
    rows = Run((100, 1.0, 2.0, 0.0, 0.0), every=50, batches=4).go()
    assert rows[9][2] == pytest.approx(90 + 2 * 0.5 * 4)


def test_a_first_evaluation_that_traces_says_nothing_of_the_others():
    rows = Run((100, 0.01, 0.02, 0.0, 30.0), every=10, batches=4).go()
    assert rows[10][2] == pytest.approx(89 * 0.01 + 9 * 0.04)
    assert rows[30][2] == pytest.approx(69 * 0.01 + 7 * 0.02)


def test_what_happens_once_is_no_part_of_any_speed():
    run = Run((100, 0.1, 0.2, 1.0, 0.0), once=((0, 500.0),))
    run.go()
    assert run.left.measured(0) == Speed(*map(pytest.approx, (0.1, 0.2, 1.1)))


def test_what_is_told_reads_as_a_time():
    run = Run(FAST, SLOW)
    run.left.at(1)
    assert run.left.describe() == "at least 00:00 left"
    run.now += 1
    run.left.at(2)
    assert run.left.describe().startswith("at least ")
    known = Run((101, 1.0, 0, 0, 0), every=1000, batches=0)
    for step in (1, 11):
        known.now += 10
        known.left.at(step)
    assert known.left.describe() == "01:30 left"


def test_a_process_that_begins_in_the_middle_does_not_take_its_start_for_a_speed():
    run = Run(FAST, SLOW)
    run.now += 500
    run.left.evaluated(250)
    run.now += 60
    run.left.at(251)
    run.now += 2
    run.left.at(252)
    secs, known = run.left.estimate()
    assert (secs, known) == (pytest.approx(48 * 2 + 5 * 0.5 * 4 * 2), True)


def test_speeds_are_remembered(tmp_path):
    speed, key = Speed(0.25, None, 3.0), {"network": "abc", "batch_size": 32}
    assert remembered(tmp_path, key) == Speed()
    remember(tmp_path, key, speed)
    assert remembered(tmp_path, key) == speed
    assert remembered(tmp_path, {**key, "batch_size": 64}) == Speed()
    remember(tmp_path, key, Speed(0.5, 1.0, 2.0))
    assert remembered(tmp_path, key) == Speed(0.5, 1.0, 2.0)


@pytest.mark.parametrize(
    "change",
    [{"step_secs": -1.0}, {"step_secs": "1"}, {"start_secs": math.inf}, {"format": 0}, {"step_secs": True}],
)
def test_a_file_that_holds_anything_else_is_none(tmp_path, change):
    remember(tmp_path, {}, Speed(0.25, 1.0, 3.0))
    [path] = tmp_path.iterdir()
    found = json.loads(path.read_text())
    path.write_text(json.dumps({**found, **change}))
    assert remembered(tmp_path, {}) == Speed()
    for text in ("", "[]", "{}", "null", path.read_text()[:20]):
        path.write_text(text)
        assert remembered(tmp_path, {}) == Speed()


def test_a_folder_that_cannot_be_written_is_no_failure(tmp_path):
    (tmp_path / "file").write_text("")
    remember(tmp_path / "file", {}, Speed(1.0))
    assert remembered(tmp_path / "file", {}) == Speed()
