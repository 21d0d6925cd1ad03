"""A sweep that several processes share through a real PostgreSQL, which goes away in the middle."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from tests.conftest import make_flower_folder
from tests.helpers.processes import Program
from trainer.store.files import read_json

BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1:]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not BINARIES, reason="PostgreSQL is not installed"),
]
# Dead trials are found within seconds rather than minutes.
CODE = """
import sys, trainer.run.study as study
study.HEARTBEAT_SECS, study.GRACE_SECS = 1, 6
from trainer.main import program
program()
"""
TRIALS = 30


class Server:
    """A server in a folder of its own, on 127.0.0.1."""

    def __init__(self, folder):
        self.folder = folder
        with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as free:
            self.port = free.getsockname()[1]
        # It does not run as root.
        self._as = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
        folder.mkdir()
        if self._as:
            shutil.chown(folder, "postgres")
            for parent in folder.parents[:3]:
                parent.chmod(parent.stat().st_mode | 0o011)
        self._run("initdb", "-D", folder / "data", "-A", "trust", "-U", "tester", "--no-sync")
        self.start()
        self._run("createdb", "-h", "127.0.0.1", "-p", self.port, "-U", "tester", "sweeps")
        self.url = f"postgresql+psycopg://tester@127.0.0.1:{self.port}/sweeps"

    def start(self):
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -k {self.folder} -c fsync=off"
        self._run(
            "pg_ctl", "-D", self.folder / "data", "-l", self.folder / "log", "-w", "-o", options, "start"
        )

    def stop(self, how="immediate"):
        self._run("pg_ctl", "-D", self.folder / "data", "-w", "-m", how, "stop")

    def _run(self, name, *arguments):
        command = [*self._as, str(BINARIES[0] / name), *map(str, arguments)]
        subprocess.run(command, check=True, cwd="/", stdout=subprocess.DEVNULL)


@pytest.fixture
def server(tmp_path):
    made = Server(tmp_path / "postgres")
    yield made
    made.stop("fast")


def begun(*folders):
    return [len([*(folder / "trials").glob("[0-9]" * 4)]) for folder in folders]


def test_two_of_three_die_and_the_server_is_killed_and_comes_back(server, tmp_path, tiny_backbone):
    pictures = make_flower_folder(tmp_path / "pictures", n=20)
    flags = [
        "sweep", f"--source=folder:{pictures}", f"--backbone=savedmodel:{tiny_backbone}", "--image_size=8",
        "--splits=60%,40%", "--batch_size=8", "--precision=float32", "--schedule=frozen", "--head=mlp(4)",
        "--frozen_for=60epochs", f"--cache_dir={tmp_path / 'cache'}", "--metric=validation_loss",
        f"--study={server.url}", f"--trials={TRIALS}", "--sampler=random", "--repeat_seeds=0",
        "--search=frozen_learning_rate=log(1e-3,1e-1)", "--search=dropout=uniform(0.1,0.6)",
    ]  # fmt: skip
    folders = [tmp_path / name for name in ("a", "b", "c")]
    programs = [Program([*flags, f"--workdir={folder}"], code=CODE) for folder in folders[:2]]

    def wait(*counts):
        while not all(there >= wanted for there, wanted in zip(begun(*folders), counts, strict=True)):
            for program in programs:
                assert program.poll() in (None, -signal.SIGKILL), program.communicate()
            time.sleep(0.02)

    wait(1, 1, 0)
    for program in programs:
        program.send_signal(signal.SIGKILL)
    done = sum(begun(*folders))
    assert done < TRIALS - 10
    programs.append(Program([*flags, f"--workdir={folders[2]}"], code=CODE))
    wait(1, 1, 2)
    server.stop()
    time.sleep(3)
    server.start()
    out, err = programs[2].communicate(timeout=600)
    assert programs[2].returncode == 0, (out, err)
    assert "the database does not answer" in out + err
    found = read_json(folders[2] / "sweep.json")["trials"]
    assert [one["state"] for one in found] == ["done"] * TRIALS
    assert len({str(one["options"]) for one in found}) == TRIALS
