"""`evaluate`: scores a split of a finished run, or other pictures. `train` ends with it, too."""

import functools
import threading
from collections.abc import Callable, Mapping
from typing import Any

from trainer.arithmetic import Arithmetic
from trainer.commands.new_pictures import evaluate_pictures, named_report_folder
from trainer.commands.picture_errors import named_pictures
from trainer.commands.scoring import main_split, require_accuracy, score
from trainer.experiment import Experiment
from trainer.flags import CommandLine
from trainer.loop.objectives import metric_names_of, variables_of
from trainer.loop.state import TrainState
from trainer.record.checkpoints import Base, Checkpoints
from trainer.record.progress import counting
from trainer.record.workdir import Workdir
from trainer.stages import Stages
from trainer.values import UsageError


def run(line: CommandLine) -> int:
    """Scores what a command line asks for, and returns the exit status."""
    evaluate(line)
    return 0


def evaluate(line: CommandLine) -> dict[str, Any]:
    """Scores --eval_split, or --source where that is another one; returns what metrics.json holds.

    Without --eval_split, a run without a test split is scored on validation, as training ends.

    Raises:
      TrainerError: run, checkpoint or pictures cannot be had, or, after the report was written, the accuracy
        is below --assert_accuracy_at_least.
    """
    workdir = Workdir(line.config.run.workdir)
    recorded = workdir.read_config()
    if line.given.get("source", recorded.data.source) != recorded.data.source:
        return evaluate_pictures(workdir, recorded, line.given)
    config = recorded.replace(**line.given)
    workdir.check_same_run(config)
    named = named_report_folder(config)
    checkpoints = Checkpoints(workdir.checkpoints, keep=config.run.keep_checkpoints)
    path = checkpoints.find(config.evaluate.checkpoint)
    experiment = Experiment(config)
    specs = [phase.spec for phase in experiment.plan.phases]
    workdir.check_layers(len(experiment.classifier.named_layers), specs)
    split = config.evaluate.eval_split
    if "eval_split" not in line.given and split not in experiment.splits.indices:
        split = main_split(experiment)
    if split not in experiment.splits.indices:
        raise UsageError(f"--eval_split={split}: this run has only {', '.join(experiment.splits.indices)}")
    with named_pictures(experiment.source, experiment.scan):
        workdir.write_or_check_splits(experiment.split_record())
        stages = make_stages(experiment, decided=workdir.read_facts().get("precision", {}))
        restore(stages, checkpoints, path)
        folder = named or workdir.report / ("" if split == main_split(experiment) else split)
        report = score(stages, workdir, split=split, folder=folder)
    require_accuracy(report, at_least=config.run.assert_accuracy_at_least)
    return report


def make_stages(
    experiment: Experiment,
    *,
    decided: Mapping[str, Any],
    on_decision: Callable[[Mapping], None] = lambda decided: None,
) -> Stages:
    """Makes the state of a run that has not begun, and what its phases run on.

    In the precisions `decided` before; `on_decision` is told all, when one is added.
    """
    config = experiment.config
    with experiment.strategy.scope():
        state = TrainState(
            experiment.classifier,
            experiment.plan,
            lr_rules=config.update.lr_multiplier,
            layer_decay=config.update.layer_decay,
            metrics=[*experiment.recipe.metrics, *metric_names_of(experiment.recipe.objective)],
            objective=variables_of(experiment.recipe.objective),
        )
    arithmetic = Arithmetic(
        config.speed.precision,
        decided=decided,
        cache_dir=config.run.cache_dir,
        on_decision=on_decision,
    )
    watch = functools.partial(counting, config.run.progress)
    return Stages(experiment, state, arithmetic=arithmetic, watch=watch)


def restore(stages: Stages, checkpoints: Checkpoints, path: str) -> None:
    """Puts a checkpoint into the model and the optimizer of its phase."""
    state = stages.state
    with stages.experiment.strategy.scope():
        state.jump(checkpoints.step_of(path))
        checkpoints.restore(state.variables(), path, base=base_of(state))


def import_early() -> None:
    """Imports what the end of a run needs, in a thread: while the network computes, Python is idle."""

    def load() -> None:
        import trainer.record.report  # noqa: F401

    threading.Thread(target=load, daemon=True).start()


def base_of(state: TrainState) -> Base:
    """Returns what the checkpoints of the state's phase have in common."""
    return Base(f"phase-{state.phase.index}", state.phase.start_step, state.constant())
