"""`train`: from a flagfile to a report, or on from where the same command was stopped."""

import logging
import math
import sys

from trainer.commands.evaluate import base_of, import_early, make_stages, named_pictures, restore, score
from trainer.commands.initial_weights import take_weights
from trainer.commands.introduction import introduce, record, show_pictures
from trainer.config import Config
from trainer.experiment import Experiment
from trainer.flags import CommandLine
from trainer.loop import hooks as hook
from trainer.loop.guard import Guard, NonFinite
from trainer.loop.loop import train
from trainer.loop.state import TrainState
from trainer.model.freezing import freezing_table, summary
from trainer.options import GuardConfig
from trainer.provenance import code
from trainer.record.checkpoints import Checkpoints
from trainer.record.progress import Progress
from trainer.record.summaries import Summaries
from trainer.record.workdir import Workdir
from trainer.runtime import StopSignal
from trainer.stages import Stages
from trainer.values import Duration, Interrupted, TrainerError

_log = logging.getLogger("trainer")


def run(line: CommandLine, stop: StopSignal) -> int:
    """Trains, scores the test split with the best weights, and returns the exit status."""
    config = line.config
    workdir = Workdir(config.run.workdir)
    workdir.make()
    checkpoints = Checkpoints(workdir.checkpoints, keep=config.run.keep_checkpoints)
    with workdir.lock():
        checkpoints.remove_unfinished()
        workdir.remove_unfinished()
        if not checkpoints.exist():
            # An attempt that saved nothing binds nobody to its options or its pictures.
            workdir.forget()
        workdir.check_same_run(config)
        while True:
            try:
                return _train_once(config, workdir, checkpoints, stop)
            except NonFinite as error:
                _note_rollback(error, workdir, checkpoints, config.guard)


def _note_rollback(error: NonFinite, workdir: Workdir, checkpoints: Checkpoints, guard: GuardConfig) -> None:
    """Records that a batch is left out from now on: training then starts again as after a kill.

    Raises:
      NonFinite: it may not be, or too many were.
    """
    rollbacks = workdir.read_facts()["rollbacks"]
    if guard.on_nonfinite == "fail":
        raise error
    if len(rollbacks) >= guard.max_rollbacks:
        steps = ", ".join(str(rollback["step"]) for rollback in rollbacks) or "none"
        raise TrainerError(
            f"{error.what} at step {error.step}, and as many batches are left out as "
            f"--max_rollbacks={guard.max_rollbacks} allows (those of steps {steps}): it is not the batch. A "
            "lower learning rate or a warm-up may help"
        )
    path = checkpoints.latest()
    back_to = checkpoints.step_of(path) if path else 0
    noted = {
        "what": error.what,
        "step": error.step,
        "phase": error.phase,
        "learning_rate": error.learning_rate,
        "back_to": back_to,
        "examples": error.examples,
    }
    workdir.amend_run(rollbacks=[*rollbacks, noted])
    _log.warning(
        "%s at step %d: goes back to step %d, and leaves out the batch of step %d (noted in %s)",
        error.what, error.step, back_to, error.step, workdir.run_json.name,
    )  # fmt: skip


def _train_once(config: Config, workdir: Workdir, checkpoints: Checkpoints, stop: StopSignal) -> int:
    """Trains from the latest checkpoint, or from the beginning, to the end of the plan, and scores."""
    experiment = Experiment(config)
    import_early()
    summaries = Summaries(workdir, describe=experiment.describe)
    with named_pictures(experiment):
        stages = _begin(experiment, workdir, checkpoints, summaries)
        plan = experiment.plan
        progress = Progress(
            config.run.progress,
            start_step=stages.state.step,
            total_steps=plan.total_steps,
            steps_per_epoch=plan.steps_per_epoch,
            phase_of=lambda step: plan.phase_at(max(step - 1, 0)).spec.name,
        )
        try:
            with experiment.strategy.scope(), stop.deferred():
                _run_loop(stages, checkpoints, summaries, progress, stop)
        finally:
            progress.close()
            summaries.close()
        _restore_best(stages, checkpoints)
        split = "test" if "test" in experiment.splits.indices else "validation"
        score(stages, workdir, split=split, summaries=summaries)
        summaries.close()
    _log.info("results:     %s", workdir.root)
    _log.info("TensorBoard: %s -m tensorboard.main --logdir %s", sys.executable, workdir.root)
    return 0


