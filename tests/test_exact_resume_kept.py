"""Killed anywhere and continued: with kept features, batches left out, bad pictures, checkpoints by time."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tests.conftest import make_flower_folder
from tests.helpers.continuations import Killed, told_faults, while_recovering
from tests.helpers.feature_runs import tiny_net
from tests.helpers.interruptions import torn
from trainer.loop import standard_callbacks
from trainer.loop.state import TrainState
from trainer.precision import Choice, choice, supported
from trainer.runtime import StopSignal

COMMON = ("--image_size=8", "--batch_size=4", "--progress=plain")
# Where there is nothing about them that is not the same in other runs.
PLAIN = ("--embeddings=0", "--figures_every=")


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    """A phase on features of the whole network, one on what comes to its last layer; each computed once."""
    pictures = make_flower_folder(tmp_path_factory.mktemp("pictures"), n=5)
    for path in pictures.rglob("*.jpg"):
        # What is older than two seconds is not looked at again when a run goes on.
        os.utime(path, (1e9, 1e9))

    def measure(make, *, what, candidates, here, clock):
        return Choice("float32", dict.fromkeys(candidates, 1.0), what, here, "2001-09-09T01:46:40+00:00")

    with tiny_net(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(choice, "measure", measure)
        yield Killed(
            (
                f"--source=folder:{pictures}", "--backbone=keras:TinyNet", "--weights=none", "--splits=7,4,4",
                "--split_order=take_skip",  # With it the second phase is the better one.
                "--head=mlp(6)", "--dropout=0.3", "--feature_cache=require", "--log_every=2steps",
                "--figures_every=",
                "--evaluate_every=3steps", "--save_every=3steps",
                "--phase=name=head; for=3steps; train=head; lr=0.05",
                "--phase=name=top; for=3steps; train=head backbone/last.*; lr=0.02; optimizer=sgd",
                *COMMON,
            ),
            tmp_path_factory.mktemp("features"),
            warm=True,
        )  # fmt: skip


@pytest.fixture(scope="module")
def rollback(tmp_path_factory):
    """A picture that no number comes of is among those that train, and one that cannot be read."""
    pictures = tmp_path_factory.mktemp("pictures")
    for split, n in (("train", 3), ("validation", 2), ("test", 2)):
        make_flower_folder(pictures / split, n=n)
    Image.fromarray(np.zeros((10, 12, 3), np.uint8)).save(pictures / "train" / "red" / "000.jpg")
    (pictures / "train" / "blue" / "000.jpg").write_text("no picture")
    module = tf.train.Checkpoint()
    # Of a black picture, log(0) is infinite, and the softmax of it is none.
    light = tf.function(lambda inputs, training=False: tf.math.log(tf.reduce_mean(inputs, [1, 2])))
    for training in (True, False):
        light.get_concrete_function(tf.TensorSpec([None, 8, 8, 3]), training)
    module.__call__ = light
    module.variables, module.trainable_variables, module.regularization_losses = [], [], []
    tf.saved_model.save(module, str(folder := tmp_path_factory.mktemp("light") / "module"))
    return Killed(
        (
            f"--source=folder:{pictures}", f"--backbone=savedmodel:{folder}", "--head=linear",
            "--splits=train,validation,test", "--on_bad_image=skip", "--schedule=frozen",
            "--frozen_for=4steps", "--seed=6", "--log_every=3steps", "--save_every=2steps",
            "--evaluate_every=4steps", "--on_nonfinite=rollback", "--precision=float32",
            "--feature_cache=off", *PLAIN, *COMMON,
        ),
        tmp_path_factory.mktemp("rollback"),
        warm=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def by_time(tmp_path_factory, tiny_backbone):
    """A checkpoint is written whenever the run looks at the clock, which is after each step."""
    pictures = make_flower_folder(tmp_path_factory.mktemp("pictures"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(standard_callbacks.Stop, "next_due", lambda self, step: step + 1)
        run = Killed(
            (
                f"--source=folder:{pictures}", f"--backbone=savedmodel:{tiny_backbone}", "--head=linear",
                "--splits=10,4,4", "--phase=for=3steps; train=all; bn=batch", "--save_every=100steps",
                "--save_every_secs=1e-9", "--keep_checkpoints=2", "--precision=float32", *PLAIN, *COMMON,
            ),
            tmp_path_factory.mktemp("by_time"),
            warm=True,
        )  # fmt: skip
        # What comes before is as in the others.
        run.kills = [kill for kill in run.kills if "run/checkpoints" in kill.disk]
        yield run


@pytest.fixture(scope="module")
def early(tmp_path_factory, tiny_backbone):
    """No evaluation but the first of a phase is good enough, so that each phase ends before its time."""
    pictures = make_flower_folder(tmp_path_factory.mktemp("pictures"))
    run = Killed(
        (
            f"--source=folder:{pictures}", f"--backbone=savedmodel:{tiny_backbone}", "--head=linear",
            "--splits=10,4,4", "--phase=name=a; for=7steps; train=head; average=ema(0.5)",
            "--phase=name=b; for=6steps; train=all; lr_schedule=plateau(0.5,1)", "--save_every=3steps",
            "--evaluate_every=2steps", "--early_stop=loss", "--patience=1", "--min_change=1000",
            "--precision=float32", "--figures_every=100steps", "--embeddings=0", *COMMON,
        ),
        tmp_path_factory.mktemp("early"),
        warm=True,
    )  # fmt: skip
    # What comes before is as in the others.
    run.kills = [kill for kill in run.kills if "run/checkpoints" in kill.disk]
    return run


RUNS = (
    "features",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("rollback", "by_time", "early")),
)


@pytest.fixture(params=RUNS)
def run(request):
    return request.getfixturevalue(request.param)


def test_the_run_with_features_is_worth_comparing_with(features):
    kept = [json.loads(path.read_text()) for path in features.cache.glob("features/*/entry.json")]
    assert sorted((one["describe"].split()[1].rstrip(","), one["key"]["network"]["cut"]) for one in kept) == [
        ("test", "features"), ("test", "middle_relu"), ("train", "features"), ("train", "middle_relu"),
        ("validation", "features"), ("validation", "middle_relu"),
    ]  # fmt: skip
    names = {name for kill in features.kills for name in kill.disk}
    assert "run/validation/projector_config.pbtxt" in names
    parts = [".tmp/features.npy", ".tmp/entry.json", ".lock", "cache/scans/"]
    # With nothing to choose from, nothing is measured.
    parts += ["cache/precision/"] if len(supported()) > 1 else []
    assert all(any(part in name for name in names) for part in parts)


@pytest.mark.slow
def test_the_run_that_rolls_back_is_worth_comparing_with(rollback):
    noted = rollback.expected["run.json"]["rollbacks"]
    assert [(one["step"], one["back_to"]) for one in noted] == [(1, 0), (3, 2)]
    assert all("train/red/000.jpg" in one["examples"] for one in noted)
    left_out = json.loads(rollback.expected["splits.json"])["left_out"]
    assert [name for name, _ in left_out] == ["train/blue/000.jpg"]


@pytest.mark.slow
def test_the_run_that_saves_by_time_is_worth_comparing_with(by_time):
    saved = {Path(name).name for kill in by_time.kills for name in kill.disk if "/checkpoints/ckpt-" in name}
    assert {f"ckpt-{step}.json" for step in (1, 2, 3)} <= saved


@pytest.mark.slow
def test_the_run_with_phases_that_end_early_is_worth_comparing_with(early):
    lines = [json.loads(line) for line in early.expected["metrics.jsonl"].splitlines()]
    evaluated = [(line["phase"], line["step"]) for line in lines if line["split"] == "validation"]
    assert evaluated == [("a", 2), ("a", 4), ("b", 8), ("b", 10)]
    # Each phase's last evaluation, though it was to go on.
    assert [step for step, _ in early.expected["TensorBoard, validation: reliability"]] == [4, 10]


@pytest.mark.parametrize(("which", "times"), [(1, 2), pytest.param(2, 1, marks=pytest.mark.slow)])
def test_stopped_when_a_phase_has_just_ended_early(early, which, times, monkeypatch):
    """The signal comes with the evaluation that ends it; of the first phase, with the one made again, too."""
    end_phase, ended = TrainState.end_phase, []

    def end(self):
        end_phase(self)
        ended.append(self.step)

    early.put_back(None)
    with early.warm():
        with monkeypatch.context() as patch:
            patch.setattr(TrainState, "end_phase", end)
            patch.setattr(StopSignal, "requested", lambda self: "enough" if len(ended) == which else "")
            for _ in range(times):
                ended.clear()
                assert early.start() == 75
                assert ended == [7, 13][:which]
        assert early.start() == 0
    assert not early.differences(asked=True)


def test_killed_between_two_side_effects(run):
    """Every fifteenth of them; `make test-slow` has all."""
    assert len(run.kills) > 50
    told_faults(run, run.kills[::15])


@pytest.mark.slow
def test_killed_between_any_two_side_effects(run):
    told_faults(run, run.kills)


@pytest.mark.slow
def test_killed_in_the_middle_of_any_write(features):
    kills = [kill for kill in torn(features.kills, seed=2) if ", cache/" in kill.when]
    assert len(kills) > 10
    told_faults(features, kills)


@pytest.mark.slow
def test_killed_in_the_middle_of_noting_what_is_left_out(rollback):
    noted = [
        at for at, kill in enumerate(rollback.kills) if b'"back_to"' in (kill.disk.get("run/run.json") or b"")
    ]
    kills = torn(rollback.kills[noted[0] - 6 :], seed=3)
    told_faults(rollback, [kill for kill in kills if re.search(", run/[^/]*(part|run.json)", kill.when)])


@pytest.mark.slow
def test_killed_again_before_it_has_recovered(features):
    # While the features of the second phase are written.
    writing = [kill for kill in features.kills if any(".tmp/features.npy" in name for name in kill.disk)]
    again = while_recovering(features.observe(writing[-1]))
    assert len(again) > 10
    told_faults(features, again)


@pytest.mark.parametrize("run", RUNS, indirect=True)
@pytest.mark.slow
def test_killed_and_continued_with_nothing_kept_in_memory(run):
    told_faults(run, run.kills[len(run.kills) // 2 :: len(run.kills)], warm=False)
