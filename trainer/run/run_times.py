"""How long the phases of a run take: what is known of them before, and what the next run is told."""

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

from trainer.loop.callbacks import Every
from trainer.loop.phases import Phase
from trainer.model.cuts import WHOLE
from trainer.precision import machine, supported
from trainer.record.progress import PhaseLength, Speed, TimeLeft, remember, remembered
from trainer.run.arithmetic import speed_key
from trainer.run.feature_cache import cut_of_features, kept_pictures
from trainer.run.fitting import compared_alone
from trainer.run.stages import Stages
from trainer.store.places import cache_root
from trainer.values import Duration

# From the last step to the end, where no run has told yet: to draw and write a report.
END_SECS = 5.0
# A step computes gradients besides, which takes at least as long as what the features took.
STEP_OF_FORWARD = 2.0


def told_secs(secs: float) -> str:
    """Returns such as `40 s`, `4 min` or `1 h 20 min`, as exact as an estimate is."""
    if secs < 100:
        return f"{max(round(secs, -1), 10):.0f} s"
    hours, minutes = divmod(round(secs / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


class RunTimes:
    """Makes the estimate of the time left of a run, `left`, and keeps what was measured for the next run."""

    def __init__(self, stages: Stages, *, foreseen: Sequence[Speed] = ()):
        """Takes what is remembered, or else what was measured before.

        Args:
          stages: of the run.
          foreseen: what was measured of each phase, for what is not remembered; may be empty.
        """
        self._foreseen = foreseen
        config = stages.experiment.config
        self._stages, self._folder = stages, cache_root(config.run.cache_dir) / "speeds"
        self._keys = [self._key(phase) for phase in stages.experiment.plan.phases]
        self._end_key = {**self._keys[-1], "end": {k: len(v) for k, v in self._splits.items()}}
        if stages.picture_secs is None:
            stages.take({}, picture_secs=remembered(self._folder, self._picture_key).step_secs)
        end_secs = remembered(self._folder, self._end_key).start_secs
        self.left = TimeLeft(
            [self._length(phase) for phase in stages.experiment.plan.phases],
            end_secs=END_SECS if end_secs is None else end_secs,
            once_secs=lambda: stages.once_secs,
            once_secs_left=stages.once_secs_left,
        )

    @property
    def _splits(self) -> dict[str, Any]:
        return self._stages.experiment.splits.indices

    def _length(self, phase: Phase) -> PhaseLength:
        experiment, stages = self._stages.experiment, self._stages
        config, num_examples = experiment.config, len(self._splits["train"])
        batch_size = config.plan.batch_size
        every = Every(
            Duration.parse(config.run.evaluate_every),
            experiment.plan,
            num_examples=num_examples,
            batch_size=batch_size,
        )
        cut = cut_of_features(experiment, phase.spec)
        kind = "forward" if cut and cut.name == WHOLE else "train step"
        choice = stages.arithmetic.known(phase, kind, key=speed_key(experiment, phase, cut))
        speed = remembered(self._folder, self._keys[phase.index])
        if choice is None and stages.arithmetic.asked == "auto" and len(supported()) > 1:
            # It begins with a measurement.
            speed = dataclasses.replace(speed, start_secs=None)
        if speed.step_secs is None and choice and kind == "train step":
            speed = Speed(step_secs=choice.step_secs.get(choice.precision))

        if self._foreseen:
            speed = speed.or_else(self._foreseen[phase.index])

        def least_step_secs() -> float:
            return 0.0 if cut else STEP_OF_FORWARD * batch_size * (stages.picture_secs or 0.0)

        return PhaseLength(
            phase.start_step,
            phase.stop_step,
            speed,
            evaluations_after=lambda step: every.count(step, phase.stop_step),
            evaluation_batches=math.ceil(len(self._splits["validation"]) / batch_size),
            least_step_secs=least_step_secs,
        )

    @property
    def is_known(self) -> bool:
        """Whether it is known how long all of a run takes that is to begin."""
        speeds = [self.left.speed(number) for number in range(len(self._keys))]
        if self._pictures_once and self._stages.picture_secs is None:
            return False
        return all(speed.step_secs is not None and speed.start_secs is not None for speed in speeds)

    def describe(self) -> str:
        """Returns how long all of a run takes that is to begin, such as `about 4 min`."""
        once_secs = self._pictures_once * (self._stages.picture_secs or 0.0)
        secs, is_known = self.left.estimate()
        # Some of it is in the estimate.
        secs += (self.left.speed(0).start_secs or 0.0) + max(once_secs - self._stages.once_secs_left(), 0.0)
        return f"{'about' if is_known else 'at least'} {told_secs(secs)}"

    @functools.cached_property
    def _pictures_once(self) -> int:
        """How many pictures go through the network besides updates and scores, in a run that is to begin.

        Those are the pictures whose features are kept and have not been computed, each view for itself, and
        those that the report is compared with.
        """
        experiment, phases = self._stages.experiment, self._stages.experiment.plan.phases
        later = kept_pictures(experiment, phases) - kept_pictures(experiment, phases[:1])
        return self._stages.current().missing(*self._splits) + later + compared_alone(experiment, phases)

    @property
    def _picture_key(self) -> dict[str, Any]:
        """Everything that it depends on how long a picture takes through the network."""
        experiment = self._stages.experiment
        config = experiment.config
        return {
            "picture": config.data.source,
            "decode": config.data.decode,
            "network": experiment.backbone.fingerprint,
            "contract": str(experiment.backbone.contract),
            "batch_size": config.plan.batch_size,
            "replicas": experiment.strategy.num_replicas_in_sync,
            "precision": config.speed.precision,
            "engine": config.speed.engine,
            "machine": machine(),
        }

    def _key(self, phase: Phase) -> dict[str, Any]:
        """Returns everything that the speed of a phase depends on."""
        experiment = self._stages.experiment
        config, cut = experiment.config, cut_of_features(experiment, phase.spec)
        # Over kept features no picture is read; others take as long as it takes to read them.
        pictures = None if cut else [config.data.source, config.speed.picture_cache]
        return {
            **speed_key(experiment, phase, cut),
            "pictures": pictures,
            "precision": config.speed.precision,
            "augment": [str(phase.spec.augment), config.speed.feature_views],
            "decode": config.data.decode,
            "num_validation": len(self._splits["validation"]),
            "machine": machine(),
        }

    def remember(self) -> None:
        """Keeps what was measured of the phases that this process worked on, and of their pictures."""
        for number, key in enumerate(self._keys):
            if speed := self.left.measured(number):
                remember(self._folder, key, speed)
        if self._stages.picture_secs is not None:
            remember(self._folder, self._picture_key, Speed(step_secs=self._stages.picture_secs))

    @contextlib.contextmanager
    def remembered_end(self) -> Iterator[None]:
        """Keeps how long a block takes that does what comes after the last step."""
        begun, once = time.monotonic(), self._stages.once_secs
        yield
        secs = time.monotonic() - begun - (self._stages.once_secs - once)
        remember(self._folder, self._end_key, Speed(start_secs=secs))
