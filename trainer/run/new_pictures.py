"""A finished run scored on pictures that it was not made with."""

import contextlib
import logging
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from trainer import plugins
from trainer.cli.config import Config
from trainer.data.configured import Pictures, open_configured, scan_configured
from trainer.data.inspect.scan import Scan
from trainer.data.pipeline import Pipeline, find_undecodable
from trainer.data.sources import Source
from trainer.data.splits import find_again
from trainer.loop.evaluator import Evaluation
from trainer.loop.metrics import Metric, asked_besides, make_metrics, sums_of
from trainer.paths import local_path
from trainer.record.calibration import recorded_temperature
from trainer.record.progress import counting
from trainer.record.report_place import pictures_sha256, report_place, require_report_place, source_place
from trainer.record.workdir import Workdir, if_moved
from trainer.run.experiment import head_of
from trainer.run.finished_run import Network, open_network
from trainer.run.fitting import compared
from trainer.run.relabelling import relabelled
from trainer.run.scoring import (
    learnt_before,
    main_split,
    measures,
    recipe_facts,
    require_scores,
    show_score,
    tell,
    thumbnails,
    write_scores,
)
from trainer.tasks import Task, make_task
from trainer.values import TrainerError, UsageError, close_names, composed, failure_in_words, is_it


@contextlib.contextmanager
def named_pictures(source: Source, scan: Scan) -> Iterator[None]:
    """Turns a failure of TensorFlow into one that names the pictures, the file of features or the reason."""
    try:
        yield
    except tf.errors.OpError as error:
        # Of an error in Python, TensorFlow passes on the text alone.
        if features := re.search(r"\bFeatureCacheError: (.+)", error.message):
            raise TrainerError(f"{features[1]}; the same command computes it anew") from None
        may_be_pictures = isinstance(error, tf.errors.InvalidArgumentError | tf.errors.UnknownError)
        # Only what tf.data says can be about a picture; to decode all of them takes long.
        if may_be_pictures and "Iterator" in error.message and (bad := find_undecodable(source, scan)):
            raise TrainerError(f"pictures that cannot be read: {'; '.join(bad)}") from None
        raise TrainerError(failure_in_words(error)) from None


_log = logging.getLogger("trainer")
# Where pictures are, and how a file is read: these are of the pictures, all else is of the run.
OF_PICTURES = (
    "source", "data_dir", "checksum", "synthetic_examples", "synthetic_seed", "image_root", "image_column",
    "label_column", "split_column", "group_column", "weight_column",
)  # fmt: skip
_OF_SPLITS = (
    "splits", "split_order", "split_seed", "drop_duplicates", "near_duplicates", "relabel", "groups", "folds",
    "fold",
)  # fmt: skip


def open_pictures(recorded: Config, given: Mapping[str, Any], *, run_classes: Sequence[str] = ()) -> Pictures:
    """Opens the pictures that an evaluation is of, and looks at them.

    Args:
      recorded: what the run was started with.
      given: the options of this command; where --source is among them, the run's checksum does not hold.
      run_classes: the classes of the run, where the pictures may be others than it had.

    Raises:
      TrainerError: the pictures cannot be had.
    """
    # What is of the place of the run's own pictures.
    elsewhere = {"checksum": "", "image_root": "", "split_column": ""} if "source" in given else {}
    theirs = recorded.replace(**{**elsewhere, **given})
    try:
        source = open_configured(theirs, run_classes=run_classes)
    except TrainerError as error:
        if "source" in given or isinstance(error, UsageError):
            raise
        raise TrainerError(if_moved(error)) from None
    pictures = scan_configured(source, theirs, plugins=plugins.sources("source"))
    return relabelled(pictures, theirs, task=make_task(theirs.data.task), strict=False)


