"""`train`: from a flagfile to a report, or on from where the same command was stopped."""

import dataclasses
import json
import logging
import os
import sys

from trainer import __version__
from trainer.commands.evaluate import base_of, import_early, make_stages, named_pictures, restore, score
from trainer.experiment import Experiment
from trainer.flags import CommandLine, to_flagfile
from trainer.loop import hooks as hook
from trainer.loop.loop import train
from trainer.loop.phases import Phase
from trainer.loop.state import TrainState
from trainer.model.freezing import freezing_table, summary
from trainer.record.checkpoints import Checkpoints
from trainer.record.progress import Progress
from trainer.record.summaries import Summaries
from trainer.record.workdir import Workdir
from trainer.runtime import StopSignal, versions
from trainer.stages import Stages
from trainer.values import Duration

_log = logging.getLogger("trainer")
EX_TEMPFAIL = 75


def run(line: CommandLine) -> int:
    """Trains, scores the test split with the best weights, and returns the exit status."""
    config = line.config
    workdir = Workdir(config.run.workdir)
    workdir.make()
    checkpoints = Checkpoints(workdir.checkpoints, keep=config.run.keep_checkpoints)
    with workdir.lock():
        if not checkpoints.exist():
            # An attempt that saved nothing binds nobody to its options or its pictures.
            workdir.forget()
        workdir.check_same_run(config)
        experiment = Experiment(config)
        with named_pictures(experiment):
            return _train_locked(experiment, workdir, checkpoints)


def _train_locked(experiment: Experiment, workdir: Workdir, checkpoints: Checkpoints) -> int:
    config, plan = experiment.config, experiment.plan
    import_early()
    stages = make_stages(
        experiment,
        decided=workdir.read_facts().get("precision", {}),
        on_decision=lambda decided: workdir.amend_run(precision=decided),
    )
    _record(experiment, workdir, stages)
    state = stages.state
    summaries = Summaries(workdir, describe=experiment.describe)
    if path := checkpoints.latest():
        restore(stages, checkpoints, path)
        summaries.cut_back(state.step)
        _log.info("goes on from step %s of %s", f"{state.step:,}", f"{plan.total_steps:,}")
    else:
        summaries.cut_back(None)
        _introduce(stages, summaries)
    progress = Progress(
        config.run.progress,
        start_step=state.step,
        total_steps=plan.total_steps,
        steps_per_epoch=plan.steps_per_epoch,
        phase_of=lambda step: plan.phase_at(max(step - 1, 0)).spec.name,
    )
    try:
        with experiment.strategy.scope(), StopSignal.installed() as stop:
            _run_loop(stages, checkpoints, summaries, progress, stop)
    except hook.Interrupted as interrupted:
        progress.close()
        _log.info("%s; the same command goes on from there", interrupted)
        return EX_TEMPFAIL
    finally:
        progress.close()
        summaries.close()
    best = checkpoints.find("best")
    restore(stages, checkpoints, best)
    split = "test" if "test" in experiment.splits.indices else "validation"
    score(stages, workdir, split=split, summaries=summaries)
    summaries.close()
    _log.info("results:     %s", workdir.root)
    _log.info("TensorBoard: %s -m tensorboard.main --logdir %s", sys.executable, workdir.root)
    return 0


