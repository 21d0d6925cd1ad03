"""`evaluate`: scores a split of a finished run, or other pictures. `train` ends with it, too."""

from collections.abc import Collection, Mapping
from typing import Any

from trainer.cli.config import Config
from trainer.cli.declare import NETWORK, PICTURES
from trainer.cli.flags import CommandLine
from trainer.data.splits import find_again
from trainer.record.checkpoints import Checkpoints
from trainer.record.workdir import Workdir, of_run
from trainer.run.experiment import Experiment
from trainer.run.new_pictures import (
    OF_PICTURES,
    evaluate_pictures,
    named_pictures,
    named_report_folder,
    open_pictures,
    require_no_splits,
    split_report_folder,
)
from trainer.run.scoring import main_split, require_scores, score
from trainer.run.session import make_stages, restore
from trainer.tasks import make_task
from trainer.values import UsageError, composed


def run(line: CommandLine) -> int:
    """Scores what a command line asks for, and returns the exit status."""
    evaluate(line)
    return 0


def evaluate(line: CommandLine) -> dict[str, Any]:
    """Scores a split of the run, or other pictures; returns what metrics.json holds.

    The pictures of a split are found by the SHA-256 of their bytes, where the run had them or where --source
    says. Without --eval_split, it is the split that training ended with, or, if another source lacks pictures
    of the run, all pictures there.

    Raises:
      TrainerError: run, checkpoint or pictures cannot be had, or, after the report was written, the accuracy
        is below --assert_accuracy_at_least.
    """
    workdir, given = Workdir(line.config.run.workdir), line.given
    recorded = workdir.read_config()
    config = workdir.read_filled_in().replace(**given)
    if elsewhere := config.data.source != recorded.data.source:
        require_no_splits(given)
    about_run = {
        name: value for name, value in of_run(given).items() if not elsewhere or name not in OF_PICTURES
    }
    workdir.check_same_run(recorded.replace(**about_run), found_out=(PICTURES, NETWORK))
    named = named_report_folder(config)
    checkpoints = Checkpoints(workdir.checkpoints, keep=config.run.keep_checkpoints)
    path = checkpoints.find(config.evaluate.checkpoint)
    splits, class_names = workdir.read_splits(), workdir.read_facts()["class_names"]
    pictures = open_pictures(recorded, given, run_classes=class_names if elsewhere else ())
    found = find_again(splits, pictures.source, pictures.scan.digests, task=make_task(config.data.task))
    has_all = all((positions >= 0).all() for positions in found.values())
    split = _split(config, given, splits) if has_all or not elsewhere else given.get("eval_split", "")
    if not has_all or [*map(composed, pictures.source.class_names)] != [*map(composed, class_names)]:
        return evaluate_pictures(workdir, config, pictures, split=split)
    experiment = Experiment(config, of_run=workdir, pictures=pictures)
    workdir.check_network(config, {"function": experiment.backbone.fingerprint})
    specs = [phase.spec for phase in experiment.plan.phases]
    workdir.check_layers(len(experiment.classifier.named_layers), specs)
    with named_pictures(experiment.source, experiment.scan):
        stages = make_stages(experiment, decided=workdir.read_facts().get("precision", {}))
        restore(stages, checkpoints, path)
        folder = named or split_report_folder(workdir, split)
        report = score(stages, workdir, split=split, folder=folder)
    require_scores(report, config.run)
    return report


def _split(config: Config, given: Mapping[str, Any], splits: Collection[str]) -> str:
    """Returns the split of the run that is asked for, or that it is judged by."""
    split = config.evaluate.eval_split
    if split not in splits and "eval_split" not in given:
        return main_split(splits)
    if split not in splits:
        raise UsageError(f"--eval_split={split}: this run has only {', '.join(splits)}")
    return split
