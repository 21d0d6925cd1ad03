"""Near duplicates of the pictures of a run: what is said, written and shown of them."""

import csv
import io
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from trainer.data.near_duplicates import Pair
from trainer.data.pipeline import Pipeline
from trainer.record.spreadsheets import as_text
from trainer.record.workdir import Workdir
from trainer.run.experiment import Experiment
from trainer.store.files import write_text
from trainer.values import Contract

if TYPE_CHECKING:
    from trainer.report.audit_page import Shown

_log = logging.getLogger("trainer")
MOST_SHOWN = 200
_SIDE_PX, _BATCH_SIZE = 128, 32


def across_splits(pairs: Sequence[Pair], split_of: Mapping[int, str]) -> list[Pair]:
    """Returns the pairs of pictures that are in two splits."""
    return [one for one in pairs if _split(one.first, split_of) != _split(one.second, split_of)]


def pair_rows(pairs: Sequence[Pair], experiment: Experiment, split_of: Mapping[int, str]) -> str:
    """Returns a CSV with a line a pair: both ids, classes and splits, and the bits between them."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    columns = ("id", "label", "split")
    rows.writerow([*columns, *(f"other_{name}" for name in columns), "bits"])
    for pair in in_order(pairs, split_of):
        cells = [cell for at in (pair.first, pair.second) for cell in _about(at, experiment, split_of)]
        rows.writerow([*map(as_text, cells), pair.bits])
    return text.getvalue()


def in_order(pairs: Sequence[Pair], split_of: Mapping[int, str]) -> list[Pair]:
    """Returns pairs with those first that are in two splits."""
    crossing = across_splits(pairs, split_of)
    known = set(crossing)
    return [*crossing, *(pair for pair in pairs if pair not in known)]


def shown_pairs(
    pairs: Sequence[Pair], experiment: Experiment, split_of: Mapping[int, str], *, most: int = MOST_SHOWN
) -> "list[tuple[Shown, Shown]]":
    """Returns what a page shows of the first pairs, those first that are in two splits."""
    from trainer.report.audit_page import Shown  # Late: it imports what draws.

    chosen = in_order(pairs, split_of)[:most]
    positions = sorted({at for pair in chosen for at in (pair.first, pair.second)})
    images = dict(zip(positions, small_pictures(experiment, positions), strict=True))

    def shown(at: int) -> Shown:
        name, label, split = _about(at, experiment, split_of)
        return Shown(images[at], label, "", f"{name} ({split})")

    return [(shown(pair.first), shown(pair.second)) for pair in chosen]


def small_pictures(experiment: Experiment, positions: Sequence[int]) -> np.ndarray:
    """Returns pictures at positions of the source, small and in their own aspect: [n, S, S, 3] in [0, 1]."""
    contract = Contract(_SIDE_PX, _SIDE_PX, (0.0, 1.0), 0, any_size=True, fit="pad", antialias=True)
    pipeline = Pipeline(
        experiment.source,
        experiment.scan,
        contract=contract,
        batch_size=_BATCH_SIZE,
        seed=0,
        decoding="scaled",
        task=experiment.task,
    )
    found = [np.zeros((0, _SIDE_PX, _SIDE_PX, 3), np.float32)]
    if len(positions):
        batches = pipeline.once(np.array(positions, np.int64))
        found += [batch["image"].numpy()[batch["mask"].numpy() > 0] for batch in batches]
    return np.concatenate(found)


def write_near_duplicates(experiment: Experiment, workdir: Workdir) -> None:
    """Writes near_duplicates/ of a run that has looked for them: a page of pairs, and a table."""
    if experiment.near_pairs is None:
        return
    from trainer.report.audit_page import pairs_page  # Late: it imports what draws.

    folder, pairs, split_of = workdir.root / "near_duplicates", experiment.near_pairs, experiment.split_before
    write_text(folder / "near_duplicates.csv", pair_rows(pairs, experiment, split_of))
    shown = shown_pairs(pairs, experiment, split_of)
    page = pairs_page(
        experiment.config.data.source,
        shown,
        num_pairs=len(pairs),
        num_crossing=len(across_splits(pairs, split_of)),
        what=experiment.config.data.near_duplicates,
    )
    write_text(folder / "index.html", page)
    _log.info("near duplicates: %s", folder / "index.html")


def _split(at: int, split_of: Mapping[int, str]) -> str:
    return split_of.get(at, "no split")


def _about(at: int, experiment: Experiment, split_of: Mapping[int, str]) -> tuple[str, str, str]:
    """Returns id, class and split of a picture."""
    source = experiment.source
    label = experiment.task.label_words(source.labels[at], source.class_names)
    return source.ids[at], label, _split(at, split_of)
