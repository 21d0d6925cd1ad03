"""What setup.py asks for is what is imported; and tensorflow_hub without setuptools."""

import ast
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent


def third_party_imports() -> dict[str, str]:
    """Returns {package: a file of trainer/ that imports it, anywhere in it}."""
    found = {}
    for path in sorted((ROOT / "trainer").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            found |= {name.split(".")[0]: path.relative_to(ROOT).as_posix() for name in names}
    return {name: file for name, file in found.items() if name not in {*sys.stdlib_module_names, "trainer"}}


def declared() -> set[str]:
    """Returns the names of all distributions in setup.py: what was installed may be older."""
    lists = {}
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign):
            lists[node.targets[0].id] = ast.literal_eval(node.value)
    extras = lists["EXTRAS_REQUIRE"]
    used = ("onnx", "kerashub", "openvino", "sweep")
    asked = [*lists["INSTALL_REQUIRES"], *(text for name in used for text in extras[name])]
    return {canonicalize_name(Requirement(text).name) for text in asked}


def test_every_import_is_declared():
    distributions, known = importlib.metadata.packages_distributions(), declared()
    missing = {
        name: file
        for name, file in third_party_imports().items()
        if not known & {canonicalize_name(one) for one in distributions.get(name, [name])}
    }
    assert missing == {}
    assert "scipy" in third_party_imports()  # The search finds what it is to find.


def test_each_stamp_of_the_makefile_says_what_was_installed():
    """A target that marks another one's environment as made installs all that the other one would."""
    extras, done = {".installed-base": set()}, {}
    for target, name, value in re.findall(
        r"^\$\(VENV\)/(\S+): (EXTRAS|DONE) := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE
    ):
        if name == "EXTRAS":
            extras[target] = set(value.strip("[]").split(","))
        else:
            done[target] = [stamp.removeprefix("$(VENV)/") for stamp in value.split()]
    assert set(done) == set(extras) > {".installed-test"}
    for target, stamps in done.items():
        assert target in stamps
        for stamp in stamps:
            assert extras[stamp] <= extras[target], f"{target} marks {stamp} as made"


def test_what_is_installed(tmp_path):
    """Types for type checkers, the page of serve, and the console command."""
    pytest.importorskip("setuptools")
    built = ("-q", "build_py", "--build-lib", tmp_path / "lib", "egg_info", "--egg-base", tmp_path)
    subprocess.run([sys.executable, "setup.py", *built], check=True, cwd=ROOT, capture_output=True)
    for name in ("py.typed", "serving/page.html", "cli/keywords.py"):
        assert (tmp_path / "lib" / "trainer" / name).is_file()
    recipes = {path.name: path.read_bytes() for path in (tmp_path / "lib/trainer/recipes").iterdir()}
    assert recipes == {path.name: path.read_bytes() for path in ROOT.glob("experiments/*.flags")}
    [entries] = tmp_path.glob("*.egg-info/entry_points.txt")
    assert "hub-trainer = trainer.main:program\n" in entries.read_text() + "\n"


def test_the_console_command_ends_as_the_module_does():
    for arguments, status in ((["--help"], 0), (["trian"], 2)):
        command = [sys.executable, "-c", "from trainer.main import program; program()", *arguments]
        module = [sys.executable, "-m", "trainer.main", *arguments]
        done, wanted = (subprocess.run(c, capture_output=True, text=True) for c in (command, module))
        assert (done.returncode, done.stdout, done.stderr) == (status, wanted.stdout, wanted.stderr)


def test_tensorflow_hub_needs_no_setuptools():
    """As in a new environment with setuptools 82 or later, or with none."""
    code = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("pkg_resources", "setuptools"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hidden())
from trainer.runtime import start_tensorflow
start_tensorflow()
from trainer.model.backbones.hub_modules import HubBackbone
from trainer.model.hub import hub
assert "pkg_resources" not in sys.modules
print(hub.__version__, hub.KerasLayer.__name__)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [importlib.metadata.version("tensorflow-hub"), "KerasLayer"]
    assert "pkg_resources" not in done.stderr  # No deprecation, either.
