"""What files lie behind pictures, told by what the file system says of them: cheaper than their bytes."""

import hashlib
import os
import re
import time
from collections.abc import Iterable
from pathlib import Path

# The coarsest file system in use counts times in steps of 2 s: within one, a file may change once more
# and keep its time.
SETTLED_NS = 2_000_000_000
MOUNTS = Path("/proc/self/mountinfo")
# They number files anew each time that they are mounted, and have no time of the last change of a file's
# name or owner: two files that have changed places look as before.
_FORGETFUL = re.compile(r"vfat|msdos|exfat|9p|fuse.*")
_ESCAPED = re.compile(r"\\([0-7]{3})")


def stamp_files(root: str, names: Iterable[str], *, extra: str = "") -> str | None:
    """Returns a digest of `root`, `extra`, and what the file system says of each file.

    That is its name, its number (inode), its size, and when its contents and its state last changed. No
    program sets the last (ctime), and no two files have one number: what is written anew, moved or
    exchanged shows, whatever its size and mtime. A copy of all files shows as well, though it need not.

    Args:
      root: the folder that the names are paths below.
      names: in a fixed order. Links are followed.
      extra: what else must be the same.

    Returns:
      64 hex digits; None where a file cannot be looked at, was modified within the last 2 seconds, or lies
      on a file system that does not tell its files apart.
    """
    if _is_forgetful(root):
        return None
    settled_ns = time.time_ns() - SETTLED_NS
    digest = hashlib.sha256(_bytes(f"{root}\0{extra}\0"))
    try:
        for name in names:
            stat = os.stat(f"{root}/{name}")
            if stat.st_mtime_ns > settled_ns or not stat.st_ino:
                return None
            numbers = (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
            digest.update(_bytes(f"{name}\0{numbers}\0"))
    except OSError:
        return None
    return digest.hexdigest()


def _bytes(text: str) -> bytes:
    """Returns UTF-8, with bytes of names of files that are none as they are."""
    return text.encode(errors="surrogateescape")


def _is_forgetful(root: str) -> bool:
    """Tells whether a folder lies on a file system whose numbers of files do not last, as far as is known."""
    try:
        lines = MOUNTS.read_text("utf-8", errors="surrogateescape").split("\n")
        mounts = [line.split(" - ") for line in lines if line]
        path = os.path.realpath(root)
    except OSError:  # Not on Linux.
        return False
    kinds = {}
    for place, kind in mounts:
        folder = _ESCAPED.sub(lambda code: chr(int(code[1], 8)), place.split(" ")[4])
        if f"{path}/".startswith(f"{folder.rstrip('/')}/"):
            # Of those that lie on one another, the last is seen.
            kinds[folder] = kind.split(" ")[0]
    return bool(kinds) and bool(_FORGETFUL.fullmatch(kinds[max(kinds, key=len)]))
