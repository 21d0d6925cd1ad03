"""Which options go together: what is refused at once, or as soon as the pictures are known."""

import logging
from collections.abc import Callable, Mapping

from trainer.cli.config import Config
from trainer.cli.declare import OF_SEVERAL_LABELS, floors_of
from trainer.cli.phase_specs import PhaseSpec
from trainer.data.augment import make_augment
from trainer.data.sources import SOURCES
from trainer.loop.averages import AVERAGES
from trainer.loop.callbacks import CALLBACKS
from trainer.loop.gradient_rules import GRADIENT_RULES
from trainer.loop.losses import LOSSES, check_class_weights
from trainer.loop.metrics import make_metrics
from trainer.loop.objectives import OBJECTIVES
from trainer.loop.optimizers import check_rules, choose_optimizer
from trainer.loop.schedules import choose_schedule
from trainer.model.backbones import BACKBONES
from trainer.model.heads import choose_head
from trainer.tasks import Task, make_task
from trainer.values import UsageError, parse_calls

_log = logging.getLogger("trainer")
# Below this, averages over a batch say little of a data set (Wu & He, 2018, arXiv 1803.08494, figure 1).
SMALL_BATCH = 32


def check_options(config: Config) -> None:
    """Makes sure that all that is called by a name exists, before pictures or networks are opened.

    Raises:
      UsageError: it does not; the message says what there is.
    """
    SOURCES.choose(config.data.source).check()
    BACKBONES.choose(config.model.backbone).check()
    task = make_task(config.data.task)
    _check_watched(config.update.early_stop, task)
    _check_asserted(config.run.assert_at_least, task)
    LOSSES.choose(config.update.loss)
    OBJECTIVES.choose(config.update.objective)
    GRADIENT_RULES.choose(config.update.gradient_rule)
    make_metrics(config.update.metrics, task=task)
    for call in parse_calls(config.run.callbacks):
        CALLBACKS.choose(call)
    choose_head(config.model.head) if config.model.head != "auto" else None
    check_class_weights(config.update.class_weights)
    check_rules(config.update.lr_multiplier)
    for spec in config.phases:
        try:
            make_augment(spec.augment)
            choose_optimizer(spec)
            choose_schedule(spec.lr_schedule, warmup=spec.warmup.amount > 0)
            # Whether a phase is long enough for its average shows later.
            AVERAGES.choose(spec.average) if spec.average else None
        except UsageError as error:
            raise UsageError(f"phase {spec.name}: {error}") from None


def check_together(
    config: Config,
    *,
    task: Task,
    validation: Mapping[str, int],
    num_shares: Callable[[PhaseSpec], int],
) -> None:
    """Refuses what does not go together, and warns of what goes together badly.

    Args:
      config: all options.
      task: what labels mean.
      validation: {class: number of examples} of the validation split.
      num_shares: into how many shares a phase divides a batch, each normalised by its own statistics.

    Raises:
      UsageError: the message says why, and what to leave away.
    """
    check_evaluations(config, task=task, validation=validation)
    for spec in config.phases:
        augment = make_augment(spec.augment)
        if augment and augment.mixes and config.speed.feature_views:
            raise UsageError(
                f"phase {spec.name}: --feature_views keeps views of single pictures, and {spec.augment} "
                "mixes pictures of a batch: leave one of them away"
            )
        if spec.bn == "batch":
            _check_batch_norm(config, spec, shares=num_shares(spec))


def check_evaluations(config: Config, *, task: Task, validation: Mapping[str, int]) -> None:
    """Makes sure that each evaluation will have the numbers that a run goes by.

    Args:
      config: all options.
      task: what labels mean.
      validation: {class: number of examples} of the validation split.

    Raises:
      UsageError: one will not be there.
    """
    for flag, watched in (("early_stop", config.update.early_stop), ("task", task.best)):
        try:
            task.check_watched(watched, validation) if watched else None
        except UsageError as error:
            value = watched if flag == "early_stop" else config.data.task
            raise UsageError(f"--{flag}={value}{error}") from None


def _check_watched(metric: str, task: Task) -> None:
    if metric and metric not in task.watched:
        raise UsageError(f"--early_stop={metric} is not one of {', '.join(task.watched)}")


def _check_asserted(text: str, task: Task) -> None:
    """Refuses --assert_at_least of what a report of the task will not have."""
    for name in floors_of(text):
        if task.excludes and name in OF_SEVERAL_LABELS:
            raise UsageError(f"--assert_at_least={text}: {name} is of several labels an example")


def _check_batch_norm(config: Config, spec: PhaseSpec, *, shares: int) -> None:
    if spec.average and AVERAGES.choose(spec.average).entry.facts.get("over_weights"):
        raise UsageError(
            f"phase {spec.name}: {spec.average} with bn=batch: the statistics of BatchNorm would have to be "
            "measured anew for the averaged weights (Izmailov et al., 2018); use bn=frozen, or ema"
        )
    seen = config.plan.batch_size // shares
    if shares > 1:
        _log.warning(
            "phase %s: bn=batch normalises each %d of the %d images of a batch by their own statistics, "
            "because they are computed apart (--accumulate, or a SavedModel on several devices). So the "
            "update differs from that of the whole batch",
            spec.name, seen, config.plan.batch_size,
        )  # fmt: skip
    if seen < SMALL_BATCH:
        _log.warning(
            "phase %s: bn=batch takes the statistics of BatchNorm from %d pictures at a time, and moves the "
            "stored ones towards them; TensorFlow's guide to transfer learning warns that this can destroy "
            "what the model has learned. bn=frozen keeps them",
            spec.name, seen,
        )  # fmt: skip
