"""`archive:PATH_OR_URL`: a .tgz, .tar or .zip of class folders, unpacked once and read as a folder."""

import functools
import hashlib
import logging
import os
import re
import shutil
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path

from trainer.data.class_folders import UndecodableError
from trainer.data.encoded_cache import DEFAULT_BUDGET_BYTES
from trainer.data.sources.base import DEFAULT_OPTIONS, SOURCES, SourceOptions
from trainer.data.sources.folder import FolderSource, open_folder
from trainer.paths import local_path, scheme_of
from trainer.store.downloads import NetworkError, download
from trainer.store.files import read_json, write_json
from trainer.store.lock import file_lock
from trainer.store.places import cache_root
from trainer.store.unpack import BadArchiveError, remove_left_overs, unpack
from trainer.values import TrainerError, UsageError

# SHA-256 by address, without its scheme.
KNOWN_CHECKSUMS = {
    # From datasets/tf_flowers/checksums.tsv of tensorflow_datasets 4.9.10.
    "download.tensorflow.org/example_images/flower_photos.tgz": (
        "4c54ace7911aaffe13a365c34f650e71dd5bf1be0a58b464e5a7183e3e595d9c"
    ),
}
_log = logging.getLogger("trainer")
Opener = Callable[[str], FolderSource]


def check_archive(address: str, *, flag: str) -> None:
    """Raises UsageError where an address is neither a path nor one that can be opened."""
    if scheme_of(address) not in ("http", "https", "file"):
        local_path(address, flag=flag)


@SOURCES.register("archive", address="PATH_OR_URL", check=check_archive)
def open_archive(
    address: str,
    *,
    name: str,
    checksum: str,
    cache_dir: str,
    budget_bytes: int = DEFAULT_BUDGET_BYTES,
    options: SourceOptions = DEFAULT_OPTIONS,
) -> FolderSource:
    """A .tgz, .tar or .zip of such a folder; it is downloaded, checked and unpacked once.

    A downloaded archive must have the
    SHA-256 given, else the known one, else the one it had when it was first downloaded. Where another
    process downloads or unpacks the same one, this one waits.

    Args:
      address: a path, or a file:, http: or https: URL.
      name: what messages call the source.
      checksum: SHA-256 in hex digits that the archive must have, or empty.
      cache_dir: value of --cache_dir.
      budget_bytes: how much of the pictures is kept in memory.
      options: for the folder; see `open_folder`.

    Raises:
      UsageError: `checksum` is none, or the URL is of another kind.
      TrainerError: the archive cannot be had, is not what was expected, is damaged or unsafe, or does
        not hold class folders.
    """
    checksum = checksum.strip().lower()
    if checksum and not re.fullmatch(r"[0-9a-f]{64}", checksum):
        raise UsageError(f"--checksum={checksum}: expected a SHA-256, which is 64 hex digits")
    cache = cache_root(cache_dir) / "archives"
    try:
        url = urllib.parse.urlsplit(address)
    except ValueError as error:
        raise UsageError(f"--source={name}: {address} is no address: {error}") from None
    opener = functools.partial(open_folder, name=name, budget_bytes=budget_bytes, options=options)
    remove_left_overs(cache)
    if url.scheme in ("http", "https"):
        return _open_url(address, opener, name=name, checksum=checksum, cache=cache)
    if url.scheme == "file":
        address = urllib.request.url2pathname(url.path)
    archive = local_path(address, flag=f"--source={name}")
    sha256 = _digest(archive, name=name)
    if checksum and sha256 != checksum:
        raise TrainerError(
            f"--source={name}: {archive} has the SHA-256 {sha256}, expected {checksum}: it is another "
            "archive or a damaged one; get it anew, or correct --checksum"
        )
    return _open_file(archive, sha256, opener, name=name, what=str(archive), cache=cache)


