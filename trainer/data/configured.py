"""The pictures that a configuration names, opened and looked at."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from trainer.cli.config import Config
from trainer.data.inspect.bad_pictures import refusal, told_left_out
from trainer.data.inspect.scan import Scan, scan
from trainer.data.sources import Relabelled, Source, SourceOptions, open_source
from trainer.paths import local_path
from trainer.store.places import cache_root
from trainer.tasks import Task, make_task
from trainer.values import UsageError, parse_calls

_log = logging.getLogger("trainer")


def open_configured(
    config: Config, *, run_classes: Sequence[str] = (), also_written: Sequence[str] = ()
) -> Source:
    """Opens --source.

    Args:
      config: names it.
      run_classes: the classes of the run that is to be scored on all of its pictures; empty where they are
        the run's own.
      also_written: folders that are written to besides --workdir and the cache.

    Raises:
      UsageError: it names no known scheme, or its labels are not of the kind that --task is about.
      TrainerError: it cannot be had.
    """
    data, run = config.data, config.run
    written = [one for one in (run.workdir, *also_written) if one]
    workdirs = [local_path(one, flag=f"--workdir={one}") for one in written]
    options = SourceOptions(
        data_dir=data.data_dir,
        cache_dir=run.cache_dir,
        checksum=data.checksum,
        synthetic_examples=data.synthetic_examples,
        synthetic_seed=data.synthetic_seed,
        memory_budget_bytes=data.memory_budget_mb * 2**20,
        on_bad_image=data.on_bad_image,
        results=(*workdirs, cache_root(run.cache_dir)),
        splits="auto" if run_classes else data.splits,
        run_classes=tuple(run_classes),
        several=parse_calls(data.task)[0].name == "multi_label",
        image_root=data.image_root,
        image_column=data.image_column,
        label_column=data.label_column,
        split_column=data.split_column,
        group_column="" if run_classes else data.group_column,
        weight_column="" if run_classes else data.weight_column,
    )
    return with_labels_of(make_task(data.task), open_source(data.source, options))


def with_labels_of(task: Task, source: Source) -> Source:
    """Returns a source whose labels are as a task calculates with them.

    Raises:
      UsageError: they are not of its kind.
    """
    given = source.labels
    try:
        labels = task.encoded(given, len(source.class_names))
    except UsageError as error:
        raise UsageError(f"--source={source.name} {error}") from None
    return source if labels is given else Relabelled(source, labels)


@dataclass(frozen=True)
class Pictures:
    """Pictures that were looked at.

    Attributes:
      source: where they are.
      scan: what was found.
      left_out: (id, reason) of the bad ones, in the source's order, after what the source itself left out,
        and of those that --relabel leaves out.
      removed: positions of the latter.
    """

    source: Source
    scan: Scan
    left_out: list[tuple[str, str]]
    removed: tuple[int, ...] = ()


def scan_configured(source: Source, config: Config, *, plugins: Sequence[bytes] = ()) -> Pictures:
    """Looks at every picture.

    Args:
      source: whose pictures.
      config: how.
      plugins: source of what comes from outside and makes pictures.

    Raises:
      TrainerError: there are bad ones, and --on_bad_image says to fail.
    """
    data, recorded = config.data, cache_root(config.run.cache_dir) / "scans"
    found = scan(source, exif=data.exif, max_pixels=data.max_pixels, recorded=recorded, plugins=plugins)
    if found.bad and data.on_bad_image == "fail":
        raise refusal(source.name, source.ids, found.bad)
    left_out = [(source.ids[at], reason) for at, reason in sorted(found.bad.items())]
    if left_out:
        _log.warning("%s", told_left_out(left_out, total=len(source.ids)))
    # What is no picture of the source, such as the row of a table without a label, has been named.
    left_out = [*getattr(source, "left_out", ()), *left_out]
    return Pictures(source, found, left_out)
