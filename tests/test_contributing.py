"""CONTRIBUTING.md: what it says to do can be done."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def blocks(kind: str) -> list[str]:
    return re.findall(
        rf"^```{kind}\n(.*?)^```$", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE | re.DOTALL
    )


@pytest.mark.slow
def test_the_example_of_a_loss_is_added_as_it_says(tmp_path):
    """The diff and the test beside it, in a copy of trainer/; the test fails where the loss is another."""
    shutil.copytree(ROOT / "trainer", tmp_path / "trainer", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "loss.diff").write_text(blocks("diff")[0])
    subprocess.run(["git", "apply", "loss.diff"], cwd=tmp_path, check=True, capture_output=True)
    (tmp_path / "test_poly.py").write_text(blocks("python")[0])
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_poly.py"]

    def passes() -> bool:
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode in (0, 1), done.stdout + done.stderr
        return done.returncode == 0

    assert passes()
    losses = tmp_path / "trainer" / "loop" / "losses.py"
    losses.write_text(losses.read_text().replace("epsilon * (1.0 - hit)", "epsilon * hit"))
    assert not passes()


def test_files_that_it_names_are_there():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    named = set(re.findall(r"`((?:trainer|tests|docs|experiments)/[\w./]+)`", text)) - {
        "tests/loop/test_poly.py"
    }
    assert len(named) > 15
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_targets_that_it_and_the_workflows_name_are_there():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    places = [ROOT / "CONTRIBUTING.md", *(ROOT / ".github").rglob("*.*")]
    named = {name for place in places for name in re.findall(r"(?:`|run: )make ([a-z-]+)", place.read_text())}
    assert {"check", "lint", "test", "test-slow"} <= named <= targets
