"""Which code is running: for the record of a run, and for the keys of what is kept between runs."""

import functools
import hashlib
import re
import subprocess
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from trainer.version import __version__

_PACKAGE = Path(__file__).parents[1]
_GIT_SECS = 5.0
# Wherever it stands: a network may be imported in the function that opens it.
_OURS = r"trainer(?:\.\w+)*"
_IMPORT = re.compile(
    rf"^[ \t]*(?:from[ \t]+({_OURS})[ \t]+import[ \t]+(\([^)]*\)|[^\n]*)|import[ \t]+({_OURS}))", re.MULTILINE
)


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


def code_digest(*modules: str, alone: Iterable[str] = (), plugins: Iterable[bytes] = ()) -> str:
    """Returns a SHA-256 of the source that a value is computed with, for the key under which it is kept.

    It is read once in a process, which runs what it has imported whatever becomes of the files.

    Args:
      modules: names of modules of this project, such as `trainer.data.decode`, that compute it. What they
        import from this project counts as well, and what that imports; takes a few ms.
      alone: names of modules of which nothing else counts than their own source.
      plugins: source that comes from elsewhere.
    """
    digest = _digest_of(_PACKAGE, modules, tuple(alone)).copy()
    for source in plugins:
        digest.update(hashlib.sha256(source).digest())
    return digest.hexdigest()


@functools.cache
def _digest_of(package: Path, modules: tuple[str, ...], alone: tuple[str, ...]) -> "hashlib._Hash":
    digest = hashlib.sha256()
    for path in sorted({*covered_files(*modules), *filter(None, map(_file_of, alone))}):
        digest.update(f"{path.relative_to(package)}\0".encode() + path.read_bytes() + b"\0")
    return digest


def covered_files(*modules: str) -> set[Path]:
    """Returns the files of modules of this project, and of all that they import of it."""
    waiting, found = list(modules), dict[str, Path]()
    while waiting:
        name = waiting.pop()
        # The door, `trainer` itself, offers a command, which nothing below depends on.
        if name in found or name == "trainer" or not (path := _file_of(name)):
            continue
        found[name] = path
        waiting.append(name.rpartition(".")[0])
        for package, names, module in _IMPORT.findall(path.read_text(encoding="utf-8")):
            waiting.append(module or package)
            # Of what a package is asked for, some are its modules.
            waiting += [f"{package}.{one}" for one in re.findall(r"\w+", names)]
    return set(found.values())


def _file_of(module: str) -> Path | None:
    path = _PACKAGE.joinpath(*module.split(".")[1:])
    places = (path.with_suffix(".py"), path / "__init__.py")
    return next((place for place in places if place.is_file()), None)


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
