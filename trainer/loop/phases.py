"""The plan of a run: phases as ranges of steps, and the learning rate as a function of the step."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf
import tf_keras

from trainer.cli.phase_specs import PhaseSpec
from trainer.loop.averages import Average, make_average
from trainer.loop.schedules import Course, Plateau, along, choose_schedule, plateau_of
from trainer.registry import Choice
from trainer.values import UsageError, turned


@dataclass(frozen=True)
class Phase:
    """The steps [start_step, stop_step) under one recipe."""

    index: int
    spec: PhaseSpec
    start_step: int
    stop_step: int
    warmup_steps: int
    steps_per_epoch: int

    @property
    def num_steps(self) -> int:
        return self.stop_step - self.start_step

    @functools.cached_property
    def schedule(self) -> Choice[Course]:
        """The course of the learning rate."""
        return choose_schedule(self.spec.lr_schedule, warmup=self.warmup_steps > 0)

    @property
    def plateau(self) -> Plateau | None:
        """How evaluations lower the learning rate, if they do."""
        return plateau_of(self.schedule)

    @functools.cached_property
    def average(self) -> Average | None:
        """What each update keeps of the average of the weights, if there is one."""
        return make_average(self.spec.average, num_steps=self.num_steps, steps_per_epoch=self.steps_per_epoch)

    def learning_rate(self, step: int) -> float:
        """Returns the rate of the update that takes `step` to `step + 1`."""
        return float(PhaseSchedule(self)(step - self.start_step))

    def describe(self) -> str:
        """Returns the recipe in one line."""
        spec = self.spec
        parts = [f"{spec.name}, steps {self.start_step:,} to {self.stop_step:,}"]
        rule = f"{spec.optimizer} with Nesterov's momentum" if spec.nesterov else str(spec.optimizer)
        parts.append(f"{rule} at {spec.learning_rate:g} ({spec.lr_schedule})")
        parts += [f"warm-up {self.warmup_steps:,} steps"] if self.warmup_steps else []
        parts.append(f"BatchNorm statistics {'stored' if spec.bn == 'frozen' else 'of the batch'}")
        parts += [f"augment {spec.augment}"] if spec.augment else []
        parts += [f"weights averaged by {spec.average}"] if spec.average else []
        return ", ".join(parts)


@dataclass(frozen=True)
class Plan:
    """All phases of a run, one after another from step 0."""

    phases: tuple[Phase, ...]
    steps_per_epoch: int

    @property
    def total_steps(self) -> int:
        return self.phases[-1].stop_step

    def phase_at(self, step: int) -> Phase:
        """Returns the phase of the update after `step`; at the very end, the last phase."""
        return next((phase for phase in self.phases if step < phase.stop_step), self.phases[-1])


def make_plan(specs: Sequence[PhaseSpec], *, num_examples: int, batch_size: int) -> Plan:
    """Turns lengths into steps, and names into what they stand for.

    Raises:
      UsageError: a warm-up is longer than its phase, or a phase asks for what there is not.
    """
    phases: list[Phase] = []
    steps_per_epoch = math.ceil(num_examples / batch_size)
    for index, spec in enumerate(specs):
        start = phases[-1].stop_step if phases else 0
        length = spec.duration.to_steps(num_examples=num_examples, batch_size=batch_size)
        warmup = spec.warmup.to_steps(num_examples=num_examples, batch_size=batch_size, total_steps=length)
        if warmup > length:
            raise UsageError(
                f"phase {spec.name}: a warm-up of {spec.warmup} ({warmup} steps) is longer than the phase "
                f"({length} steps)"
            )
        phase = Phase(index, spec, start, start + length, warmup, steps_per_epoch)
        try:
            _ = phase.schedule, phase.average
        except UsageError as error:
            raise UsageError(f"phase {spec.name}: {error}") from None
        phases.append(phase)
    return Plan(tuple(phases), steps_per_epoch)


class PhaseSchedule(tf_keras.optimizers.schedules.LearningRateSchedule):
    """The learning rate by the number of steps since the start of a phase, for Keras's optimizers.

    With a variable that counts the steps of the run, [] int64, it goes by that one, whatever it is called
    with: Keras calls it with the number of updates, and of some steps the update is left out.
    """

    def __init__(self, phase: Phase, step: tf.Variable | None = None):
        super().__init__()
        self._step, self._start_step = step, phase.start_step
        self._peak = phase.spec.learning_rate
        self._factor = along(phase.schedule, warmup_steps=phase.warmup_steps, num_steps=phase.num_steps)

    def __call__(self, step: tf.Tensor | int) -> tf.Tensor:
        return turned(self._peak) * self._factor(
            step if self._step is None else self._step - self._start_step
        )

    def get_config(self) -> dict[str, Any]:
        raise TypeError("a phase's schedule is rebuilt from the run's flags, not from a Keras config")
