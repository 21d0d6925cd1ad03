"""From a hub handle, a folder or an archive to a whole SavedModel folder on this machine."""

import contextlib
import datetime
import hashlib
import logging
import os
import secrets
import shutil
import socket
import ssl
import urllib.parse
from pathlib import Path

import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from trainer.model.hub_handles import module_address
from trainer.paths import local_path
from trainer.store.downloads import NetworkError, download
from trainer.store.files import PART_PREFIX, move, write_text
from trainer.store.lock import file_lock
from trainer.store.places import cache_root, hub_cache_root
from trainer.store.unpack import BadArchiveError, remove_left_overs, unpack
from trainer.values import TrainerError, UsageError, told_by_tensorflow


def find_defect(folder: Path) -> str:
    """Returns what is missing or damaged in a SavedModel folder, or '' when it is whole.

    Every tensor is read once, because reading checks its checksum: a cut or altered data file
    is found whatever its size (0.1 s for 90 MB).
    """
    graph = folder / "saved_model.pb"
    if not graph.is_file():
        return "saved_model.pb is missing"
    saved_model = saved_model_pb2.SavedModel()
    try:
        saved_model.ParseFromString(graph.read_bytes())
    except Exception as error:  # protobuf's DecodeError has no lasting public place.
        return f"saved_model.pb cannot be read ({type(error).__name__})"
    if not saved_model.meta_graphs:
        return "saved_model.pb is cut short"
    for asset in sorted({a.filename for graph in saved_model.meta_graphs for a in graph.asset_file_def}):
        if not (folder / "assets" / asset).is_file():
            return f"assets/{asset} is missing"
    prefix = folder / "variables" / "variables"
    if not prefix.with_suffix(".index").is_file():
        # Modules of the TF1 format may have no variables; those of TF2 always write this file.
        is_tf2 = saved_model.meta_graphs[0].HasField("object_graph_def")
        return "variables/variables.index is missing" if is_tf2 else ""
    try:
        reader = tf.train.load_checkpoint(str(prefix))
        for name in reader.get_variable_to_shape_map():
            reader.get_tensor(name)
    except Exception as error:  # The reader raises tf.errors, RuntimeError and ValueError.
        return f"variables cannot be read ({told_by_tensorflow(error)})"
    return ""


def module_digest(folder: Path) -> str:
    """Returns the hex SHA-256 of all that a SavedModel computes with: graph, stored values and assets.

    The values count because a module may use variables that it does not list: one with only a
    signature lists none, and its graph is the same bytes after it was trained on.
    """
    digest = hashlib.sha256()
    for part in ("saved_model.pb", "variables", "assets"):
        path = folder / part
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                with open(file, "rb") as data:
                    content = hashlib.file_digest(data, "sha256").hexdigest()
                digest.update(f"{file.relative_to(folder).as_posix()} {content}\n".encode())
    return digest.hexdigest()


def move_aside(folder: Path) -> Path:
    """Renames a damaged folder to `NAME.broken`, in place of an older one, and returns that path.

    Raises:
      TrainerError: it cannot be moved.
    """
    aside = folder.with_name(folder.name + ".broken")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        move(folder, aside)
    except OSError as error:
        raise TrainerError(
            f"{folder} is damaged and cannot be moved away ({error.strerror}): remove it, or name another "
            "folder with --cache_dir"
        ) from error
    return aside


logger = logging.getLogger("trainer")

BY_HAND = "--backbone=hub:/folder/of/it"
# TensorFlow Hub's mirror in China has no page for each module, only the archives.
_CHINA, _ARCHIVES_IN_CHINA = (
    "https://hub.tensorflow.google.cn/",
    "https://gcs.tensorflow.google.cn/tfhub-modules/%s.tar.gz",
)
_HDF5 = b"\x89HDF\r\n\x1a\n"


def module_folder(handle: str, *, flag: str, cache_dir: str = "", remote: bool = True) -> Path:
    """Returns the folder of a whole SavedModel.

    Args:
      handle: an address, a Kaggle handle such as google/mobilenet-v2/tensorFlow2/NAME/2, a folder, or an
        archive of one; `~` is expanded.
      flag: what the user wrote, for messages.
      cache_dir: the value of --cache_dir.
      remote: whether addresses and Kaggle handles are meant, too.

    Raises:
      UsageError: it is of a kind that holds no SavedModel.
      TrainerError: it cannot be had; the message says what was tried and the ways out.
    """
    if address := module_address(handle, flag=flag, remote=remote):
        if address != handle:
            logger.info("%s: a model of Kaggle, %s", handle, address)
        return fetched_folder(address, cache_dir=cache_dir)
    path = local_path(handle, flag=flag)
    if path.is_file():
        _check_kind(path, flag=flag)
        return _unpacked_folder(path, flag=flag, cache_dir=cache_dir)
    if not path.is_dir():
        raise TrainerError(f"{flag}: there is no folder or archive {path}")
    local_path(handle, flag=flag, for_tensorflow=True)
    defect = find_defect(path)
    if defect:
        raise TrainerError(f"{flag}: {path} is not a whole SavedModel: {defect}")
    return path


