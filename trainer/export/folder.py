"""The folder of an export, put in place whole; what somebody else has in it is carried over."""

import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.export.metadata import LABELS_NAME, NAME
from trainer.export.parity import FORMAT
from trainer.record.manifest import Manifest, aside_name
from trainer.store.files import PART_PREFIX, make_folder, move, read_json, require_room, set_mode, sync
from trainer.values import TrainerError

_log = logging.getLogger("trainer")
CARD, PARITY, PREPROCESS = "MODEL_CARD.md", "parity.json", "preprocess.py"
_ROW = {
    "file": str, "input": str, "accuracy": float, "accuracy_drop": float, "agreement": float,
    "largest_probability_difference": float | None, "num_not_finite": int, "images_per_second": float,
    "size_bytes": int,
}  # fmt: skip
BESIDE_MODELS = (CARD, PARITY, NAME, LABELS_NAME, PREPROCESS)


def require_export_place(folder: Path, *, files: Sequence[str], num_bytes: int) -> None:
    """Makes sure, before the work, that an export can be put somewhere.

    Args:
      folder: of the export, which may be there.
      files: names of the models that are to be written.
      num_bytes: how much room they take, about.

    Raises:
      TrainerError: there is something else, or nothing can be written.
    """
    flag = f"--export_dir={folder}"
    make_folder(folder.parent, flag=flag, wrong="lies below a file: it must be a folder")
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise TrainerError(f"{flag} is a link or a file: it must be a folder of its own")
    known = {name.split("/")[0] for name in _manifest(folder).files}
    for name in (*files, *BESIDE_MODELS):
        if os.path.lexists(folder / name) and name not in known:
            raise TrainerError(
                f"{flag} holds {name}, which this command did not write and would have to replace: move it, "
                "or name another folder"
            )
    require_room(folder.parent, num_bytes, what=f"the export in {folder}")


def kept_models(folder: Path, *, files: Sequence[str], weights: str, way_out: str) -> list[dict[str, Any]]:
    """Returns what parity.json says of the models of an earlier export that stay beside new ones.

    Args:
      folder: of the export, which need not be there.
      files: names of the models that are to be written, in place of such.
      weights: SHA-256 of the weights they are made of.
      way_out: ends the message: how to export all anew.

    Raises:
      TrainerError: they are of other weights, or checked by another version; parity.json is damaged.
    """
    found, manifest = _read(folder), _manifest(folder)
    rows = [
        row
        for row in found.get("models", [])
        if row["file"] not in files and _is_whole(manifest, str(row["file"]))
    ]
    unchecked = unchecked_models(folder, files=files)
    if not rows and not unchecked:
        return []
    names = ", ".join(dict.fromkeys([*(row["file"] for row in rows), *unchecked]))
    if found.get("format") != FORMAT:
        problem = f"{names} of another version, which checked models otherwise"
    else:
        read_json(folder / PARITY, {"weights": {"step": int, "sha256": str}, "models": [_ROW]})
        if found["weights"]["sha256"] == weights:
            return rows
        problem = f"{names} with other weights, those of step {found['weights']['step']}"
    raise TrainerError(f"--export_dir={folder} holds {problem}: {way_out}, or name another folder")


def unchecked_models(folder: Path, *, files: Sequence[str]) -> list[str]:
    """Returns what stays of an earlier export, beside new `files`, that parity.json says nothing of."""
    manifest, found = _manifest(folder), _read(folder)
    known = {*files, *BESIDE_MODELS, *(row["file"] for row in found.get("models", []))}
    names = sorted({name.split("/")[0] for name in manifest.files} - known)
    return [name for name in names if found and _is_whole(manifest, name)]


