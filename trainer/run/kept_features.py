"""The features of a frozen network, for commands that look at pictures and leave no run behind."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from trainer.cli.config import Config
from trainer.record.workdir import Workdir
from trainer.run.experiment import Experiment
from trainer.run.finished_run import take_weights
from trainer.run.fitting import PretrainedFeatures
from trainer.run.new_pictures import named_pictures
from trainer.run.session import make_stages
from trainer.tasks import make_task
from trainer.values import UsageError


@contextlib.contextmanager
def open_features(config: Config, given: Mapping[str, Any], *, verb: str) -> Iterator[PretrainedFeatures]:
    """Yields what the network makes of the splits before anything trains; what is kept of it is taken.

    Args:
      config: as it was asked for. Where there is a run in --workdir, its options hold.
      given: the options that were set, by name.
      verb: the command that looks at them, for messages.

    Raises:
      UsageError: options do not fit one another, the pictures or the network; or labels are not one class
        each.
      TrainerError: pictures or network cannot be had.
    """
    workdir = Workdir(config.run.workdir)
    config = workdir.or_run(config, given)
    decided: dict[str, Any] = workdir.read_facts().get("precision", {})
    if not make_task(config.data.task).excludes:
        raise UsageError(f"{verb} is for labels of one class each, and --task={config.data.task} has others")
    experiment = Experiment(_head_alone(config))
    with named_pictures(experiment.source, experiment.scan), experiment.strategy.scope():
        if experiment.config.model.init_from:
            take_weights(experiment)
        # Of the run's first phase, if that is of the head alone here as there.
        names = [f"{phase.index}-{phase.spec.name}" for phase in experiment.plan.phases]
        known = {name: choice for name, choice in decided.items() if name.partition("/")[0] in names}
        yield PretrainedFeatures(make_stages(experiment, decided=known))


def _head_alone(config: Config) -> Config:
    """Returns a configuration whose first phase trains the head alone, on pictures as they are."""
    # Which they do, and with what a rule chooses for the pictures, such as their size.
    if config.is_recommended or config.fits:
        return config
    return config.replace(
        schedule="frozen", phase=(), augment="", average="", feature_views=0, from_layer="",
        unfreeze_top_layers=0,
    )  # fmt: skip
