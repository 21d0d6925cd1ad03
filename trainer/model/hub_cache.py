"""From a hub handle or a local path to a whole SavedModel folder on this machine."""

import contextlib
import hashlib
import logging
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError, URLError

import tensorflow_hub as hub

from trainer.caches import hub_cache_root
from trainer.model.saved_models import find_defect, move_aside
from trainer.values import TrainerError

logger = logging.getLogger("trainer")

NETWORK_TIMEOUT_SECS = 60.0


def is_remote(handle: str) -> bool:
    return handle.startswith(("https://", "http://"))


def local_folder(path: str, *, flag: str) -> Path:
    """Returns the folder of a local SavedModel.

    Args:
      path: as the user gave it; `~` is expanded.
      flag: what the user wrote, for the message.

    Raises:
      TrainerError: there is no such folder, or no whole SavedModel in it.
    """
    folder = Path(path).expanduser()
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
    if folder.is_dir() and any(folder.iterdir()):
        defect = find_defect(folder)
        if not defect:
            logger.info("%s: cached in %s", handle, folder)
            return folder
        aside = move_aside(folder)
        logger.warning(
            "%s: the cached copy is damaged (%s); moved to %s, fetching again", handle, defect, aside
        )
    _drop_stale_lock(folder)
    logger.info("fetching %s into %s", handle, folder)
    try:
        with _socket_timeout(NETWORK_TIMEOUT_SECS):
            hub.resolve(handle)
    except Exception as error:  # urllib, ssl, tarfile, zlib and tf.errors each raise their own.
        raise TrainerError(_no_module(handle, folder, _describe(error))) from error
    defect = find_defect(folder)
    if defect:
        shutil.rmtree(folder, ignore_errors=True)
        raise TrainerError(_no_module(handle, folder, f"what came is not a whole SavedModel: {defect}"))
    return folder


def _describe(error: Exception) -> str:
    if isinstance(error, HTTPError):
        return f"HTTP {error.code} {error.reason}"
    if isinstance(error, URLError):
        return f"no network: {error.reason}"
    if isinstance(error, EOFError):
        return "the download was cut short"
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _no_module(handle: str, folder: Path, reason: str) -> str:
    return (
        f"cannot get {handle} ({reason}); it is not cached in {folder} either. Ways out: (1) run once where "
        "there is network and copy the cache folder here, or name it with --cache_dir or $TFHUB_CACHE_DIR; "
        "(2) download and unpack the module, from Kaggle Models by browser or kagglehub, and use "
        "--backbone=hub:/folder/of/it; (3) --backbone=efficientnet_lite0 needs no network"
    )


def _drop_stale_lock(folder: Path) -> None:
    """Removes the lock of a download whose process on this machine is gone.

    TensorFlow Hub would wait 10 minutes for it.
    """
    lock = folder.with_name(folder.name + ".lock")
    try:
        owner, _, task = lock.read_text().rpartition(".")
        host, _, pid = owner.rpartition(".")
    except OSError:
        return
    if host != socket.gethostname() or not pid.isdigit() or Path(f"/proc/{pid}").exists():
        logger.warning(
            "another process (%s) seems to be fetching this module: waiting; remove %s if not", owner, lock
        )
    elif Path("/proc/self").exists():
        logger.warning("removing what a download that was broken off left behind: %s", lock)
        shutil.rmtree(folder.with_name(f"{folder.name}.{task}.tmp"), ignore_errors=True)
        lock.unlink(missing_ok=True)


@contextlib.contextmanager
def _socket_timeout(secs: float) -> Iterator[None]:
    """Bounds each wait for the network: TensorFlow Hub itself sets no limit."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(secs)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
