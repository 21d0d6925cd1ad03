"""`features`: computes what a frozen network makes of the pictures, in parts, for runs to come."""

import logging

from trainer.cli.config import Config
from trainer.cli.declare import budget_secs
from trainer.cli.flags import CommandLine
from trainer.record.workdir import Workdir
from trainer.run.experiment import Experiment
from trainer.run.feature_cache import feature_folder, why_uncached
from trainer.run.new_pictures import named_pictures
from trainer.run.recommended import sizes_of
from trainer.run.session import make_stages
from trainer.values import UsageError

_log = logging.getLogger("trainer")


def run(line: CommandLine) -> int:
    """Computes the part that --shard names of all splits, as far as it is not kept; returns the status."""
    config = line.config
    if config.speed.feature_cache == "off":
        raise UsageError("--feature_cache=off keeps nothing: leave it away")
    _check_size(config)
    number, count = map(int, config.features_of.shard.split("/"))
    experiment = Experiment(config)
    first = experiment.plan.phases[0]
    if why := why_uncached(experiment, first.spec):
        raise UsageError(f"there are no features to keep: {why}")
    if config.model.init_from:
        raise UsageError("--init_from: features are those of the pretrained network; leave it away")
    with named_pictures(experiment.source, experiment.scan), experiment.strategy.scope():
        stage = make_stages(experiment, decided={}).stage_of(first)
        _log.info("network:     %s, %s", experiment.backbone.name, stage.precision)
        stage.require_room(*experiment.splits.indices)
        # Of folds, whose pictures are kept together, the second split finds what the first has computed.
        for split in experiment.splits.indices:
            done, known = stage.compute_shard(split, number=number, count=count)
            told = f"{done:,} pictures of part {number} of {count}, {known:,} of them kept before"
            _log.info("%-13s%s", f"{split}:", told)
    _log.info("features:    %s", feature_folder(config.run.cache_dir))
    return 0


def _check_size(config: Config) -> None:
    """Makes sure that pictures have the size that they will have in a run.

    Raises:
      UsageError: a run would choose it by how fast its machine is.
    """
    budget, sizes = config.plan.budget, sizes_of(config)
    is_known = config.run.workdir and Workdir(config.run.workdir).read_chosen()
    if config.is_recommended and budget_secs(budget) and len(sizes) > 1 and not is_known:
        told = " or ".join(f"--image_size={size}" for size in sorted(sizes))
        raise UsageError(
            f"--budget={budget}: train chooses the size of pictures by how fast it is, and features are of "
            f"one size: say which, here and for train, such as {told}"
        )
