"""What a split, or other pictures, scored: numbers for event files, and the report."""

import dataclasses
import logging
import math
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trainer.cli.config import Config
from trainer.cli.declare import floors_of
from trainer.cli.options import RunConfig
from trainer.cli.phase_specs import PhaseSpec
from trainer.data.decode import unscale
from trainer.data.pipeline import Pipeline
from trainer.loop.evaluator import Evaluation
from trainer.loop.metrics import asked_besides, make_metrics
from trainer.record.calibration import UNKNOWN, Calibration, record_calibration, recorded_calibration
from trainer.record.report_place import report_manifest, source_place
from trainer.record.summaries import Summaries
from trainer.record.workdir import Workdir
from trainer.report.words import told_bought, told_metrics, told_score
from trainer.run.experiment import Experiment
from trainer.run.fitting import compared, told_compared
from trainer.run.introduction import draw_curves
from trainer.run.stages import Stages
from trainer.run.team import team
from trainer.tasks import Task
from trainer.values import CommonError, UsageError, close_names, is_it

_log = logging.getLogger("trainer")


def measures(scored: Evaluation, class_names: Sequence[str], *, task: Task) -> dict[str, float]:
    """Returns what event files say of an evaluation: loss, other means, and the task's numbers of a split."""
    of_split = task.split_metrics(scored.labels, scored.logits, class_names)
    values = {"loss": scored.loss, **scored.metrics, **of_split}
    return {name: float(value) for name, value in values.items()}


def measure_names(experiment: Experiment, metrics: str) -> list[str]:
    """Returns what `measures` will say of validation, by name.

    Args:
      experiment: with the pictures.
      metrics: value of --metrics.
    """
    task, names = experiment.task, experiment.source.class_names
    labels = experiment.source.labels[experiment.splits.indices["validation"]]
    of_split = task.split_metrics(labels, np.zeros((len(labels), len(names)), np.float32), names)
    return ["loss", *make_metrics(metrics, task=task), *of_split]


def require_metric(metric: str, names: Collection[str]) -> None:
    """Refuses a --metric of `sweep` that is none of those of validation.

    Raises:
      UsageError: it is none; the message has the others, without those of single classes.
    """
    if metric not in names:
        others = ", ".join(f"validation_{name}" for name in names if "/" not in name)
        close = [f"validation_{name}" for name in close_names(metric, names)]
        raise UsageError(f"--metric=validation_{metric} is not one of {others}{is_it(close)}")


_ASSERTED = {"macro_f1": ("macro", "f1"), "micro_f1": ("micro", "f1"), "samples_f1": ("samples", "f1")}
"""{what --assert_at_least names: where metrics.json has it}; others are there by their names."""


def require_scores(report: Mapping[str, Any], run: RunConfig) -> None:
    """Fails where a score, as `score` returns it, is below --assert_accuracy_at_least or --assert_at_least.

    Of several workers, all have come to this before one fails: it ends the others, which may still write.

    Raises:
      CommonError: it is; or there is no such number.
    """
    if why := _too_low(report, run):
        team().exchange("scores that are too low", why)
        raise CommonError(why)


def _too_low(report: Mapping[str, Any], run: RunConfig) -> str:
    """Returns which score is below what is asked for; empty: none."""
    split, at_least = report["split"], run.assert_accuracy_at_least
    if report["accuracy"] < at_least:
        return f"{split} accuracy {report['accuracy']:.4f} is below --assert_accuracy_at_least={at_least:g}"
    for name, floor in floors_of(run.assert_at_least).items():
        found: Any = report
        for key in _ASSERTED.get(name, (name,)):
            found = found[key]
        if found is None or found < floor:
            told = "is not defined" if found is None else f"{found:.4f} is below {floor:g}"
            return f"--assert_at_least={run.assert_at_least}: {split} {name} {told}"
    return ""


def main_split(splits: Collection[str]) -> str:
    """Returns the one of a run's splits that it is judged by: test, or validation where there is none."""
    return "test" if "test" in splits else "validation"


