"""`train --extend`: what goes on from a shorter run is the run that was as long from the start."""

import itertools
import json
import os
import re
import shutil

import pytest

from tests.conftest import call_main, make_flower_folder
from tests.helpers.run_results import differences, results, without_older
from trainer.loop import standard_callbacks
from trainer.run import session

pytestmark = pytest.mark.usefixtures("figures_undrawn")

SETTINGS = (
    "--image_size=8", "--splits=10,4,4", "--batch_size=4", "--head=mlp(6)", "--log_every=2steps",
    "--evaluate_every=2steps", "--save_every=2steps", "--precision=float32", "--progress=plain",
    "--figures_every=4steps", "--embeddings=0",
)  # fmt: skip
CHANGING = (
    "--schedule=two_phase", "--frozen_for=3steps", "--augment=flip,crop(0.5)", "--dropout=0.3",
    "--average=ema(0.6)", "--lr_schedule=plateau(0.5,1)", "--early_stop=loss", "--patience=9",
    "--finetune_learning_rate=0.01", "--histograms_every=2steps",
)  # fmt: skip
FROZEN = ("--schedule=frozen", "--frozen_learning_rate=0.05")


@pytest.fixture(scope="module")
def train(tiny_backbone, tmp_path_factory):
    """train(workdir, *flags) -> exit status."""
    pictures = make_flower_folder(tmp_path_factory.mktemp("pictures"))
    for path in pictures.rglob("*.jpg"):
        os.utime(path, (1e9, 1e9))
    always = (f"--source=folder:{pictures}", f"--backbone=savedmodel:{tiny_backbone}", *SETTINGS)
    return lambda workdir, *flags: call_main(*always, f"--workdir={workdir}", *flags)


def stop_at(monkeypatch, step):
    """Has a run stop there, as Ctrl-C does."""
    call = standard_callbacks.Stop.__call__

    def stop(self, state):
        self._requested = lambda: "enough" if state.step == step else ""
        call(self, state)

    monkeypatch.setattr(standard_callbacks.Stop, "next_due", lambda self, at: at + 1)
    monkeypatch.setattr(standard_callbacks.Stop, "__call__", stop)


def left(workdir):
    """Returns all that a run leaves but that it was extended, which two places tell."""
    found = results(workdir)
    run = found["run.json"]
    found["run.json"] = {name: value for name, value in run.items() if name != "extensions"}
    # Its text for TensorBoard is that of the shorter run up to there.
    del found["TensorBoard, train: flagfile"]
    return found


