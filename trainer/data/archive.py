"""`archive:PATH_OR_URL`: a .tgz, .tar or .zip of class folders, unpacked once and read as a folder."""

import hashlib
import json
import logging
import os
import re
import urllib.parse
import urllib.request
from pathlib import Path

from trainer.caches import cache_root
from trainer.data.download import download
from trainer.data.encoded import DEFAULT_BUDGET_BYTES
from trainer.data.folder import FolderSource, open_folder
from trainer.data.unpack import unpack
from trainer.files import write_json
from trainer.values import TrainerError, UsageError

# SHA-256 by address, without its scheme.
KNOWN_CHECKSUMS = {
    # From datasets/tf_flowers/checksums.tsv of tensorflow_datasets 4.9.10.
    "download.tensorflow.org/example_images/flower_photos.tgz": (
        "4c54ace7911aaffe13a365c34f650e71dd5bf1be0a58b464e5a7183e3e595d9c"
    ),
}
_log = logging.getLogger("trainer")


def open_archive(
    address: str, *, name: str, checksum: str, cache_dir: str, budget_bytes: int = DEFAULT_BUDGET_BYTES
) -> FolderSource:
    """Downloads (once), checks, unpacks (once) and lists an archive of class folders.

    One folder that wraps all class folders is looked through. A downloaded archive must have the
    SHA-256 given, else the known one, else the one it had when it was first downloaded.

    Args:
      address: a path, or a file:, http: or https: URL.
      name: what messages call the source.
      checksum: SHA-256 in hex digits that the archive must have, or empty.
      cache_dir: value of --cache_dir.
      budget_bytes: how much of the pictures is kept in memory.

    Raises:
      UsageError: `checksum` is none, or the URL is of another kind.
      TrainerError: the archive cannot be had, is not what was expected, is damaged or unsafe, or does
        not hold class folders.
    """
    checksum = checksum.strip().lower()
    if checksum and not re.fullmatch(r"[0-9a-f]{64}", checksum):
        raise UsageError(f"--checksum={checksum}: expected a SHA-256, which is 64 hex digits")
    cache = cache_root(cache_dir) / "archives"
    url = urllib.parse.urlsplit(address)
    if url.scheme in ("http", "https"):
        return _open_url(address, name=name, checksum=checksum, cache=cache, budget_bytes=budget_bytes)
    if url.scheme == "file":
        address = urllib.request.url2pathname(url.path)
    elif "://" in address:
        raise UsageError(f"--source={name}: expected a path or a file:, http: or https: address")
    archive = Path(address).expanduser().absolute()
    sha256 = _checked(archive, checksum, name=name)
    return _open_file(archive, sha256, name=name, cache=cache, budget_bytes=budget_bytes)


def _open_url(url: str, *, name: str, checksum: str, cache: Path, budget_bytes: int) -> FolderSource:
    parts = urllib.parse.urlsplit(url)
    file = re.sub(r"[^\w.-]", "_", os.path.basename(parts.path))[-80:] or "archive"
    archive = cache / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{file}"
    record = archive.with_name(archive.name + ".json")
    expected = checksum or KNOWN_CHECKSUMS.get(f"{parts.netloc}{parts.path}", "") or _remembered(record)
    fresh = not archive.exists()
    if fresh:
        download(url, archive, name=name)
    try:
        sha256 = _checked(archive, expected, name=name)
        source = _open_file(archive, sha256, name=name, cache=cache, budget_bytes=budget_bytes)
    except TrainerError:
        # What has just come and is wrong must not stand in the way of the next attempt.
        if fresh:
            archive.unlink(missing_ok=True)
        raise
    if not expected:
        _remember(record, url=url, sha256=sha256, size=archive.stat().st_size)
        _log.info("%s: SHA-256 %s remembered; from now on %s must have it", name, sha256, url)
    return source


def _open_file(archive: Path, sha256: str, *, name: str, cache: Path, budget_bytes: int) -> FolderSource:
    folder = cache / sha256[:16]
    if not folder.is_dir():
        try:
            cache.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TrainerError(
                f"--source={name}: cannot make {cache}: {error.strerror}; set --cache_dir"
            ) from None
        _log.info("%s: unpacking %s to %s", name, archive, folder)
        unpack(archive, folder, name=name)
    return open_folder(str(_unwrapped(folder)), name=name, budget_bytes=budget_bytes)


def _unwrapped(folder: Path) -> Path:
    """Returns the one folder that holds all others, as flower_photos/ does, or `folder` itself."""
    inner = [path for path in folder.iterdir() if path.is_dir()]
    if len(inner) == 1 and inner[0].name.lower() != "train" and any(p.is_dir() for p in inner[0].iterdir()):
        return inner[0]
    return folder


def _checked(archive: Path, expected: str, *, name: str) -> str:
    try:
        with open(archive, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise TrainerError(f"--source={name}: cannot read the archive {archive}: {error.strerror}") from None
    if expected and sha256 != expected:
        raise TrainerError(
            f"--source={name}: {archive} has the SHA-256 {sha256}, expected {expected}: remove it to have it "
            "anew, or correct --checksum"
        )
    return sha256


def _remembered(record: Path) -> str:
    try:
        return str(json.loads(record.read_text())["sha256"])
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except (OSError, ValueError, KeyError, TypeError):
        raise TrainerError(f"{record} cannot be read: remove it to trust the next download anew") from None


def _remember(record: Path, **facts: str | int) -> None:
    try:
        write_json(record, facts)
    except OSError as error:
        raise TrainerError(f"cannot write {record}: {error.strerror}; set --cache_dir") from None
