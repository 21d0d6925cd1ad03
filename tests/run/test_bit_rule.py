"""BiT-HyperRule: its table, what it becomes as options, and that it trains."""

import dataclasses
import shlex
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import make_flower_folder
from tests.helpers.undrawn import PLAIN
from trainer import plugins
from trainer.cli.config import Config
from trainer.cli.flags import parse
from trainer.cli.phase_specs import RULED
from trainer.loop.phases import make_plan
from trainer.precision import Choice
from trainer.record.workdir import Workdir
from trainer.run import experiment as experiment_room
from trainer.run.bit_rule import BATCH_SIZE, Rule, apply_rule, bit_rule
from trainer.run.finished_run import engine_at, precision_at
from trainer.store.files import read_json
from trainer.values import UsageError

pytestmark = pytest.mark.usefixtures("figures_undrawn")


@pytest.mark.parametrize(
    ("num_examples", "area_px", "rule"),
    [
        (1, 95 * 96, Rule(100, (200, 300, 400), 500, 128, 0.64, 0.0)),
        (19_999, 96 * 96, Rule(100, (200, 300, 400), 500, 480, (480 / 512) ** 2, 0.0)),
        (20_000, 32 * 32, Rule(500, (3_000, 6_000, 9_000), 10_000, 128, 0.64, 0.1)),
        (499_999, 224 * 224, Rule(500, (3_000, 6_000, 9_000), 10_000, 480, (480 / 512) ** 2, 0.1)),
        (500_000, 224 * 224, Rule(500, (6_000, 12_000, 18_000), 20_000, 480, (480 / 512) ** 2, 0.1)),
    ],
)
def test_the_published_table(num_examples, area_px, rule):
    got = dataclasses.asdict(bit_rule(num_examples=num_examples, area_px=area_px))
    assert {name: got[name] for name in got if name != "decay_steps"} == pytest.approx(
        {name: value for name, value in dataclasses.asdict(rule).items() if name != "decay_steps"}
    )
    assert got["decay_steps"] == rule.decay_steps


@pytest.mark.parametrize("num_examples", [1_000, 50_000, 600_000])
def test_the_rate_is_that_of_the_rule_at_its_own_batch_size(num_examples):
    rule = bit_rule(num_examples=num_examples, area_px=1e6)
    config = apply_rule(Config().replace(schedule="auto", batch_size=BATCH_SIZE), rule)
    (phase,) = make_plan(config.phases, num_examples=num_examples, batch_size=BATCH_SIZE).phases
    assert (phase.num_steps, phase.warmup_steps) == (rule.num_steps, rule.warmup_steps)
    falls = [rule.warmup_steps, *rule.decay_steps]
    for number, (start, stop) in enumerate(zip(falls, [*rule.decay_steps, rule.num_steps], strict=True)):
        for step in (start, stop - 1):
            assert phase.learning_rate(step) == pytest.approx(0.003 * 0.1**number, rel=1e-4)
    assert phase.learning_rate(0) == pytest.approx(0.003 / rule.warmup_steps, rel=1e-4)
    assert (str(phase.spec.optimizer), phase.spec.momentum, phase.spec.weight_decay) == ("sgd", 0.9, 0.0)
    assert ("mixup(0.1)" in str(phase.spec.augment)) == (num_examples >= 20_000)


def test_another_batch_size_sees_as_many_pictures_at_a_rate_in_proportion():
    rule = bit_rule(num_examples=1_000, area_px=1e6)
    config = apply_rule(Config().replace(schedule="auto", batch_size=64), rule)
    (phase,) = make_plan(config.phases, num_examples=1_000, batch_size=64).phases
    assert phase.num_steps == 500 * 8
    assert phase.spec.learning_rate == pytest.approx(0.003 / 8)


def test_head_and_size_stay_where_they_are_given():
    rule = bit_rule(num_examples=1_000, area_px=1e6)
    chosen = apply_rule(Config().replace(schedule="auto"), rule).model
    assert (chosen.head, chosen.image_size) == ("zero_linear", 480)
    given = apply_rule(Config().replace(schedule="auto", head="mlp(8)", image_size=96), rule).model
    assert (given.head, given.image_size) == ("zero_mlp(8)", 96)


@pytest.mark.slow
def test_it_trains_and_goes_on(tmp_path, tiny_backbone, run_main, monkeypatch):
    asked = []

    def short(*, num_examples, area_px):
        asked.append((num_examples, area_px))
        return Rule(2, (4, 6, 8), 10, 16, 0.64, 0.1)

    monkeypatch.setattr(experiment_room, "bit_rule", short)
    monkeypatch.setattr("trainer.run.bit_rule.BATCH_SIZE", 6)
    pictures = make_flower_folder(tmp_path / "pictures", n=6)
    arguments = (
        f"--source=folder:{pictures}", f"--backbone=savedmodel:{tiny_backbone}", "--schedule=auto",
        "--splits=12,6", "--batch_size=6", "--precision=float32", *PLAIN, f"--workdir={tmp_path / 'run'}",
    )  # fmt: skip
    status, out, err = run_main("train", *arguments)
    assert (status, err) == (0, "")
    assert asked == [(12, 120.0)]  # Pictures of 12x10 px.
    assert "BiT-HyperRule for 12 pictures of about 120 px: --head='zero_linear' --image_size=16 " in out
    assert "--phase='name=bit; " in out
    assert "phase bit, steps 0 to 10, sgd at 0.003 (step(0.25,0.5,0.75)), warm-up 2 steps" in out
    run = read_json(tmp_path / "run" / "run.json")
    # What is recorded is what was asked for, so that the same command goes on.
    assert (run["config"]["schedule"], run["config"]["phase"], run["config"]["head"]) == ("auto", [], "auto")
    assert run["contract"]["height_px"] == 16
    assert run_main("train", *arguments)[0] == 0
    assert run_main("evaluate", f"--workdir={tmp_path / 'run'}", "--eval_split=validation")[0] == 0
    status, out, _ = run_main("predict", f"--workdir={tmp_path / 'run'}", pictures / "red", "--format=jsonl")
    assert (status, len(out.splitlines())) == (0, 6)


