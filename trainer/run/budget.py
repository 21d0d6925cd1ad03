"""`--budget=5min`: the most of what is recommended that ends in time on this machine, by measured steps."""

import contextlib
import dataclasses
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from trainer.cli.config import Config
from trainer.cli.declare import budget_secs
from trainer.data.configured import Pictures
from trainer.loop.callbacks import Every
from trainer.loop.phases import make_plan
from trainer.record.progress import Speed
from trainer.run.experiment import Experiment
from trainer.run.feature_cache import kept_pictures
from trainer.run.fitting import compared_alone
from trainer.run.foresight import HEAD, Foreseen, foresee
from trainer.run.recommended import Effort, efforts, recommend, sizes_of, usual_effort
from trainer.run.run_times import END_SECS, told_secs
from trainer.values import Duration, UsageError

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
    num_train = len(experiment.splits.indices["train"])
    chosen, longer = choose(offers_to(experiment), costs, left_secs=left)
    if costs.secs(chosen) > left:
        _log.warning(
            "--budget=%s is too short for %s on this machine, the least there is: it takes about %s",
            budget, chosen.describe(), told_secs(costs.secs(chosen)),
        )  # fmt: skip
    else:
        told = f"--budget={budget} is enough for {chosen.describe()}"
        if longer:
            more = (costs.secs(longer) + START_SECS + time.monotonic() - begun) / (1 - RESERVE)
            told += f"; {longer.describe()} would take {told_secs(more)}"
        _log.info("budget:      %s", told)
    return Experiment(
        experiment.asked,
        pictures=Pictures(experiment.source, experiment.scan, experiment.left_out, experiment.removed),
        chosen=recommend(chosen.effort, num_train=num_train, asked=experiment.asked),
    )


@dataclass(frozen=True)
class Offer:
    """A run that may be chosen: an effort, and what it comes to beside the options that are set by hand.

    `phases` has the updates and the evaluations of each; `num_once` is how many pictures go through the
    network before the first update. `by_hand` are the options that say how long it is, as they were written.
    """

    effort: Effort
    phases: tuple[tuple[int, int], ...]
    num_once: int = 0
    by_hand: tuple[str, ...] = ()

    def describe(self) -> str:
        """Returns such as `6 epochs of fine-tuning at 288 px`, or `fine-tuning (--finetune_for=9epochs)`."""
        told = self.effort.describe()
        if any(option.startswith("--finetune_for=") for option in self.by_hand):
            told = told[told.index("fine-tuning") :]
        return told + (f" ({' '.join(self.by_hand)})" if self.by_hand else "")


def offers_to(experiment: Experiment) -> list[Offer]:
    """Returns what may be chosen of a run, from the least to the most; one at least."""
    config, num_train = experiment.asked, len(experiment.splits.indices["train"])
    found = []
    for effort in _efforts(config, num_train=num_train):
        settled = config.filled_in(recommend(effort, num_train=num_train, asked=config))
        sizes = {"num_examples": num_train, "batch_size": settled.plan.batch_size}
        # A warm-up that is set by hand may be longer than a short phase.
        with contextlib.suppress(UsageError):
            plan = make_plan(settled.phases, **sizes)
            every = Every(Duration.parse(config.run.evaluate_every), plan, **sizes)
            steps = [(phase.start_step, phase.stop_step) for phase in plan.phases]
            phases = tuple((stop - start, every.count(start, stop)) for start, stop in steps)
            # What is kept does not depend on the lengths, and is known of the phases that there are.
            own = zip(plan.phases, experiment.plan.phases, strict=False)
            known = [dataclasses.replace(phase, spec=other.spec) for phase, other in own]
            num_once = kept_pictures(experiment, known) + compared_alone(experiment, known)
            found.append(Offer(effort, phases, num_once, _lengths_by_hand(config, effort)))
    return found


def _efforts(config: Config, *, num_train: int) -> list[Effort]:
    """Returns the efforts that are left to choose between: of a length that is set by hand, the sizes."""
    found = efforts(num_train, sizes=sizes_of(config))
    if "finetune_for" not in config.plan.by_hand:
        return found
    usual = usual_effort(num_train).epochs
    return [effort for effort in found if effort.epochs == usual]


def _lengths_by_hand(config: Config, effort: Effort) -> tuple[str, ...]:
    """Returns the options that are set by hand and say how long a run takes, as they were written."""
    names: list[str] = [name for name in ("frozen_for", "finetune_for") if name in config.plan.by_hand]
    names += ["evaluate_every"] * (config.run.evaluate_every != Config().run.evaluate_every)
    values = config.flat()
    return tuple(f"--{name}={values[name]}" for name in names if effort.epochs or name != "finetune_for")


def choose(offers: Sequence[Offer], costs: "Costs", *, left_secs: float) -> tuple[Offer, Offer | None]:
    """Returns the last offer that ends in time, or the first one, and the next that is worth more time.

    That is the first one with larger pictures, or the last; None where there is none.
    """
    fitting = [number for number, offer in enumerate(offers) if costs.secs(offer) <= left_secs]
    at = fitting[-1] if fitting else 0
    beyond = offers[at + 1 :]
    larger = [offer for offer in beyond if offer.effort.image_size != offers[at].effort.image_size]
    return offers[at], next(iter([*larger, *beyond[-1:]]), None)


@dataclass(frozen=True)
class Costs:
    """What a run costs on this machine, in seconds.

    `speeds` are those of the phases with pictures of `side_px`, `picture_secs` is what one of them takes
    through the network; `num_scored` is the size of the test split.
    """

    num_scored: int
    side_px: int
    speeds: tuple[Speed, ...]
    picture_secs: float

    @classmethod
    def of(cls, experiment: Experiment, foreseen: Foreseen) -> "Costs":
        """Takes what was measured."""
        sizes = {split: len(part) for split, part in experiment.splits.indices.items()}
        num_validation, picture_secs = sizes.get("validation", 0), foreseen.picture_secs or 0.0
        batches = math.ceil(num_validation / experiment.config.plan.batch_size)

        def with_evaluation(speed: Speed) -> Speed:
            least_secs = EVALUATION * batches * (speed.step_secs or 0.0)
            return dataclasses.replace(speed, evaluation_secs=max(least_secs, num_validation * picture_secs))

        return cls(
            num_scored=sizes.get("test", 0),
            side_px=experiment.backbone.contract.width_px,
            speeds=tuple(one if one == HEAD else with_evaluation(one) for one in foreseen.speeds),
            picture_secs=picture_secs,
        )

    def secs(self, offer: Offer) -> float:
        """Returns how long a run takes from here to its end."""
        # What a network computes grows with the area; over features that are kept, a head does not.
        size = offer.effort.image_size
        area = (size / self.side_px) ** 2 if size else 1.0
        speeds = self.speeds[: len(offer.phases)]
        # What the last phase made is scored anew, where its network was not kept.
        num_pictures = offer.num_once + (self.num_scored if speeds[-1] != HEAD else 0)
        secs = END_SECS + num_pictures * self.picture_secs * area
        for (updates, evaluations), speed in zip(offer.phases, speeds, strict=True):
            each = updates * (speed.step_secs or 0.0) + evaluations * (speed.evaluation_secs or 0.0)
            secs += (speed.start_secs or 0.0) + each * (1.0 if speed == HEAD else area)
        return secs
