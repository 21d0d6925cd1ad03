"""`evaluate`: scores a split of a finished run, or other pictures. `train` ends with it, too."""

from typing import Any

from trainer.cli.flags import CommandLine
from trainer.record.checkpoints import Checkpoints
from trainer.record.workdir import Workdir
from trainer.run.experiment import Experiment
from trainer.run.new_pictures import evaluate_pictures, named_pictures, named_report_folder
from trainer.run.scoring import main_split, require_accuracy, score
from trainer.run.session import make_stages, restore
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
