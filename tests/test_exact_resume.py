"""A run that is killed, or stopped, anywhere and continued is the run that was not, to the last bit."""

import itertools
import json
import os
import re
import signal
from pathlib import Path

import pytest

from tests.conftest import make_flower_folder
from tests.helpers.continuations import Killed, told_faults, while_recovering
from tests.helpers.interruptions import Kill, changed, read_disk, torn
from tests.helpers.processes import run_program
from trainer.loop import standard_callbacks
from trainer.run import session
from trainer.runtime import StopSignal
from trainer.values import Interrupted

PHASES = (
    "--phase=name=a; for=4steps; train=head; lr=0.05; lr_schedule=cosine; warmup=2steps; average=ema(0.6)",
    "--phase=name=b; for=5steps; train=all; lr=0.02; optimizer=sgd; bn=batch; augment=flip,mixup(0.5); "
    "average=ema(0.5); lr_schedule=plateau(0.5,1)",
)
TOTAL_STEPS = 9
SETTINGS = (
    "--image_size=8", "--splits=10,4,4", "--batch_size=4", "--head=mlp(6)", "--dropout=0.3",
    "--resize=crop", "--antialias", "--augment=flip,crop(0.5)", "--log_every=2steps",
    "--evaluate_every=3steps", "--save_every=3steps",
    "--keep_checkpoints=2", "--precision=float32", "--progress=plain", "--accumulate=2", "--clip_norm=1",
    "--histograms_every=3steps", "--figures_every=6steps", "--embeddings=0",
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tiny_backbone, tmp_path_factory):
    """Went through unbroken, and has been observed."""
    pictures = make_flower_folder(tmp_path_factory.mktemp("pictures"))
    for path in pictures.rglob("*.jpg"):
        # What is older than two seconds is not looked at again when a run goes on.
        os.utime(path, (1e9, 1e9))
    options = (f"--source=folder:{pictures}", f"--backbone=savedmodel:{tiny_backbone}", *SETTINGS, *PHASES)
    return Killed(options, tmp_path_factory.mktemp("killed"), warm=True)


def test_the_reference_run_is_worth_comparing_with(run):
    expected = run.expected
    lines = [json.loads(line) for line in expected["metrics.jsonl"].splitlines()]
    assert [(line["split"], line["step"]) for line in lines] == [
        ("train", 2), ("validation", 3), ("train", 4), ("validation", 4), ("train", 6), ("validation", 6),
        ("train", 8), ("train", 9), ("validation", 9), ("test", lines[-1]["step"]),
    ]  # fmt: skip
    assert [line["phase"] for line in lines[:-1]] == ["a"] * 4 + ["b"] * 5
    losses = [line["loss"] for line in lines if line["split"] == "validation"]
    assert len(set(losses)) == len(losses)
    for split in ("train", "validation", "test"):
        steps = [line["step"] for line in lines if line["split"] == split]
        for tag in ("loss", "accuracy"):
            assert [step for step, _ in expected[f"TensorBoard, {split}: {tag}"]] == steps
    assert {name.removeprefix("TensorBoard, ") for name in expected if name.startswith("TensorBoard, ")} >= {
        "train: graph", "train: flagfile", "train: train_images/a", "train: train_images/b",
        "train: learning_rate", "train: gradient_norm", "train: manifest", "validation: learning_curves",
    }  # fmt: skip
    for tag, steps in {
        "train: head/logits/kernel": [0, 3, 4, 6, 9],
        "validation: confusion_matrix": [4, 6, 9],
        "validation: reliability": [4, 6, 9],
        "options: final/test_accuracy": [9],
    }.items():
        assert [step for step, _ in expected[f"TensorBoard, {tag}"]] == steps, tag
    assert expected["TensorBoard, train: graph"] == [True]
    kept = {Path(name).stem for name in expected["files"] if name.startswith("checkpoints/ckpt-")}
    assert kept == {"ckpt-6", "ckpt-9"}


def test_it_is_looked_at_between_any_two_side_effects(run):
    """From one kill to the next one file is written, moved or removed, or what TensorFlow writes at once."""
    last = {}
    for kill in run.kills:
        # What a store keeps appears whole, by a rename: all files of an entry are one.
        touched = {
            re.sub(r"(cache/probes)/\.?[0-9a-f]{64}.*", r"\1", one) for one in changed(last, kill.disk)
        }
        assert len(touched) <= 1 or re.search(": after (write|create|SaveV2)", kill.when), kill.when
        last = kill.disk
    touched = {name.rsplit("/", 1)[-1].split(".")[0] for kill in run.kills for name in kill.disk}
    assert {name.split("/")[-1].split(".")[-1] for kill in run.kills for name in kill.disk} >= {"scan"}
    assert touched >= {
        "lock", "splits", "flagfile", "run", "events", "metrics", "phase-0", "ckpt-3", "ckpt-4", "ckpt-6",
        "ckpt-9", "checkpoint", "confusion_matrix", "predictions", "",
    }  # fmt: skip
    assert len(run.kills) > 100


