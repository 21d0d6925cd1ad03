"""What a run says of itself at its end."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from trainer.cli.config import Config
from trainer.loop.phases import make_plan
from trainer.record.workdir import Workdir
from trainer.run.introduction import told_in_vain, told_of_rise, told_of_smoothing


@pytest.mark.parametrize(
    ("schedule", "best", "told"),
    [
        ("two_phase", 2, "phase finetune did not beat phase frozen: the best weights are those of step 2"),
        # The last evaluation of a phase is made at the first step of the next one.
        ("two_phase", 4, "phase finetune did not beat phase frozen: the best weights are those of step 4"),
        ("two_phase", 5, ""),
        ("frozen", 2, ""),
        ("gradual(3)", 5, "phase gradual3 did not beat phase gradual2: the best weights are those of step 5"),
    ],
)
def test_phases_in_vain_are_told(schedule, best, told):
    config = Config().replace(schedule=schedule, frozen_for="4steps", finetune_for="4steps")
    plan = make_plan(config.phases, num_examples=32, batch_size=8)
    state = SimpleNamespace(best={"step": np.int64(best), "accuracy": np.float32(0.75)})
    state.best = {
        name: SimpleNamespace(numpy=lambda value=value: value) for name, value in state.best.items()
    }
    found = told_in_vain(plan, state, metric="accuracy")
    assert found == (f"{told}, with validation accuracy 0.7500" if told else "")


@pytest.mark.parametrize(
    ("losses", "told"),
    [
        (
            [0.6, 0.25, 1369.0],
            "validation loss rose from 0.25 at step 2 to 1,369: a smaller learning",
        ),
        # What over-fitting comes to, and a run that has only just begun to learn.
        ([0.6, 0.2, 0.4], ""),
        ([0.02, 0.01, 0.09], ""),
        ([2.0, 1.9, 1.8], ""),
        ([], ""),
    ],
)
def test_a_loss_that_has_risen_is_told(losses, told, tmp_path):
    lines = [{"split": "validation", "step": at, "loss": loss} for at, loss in enumerate(losses, start=1)]
    # Of the training split, and a line that a crash has cut.
    lines += [{"split": "train", "step": 9, "loss": 99.0}]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"split": "val')
    assert told_of_rise(Workdir(str(tmp_path))).startswith(told)
    assert bool(told_of_rise(Workdir(str(tmp_path)))) == bool(told)


def test_the_least_loss_under_smoothing_is_told():
    smoothed = Config().replace(label_smoothing=0.1)
    # -0.95 ln 0.95 - 0.05 ln 0.05
    assert "loss:        in training 0.20 at best, by --label_smoothing=0.1; " in told_of_smoothing(
        smoothed, num_classes=2
    )
    targets = np.full([5], 0.02) + 0.9 * np.eye(5)[3]
    assert f" {-(targets * np.log(targets)).sum():.2f} at best" in told_of_smoothing(smoothed, num_classes=5)
    assert told_of_smoothing(Config(), num_classes=5) == ""
    assert told_of_smoothing(smoothed.replace(loss="focal(2)"), num_classes=5) == ""
    assert told_of_smoothing(smoothed.replace(task="multi_label"), num_classes=5) == ""
