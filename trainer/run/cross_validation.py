"""What the runs of all folds say together: a table with mean and spread, and a report of all predictions."""

import dataclasses
import logging
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trainer.cli.config import Config
from trainer.cli.options import RunConfig
from trainer.data.configured import open_configured
from trainer.data.grouping import groups_of
from trainer.data.sources import Source
from trainer.data.splits import Splits, make_splits
from trainer.loop.evaluator import Evaluation
from trainer.loop.losses import class_weights_from
from trainer.record.report_place import source_place
from trainer.record.spreadsheets import unique_names
from trainer.record.workdir import Workdir
from trainer.run.combinations import check_evaluations
from trainer.run.experiment import Experiment
from trainer.run.finished_run import told_learnt_before
from trainer.run.scoring import recipe_facts, require_scores, thumbnails, write_scores
from trainer.store.files import read_json, write_json, write_text
from trainer.tasks import Task, make_task
from trainer.values import TrainerError, UsageError

_log = logging.getLogger("trainer")
BY_DEFAULT = 5
FORMAT = 1
_REPORT = {"format": int, "split": str, "num_examples": int, "num_correct": int, "accuracy": float}
# Of metrics.json, as the table calls them.
_MEASURES = {
    "accuracy": ("accuracy",), "mAP": ("map",), "loss": ("loss",),
    "recall, mean of classes": ("macro", "recall"),
}  # fmt: skip


def fold_folder(root: str, number: int) -> Path:
    """Returns the --workdir of a fold, below that of all."""
    return Workdir(root).root / f"fold-{number}"


def check_folds(config: Config) -> None:
    """Makes sure that the pictures can be divided, before the first fold trains for an hour.

    Raises:
      UsageError: there are no such folds, or one lacks a class that the options need.
      TrainerError: there are too few pictures, or groups.
    """
    data, task = config.data, make_task(config.data.task)
    source = open_configured(config)
    groups = groups_of(source, column=data.group_column, pattern=data.groups)
    for number in range(1, data.folds + 1):
        splits = make_splits(
            source,
            data.splits,
            order=data.split_order,
            seed=data.split_seed,
            task=task,
            groups=groups,
            fold=(number, data.folds),
        )
        # These may put another class into a fold than the source says.
        if not data.relabel and data.near_duplicates != "group":
            _check_classes(config, source, splits, task=task, number=number)


def _check_classes(config: Config, source: Source, splits: Splits, *, task: Task, number: int) -> None:
    """Makes sure that a fold has the classes that weights and evaluations need."""
    names = source.class_names
    counts = {name: task.class_counts(source.labels[at], names) for name, at in splits.indices.items()}
    try:
        class_weights_from(config.update.class_weights, class_names=names, counts=counts["train"])
        check_evaluations(config, task=task, validation=counts["validation"])
    except UsageError as error:
        raise UsageError(f"fold {number} of {config.data.folds}: {error}") from None


def put_together(config: Config, root: str, *, asked: RunConfig) -> None:
    """Writes cross_validation.json, cross_validation.md and report/, and says what is in them.

    Args:
      config: of the folds, whichever --fold it has.
      root: the folder that holds those of the folds.
      asked: says which scores all predictions together must have.

    Raises:
      TrainerError: a fold has no report, or was not trained on these pictures; or the accuracy is lower.
    """
    count = config.data.folds
    folders = [fold_folder(root, number) for number in range(1, count + 1)]
    reports = [read_json(folder / "report" / "metrics.json", _REPORT) for folder in folders]
    first = Workdir(str(folders[0]))
    experiment = Experiment(first.read_config())
    task, told_thresholds = _settled(experiment, reports)
    # What the folds wrote are probabilities, which their `activation` has made.
    task = task.plain()
    scored, digests = _pooled(folders, experiment, task=task)
    scored = dataclasses.replace(scored, metrics={**scored.metrics, **_pooled_metrics(reports)})
    pooled = write_scores(
        Workdir(root).root / "report",
        Workdir(root),
        split=f"{count} folds",
        step=0,
        scored=scored,
        ids=[experiment.source.ids[at] for at in scored.ids.tolist()],
        class_names=experiment.source.class_names,
        task=task,
        digests=digests,
        pictures=thumbnails(experiment.pipeline, scored.ids),
        source=experiment.source.name,
        source_place=source_place(experiment.source.name),
        how=experiment.splits.how.replace(
            f"fold 1 of {count} of", f"{count} folds, each picture scored by the run that never saw it, of"
        ),
        backbone=experiment.backbone.name,
        image_size_px=experiment.backbone.contract.width_px,
        **recipe_facts(experiment.config, first),
        **told_thresholds,
        left_out_pictures=[list(picture) for picture in experiment.left_out],
        **_seen_before(reports),
    ).values
    result = _summed_up(reports, pooled)
    folder = Workdir(root).root
    write_json(folder / "cross_validation.json", result)
    table = told(result)
    write_text(folder / "cross_validation.md", table)
    for line in table.splitlines():
        _log.info("%s", line)
    _log.info("report:      %s", folder / "report" / "index.html")
    require_scores(pooled, asked)


