"""What a run says of itself at its end."""

from types import SimpleNamespace

import numpy as np
import pytest

from trainer.cli.config import Config
from trainer.loop.phases import make_plan
from trainer.run.introduction import told_in_vain


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