def _run_loop(
    stages: Stages, checkpoints: Checkpoints, summaries: Summaries, progress: Progress, stop: StopSignal
) -> None:
    experiment = stages.experiment
    config, plan, indices = experiment.config, experiment.plan, experiment.splits.indices

    def every(text: str) -> hook.Every:
        return hook.Every(
            Duration.parse(text), plan, num_examples=len(indices["train"]), batch_size=config.plan.batch_size
        )

    def save(state: TrainState) -> None:
        checkpoints.save(state.variables(), step=state.step, base=base_of(state))

    def save_best(state: TrainState) -> None:
        checkpoints.save_best(state.variables(), step=state.step, base=base_of(state))

    def evaluate() -> dict[str, float]:
        scored = stages.evaluate("validation")
        return {"loss": scored.loss, "accuracy": scored.accuracy}

    def on_phase(state: TrainState) -> None:
        phase = state.phase
        rows = freezing_table(experiment.classifier.named_variables, phase.spec.train)
        progress.say(f"phase {phase.describe()}: {summary(rows)}")
        if state.step == phase.start_step:
            _show_pictures(experiment, summaries, phase)

    def leave_if_asked() -> None:
        if stop.requested():
            if stages.state.step > 0:
                save(stages.state)
            raise hook.Interrupted(f"stopped at step {stages.state.step:,} while computing features")

    stages.cache.between_batches = leave_if_asked
    best = hook.Best(save_best=save_best)
    writing: dict = {"writer": summaries, "progress": progress}
    hooks: list[hook.Hook] = [
        hook.Guard(),
        hook.Log(every(config.run.log_every), batch_size=config.plan.batch_size, **writing),
        hook.Save(every(config.run.save_every), save=save),
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


def _record(experiment: Experiment, workdir: Workdir, stages: Stages) -> None:
    """Writes what the run is, and says in a few lines what it begins with."""
    config = experiment.config
    record = experiment.split_record()
    workdir.write_or_check_splits(record, how=experiment.splits.how, shared=experiment.shared)
    workdir.write_run(
        config,
        flagfile=to_flagfile(config),
        class_names=experiment.source.class_names,
        contract=dataclasses.asdict(experiment.backbone.contract),
        versions={"trainer": __version__, **versions()},
        precision=stages.arithmetic.decided,
    )
    sizes = ", ".join(f"{name} {len(rows):,}" for name, rows in record.items())
    _log.info(
        "pictures:    %s, %d classes; %s", config.data.source, len(experiment.source.class_names), sizes
    )
    _log.info("splits:      %s", experiment.splits.how)
    contract = experiment.backbone.contract
    low, high = contract.value_range
    _log.info(
        "backbone:    %s, %dx%d px in [%g, %g], %d features",
        experiment.backbone.name, contract.width_px, contract.height_px, low, high, contract.feature_width,
    )  # fmt: skip


def _introduce(stages: Stages, summaries: Summaries) -> None:
    """Writes what TensorBoard shows once a run: options, flagfile, graph of the model as it is run."""
    experiment, config = stages.experiment, stages.experiment.config
    swept = {**dataclasses.asdict(config.model), **dataclasses.asdict(config.plan)}
    swept |= {"source": config.data.source, "seed": config.run.seed}
    values = {name: json.dumps(v) if isinstance(v, tuple) else v for name, v in swept.items()}
    summaries.hparams(values, session=os.path.basename(config.run.workdir.rstrip("/")))
    flagfile = "\n".join("    " + line for line in to_flagfile(config).splitlines())
    summaries.text("train", "flagfile", flagfile)
    if experiment.strategy.num_replicas_in_sync == 1:
        summaries.graph("train", stages.current().graph())


def _show_pictures(experiment: Experiment, summaries: Summaries, phase: Phase) -> None:
    """Writes a grid of the first pictures of a phase as the network sees them."""
    first = experiment.pipeline.training(
        experiment.splits.indices["train"],
        start_step=phase.start_step,
        stop_step=phase.start_step + 1,
        augment=phase.spec.augment,
    )
    batch = next(iter(first))
    shown = [i for i, real in enumerate(batch["mask"].numpy()) if real][:16]
    images = experiment.as_seen(batch["image"].numpy()[shown])
    titles = [experiment.source.class_names[label] for label in batch["label"].numpy()[shown]]
    from trainer.record.figures import picture_grid  # Late, as in `evaluate`.

    png = picture_grid(images, titles)
    # Of the update they are for: a run that starts again at the phase's first step shows them again.
    summaries.image("train", f"pictures/{phase.spec.name}", png, step=phase.start_step + 1)