def _summed_up(reports: Sequence[Mapping[str, Any]], pooled: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what cross_validation.json holds, from the reports of the folds and that of all together."""
    # Mean average precision is of several labels a picture alone.
    measures = {name: keys for name, keys in _MEASURES.items() if keys[0] in pooled}
    measures |= {name: ("metrics", name) for name in pooled.get("metrics", {})}
    rows = [{name: _value(report, keys) for name, keys in measures.items()} for report in reports]
    sizes = [report["num_examples"] for report in reports]
    return {
        "format": FORMAT,
        "folds": [{"fold": at + 1, "num_examples": sizes[at], **row} for at, row in enumerate(rows)],
        "mean": {name: _mean([row[name] for row in rows]) for name in measures},
        "standard_deviation": {name: _spread([row[name] for row in rows]) for name in measures},
        "pooled": {name: _value(pooled, keys) for name, keys in measures.items()}
        | {
            "num_examples": pooled["num_examples"],
            "accuracy_95_percent_interval": pooled["accuracy_95_percent_interval"],
        },
        **_seen_before(reports),
    }


def told(result: Mapping[str, Any]) -> str:
    """Returns the table of all folds in Markdown, and a line on how to read it."""
    names = list(result["mean"])
    rows = [["fold", "pictures", *names], ["---", *["---:"] * (1 + len(names))]]
    rows += [
        [str(of["fold"]), f"{of['num_examples']:,}", *(_number(of[n]) for n in names)]
        for of in result["folds"]
    ]
    for what in ("mean", "standard_deviation"):
        rows.append([what.replace("_", " "), "", *(_number(result[what][name]) for name in names)])
    pooled = result["pooled"]
    rows.append(["all together", f"{pooled['num_examples']:,}", *(_number(pooled[name]) for name in names)])
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    low, high = pooled["accuracy_95_percent_interval"]
    interval = f"{100 * low:.1f} to {100 * high:.1f} %"
    told_pooled = f"{100 * pooled['accuracy']:.2f} % (95 % interval {interval})"
    return "\n".join(lines) + (
        f"\n\nAccuracy of all predictions together: {told_pooled}. The spread of the folds is not the error "
        "of their mean: they share training pictures.\n"
        + (f"\n{told_learnt_before(seen, 'test')}.\n" if (seen := result.get("seen_before")) else "")
    )


def _settled(experiment: Experiment, reports: Sequence[Mapping[str, Any]]) -> tuple[Task, dict[str, str]]:
    """Returns the task as each fold decided about its pictures, and what the report says of that."""
    task, names = experiment.task, unique_names(experiment.source.class_names)
    fitted = [report.get("thresholds") for report in reports]
    if not task.fits_thresholds or not all(fitted):
        return task, {}
    rows = [[one[name] for name in names] for one in fitted if one]
    counts = [report["num_examples"] for report in reports]
    told = "the validation split of the fold that was asked"
    return task.with_thresholds(np.repeat(rows, counts, axis=0)), {"thresholds_from": told}


def _pooled(folders: Sequence[Path], experiment: Experiment, *, task: Task) -> tuple[Evaluation, list[str]]:
    """Returns the predictions of all folds for their test pictures, and the SHA-256 of these."""
    source = experiment.source
    place = {name: at for at, name in enumerate(source.ids)}
    positions: list[int] = []
    parts: list[np.ndarray] = []
    digests: list[str] = []
    for folder in folders:
        ids, probabilities, found = _read_predictions(
            folder / "report" / "predictions.parquet", source.class_names
        )
        where = [place.get(name, -1) for name in ids]
        if lost := [
            name for name, at in zip(ids, where, strict=True) if at < 0 or experiment.scan.digests[at] == ""
        ]:
            raise TrainerError(f"{folder} was scored on {lost[0]}, which {source.name} has no more")
        positions += where
        parts.append(task.logits_of(probabilities))
        digests += found
    if len(set(positions)) < len(positions):
        raise TrainerError(
            f"the folds in {folders[0].parent} are not of one division: a picture is in two of them"
        )
    at = np.array(positions, np.int64)
    labels, logits = source.labels[at], np.concatenate(parts)
    means = task.means(labels, logits)
    return Evaluation(means.pop("loss"), at, labels, logits, means), digests


def _pooled_metrics(reports: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Returns the means of --metrics over the pictures of all folds."""
    sizes = [report["num_examples"] for report in reports]
    means: dict[str, float] = {}
    for name in reports[0].get("metrics", {}):
        of_folds = [_value(report, ("metrics", name)) for report in reports]
        totals = [math.nan if v is None else v * size for v, size in zip(of_folds, sizes, strict=True)]
        means[name] = sum(totals) / sum(sizes)
    return means


def _seen_before(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns how many pictures of all folds the run in --init_from learnt from; empty: none."""
    counts: Counter[str] = Counter()
    for report in reports:
        counts.update(report.get("seen_before", {}))
    return {"seen_before": dict(counts)} if counts else {}


def _read_predictions(path: Path, class_names: Sequence[str]) -> tuple[list[str], np.ndarray, list[str]]:
    """Returns ids, probabilities [n, K] float64, and SHA-256 of the pictures in a report."""
    import pyarrow as pa  # Late: it takes a moment.
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise TrainerError(f"{path} cannot be read: {error}") from None
    shares = [table.column(f"probability_{name}").to_numpy() for name in unique_names(class_names)]
    return table.column("id").to_pylist(), np.stack(shares, axis=1), table.column("sha256").to_pylist()


def _value(report: Mapping[str, Any], keys: Sequence[str]) -> float | None:
    found: Any = report
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    return float(found) if isinstance(found, int | float) else None


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return statistics.fmean(there) if len(there) == len(values) else None


def _spread(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None and math.isfinite(value)]
    return statistics.stdev(there) if len(there) == len(values) > 1 else None


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