def _restore_best(stages: Stages, checkpoints: Checkpoints) -> None:
    path, step = checkpoints.find("best"), int(stages.state.best["step"].numpy())
    if checkpoints.step_of(path) != step:
        # A process that died had gone further, with other numbers: of another machine or library.
        raise TrainerError(
            f"the best weights are those of step {step}, and {path} is another: the run has not come to the "
            "same numbers again after it was interrupted. evaluate --checkpoint=latest scores the last ones"
        )
    restore(stages, checkpoints, path)


def _begin(
    experiment: Experiment, workdir: Workdir, checkpoints: Checkpoints, summaries: Summaries
) -> Stages:
    """Makes the state of the run: where its latest checkpoint is, else at the beginning."""
    stages = make_stages(
        experiment,
        decided=workdir.read_facts().get("precision", {}),
        on_decision=lambda decided: workdir.amend_run(precision=decided),
    )
    path = checkpoints.latest()
    # Before anything is written: weights that do not fit bind nobody.
    taken = take_weights(experiment) if experiment.config.model.init_from and path is None else None
    record(experiment, workdir, stages)
    if taken:
        workdir.amend_run(init_from=taken)
    stages.left_out = [rollback["step"] for rollback in workdir.read_facts()["rollbacks"]]
    state = stages.state
    if path is None:
        summaries.cut_back(None)
        introduce(stages, summaries)
        return stages
    restore(stages, checkpoints, path)
    checkpoints.check_best(int(state.best["step"].numpy()))
    checkpoints.remove_old(state.step)
    summaries.cut_back(state.step)
    _log.info("goes on from step %s of %s", f"{state.step:,}", f"{experiment.plan.total_steps:,}")
    if changed := workdir.note_code(code(), step=state.step):
        _log.info("the code has changed since: %s (noted in %s)", "; ".join(changed), workdir.run_json.name)
    return stages


def _run_loop(
    stages: Stages, checkpoints: Checkpoints, summaries: Summaries, progress: Progress, stop: StopSignal
) -> None:
    experiment = stages.experiment
    config, plan, indices = experiment.config, experiment.plan, experiment.splits.indices

    def every(text: str) -> hook.Every:
        return hook.Every(
            Duration.parse(text), plan, num_examples=len(indices["train"]), batch_size=config.plan.batch_size
        )

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
        checkpoints.save_best(state.variables(), step=state.step, base=base_of(state))

    def evaluate() -> dict[str, float]:
        scored = stages.evaluate("validation")
        return {"loss": scored.loss, "accuracy": scored.accuracy}

    def on_phase(state: TrainState) -> None:
        phase = state.phase
        rows = freezing_table(experiment.classifier.named_variables, phase.spec.train)
        progress.say(f"phase {phase.describe()}: {summary(rows)}")
        if state.step == phase.start_step:
            show_pictures(experiment, summaries, phase)

    def leave_if_asked() -> None:
        if not (why := stop.requested()):
            return
        step = stages.state.step
        if step == 0:
            raise Interrupted(f"{why}: stopped before the first step; the same command starts again")
        save(stages.state)
        raise Interrupted(
            f"{why}: stopped at step {step:,} of {plan.total_steps:,} and saved; the same command goes on "
            "from there"
        )

    stages.between_batches = leave_if_asked
    best = hook.Best(save_best=save_best)
    writing: dict = {"writer": summaries, "progress": progress}
    hooks: list[hook.Hook] = [
        guard,
        hook.Log(every(config.run.log_every), batch_size=config.plan.batch_size, **writing),
        hook.Save(every(config.run.save_every), save=save, every_secs=config.run.save_every_secs),
        hook.Evaluate(every(config.run.evaluate_every), evaluate=evaluate, then=best, **writing),
        best,
        hook.Stop(requested=stop.requested, save=save),
    ]
    train(
        stages.state,
        batches=lambda phase, step: stages.current().training(step),
        make_run=lambda state, phase: stages.current().make_run(),
        hooks=hooks,
        on_phase=on_phase,
    )
    # What is scored from here on is no state to go on from.
    stages.between_batches = lambda: None
