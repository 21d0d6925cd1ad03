"""What a person sees of a run."""

import fcntl
import logging
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest

from trainer.record import progress as progress_module
from trainer.record.progress import Progress, counting

NUMBERS = {"loss": 0.5, "accuracy": 0.75, "images_per_second": 1234.5}


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def said():
    """The lines that are logged."""
    lines = []

    class Keep(logging.Handler):
        def emit(self, record):
            lines.append(record.getMessage())

    log, keep = logging.getLogger("trainer"), Keep()
    before = (log.handlers, log.level)
    log.handlers = [keep]
    log.setLevel(logging.INFO)
    yield lines
    log.handlers = before[0]
    log.setLevel(before[1])


def plain(clock, **kwargs):
    options = {"start_step": 0, "total_steps": 100, "steps_per_epoch": 10, **kwargs}
    return Progress("plain", phase_of=lambda step: "a" if step <= 50 else "b", clock=clock, **options)


def test_plain_lines_come_every_ten_seconds(said):
    clock = Clock()
    progress = plain(clock)
    for step in range(1, 101):
        clock.now += 1.0
        progress.at(step, NUMBERS)
    progress.close()
    assert len(said) == 10
    assert said[0] == ("step 10/100 (a, epoch 1.0): loss 0.5000, accuracy 0.750, 1,234 images/s, 01:30 left")
    assert said[5] == ("step 60/100 (b, epoch 6.0): loss 0.5000, accuracy 0.750, 1,234 images/s, 00:40 left")
    assert said[9].endswith("00:00 left")


def test_the_time_left_is_that_of_this_process_without_its_first_step(said):
    clock = Clock()
    progress = plain(clock, start_step=40)
    clock.now += 500.0  # Tracing and compiling.
    progress.at(41, {"loss": 0.5, "accuracy": 0.75})
    clock.now += 20.0
    progress.at(51, NUMBERS)
    assert len(said) == 1
    assert said[0].endswith("01:38 left")


def test_evaluations_are_told_at_once(said):
    progress = plain(Clock())
    progress.evaluated(25, {"loss": 0.25, "accuracy": 0.9})
    progress.say("hello")
    assert said == ["step 25/100 (a, epoch 2.5): validation loss 0.2500, accuracy 0.9000", "hello"]


def test_auto_is_plain_where_nobody_watches(said, capfd):
    clock = Clock()
    progress = Progress(
        "auto", start_step=0, total_steps=10, steps_per_epoch=5, phase_of=lambda step: "a", clock=clock
    )
    for step in (1, 2):
        clock.now += 60
        progress.at(step, NUMBERS)
    assert len(said) == 1
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def clock(monkeypatch):
    """The clock that `counting` reads."""

    class Module(Clock):
        monotonic = Clock.__call__

    made = Module()
    monkeypatch.setattr(progress_module, "time", made)
    return made


def test_counting_tells_every_ten_seconds_and_in_the_end(said, clock):
    with counting("plain", "features of train", 4000) as more:
        for _ in range(40):
            clock.now += 1.0
            more(100)
    assert said == [
        "features of train: 1,000 of 4,000 pictures, 00:30 left",
        "features of train: 2,000 of 4,000 pictures, 00:20 left",
        "features of train: 3,000 of 4,000 pictures, 00:10 left",
        "features of train: 4,000 of 4,000 pictures, 00:00 left",
        "features of train: 4,000 pictures in 40.0 s, 100 a second",
    ]


def test_counting_that_is_quick_is_one_line(said, clock, capfd):
    with counting("plain", "features of validation", 30) as more:
        for _ in range(3):
            clock.now += 3.0
            more(10)
    assert said == ["features of validation: 30 pictures in 9.0 s, 3.3 a second"]
    assert capfd.readouterr() == ("", "")


def test_counting_of_what_takes_no_time_at_all(said, clock):
    with counting("plain", "features of test", 0):
        pass
    assert said == ["features of test: 0 pictures in 0.0 s, 0 a second"]


def test_counting_that_fails_says_nothing_of_an_end(said, clock):
    def fail():
        with counting("plain", "features of test", 10) as more:
            more(5)
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError):
        fail()
    assert said == []


def test_counting_by_a_bar(said, clock, capfd):
    with counting("bar", "features of train", 4) as more:
        more(2)
        # The bar has a clock of its own, and draws what is drawn a second after the start.
        clock.now += 60.0
        more(2)
    err = capfd.readouterr().err
    assert "features of train:   0%|" in err
    assert "| 0/4 [" in err
    # It makes room for the last line.
    assert err.endswith("\r")
    assert said == ["features of train: 4 pictures in 60.0 s, 0.067 a second"]


def test_counting_where_nobody_watches_is_plain(said, clock, capfd):
    with counting("auto", "features of train", 20) as more:
        clock.now += 10.0
        more(10)
    assert capfd.readouterr() == ("", "")
    assert said == [
        "features of train: 10 of 20 pictures, 00:10 left",
        "features of train: 10 pictures in 10.0 s, 1 a second",
    ]


PROGRAM = """
import logging
import sys
logging.getLogger("trainer").setLevel(logging.INFO)
from trainer.record import progress as progress_module
from trainer.record.progress import Progress, counting
progress = Progress(sys.argv[1], start_step=10, total_steps=50, steps_per_epoch=10,
                    phase_of=lambda step: "warm")
progress.at(11, {"loss": 2.5, "accuracy": 0.25})
progress.say("a line of its own")
progress.at(40, {"loss": 0.5, "accuracy": 0.75, "images_per_second": 1234.5})
progress.evaluated(50, {"loss": 0.125, "accuracy": 1.0})
progress.close()
"""


def on_a_terminal(kind):
    """Returns what a program shows on a terminal of 120 columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 120, 0, 0))
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, kind], stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # The other end is closed.
            break
        if not part:
            break
        shown += part
    os.close(ours)
    assert process.wait() == 0, shown.decode()
    return shown.decode()


@pytest.mark.parametrize("kind", ["auto", "bar"])
def test_a_terminal_gets_a_bar(kind):
    shown = on_a_terminal(kind)
    states = [state.strip() for state in re.split(r"[\r\n]", shown)]
    assert any(re.match(r"warm +80%\|.*step 40/50 \[", state) for state in states), states
    assert any("epoch 4.0, 1,234 images/s, loss 0.5000, accuracy 0.750" in state for state in states)
    # The time left is that of the plain lines, not tqdm's own.
    assert any(re.search(r", 00:0\d left, epoch 4\.0", state) for state in states)
    assert not any("<" in state for state in states)
    assert any("epoch 1.1, starting, loss 2.5000" in state for state in states)
    assert "a line of its own" in states
    assert any("validation loss 0.1250, accuracy 1.0000" in state for state in states)


def test_plain_lines_can_be_asked_for_on_a_terminal():
    assert "|" not in on_a_terminal("plain")


def test_the_bar_begins_with_training_and_not_on_the_line_of_what_comes_before(capfd):
    lengths = {"start_step": 0, "total_steps": 8, "steps_per_epoch": 4}
    bar = Progress("bar", phase_of=lambda step: "a", **lengths)
    assert capfd.readouterr().err == ""
    bar.say("phase a begins")
    assert "step 0/8" in capfd.readouterr().err
    bar.close()
