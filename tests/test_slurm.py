"""The job of docs/cluster.md on a real SLURM with two nodes: stopped, queued again, a worker killed."""

import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import make_flower_folder
from tests.helpers.slurm import MISSING, Slurm
from trainer.main import main
from trainer.store.files import read_json

ROOT = Path(__file__).parent.parent
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"no {', '.join(MISSING)}"),
    pytest.mark.skipif(os.geteuid() != 0, reason="not root"),
]


@pytest.fixture
def slurm(tmp_path):
    made = Slurm(tmp_path / "slurm")
    yield made
    made.close()


def script():
    """Returns the documented one, for as many machines as there are here, without GPUs."""
    text = (ROOT / "docs" / "cluster.md").read_text()
    [found] = re.findall(r"```sh\n(#!/bin/bash\n.*?)```", text, re.DOTALL)
    assert "--nodes=4 " in found
    assert " --gpus-per-task=1" in found
    return found.replace("--nodes=4 ", "--nodes=2 ").replace(" --gpus-per-task=1", "")


def last_step(workdir):
    path = workdir / "metrics.jsonl"
    steps = re.findall(r'"step": (\d+)', path.read_text()) if path.exists() else []
    return int(steps[-1]) if steps else 0


def pid_of_worker(number):
    """Returns the process of a worker: that of Python, not of the shell or srun around it."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().split(b"\0")
            around = (path / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"trainer.main" in words and f"SLURM_PROCID={number}".encode() in around:
            return int(path.name)
    raise AssertionError("it does not run")


def queued_again(slurm, job):
    """Waits until a job that has ended is queued again, and runs."""
    slurm.wait_for(job, "PENDING", "COMPLETED", "FAILED")
    slurm.wait_for(job, "RUNNING", "COMPLETED", "FAILED")
    assert slurm.state(job) == "RUNNING"


def test_the_documented_job_goes_through_to_the_numbers_of_one_worker(slurm, tmp_path, tiny_backbone):
    pictures = make_flower_folder(tmp_path / "pictures", n=20)
    flags = [
        f"--source=folder:{pictures}", f"--backbone=savedmodel:{tiny_backbone}", "--image_size=8",
        "--splits=36,12,12", "--batch_size=4", "--head=linear", "--precision=float32", "--embeddings=0",
        "--phase=for=160epochs; train=all; lr=0.01; augment=flip", "--evaluate_every=100steps",
        "--log_every=50steps", "--save_every=200steps", "--progress=plain",
    ]  # fmt: skip
    (tmp_path / "mine.flags").write_text("\n".join(flags))
    (tmp_path / "job.sh").write_text(script())
    workdir, output = tmp_path / "runs" / "mine", tmp_path / "out.txt"
    python = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {"HOME": str(tmp_path), "PATH": python, "PYTHONPATH": str(ROOT)}
    os.chdir(tmp_path)
    try:
        job = slurm.submit(tmp_path / "job.sh", output=output, environment=environment)
    finally:
        os.chdir(ROOT)

    def wait_for_step(step):
        ends = time.monotonic() + 180
        while last_step(workdir) < step:
            assert time.monotonic() < ends, output.read_text()
            time.sleep(0.05)

    wait_for_step(100)
    slurm.run("scancel", "--signal=USR1", job)
    queued_again(slurm, job)
    told = output.read_text()
    assert told.count("workers:     worker 0 (n1:") >= 1
    assert told.count("SIGUSR1: stopped at step ") == 2
    first = last_step(workdir)
    wait_for_step(first + 300)
    os.kill(pid_of_worker(1), signal.SIGKILL)
    queued_again(slurm, job)
    assert "worker 1 (n2:" in output.read_text().partition("goes on from step")[2]
    slurm.wait_for(job, "COMPLETED", "FAILED", "PENDING")
    assert slurm.state(job) == "COMPLETED", output.read_text()
    assert output.read_text().count("goes on from step") == 2
    alone = tmp_path / "alone"
    assert main(["trainer", "train", *flags, f"--workdir={alone}", "--strategy=one"]) == 0
    found, expected = (read_json(run / "report" / "metrics.json") for run in (workdir, alone))
    assert found["num_correct"] == expected["num_correct"]
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-3)
