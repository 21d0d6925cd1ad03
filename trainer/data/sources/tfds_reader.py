"""`tfds:NAME[/CONFIG][:VERSION]`: a data set of TensorFlow Datasets, unshuffled and undecoded."""

import contextlib
import difflib
import logging
import os
import re
import socket
import sys
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from trainer.data.encoded_cache import EncodedStore
from trainer.data.inspect.stamps import stamp_files
from trainer.data.sources.base import MemorySource
from trainer.paths import expanded, local_path, scheme_of
from trainer.values import TrainerError, UsageError

_log = logging.getLogger("trainer")
_VERSION = r":(?:\d+|\*)(?:\.(?:\d+|\*)){2}"
_NAME = re.compile(
    rf"(\w+)(?:(?:/|(?!{_VERSION}(?:/|$)):)([\w*+.-]+?))?({_VERSION})?((?:/\w+=.+)?)", re.ASCII
)
# What tfds puts where a label is kept back.
_NOT_PUBLIC = -1


def open_tfds(rest: str, *, name: str, data_dir: str, store: EncodedStore) -> MemorySource:
    """Reads all splits of a data set into `store`, prepared before where it is not.

    The order is that of the files: train, validation, test, other splits by name. The ids are
    `train/<tfds_id>`.

    Args:
      rest: NAME, NAME/CONFIG or NAME:CONFIG, each with or without :VERSION, which may be such as 3.*.*;
        then the newest that fits is taken, and `name` of the source says which.
      name: what messages call the source.
      data_dir: the folder of prepared data sets; empty means tfds's own, which is $TFDS_DATA_DIR as
        it was when tfds was first imported.
      store: empty; the source reads from it.

    Raises:
      UsageError: no such data set or configuration.
      TrainerError: it cannot be prepared, or does not hold labelled pictures.
    """
    with _quiet():
        builder = _builder(rest, name=name, data_dir=data_dir)
        if "*" in rest:
            name = re.sub(_VERSION, f":{builder.version}", name)
        if not builder.is_prepared():
            _prepare(builder, name=name)
        class_names = _class_names(builder, name=name)
        before = _stamp(builder)
        ids: list[str] = []
        labels: list[int] = []
        native: dict[str, tuple[int, int]] = {}
        for split in sorted(builder.info.splits, key=_split_rank):
            start = len(ids)
            for example in _examples(builder, split, name=name):
                label, found = int(example["label"]), f"{split}/{example['tfds_id'].decode()}"
                if label == _NOT_PUBLIC:
                    _log.warning("%s: left out the split %s, whose labels are not public", name, split)
                    del ids[start:], labels[start:]
                    store.truncate(start)
                    break
                if not 0 <= label < len(class_names):
                    raise TrainerError(
                        f"--source={name}: {found} in {builder.data_dir} has the label {label}, expected 0 "
                        f"to {len(class_names) - 1} for its {len(class_names)} classes {_few(class_names)}: "
                        "remove the folder to prepare it again"
                    )
                ids.append(found)
                labels.append(label)
                store.append(example["image"])
            else:
                native[split] = (start, len(ids))
        stamped = before if before == _stamp(builder) else None
    if not ids:
        splits = ", ".join(builder.info.splits) or "none"
        raise TrainerError(
            f"--source={name}: {builder.data_dir} has no labelled picture (its splits: {splits}): expected "
            "one split at least whose labels are public; give another --source"
        )
    _log.info("%s: %d pictures, %s", name, len(ids), store)
    return MemorySource(
        name, class_names, ids, np.array(labels, np.int64), store, native_splits=native, stamped=stamped
    )


def _few(names: tuple[str, ...], most: int = 5) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def _stamp(builder: Any) -> str | None:
    """Returns a digest of the names, sizes and times of all files of a prepared data set."""
    folder = os.fspath(builder.data_dir)
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if entry.is_file())
    except OSError:  # Not a folder of this machine, such as gs://.
        return None
    return stamp_files(folder, names, extra=f"tfds {tfds.__version__} {builder.info.full_name}")


def _split_rank(split: str) -> tuple[int, str]:
    usual = ("train", "validation", "test")
    return (usual.index(split) if split in usual else len(usual), split)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Holds back what tfds logs and prints about its own inner life."""
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    # Standard output is one for all threads: of two that exchange it, the last would leave it exchanged.
    is_main = threading.current_thread() is threading.main_thread()
    _held.back = True
    try:
        with contextlib.redirect_stdout(sys.stderr) if is_main else contextlib.nullcontext():
            yield
    finally:
        _held.back = False


class _OnlyErrors(logging.Filter):
    """Lets only errors through while a thread holds the rest back."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR or not getattr(_held, "back", False)


_held = threading.local()
for _name in ("absl", "tensorflow"):
    logging.getLogger(_name).addFilter(_OnlyErrors())


def _tfds_name(rest: str, *, name: str) -> str:
    """Returns what tfds calls a data set that is given here as NAME:CONFIG, or in its own way.

    Raises:
      UsageError: it is neither.
    """
    match = _NAME.fullmatch(rest)
    if not match:
        raise UsageError(
            f"--source={name}: expected NAME, NAME/CONFIG or NAME:CONFIG, and after it :VERSION, such as "
            "3.0.1 or 3.*.*, if it is to be another one than the newest"
        )
    data_set, config, version, more = match.groups(default="")
    return f"{data_set}/{config}{version}{more}" if config else f"{data_set}{version}{more}"


