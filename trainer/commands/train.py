"""`train`: from a flagfile to a report, or on from where the same command was stopped."""

import contextlib
import logging
import shlex
import sys
import time
from collections.abc import Mapping
from typing import Any

from trainer.cli.config import Config
from trainer.cli.declare import NETWORK, PICTURES, RUN, SPLITS, budget_secs
from trainer.cli.flags import CommandLine
from trainer.cli.options import GuardConfig
from trainer.loop.objectives import start
from trainer.loop.standard_callbacks import NonFinite
from trainer.model.weights import values_digest
from trainer.precision import leaving_out, left_out
from trainer.record.checkpoints import Checkpoints
from trainer.record.progress import Progress
from trainer.record.summaries import Summaries
from trainer.record.workdir import Workdir
from trainer.run.budget import within_budget
from trainer.run.embeddings import drawing_aside, show_features
from trainer.run.engines import telling_once
from trainer.run.experiment import Experiment
from trainer.run.extending import extend, may_grow
from trainer.run.finished_run import take_weights, tell_seen_before
from trainer.run.foresight import LEAST_WORK, foresee, work
from trainer.run.introduction import (
    check_network,
    check_record,
    introduce,
    record,
    show_options,
    sum_up,
    tell_finished,
    told_in_vain,
    told_of_rise,
    told_of_smoothing,
)
from trainer.run.new_pictures import named_pictures
from trainer.run.run_times import RunTimes
from trainer.run.scoring import import_early, main_split, require_scores, score
from trainer.run.session import make_stages, restore, run_loop
from trainer.run.stages import Stages
from trainer.run.team import team, together
from trainer.runtime import Stopping
from trainer.store.provenance import code
from trainer.values import CommonError, TrainerError

_log = logging.getLogger("trainer")


def run(
    line: CommandLine,
    stop: Stopping,
    *,
    chosen: Mapping[str, Any] | None = None,
    is_one_of_many: bool = False,
) -> int:
    """Trains, scores the test split with the best weights, and returns the exit status.

    Args:
      line: what was asked for.
      stop: tells why to stop.
      chosen: what --schedule=recommended is to come to in a run that begins; None: what its rule says.
      is_one_of_many: another verb makes runs, which train alone, also where srun has started several tasks.
    """
    begun, config = time.monotonic(), line.config
    if unused := config.unused(line.given):
        what = f"under --schedule={config.plan.schedule}" if not config.plan.phase else "beside --phase"
        what = "under --budget=quick" if config.is_quick else what
        _log.warning("%s: no effect %s", ", ".join(f"--{name}" for name in unused), what)
    workers = contextlib.nullcontext(config) if is_one_of_many else together(config, stop)
    with telling_once(), workers as config:
        return _run(config, line.given, stop, begun=begun, chosen=chosen or {})


def _run(
    config: Config, given: Mapping[str, Any], stop: Stopping, *, begun: float, chosen: Mapping[str, Any]
) -> int:
    """Trains as `run` does, among the workers there are."""
    workdir = Workdir(config.run.workdir)
    if "source" not in given:
        _tell_drawn(config, workdir)
    workdir.make()
    checkpoints = Checkpoints(workdir.checkpoints, keep=config.run.keep_checkpoints)
    with workdir.lock():
        checkpoints.remove_unfinished()
        workdir.remove_unfinished()
        if not checkpoints.exist():
            # An attempt that saved nothing binds nobody to its options or its pictures.
            workdir.forget()
        workdir.check_same_run(workdir.as_begun(config, given), found_out=(PICTURES, SPLITS, NETWORK, RUN))
        # From here on all workers read and write the same, each in a folder of its own.
        team().share(workdir.root)
        config = workdir.as_begun(config, given)
        if _is_finished(config, workdir):
            return 0
        recorded = workdir.read_left_out()
        with leaving_out(left_out() if recorded is None else recorded):
            while True:
                try:
                    own = workdir.read_chosen() or chosen
                    return _train_once(config, workdir, checkpoints, stop, begun=begun, chosen=own)
                except NonFinite as error:
                    _note_rollback(error, workdir, checkpoints, config.guard)


def _tell_drawn(config: Config, workdir: Workdir) -> None:
    """Says that pictures are drawn where none are named, before that takes time.

    Raises:
      UsageError: the workdir holds a run on others.
    """
    source = config.data.source
    if not workdir.run_json.exists():
        _log.info(
            "pictures:    no --source, so they are drawn (%s); of your own, --source=folder:PATH", source
        )
    else:
        workdir.require_unnamed(source)