def _check_kind(path: Path, *, flag: str) -> None:
    """Looks into a file that was given as a module.

    Raises:
      UsageError: it is a model of Keras, or the graph inside a SavedModel.
    """
    try:
        with open(path, "rb") as file:
            is_hdf5 = file.read(len(_HDF5)) == _HDF5
    except OSError as error:
        raise TrainerError(f"{flag}: cannot read {path.absolute()}: {error.strerror}") from None
    if is_hdf5 or path.suffix.lower() in (".keras", ".h5", ".hdf5"):
        raise UsageError(
            f"{flag}: {path.name} is a file of Keras, not a SavedModel. If it holds weights of a network "
            f"that Keras knows, use --backbone=keras:NAME --weights={path}. If it holds a whole model, save "
            "that as a folder (tf_keras: model.save('folder'); Keras 3: model.export('folder')) and give the "
            "folder"
        )
    if path.name == "saved_model.pb":
        raise UsageError(f"{flag}: give the folder of the SavedModel, {path.absolute().parent}")


def _unpacked_folder(archive: Path, *, flag: str, cache_dir: str) -> Path:
    """Returns the SavedModel in an archive of this machine, unpacked once below the cache."""
    try:
        with open(archive, "rb") as file:
            key = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError as error:
        raise TrainerError(f"{flag}: cannot read {archive.absolute()}: {error.strerror}") from None
    root = cache_root(cache_dir) / "modules"
    folder = root / key
    _make(root, flag=flag)
    remove_left_overs(root)
    with file_lock(root / f"{key}.lock", waiting_for=str(archive)):
        if not _is_whole(folder, name=str(archive)):
            logger.info("%s: unpacking to %s", archive, folder)
            _unpack(archive, folder, flag=flag, what=str(archive.absolute()), key=key)
    return folder


def fetched_folder(handle: str, *, cache_dir: str = "") -> Path:
    """Returns the cached copy of a module, fetched where there is none or a damaged one.

    The cache is that of TensorFlow Hub: `sha1(handle)` under $TFHUB_CACHE_DIR, which this sets. Its own
    downloader is not used: it unpacks without limits, and waits without.

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
    sha1 = hashlib.sha1(handle.encode()).hexdigest()
    folder = root / sha1
    if folder.is_dir() and not find_defect(folder):
        logger.info("%s: cached in %s", handle, folder)
        return folder
    _make(root, flag=f"--backbone=hub:{handle}")
    key = sha1[:16]
    remove_left_overs(root)
    # Not under the name of TensorFlow Hub's own lock: whoever uses that may be at work, and as both put
    # their folder in place in one step, neither harms the other.
    with file_lock(root / f"{key}.lock", waiting_for=handle):
        if not _is_whole(folder, name=handle):
            logger.info("fetching %s into %s", handle, folder)
            _fetch(handle, folder, key=key)
    return folder


def _is_whole(folder: Path, *, name: str) -> bool:
    """Returns whether a module is there; a damaged one is moved aside, with a warning."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    defect = find_defect(folder)
    if defect:
        aside = move_aside(folder)
        logger.warning(
            "%s: the cached copy is damaged (%s); moved to %s, getting it again", name, defect, aside
        )
    return not defect


def _fetch(handle: str, folder: Path, *, key: str) -> None:
    flag = f"--backbone=hub:{handle}"
    archive = folder.with_name(f"{PART_PREFIX}{key}-{secrets.token_hex(4)}")
    try:
        download(_archive_address(handle), archive, flag=flag, what="the module", key=key, context=_context())
        _unpack(archive, folder, flag=flag, what="what came", key=key)
    except (NetworkError, BadArchiveError) as error:
        reason = str(error).removeprefix(f"{flag}: ")
        raise TrainerError(
            f"{flag}: cannot get it ({reason}), and it is not cached in {folder}. Ways out: (1) correct the "
            "address; (2) run once where there is network and copy the cache folder here, or name it with "
            "--cache_dir or $TFHUB_CACHE_DIR; (3) download the module, from Kaggle Models by browser or "
            f"kagglehub, and use {BY_HAND}, or of the .tar.gz; (4) --backbone=efficientnet_lite0 needs no "
            "network"
        ) from None
    finally:
        archive.unlink(missing_ok=True)
    told = f"Module: {handle}\nDownload Time: {datetime.datetime.today()}\nDownloader Hostname: "
    # Nobody reads it but people who wonder what the folder is.
    with contextlib.suppress(OSError):
        write_text(
            folder.with_name(f"{folder.name}.descriptor.txt"),
            f"{told}{socket.gethostname()} (PID:{os.getpid()})",
        )


def _archive_address(handle: str) -> str:
    """Returns the address at which a hub sends a module as .tar.gz."""
    if handle.startswith(_CHINA):
        return _ARCHIVES_IN_CHINA % handle.removeprefix(_CHINA)
    parts = urllib.parse.urlsplit(handle)
    query = urllib.parse.urlencode([*urllib.parse.parse_qsl(parts.query), ("tf-hub-format", "compressed")])
    return urllib.parse.urlunsplit(parts._replace(query=query))


def _context() -> ssl.SSLContext:
    """Returns how certificates are checked: not at all where TensorFlow Hub would not, either."""
    context = ssl.create_default_context()
    if os.environ.get("TFHUB_DISABLE_CERT_VALIDATION") == "true":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _unpack(archive: Path, folder: Path, *, flag: str, what: str, key: str) -> None:
    def module_in(unpacked: Path) -> Path:
        inner = list(unpacked.iterdir())
        found = inner[0] if len(inner) == 1 and inner[0].is_dir() else unpacked
        if defect := find_defect(found):
            raise BadArchiveError(f"{flag}: {what} is not a whole SavedModel: {defect}")
        return found

    unpack(archive, folder, flag=flag, by_hand=BY_HAND, what=what, key=key, check=module_in)


def _make(root: Path, *, flag: str) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainerError(f"{flag}: cannot make {root}: {error.strerror}; set --cache_dir") from None
