"""Ctrl-C and SIGTERM: the run saves and says how to go on, and the same command does."""

import json
import re
import signal
import time
from pathlib import Path

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


def test_a_stopped_run_goes_on(arguments, run_main):
    workdir = Path(arguments[-1].removeprefix("--workdir="))
    reached = 0
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        name = "Ctrl-C" if number == signal.SIGINT else number.name
        status, out, err = stopped_by(number, arguments, workdir)
        assert status == 75
        assert err == "\nstopping after the current step; Ctrl-C again to leave at once\n"
        last = out.splitlines()[-1]
        wanted = rf"{name}: stopped at step (\S+) of {STEPS:,} and saved; the same command goes on from there"
        assert re.fullmatch(wanted, last), out
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
