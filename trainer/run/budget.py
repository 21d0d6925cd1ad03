"""`--budget=5min`: the most of what is recommended that ends in time on this machine, by measured steps."""

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from trainer.cli.declare import budget_secs
from trainer.data.configured import Pictures
from trainer.run.experiment import Experiment
from trainer.run.foresight import HEAD, Foreseen, foresee
from trainer.run.recommended import Effort, efforts, recommend, sizes_of
from trainer.run.run_times import END_SECS, told_secs

_log = logging.getLogger("trainer")
# What is kept of a budget for what was not foreseen.
RESERVE = 0.15
# The start of the process, until the command begins.
START_SECS = 8.0
# To score a batch takes about half of the time of an update, see `record/progress.py`.
EVALUATION = 0.5


def within_budget(experiment: Experiment, *, begun: float) -> Experiment:
    """Returns the run that ends within --budget, and says what more time would buy.

    Args:
      experiment: of the same pictures, as it is recommended where time does not matter; its steps are
        measured.
      begun: when the command began, by time.monotonic.
    """
    budget = experiment.config.plan.budget
    _log.info("budget:      measures what fits into --budget=%s, a few steps of each phase", budget)
    foreseen = foresee(experiment, decided={})
    left = budget_secs(budget) * (1 - RESERVE) - START_SECS - (time.monotonic() - begun)
    costs = Costs.of(experiment, foreseen)
    offers = efforts(costs.num_train, sizes=sizes_of(experiment.asked))
    chosen, longer = choose(offers, costs, left_secs=left)
    if costs.secs(chosen) > left:
        _log.warning(
            "--budget=%s is too short for %s on this machine, the least there is: it takes about %s",
            budget, chosen.describe(), told_secs(costs.secs(chosen)),
        )  # fmt: skip
    told = f"--budget={budget} is enough for {chosen.describe()}"
    if longer:
        more = (costs.secs(longer) + START_SECS + time.monotonic() - begun) / (1 - RESERVE)
        told += f"; {longer.describe()} would take {told_secs(more)}"
    _log.info("budget:      %s", told)
    return Experiment(
        experiment.asked,
        pictures=Pictures(experiment.source, experiment.scan, experiment.left_out, experiment.removed),
        chosen=recommend(chosen, num_train=costs.num_train, asked=experiment.asked),
    )


def choose(offers: Sequence[Effort], costs: "Costs", *, left_secs: float) -> tuple[Effort, Effort | None]:
    """Returns the last offer that ends in time, or the first one, and the next that is worth more time.

    That is the first one with larger pictures, or the last; None where there is none.
    """
    fitting = [number for number, offer in enumerate(offers) if costs.secs(offer) <= left_secs]
    at = fitting[-1] if fitting else 0
    beyond = offers[at + 1 :]
    larger = [offer for offer in beyond if offer.image_size != offers[at].image_size]
    return offers[at], next(iter([*larger, *beyond[-1:]]), None)


@dataclass(frozen=True)
class Costs:
    """What a run costs on this machine, in seconds.

    `step_secs` is that of an update of the whole network with `batch_size` pictures of `side_px`,
    `picture_secs` that of the features of one; `start_secs` comes before the first update of all.
    """

    num_train: int
    num_validation: int
    num_scored: int
    batch_size: int
    side_px: int
    step_secs: float
    picture_secs: float
    start_secs: float

    @classmethod
    def of(cls, experiment: Experiment, foreseen: Foreseen) -> "Costs":
        """Takes what was measured."""
        sizes = {split: len(part) for split, part in experiment.splits.indices.items()}
        finetune = foreseen.speeds[-1]
        return cls(
            num_train=sizes["train"],
            num_validation=sizes.get("validation", 0),
            num_scored=sizes.get("test", 0),
            batch_size=experiment.config.plan.batch_size,
            side_px=experiment.backbone.contract.width_px,
            step_secs=finetune.step_secs or 0.0,
            picture_secs=foreseen.picture_secs or 0.0,
            start_secs=finetune.start_secs or 0.0,
        )

    def secs(self, effort: Effort) -> float:
        """Returns how long a run takes from here to its end."""
        # What a network computes grows with the area.
        area = (effort.image_size / self.side_px) ** 2 if effort.image_size else 1.0
        num_pictures = self.num_train + self.num_validation + self.num_scored
        secs = (HEAD.start_secs or 0.0) + num_pictures * self.picture_secs * area + END_SECS
        if not effort.epochs:
            return secs
        batches = [math.ceil(count / self.batch_size) for count in (self.num_train, self.num_validation)]
        # Each epoch that is begun is evaluated at its end.
        steps = effort.epochs * batches[0] + EVALUATION * math.ceil(effort.epochs) * batches[1]
        scored = self.num_scored * self.picture_secs
        return secs + self.start_secs + (steps * self.step_secs + scored) * area
