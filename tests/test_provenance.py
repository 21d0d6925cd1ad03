"""Which code is running: its version, its commit, and a digest that any change changes."""

import importlib
import re
import shutil
import subprocess

import pytest

from trainer import __version__, provenance


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A copy of the package as the one that is looked at, in no checkout."""
    package = tmp_path / "trainer"
    shutil.copytree(provenance._PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(provenance, "_PACKAGE", package)
    return package


def git(folder, *words):
    who = ("-c", "user.name=x", "-c", "user.email=x@x")
    done = subprocess.run(["git", "-C", folder, *who, *words], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_outside_of_a_checkout_there_is_a_digest(copy):
    code = provenance.code()
    assert (code["trainer"], code["git_commit"]) == (__version__, None)
    assert re.fullmatch("[0-9a-f]{64}", code["source_sha256"])
    (copy / "notes.txt").write_text("no code")
    assert provenance.code() == code
    path = copy / "loop" / "loop.py"
    path.write_text(path.read_text() + "\n")
    assert provenance.code()["source_sha256"] != code["source_sha256"]


def test_in_a_checkout_the_commit_is_told(copy):
    root = copy.parent
    git(root, "init", "-q")
    assert provenance.code()["git_commit"] is None  # Nothing is committed yet.
    git(root, "add", "-A")
    git(root, "commit", "-qm", "one")
    assert provenance.code()["git_commit"] == git(root, "rev-parse", "HEAD")
    # A checkout further up is that of something else.
    (root / "deeper").mkdir()
    deeper = shutil.copytree(copy, root / "deeper" / "trainer")
    provenance._PACKAGE = deeper
    assert provenance.code()["git_commit"] is None


def test_without_git_there_is_no_commit(copy, monkeypatch):
    git(copy.parent, "init", "-q")
    monkeypatch.setenv("PATH", "")
    assert provenance.code()["git_commit"] is None


def test_versions_are_those_that_are_imported():
    found = provenance.versions()
    for name in ("numpy", "tensorflow"):
        assert found[name] == importlib.import_module(name).__version__
