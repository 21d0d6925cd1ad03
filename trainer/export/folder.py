"""The folder of an export, put in place whole: an older one stays until the new one is complete."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from trainer.files import PART_PREFIX, make_folder, require_room, sync
from trainer.values import TrainerError

CARD, PARITY = "MODEL_CARD.md", "parity.json"


def require_export_place(folder: Path, *, num_bytes: int) -> None:
    """Makes sure, before the work, that an export can be put somewhere.

    Args:
      folder: of the export, which may be there.
      num_bytes: how much room it takes, about.

    Raises:
      TrainerError: there is something else, or nothing can be written.
    """
    flag = f"--export_dir={folder}"
    make_folder(folder.parent, flag=flag, wrong="lies below a file: it must be a folder")
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise TrainerError(f"{flag} is a link or a file: it must be a folder of its own")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / PARITY).is_file():
        raise TrainerError(
            f"{flag} holds something else than an export (there is no {PARITY} in it), which would be lost: "
            "name another folder"
        )
    require_room(folder.parent, num_bytes, what=f"the export in {folder}")


@contextlib.contextmanager
def put_in_place(folder: Path) -> Iterator[Path]:
    """Yields a new folder that takes the place of `folder` when the block has ended without an error.

    Raises:
      TrainerError: it cannot be written; what was there before still is.
    """
    part: Path | None = None
    try:
        part = Path(tempfile.mkdtemp(prefix=PART_PREFIX, dir=folder.parent))
        part.chmod(0o755)  # mkdtemp's 0700 would lock out those who are to use the models.
        yield part
        for path in [*part.rglob("*"), part]:
            sync(path)
        _swap(part, folder)
    except OSError as error:
        told = error.strerror or str(error)
        kept = "; the earlier export is as it was" if folder.is_dir() else ""
        raise TrainerError(
            f"the export cannot be written to {folder}: {told}{kept}. Make room, or name another --export_dir"
        ) from None
    finally:
        if part is not None:
            shutil.rmtree(part, ignore_errors=True)


def _swap(part: Path, folder: Path) -> None:
    """Renames `part` to `folder`. No system call swaps two folders everywhere: for a moment there is none."""
    aside = part.with_name(f"{part.name}-old")
    if folder.is_dir():
        os.rename(folder, aside)
    try:
        os.rename(part, folder)
    except OSError:
        if aside.is_dir():
            os.rename(aside, folder)
        raise
    sync(folder.parent)
    shutil.rmtree(aside, ignore_errors=True)
