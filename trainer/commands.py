"""What the command line can do: wiring only. The rooms do the work."""

import contextlib
import dataclasses
import json
import logging
import os
import time
from collections.abc import Iterator

from trainer.runtime import StopSignal, start_tensorflow, versions

start_tensorflow()

import tensorflow as tf  # noqa: E402

from trainer import __version__  # noqa: E402
from trainer.config import Config  # noqa: E402
from trainer.data.pipeline import find_undecodable  # noqa: E402
from trainer.experiment import Experiment  # noqa: E402
from trainer.flags import CommandLine, to_flagfile  # noqa: E402
from trainer.loop import hooks as hook  # noqa: E402
from trainer.loop.loop import train as run_loop  # noqa: E402
from trainer.loop.phases import Phase  # noqa: E402
from trainer.loop.state import TrainState  # noqa: E402
from trainer.loop.steps import Evaluator, make_train_run  # noqa: E402
from trainer.model.freezing import format_table, freezing_table, summary  # noqa: E402
from trainer.record.checkpoints import Checkpoints  # noqa: E402
from trainer.record.figures import picture_grid  # noqa: E402
from trainer.record.progress import Progress  # noqa: E402
from trainer.record.report import write_report  # noqa: E402
from trainer.record.summaries import Summaries  # noqa: E402
from trainer.record.workdir import Workdir  # noqa: E402
from trainer.values import Duration, TrainerError, UsageError  # noqa: E402

_log = logging.getLogger("trainer")
EX_TEMPFAIL = 75


def run(line: CommandLine) -> int:
    """Runs a command and returns the exit status."""
    if not line.config.run.workdir and line.command != "inspect":
        raise UsageError(f"{line.command} needs --workdir=FOLDER: it has no default")
    return {"train": _train, "evaluate": _evaluate, "inspect": _inspect}[line.command](line)


def _train(line: CommandLine) -> int:
    config = line.config
    workdir = Workdir(config.run.workdir)
    workdir.make()
    stop = StopSignal()
    stop.install()
    with workdir.lock():
        workdir.check_same_run(config)
        experiment = Experiment(config)
        with _named_pictures(experiment):
            return _train_locked(experiment, workdir, stop)


def _train_locked(experiment: Experiment, workdir: Workdir, stop: StopSignal) -> int:
    config, plan = experiment.config, experiment.plan
    _record(experiment, workdir)
    with experiment.strategy.scope():
        state = TrainState(experiment.classifier, plan)
    checkpoints = Checkpoints(workdir.checkpoints, keep=config.run.keep_checkpoints)
    summaries = Summaries(workdir, describe=experiment.describe)
    evaluator = Evaluator(experiment.classifier, strategy=experiment.strategy)
    if path := checkpoints.latest():
        _restore(experiment, state, checkpoints, path)
        summaries.cut_back(state.step)
        _log.info("goes on from step %s of %s", f"{state.step:,}", f"{plan.total_steps:,}")
    else:
        summaries.cut_back(0)
        _introduce(experiment, summaries, evaluator)
    progress = Progress(
        config.run.progress,
        start_step=state.step,
        total_steps=plan.total_steps,
        steps_per_epoch=plan.steps_per_epoch,
        phase_of=lambda step: plan.phase_at(max(step - 1, 0)).spec.name,
    )
    try:
        with experiment.strategy.scope():
            _run_loop(experiment, state, checkpoints, summaries, evaluator, progress, stop)
    except hook.Interrupted as interrupted:
        progress.close()
        _log.info("%s and saved; the same command goes on from there", interrupted)
        return EX_TEMPFAIL
    finally:
        progress.close()
        summaries.close()
    best = checkpoints.find("best")
    _restore(experiment, state, checkpoints, best)
    split = "test" if "test" in experiment.splits.indices else "validation"
    _score(experiment, workdir, evaluator, split=split, step=state.step, summaries=summaries)
    summaries.close()
    _log.info("results:     %s", workdir.root)
    _log.info("TensorBoard: python -m tensorboard.main --logdir %s", workdir.root)
    return 0


