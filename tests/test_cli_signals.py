"""Ctrl-C and SIGTERM: the run saves and says how to go on, and the same command does."""

import json
import re
import signal
import time

import pytest

from tests.conftest import make_flower_folder
from tests.helpers.processes import Program

STEPS = 4000


@pytest.fixture(scope="module")
def arguments(tmp_path_factory, tiny_backbone):
    root = tmp_path_factory.mktemp("signals")
    return [
        f"--source=folder:{make_flower_folder(root / 'pictures')}",
        f"--backbone=savedmodel:{tiny_backbone}",
        "--image_size=8",
        "--head=linear",
        "--splits=60%,20%,20%",
        "--batch_size=2",
        "--schedule=frozen",
        f"--frozen_for={STEPS}steps",
        "--log_every=50steps",
        f"--evaluate_every={STEPS}steps",
        f"--save_every={STEPS}steps",
        f"--workdir={root / 'run'}",
    ]


def steps_of(workdir):
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    # The last line may be in the middle of being written.
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    return [row["step"] for row in rows if row["split"] == "train"]


def stopped_by(number, arguments, workdir):
    """Runs the program until it has written something new, sends a signal, and returns how it ended."""
    before = len(steps_of(workdir))
    program = Program(arguments)
    while len(steps_of(workdir)) <= before:
        assert program.poll() is None, program.communicate()
        time.sleep(0.02)
    program.send_signal(number)
    out, err = program.communicate(timeout=120)
    return program.returncode, out, err


@pytest.mark.parametrize(
    "numbers",
    [
        (signal.SIGTERM,),
        pytest.param((signal.SIGINT, signal.SIGTERM, signal.SIGUSR1), marks=pytest.mark.slow),
    ],
    ids=["one", "each after the other"],
)
def test_a_stopped_run_goes_on(numbers, arguments, tmp_path, run_main):
    workdir = tmp_path / "run"
    arguments = [*arguments[:-1], f"--workdir={workdir}"]
    reached = 0
    for number in numbers:
        name = "Ctrl-C" if number == signal.SIGINT else number.name
        status, out, err = stopped_by(number, arguments, workdir)
        assert status == 75
        assert "Ctrl-C" not in out
        *more, last = err.splitlines()
        assert more in ([], ["stopping after the current step; Ctrl-C again to leave at once"])
        way_on = "everything is saved. Run the same command to continue"
        wanted = rf"{name}: stopped at step (\S+) of {STEPS:,}; {way_on}"
        assert re.fullmatch(wanted, last), err
        if reached:
            assert f"goes on from step {reached:,} of {STEPS:,}" in out
        reached = int(re.fullmatch(wanted, last)[1].replace(",", ""))
        assert steps_of(workdir)[-1] <= reached < STEPS
        assert (workdir / "checkpoints" / f"ckpt-{reached}.index").exists()
    # A shorter plan would be another run; this one is brought to its end.
    status, out, err = run_main(*arguments)
    assert (status, err) == (0, "")
    assert f"goes on from step {reached:,} of {STEPS:,}" in out
    assert steps_of(workdir) == sorted({*range(50, STEPS + 1, 50), STEPS})


# `... | tee log` and Ctrl-C, which reaches both: tee is gone when the run has something to say.
WITH_A_READER = """
import os, signal, sys, threading
from trainer.main import program

reader, writer = os.pipe()
os.dup2(writer, 1)
os.close(writer)

def read():
    seen = b""
    while b"validation loss" not in seen:
        seen += os.read(reader, 4096)
    os.close(reader)
    os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=read, daemon=True).start()
program()
"""


@pytest.mark.parametrize("progress", ["bar", pytest.param("plain", marks=pytest.mark.slow)])
def test_the_reader_of_a_pipe_is_gone_first(arguments, tmp_path, progress):
    shown = ("--evaluate_every=50steps", f"--progress={progress}", f"--workdir={tmp_path / 'run'}")
    program = Program([*arguments, *shown], code=WITH_A_READER)
    _, err = program.communicate()
    assert program.returncode == 75, err
    assert "Traceback" not in err
    # A bar ends with a line of its own.
    line = rf"Ctrl-C: stopped at step \S+ of {STEPS:,}; everything is saved. Run the same command to continue"
    assert re.fullmatch(line, err.splitlines()[-1]), err
    assert progress == "bar" or len(err.splitlines()) == 1