@contextlib.contextmanager
def put_in_place(folder: Path, *, kept: Collection[str] = ()) -> Iterator[Path]:
    """Yields a new folder that takes the place of `folder` when the block has ended without an error.

    What is in the new folder then goes into its record. Of the older one come with it the models that are
    `kept`, which go into the record, too, and whatever `export` did not write there or somebody changed.

    Raises:
      TrainerError: it cannot be written; what was there before still is.
    """
    part: Path | None = None
    try:
        part = Path(tempfile.mkdtemp(prefix=PART_PREFIX, dir=folder.parent))
        # mkdtemp's 0700 would lock out those who are to use the models.
        set_mode(part, folder.stat().st_mode & 0o7777 if folder.is_dir() else 0o755)
        yield part
        earlier = _manifest(folder)
        for name in sorted(earlier.files):
            if name.split("/")[0] in kept and earlier.is_ours(name):
                _link(folder / name, part / name)
        written = [path for path in sorted(part.rglob("*")) if path.is_file()]
        _manifest(part).finish(path.relative_to(part).as_posix() for path in written)
        for path in [*part.rglob("*"), part]:
            sync(path)
        _carry_over(folder, part, earlier)
        _swap(part, folder)
    except OSError as error:
        told = error.strerror or str(error)
        kept_as = "; the earlier export is as it was" if folder.is_dir() else ""
        raise TrainerError(
            f"the export cannot be written to {folder}: {told}{kept_as}. Make room, or name another "
            "--export_dir"
        ) from None
    finally:
        if part is not None:
            shutil.rmtree(part, ignore_errors=True)


def _manifest(folder: Path) -> Manifest:
    return Manifest(folder, "export", older=_of_older_versions)


def _of_older_versions(folder: Path) -> list[str]:
    """Returns the names of an export that was written before there was a record."""
    if not (folder / PARITY).is_file():
        return []
    models = [str(row["file"]) for row in _read(folder).get("models", [])]
    paths = [path for name in models for path in [folder / name, *(folder / name).rglob("*")]]
    files = [path.relative_to(folder).as_posix() for path in paths if path.is_file()]
    return [CARD, PARITY, NAME, LABELS_NAME, *files]


def _read(folder: Path) -> Mapping[str, Any]:
    """Returns what parity.json holds; nothing where there is none that can be read."""
    with contextlib.suppress(OSError, TrainerError):
        found = read_json(folder / PARITY, {"format": int, "models": [{"file": str}]})
        if all(Path(row["file"]).name == row["file"] for row in found["models"]):
            return found
    return {}


def _is_whole(manifest: Manifest, model: str) -> bool:
    """Tells whether all files of a model are as they were written."""
    names = [name for name in manifest.files if name.split("/")[0] == model]
    return bool(names) and all(manifest.is_ours(name) for name in names)


def _carry_over(old: Path, new: Path, earlier: Manifest) -> None:
    """Brings into `new` what is not the export's own in `old`, which stays as it is."""
    for folder, folders, files in os.walk(old):
        below = Path(folder).relative_to(old)
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        if not folders and not files and below.parts:
            (new / below).mkdir(parents=True, exist_ok=True)
        for name in [*files, *links]:
            if earlier.is_ours((below / name).as_posix()):
                continue
            target = new / below / name
            if os.path.lexists(target):
                target = aside_name(target)
                _log.warning("%s was changed by hand: it is kept as %s", below / name, target.name)
            _link(Path(folder) / name, target)


def _link(old: Path, new: Path) -> None:
    """Gives a file a second name; where the file system knows no such thing, makes a copy."""
    new.parent.mkdir(parents=True, exist_ok=True)
    if old.is_symlink():
        os.symlink(os.readlink(old), new)
        return
    try:
        os.link(old, new)
    except OSError:
        shutil.copyfile(old, new)
        set_mode(new, old.stat().st_mode & 0o7777)


def _swap(part: Path, folder: Path) -> None:
    """Renames `part` to `folder`. No system call swaps two folders everywhere: for a moment there is none."""
    # Whoever stops in that moment finds it under a name that nobody removes on sight.
    aside = folder.with_name(f"{folder.name}-old{part.name.removeprefix(PART_PREFIX)}")
    if folder.is_dir():
        move(folder, aside)
    try:
        move(part, folder)
    except OSError:
        if aside.is_dir():
            move(aside, folder)
        raise
    sync(folder.parent)
    shutil.rmtree(aside, ignore_errors=True)
