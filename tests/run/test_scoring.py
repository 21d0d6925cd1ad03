"""The end of a run: what is scored, how often, and what is told meanwhile."""

import collections
import json

import pytest

from tests.conftest import make_flower_folder
from tests.helpers.undrawn import PLAIN
from trainer.cli.config import Config
from trainer.record import progress
from trainer.run import scoring
from trainer.run.stages import Stage
from trainer.run.team import Team
from trainer.values import CommonError

pytestmark = pytest.mark.usefixtures("figures_undrawn")

RUINED = (
    "--schedule=two_phase", "--frozen_for=10epochs", "--frozen_learning_rate=0.1",
    "--finetune_for=2epochs", "--finetune_learning_rate=50",
)  # fmt: skip
"""A run that knows its pictures after the first phase, and not any more after the second one."""


@pytest.fixture
def train(run_main, tiny_backbone, tmp_path, monkeypatch):
    """train(*options) -> (how often each split was scored, standard output), of a run in tmp_path / "run"."""
    source = make_flower_folder(tmp_path / "source", n=12)
    scored = []
    evaluate = Stage.evaluate

    def counted(stage, split, **how):
        scored.append(split)
        return evaluate(stage, split, **how)

    monkeypatch.setattr(Stage, "evaluate", counted)

    def run(*options):
        scored.clear()
        status, out, err = run_main(
            "train", f"--source=folder:{source}", f"--backbone=savedmodel:{tiny_backbone}", "--image_size=8",
            "--head=linear", "--splits=50%,25%,25%", "--batch_size=4", "--schedule=finetune",
            "--finetune_for=3epochs", "--precision=float32", f"--workdir={tmp_path / 'run'}", *PLAIN,
            *options,
        )  # fmt: skip
        assert status == 0, err
        return collections.Counter(scored), out

    return run


@pytest.mark.parametrize(
    "options", [pytest.param((), marks=pytest.mark.slow), ("--average=ema(0.9)",), RUINED]
)
def test_validation_is_not_scored_again_with_the_weights_that_it_chose(train, run_main, tmp_path, options):
    scored, _ = train("--finetune_learning_rate=0.5", *options)
    assert scored["validation"] == (12 if options == RUINED else 3)
    assert scored["test"] == 1
    run, again = tmp_path / "run", tmp_path / "again"
    report = json.loads((run / "report" / "metrics.json").read_text())
    best = [line for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
            if line["split"] == "validation" and line["step"] == report["step"]]  # fmt: skip
    if options == RUINED:
        # The best weights are not the last ones, and were those of another phase.
        assert report["step"] == 50
    # Nothing was taken for granted: whoever scores these weights now comes to the same numbers.
    (run / "report" / "calibration.json").unlink()
    evaluate = ("evaluate", f"--workdir={run}", f"--report_dir={again}")
    assert run_main(*evaluate, "--eval_split=validation")[0] == 0
    assert [line["loss"] for line in best] == [json.loads((again / "metrics.json").read_text())["loss"]]
    assert run_main(*evaluate)[0] == 0
    assert json.loads((again / "metrics.json").read_text())["calibration"] == report["calibration"]


def test_without_a_test_split_nothing_is_scored_after_training(train):
    assert train("--splits=75%,25%")[0] == {"validation": 3}


def test_a_report_says_that_fine_tuning_was_in_vain(train, run_main, tmp_path):
    told = "phase finetune did not beat phase frozen: the best weights are those of step "
    _, out = train(*RUINED)
    [line] = [line for line in out.splitlines() if told in line]
    report = tmp_path / "run" / "report"
    values = json.loads((report / "metrics.json").read_text())
    assert values["in_vain"] == line
    assert told.removeprefix("phase") in (report / "index.html").read_text()
    # Whoever is sent the pictures and the run reads the same; of other weights it is not said.
    for checkpoint, is_told in (("best", True), ("latest", False)):
        assert run_main("evaluate", f"--workdir={tmp_path / 'run'}", f"--checkpoint={checkpoint}")[0] == 0
        assert ("in_vain" in json.loads((report / "metrics.json").read_text())) == is_told


def test_a_long_wait_for_a_score_is_counted(train, monkeypatch):
    monkeypatch.setattr(progress, "PLAIN_EVERY_SECS", 0)
    _, out = train("--progress=plain")
    told = [line for line in out.splitlines() if line.startswith("scoring ")]
    assert [line.partition(" pictures")[0] for line in told] == [
        f"scoring test: {done} of 9" for done in (4, 8, 9)
    ]


def test_a_worker_whose_score_is_too_low_fails_when_all_have_written(monkeypatch):
    """It takes the others along, whatever they are at."""
    seen = []

    class Two(Team):
        def exchange(self, what, value):
            seen.append(what)
            return [value] * 2

    monkeypatch.setattr(scoring, "team", Two)
    report = {"split": "test", "accuracy": 0.5}
    scoring.require_scores(report, Config().run)
    assert not seen
    for options in ({"assert_accuracy_at_least": 0.9}, {"assert_at_least": "accuracy=0.9"}):
        with pytest.raises(CommonError, match=r"0\.5"):
            scoring.require_scores(report, Config().replace(**options).run)
        assert seen.pop()
