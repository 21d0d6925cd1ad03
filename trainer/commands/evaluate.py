"""`evaluate`: scores a split of a finished run, from its workdir alone. `train` ends with it, too."""

import contextlib
import functools
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import tensorflow as tf

from trainer.arithmetic import Arithmetic
from trainer.data.pipeline import find_undecodable
from trainer.experiment import Experiment
from trainer.flags import CommandLine
from trainer.loop.state import TrainState
from trainer.loop.steps import Evaluation
from trainer.record.checkpoints import Base, Checkpoints
from trainer.record.progress import counting
from trainer.record.summaries import Summaries
from trainer.record.workdir import Workdir
from trainer.stages import Stages
from trainer.values import TrainerError, UsageError, told_by_tensorflow

_log = logging.getLogger("trainer")


def run(line: CommandLine) -> int:
    """Scores --eval_split with --checkpoint, and returns the exit status."""
    workdir = Workdir(line.config.run.workdir)
    config = workdir.read_config().replace(**line.given)
    workdir.check_same_run(config)
    checkpoints = Checkpoints(workdir.checkpoints, keep=config.run.keep_checkpoints)
    path = checkpoints.find(config.evaluate.checkpoint)
    experiment = Experiment(config)
    split = config.evaluate.eval_split
    if split not in experiment.splits.indices:
        raise UsageError(f"--eval_split={split}: this run has only {', '.join(experiment.splits.indices)}")
    with named_pictures(experiment):
        workdir.write_or_check_splits(experiment.split_record())
        stages = make_stages(experiment, decided=workdir.read_facts().get("precision", {}))
        restore(stages, checkpoints, path)
        report = score(stages, workdir, split=split)
    require_accuracy(report, at_least=config.run.assert_accuracy_at_least)
    return 0


def make_stages(
    experiment: Experiment,
    *,
    decided: Mapping[str, Any],
    on_decision: Callable[[Mapping], None] = lambda decided: None,
) -> Stages:
    """Makes the state of a run that has not begun, and what its phases run on.

    In the precisions `decided` before; `on_decision` is told all, when one is added.
    """
    config = experiment.config
    with experiment.strategy.scope():
        state = TrainState(
            experiment.classifier,
            experiment.plan,
            lr_rules=config.update.lr_multiplier,
            layer_decay=config.update.layer_decay,
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


def import_early() -> None:
    """Imports what the end of a run needs, in a thread: while the network computes, Python is idle."""

    def load() -> None:
        import trainer.record.report  # noqa: F401

    threading.Thread(target=load, daemon=True).start()


def measures(scored: Evaluation) -> dict[str, float]:
    """Returns what is written of an evaluation: loss, accuracy and, of two classes, ROC AUC."""
    from trainer.record.report import roc_auc  # Late, as in `score`.

    auc = roc_auc(scored.labels, scored.logits)
    return {"loss": scored.loss, "accuracy": scored.accuracy, **({} if auc is None else {"auc": auc})}


def base_of(state: TrainState) -> Base:
    """Returns what the checkpoints of the state's phase have in common."""
    return Base(f"phase-{state.phase.index}", state.phase.start_step, state.constant())


def require_accuracy(report: Mapping[str, Any], *, at_least: float) -> None:
    """Fails where a score, as `score` returns it, is lower than --assert_accuracy_at_least."""
    if report["accuracy"] < at_least:
        raise TrainerError(
            f"{report['split']} accuracy {report['accuracy']:.4f} is below "
            f"--assert_accuracy_at_least={at_least:g}"
        )


def score(
    stages: Stages, workdir: Workdir, *, split: str, summaries: Summaries | None = None
) -> dict[str, Any]:
    """Evaluates a split, writes the report, prints the accuracy with its interval, and returns the report."""
    experiment, step = stages.experiment, stages.state.step
    start = time.perf_counter()
    scored = stages.evaluate(split)
    from trainer.record.report import write_report  # Late: it takes most of a second to import.

    report, confusion_png = write_report(
        workdir.report,
        split=split,
        step=step,
        loss=scored.loss,
        ids=[experiment.source.ids[i] for i in scored.ids.tolist()],
        labels=scored.labels,
        logits=scored.logits,
        class_names=experiment.source.class_names,
        left_out_pictures=[list(picture) for picture in experiment.left_out],
        left_out_batches=workdir.read_facts()["rollbacks"],
    )
    if summaries:
        if split == "test":
            summaries.scalars("test", step, measures(scored))
        # Validation's is of the end: a run that is started again there writes it again.
        at = step if split == "test" else experiment.plan.total_steps
        summaries.image(split, "confusion_matrix", confusion_png, step=at)
    low, high = report["accuracy_95_percent_interval"]
    _log.info(
        "%s accuracy %.2f %% (%d of %d right; 95 %% interval %.1f to %.1f %%), weights of step %d, %.1f s",
        split, 100 * report["accuracy"], report["num_correct"], report["num_examples"],
        100 * low, 100 * high, step, time.perf_counter() - start,
    )  # fmt: skip
    _log.info("report:      %s", workdir.report / f"{split}_metrics.json")
    return report


@contextlib.contextmanager
def named_pictures(experiment: Experiment) -> Iterator[None]:
    """Turns a failure inside tf.data into an error that names the pictures, or the file of features."""
    try:
        yield
    except (tf.errors.InvalidArgumentError, tf.errors.UnknownError) as error:
        # Of an error in Python, TensorFlow passes on the text alone.
        if features := re.search(r"\bFeatureCacheError: (.+)", error.message):
            raise TrainerError(f"{features[1]}; the same command computes it anew") from None
        bad = find_undecodable(experiment.source, experiment.scan)
        if not bad:
            raise TrainerError(f"TensorFlow failed: {told_by_tensorflow(error)}") from None
        raise TrainerError(f"pictures that cannot be read: {'; '.join(bad)}") from None
