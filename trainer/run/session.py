"""The training loop of a run with its state and callbacks, and what they are handed."""

import functools
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from trainer.loop import monitoring as watching
from trainer.loop.best_and_stop import Best, EarlyStop, Judge, Plateau
from trainer.loop.callbacks import CALLBACKS, Callback, Every, RunView
from trainer.loop.evaluator import Evaluation
from trainer.loop.loop import train
from trainer.loop.objectives import metric_names_of, variables_of
from trainer.loop.phases import Phase
from trainer.loop.standard_callbacks import Evaluate, Guard, Log, Save, Stop, stopped
from trainer.loop.state import TrainState
from trainer.loop.step import Run
from trainer.model.freezing import summary
from trainer.record.checkpoint_values import Base
from trainer.record.checkpoints import Checkpoints
from trainer.record.profile import Profiler
from trainer.record.progress import Progress, counting
from trainer.record.summaries import Summaries
from trainer.record.workdir import Workdir
from trainer.run.arithmetic import Arithmetic
from trainer.run.experiment import Experiment
from trainer.run.fitting import PretrainedFeatures, fit_head, record_pretrained
from trainer.run.introduction import draw_evaluation, show_pictures
from trainer.run.picture_cache import keep_pictures
from trainer.run.scoring import measures
from trainer.run.stages import Stages
from trainer.run.team import team
from trainer.runtime import StopSignal
from trainer.values import Duration, Interrupted, parse_calls


class _Asked(KeyboardInterrupt):
    """The run was asked to stop in the middle of an evaluation, or of features being computed."""


def run_loop(
    stages: Stages, checkpoints: Checkpoints, summaries: Summaries, progress: Progress, stop: StopSignal
) -> None:
    """Trains from the state's step to the end of the plan.

    Raises:
      Interrupted: the run was asked to stop, and is saved.
      NonFinite: an update made numbers that nobody can go on with.
    """
    _Session(stages, checkpoints, summaries, progress, stop).train()