def _is_finished(config: Config, workdir: Workdir) -> bool:
    """Returns whether the run has come to its end, and says so; its pictures must be there as they were."""
    report = workdir.finished()
    if report is None:
        return False
    # Of pictures that are named otherwise, what follows finds out whether they are the same.
    was = workdir.read_config()
    of_pictures = [name for name, kind in Config.naming().items() if kind in (PICTURES, SPLITS)]
    if was.identity() != config.identity(**{name: was.flat()[name] for name in of_pictures}):
        return False
    check_record(Experiment(config, pictures_only=True), workdir)
    workdir.note_names(config)
    tell_finished(workdir, report, may_grow=may_grow(workdir))
    require_scores(report, config.run)
    return True


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
        raise CommonError(
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


def _train_once(
    config: Config,
    workdir: Workdir,
    checkpoints: Checkpoints,
    stop: Stopping,
    *,
    begun: float,
    chosen: Mapping[str, Any],
) -> int:
    """Trains from the latest checkpoint, or from the beginning, to the end of the plan, and scores."""
    experiment = Experiment(config, chosen=chosen)
    if budget_secs(config.plan.budget) and not chosen:
        experiment = within_budget(experiment, begun=begun)
    import_early()
    summaries = Summaries(workdir, describe=experiment.describe)
    with named_pictures(experiment.source, experiment.scan):
        stages = _begin(experiment, workdir, checkpoints, summaries)
        plan, times = experiment.plan, _foretell(stages)
        progress = Progress(
            config.run.progress,
            start_step=stages.state.step,
            total_steps=plan.total_steps,
            steps_per_epoch=plan.steps_per_epoch,
            phase_of=lambda step: plan.phase_at(max(step - 1, 0)).spec.name,
            time_left=times.left,
        )
        try:
            with experiment.strategy.scope(), stop.deferred():
                run_loop(stages, checkpoints, summaries, progress, team().stop(stop))
        finally:
            progress.close()
            summaries.close()
            times.remember()
        with times.remembered_end(), drawing_aside(experiment) as sprite:
            _restore_best(stages, checkpoints)
            split = main_split(experiment.splits.indices)
            if in_vain := told_in_vain(plan, stages.state, metric=experiment.task.best):
                workdir.amend_run(in_vain={"step": stages.state.step, "told": in_vain})
            report = score(stages, workdir, split=split, folder=workdir.report, summaries=summaries)
            sum_up(stages.state, summaries, report)
            show_features(stages, workdir, sprite())
            summaries.close()
        # The last thing of all, so that what was interrupted before is done again.
        workdir.amend_run(finished={"step": plan.total_steps, "best_step": stages.state.step})
    _log.info("results:     %s", workdir.root)
    tensorboard = shlex.join([sys.executable, "-m", "tensorboard.main", "--logdir", str(workdir.root)])
    _log.info("TensorBoard: %s", tensorboard)
    if in_vain:
        _log.info("%s", in_vain)
    if told := told_of_rise(workdir):
        _log.warning("%s", told)
    require_scores(report, config.run)
    return 0


def _foretell(stages: Stages) -> RunTimes:
    """Says how long a run takes that begins; returns the estimate."""
    times, experiment = RunTimes(stages), stages.experiment
    # By times of one machine: several workers would not come to the same.
    if stages.state.step or team().count > 1:
        return times
    if not times.is_known and work(experiment) >= LEAST_WORK:
        _log.info("time:        measured now, a few steps of each phase")
        foreseen = foresee(experiment, decided=stages.arithmetic.decided)
        stages.take(foreseen.decided, picture_secs=foreseen.picture_secs)
        times = RunTimes(stages, foreseen=foreseen.speeds)
    if times.is_known:
        _log.info("time:        %s from here", times.describe())
    return times


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
    # Before a checkpoint or another run gives it weights.
    network = check_network(experiment, workdir)
    team().require_same("weights of the network", network["weights"])
    stages = make_stages(
        experiment,
        decided=workdir.read_facts().get("precision", {}),
        on_decision=lambda decided: workdir.amend_run(precision=decided),
    )
    extended = extend(experiment, workdir, checkpoints)
    path = checkpoints.latest()
    # Before anything is written: weights that do not fit bind nobody.
    taken = take_weights(experiment) if experiment.config.model.init_from and path is None else None
    if taken:
        team().require_same("weights of --init_from", values_digest(experiment.classifier.named_variables))
        tell_seen_before(taken, scored=main_split(experiment.splits.indices))
    if path is None:
        start(experiment.recipe.objective)
    if stages.state.shadows:
        stages.state.shadows.start()
    record(experiment, workdir, stages, network=network)
    if taken:
        workdir.amend_run(init_from=taken)
    if extended:
        workdir.amend_run(extensions=[*workdir.read_facts().get("extensions", []), extended])
    stages.left_out = [rollback["step"] for rollback in workdir.read_facts()["rollbacks"]]
    state = stages.state
    if path is None:
        summaries.cut_back(None)
        introduce(stages, summaries)
        if told := told_of_smoothing(experiment.config, num_classes=len(experiment.source.class_names)):
            _log.info("%s", told)
        return stages
    restore(stages, checkpoints, path)
    checkpoints.check_best(int(state.best["step"].numpy()))
    checkpoints.remove_old(state.step)
    summaries.cut_back(state.step, with_options=bool(extended))
    if extended:
        show_options(experiment, summaries, step=state.step)
    _log.info("goes on from step %s of %s", f"{state.step:,}", f"{experiment.plan.total_steps:,}")
    if changed := workdir.note_code(code(), step=state.step):
        _log.info("the code has changed since: %s (noted in %s)", "; ".join(changed), workdir.run_json.name)
    return stages