def _builder(rest: str, *, name: str, data_dir: str) -> Any:
    flag = f"--data_dir={data_dir}"
    if (scheme := scheme_of(data_dir)) and "://" not in data_dir:
        raise UsageError(
            f"{flag}: an address begins with {scheme}:// (of a folder that is so named, write ./{data_dir})"
        )
    folder = expanded(data_dir, flag=flag) or None
    try:
        builder = tfds.builder(_tfds_name(rest, name=name), data_dir=folder)
        _require_no_pattern(builder, name=name)
        return builder
    except UsageError:
        raise
    except tfds.core.DatasetNotFoundError as error:
        lines = str(error).splitlines()
        close = next((line.strip() for line in lines if "did you mean" in line.lower()), "")
        raise UsageError(f"--source={name}: tfds knows no data set of this name. {close}".rstrip()) from None
    except Exception as error:
        # Before its reason tfds repeats the name, in its own way.
        text = re.sub(r'^Failed to construct dataset "\w+", builder_kwargs "\{.*?\}": ', "", str(error))
        told = _unknown_config(rest) or f"tfds cannot open it: {' '.join(text.split())[:400]}"
        raise UsageError(f"--source={name}: {told}") from None


def _unknown_config(rest: str) -> str:
    """Returns that a data set has no such configuration, if so, and which ones it has."""
    match = _NAME.fullmatch(rest)
    data_set, config = match.group(1, 2) if match else ("", "")
    try:
        known = list(tfds.builder_cls(data_set).builder_configs)
    except Exception:  # One without code, or what kept it from being opened.
        return ""
    if not config or config in known:
        return ""
    near = difflib.get_close_matches(config, known) or known
    told = f"{data_set} has no configuration {config}"
    told += f" (it has {_few(tuple(near))})" if near else ", nor any other"
    is_version = re.fullmatch(r"[\d*.]+", config)
    return told + ("; a VERSION has three numbers, such as 3.0.1 or 3.*.*" if is_version else "")


def _require_no_pattern(builder: Any, *, name: str) -> None:
    """Makes sure that tfds finds what it has prepared, wherever its folder was named.

    Raises:
      UsageError: it would not, as it looks for files by a pattern that begins with the folder.
    """
    root = os.fspath(builder.data_dir_root)
    if not scheme_of(root):
        local_path(root, flag=f"--source={name}: --data_dir={root}", for_tensorflow=True)


def _prepare(builder: Any, *, name: str) -> None:
    _log.info("%s: not prepared in %s; tfds downloads and prepares it", name, builder.data_dir)
    try:
        _check_network(builder)
        builder.download_and_prepare()
    except Exception as error:
        raise TrainerError(
            f"--source={name}: not prepared in {builder.data_dir}, and preparing it failed: "
            f"{' '.join(str(error).split())[:300]}. Ways out: prepare it on a machine with a network, copy "
            "the folder and set --data_dir to the folder above it, or set $TFDS_DATA_DIR to where it is "
            "prepared already, or take the same pictures as archive:PATH or folder:PATH"
        ) from None


def _check_network(builder: Any) -> None:
    """Fails at once where tfds would try again and again for minutes before it gave up.

    Raises:
      OSError: the host of the data set's files has no address here.
    """
    # Behind a proxy, names are resolved by the proxy. ($no_proxy makes an entry, too: it is none.)
    proxied = {"http", "https", "all"} & set(urllib.request.getproxies())
    if builder.MANUAL_DOWNLOAD_INSTRUCTIONS or proxied:
        return
    # What tfds downloaded before, it does not ask the network for; each file has a .INFO beside it.
    if any(Path(builder.data_dir_root, "downloads").glob("*.INFO")):
        return
    hosts = {urllib.parse.urlsplit(url).hostname for url in builder.url_infos} - {None}
    for host in sorted(hosts):
        try:
            socket.getaddrinfo(host, None)
        except OSError as error:
            raise OSError(f"no network: {host}: {error.strerror}") from None


def _class_names(builder: Any, *, name: str) -> tuple[str, ...]:
    features = builder.info.features
    found = dict(features.items()) if hasattr(features, "items") else {}
    if not isinstance(found.get("image"), tfds.features.Image) or not isinstance(
        found.get("label"), tfds.features.ClassLabel
    ):
        kinds = ", ".join(f"{key} ({type(feature).__name__})" for key, feature in found.items())
        raise TrainerError(
            f"--source={name}: expected the features image (Image) and label (ClassLabel), but it has "
            + (kinds or "none")
        )
    return tuple(found["label"].names)


def _examples(builder: Any, split: str, *, name: str) -> Iterator[dict[str, Any]]:
    # Autocache would keep decoded pictures; a cycle longer than 1 would interleave the files.
    config = tfds.ReadConfig(try_autocache=False, add_tfds_id=True, interleave_cycle_length=1)
    wanted = tfds.decode.PartialDecoding(
        {"image": True, "label": True}, decoders={"image": tfds.decode.SkipDecoding()}
    )
    # One by one, never as a list: a split may be larger than memory.
    try:
        dataset = builder.as_dataset(split=split, shuffle_files=False, read_config=config, decoders=wanted)
        yield from dataset.as_numpy_iterator()
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        raise TrainerError(
            f"--source={name}: the split {split} in {builder.data_dir} cannot be read: {text}; remove the "
            "folder to prepare it again"
        ) from None
