"""Trials of heads over kept features, in one process: what is traced is traced once for all of them.

A trial gives the numbers of a run of `train` with its options, and leaves no checkpoint: it takes less time
than to begin a run.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from trainer.cli.config import Config
from trainer.loop.best_and_stop import Best, EarlyStop, Judge, Plateau
from trainer.loop.callbacks import Callback, Every
from trainer.loop.evaluator import Evaluation
from trainer.loop.loop import train
from trainer.loop.objectives import start
from trainer.loop.phases import Phase
from trainer.loop.standard_callbacks import Evaluate, Guard, Stop
from trainer.loop.state import TrainState
from trainer.loop.step import Run
from trainer.loop.stopwatch import Stopwatch
from trainer.run.experiment import Experiment
from trainer.run.scoring import measures
from trainer.run.session import make_stages
from trainer.run.stages import Stage
from trainer.values import Dial, Duration, Interrupted, of_one_device

DIALS = ("dropout", "label_smoothing", "frozen_learning_rate", "finetune_learning_rate", "weight_decay")
"""Options whose values need no trace of their own, as long as none of them becomes 0 or is 0 no more."""
OF_HEADS = frozenset(
    (
        *("head", "logits", "dropout", "schedule", "phase", "frozen_for", "frozen_learning_rate"),
        *("optimizer", "momentum", "nesterov", "weight_decay", "lr_schedule", "warmup", "average"),
        *("batch_size", "objective", "loss", "gradient_rule", "metrics", "label_smoothing"),
        *("class_weights", "sampling", "lr_multiplier", "clip_norm", "clip_value", "early_stop"),
        *("patience", "min_change", "evaluate_every", "seed", "accumulate"),
    )
)
"""Options that a trial of a head may set: all others say which features there are."""
MOST_KEPT = 8
"""Traces that are kept for later trials; of more, those not used for longest go."""

Told = Callable[[int, Mapping[str, float]], str]
"""(how many evaluations there were, numbers of the last one) -> why the trial is to end, or an empty text."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a trial came to.

    `best` are the numbers of validation with the weights that a run would keep, `step` says after how many
    updates these were. `ended` says why the trial ended early, and then they are the last ones; empty: it
    did not.
    """

    best: dict[str, float]
    step: int
    ended: str = ""


def why_not_alone(experiment: Experiment) -> str:
    """Returns why trials of an experiment are no trials of heads over kept features; empty: they are."""
    config = experiment.config
    if config.fitted_head:
        return f"--head={config.model.head} is fitted"
    if config.model.init_from:
        return "--init_from begins with the weights of another run"
    if config.run.callbacks:
        return "--callbacks may act on a run"
    if config.speed.feature_cache == "off":
        return "--feature_cache=off"
    if config.data.folds:
        return "--folds"
    if any(experiment.trained_in_backbone(phase.spec) for phase in experiment.plan.phases):
        return "they train the network"
    if any(experiment.augment(phase.spec) for phase in experiment.plan.phases):
        return "pictures change from epoch to epoch"
    stage = make_stages(experiment, decided={}).stage_of(experiment.plan.phases[0])
    return "" if stage.only_head else "features of the whole network cannot be kept"


class HeadTrials:
    """Trains heads on what one network makes of the pictures of an experiment."""

    def __init__(self, experiment: Experiment, *, decided: Mapping[str, Any]):
        """Notes where the pictures are.

        Args:
          experiment: of any of the trials.
          decided: the precision of each phase, as run.json has it.
        """
        self._experiment, self._decided = experiment, decided
        self._programs: dict[tuple[Any, ...], _Program] = {}

    def run(self, config: Config, *, told: Told, requested: Callable[[], str]) -> Outcome:
        """Trains a head from the beginning.

        Args:
          config: as it would be asked for of `train`.
          told: hears of each evaluation, and may end the trial.
          requested: why all work is to stop; empty: it is not.

        Raises:
          Interrupted: it was asked to stop; nothing of the trial is kept.
          NonFinite: an update made numbers that nobody can go on with.
          UsageError: options do not fit one another.
        """
        key = _structure(config)
        program = self._programs.pop(key, None) or _Program(self._experiment, config, decided=self._decided)
        self._decided = program.decided
        if program.is_shared:
            self._programs[key] = program
            for oldest in list(self._programs)[:-MOST_KEPT]:
                del self._programs[oldest]
        program.turn(config)
        return program.run(told=told, requested=requested)


def _structure(config: Config) -> tuple[Any, ...]:
    """Returns what a trace depends on: trials that have it in common can share one."""
    values = config.identity_values() | {"evaluate_every": config.run.evaluate_every}
    if not _has_dials(config):
        return tuple(values.items())
    return tuple((name, bool(value) if name in DIALS else value) for name, value in values.items())


def _has_dials(config: Config) -> bool:
    """Returns whether numbers may be dials: what a plugin makes of them in a trace nobody knows."""
    return not config.run.plugin and not config.plan.phase


class _Program:
    """A head with all that trains it, traced once, that can begin anew with other rates."""

    def __init__(self, experiment: Experiment, config: Config, *, decided: Mapping[str, Any]):
        self._dials: dict[str, list[Dial]] = {}
        self._variables: list[tuple[tf.Variable, tf.Variable]] = []
        turn = self._dial if _has_dials(config) else None
        with experiment.strategy.scope():
            made = experiment.variant(config, turn=turn) if turn else experiment.variant(config)
        self._experiment = made
        self._stages = make_stages(made, decided=decided)
        start(made.recipe.objective)
        state = self._stages.state
        self.is_shared = len(made.plan.phases) == 1
        constant = state.constant()
        self._begin = {
            name: (variable, of_one_device(variable).numpy())
            for name, variable in state.variables().items()
            if name not in constant
        }
        self._scored: Stage | None = None
        self._scorer: Callable[[], Evaluation] = lambda: self._stages.evaluate("validation")
        self._runs: dict[int, Run] = {}
        self._batches: dict[int, tf.data.Dataset] = {}

    @property
    def decided(self) -> Mapping[str, Any]:
        """The precision of each phase, as run.json has it."""
        return self._stages.arithmetic.decided

    def _dial(self, name: str, value: float) -> float:
        dial = Dial(value)
        dial.variable, dial.rest = (tf.Variable(v, trainable=False) for v in (float(value), 1.0 - value))
        self._dials.setdefault(name, []).append(dial)
        return dial

    def turn(self, config: Config) -> None:
        """Sets all numbers that a trace reads from variables."""
        if not self._dials:
            return
        settled = self._experiment.config_of(config)
        [spec] = settled.phases
        values = {
            "dropout": settled.model.dropout,
            "label_smoothing": settled.update.label_smoothing,
            "learning_rate": spec.learning_rate,
            "weight_decay": spec.weight_decay,
        }
        for name, dials in self._dials.items():
            for dial in dials:
                dial.variable.assign(values[name])
                dial.rest.assign(1.0 - values[name])

    def run(self, *, told: Told, requested: Callable[[], str]) -> Outcome:
        """Trains from the beginning to the end of the plan, or until `told` says why not."""
        experiment, state = self._experiment, self._stages.state
        self._reset(state)
        # The features, of the first trial, and batches that are scored one by one.
        self._stages.between_batches = lambda: _leave_if(requested())
        listener = _Listener(told)
        judges: list[Judge] = [Best(save_best=listener.note_best), Plateau(say=_silent)]
        update = experiment.config.update
        if update.early_stop:
            waits: dict[str, Any] = {"patience": update.patience, "min_change": update.min_change}
            judges.append(EarlyStop(update.early_stop, **waits, save=_silent, say=_silent))
        judges.append(listener)
        callbacks: list[Callback] = [
            Guard(examples=lambda step: [], max_loss=experiment.config.guard.max_loss or math.inf),
            Evaluate(
                self._every(), evaluate=self._evaluate, writer=_Nowhere(), progress=_Nowhere(), then=judges
            ),
            *judges,
            Stop(requested=requested, save=_silent),
        ]
        with experiment.strategy.scope(), contextlib.suppress(_Ended):
            train(state, batches=self._training, make_run=self._make_run, callbacks=callbacks)
        if listener.ended:
            return Outcome(listener.last, state.step, listener.ended)
        return Outcome(listener.best, int(state.best["step"].numpy()))

    def _reset(self, state: TrainState) -> None:
        for variable, value in self._begin.values():
            variable.assign(value)
        state.unfit.step.assign(-1)
        state.stopwatch = Stopwatch()
        if state.shadows:
            state.shadows.start()

    def _training(self, phase: Phase, step: int) -> tf.data.Dataset:
        if phase.index not in self._batches:
            self._batches[phase.index] = self._stages.current().training(step)
        return self._batches[phase.index]

    def _make_run(self, state: TrainState, phase: Phase) -> Run:
        if phase.index not in self._runs:
            self._runs[phase.index] = self._stages.current().make_run()
        return self._runs[phase.index]

    def _evaluate(self) -> dict[str, float]:
        experiment, state, stage = self._experiment, self._stages.state, self._stages.scoring()
        if stage is not self._scored:
            self._scored, self._scorer = stage, stage.scorer("validation")
        with state.averaged():
            scored = self._scorer()
        return measures(scored, experiment.source.class_names, task=experiment.task)

    def _every(self) -> Every:
        experiment = self._experiment
        return Every(
            Duration.parse(experiment.config.run.evaluate_every),
            experiment.plan,
            num_examples=len(experiment.splits.indices["train"]),
            batch_size=experiment.config.plan.batch_size,
        )


class _Ended(Exception):
    """A trial is not worth going on with."""


class _Listener(Judge):
    """Tells whoever runs a trial of each evaluation, and ends the trial where that one says so."""

    def __init__(self, told: Told):
        self._told, self._count = told, 0
        self.best: dict[str, float] = {}
        self.last: dict[str, float] = {}
        self.ended = ""
        self._is_best = False

    def note_best(self, state: TrainState) -> None:
        self._is_best = True

    def judge(self, state: TrainState, values: Mapping[str, float]) -> None:
        if self._is_best:
            self.best, self._is_best = dict(values), False
        self.last = dict(values)
        self._count += 1
        self.ended = self._told(self._count, values)
        if self.ended:
            raise _Ended


class _Nowhere:
    """A writer and a progress of which nothing stays."""

    def scalars(
        self, split: str, step: int, values: Mapping[str, float], timing: Mapping[str, float] | None = None
    ) -> None: ...
    def at(self, step: int, train: Mapping[str, float]) -> None: ...
    def evaluated(self, step: int, validation: Mapping[str, float]) -> None: ...


def _leave_if(why: str) -> None:
    if why:
        raise Interrupted(f"{why}: stopped")


def _silent(*told: object) -> None:
    """Says and saves nothing."""
