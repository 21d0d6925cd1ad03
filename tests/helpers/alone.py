"""What one worker makes of a run that several have trained: step by step, and of its report."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tests.conftest import call_main
from tests.helpers.feature_runs import metrics
from trainer import commands
from trainer.cli import flags

# What an evaluation changes, after the checkpoint of its step was written.
_OF_EVALUATIONS = ("best/", "early/", "plateau/", "lr_factor", "metrics/")


def steps_alone(
    workdir: Path, cache_dir: Path, **changed: object
) -> Iterator[tuple[int, dict[str, float], dict[str, object]]]:
    """Does each step of a run once more, from the checkpoint that the run left before it.

    Args:
      workdir: of a run with `--save_every=1steps --log_every=1steps` that has kept all checkpoints.
      cache_dir: what this finds and keeps.
      **changed: options that one worker has otherwise.

    Yields:
      (step, {metric of its batch: value}, {name: value} of all that a checkpoint holds), after each step.
    """
    line = flags.parse(["trainer", "evaluate", f"--workdir={workdir}", f"--cache_dir={cache_dir}"])
    commands.opened(line)
    from trainer.loop.objectives import start
    from trainer.record.checkpoints import Checkpoints
    from trainer.record.workdir import Workdir
    from trainer.run.experiment import Experiment
    from trainer.run.session import base_of, make_stages

    folder = Workdir(str(workdir))
    checkpoints = Checkpoints(folder.checkpoints, keep=1000)
    config = folder.read_filled_in().replace(cache_dir=str(cache_dir), strategy="one", **changed)
    experiment = Experiment(config, of_run=folder)
    facts = folder.read_facts()
    stages = make_stages(experiment, decided=facts.get("precision", {}))
    stages.left_out = [rollback["step"] for rollback in facts["rollbacks"]]
    state, run = stages.state, None
    start(experiment.recipe.objective)
    if state.shadows:
        state.shadows.start()
    for step in range(experiment.plan.total_steps):
        if step:
            checkpoints.restore(state.variables(), checkpoints.find(str(step)), base=base_of(state))
        if run is None:
            run, batches = stages.current().make_run(), iter(stages.current().training(step))
        state.metrics.reset()
        run(batches, np.int32(1))
        found = state.metrics.read()
        if state.step == state.phase.stop_step < experiment.plan.total_steps:
            state.enter(experiment.plan.phase_at(state.step))
            run = None
        yield state.step, found, {name: variable.numpy() for name, variable in state.variables().items()}


def assert_steps_alone(workdir: Path, cache_dir: Path, *, within: float = 1e-6, **changed: object) -> int:
    """Compares each step of a run with what one worker makes of it; returns how many there were."""
    from trainer.record.checkpoints import Checkpoints

    checkpoints = Checkpoints(Path(workdir) / "checkpoints", keep=1000)
    rows = {row["step"]: row for row in metrics(workdir) if row["split"] == "train"}
    step = 0
    for step, measured, values in steps_alone(workdir, cache_dir, **changed):
        for name, value in measured.items():
            np.testing.assert_allclose(
                rows[step][name], value, rtol=within, atol=within, err_msg=f"{name} of step {step}"
            )
        there = checkpoints.values(checkpoints.find(str(step)))
        assert there.keys() == values.keys()
        for name, value in values.items():
            if not name.startswith(_OF_EVALUATIONS):
                np.testing.assert_allclose(
                    there[name], value, rtol=within, atol=within, err_msg=f"{name} after step {step}"
                )
    return step


def assert_scored_alone(workdir: Path, folder: Path, *more: str, within: float = 1e-6) -> None:
    """Compares the report of a run, row for row, with what `evaluate` writes in one process."""
    assert call_main("evaluate", f"--workdir={workdir}", f"--report_dir={folder}", *more) == 0
    theirs, ours = Path(workdir) / "report", Path(folder)
    (names, *rows), (wanted_names, *wanted) = (
        list(csv.reader((place / "predictions.csv").read_text().splitlines())) for place in (theirs, ours)
    )
    assert names == wanted_names
    assert [row[:3] for row in rows] == [row[:3] for row in wanted]
    _assert_alike(*([[*map(_cell, row)] for row in table] for table in (rows, wanted)), within=within)
    _assert_alike(
        *(json.loads((place / "metrics.json").read_text()) for place in (theirs, ours)), within=within
    )


def _cell(text: str) -> object:
    try:
        return float(text)
    except ValueError:
        return text


def _assert_alike(found: object, expected: object, *, within: float, at: str = "metrics.json") -> None:
    """Compares what JSON holds: numbers that are not whole within a distance, all else to the letter."""
    if isinstance(found, dict) and isinstance(expected, dict):
        assert found.keys() == expected.keys(), at
        for name, value in found.items():
            _assert_alike(value, expected[name], within=within, at=f"{at} {name}")
    elif isinstance(found, list) and isinstance(expected, list):
        assert len(found) == len(expected), at
        for number, value in enumerate(found):
            _assert_alike(value, expected[number], within=within, at=f"{at} {number}")
    elif isinstance(found, float) and isinstance(expected, float):
        np.testing.assert_allclose(found, expected, rtol=within, atol=within, err_msg=at)
    else:
        assert found == expected, at