def score(
    stages: Stages, workdir: Workdir, *, split: str, folder: Path, summaries: Summaries | None = None
) -> dict[str, Any]:
    """Evaluates a split, writes the report, prints the accuracy with its interval, and returns the report.

    Args:
      stages: with the weights to score.
      workdir: of the run.
      split: train, validation or test.
      folder: where the report goes.
      summaries: where the score and its figures go besides, at the end of a training.
    """
    experiment, step = stages.experiment, stages.state.step
    task, class_names = experiment.task, experiment.source.class_names
    start = time.perf_counter()
    scored = stages.evaluate_at_end(split)
    calibration = _calibrate(stages, workdir, scored, split=split, ends_training=bool(summaries))
    task = calibration.settled(task)
    if calibration.thresholds is not None:
        scored = _decided_by(task, scored)
    if summaries:
        if split == "test":
            summaries.scalars("test", step, measures(scored, class_names, task=task))
        draw_curves(experiment, workdir, summaries)
    report = write_scores(
        folder,
        workdir,
        split=split,
        step=step,
        scored=scored,
        ids=[experiment.source.ids[i] for i in scored.ids.tolist()],
        class_names=class_names,
        task=task,
        digests=[experiment.scan.digests[i] for i in scored.ids.tolist()],
        temperature=(calibration.temperature, calibration.fitted_on),
        pictures=thumbnails(experiment.pipeline, scored.ids),
        source=experiment.source.name,
        source_place=source_place(experiment.source.name),
        how=experiment.splits.how,
        backbone=experiment.backbone.name,
        image_size_px=experiment.backbone.contract.width_px,
        **recipe_facts(experiment.config, workdir, step=step),
        left_out_pictures=[list(picture) for picture in experiment.left_out],
        left_out_batches=workdir.read_facts()["rollbacks"],
        missing_classes=experiment.missing,
        pretrained=compared(workdir, split, right=task.right(task.predicted(scored.logits), scored.labels)),
        **learnt_before(workdir, split),
        shared_pictures=[names for names in experiment.still_shared if any(f"({split})" in n for n in names)],
    )
    if summaries:
        # Validation's is of the end: a run that is started again there writes it again.
        at = step if split == "test" else experiment.plan.total_steps
        for name, png in report.figures.items():
            summaries.image(split, f"report/{name}", png, step=at)
    else:
        show_score(workdir, folder, step, measures(scored, class_names, task=task), report.figures)
    tell(report.values, folder, secs=time.perf_counter() - start)
    return report.values


def write_scores(
    folder: Path,
    workdir: Workdir,
    *,
    scored: Evaluation,
    ids: Sequence[str],
    digests: Sequence[str],
    class_names: Sequence[str],
    task: Task,
    **rest: Any,
) -> Any:
    """Writes the report of an evaluation.

    Args:
      folder: where it goes.
      workdir: of the run that was scored.
      scored: its logits and labels of N pictures.
      ids: [N].
      digests: [N] SHA-256 in hex.
      class_names: [K].
      task: what labels mean.
      **rest: what `report.writer.write_report` asks for besides.
    """
    from trainer.report.sections import Predictions  # Late: they import scikit-learn.
    from trainer.report.writer import write_report

    if asked := asked_besides(scored.metrics, task=task):
        rest["metrics"] = {name: mean if math.isfinite(mean) else None for name, mean in asked.items()}
    curves = workdir.report / "learning_curves.png"
    return write_report(
        folder,
        Predictions(ids, scored.labels, scored.logits, class_names, digests, task),
        loss=scored.loss,
        curves_png=curves.read_bytes() if curves.exists() else None,
        run=workdir.root.name,
        **rest,
    )


def recipe_facts(config: Config, workdir: Workdir, *, step: int | None = None) -> dict[str, Any]:
    """Returns what a report says of how the network of a run was trained, by its settled options.

    With the step of the weights, `in_vain` is there where later phases have not made them better.
    """
    in_vain = workdir.read_facts().get("in_vain", {"step": -1, "told": ""})
    began, schedule = workdir.read_facts().get("began"), "fit" if config.fits else config.plan.schedule
    assumed = workdir.read_facts().get("assumed_prevalence")
    return {
        **({"began": began} if began else {}),
        **({"assumed_prevalence": assumed} if assumed else {}),
        **({"in_vain": in_vain["told"]} if in_vain["told"] and in_vain["step"] == step else {}),
        "schedule": "--phase" if config.plan.phase and not workdir.read_chosen() else schedule,
        "phases": ["fit: nothing trains"] if config.fits else [told_phase(spec) for spec in config.phases],
        "head": config.model.head,
        "batch_size": config.plan.batch_size,
        "seed": config.run.seed,
    }


