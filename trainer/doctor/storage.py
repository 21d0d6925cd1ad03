"""Caches and folders of data: where, how large, whether they can be written, what may go."""

import os
import tempfile
import time
from pathlib import Path

from trainer.caches import cache_root, hub_cache_root, keras_folder
from trainer.doctor.findings import Finding, ok, problem, warning
from trainer.files import told_size
from trainer.paths import home, local_path, scheme_of
from trainer.values import UsageError

# {folder below the cache: what it costs to remove it}
PARTS = {
    "features": "removing it costs computing them again",
    "backbones": "of earlier versions; may go",
    "tfhub_modules": "removing it costs fetching them again",
    "archives": "removing it costs fetching and unpacking them again",
    "scans": "removing it costs looking at all pictures again",
    "precision": "removing it costs measuring again",
    "spill": "of runs that go on; what is left by killed ones may go",
}
LITTLE_BYTES, TOO_LITTLE_BYTES = 5e9, 1e8
FEW_FILES = 10_000
_WALK_SECS = 5.0


def check_caches(*, cache_dir: str = "", data_dir: str = "", limit_gb: float = 20.0) -> list[Finding]:
    """Looks at what is kept between runs.

    Args:
      cache_dir, data_dir: the values of --cache_dir and --data_dir.
      limit_gb: the value of --cache_limit_gb.
    """
    root = cache_root(cache_dir)
    found = [check_place(root, what="cache", flag="--cache_dir", needed=True)]
    names = sorted(path.name for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    for name in names:
        size, told = _size(root / name)
        if name == "features" and size > limit_gb * 1e9:
            text = f"{name}: {told}, more than --cache_limit_gb={limit_gb:g}"
            found.append(warning(text, "the next run that adds to it removes what was not used for longest"))
            continue
        limit = f", of at most {limit_gb:g} GB (--cache_limit_gb)" if name == "features" else ""
        cost = f"; {PARTS[name]}" if name in PARTS else ""
        found.append(ok(f"{name}: {told}{limit}{cost}"))
    try:
        if (hub := hub_cache_root(cache_dir)).parent != root:
            found.append(_elsewhere(str(hub), what="modules of TensorFlow Hub ($TFHUB_CACHE_DIR)"))
    except UsageError as error:
        found.append(problem(str(error), "--cache_dir is used instead where it is given"))
    # As tfds and Keras find them.
    usual = os.path.join(home() or "/", "tensorflow_datasets")
    prepared = data_dir or os.environ.get("TFDS_DATA_DIR") or usual
    found.append(_elsewhere(prepared, what="prepared data sets of tfds"))
    found.append(_elsewhere(str(keras_folder()), what="weights of keras: networks"))
    return found


def _elsewhere(path: str, *, what: str) -> Finding:
    if scheme_of(path):
        return ok(f"{what}: in {path}, which is not looked at")
    try:
        folder = local_path(path, flag=what)
    except UsageError as error:
        return warning(str(error), "set HOME")
    if not os.path.lexists(folder):
        return ok(f"{what}: none yet, they would be in {folder}")
    if not folder.is_dir():
        return warning(f"{what}: {folder} is no folder", "move it away, or name another folder")
    return ok(f"{what}: {_size(folder)[1]} in {folder}")


def check_place(folder: Path, *, what: str, flag: str, needed: bool) -> Finding:
    """Tries whether files can be made in a folder, or it itself can be; leaves nothing behind.

    Args:
      folder: which need not exist.
      what: what it is for people.
      flag: that names another.
      needed: whether nothing can be trained without.
    """
    wrong = problem if needed else warning
    # lexists: a broken link is in the way, too.
    place = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    advice = f"{flag}=FOLDER names another place"
    if not place.is_dir():
        return wrong(f"{what}: {place} is no folder, so there can be no {folder}", advice)
    try:
        if place == folder:
            with tempfile.TemporaryFile(dir=folder):
                pass
        elif not os.access(place, os.W_OK | os.X_OK):
            raise PermissionError(13, "permission denied")
        disk = os.statvfs(place)
    except OSError as error:
        return wrong(f"{what}: {folder} cannot be written: {error.strerror}", advice)
    free = disk.f_bavail * disk.f_frsize
    told = f"{what}: {folder}{'' if place == folder else ' (to be made)'}, {told_size(free)} free"
    if free < TOO_LITTLE_BYTES:
        return wrong(told, f"make room there, or {advice}")
    if free < LITTLE_BYTES:
        return warning(told, f"make room there, or {advice}: features and checkpoints take GBs")
    # File systems without a fixed number of files say 0 of 0.
    if disk.f_files and disk.f_favail < FEW_FILES:
        return warning(f"{told}, in {disk.f_favail:,} files at most", f"remove files there, or {advice}")
    return ok(told)


def _size(folder: Path) -> tuple[int, str]:
    """Returns the bytes below a folder, and the same in words; what takes too long to count is cut short."""
    size, count, until = 0, 0, time.monotonic() + _WALK_SECS
    for base, _, files in os.walk(folder):
        for name in files:
            try:
                size += os.lstat(os.path.join(base, name)).st_size
            except OSError:  # Gone since.
                continue
            count += 1
        if time.monotonic() > until:
            return size, f"more than {told_size(size)} in {count:,} files"
    return size, f"{told_size(size)} in {count:,} file{'s' * (count != 1)}"