def test_killed_between_two_side_effects(run):
    """Every eighteenth of them, and the last two; `make test-slow` has all."""
    # The first has not begun, and the last is done.
    assert run.kills[0].disk == {}
    told_faults(run, [*run.kills[:-2:18], *run.kills[-2:]])


@pytest.mark.slow
def test_killed_between_any_two_side_effects(run):
    told_faults(run, run.kills)


@pytest.mark.slow
def test_killed_in_the_middle_of_any_write(run):
    kills = torn(run.kills, seed=0)
    assert len(kills) > 50
    told_faults(run, kills)


@pytest.mark.slow
def test_killed_again_before_it_has_recovered(run):
    # A checkpoint is half in place, and what was written after the one before it must be cut off.
    late = [kill for kill in run.kills if "before os.rename ckpt-9.index" in kill.when]
    # Nothing has been saved.
    early = [kill for kill in run.kills if "run/checkpoints" not in kill.disk]
    for first in (late[-1], early[-1]):
        again = while_recovering(run.observe(first))
        assert len(again) > 10
        told_faults(run, again)


@pytest.mark.slow
def test_killed_and_continued_with_nothing_kept_in_memory(run):
    # Of the first one there is nothing yet that it could go on with.
    first = max(at for at, kill in enumerate(run.kills) if "run/metrics.jsonl" not in kill.disk)
    told_faults(run, run.kills[first::25], warm=False)


KILLED = """
import os, signal, sys
from trainer.main import main
from trainer.record.summaries import Summaries

write = Summaries.scalars
def write_and_die(self, split, step, *values):
    write(self, split, step, *values)
    if (split, step) == ("train", 8):
        os.kill(os.getpid(), signal.SIGKILL)
Summaries.scalars = write_and_die
main(sys.argv)
"""


@pytest.mark.slow
def test_a_killed_process_loses_nothing_but_time(run):
    run.put_back(None)
    killed = run_program(run.arguments, code=KILLED)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    # Its checkpoint is older than what it had written.
    assert max(kept_checkpoints(run)) == 6
    assert json.loads((run.workdir / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 8
    with run.warm():
        assert run.start() == 0
    assert not run.differences()


def kept_checkpoints(run):
    found = (run.workdir / "checkpoints").glob("ckpt-*.json")
    return {int(path.stem.removeprefix("ckpt-")) for path in found}


@pytest.mark.parametrize("every", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_stopped_after_any_step_and_continued(run, every, monkeypatch):
    """One run is stopped after each step; from each, or each second one, another goes on to the end."""
    call, stopped = standard_callbacks.Stop.__call__, []

    def stop(self, state):
        self._requested = lambda: "enough"
        call(self, state)

    # Otherwise about once a second, which is after all nine.
    monkeypatch.setattr(standard_callbacks.Stop, "next_due", lambda self, step: step + 1)
    run.put_back(None)
    with run.warm(), monkeypatch.context() as patch:
        patch.setattr(standard_callbacks.Stop, "__call__", stop)
        for step in range(1, TOTAL_STEPS + 1):
            assert run.start() == 75
            assert max(kept_checkpoints(run)) == step
            stopped.append(Kill(f"stop after step {step}", read_disk(run.roots)))
    told_faults(run, stopped[::every], asked=True)


@pytest.mark.slow
def test_stopped_wherever_it_asks_whether_to_stop(run, monkeypatch):
    """Between steps, and between the batches of an evaluation."""
    monkeypatch.setattr(standard_callbacks.Stop, "next_due", lambda self, step: step + 1)
    for at in itertools.count(1):
        looks = itertools.count(1)

        def requested(self, looks=looks, at=at):
            return "enough" if next(looks) == at else ""

        run.put_back(None)
        with run.warm():
            with monkeypatch.context() as patch:
                patch.setattr(StopSignal, "requested", requested)
                status = run.start()
            if status == 0:
                break
            assert status == 75
            assert run.start() == 0
        assert not run.differences(asked=True), at
    # After nine steps and four evaluations, each of one batch, all is saved.
    assert at == 9 + 4 + 1


@pytest.mark.slow
def test_another_seed_gives_another_run_of_the_same_splits(run):
    run.put_back(None)
    assert run.start("--seed=1") == 0
    got, expected = run.left(), run.expected
    for name in (
        "checkpoints/ckpt-9.data-00000-of-00001", "metrics.jsonl", "TensorBoard, train: loss",
        "report/predictions.csv",
    ):  # fmt: skip
        assert got[name] != expected[name], name
    assert got["splits.json"] == expected["splits.json"]


def test_a_state_is_checked_before_it_is_saved_and_saved_before_it_is_scored(run, monkeypatch):
    orders = []

    def record(state, *, callbacks, **others):
        orders.append([type(callback).__name__ for callback in callbacks])
        raise Interrupted("enough")

    monkeypatch.setattr(session, "train", record)
    run.put_back(None)
    assert run.start() == 75
    assert orders == [
        ["Guard", "Log", "Histograms", "Save", "Evaluate", "Best", "Plateau", "Figures", "Stop"]
    ]
