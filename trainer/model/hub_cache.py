"""From a hub handle or a local path to a whole SavedModel folder on this machine."""

import contextlib
import errno
import hashlib
import logging
import os
import re
import shutil
import socket
import tarfile
import urllib.request
from pathlib import Path

import tensorflow as tf
from tensorflow_hub.compressed_module_resolver import HttpCompressedFileResolver

from trainer.caches import hub_cache_root
from trainer.files import require_room
from trainer.model.saved_models import find_defect, first_line, move_aside
from trainer.network import Coming, NetworkError, open_url
from trainer.values import TrainerError, UsageError

logger = logging.getLogger("trainer")


class _Resolver(HttpCompressedFileResolver):
    """TensorFlow Hub's downloader, through our door to the network: it sets no limit to its patience."""

    def __init__(self, root: Path):
        super().__init__()
        self._root = root

    def _call_urlopen(self, request: str | urllib.request.Request) -> Coming:
        coming = open_url(request, context=self._context)
        require_room(self._root, coming.size or 0, what="the module")
        return coming


def is_remote(handle: str) -> bool:
    return handle.startswith(("https://", "http://"))


def local_folder(path: str, *, flag: str) -> Path:
    """Returns the folder of a local SavedModel.

    Args:
      path: as the user gave it; `~` is expanded.
      flag: what the user wrote, for the message.

    Raises:
      UsageError: it is an address that cannot be fetched from.
      TrainerError: there is no such folder, or no whole SavedModel in it.
    """
    if "://" in path:
        raise UsageError(f"{flag}: expected a folder, or an address that begins with http:// or https://")
    folder = Path(os.path.expanduser(path))
    if not folder.is_dir():
        raise TrainerError(f"{flag}: there is no folder {folder.absolute()}")
    defect = find_defect(folder)
    if defect:
        raise TrainerError(f"{flag}: {folder.absolute()} is not a whole SavedModel: {defect}")
    return folder


def fetched_folder(handle: str, *, cache_dir: str = "") -> Path:
    """Returns the cached copy of a module, fetched where there is none or a damaged one.

    The cache is that of TensorFlow Hub: `sha1(handle)` under $TFHUB_CACHE_DIR, which this sets.

    Args:
      handle: an address such as https://tfhub.dev/google/imagenet/inception_v3/feature_vector/4.
      cache_dir: the value of --cache_dir.

    Raises:
      TrainerError: it cannot be had; the message says what was tried and the ways out.
    """
    # The cache's key is the exact handle: a slash at its end would miss.
    handle = handle.rstrip("/")
    root = hub_cache_root(cache_dir)
    os.environ["TFHUB_CACHE_DIR"] = str(root)
    folder = root / hashlib.sha1(handle.encode()).hexdigest()
    # TensorFlow Hub takes any folder that is not empty for a whole one.
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        defect = find_defect(folder)
        if not defect:
            logger.info("%s: cached in %s", handle, folder)
            return folder
        aside = move_aside(folder)
        logger.warning(
            "%s: the cached copy is damaged (%s); moved to %s, fetching again", handle, defect, aside
        )
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainerError(
            f"--backbone=hub:{handle}: cannot make {root}: {error.strerror}; set --cache_dir"
        ) from None
    _remove_left_overs(folder)
    logger.info("fetching %s into %s", handle, folder)
    try:
        _Resolver(root)(handle)
    except NetworkError as error:
        raise TrainerError(_no_module(handle, folder, str(error))) from None
    except TrainerError as error:  # Too little room.
        raise TrainerError(f"--backbone=hub:{handle}: {error}; make room there, or set --cache_dir") from None
    except Exception as error:  # zlib, tarfile and tf.errors each raise their own.
        if _is_of_disk(error):
            raise TrainerError(
                f"--backbone=hub:{handle}: cannot write to {root}: {first_line(error)}; set --cache_dir"
            ) from error
        raise TrainerError(_no_module(handle, folder, _describe(error))) from error
    defect = find_defect(folder)
    if defect:
        shutil.rmtree(folder, ignore_errors=True)
        folder.with_name(folder.name + ".descriptor.txt").unlink(missing_ok=True)
        raise TrainerError(_no_module(handle, folder, f"what came is not a whole SavedModel: {defect}"))
    return folder


def _is_of_disk(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno == errno.ENOSPC
    return isinstance(error, tf.errors.ResourceExhaustedError | tf.errors.PermissionDeniedError)


def _describe(error: Exception) -> str:
    if isinstance(error.__context__, tarfile.ReadError):
        return f"what came is no .tar.gz of a module: {first_line(error.__context__)}"
    if isinstance(error, EOFError):
        return "what came is no whole .tar.gz"
    return first_line(error)


def _no_module(handle: str, folder: Path, reason: str) -> str:
    return (
        f"--backbone=hub:{handle}: cannot get it ({reason}), and it is not cached in {folder}. Ways out: (1) "
        "correct the address; (2) run once where there is network and copy the cache folder here, or name it "
        "with --cache_dir or $TFHUB_CACHE_DIR; (3) download and unpack the module, from Kaggle Models by "
        "browser or kagglehub, and use --backbone=hub:/folder/of/it; (4) --backbone=efficientnet_lite0 needs "
        "no network"
    )


def _remove_left_overs(folder: Path) -> None:
    """Removes what downloads of a module left behind that were killed on this machine.

    TensorFlow Hub would wait 10 minutes for their lock.
    """
    # Before the lock is looked at: whoever is downloading has locked first, and unlocks last.
    unfinished = list(folder.parent.glob(f"{folder.name}.*tmp*"))
    lock = folder.with_name(folder.name + ".lock")
    with contextlib.suppress(OSError):
        if lock.exists():
            # What is no lock of theirs was cut short by a crash of the machine.
            match = re.fullmatch(r"(.+)\.(\d+)\.\w+", lock.read_text(errors="replace"))
            if match and not _is_gone(match[1], int(match[2])):
                logger.warning(
                    "process %s on %s seems to be fetching this module: waiting; remove %s if it is not",
                    match[2], match[1], lock,
                )  # fmt: skip
                return
            logger.warning("removing what a download that was broken off left behind: %s", lock)
        for path in unfinished:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        lock.unlink(missing_ok=True)


def _is_gone(host: str, pid: int) -> bool:
    # In a container that was started again, a process has often the number of its predecessor.
    return (
        host == socket.gethostname()
        and Path("/proc/self").exists()
        and (pid == os.getpid() or not Path(f"/proc/{pid}").exists())
    )