class _Session:
    """One start of a run, until it ends or is stopped: what the callbacks do is a method each."""

    def __init__(
        self,
        stages: Stages,
        checkpoints: Checkpoints,
        summaries: Summaries,
        progress: Progress,
        stop: StopSignal,
    ):
        self._stages, self._experiment, self._config = stages, stages.experiment, stages.experiment.config
        self._checkpoints, self._summaries, self._progress = checkpoints, summaries, progress
        self._stop, self._plan = stop, stages.experiment.plan
        self._evaluations = self._every(self._config.run.evaluate_every)
        self._guard = Guard(examples=self._examples, max_loss=self._config.guard.max_loss or math.inf)
        self._scored: Evaluation | None = None
        self._profile = _profile(self._experiment)
        self._figures = _figures(self._experiment, summaries, self._every)

    def train(self) -> None:
        """Trains to the end of the plan."""
        stages = self._stages
        try:
            # Not by the clock: a run that is given little time at each start would never come to a step.
            stages.between_batches = self._leave_if_told
            keep_pictures(stages)
            if stages.state.step == 0:
                features = PretrainedFeatures(stages)
                fit_head(features)
                workdir = Workdir(self._config.run.workdir)
                record_pretrained(features, workdir)
                if assumed := self._experiment.assumed_prevalence():
                    workdir.amend_run(assumed_prevalence=assumed)
            stages.between_batches = self._leave_if_asked
            train(
                stages.state,
                batches=lambda phase, step: stages.current().training(step),
                make_run=self._make_run,
                callbacks=self._callbacks(),
                on_phase=self._introduce,
            )
        except _Asked as asked:
            # Only here, where whatever was being scored has put the weights back that are trained.
            raise self._stopped(str(asked)) from None
        finally:
            for one in self._profile:
                one.close()
        # What is scored from here on is no state to go on from.
        stages.between_batches = lambda: None

    def _callbacks(self) -> list[Callback]:
        """Returns them in their order; see `callbacks`."""
        run, every, judges = self._config.run, self._every, self._judges()
        before_save, after = _registered(self._stages, self._summaries, self._progress, every)
        writing: dict[str, Any] = {"writer": self._summaries, "progress": self._progress}
        return [
            *self._profile,
            self._guard,
            Log(every(run.log_every), **writing),
            *_histograms(self._experiment, self._summaries, every),
            *before_save,
            Save(every(run.save_every), save=self._save, every_secs=run.save_every_secs, clock=team().clock),
            Evaluate(self._evaluations, evaluate=self._evaluate, then=judges, **writing),
            *judges,
            *self._figures,
            *after,
            Stop(requested=self._stop.requested, save=self._save_once, clock=team().clock),
        ]

    def _judges(self) -> list[Judge]:
        update, say = self._config.update, self._progress.say
        judges: list[Judge] = [Best(save_best=self._save_best), Plateau(say=say)]
        if update.early_stop:
            waits: dict[str, Any] = {"patience": update.patience, "min_change": update.min_change}
            judges.append(EarlyStop(update.early_stop, **waits, save=self._save_once, say=say))
        return judges

    def _every(self, text: str) -> Every:
        num_examples = len(self._experiment.splits.indices["train"])
        batch_size = self._config.plan.batch_size
        return Every(Duration.parse(text), self._plan, num_examples=num_examples, batch_size=batch_size)

    def _examples(self, step: int) -> list[str]:
        """Returns the ids of the batch of a step."""
        experiment = self._experiment
        at = experiment.pipeline.positions(experiment.splits.indices["train"], step=step)
        return [experiment.source.ids[i] for i in at.tolist()]

    def _save(self, state: TrainState) -> None:
        self._guard.check_weights(state)
        # First, so that no checkpoint counts what is not yet written.
        self._summaries.sync()
        self._checkpoints.save(state.variables(), step=state.step, base=base_of(state))

    def _save_best(self, state: TrainState) -> None:
        self._guard.check_weights(state)
        # What is best only because the run ends here is not best in a longer one: see `extending`.
        is_last = state.step == self._plan.total_steps and not self._evaluations.is_multiple(state.step)
        base = base_of(state)
        self._checkpoints.save_best(state.variables(), step=state.step, base=base, in_place=not is_last)
        self._stages.best_scored = (state.step, self._scored) if self._scored else None

    def _save_once(self, state: TrainState) -> None:
        # EarlyStop has saved already. This step is the last one of its phase, which no update has come to: a
        # run that went on from it would evaluate it.
        if state.is_cut_short:
            return
        # What Save has written at this step is what a run that nobody stops leaves: it holds nothing of an
        # evaluation of the step, which is made again.
        path = self._checkpoints.latest()
        if path is None or self._checkpoints.step_of(path) != state.step:
            self._save(state)

    def _evaluate(self) -> dict[str, float]:
        scored = self._scored = self._stages.evaluate("validation")
        for one in self._figures:
            one.keep(scored, step=self._stages.state.step)
        values = measures(scored, self._experiment.source.class_names, task=self._experiment.task)
        # What is best, and when to stop, must not depend on how a processor rounds.
        return dict(team().agree("the scores of validation", values))

    def _make_run(self, state: TrainState, phase: Phase) -> Run:
        run: Run = self._stages.current().make_run()
        for one in self._profile:
            run = one.around(run, state)
        return run

    def _introduce(self, state: TrainState) -> None:
        """Says what the phase is that begins."""
        phase = state.phase
        rows = self._experiment.classifier.freezing_table(phase.spec.train)
        fits = self._config.fits
        self._progress.say(
            "phase fit: nothing trains" if fits else f"phase {phase.describe()}: {summary(rows)}"
        )
        if state.step == phase.start_step:
            show_pictures(self._experiment, self._summaries, phase)

    def _leave_if_told(self) -> None:
        if why := self._stop.received():
            raise _Asked(why)

    def _leave_if_asked(self) -> None:
        if why := self._stop.requested():
            raise _Asked(why)

    def _stopped(self, why: str) -> Interrupted:
        """Saves, and returns what is to be said."""
        if self._stages.state.step == 0:
            return Interrupted(f"{why}: stopped before the first step. Run the same command to start again")
        self._save_once(self._stages.state)
        return stopped(why, self._stages.state)


