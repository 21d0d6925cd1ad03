"""`cross_validate`: trains a run for each fold, and sums up how they do on pictures they never saw."""

import logging
from typing import Any

from trainer.cli.flags import CommandLine
from trainer.commands import train
from trainer.record.workdir import Workdir
from trainer.run.cross_validation import BY_DEFAULT, check_folds, fold_folder, put_together
from trainer.runtime import StopSignal
from trainer.values import TrainerError, UsageError

_log = logging.getLogger("trainer")


def run(line: CommandLine, stop: StopSignal) -> int:
    """Trains what is not finished of all folds, writes the report of all, and returns the exit status."""
    data, root = line.config.data, line.config.run.workdir
    if data.fold:
        raise UsageError(f"--fold={data.fold} is of train: cross_validate runs all of --folds")
    if Workdir(root).run_json.exists():
        raise TrainerError(f"--workdir={root} holds a run: cross_validate needs a folder of its own")
    count = data.folds or BY_DEFAULT
    config = line.config.replace(folds=count, fold=1)
    check_folds(config)
    chosen: dict[str, Any] = {}
    for number in range(1, count + 1):
        folder = fold_folder(root, number)
        # What the accuracy must be at least is asked of all folds together.
        own = {"fold": number, "workdir": str(folder), "assert_accuracy_at_least": 0.0, "assert_at_least": ""}
        _log.info("fold %d of %d: %s", number, count, folder)
        given = {**line.given, "folds": count, **own}
        fold = CommandLine("train", config.replace(**own), given)
        train.run(fold, stop, chosen=chosen, is_one_of_many=True)
        # All folds are of one recipe, whatever a rule makes of their sizes, or --budget of the machine.
        chosen = chosen or dict(Workdir(str(folder)).read_chosen())
    put_together(config, root, asked=line.config.run)
    return 0
