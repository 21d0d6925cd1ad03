"""Caches, folders of data and of runs, and the internet: how large, writable, within reach."""

import http.client
import os
import re
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from trainer.doctor.findings import Finding, ok, problem, warning
from trainer.paths import home, local_path, scheme_of
from trainer.record.checkpoint_files import CheckpointFolder
from trainer.record.workdir import LOCK, Workdir
from trainer.report.scored import read_report
from trainer.store.files import told_size
from trainer.store.lock import held_by
from trainer.store.places import cache_root, hub_cache_root, keras_folder
from trainer.values import TrainerError, UsageError

# Locks and renames reach other machines late on these, or not at all.
NETWORK_FILE_SYSTEMS = (
    "nfs",
    "cifs",
    "smb",
    "9p",
    "fuse.sshfs",
    "fuse.gcsfuse",
    "fuse.s3fs",
    "lustre",
    "ceph",
)

_ESCAPED = re.compile(r"\\([0-7]{3})")


def check_workdir(workdir: str, *, mounts: Path = Path("/proc/self/mountinfo")) -> list[Finding]:
    """Looks at a folder that --workdir names.

    Args:
      workdir: the value of the flag.
      mounts: where Linux tells file systems.
    """
    run = Workdir(workdir)
    found = [check_place(run.root, what="workdir", flag="--workdir", needed=True)]
    kind = file_system(run.root, mounts=mounts)
    if kind.startswith(NETWORK_FILE_SYSTEMS):
        text = (
            f"it is on a network file system ({kind}): the lock of a run may not be seen from other machines"
        )
        found.append(warning(text, "start a run on one machine at a time, or use a local disk"))
    if not run.root.is_dir() or found[0].mark == "problem":
        return found
    if holder := held_by(run.root / LOCK):
        found.append(ok(f"{holder} is at work in it"))
    if run.run_json.exists():
        found.append(_progress(run))
    elif any(run.root.iterdir()):
        found.append(ok("no run is in it, but other files are: they are left alone"))
    return found


def file_system(path: Path, *, mounts: Path) -> str:
    """Returns the kind of the file system that a path is on, such as ext4; empty where it is not told."""
    try:
        lines = mounts.read_text("utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return ""
    best, kind = -1, ""
    for line in lines:
        before, _, after = line.partition(" - ")
        # Spaces and the like are written as octal numbers.
        point = Path(_ESCAPED.sub(lambda code: chr(int(code[1], 8)), before.split(" ")[4]))
        if (path == point or point in path.parents) and len(point.parts) >= best:
            best, kind = len(point.parts), after.split()[0]
    return kind


def _progress(run: Workdir) -> Finding:
    try:
        config = run.read_filled_in()
        names = CheckpointFolder(run.checkpoints).names()
        run.read_facts()
        rows = run.read_splits().get("train", []) if run.splits_json.exists() else []
        report = read_report(run.report / "metrics.json") if (run.report / "metrics.json").exists() else None
    except TrainerError as error:
        return problem(f"the run in it cannot be read: {error}", "choose another --workdir")
    step, total = int(names[-1].rpartition("-")[2]) if names else 0, 0
    # What auto comes to is known only once the pictures have been looked at.
    if rows and config.plan.schedule != "auto":
        size = {"num_examples": len(rows), "batch_size": config.plan.batch_size}
        total = sum(spec.duration.to_steps(**size) for spec in config.phases)
    text = f"a run of {config.model.backbone} on {config.data.source}, saved up to step {step:,}"
    if total:
        text += f" of {total:,}: {'finished' if step >= total else 'the same train command goes on'}"
    if report:
        return ok(f"{text}; {report['split']} accuracy {report['accuracy']:.4f} in its report")
    return ok(f"{text}; no report, which train ends with and evaluate writes")


TIMEOUT_SECS = 3.0


class Address(NamedTuple):
    """What is fetched from somewhere, and what works without."""

    url: str
    what: str
    without: str


_NO_MODULES = "--backbone=efficientnet_lite0, hub:FOLDER and cached modules work without"
ADDRESSES = (
    Address("https://tfhub.dev/", "modules of TensorFlow Hub", _NO_MODULES),
    Address("https://www.kaggle.com/models", "the same modules", _NO_MODULES),
    Address(
        "https://storage.googleapis.com/tfds-data/",
        "tfds, weights of keras:",
        "--source=synthetic:flowers, folder:PATH and prepared data sets work without",
    ),
)


class Reach:
    """Asks all addresses at once, in the background."""

    def __init__(self, addresses: tuple[Address, ...] = ADDRESSES):
        self._addresses = addresses
        self._answers: dict[str, str] = {}
        self._until = time.monotonic() + TIMEOUT_SECS
        # Looking up a name has no limit of its own: who takes longer is left behind.
        self._threads = [
            threading.Thread(target=self._ask, args=(address.url,), daemon=True) for address in addresses
        ]
        for thread in self._threads:
            thread.start()

    def findings(self) -> list[Finding]:
        """Returns a line for each address, when all have answered or the time is up."""
        for thread in self._threads:
            thread.join(max(0.0, self._until - time.monotonic()))
        # A copy: a late answer does not count any more.
        answers, found = dict(self._answers), []
        for address in self._addresses:
            host = urllib.parse.urlsplit(address.url).netloc
            failure = answers.get(address.url, f"no answer within {TIMEOUT_SECS:g} s")
            if failure:
                found.append(
                    warning(f"{host} cannot be reached: {failure} ({address.what})", address.without)
                )
            else:
                found.append(ok(f"{host} answers ({address.what})"))
        proxies = _proxies(urllib.request.getproxies())
        return [*found, ok(f"through {proxies}")] if proxies else found

    def _ask(self, url: str) -> None:
        request = urllib.request.Request(url, method="HEAD", headers={"User-Agent": "hub-trainer"})
        try:
            # Not urlopen, which keeps the proxies of its first call.
            urllib.request.build_opener().open(request, timeout=TIMEOUT_SECS).close()
            self._answers[url] = ""
        except urllib.error.HTTPError as error:
            error.close()
            # Most answers show that somebody is there; these are of who stands between.
            between = error.code in (407, 502, 503, 504)
            self._answers[url] = f"{error.code} {error.reason}" if between else ""
        except (OSError, http.client.HTTPException, ValueError) as error:
            self._answers[url] = _told(error)


def _told(error: Exception) -> str:
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, Exception):
        error = error.reason
    if isinstance(error, TimeoutError):
        return f"no answer within {TIMEOUT_SECS:g} s"
    return " ".join((getattr(error, "strerror", None) or str(error) or type(error).__name__).split())


