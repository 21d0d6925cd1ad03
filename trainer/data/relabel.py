"""--relabel: a table that corrects labels, or leaves pictures out, by id and SHA-256."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from trainer.data.inspect.scan import Scan
from trainer.data.sources import Relabelled, Source
from trainer.tasks import Task
from trainer.values import TrainerError, UsageError, close_names, composed, is_it

COLUMNS = ("id", "sha256", "label", "new_label")
LEAVE_OUT = "leave out"


@dataclass(frozen=True)
class Change:
    """A line of the table: `new_label` is a class, or `LEAVE_OUT`; `line` is where it stands."""

    id: str
    sha256: str
    new_label: str
    line: int


class Corrected(Relabelled):
    """A source with labels that a table has corrected."""


def relabel(
    source: Source, scan: Scan, changes: Sequence[Change], *, task: Task, flag: str, strict: bool
) -> tuple[Source, list[int]]:
    """Changes labels.

    A line is of the picture with this SHA-256; of several that are byte for byte alike, of that with this id.
    One that was renamed is found, one that was changed is not.

    Args:
      source: whose labels.
      scan: of it.
      changes: lines of the table.
      task: what labels mean; they must be one class each.
      flag: begins messages.
      strict: whether each line must be of a picture that is there.

    Returns:
      A source with the new labels, and the positions of the pictures that are left out.

    Raises:
      UsageError: a new label is no class, or two lines contradict one another.
      TrainerError: a picture is not there, or is another one than the table was written of.
    """
    if changes and not task.excludes:
        raise UsageError(f"{flag}: it is for labels of one class each, and this task has others")
    places: defaultdict[str, list[int]] = defaultdict(list)
    for at, digest in enumerate(scan.digests):
        if digest:
            places[digest].append(at)
    numbers = {composed(name): number for number, name in enumerate(source.class_names)}
    labels, left_out, seen = source.labels.copy(), [], dict[int, tuple[Change, str]]()
    for change in changes:
        same = places.get(change.sha256, [])
        if not same and not strict:
            # Of other pictures: what there are of classes among these says nothing of the line.
            continue
        new = composed(change.new_label)
        if new not in numbers and new.casefold() == LEAVE_OUT:
            new = LEAVE_OUT
        if new != LEAVE_OUT and new not in numbers:
            raise UsageError(
                f"{flag}, line {change.line}: {change.new_label!r} is none of the classes "
                f"{', '.join(source.class_names[:10])}, and not {LEAVE_OUT!r}"
                f"{is_it(close_names(new, [*source.class_names, LEAVE_OUT], n=1))}"
            )
        if not same:
            raise TrainerError(_absent(source, change, flag))
        at = next((one for one in same if source.ids[one] == change.id), same[0])
        before, said = seen.setdefault(at, (change, new))
        if said != new:
            raise UsageError(
                f"{flag}: lines {before.line} and {change.line} say different things of {source.ids[at]}"
            )
        if new == LEAVE_OUT:
            left_out.append(at)
        else:
            labels[at] = numbers[new]
    return Corrected(source, labels), sorted(set(left_out))


def _absent(source: Source, change: Change, flag: str) -> str:
    what = (
        "is another picture than the table was written of" if change.id in set(source.ids) else "is not there"
    )
    return (
        f"{flag}, line {change.line}: {change.id} {what} (no picture of {source.name} has the SHA-256 "
        f"{change.sha256[:12]}...); remove the line, or run audit again"
    )
