"""Where downloads and converted networks are kept between runs. Standard library only."""

import functools
import logging
import os
from pathlib import Path

from trainer.paths import home, local_path, pattern_in, temporary_home

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
    if os.path.isabs(named):
        root, user_home = Path(named), None
    else:
        user_home = home() or Path("/")
        root = user_home / ".cache"
    root /= "hub-trainer"
    if why := _unusable(root, user_home):
        instead = temporary_home() / ".cache" / "hub-trainer"
        _warn(f"{why}: caches are kept in {instead}, which a reboot may delete; set --cache_dir=FOLDER")
        return instead
    return root


def hub_cache_root(flag: str = "") -> Path:
    """Returns the folder that TensorFlow Hub keeps modules in: --cache_dir, else $TFHUB_CACHE_DIR.

    Raises:
      UsageError: it is no local path.
    """
    if not flag and (named := os.environ.get("TFHUB_CACHE_DIR")):
        return local_path(named, flag=f"$TFHUB_CACHE_DIR={named}", for_tensorflow=True)
    return cache_root(flag) / "tfhub_modules"


def _unusable(root: Path, user_home: Path | None) -> str:
    """Returns why a folder below a home, if any, can neither be read nor made; empty where it can."""
    if found := pattern_in(root):
        return f"TensorFlow reads {found} in {root} as a pattern"
    # Not Path.exists, which raises where a folder above is closed.
    if os.path.exists(root):
        return ""
    if user_home and (user_home == Path("/") or not os.path.isdir(user_home)):
        return f"there is no home folder ($HOME={os.environ.get('HOME', '')})"
    above = next(folder for folder in root.parents if os.path.lexists(folder))
    return (
        "" if os.path.isdir(above) and os.access(above, os.W_OK | os.X_OK) else f"{above} cannot be written"
    )


@functools.cache
def _warn(text: str) -> None:
    _log.warning("%s", text)