def _run_loop(
    experiment: Experiment,
    state: TrainState,
    checkpoints: Checkpoints,
    summaries: Summaries,
    evaluator: Evaluator,
    progress: Progress,
    stop: StopSignal,
) -> None:
    config, plan, pipeline = experiment.config, experiment.plan, experiment.pipeline
    train, validation = (experiment.splits.indices[name] for name in ("train", "validation"))

    def every(text: str) -> hook.Every:
        return hook.Every(
            Duration.parse(text), plan, num_examples=len(train), batch_size=config.plan.batch_size
        )

    def save(state: TrainState) -> None:
        checkpoints.save(state.variables(), step=state.step)

    def save_best(state: TrainState) -> None:
        checkpoints.save_best(state.variables(), step=state.step)

    def evaluate() -> dict[str, float]:
        scored = evaluator(pipeline.once(validation))
        return {"loss": scored.loss, "accuracy": scored.accuracy}

    def batches(phase: Phase, step: int) -> tf.data.Dataset:
        dataset = pipeline.training(
            train, start_step=step, stop_step=phase.stop_step, augment=phase.spec.augment
        )
        return experiment.strategy.experimental_distribute_dataset(dataset)

    def on_phase(state: TrainState) -> None:
        phase = state.phase
        rows = freezing_table(experiment.classifier.named_variables, phase.spec.train)
        progress.say(f"phase {_phase_line(phase)}: {summary(rows)}")
        if state.step == phase.start_step:
            _show_pictures(experiment, summaries, phase)

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
    run_loop(
        state,
        batches=batches,
        make_run=lambda state, phase: make_train_run(
            state, phase, strategy=experiment.strategy, seed=config.run.seed
        ),
        hooks=hooks,
        on_phase=on_phase,
    )


def _evaluate(line: CommandLine) -> int:
    workdir = Workdir(line.config.run.workdir)
    config = _with_given(workdir.read_config(), line)
    workdir.check_same_run(config)
    checkpoints = Checkpoints(workdir.checkpoints, keep=config.run.keep_checkpoints)
    path = checkpoints.find(config.evaluate.checkpoint)
    experiment = Experiment(config)
    split = config.evaluate.eval_split
    if split not in experiment.splits.indices:
        raise UsageError(f"--eval_split={split}: this run has only {', '.join(experiment.splits.indices)}")
    with _named_pictures(experiment):
        workdir.write_or_check_splits(experiment.split_record())
        with experiment.strategy.scope():
            state = TrainState(experiment.classifier, experiment.plan)
        _restore(experiment, state, checkpoints, path)
        evaluator = Evaluator(experiment.classifier, strategy=experiment.strategy)
        _score(experiment, workdir, evaluator, split=split, step=state.step)
    return 0


def _inspect(line: CommandLine) -> int:
    config = line.config
    if config.run.workdir and Workdir(config.run.workdir).run_json.exists():
        config = _with_given(Workdir(config.run.workdir).read_config(), line)
    experiment = Experiment(config)
    contract = experiment.backbone.contract
    print(f"configuration (identity {config.identity()})\n{_indented(to_flagfile(config))}")
    print(f"splits: {experiment.splits.how}")
    for split, indices in experiment.splits.indices.items():
        counts = ", ".join(f"{name} {n:,}" for name, n in experiment.class_counts(split).items())
        print(f"  {split:<11}{len(indices):>8,}  ({counts})")
    print(f"\nbackbone: {experiment.backbone.name}")
    for field in dataclasses.fields(contract):
        print(f"  {field.name:<14}{getattr(contract, field.name)}")
    print(
        f"\nplan: {experiment.plan.steps_per_epoch:,} steps an epoch, {experiment.plan.total_steps:,} in all"
    )
    for phase in experiment.plan.phases:
        print(f"  {_phase_line(phase)}")
    for phase in experiment.plan.phases:
        rows = freezing_table(experiment.classifier.named_variables, phase.spec.train)
        print(f"\nvariables in phase {phase.spec.name}: {summary(rows)}\n{format_table(rows)}")
    return 0


def _with_given(config: Config, line: CommandLine) -> Config:
    """Returns a run's configuration with what the command line sets besides."""
    return config.replace(**line.given)


