"""What a run tells of the time left, and what the next one remembers. No time is asserted."""

import json
import re

import pytest

from tests.conftest import make_flower_folder
from tests.helpers.undrawn import PLAIN
from trainer.record import progress

pytestmark = pytest.mark.usefixtures("figures_undrawn")

STEPS = 6
LINE = re.compile(r"^step (\d+)/12 \((frozen|finetune), .*, (at least )?\d\d:\d\d left$", re.MULTILINE)


@pytest.fixture
def arguments(tmp_path, tiny_backbone, monkeypatch):
    monkeypatch.setattr(progress, "PLAIN_EVERY_SECS", 0.0)
    pictures = make_flower_folder(tmp_path / "pictures")
    return [
        f"--source=folder:{pictures}", f"--backbone=savedmodel:{tiny_backbone}", "--image_size=8",
        "--head=linear", "--splits=60%,40%", "--batch_size=4", "--schedule=two_phase",
        f"--frozen_for={STEPS}steps",
        f"--finetune_for={STEPS}steps", "--log_every=1steps", "--progress=plain", "--precision=float32",
        *PLAIN, f"--cache_dir={tmp_path / 'cache'}",
    ]  # fmt: skip


@pytest.mark.slow
def test_the_next_run_knows_what_is_to_come(arguments, tmp_path, run_main):
    status, out, err = run_main(*arguments, f"--workdir={tmp_path / 'first'}")
    assert (status, err) == (0, "")
    told = {int(step): bool(least) for step, _, least in LINE.findall(out)}
    # As long as no step of the second phase is measured, it takes nobody knows how long.
    assert told == {step: step <= STEPS + 1 for step in range(2, 2 * STEPS + 1)}
    kept = [json.loads(path.read_text()) for path in (tmp_path / "cache" / "speeds").iterdir()]
    assert sorted((one["key"]["cut"], "end" in one["key"]) for one in kept) == [
        ("", False), ("", True), ("features", False),
    ]  # fmt: skip
    for one in kept:
        assert one["start_secs"] > 0
        assert ("end" in one["key"]) == (one["step_secs"] is None)
    status, out, err = run_main(*arguments, f"--workdir={tmp_path / 'second'}", "--seed=1")
    assert (status, err) == (0, "")
    assert {int(step): bool(least) for step, _, least in LINE.findall(out)} == dict.fromkeys(told, False)