def test_what_ran_the_only_phase_is_found_again(tmp_path, monkeypatch):
    workdir, config = Workdir(tmp_path), Config().replace(schedule="auto")
    for decided in ({}, {"0-bit": Choice("float32", {}, "", {}, "").to_json()}):
        monkeypatch.setattr(workdir, "read_facts", lambda decided=decided: {"precision": decided})
        assert precision_at(config, workdir, 10) == "float32"
        assert engine_at(config, workdir, 10) == "tensorflow"


def test_the_head_starts_at_zero(tmp_path, tiny_backbone):
    pictures = make_flower_folder(tmp_path / "pictures", n=6)
    config = Config().replace(
        source=f"folder:{pictures}",
        backbone=f"savedmodel:{tiny_backbone}",
        schedule="auto",
        image_size=8,
        batch_size=8,
    )
    made = experiment_room.Experiment(config)
    assert not np.any(made.classifier.named_variables["head/logits/kernel"].numpy())
    assert made.plan.phases[0].spec.train == (".*",)


@pytest.mark.usefixtures("without_plugins")
def test_the_head_of_a_plugin_starts_at_zero(tmp_path, tiny_backbone):
    pictures = make_flower_folder(tmp_path / "pictures", n=6)
    plugins.load_plugins([str(Path(__file__).parent.parent / "helpers" / "every_kind.py")])
    given = (f"--source=folder:{pictures}", f"--backbone=savedmodel:{tiny_backbone}", "--image_size=8")
    line = parse(["trainer", *given, "--schedule=auto", "--head=narrow", "--batch_size=8"])
    variables = experiment_room.Experiment(line.config).classifier.named_variables
    assert not np.any(variables["head/logits/kernel"].numpy())
    assert np.all(variables["head/dense_0/kernel"].numpy())
    assert variables["head/dense_0/kernel"].shape[-1] == 4


@pytest.mark.slow
def test_what_it_prints_gives_the_same_run(tmp_path, tiny_backbone, run_main, monkeypatch):
    rule = Rule(2, (4, 6, 8), 10, 16, 0.64, 0.1)
    monkeypatch.setattr(experiment_room, "bit_rule", lambda **given: rule)
    monkeypatch.setattr("trainer.run.bit_rule.BATCH_SIZE", 6)
    pictures = make_flower_folder(tmp_path / "pictures", n=6)
    mine = (
        f"--source=folder:{pictures}", f"--backbone=savedmodel:{tiny_backbone}", "--splits=12,6",
        "--batch_size=6", "--precision=float32", "--log_every=1steps", *PLAIN,
    )  # fmt: skip
    # Decided by whoever asks for it, and of the phase all the same.
    asked = ("--schedule=auto", "--average=ema(0.5)", "--bn=batch", "--head=mlp(4)")
    status, out, err = run_main("train", *mine, *asked, f"--workdir={tmp_path / 'auto'}")
    assert (status, "Traceback" in err) == (0, False)
    line = next(line for line in out.splitlines() if line.startswith("schedule:"))
    printed = [word for word in shlex.split(line) if word.startswith("--")]
    assert [word.partition("=")[0] for word in printed] == ["--head", "--image_size", "--phase"]
    assert run_main("train", *mine, *printed, f"--workdir={tmp_path / 'printed'}")[0] == 0
    by_rule, pasted = ((tmp_path / run / "metrics.jsonl").read_text() for run in ("auto", "printed"))
    assert by_rule == pasted
    with pytest.raises(UsageError, match=r"^--nesterov: --schedule=auto decides"):
        parse(["trainer", *asked, "--nesterov"])


def test_the_options_that_it_refuses_are_those_that_it_decides():
    text = apply_rule(Config().replace(schedule="auto"), bit_rule(num_examples=10, area_px=1.0)).plan.phase[0]
    flags = {
        "name": set(),
        "for": {"frozen_for", "finetune_for"},
        "train": {"finetune_train"},
        "lr": {"frozen_learning_rate", "finetune_learning_rate"},
    }
    keys = [part.partition("=")[0].strip() for part in text.split(";")]
    decided = set().union(*(flags.get(key, {key}) for key in keys))
    # These two it takes from their options.
    assert set(RULED) == decided - {"bn", "average"}
