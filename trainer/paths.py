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
_MOUNTED_BY = {
    "gs": "gcsfuse", "gcs": "gcsfuse", "s3": "mount-s3 or s3fs", "s3a": "mount-s3 or s3fs",
    "az": "blobfuse2", "abfs": "blobfuse2", "abfss": "blobfuse2", "wasb": "blobfuse2", "wasbs": "blobfuse2",
}  # fmt: skip
# With one slash, too: that is how pathlib writes an address.
_SCHEME = re.compile(
    rf"([A-Za-z][A-Za-z0-9+.-]*)://|({'|'.join([*_MOUNTED_BY, 'hdfs', 'http', 'https', 'ftp', 'file'])}):/",
    re.I,
)
# Whether a checkpoint or a SavedModel is there, TensorFlow asks by a pattern: of a path with [1] or \ in it
# the answer is no, of one with * or ? it is that of another folder, too.
_OF_PATTERNS = "*?[\\"
# {home folder that this process was given: why the user has none}
_stands_in: dict[str | None, str] = {}
# {variable: (what it stands for without, below the home folder; what has to be there, or to be made)}
_AT_HOME = {
    "XDG_CACHE_HOME": (".cache", ".cache/hub-trainer"),
    "TFDS_DATA_DIR": ("tensorflow_datasets", "tensorflow_datasets"),
    "KERAS_HOME": (".keras", ".keras"),
    # It has to be writable, too.
    "MPLCONFIGDIR": (".config/matplotlib", ".config/matplotlib/new"),
}


def scheme_of(text: str) -> str:
    """Returns `gs` of `gs://bucket/x`, and of `gs:/bucket/x`; empty for what is a path."""
    match = _SCHEME.match(text)
    return (match[1] or match[2]).lower() if match else ""


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
        named = "" if "://" in text else f" (of a folder that is so named, write ./{text})"
        raise UsageError(f"{flag}: {refusal(scheme)}{named}")
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
    name = text.partition("/")[0]
    # Where it cannot be expanded it stays, and a folder named ~ would be made.
    if os.path.isabs(found := os.path.expanduser(text)) and not (name == "~" and no_home()):
        return found
    why = f"{no_home()}: write the whole path" if name == "~" else f"there is no user {name[1:]}"
    raise UsageError(f"{flag}: {why} (of a folder that is so named, write ./{text})")


def home() -> Path | None:
    """Returns this process's home folder; None where it is no folder, relative, or `/`."""
    found = os.path.expanduser("~")
    is_one = os.path.isabs(found) and found.strip("/") and os.path.isdir(found)
    return Path(found) if is_one else None


def no_home() -> str:
    """Returns why the user has no home folder; empty where there is one."""
    value = os.environ.get("HOME")
    if value in _stands_in:
        return _stands_in[value]
    if home():
        return ""
    if value is None:
        return "$HOME is not set, and this user has no home folder"
    return f"$HOME is {value!r}, which is no home folder"


def why_unusable(folder: Path) -> str:
    """Returns why a folder can neither be read nor made; empty where it can."""
    # Not Path.exists, which raises where a folder above is closed.
    if os.path.exists(folder):
        return ""
    above = next(parent for parent in folder.parents if os.path.lexists(parent))
    is_open = os.path.isdir(above) and os.access(above, os.W_OK | os.X_OK)
    return "" if is_open else f"{above} cannot be written"


def settle_home() -> None:
    """Gives this process places to keep things where its home folder has none, with one warning.

    To be called before TensorFlow is imported: it, Keras and tfds would make a folder named `~`, write into
    `/`, or fail. A home folder that cannot be written stays what it is, as there may be data sets in it.
    """
    user_home = home()
    if user_home is None:
        why, instead = no_home(), temporary_home()
        _stands_in[str(instead)] = why
        os.environ["HOME"] = str(instead)
    else:
        whys = {
            name: why_unusable(user_home / below)
            for name, (_, below) in _AT_HOME.items()
            if not os.environ.get(name)
        }
        why = next(filter(None, whys.values()), "")
        if not why:
            return
        instead = temporary_home()
        os.environ.update({name: str(instead / _AT_HOME[name][0]) for name in whys if whys[name]})
    _log.warning("%s: caches and data sets are kept in %s, which a reboot may delete; set HOME", why, instead)


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