def _registered(
    stages: Stages, summaries: Summaries, progress: Progress, every: Callable[[str], Every]
) -> tuple[list[Callback], list[Callback]]:
    """Returns the callbacks that --callbacks names: those that come before Save, and the others."""
    found: dict[bool, list[Callback]] = {True: [], False: []}
    for call in parse_calls(stages.experiment.config.run.callbacks):
        choice = CALLBACKS.choose(call)
        before_save = bool(choice.entry.facts.get("before_save"))
        view = RunView(
            stages.experiment,
            every=every,
            scalar=partial(summaries.scalar, "train" if before_save else "validation"),
            evaluate=lambda: stages.evaluate("validation"),
            say=progress.say,
        )
        found[before_save].append(choice(run=view))
    return found[True], found[False]


def _profile(experiment: Experiment) -> list[watching.Profile]:
    """Returns the callback that --profile_steps asks for, if it does."""
    run = experiment.config.run
    if not run.profile_steps:
        return []
    first, last = watching.profile_range(run.profile_steps, total_steps=experiment.plan.total_steps)
    return [watching.Profile(first, last, profiler=Profiler(Workdir(run.workdir)))]


def _histograms(
    experiment: Experiment, summaries: Summaries, every: Callable[[str], Every]
) -> list[watching.Histograms]:
    """Returns the callback that --histograms_every asks for, if it does."""
    text = experiment.config.run.histograms_every
    return [watching.Histograms(every(text), write=partial(summaries.histograms, "train"))] if text else []


def _figures(
    experiment: Experiment, summaries: Summaries, every: Callable[[str], Every]
) -> list[watching.Figures]:
    """Returns the callback that --figures_every asks for, if it does."""
    run = experiment.config.run
    if not run.figures_every:
        return []
    draw = partial(draw_evaluation, experiment, summaries)
    return [watching.Figures(every(run.figures_every), evaluations=every(run.evaluate_every), draw=draw)]


def make_stages(
    experiment: Experiment,
    *,
    decided: Mapping[str, Any],
    on_decision: Callable[[Mapping[str, Any]], None] = lambda decided: None,
) -> Stages:
    """Makes the state of a run that has not begun, and what its phases run on.

    In the precisions `decided` before; `on_decision` is told all, when one is added.
    """
    config, recipe = experiment.config, experiment.recipe
    told = (*metric_names_of(recipe.objective), *metric_names_of(recipe.gradient_rule))
    with experiment.strategy.scope():
        state = TrainState(
            experiment.classifier,
            experiment.plan,
            lr_rules=config.update.lr_multiplier,
            layer_decay=config.update.layer_decay,
            metrics=[*recipe.metrics, *told],
            objective=variables_of(recipe.objective),
            gradient_rule=recipe.gradient_rule,
        )
    arithmetic = Arithmetic(
        config.speed.precision,
        decided=decided,
        cache_dir=config.run.cache_dir,
        on_decision=on_decision,
    )
    watch = functools.partial(counting, config.run.progress)
    return Stages(experiment, state, arithmetic=arithmetic, watch=watch)


def restore(stages: Stages, checkpoints: Checkpoints, path: str) -> None:
    """Puts a checkpoint into the model and the optimizer of its phase."""
    state = stages.state
    with stages.experiment.strategy.scope():
        state.jump(checkpoints.step_of(path))
        checkpoints.restore(state.variables(), path, base=base_of(state))


def base_of(state: TrainState) -> Base:
    """Returns what the checkpoints of the state's phase have in common."""
    return Base(f"phase-{state.phase.index}", state.phase.start_step, state.constant())
