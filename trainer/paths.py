"""What a user writes for a path, made into one: `~`, home folders, addresses, patterns.

The only file that expands `~`. Standard library only.
"""

import logging
import os
import re
import stat
import tempfile
from pathlib import Path

from trainer.values import UsageError

_log = logging.getLogger("trainer")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_MOUNTED_BY = {
    "gs": "gcsfuse", "gcs": "gcsfuse", "s3": "mount-s3 or s3fs", "s3a": "mount-s3 or s3fs",
    "az": "blobfuse2", "abfs": "blobfuse2", "abfss": "blobfuse2", "wasb": "blobfuse2", "wasbs": "blobfuse2",
}  # fmt: skip
# Whether a checkpoint or a SavedModel is there, TensorFlow asks by a pattern: of a path with [1] or \ in it
# the answer is no, of one with * or ? it is that of another folder, too.
_OF_PATTERNS = "*?[\\"


def scheme_of(text: str) -> str:
    """Returns `gs` of `gs://bucket/x`; empty for what is a path."""
    match = _SCHEME.match(text)
    return match[1].lower() if match else ""


def local_path(text: str | os.PathLike[str], *, flag: str, for_tensorflow: bool = False) -> Path:
    """Returns the absolute path that a user means; whether anything is there is not looked at.

    Args:
      text: as it was given; `~` and `~NAME` stand for home folders.
      flag: what messages begin with, such as `--workdir=gs://bucket/run`.
      for_tensorflow: whether TensorFlow reads checkpoints or a SavedModel there.

    Raises:
      UsageError: it is an address such as gs://bucket/run, there is no such home folder, or TensorFlow would
        read it as a pattern; the message names the way out.
    """
    text = os.fspath(text)
    if scheme := scheme_of(text):
        raise UsageError(f"{flag}: {refusal(scheme)}")
    path = Path(expanded(text, flag=flag)).absolute()
    if for_tensorflow and (found := pattern_in(path)):
        whole = "" if str(path) == text else f"{path}: "
        raise UsageError(
            f"{flag}: {whole}TensorFlow reads {found} in a path as a pattern, and would not find what is "
            f"there: name a folder without it, or a link to this one (ln -s)"
        )
    return path


def refusal(scheme: str) -> str:
    """Returns why an address is no path, and what to do: the end of a message."""
    if scheme == "file":
        return "write the path alone, without file://"
    if scheme in ("http", "https", "ftp"):
        return "expected a path on this machine, not an address: download it first"
    way = f"with {_MOUNTED_BY[scheme]} " if scheme in _MOUNTED_BY else ""
    return (
        f"expected a path on this machine, not {scheme}://: mount the bucket {way}and give the path below "
        "the mount point"
    )


def pattern_in(path: Path) -> str:
    """Returns the first character of a path that TensorFlow takes for a part of a pattern, or nothing."""
    return next((character for character in str(path) if character in _OF_PATTERNS), "")


def expanded(text: str, *, flag: str) -> str:
    """Returns a path with the folder that `~` or `~NAME` stands for at its beginning.

    Raises:
      UsageError: there is no such folder.
    """
    if not text.startswith("~"):
        return text
    # Where it cannot be expanded it stays, and a folder named ~ would be made.
    if os.path.isabs(found := os.path.expanduser(text)):
        return found
    name = text.partition("/")[0]
    why = f"{_no_home()}: write the whole path" if name == "~" else f"there is no user {name[1:]}"
    raise UsageError(f"{flag}: {why} (of a folder that is so named, write ./{text})")


def home() -> Path | None:
    """Returns what `~` stands for; None where $HOME is not set, or relative, and the user has no other."""
    found = os.path.expanduser("~")
    return Path(found) if os.path.isabs(found) else None


def settle_home() -> None:
    """Gives this process a home folder where it has none, with a warning.

    To be called before TensorFlow is imported: it, Keras and tfds would make a folder named `~`.
    """
    if home() is None:
        folder = temporary_home()
        _log.warning(
            "%s: caches and data sets are kept in %s, which a reboot may delete; set HOME",
            _no_home(),
            folder,
        )
        os.environ["HOME"] = str(folder)


def temporary_home() -> Path:
    """Returns a folder of this user below the temporary folder, made where there is none.

    The same one each time, unless it is another user's: then one that is new.
    """
    user = os.getuid()
    folder = Path(tempfile.gettempdir()).absolute() / f"hub-trainer-{user}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        # Anybody may make a folder there, or a link that leads elsewhere.
        if stat.S_ISDIR(found.st_mode) and found.st_uid == user:
            return folder
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="hub-trainer-"))


def _no_home() -> str:
    told = f"$HOME is {value!r}, which is no absolute path" if (value := os.environ.get("HOME")) else ""
    return told or "$HOME is not set, and this user has no home folder"
