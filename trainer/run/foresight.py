"""How long a run will take, before it begins: by what earlier runs remember, or by steps measured now."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainer.loop.phases import Phase
from trainer.model.cuts import WHOLE
from trainer.record.progress import Speed
from trainer.run.experiment import Experiment
from trainer.run.feature_cache import cut_of_features, kept_pictures
from trainer.run.fitting import compared_alone
from trainer.run.session import make_stages
from trainer.run.stages import Stage

# What is over sooner than it is measured is not measured: in pictures of the side below, see `work`.
LEAST_WORK = 600
USUAL_SIDE_PX = 224
# With each picture an update computes gradients besides, which takes twice as long.
PASSES_OF_AN_UPDATE = 3
# The first batch of a pipeline makes it, the others are read ahead.
TIMED_BATCHES = 3
# A head alone, over features that are kept, takes next to nothing on any machine.
HEAD = Speed(step_secs=0.003, evaluation_secs=0.1, start_secs=2.0)


@dataclass(frozen=True)
class Foreseen:
    """What was measured of the phases of a run.

    `speeds` has one for each phase; `picture_secs` is how long a picture takes through the network to its
    head, None where no phase says. `decided` is what `Arithmetic` decided meanwhile.
    """

    speeds: tuple[Speed, ...]
    picture_secs: float | None
    decided: Mapping[str, Any]


def foresee(experiment: Experiment, *, decided: Mapping[str, Any]) -> Foreseen:
    """Measures a step of each phase; the network and the run stay as they are.

    Args:
      experiment: what is to be run.
      decided: precisions that an earlier start of the run decided.
    """
    stages = make_stages(experiment, decided=decided)
    num_validation = len(experiment.splits.indices.get("validation", ()))
    speeds: list[Speed] = []
    picture_secs = None
    for phase in experiment.plan.phases:
        with experiment.strategy.scope():
            # What the optimizer keeps must be on all devices.
            stages.state.jump(phase.start_step)
        begun = time.monotonic()
        stage = stages.stage_of(phase)
        secs = stage.step_secs()
        # It is traced once more for the run itself, in a first step that takes as long.
        start_secs = max(time.monotonic() - begun - secs, 0.0)
        if stage.only_head:
            picture_secs = secs / stage.pictures_a_step
            speeds.append(HEAD)
        else:
            # What is kept below a cut is read in no time, and is only computed by the run itself.
            step_secs = secs if stage.cut else secs + _batch_secs(experiment, stage)
            if not stage.cut and not experiment.trained_in_backbone(phase.spec):
                # Such an update is one way through all of the network, as a score is.
                picture_secs = step_secs / stage.pictures_a_step
            elif picture_secs is None and (stage.cut or compared_alone(experiment, experiment.plan.phases)):
                picture_secs = stage.picture_secs()
            # All of the network goes over validation, where that is known of it.
            evaluation_secs = None if stage.cut or not picture_secs else num_validation * picture_secs
            speeds.append(Speed(step_secs, evaluation_secs, start_secs))
    return Foreseen(tuple(speeds), picture_secs, stages.arithmetic.decided)


def work(experiment: Experiment) -> float:
    """Returns about how much a run computes: as much as for how many pictures of 224 x 224 px.

    That is one way through the network each, of which an update has three; each view that is kept goes once,
    and so does what the report is compared with.
    """
    phases, contract = experiment.plan.phases, experiment.backbone.contract
    whole = [phase for phase in phases if not _is_head(experiment, phase)]
    steps = sum(phase.stop_step - phase.start_step for phase in whole)
    passes = PASSES_OF_AN_UPDATE * steps * experiment.config.plan.batch_size
    passes += kept_pictures(experiment, [phase for phase in phases if _is_head(experiment, phase)])
    passes += compared_alone(experiment, phases)
    return passes * contract.width_px * contract.height_px / USUAL_SIDE_PX**2


def _is_head(experiment: Experiment, phase: Phase) -> bool:
    cut = cut_of_features(experiment, phase.spec)
    return cut is not None and cut.name == WHOLE


def _batch_secs(experiment: Experiment, stage: Stage) -> float:
    """Returns how long it takes to read, decode and change the pictures of a batch."""
    batches = iter(stage.training(0, 1 + TIMED_BATCHES))
    next(batches)
    begun, made = time.monotonic(), 0
    for _ in batches:
        made += 1
    return (time.monotonic() - begun) / max(made, 1)
