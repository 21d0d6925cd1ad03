"""The folder of a report: which one it is, and what may be in it."""

import contextlib
import glob
import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from trainer.paths import expanded
from trainer.record.manifest import Manifest
from trainer.store.files import read_json
from trainer.values import TrainerError, UsageError

FIGURES = (
    *("confusion_matrix", "reliability", "roc_curve", "mistakes", "least_certain", "per_class"),
    "cooccurrence",
)
TABLES = ("predictions.csv", "predictions.parquet", "index.html", "metrics.json")
_SHOWN_DIGITS = 8
_SHAPE = {"format": int, "source?": str, "source_place?": str, "pictures_sha256?": str | None}


def report_manifest(folder: Path) -> Manifest:
    """Returns the record of what `evaluate`, or the end of a training, wrote into a folder."""
    return Manifest(folder, "report", older=_of_older_versions)


def pictures_sha256(digests: Iterable[str], labels: Iterable[str]) -> str:
    """Returns 64 hex digits that are the same for the same pictures in the same classes, in any order.

    Args:
      digests: [N] SHA-256 of the encoded pictures, in hex.
      labels: [N] their classes.
    """
    lines = sorted(f"{digest} {label}\n" for digest, label in zip(digests, labels, strict=True))
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()


def source_place(source: str) -> str:
    """Returns a --source with the path in it, where there is one, in full and without links."""
    scheme, _, rest = source.partition(":")
    try:
        path = expanded(rest, flag=source)
    except UsageError:  # A home folder that is not there any more.
        return source
    return f"{scheme}:{os.path.realpath(path)}" if rest and os.path.exists(path) else source


def report_place(root: Path, name: str, *, source: str, pictures: str) -> Path:
    """Returns the folder below `root` for the report of a source, so that no other source's is replaced.

    A source is the same where its pictures and their classes are (`pictures_sha256`), or where it lies in
    the same place (`source_place`): it may have got more pictures since. Its report is `root/name`, or,
    where that is taken by another source, `root/name-` with the first digits of `pictures`.
    """
    plain, other = root / name, root / f"{name}-{pictures[:_SHOWN_DIGITS]}"
    for folder in (plain, *sorted(root.glob(f"{glob.escape(name)}-{'[0-9a-f]' * _SHOWN_DIGITS}"))):
        if _is_of(folder, source=source, pictures=pictures):
            return folder
    return other if os.path.lexists(plain) else plain


def require_report_place(folder: Path, *, flag: str, source: str, pictures: str = "") -> None:
    """Makes sure, before the work, that a report may be written into a folder that somebody named.

    Raises:
      TrainerError: it holds the report of another source, or a file that would be replaced and was not
        written by a report.
    """
    found = _read(folder)
    was = found.get("source")
    is_as_named = was == source and "source_place" not in found
    if was is not None and not is_as_named and not _is_of(folder, source=source, pictures=pictures):
        raise TrainerError(
            f"{flag} holds the report of another source, {was}: name another folder, or remove that report"
        )
    report_manifest(folder).require_free([*TABLES, *(f"{name}.png" for name in FIGURES)], flag=flag)


def _is_of(folder: Path, *, source: str, pictures: str) -> bool:
    """Tells whether a folder holds the report of a source."""
    found = _read(folder)
    if pictures and found.get("pictures_sha256") == pictures:
        return True
    if place := found.get("source_place"):
        return place == source_place(source)
    # Of an older version, which did not record where a path led to.
    was = str(found.get("source", ""))
    return was == source == source_place(was)


def _read(folder: Path) -> dict[str, Any]:
    """Returns what metrics.json holds; nothing where there is no report."""
    with contextlib.suppress(OSError, TrainerError):
        return read_json(folder / "metrics.json", _SHAPE)
    return {}


def _of_older_versions(folder: Path) -> Sequence[str]:
    """Returns the names of a report that was written before there was a record; event files are not known."""
    return [*TABLES, *(f"{name}.png" for name in FIGURES)] if _read(folder) else []
