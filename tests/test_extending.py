"""Every example of docs/extending.md, in one run through the door."""

import ast
import json
import re
from pathlib import Path

import pytest

from tests.helpers.plugins import forget_plugins
from tests.helpers.research import FOLDER
from tests.record.events import scalars
from trainer import register

DOCS = Path(__file__).parents[1] / "docs"
TEXT = (DOCS / "extending.md").read_text()
EXAMPLES = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
FLAGS = re.findall(r"^## .*`(--[^`]+)`$", TEXT, re.MULTILINE)
OFFERED = {
    module: set(re.findall(r"`(\w+)`", names))
    for module, names in re.findall(r"^\| `(trainer[\w.]*)` \| (.*) \|$", TEXT, re.MULTILINE)
}


pytestmark = pytest.mark.usefixtures("figures_undrawn", "without_plugins")


def kinds(source):
    return re.findall(r"^@trainer\.register\.(\w+)\(", source, re.MULTILINE)


def imports(source):
    """Yields (module, names) of what a file imports of trainer."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "trainer":
            yield node.module, {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            yield from ((alias.name, set()) for alias in node.names if alias.name.split(".")[0] == "trainer")


def test_there_is_an_example_of_each_kind():
    assert [kinds(example) for example in EXAMPLES] == [
        [kind] for example in EXAMPLES for kind in kinds(example)
    ]
    assert sorted(kind for example in EXAMPLES for kind in kinds(example)) == sorted(register.KINDS)
    assert len(FLAGS) == len(EXAMPLES)


HELPERS = Path(__file__).parent / "helpers" / "every_kind.py"


@pytest.mark.parametrize(
    "source",
    [*EXAMPLES, HELPERS.read_text(), *(path.read_text() for path in sorted(FOLDER.glob("*.py")))],
    ids=[
        *(kinds(example)[0] for example in EXAMPLES),
        "helpers",
        *(p.stem for p in sorted(FOLDER.glob("*.py"))),
    ],
)
def test_they_import_what_is_offered(source):
    for module, names in imports(source):
        assert module in OFFERED
        assert names <= OFFERED[module]


def test_what_is_offered_is_there():
    for module, names in OFFERED.items():
        found = __import__(module, fromlist=["x"])
        assert [name for name in names if not hasattr(found, name)] == []


def test_the_examples_train_together_and_are_evaluated(tmp_path, run_main):
    options = []
    for example in EXAMPLES:
        path = tmp_path / f"{kinds(example)[0]}_example.py"
        path.write_text(example)
        options.append(f"--plugin={path}")
    workdir = tmp_path / "run"
    status, out, _ = run_main(
        *options, *FLAGS, f"--workdir={workdir}", f"--cache_dir={tmp_path / 'cache'}", "--image_size=8",
        "--splits=10,4,4", "--batch_size=4", "--schedule=two_phase", "--frozen_for=3steps",
        "--finetune_for=3steps", "--log_every=3steps", "--evaluate_every=3steps", "--precision=float32",
        "--embeddings=0",
    )  # fmt: skip
    assert status == 0, out
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    train = [line for line in lines if line["split"] == "train"]
    assert [line["step"] for line in train] == [3, 6]
    assert all({"size", "top(k=2)"} <= {*line} for line in train)
    assert [step for step, _ in scalars(workdir / "train")["kernel_norm"]] == [3, 6]
    run = json.loads((workdir / "run.json").read_text())
    assert run["class_names"] == ["dark", "grey", "bright"]
    assert len(run["plugins"]) == len(EXAMPLES)
    forget_plugins()
    scored = json.loads((workdir / "report" / "metrics.json").read_text())
    assert run_main("evaluate", f"--workdir={workdir}", f"--report_dir={tmp_path / 'again'}")[0] == 0
    again = json.loads((tmp_path / "again" / "metrics.json").read_text())
    assert (again["loss"], again["accuracy"]) == (scored["loss"], scored["accuracy"])