def _record(experiment: Experiment, workdir: Workdir) -> None:
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


def _introduce(experiment: Experiment, summaries: Summaries, evaluator: Evaluator) -> None:
    """Writes what TensorBoard shows once a run: options, flagfile, model graph."""
    config = experiment.config
    swept = {**dataclasses.asdict(config.model), **dataclasses.asdict(config.plan)}
    swept |= {"source": config.data.source, "seed": config.run.seed}
    values = {name: json.dumps(v) if isinstance(v, tuple) else v for name, v in swept.items()}
    summaries.hparams(values, session=os.path.basename(config.run.workdir.rstrip("/")))
    flagfile = "\n".join("    " + line for line in to_flagfile(config).splitlines())
    summaries.text("train", "flagfile", flagfile)
    if experiment.strategy.num_replicas_in_sync == 1:
        # The function that will score the splits, traced a little earlier.
        spec = experiment.pipeline.once(experiment.splits.indices["validation"]).element_spec
        summaries.graph("train", evaluator.step.get_concrete_function(spec).graph)


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
    png = picture_grid(images, titles)
    summaries.image("train", f"pictures/{phase.spec.name}", png, step=phase.start_step)


def _restore(experiment: Experiment, state: TrainState, checkpoints: Checkpoints, path: str) -> None:
    with experiment.strategy.scope():
        state.jump(checkpoints.step_of(path))
        checkpoints.restore(state.variables(), path)


def _score(
    experiment: Experiment,
    workdir: Workdir,
    evaluator: Evaluator,
    *,
    split: str,
    step: int,
    summaries: Summaries | None = None,
) -> None:
    """Evaluates a split, writes the report, and prints the accuracy with its interval."""
    start = time.perf_counter()
    scored = evaluator(experiment.pipeline.once(experiment.splits.indices[split]))
    report, confusion_png = write_report(
        workdir.report,
        split=split,
        step=step,
        loss=scored.loss,
        ids=[experiment.source.ids[i] for i in scored.ids.tolist()],
        labels=scored.labels,
        logits=scored.logits,
        class_names=experiment.source.class_names,
    )
    if summaries:
        if split == "test":
            summaries.scalars("test", step, {"loss": scored.loss, "accuracy": scored.accuracy})
        summaries.image(split, "confusion_matrix", confusion_png, step=step)
    low, high = report["accuracy_95_percent_interval"]
    _log.info(
        "%s accuracy %.2f %% (%d of %d right; 95 %% interval %.1f to %.1f %%), weights of step %d, %.1f s",
        split, 100 * report["accuracy"], report["num_correct"], report["num_examples"],
        100 * low, 100 * high, step, time.perf_counter() - start,
    )  # fmt: skip
    _log.info("report:      %s", workdir.report / f"{split}_metrics.json")


@contextlib.contextmanager
def _named_pictures(experiment: Experiment) -> Iterator[None]:
    """Turns a failure inside tf.data into an error that names the pictures."""
    try:
        yield
    except (tf.errors.InvalidArgumentError, tf.errors.UnknownError) as error:
        bad = find_undecodable(experiment.source, experiment.scan)
        if not bad:
            raise TrainerError(f"TensorFlow failed: {error.message.splitlines()[0]}") from None
        raise TrainerError(f"{len(bad)} pictures cannot be read: {'; '.join(bad)}") from None


def _phase_line(phase: Phase) -> str:
    spec = phase.spec
    parts = [f"{spec.name}, steps {phase.start_step:,} to {phase.stop_step:,}"]
    parts.append(f"{spec.optimizer} at {spec.learning_rate:g} ({spec.lr_schedule})")
    parts += [f"warm-up {phase.warmup_steps:,} steps"] if phase.warmup_steps else []
    parts.append(f"BatchNorm statistics {'stored' if spec.bn == 'frozen' else 'of the batch'}")
    parts += [f"augment {spec.augment}"] if spec.augment else []
    return ", ".join(parts)


def _indented(text: str) -> str:
    return "".join(f"  {line}\n" for line in text.splitlines())
