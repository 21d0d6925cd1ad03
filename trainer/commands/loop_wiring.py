"""The training loop of a run with its callbacks, and what they are handed."""

import math
from collections.abc import Callable
from functools import partial

from trainer.commands.evaluate import base_of
from trainer.commands.introduction import draw_evaluation, show_pictures
from trainer.commands.scoring import measures
from trainer.experiment import Experiment
from trainer.loop import watching
from trainer.loop.callbacks import CALLBACKS, Callback, Every, RunView
from trainer.loop.guard import Guard
from trainer.loop.judges import Best, EarlyStop, Judge, Plateau
from trainer.loop.loop import train
from trainer.loop.phases import Phase
from trainer.loop.standard_callbacks import Evaluate, Log, Save, Stop
from trainer.loop.state import TrainState
from trainer.loop.step import Run
from trainer.model.freezing import summary
from trainer.record.checkpoints import Checkpoints
from trainer.record.profile import Profiler
from trainer.record.progress import Progress
from trainer.record.summaries import Summaries
from trainer.record.workdir import Workdir
from trainer.runtime import StopSignal
from trainer.stages import Stages
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
    experiment = stages.experiment
    config, plan, indices = experiment.config, experiment.plan, experiment.splits.indices

    def every(text: str) -> Every:
        return Every(
            Duration.parse(text), plan, num_examples=len(indices["train"]), batch_size=config.plan.batch_size
        )

    evaluations = every(config.run.evaluate_every)

    def examples(step: int) -> list[str]:
        at = experiment.pipeline.positions(indices["train"], step=step)
        return [experiment.source.ids[i] for i in at.tolist()]

    guard = Guard(examples=examples, max_loss=config.guard.max_loss or math.inf)

    def save(state: TrainState) -> None:
        guard.check_weights(state)
        # First, so that no checkpoint counts what is not yet written.
        summaries.sync()
        checkpoints.save(state.variables(), step=state.step, base=base_of(state))

    def save_best(state: TrainState) -> None:
        guard.check_weights(state)
        # What is best only because the run ends here is not best in a longer one: see `extending`.
        is_last = state.step == plan.total_steps and not evaluations.is_multiple(state.step)
        checkpoints.save_best(state.variables(), step=state.step, base=base_of(state), in_place=not is_last)

    def save_once(state: TrainState) -> None:
        # What Save has written at this step is what a run that nobody stops leaves: it holds nothing of an
        # evaluation of the step, which is made again.
        path = checkpoints.latest()
        if path is None or checkpoints.step_of(path) != state.step:
            save(state)

    def on_phase(state: TrainState) -> None:
        phase = state.phase
        rows = experiment.classifier.freezing_table(phase.spec.train)
        progress.say(f"phase {phase.describe()}: {summary(rows)}")
        if state.step == phase.start_step:
            show_pictures(experiment, summaries, phase)

    def leave_if_asked() -> None:
        if why := stop.requested():
            raise _Asked(why)

    stages.between_batches = leave_if_asked
    best, plateau = Best(save_best=save_best), Plateau(say=progress.say)
    judges: list[Judge] = [best, plateau]
    if metric := config.update.early_stop:
        patience, min_change = config.update.patience, config.update.min_change
        judges.append(
            EarlyStop(metric, patience=patience, min_change=min_change, save=save_once, say=progress.say)
        )
    profile, figures = _profile(experiment), _figures(experiment, summaries, every)

    def evaluate() -> dict[str, float]:
        scored = stages.evaluate("validation")
        for one in figures:
            one.keep(scored, step=stages.state.step)
        return measures(scored, experiment.source.class_names)

    before_save, after = _registered(stages, summaries, progress, every)
    writing: dict = {"writer": summaries, "progress": progress}
    callbacks: list[Callback] = [
        *profile,
        guard,
        Log(every(config.run.log_every), **writing),
        *_histograms(experiment, summaries, every),
        *before_save,
        Save(every(config.run.save_every), save=save, every_secs=config.run.save_every_secs),
        Evaluate(evaluations, evaluate=evaluate, then=judges, **writing),
        *judges,
        *figures,
        *after,
        Stop(requested=stop.requested, save=save_once),
    ]

    def make_run(state: TrainState, phase: Phase) -> Run:
        run: Run = stages.current().make_run()
        for one in profile:
            run = one.around(run, state)
        return run

    try:
        train(
            stages.state,
            batches=lambda phase, step: stages.current().training(step),
            make_run=make_run,
            callbacks=callbacks,
            on_phase=on_phase,
        )
    except _Asked as asked:
        # Only here, where whatever was being scored has put the weights back that are trained.
        step = stages.state.step
        if step == 0:
            raise Interrupted(
                f"{asked}: stopped before the first step; the same command starts again"
            ) from None
        save_once(stages.state)
        raise Interrupted(
            f"{asked}: stopped at step {step:,} of {plan.total_steps:,} and saved; the same command goes on "
            "from there"
        ) from None
    finally:
        for one in profile:
            one.close()
    # What is scored from here on is no state to go on from.
    stages.between_batches = lambda: None


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
