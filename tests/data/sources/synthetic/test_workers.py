"""Drawing in processes gives what drawing here gives, and survives processes that do not."""

import logging
import os
import signal
import subprocess
import sys
import time

import pytest

from trainer.data.sources.synthetic import workers as drawers
from trainer.data.sources.synthetic.picture import draw_picture, label_of
from trainer.data.sources.synthetic.source import open_synthetic
from trainer.data.sources.synthetic.workers import draw_all

SEED = 5


@pytest.fixture(scope="module")
def pictures() -> list[bytes]:
    return [draw_picture(label_of(SEED, index), seed=SEED, index=index) for index in range(30)]


@pytest.fixture
def few(monkeypatch) -> None:
    """Makes 30 pictures many."""
    monkeypatch.setattr(drawers, "MIN_EXAMPLES", 30)
    monkeypatch.setattr(drawers, "CHUNK", 4)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})


def refuse(index: int) -> bytes:
    raise AssertionError(f"picture {index} was drawn here")


@pytest.mark.usefixtures("few")
def test_processes_draw_the_same_in_the_same_order(pictures):
    assert list(draw_all(30, draw=refuse, seed=SEED, name="x")) == pictures


def test_few_are_drawn_here(pictures, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", refuse)
    assert list(draw_all(30, draw=pictures.__getitem__, seed=SEED, name="x")) == pictures


@pytest.mark.usefixtures("few")
def test_a_killed_process_is_made_up_for(pictures, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "trainer")
    started: list[drawers._Drawer] = []
    real = drawers._Drawer.answer

    def answer(self):
        if len(started) == 3:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
        started.append(self)
        return real(self)

    monkeypatch.setattr(drawers._Drawer, "answer", answer)
    drawn_here: list[int] = []

    def draw(index):
        drawn_here.append(index)
        return pictures[index]

    assert list(draw_all(30, draw=draw, seed=SEED, name="x")) == pictures
    assert drawn_here[-1] == 29
    assert drawn_here[0] >= 12
    assert "x: a process that draws ended (" in caplog.text
    assert all(drawer.process.returncode is not None for drawer in started)


@pytest.mark.usefixtures("few")
def test_without_an_interpreter_to_start_all_are_drawn_here(pictures, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert list(draw_all(30, draw=pictures.__getitem__, seed=SEED, name="x")) == pictures


@pytest.mark.usefixtures("few")
def test_a_reader_that_stops_ends_the_processes(monkeypatch):
    started: list[subprocess.Popen] = []
    real = subprocess.Popen

    def popen(*args, **kwargs):
        started.append(real(*args, **kwargs))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", popen)
    drawn = draw_all(30, draw=refuse, seed=SEED, name="x")
    next(drawn)
    drawn.close()
    assert len(started) == 2
    assert all(process.returncode is not None for process in started)


ORPHANS = """
import os, sys
from trainer.data.sources.synthetic import workers as drawers
drawers.MIN_EXAMPLES, drawers.CHUNK = 30, 4
os.sched_getaffinity = lambda pid: {0, 1}
started = []
real = drawers._Drawer.__init__
def init(self, seed):
    real(self, seed)
    started.append(self.process.pid)
drawers._Drawer.__init__ = init
drawn = drawers.draw_all(30, draw=None, seed=5, name="x")
next(drawn)
print(*started, flush=True)
os.kill(os.getpid(), 9)
"""


def test_processes_end_with_the_one_that_started_them():
    done = subprocess.run([sys.executable, "-c", ORPHANS], capture_output=True, text=True)
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 2
    deadline = time.monotonic() + 10
    while any(map(is_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(is_alive, pids))


def is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_progress_is_told(monkeypatch, caplog):
    caplog.set_level(logging.INFO, "trainer")
    ticks = iter(range(0, 100, 4))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(ticks)))
    assert list(draw_all(8, draw=lambda index: b"%d" % index, seed=0, name="synthetic:x")) == [
        b"0", b"1", b"2", b"3", b"4", b"5", b"6", b"7",
    ]  # fmt: skip
    assert caplog.messages == ["synthetic:x: 2 of 8 pictures drawn", "synthetic:x: 5 of 8 pictures drawn"]


@pytest.mark.usefixtures("few")
def test_a_source_loads_in_processes_what_it_reads_one_by_one(pictures, monkeypatch):
    source = open_synthetic("flowers", name="x", num_examples=30, seed=SEED)
    assert source.read(7) == pictures[7]
    monkeypatch.setattr("trainer.data.sources.synthetic.source.draw_picture", refuse)
    source.load()
    assert list(source.encoded) == pictures
    monkeypatch.setattr(subprocess, "Popen", refuse)
    source.load()
