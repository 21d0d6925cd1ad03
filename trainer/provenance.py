"""Which code is running: for the record of a run, so that numbers can be traced to what made them."""

import hashlib
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from trainer import __version__

_PACKAGE = Path(__file__).parent
_GIT_SECS = 5.0


def versions() -> dict[str, str]:
    """Returns the versions that the numbers of a run may depend on."""
    names = (
        "tensorflow",
        "tf_keras",
        "tensorflow-hub",
        "tensorflow-datasets",
        "numpy",
        "pillow",
        "simplejpeg",
    )
    return {"python": sys.version.split()[0], **{name: metadata.version(name) for name in names}}


def code() -> dict[str, str | None]:
    """Returns version, git commit and a digest of the source of this project.

    `git_commit` is None where the source is no git checkout; that files differ from the commit shows in
    `source_sha256` alone.
    """
    digest = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*.py")):
        digest.update(f"{path.relative_to(_PACKAGE)}\0".encode() + path.read_bytes() + b"\0")
    return {
        "trainer": __version__,
        "git_commit": _git_commit(),
        "source_sha256": digest.hexdigest(),
    }


def _git_commit() -> str | None:
    # Installed into an environment that lies in a checkout of something else, this is not that one's code.
    if not (_PACKAGE.parent / ".git").exists():
        return None
    command = ["git", "-C", str(_PACKAGE.parent), "rev-parse", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_SECS, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None