def evaluate_pictures(
    workdir: Workdir, config: Config, pictures: Pictures, *, split: str = ""
) -> dict[str, Any]:
    """Scores all of some pictures, or those of a split of the run; returns what metrics.json holds.

    Those of a split are found by the SHA-256 of their bytes; the run's others need not be there.

    Args:
      workdir: of the run.
      config: of the run, as this command was asked.
      pictures: of --source.
      split: of the run; empty: all pictures.

    Raises:
      UsageError: a class of the pictures is none of the run's, or the run has no such split.
      TrainerError: the run cannot be had, or not all pictures of the split are there.
    """
    start, task = time.perf_counter(), make_task(config.data.task)
    source, scan = pictures.source, pictures.scan
    class_names = tuple(workdir.read_facts()["class_names"])
    indices, labels = _chosen(workdir, pictures, class_names, task, split=split)
    digests = [scan.digests[i] for i in indices.tolist()]
    written = [task.label_words(label, class_names) for label in labels]
    folder = _report_folder(workdir, config, source.name, digests, written, split=split)
    metrics = asked_besides(make_metrics(config.update.metrics, task=task), task=task)
    network = open_network(workdir, config)
    task = network.task  # With the thresholds of the run.
    pipeline, logits, asked = _scored(network, source, scan, config, indices, labels=labels, metrics=metrics)
    means = {**task.means(labels, logits), **asked}
    scored = Evaluation(means.pop("loss"), indices, labels, logits, means)
    if split:
        more = {"pretrained": compared(workdir, split), **learnt_before(workdir, split)}
    else:
        more = {"seen_before": _seen_before(workdir, scan.digests)}
    report = write_scores(
        folder,
        workdir,
        split=split or source.name,
        step=network.step,
        scored=scored,
        ids=[source.ids[i] for i in indices.tolist()],
        class_names=class_names,
        task=task,
        digests=digests,
        temperature=recorded_temperature(workdir, step=network.step),
        pictures=thumbnails(pipeline, indices),
        source=source.name,
        source_place=source_place(source.name),
        how=f"those of {split}, found again by their SHA-256" if split else "all pictures",
        backbone=config.model.backbone,
        image_size_px=network.classifier.backbone.contract.width_px,
        **recipe_facts(config.replace(head=head_of(config)), workdir, step=network.step),
        left_out_pictures=[list(picture) for picture in pictures.left_out],
        left_out_batches=workdir.read_facts()["rollbacks"],
        **more,
    )
    show_score(workdir, folder, network.step, measures(scored, class_names, task=task), report.figures)
    tell(report.values, folder, secs=time.perf_counter() - start)
    require_scores(report.values, config.run)
    return dict(report.values)