def _decided_by(task: Task, scored: Evaluation) -> Evaluation:
    """Returns an evaluation with the metrics of a task's own thresholds: the network ran without them."""
    means = task.means(scored.labels, scored.logits)
    decided = {name: means.get(name, value) for name, value in scored.metrics.items()}
    return dataclasses.replace(scored, metrics=decided)


def learnt_before(workdir: Workdir, split: str) -> dict[str, Any]:
    """Returns what a report says of pictures that the run in --init_from learnt from; empty: of none."""
    seen = workdir.read_facts().get("init_from", {}).get("seen_before", {}).get(split)
    return {"seen_before": seen} if seen else {}


def told_phase(spec: PhaseSpec) -> str:
    """Returns e.g. 'frozen for 10epochs: trains head/, adam at 0.001 (constant)'."""
    parts = [
        f"trains {' '.join(spec.train)}, {spec.optimizer} at {spec.learning_rate:g} ({spec.lr_schedule})"
    ]
    parts += [f"augment {spec.augment}"] if spec.augment else []
    parts += [f"average {spec.average}"] if spec.average else []
    return f"{spec.name} for {spec.duration}: {', '.join(parts)}"


def show_score(
    workdir: Workdir, folder: Path, step: int, values: Mapping[str, float], figures: Mapping[str, bytes]
) -> None:
    """Writes an event file beside a report: in TensorBoard the evaluation is a run of its own."""
    summaries = Summaries(workdir)
    path = summaries.score(folder, step, values, figures)
    summaries.close()
    # The next evaluation removes it with the rest of this report, and no other event file.
    report_manifest(folder).add([path.name])


def tell(values: Mapping[str, Any], folder: Path, *, secs: float) -> None:
    """Says the accuracy with its interval, and where the report is."""
    low, high = values["accuracy_95_percent_interval"]
    interval = f"; 95 % interval {100 * low:.1f} to {100 * high:.1f} %)"
    _log.info(
        "%s, weights of step %d, %.1f s",
        told_score(values).removesuffix(")") + interval, values["step"], secs,
    )  # fmt: skip
    if told := told_metrics(values):
        _log.info("             %s", told)
    if values["split"] == "validation":
        _log.info("             validation chose these weights, too: read this as slightly too good")
    if "pretrained" in values:
        _log.info("pretrained:  %s", told_compared(values["pretrained"]))
        if told := told_bought(values["pretrained"]):
            _log.info("             %s", told)
    _log.info("report:      %s", folder / "index.html")


def thumbnails(pipeline: Pipeline, indices: np.ndarray) -> Callable[[Sequence[int]], np.ndarray]:
    """Returns a function from positions in `indices` to the pictures there as the network sees them.

    It gives [n, H, W, 3] float32 in [0, 1].
    """

    def pictures(positions: Sequence[int]) -> np.ndarray:
        wanted = indices[np.asarray(positions, np.int64)]
        batches = [(b["image"].numpy(), b["mask"].numpy() > 0) for b in pipeline.once(wanted)]
        return unscale(np.concatenate([images[real] for images, real in batches]), pipeline.contract)

    return pictures


def _calibrate(
    stages: Stages, workdir: Workdir, scored: Evaluation, *, split: str, ends_training: bool
) -> Calibration:
    """Returns what is fitted to validation with the current weights.

    That of the weights that training ends with is recorded: whoever scores other pictures takes it.
    """
    step, task = stages.state.step, stages.experiment.task
    if not ends_training:
        recorded = recorded_calibration(workdir, step=step)
        if recorded.temperature is not None:
            return recorded
    if split != "validation":
        scored = stages.evaluate_at_end("validation")
    if not np.isfinite(scored.logits).all():
        return UNKNOWN
    found = Calibration(
        task.fit_temperature(scored.labels, scored.logits),
        task.fit_thresholds(scored.labels, scored.logits),
        f"validation, {len(scored.labels):,} pictures",
    )
    if ends_training:
        record_calibration(workdir, found, step=step, num_examples=len(scored.labels))
    return found


def import_early() -> None:
    """Imports what the end of a run needs, in a thread: while the network computes, Python is idle."""

    def load() -> None:
        import trainer.report.writer  # noqa: F401

    threading.Thread(target=load, daemon=True).start()
