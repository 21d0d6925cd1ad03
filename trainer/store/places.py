"""Where downloads and converted networks are kept between runs. Standard library only."""

import functools
import logging
import os
from pathlib import Path

from trainer.paths import home, local_path, no_home, pattern_in, temporary_home, why_unusable

_log = logging.getLogger("trainer")


def cache_root(flag: str = "") -> Path:
    """Returns the folder for everything that is costly to get twice; does not create it.

    Where the user's cache folder can neither be read nor made, a folder below the temporary one takes its
    place, with one warning.

    Args:
      flag: the value of --cache_dir; empty means the user's cache folder
        ($XDG_CACHE_HOME or ~/.cache), which outlives a reboot, unlike the temporary folder
        that TensorFlow Hub uses by default.

    Raises:
      UsageError: --cache_dir is no local path.
    """
    if flag:
        return local_path(flag, flag=f"--cache_dir={flag}")
    named = os.environ.get("XDG_CACHE_HOME", "")
    # A relative one is to be ignored: XDG Base Directory Specification, "Environment variables".
    parts = (named,) if os.path.isabs(named) else (found, ".cache") if (found := home()) else ()
    root = Path(*parts, "hub-trainer")
    if not (why := _why_not(root) if parts else no_home()):
        return root
    instead = temporary_home() / ".cache" / "hub-trainer"
    _warn(f"{why}: caches are kept in {instead}, which a reboot may delete; set --cache_dir=FOLDER")
    return instead


def hub_cache_root(flag: str = "") -> Path:
    """Returns the folder that TensorFlow Hub keeps modules in: --cache_dir, else $TFHUB_CACHE_DIR.

    Raises:
      UsageError: it is no local path.
    """
    if not flag and (named := os.environ.get("TFHUB_CACHE_DIR")):
        return local_path(named, flag=f"$TFHUB_CACHE_DIR={named}", for_tensorflow=True)
    return cache_root(flag) / "tfhub_modules"


def keras_folder() -> Path:
    """Returns the folder that Keras keeps downloaded weights in; $KERAS_HOME is of its settings alone."""
    folder = (home() or Path("/tmp")) / ".keras"
    # Where it cannot be written, not even what is there is taken.
    return Path("/tmp/.keras") if why_unusable(folder / "new") else folder


def _why_not(root: Path) -> str:
    if found := pattern_in(root):
        return f"TensorFlow reads {found} in {root} as a pattern"
    return why_unusable(root)


@functools.cache
def _warn(text: str) -> None:
    _log.warning("%s", text)
