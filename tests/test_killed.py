"""Real processes, killed or asked to stop at random moments, come to what one came to that was left alone.

$KILLS says how often they are killed (60), $STOPS how often each signal asks them to stop (10), $KILL_SEED
when (0), $KILL_FOLDER where the folders of histories that went wrong are kept.
"""

import itertools
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.run_results import differences, kept_features, results, without_older

pytestmark = pytest.mark.slow
PROJECT = Path(__file__).parents[1]
KILLS = int(os.environ.get("KILLS", "60"))
STOPS = int(os.environ.get("STOPS", "10"))
SEED = int(os.environ.get("KILL_SEED", "0"))
AT_ONCE = 2
# Histories would not end otherwise where to start takes longer than to go on.
MOST_INTERRUPTIONS = 6

COMMON = (
    "--workdir=run", "--source=synthetic:flowers", "--synthetic_examples=60", "--splits=36,12,12",
    "--image_size=64", "--backbone=efficientnet_lite0", "--batch_size=8", "--precision=float32",
    "--log_every=2steps", "--save_every=3steps", "--evaluate_every=4steps", "--keep_checkpoints=2",
    "--progress=plain",
)  # fmt: skip
RUNS = {
    "frozen": (
        "--schedule=frozen", "--frozen_for=60epochs", "--head=mlp(32)", "--dropout=0.3",
        "--feature_cache=require",
    ),
    "finetune": (
        "--schedule=finetune",
        "--finetune_for=6epochs",
        "--dropout=0.3",
        "--augment=flip,crop(0.7)",
    ),
    "two_phase": (
        "--phase=name=head; for=20epochs; train=head; lr=0.01; lr_schedule=cosine; warmup=4steps",
        "--phase=name=top; for=6epochs; train=head backbone/blocks_15/.*; bn=batch; lr=0.005; optimizer=sgd; "
        "augment=flip",
    ),
}  # fmt: skip
# What the last line says that a process has printed.
DOING = {
    "": "start", "pictures": "before training", "splits": "before training",
    "backbone": "before training", "features": "features", "goes on": "before training",
    "phase": "training", "step": "training", "test accuracy": "end", "report": "end", "results": "end",
    "TensorBoard": "end",
}  # fmt: skip


@dataclass
class History:
    """A run that is interrupted now and then, and started again until it ends."""

    name: str
    folder: Path
    interruptions: list[str] = field(default_factory=list)

    def start(self) -> "Started":
        hidden = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "PYTEST_CURRENT_TEST")
        env = {name: value for name, value in os.environ.items() if name not in hidden}
        env |= {
            "XDG_CACHE_HOME": str(self.folder / "cache"),
            "PYTHONPATH": str(PROJECT),
            "PYTHONUNBUFFERED": "1",
        }
        out = self.folder / f"{len(self.interruptions)}.out"
        with open(out, "wb") as file:
            # In its own folder, so that the options are those of every other history.
            process = subprocess.Popen(
                [sys.executable, "-m", "trainer.main", *COMMON, *RUNS[self.name]],
                cwd=self.folder, env=env, stdout=file, stderr=subprocess.STDOUT,
            )  # fmt: skip
        return Started(process, out)

    def left(self) -> dict[str, Any]:
        return results(self.folder / "run") | kept_features(self.folder / "cache" / "hub-trainer")


@dataclass
class Started:
    process: subprocess.Popen
    out: Path

    def printed(self) -> str:
        return self.out.read_text(errors="replace")

    def doing(self) -> str:
        """Returns what it was about by what it has printed."""
        lines = [line for line in self.printed().splitlines() if line]
        last = lines[-1] if lines else ""
        found = [what for begin, what in DOING.items() if begin and last.startswith(begin)]
        what = found[0] if found else DOING[""] if not lines else f"? {last}"
        phases = re.findall(r"^phase (\w+),", self.printed(), re.MULTILINE)
        return f"{what} {phases[-1]}" if what == "training" and phases else what


@dataclass
class Reference:
    """What a run that was left alone has left, and how long it took."""

    left: dict[str, Any]
    secs: float


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    folder = tmp_path_factory.mktemp("references")

    def run(name: str) -> Reference:
        history = prepared(name, folder / name)
        start = time.monotonic()
        started = history.start()
        assert started.process.wait(timeout=900) == 0, started.printed()
        return Reference(history.left(), time.monotonic() - start)

    # At once, as later, when it matters how long they take.
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return dict(zip(RUNS, pool.map(run, RUNS), strict=True))


def prepared(name: str, folder: Path) -> History:
    """Makes the folder of a history, which begins with an empty cache."""
    folder.mkdir(parents=True)
    return History(name, folder)


