"""Where downloads and converted networks are kept between runs. Standard library only."""

import os
from pathlib import Path


def cache_root(flag: str = "") -> Path:
    """Returns the folder for everything that is costly to get twice; does not create it.

    Args:
      flag: the value of --cache_dir; empty means the user's cache folder
        ($XDG_CACHE_HOME or ~/.cache), which outlives a reboot, unlike the temporary folder
        that TensorFlow Hub uses by default.
    """
    if flag:
        return Path(os.path.expanduser(flag)).absolute()
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(home) / "hub-trainer"


def hub_cache_root(flag: str = "") -> Path:
    """Returns the folder that TensorFlow Hub keeps modules in: --cache_dir, else $TFHUB_CACHE_DIR."""
    if not flag and os.environ.get("TFHUB_CACHE_DIR"):
        return Path(os.path.expanduser(os.environ["TFHUB_CACHE_DIR"])).absolute()
    return cache_root(flag) / "tfhub_modules"