def _chosen(
    workdir: Workdir, pictures: Pictures, class_names: Sequence[str], task: Task, *, split: str
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the positions of the pictures that are scored, and their labels as the run numbers them."""
    source = pictures.source
    if split:
        indices = _of_split(workdir, split, pictures, task)
    else:
        unused = {*pictures.scan.bad, *pictures.removed}
        indices = np.array([i for i in range(len(source.ids)) if i not in unused], np.int64)
        if not len(indices):
            kept = " and is not left out" if pictures.removed else ""
            raise TrainerError(f"--source={source.name} has no picture that can be read{kept}")
    used = [source.class_names[k] for k in sorted(task.classes_in(source.labels[indices]))]
    wanted = used if split else source.class_names
    places = match_classes(source.class_names, class_names, source=source.name, wanted=wanted)
    return indices, task.renumbered(source.labels[indices], places, len(class_names))


def _of_split(workdir: Workdir, split: str, pictures: Pictures, task: Task) -> np.ndarray:
    """Returns the positions of a split's pictures, in its order."""
    recorded = workdir.read_splits()
    if split not in recorded:
        raise UsageError(f"--eval_split={split}: this run has only {', '.join(recorded)}")
    found = find_again(recorded, pictures.source, pictures.scan.digests, task=task)
    workdir.require_found({split: found[split]}, recorded, source=pictures.source.name)
    if lost := sum(int((positions < 0).sum()) for positions in found.values()):
        _log.warning("%s has all of %s; %d other pictures of the run are missing or have changed",
                     pictures.source.name, split, lost)  # fmt: skip
    return found[split]


def require_no_splits(given: Mapping[str, Any]) -> None:
    """Raises UsageError where splits are asked for of pictures that the run does not have."""
    if of_splits := [name for name in _OF_SPLITS if name in given]:
        raise UsageError(
            f"--{of_splits[0]}: all pictures of another source are scored; leave it out, or --source"
        )


def _scored(
    network: Network,
    source: Source,
    scan: Scan,
    config: Config,
    indices: np.ndarray,
    *,
    labels: np.ndarray,
    metrics: Mapping[str, Metric],
) -> tuple[Pipeline, np.ndarray, dict[str, float]]:
    """Scores the pictures of a source at `indices` [N], whose labels [N] are numbered as those of the run.

    Returns:
      (its pipeline, logits [N, K], means of the metrics).
    """
    pipeline = Pipeline(
        source,
        scan,
        contract=network.classifier.backbone.contract,
        batch_size=config.plan.batch_size,
        seed=config.run.seed,
        decoding=config.data.decode,
        task=network.task,
    )
    parts: list[np.ndarray] = []
    totals = dict.fromkeys(metrics, 0.0)
    with (
        named_pictures(source, scan),
        counting(config.run.progress, source.name, len(indices)) as more,
    ):
        for batch in pipeline.once(indices):
            real = batch["mask"].numpy() > 0
            begin, count = sum(map(len, parts)), int(real.sum())
            parts.append(network.logits(batch["image"].numpy())[real])
            more(count)
            if not metrics:
                continue
            rows = {name: tf.boolean_mask(part, real) for name, part in batch.items()}
            rows["label"] = tf.cast(labels[begin : begin + count], rows["label"].dtype)
            measured = {name: metric(tf.constant(parts[-1]), rows) for name, metric in metrics.items()}
            for name, (total, _) in sums_of(measured, mask=tf.ones(count)).items():
                totals[name] += float(total)
    means = {name: total / len(indices) for name, total in totals.items()}
    return pipeline, np.concatenate(parts), means


def match_classes(
    found: Sequence[str], known: Sequence[str], *, source: str, wanted: Sequence[str] | None = None
) -> np.ndarray:
    """Finds classes by their names, in whatever spelling of Unicode; warns of those that were not found.

    Args:
      found: K of them.
      known: in the order of the outputs.
      source: for messages.
      wanted: those of `found` that must be known; None: all.

    Returns:
      [K] int64: the place among the known ones, or -1.

    Raises:
      UsageError: a class is not known.
    """
    places = {composed(name): place for place, name in enumerate(known)}
    wanted = found if wanted is None else wanted
    strange = [name for name in wanted if composed(name) not in places]
    if strange:
        are = "are" if len(strange) > 1 else "is"
        near = list(dict.fromkeys(one for name in strange for one in close_names(name, known, n=1)))
        raise UsageError(
            f"--source={source}: {_listed(strange)} {are} none of the classes of the run, which are "
            f"{_listed(known)}{is_it(near) or '.'} Classes are matched by their names, of folders or in a "
            "table: rename these, or use predict for pictures of other things"
        )
    there = set(map(composed, wanted))
    missing = [name for name in known if composed(name) not in there]
    if missing:
        _log.warning("%s has no pictures of %s", source, _listed(missing))
    return np.array([places.get(composed(name), -1) for name in found], np.int64)


def named_report_folder(config: Config, *, pictures: str = "") -> Path | None:
    """Returns --report_dir, into which a report of --source may be written; None where it is not given.

    Args:
      config: of the evaluation.
      pictures: `pictures_sha256` of what is scored, where it is known.

    Raises:
      TrainerError: there is something else in that folder.
    """
    if not (asked := config.evaluate.report_dir):
        return None
    flag = f"--report_dir={asked}"
    folder = local_path(asked, flag=flag)
    require_report_place(folder, flag=flag, source=config.data.source, pictures=pictures)
    return folder


def split_report_folder(workdir: Workdir, split: str) -> Path:
    """Returns where the report of a split of the run goes: that which it is judged by is the run's own."""
    return workdir.report / ("" if split == main_split(workdir.read_splits()) else split)


def _report_folder(
    workdir: Workdir,
    config: Config,
    source: str,
    digests: Sequence[str],
    labels: Sequence[str],
    *,
    split: str,
) -> Path:
    """Returns where the report goes: --report_dir, the place of the split, or one for another source."""
    if split:
        return named_report_folder(config) or split_report_folder(workdir, split)
    pictures = pictures_sha256(digests, labels)
    named = named_report_folder(config.replace(source=source), pictures=pictures)
    name = _folder_name(source)
    return named or report_place(workdir.report, name, source=source, pictures=pictures)


def _listed(names: Sequence[str], *, at_most: int = 10) -> str:
    more = f" and {len(names) - at_most} more" if len(names) > at_most else ""
    return ", ".join(names[:at_most]) + more


def _folder_name(source: str) -> str:
    """Returns e.g. 'new_photos' for 'folder:/data/new photos/', never the name of a split."""
    last = source.rstrip("/").replace(":", "/").rsplit("/", 1)[-1]
    name = re.sub(r"[^\w.-]+", "_", last).strip("._") or "pictures"
    return f"{name}_pictures" if name in ("train", "validation", "test") else name


def _seen_before(workdir: Workdir, digests: Sequence[str]) -> dict[str, int]:
    """Counts by split how many of these pictures the run had, by the SHA-256 of their bytes."""
    splits = workdir.read_splits()
    theirs = {digest for digest in digests if digest}
    seen = {name: len(theirs & {row[2] for row in rows}) for name, rows in splits.items()}
    if seen.get("train") or seen.get("validation"):
        _log.warning(
            "%d of these pictures are among those the run was trained with, and %d among those that its best "
            "weights were chosen by: read the score as too good",
            seen.get("train", 0), seen.get("validation", 0),
        )  # fmt: skip
    return seen
