"""What files lie behind pictures, told by name, size and modification time: cheaper than their bytes."""

import hashlib
import os
import time
from collections.abc import Iterable

# The coarsest file system in use counts times in steps of 2 s: within one, a file may change once more
# and keep its time.
SETTLED_NS = 2_000_000_000


def stamp_files(root: str, names: Iterable[str], *, extra: str = "") -> str | None:
    """Returns a digest of `root`, `extra`, and each file's name, size in bytes and mtime in ns.

    Args:
      root: the folder that the names are paths below.
      names: in a fixed order. Links are followed.
      extra: what else must be the same.

    Returns:
      64 hex digits; None where a file cannot be looked at or was modified within the last 2 seconds.
    """
    settled_ns = time.time_ns() - SETTLED_NS
    digest = hashlib.sha256(f"{root}\0{extra}\0".encode())
    try:
        for name in names:
            stat = os.stat(f"{root}/{name}")
            if stat.st_mtime_ns > settled_ns:
                return None
            digest.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
    except OSError:
        return None
    return digest.hexdigest()