@pytest.mark.parametrize(
    ("flags", "short", "long", "begins_at"),
    [
        # Kept features.
        (FROZEN, "--frozen_for=4steps", "--frozen_for=9steps", 4),
        # Pictures. The last step, 7, was logged, evaluated and drawn only because it was the last.
        pytest.param(
            CHANGING, "--finetune_for=4steps", "--finetune_for=8steps", 6, marks=pytest.mark.slow
        ),
        pytest.param(
            CHANGING, "--finetune_for=3steps", "--finetune_for=8steps", 6, marks=pytest.mark.slow
        ),
        pytest.param(
            (*FROZEN, "--feature_cache=off"), "--frozen_for=5steps", "--frozen_for=9steps", 4,
            marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_it_is_the_run_that_was_as_long_from_the_start(train, flags, short, long, begins_at, tmp_path, capfd):
    workdir = tmp_path / "run"
    assert train(workdir, *flags, long) == 0
    expected = left(workdir)
    shutil.rmtree(workdir)
    assert train(workdir, *flags, short) == 0
    assert left(workdir)["metrics.jsonl"] != expected["metrics.jsonl"]
    capfd.readouterr()
    assert train(workdir, *flags, long, "--extend") == 0
    if why := re.search("--extend: (.*); goes back to", capfd.readouterr().out):
        assert re.fullmatch("step [0-9]+ is [a-z ]+ only because the run ended there", why[1])
    assert not differences(without_older(left(workdir)), without_older(expected))
    [noted] = json.loads((workdir / "run.json").read_text())["extensions"]
    assert noted["step"] == begins_at


@pytest.mark.parametrize("every", ["2steps", pytest.param("3steps", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_weights_that_were_best_only_where_the_run_ended_do_not_stand_in_the_way(
    train, every, tmp_path, monkeypatch, capfd
):
    """A run that gets better with each evaluation; with 3 steps, none but the last is before it ends."""
    workdir, flags = tmp_path / "run", (*FROZEN, f"--evaluate_every={every}", "--save_every=1steps")
    better = itertools.count()

    def measures(scored, class_names, *, task):
        return {"accuracy": next(better) / 100, "loss": 1.0}

    monkeypatch.setattr(session, "measures", measures)
    long, short = "--frozen_for=7steps", "--frozen_for=5steps" if every == "2steps" else "--frozen_for=2steps"
    assert train(workdir, *flags, long) == 0
    expected = [path.name for path in sorted((workdir / "checkpoints/best").iterdir())]
    shutil.rmtree(workdir)
    assert train(workdir, *flags, short) == 0
    shutil.copytree(workdir, tmp_path / "older")
    assert train(workdir, *flags, long, "--extend") == 0
    assert [path.name for path in sorted((workdir / "checkpoints/best").iterdir())] == expected
    if every == "2steps":
        # As of a version that kept no other best.
        for path in (tmp_path / "older/checkpoints/best").glob("ckpt-4*"):
            path.unlink()
        capfd.readouterr()
        assert train(tmp_path / "older", *flags, long, "--extend") == 1
        told = ": the best weights are of step 5, which the longer plan does not evaluate. Choose"
        assert told in capfd.readouterr().err


@pytest.fixture(scope="module")
def finished(train, tmp_path_factory):
    """finished(*flags) -> workdir of a run of them, which nobody may change."""
    runs = {}

    def make(*flags):
        if flags not in runs:
            runs[flags] = tmp_path_factory.mktemp("finished") / "run"
            assert train(runs[flags], *flags) == 0
        return runs[flags]

    return make


def test_a_plan_that_begins_with_other_steps_is_refused(finished, train, capfd):
    flags = (*FROZEN, "--lr_schedule=cosine", "--frozen_for=4steps", "--evaluate_every=50%")
    workdir = finished(*flags)
    before = results(workdir)
    for changes, reason in (
        (
            ("--frozen_for=8steps",),
            "phase frozen: the learning rate depends on the length of the phase; at step 1 it was 0.0426777, "
            "and would be 0.048097",
        ),
        (("--frozen_for=2steps",), "phase frozen would have 2 steps instead of 4"),
    ):
        capfd.readouterr()
        assert train(workdir, *flags, *changes, "--extend") == 1
        assert capfd.readouterr().err == (
            f"trainer: --extend cannot go on with {workdir}: {reason}. Choose another --workdir; "
            f"--init_from={workdir} begins with the weights of this run\n"
        )
    assert not differences(results(workdir), before)


@pytest.mark.slow
def test_a_run_that_evaluates_by_a_share_of_its_length_is_evaluated_anew(train, tmp_path):
    workdir, flags = tmp_path / "run", (*FROZEN, "--evaluate_every=50%")
    assert train(workdir, *flags, "--frozen_for=12steps") == 0
    expected = left(workdir)
    shutil.rmtree(workdir)
    assert train(workdir, *flags, "--frozen_for=4steps") == 0
    assert train(workdir, *flags, "--frozen_for=12steps", "--extend") == 0
    assert not differences(without_older(left(workdir)), without_older(expected))


def test_longer_phases_are_refused_without_it_and_other_options_with_it(finished, train, capfd):
    flags = (*FROZEN, "--frozen_for=4steps", "--evaluate_every=50%")
    workdir = finished(*flags)
    for changes, told in (
        (
            ("--frozen_for=8steps",),
            "--frozen_for was 4steps, now 8steps. Longer phases may begin with the same steps: --extend "
            "goes on with it where they do. Choose",
        ),
        (("--frozen_for=8steps", "--seed=1", "--extend"), "--seed was 0, now 1. Choose"),
        (("--schedule=two_phase", "--extend"), "--schedule was frozen, now two_phase. Choose"),
    ):
        capfd.readouterr()
        assert train(workdir, *flags, *changes) == 1
        err = capfd.readouterr().err
        assert err.startswith(f"trainer: {workdir} holds a run with other options: ")
        assert told in err


@pytest.mark.slow
def test_a_phase_that_has_not_ended_can_be_longer_whichever_it_is(train, tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    flags = ("--phase=name=a; for=4steps; train=head; lr=0.05", "--phase=name=b; for=2steps; train=all")
    longer = ("--phase=name=a; for=6steps; train=head; lr=0.05", "--phase=name=b; for=3steps; train=all")
    assert train(workdir, *longer) == 0
    expected = left(workdir)
    shutil.rmtree(workdir)
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        assert train(workdir, *flags) == 75
    assert train(workdir, *longer, "--extend") == 0
    assert not differences(without_older(left(workdir)), without_older(expected))


@pytest.mark.slow
def test_where_no_earlier_checkpoint_is_kept_only_the_log_has_a_line_more(train, tmp_path):
    workdir, flags = tmp_path / "run", (*FROZEN, "--log_every=3steps", "--keep_checkpoints=1")
    assert train(workdir, *flags, "--frozen_for=8steps") == 0
    expected = left(workdir)
    shutil.rmtree(workdir)
    assert train(workdir, *flags, "--frozen_for=4steps") == 0
    assert train(workdir, *flags, "--frozen_for=8steps", "--extend") == 0
    got = left(workdir)
    name = "checkpoints/ckpt-8.data-00000-of-00001"
    assert got[name] == expected[name]
    points = [
        [(line["split"], line["step"]) for line in map(json.loads, found["metrics.jsonl"].splitlines())]
        for found in (got, expected)
    ]
    assert sorted({*points[0]} - {*points[1]}) == [("train", 4)]
    assert {*points[1]} < {*points[0]}
