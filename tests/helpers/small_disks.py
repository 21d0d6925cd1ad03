"""Disks that are soon full."""

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def small_disk(folder: Path, *, size_kb: int) -> Iterator[Callable[[int], None]]:
    """Mounts a file system of a size on a folder, made here, and gives what changes its size."""
    folder.mkdir()

    def mount(size_kb: int, *more: str) -> bool:
        options = ",".join([*more, f"size={size_kb}k"])
        return not subprocess.call(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], stderr=-3)

    if not mount(size_kb):
        pytest.skip("mounting takes more rights than this user has")
    try:
        yield lambda size_kb: mount(size_kb, "remount")
    finally:
        subprocess.run(["umount", folder], check=True)
