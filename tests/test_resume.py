"""A run that is interrupted anywhere and continued is the run that was not, to the last bit."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow as tf

from tests.record.events import scalars

PHASES = (
    "--phase=name=a; for=4steps; train=head; lr=0.05; lr_schedule=cosine; warmup=2steps",
    "--phase=name=b; for=5steps; train=all; lr=0.02; optimizer=sgd; bn=batch; augment=flip",
)
TOTAL_STEPS = 9
SETTINGS = (
    "--image_size=8", "--splits=10,4,4", "--batch_size=4", "--head=mlp(6)", "--dropout=0.3",
    "--augment=flip,crop(0.5)", "--log_every=2steps", "--evaluate_every=3steps", "--save_every=3steps",
    "--keep_checkpoints=2", "--progress=plain",
)  # fmt: skip


@pytest.fixture(scope="module")
def options(tiny_backbone, flower_folder, tmp_path_factory):
    pictures = flower_folder(tmp_path_factory.mktemp("pictures"))
    return [f"--source=folder:{pictures}", f"--backbone=savedmodel:{tiny_backbone}", *SETTINGS, *PHASES]


def start(options, workdir, *, seed=0, stop_after=None):
    """Runs the real program in this process; it is asked to stop after `stop_after` steps of its own."""
    from trainer.loop.hooks import Stop
    from trainer.main import main
    from trainer.runtime import StopSignal

    looks = []

    def requested(self):
        looks.append(self)
        return len(looks) == stop_after

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StopSignal, "requested", requested)
        # Otherwise about once a second, which is after all nine.
        patch.setattr(Stop, "next_due", lambda self, step: step + 1)
        return main(["trainer", *options, f"--workdir={workdir}", f"--seed={seed}"])


def variables(path):
    reader = tf.train.load_checkpoint(str(path))
    names = [name for name in reader.get_variable_to_shape_map() if name.startswith("variables/")]
    return {name: reader.get_tensor(name).tobytes() for name in sorted(names)}


def points(workdir):
    """Every point of every curve; times differ from run to run."""
    found = {}
    for split in ("train", "validation", "test"):
        for tag, values in scalars(workdir / split).items():
            if tag not in ("images_per_second", "input_wait_share"):
                found[split, tag] = sorted(values)
    return found


def results(workdir):
    """All that a run leaves which must not depend on interruptions."""
    [best] = (workdir / "checkpoints" / "best").glob("ckpt-*.index")
    return {
        "final": variables(workdir / "checkpoints" / f"ckpt-{TOTAL_STEPS}"),
        "best": {best.name: variables(best.with_suffix(""))},
        "kept": sorted(path.name for path in (workdir / "checkpoints").glob("ckpt-*.index"))[-1],
        "metrics.jsonl": (workdir / "metrics.jsonl").read_bytes(),
        **{path.name: path.read_bytes() for path in sorted((workdir / "report").iterdir())},
        "points": points(workdir),
    }


def assert_same(got, expected):
    assert got.keys() == expected.keys()
    for name in expected:
        assert got[name] == expected[name], name


@pytest.fixture(scope="module")
def unbroken(options, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("unbroken")
    assert start(options, workdir) == 0
    return workdir


@pytest.fixture(scope="module")
def stopped(options, tmp_path_factory):
    """{k: workdir stopped after step k}, of one run that was stopped and continued after every step."""
    folder, workdir = tmp_path_factory.mktemp("stopped"), tmp_path_factory.mktemp("step_by_step")
    for step in range(1, TOTAL_STEPS + 1):
        assert start(options, workdir, stop_after=1) == 75
        shutil.copytree(workdir, folder / str(step))
    return {step: folder / str(step) for step in range(1, TOTAL_STEPS + 1)}


def test_the_reference_run_is_worth_comparing_with(unbroken):
    lines = [json.loads(line) for line in (unbroken / "metrics.jsonl").read_text().splitlines()]
    assert [(line["split"], line["step"]) for line in lines] == [
        ("train", 2), ("validation", 3), ("train", 4), ("validation", 4), ("train", 6), ("validation", 6),
        ("train", 8), ("train", 9), ("validation", 9), ("test", lines[-1]["step"]),
    ]  # fmt: skip
    assert [line["phase"] for line in lines[:-1]] == ["a"] * 4 + ["b"] * 5
    losses = [line["loss"] for line in lines if line["split"] == "validation"]
    assert len(set(losses)) == len(losses)
    found = points(unbroken)
    for (split, tag), values in found.items():
        assert values == [
            (line["step"], pytest.approx(line[tag])) for line in lines if line["split"] == split
        ]
    assert {tag for _, tag in found} == {"loss", "accuracy", "learning_rate", "gradient_norm"}
    names = variables(unbroken / "checkpoints" / "ckpt-9")
    assert any("moving_mean" in name for name in names)
    assert any("optimizer" in name for name in names)


@pytest.mark.parametrize("step", range(1, TOTAL_STEPS + 1))
def test_stopped_after_any_step_and_continued(options, unbroken, stopped, step):
    assert Path(tf.train.latest_checkpoint(str(stopped[step] / "checkpoints"))).name == f"ckpt-{step}"
    assert start(options, stopped[step]) == 0
    assert_same(results(stopped[step]), results(unbroken))


def test_run_again_when_done_changes_nothing(options, unbroken, tmp_path):
    workdir = Path(shutil.copytree(unbroken, tmp_path / "again"))
    assert start(options, workdir) == 0
    assert_same(results(workdir), results(unbroken))


def test_the_same_seed_gives_the_same_run_and_another_seed_another(options, unbroken, tmp_path):
    assert start(options, tmp_path / "same") == 0
    assert_same(results(tmp_path / "same"), results(unbroken))
    assert start(options, tmp_path / "other", seed=1) == 0
    one, other = results(unbroken), results(tmp_path / "other")
    assert one["final"].keys() == other["final"].keys()
    for name in ("final", "metrics.jsonl", "points", "test_predictions.csv"):
        assert one[name] != other[name], name
    # The pictures of each split are the same whatever the seed.
    assert (unbroken / "splits.json").read_bytes() == (tmp_path / "other" / "splits.json").read_bytes()


def test_a_state_is_checked_before_it_is_saved_and_saved_before_it_is_scored(options, tmp_path, monkeypatch):
    from trainer.commands import train
    from trainer.loop.hooks import Interrupted

    orders = []

    def record(state, *, hooks, **others):
        orders.append([type(hook).__name__ for hook in hooks])
        raise Interrupted("enough")

    monkeypatch.setattr(train, "train", record)
    assert start(options, tmp_path) == 75
    assert orders == [["Guard", "Log", "Save", "Evaluate", "Best", "Stop"]]


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


def test_a_killed_process_loses_nothing_but_time(options, unbroken, tmp_path):
    command = [sys.executable, "-c", KILLED, *options, f"--workdir={tmp_path}"]
    killed = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()[-2000:]
    # Its checkpoint is older than what it had written.
    assert Path(tf.train.latest_checkpoint(str(tmp_path / "checkpoints"))).name == "ckpt-6"
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 8
    again = [sys.executable, "-m", "trainer.main", *options, f"--workdir={tmp_path}"]
    subprocess.run(again, cwd=Path(__file__).parents[1], capture_output=True, check=True)
    assert_same(results(tmp_path), results(unbroken))