def _proxies(named: Mapping[str, str]) -> str:
    """Returns the proxies in words, without the names and passwords that may be in them."""
    told = []
    for kind in sorted({"http", "https", "all"} & set(named)):
        parts = urllib.parse.urlsplit(named[kind] if "//" in named[kind] else f"//{named[kind]}")
        told.append(f"the {kind} proxy {parts.netloc.rpartition('@')[2]}")
    return " and ".join(told)


# {folder below the cache: what it costs to remove it}
PARTS = {
    "features": "removing it costs computing them again",
    "pictures": "removing it costs decoding them again",
    "backbones": "of earlier versions; may go",
    "tfhub_modules": "removing it costs fetching them again",
    "archives": "removing it costs fetching and unpacking them again",
    "scans": "removing it costs looking at all pictures again",
    "precision": "removing it costs measuring again",
    "speeds": "removing it costs measuring again",
    "near_duplicates": "removing it costs looking for them again",
    "workers": "of workers that train; what killed ones left goes when the next worker starts",
    "spill": "of runs that go on; what is left by killed ones may go",
}
_LIMITED = ("features", "pictures")
LITTLE_BYTES, TOO_LITTLE_BYTES = 5e9, 1e8
FEW_FILES = 10_000
_WALK_SECS = 5.0


def check_caches(*, cache_dir: str = "", data_dir: str = "", limit_gb: float = 20.0) -> list[Finding]:
    """Looks at what is kept between runs.

    Args:
      cache_dir: the value of --cache_dir.
      data_dir: the value of --data_dir.
      limit_gb: the value of --cache_limit_gb.
    """
    root = cache_root(cache_dir)
    found = [check_place(root, what="cache", flag="--cache_dir", needed=True)]
    names = sorted(path.name for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    for name in names:
        size, told = _size(root / name)
        if name in _LIMITED and size > limit_gb * 1e9:
            text = f"{name}: {told}, more than --cache_limit_gb={limit_gb:g}"
            found.append(warning(text, "the next run that adds to it removes what was not used for longest"))
            continue
        limit = f", of at most {limit_gb:g} GB (--cache_limit_gb)" if name in _LIMITED else ""
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