class Campaign:
    """Histories, two at a time, until there have been enough interruptions."""

    def __init__(
        self,
        references: dict[str, Reference],
        folder: Path,
        *,
        wanted: int,
        interrupt: Callable[[Started, str], str],
        asked: bool,
    ):
        """Notes what to do.

        Args:
          references: the runs that were left alone.
          folder: for the histories.
          wanted: how many interruptions.
          interrupt: (process, what it is doing) -> what was done to it, after it has ended.
          asked: whether the interrupted runs save, so that their older checkpoints are others.
        """
        self.faults: list[str] = []
        self.interruptions: list[str] = []
        self._references, self._folder, self._wanted = references, folder, wanted
        self._interrupt, self._asked = interrupt, asked
        self._numbers = itertools.count()
        self._lock = threading.Lock()

    def run(self) -> None:
        start = time.monotonic()
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for worker in [pool.submit(self._work) for _ in range(AT_ONCE)]:
                worker.result()
        print(f"{len(self.interruptions)} interruptions, {time.monotonic() - start:.0f} s, seed {SEED}")
        for what, count in Counter(re.sub("^[^:]*: ", "", one) for one in self.interruptions).most_common():
            print(f"{count:4} {what}")
        if self.faults:
            pytest.fail("\n".join(self.faults), pytrace=False)

    def _work(self) -> None:
        while len(self.interruptions) < self._wanted:
            with self._lock:
                number = next(self._numbers)
            name = list(RUNS)[number % len(RUNS)]
            history = prepared(name, self._folder / str(number))
            try:
                self._live(history, self._references[name], random.Random(f"{SEED} {number}"))
                got, expected = history.left(), self._references[name].left
                if self._asked:
                    got, expected = without_older(got), without_older(expected)
                wrong = differences(got, expected)
            except Exception as error:
                wrong = [repr(error)]
            if wrong:
                told = f"history {number} ({name}) of seed {SEED}, interrupted at {history.interruptions}"
                self.faults += [f"{told}: {fault}" for fault in wrong]
                if kept := os.environ.get("KILL_FOLDER"):
                    shutil.copytree(history.folder, Path(kept) / f"{SEED}-{number}", dirs_exist_ok=True)
            shutil.rmtree(history.folder)

    def _live(self, history: History, reference: Reference, chance: random.Random) -> None:
        """Starts the run again and again until it has come to its end."""
        while True:
            # Of all the time that it takes, the start and the end of the process with it.
            moment_secs = chance.uniform(0, reference.secs)
            started = history.start()
            try:
                is_last = len(history.interruptions) == MOST_INTERRUPTIONS
                status = started.process.wait(timeout=900 if is_last else moment_secs)
            except subprocess.TimeoutExpired:
                what = self._interrupt(started, started.doing())
                history.interruptions.append(f"{moment_secs:.2f} s: {history.name}, {what}")
                with self._lock:
                    self.interruptions.append(history.interruptions[-1])
                continue
            assert status == 0, f"status {status}: {started.printed()[-2000:]}"
            return


def test_killed_at_random_moments(references, tmp_path):
    def kill(started: Started, doing: str) -> str:
        started.process.kill()
        assert started.process.wait() == -signal.SIGKILL
        folder = started.out.parent
        writing = sorted(
            {path.parent.name for path in folder.rglob(".part-*")}
            | {path.name.split(".")[-1] for path in folder.rglob("hub-trainer/*/.*.tmp")}
        )
        return ", ".join([doing, *(f"in the middle of writing to {name}" for name in writing)])

    Campaign(references, tmp_path, wanted=KILLS, interrupt=kill, asked=False).run()


def test_asked_to_stop_at_random_moments(references, tmp_path):
    numbers = itertools.cycle([signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])

    def ask(started: Started, doing: str) -> str:
        number = next(numbers)
        started.process.send_signal(number)
        status = started.process.wait(timeout=300)
        out = started.printed()
        told = "Ctrl-C" if number == signal.SIGINT else number.name
        if status == 75:
            way_on = r"Run the same command (to continue|to start again|again)"
            assert re.fullmatch(rf"{told}: stopped.*\. {way_on}", out.splitlines()[-1]), out
        elif "TensorBoard:" in out:
            assert status in (0, -number), out
        else:
            # Before anything listens to signals, they do what they do to any process.
            assert doing == "start", f"{told} at {doing!r} gave status {status}: {out}"
            assert status in (-number, 130, 1), out
        assert "Traceback" not in out or doing == "start", out
        return f"{doing}: {told}, status {status}"

    Campaign(references, tmp_path, wanted=3 * STOPS, interrupt=ask, asked=True).run()
