"""What stands in examples/ and in docs/python.md is run as it stands there."""

import ast
import functools
import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest

import trainer
from tests.conftest import make_flower_folder

pytestmark = pytest.mark.usefixtures("figures_undrawn")

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"
SMALL = {"image_size": 8, "head": "linear", "splits": "60%,20%,20%", "batch_size": 4, "precision": "float32"}


def run_cell(source: str, names: dict) -> object:
    """Runs a cell as a notebook does, and returns the value of its last expression, which would be shown."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names) if last else None


@pytest.fixture(scope="module")
def cells():
    """The cells of code of the notebook."""
    notebook = json.loads(NOTEBOOK.read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    # As it is before it was run.
    assert all((cell["outputs"], cell["execution_count"]) == ([], None) for cell in code)
    return ["".join(cell["source"]) for cell in code]


@pytest.mark.parametrize("is_whole", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_the_notebook(cells, is_whole, tmp_path, monkeypatch):
    """As it stands there, or with fewer pictures and epochs, which learns little."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    names = {"__name__": "__main__"}
    if not is_whole:
        for large, small in (
            ('"synthetic_examples": 200', '"synthetic_examples": 60'),
            ("8epochs", "2epochs"),
        ):
            assert large in cells[0]
            cells = [cells[0].replace(large, small), *cells[1:]]
    shown = [run_cell(cell, names) for cell in cells]
    run = names["run"]
    assert shown[0] is run
    # Five kinds of flowers: far better than a guess.
    assert run.metrics["accuracy"] > (0.4 if is_whole else 0)
    assert len(names["validation"]) == (8 if is_whole else 2)
    assert shown[2][0] == (names["prediction"].label, names["prediction"].probability)
    assert names["explained"].file == tmp_path / "runs" / "quickstart" / "explain" / "0001-flower.png"
    assert names["explained"].label == names["prediction"].label
    # That of the weights which were the best by it.
    assert shown[-1] == pytest.approx(max(line["accuracy"] for line in names["validation"]), abs=1e-6)


@pytest.fixture(scope="module")
def custom_loop():
    spec = importlib.util.spec_from_file_location("custom_loop", ROOT / "examples" / "custom_loop.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_loop_of_ones_own(custom_loop, tiny_backbone, tmp_path):
    """With the same optimizer, its losses are those of our own loop, step for step."""
    options = {
        **SMALL, "source": f"folder:{make_flower_folder(tmp_path / 'photos')}",
        "backbone": f"savedmodel:{tiny_backbone}", "seed": 3,
    }  # fmt: skip
    made = trainer.prepare(**options)
    names = made.classifier.named_variables
    before = {name: variable.numpy() for name, variable in names.items()}
    found = custom_loop.train(made, epochs=3, learning_rate=0.05)
    changed = {name for name, variable in names.items() if (variable.numpy() != before[name]).any()}
    assert changed == {"head/logits/kernel", "head/logits/bias"}
    run = trainer.train(
        **options, schedule="frozen", frozen_for="3epochs", frozen_learning_rate=0.05, log_every="1steps",
        embeddings=0, workdir=tmp_path / "run",
    )  # fmt: skip
    steps = [line["loss"] for line in run.history if line["split"] == "train"]
    validation = [line["accuracy"] for line in run.history if line["split"] == "validation"]
    assert len(steps) == 9
    assert [epoch["loss"] for epoch in found] == pytest.approx(
        np.reshape(steps, [3, 3]).mean(axis=1), rel=1e-5
    )
    assert [epoch["accuracy"] for epoch in found] == pytest.approx(validation)


def test_a_loop_of_ones_own_is_a_page(custom_loop):
    [function] = [
        node
        for node in ast.parse(Path(custom_loop.__file__).read_text()).body
        if isinstance(node, ast.FunctionDef)
    ]
    assert function.end_lineno - function.lineno < 40


@pytest.mark.slow
def test_the_page_on_python(tiny_backbone, tmp_path, monkeypatch, capsys):
    """Its blocks, one after another, with a smaller network."""
    monkeypatch.chdir(tmp_path)
    make_flower_folder("flower_photos")
    make_flower_folder("new_photos", n=1)
    small = {**SMALL, "backbone": f"savedmodel:{tiny_backbone}", "embeddings": 0, "frozen_for": "2epochs"}
    monkeypatch.setattr(trainer, "train", functools.partial(trainer.train, **small))
    blocks = [
        block
        for page in ("docs/python.md", "README.md")
        for block in re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    ]
    assert len(blocks) == 4
    names: dict = {}
    for block in blocks:
        exec(block, names)
    *lines, of_readme = capsys.readouterr().out.splitlines()
    assert of_readme == f"{names['run'].metrics['accuracy']} {lines[5]}"
    assert lines[0].endswith(f" {tmp_path}/runs/mine/report/index.html")
    assert [line.split()[0] for line in lines[1:4]] == [
        f"new_photos/{name}/000.jpg" for name in ("blue", "green", "red")
    ]
    assert f"{tmp_path}/runs/mine/export/saved_model" in lines[4]
    assert lines[5] in ("red", "green", "blue")
    assert lines[6].startswith("--schedule=frozzen")
    assert len(names["drawn"]) == 3
