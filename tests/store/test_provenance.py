"""Which code is running: its version, its commit, and a digest that any change changes."""

import importlib
import itertools
import re
import shutil
import subprocess

import pytest

from trainer import __version__
from trainer.store import provenance


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


def write_package(root, **files):
    for name, text in files.items():
        path = root / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture
def small_package(tmp_path, monkeypatch):
    """work > helpers > deep; work > tools > hammer, in a function; nothing leads to apart."""
    package = write_package(
        tmp_path / "trainer",
        work="from trainer import helpers\nimport os\n",
        helpers="def f():\n    from trainer.deep import (\n        a,\n        b,\n    )\n",
        deep="import trainer.work\na = b = 1\n",
        apart="a = 1\n",
    )
    write_package(package / "tools", hammer="a = 1\n", saw="a = 1\n")
    (package / "__init__.py").write_text("from trainer import apart\n")
    (package / "tools" / "__init__.py").write_text("def f():\n    from trainer.tools import hammer\n")
    monkeypatch.setattr(provenance, "_PACKAGE", package)
    return package


def test_a_digest_of_code_covers_all_that_it_imports(small_package):
    with open(small_package / "deep.py", "a") as out:
        out.write("import trainer.tools.hammer\n")
    covered = {str(path.relative_to(small_package)) for path in provenance.covered_files("trainer.work")}
    assert covered == {"work.py", "helpers.py", "deep.py", "tools/__init__.py", "tools/hammer.py"}


@pytest.mark.parametrize(
    ("file", "counts"),
    [("work", True), ("helpers", True), ("deep", True), ("apart", False), ("tools/saw", False)],
)
def test_a_digest_of_code_is_another_when_what_it_covers_is(file, counts, small_package, tmp_path):
    places = itertools.count()

    def digest():
        # As another process, which alone looks again.
        provenance._PACKAGE = shutil.copytree(small_package, tmp_path / f"{next(places)}")
        return provenance.code_digest("trainer.work", alone=["trainer.tools.hammer"])

    before = digest()
    assert digest() == before
    with open(small_package / f"{file}.py", "a") as out:
        out.write("# more\n")
    assert (digest() != before) is counts
    (small_package / "tools" / "hammer.py").write_text("a = 2\n")
    assert digest() != before


def test_a_digest_of_code_covers_what_comes_from_elsewhere(small_package):
    digests = [provenance.code_digest("trainer.work", plugins=p) for p in ([], [b"a"], [b"b"], [b"a", b"b"])]
    assert len(set(digests)) == 4


def test_source_is_read_once_in_a_process(small_package):
    before = provenance.code_digest("trainer.work")
    shutil.rmtree(small_package)
    assert provenance.code_digest("trainer.work") == before
    assert provenance.code_digest("trainer.work", plugins=[b"a"]) != before