def _open_url(url: str, opener: Opener, *, name: str, checksum: str, cache: Path) -> FolderSource:
    parts = urllib.parse.urlsplit(url)
    file = re.sub(r"[^\w.-]", "_", os.path.basename(parts.path))[-80:] or "archive"
    key = hashlib.sha256(url.encode(errors="surrogateescape")).hexdigest()[:16]
    archive = cache / f"{key}-{file}"
    record = archive.with_name(archive.name + ".json")
    _make(cache, name=name)
    with file_lock(cache / f"{key}.lock", waiting_for=name):
        known = KNOWN_CHECKSUMS.get(f"{parts.netloc}{parts.path}", "")
        expected = checksum or known or _remembered(record)
        fresh = not archive.exists()
        if fresh:
            _download(url, archive, name=name, key=key)
        what = f"the archive from {url}" if fresh else str(archive)
        try:
            sha256 = _digest(archive, name=name)
            if expected and sha256 != expected:
                origin = "--checksum" if checksum else "on record" if known else f"as {record} has it"
                hint = "" if fresh else f"remove {archive} to have it anew, or "
                raise BadArchiveError(
                    f"--source={name}: {what} has the SHA-256 {sha256}, expected {expected} ({origin}): it "
                    f"is damaged or has changed; {hint}give its SHA-256 as --checksum to take it as it is"
                )
            source = _open_file(archive, sha256, opener, name=name, what=what, cache=cache)
        except BadArchiveError:
            # What is wrong, and nothing vouches for, must not stand in the way of the next attempt.
            if fresh or not expected:
                archive.unlink(missing_ok=True)
            raise
        if not expected:
            _remember(record, url=url, sha256=sha256, size=archive.stat().st_size)
            _log.info("%s: SHA-256 %s remembered; from now on %s must have it", name, sha256, url)
        return source


def _download(url: str, archive: Path, *, name: str, key: str) -> None:
    try:
        download(url, archive, flag=f"--source={name}", key=key)
    except NetworkError as error:
        raise TrainerError(
            f"--source={name}: could not download {url}: {error}. Ways out: correct the address, download it "
            "by hand and give --source=archive:PATH, or point --cache_dir to the cache folder of a machine "
            "that has it"
        ) from None


def _open_file(
    archive: Path, sha256: str, opener: Opener, *, name: str, what: str, cache: Path
) -> FolderSource:
    key = sha256[:16]
    folder = cache / key
    if not folder.is_dir():
        _make(cache, name=name)
        with file_lock(cache / f"{key}.lock", waiting_for=name):
            if not folder.is_dir():
                _log.info("%s: unpacking %s to %s", name, archive, folder)
                unpack(
                    archive,
                    folder,
                    flag=f"--source={name}",
                    by_hand="--source=folder:PATH",
                    what=what,
                    key=key,
                )
                try:
                    return _listed(folder, opener)
                except BadArchiveError as error:
                    shutil.rmtree(folder, ignore_errors=True)
                    raise BadArchiveError(str(error).replace(str(folder), what)) from None
    return _listed(folder, opener)


def _listed(folder: Path, opener: Opener) -> FolderSource:
    try:
        return opener(str(folder))
    except (UsageError, UndecodableError):
        raise  # What other options are an answer to is no fault of the archive.
    except TrainerError as error:
        raise BadArchiveError(str(error)) from None


def _make(cache: Path, *, name: str) -> None:
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainerError(
            f"--source={name}: cannot make {cache}: {error.strerror}; set --cache_dir"
        ) from None


def _digest(archive: Path, *, name: str) -> str:
    try:
        if archive.is_dir():
            raise TrainerError(
                f"--source={name}: {archive} is a folder: give --source=folder:{archive}, or an archive"
            )
        if archive.exists() and not archive.is_file():  # To read from a pipe may take for ever.
            raise TrainerError(f"--source={name}: {archive} is no regular file")
        with open(archive, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise TrainerError(f"--source={name}: cannot read the archive {archive}: {error.strerror}") from None


def _remembered(record: Path) -> str:
    try:
        return read_json(record, {"sha256": str})["sha256"]
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except (OSError, TrainerError):
        raise TrainerError(f"{record} cannot be read: remove it to trust the next download anew") from None


def _remember(record: Path, **facts: str | int) -> None:
    try:
        write_json(record, facts)
    except OSError as error:
        raise TrainerError(f"cannot write {record}: {error.strerror}; set --cache_dir") from None
