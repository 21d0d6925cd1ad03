"""Models run in a process of their own: what goes there, what comes back, and what goes wrong."""

import ast
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from trainer.export import check_model
from trainer.export import fresh_process as fresh
from trainer.export.folder import put_in_place
from trainer.export.fresh_process import is_known, run_model
from trainer.values import TrainerError

# Stands for a model whose probabilities are the first pixel of a picture; it says where it was run, too.
STUB = """
import os, sys
import numpy as np
kind, model, height, width, batch_size, output = sys.argv[1:]
sizes, rows = [], []
while head := sys.stdin.buffer.read(4):
    sizes.append(len(sys.stdin.buffer.read(int.from_bytes(head, "little"))))
    pixels = np.frombuffer(sys.stdin.buffer.read(int(height) * int(width) * 12), "<f4")
    rows.append(pixels[:3])
    if os.path.exists(model):
        exec(open(model).read())
np.savez(output, way_probabilities=np.array(rows), way_class_ids=np.array(sizes), way_images_per_second=7.0)
"""


def pictures(count=3):
    return [(b"x" * (10 + i), np.full([4, 5, 3], i, np.float32)) for i in range(count)]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """run(code of the model, pictures, ...) with the stub; code runs behind the first picture."""
    (tmp_path / "stub.py").write_text(STUB)
    monkeypatch.setattr(check_model, "__file__", str(tmp_path / "stub.py"))

    def run(code, given, name="model", **options):
        (tmp_path / name).write_text(code)
        return run_model(tmp_path / name, given, size_px=(4, 5), **options)

    return run


def test_pictures_go_there_in_order_and_answers_come_back(run):
    told = []
    [(way, answers)] = run("", iter(pictures()), watch=told.append).items()
    assert (way, answers.images_per_second) == ("way", 7.0)
    assert answers.probabilities.tolist() == [[0, 0, 0], [1, 1, 1], [2, 2, 2]]
    assert answers.class_ids.tolist() == [10, 11, 12]
    assert told == [1, 1, 1]
    [answers] = run("", pictures(), name="model.tflite").values()
    assert answers.class_ids.tolist() == [10, 11, 12]


def test_without_an_ending_only_a_saved_model_is_known(tmp_path):
    (tmp_path / "grey").write_text("")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "saved_model.pb").write_text("")
    names = ("grey", "model", "a.tflite", "a.onnx", "a.csv")
    assert [name for name in names if is_known(tmp_path / name)] == ["model", "a.tflite", "a.onnx"]


def test_pictures_are_made_as_they_are_taken(run):
    given = 0

    def many():
        nonlocal given
        for one in pictures(1) * 4000:
            given += 1
            yield one[0], np.zeros([4, 5, 3], np.float32)

    with pytest.raises(TrainerError, match="exit status 3"):
        run("sys.stdin.buffer.close(); os._exit(3)", many())
    assert given < 4000  # What a pipe holds.


def test_the_process_knows_nothing_of_this_one(run, monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", str(Path(fresh.__file__).parents[2]))
    monkeypatch.setenv("TF_USE_LEGACY_KERAS", "1")
    code = f"""
ours = [name for name in sys.modules if name.split(".")[0] == "trainer"]
found = [os.getcwd(), sys.flags.isolated, sorted(os.environ), ours, sys.path]
open({str(tmp_path / "found")!r}, "w").write(repr(found))"""
    run(code, pictures(1))
    where, isolated, environment, modules, path = ast.literal_eval((tmp_path / "found").read_text())
    assert (Path(where).exists(), isolated, modules) == (False, 1, [])
    assert not {"PYTHONPATH", "TF_USE_LEGACY_KERAS"} & set(environment)
    assert str(Path(fresh.__file__).parents[2]) not in path


def test_the_program_imports_nothing_of_ours():
    tree = ast.parse(Path(check_model.__file__).read_text())
    statements = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {getattr(node, "module", None) or node.names[0].name for node in statements}
    assert names == {
        "importlib.util",
        "os",
        "sys",
        "time",
        "collections.abc",
        "typing",
        "numpy",
        "tensorflow",
        "ai_edge_litert.interpreter",
        "onnxruntime",
    }


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise ValueError('a wrong\\n shape')", "model does not run in a process of its own:  shape"),
        ("os._exit(3)", "exit status 3"),
        ("os.kill(os.getpid(), 9)", "killed by SIGKILL: too little memory, it seems"),
        ("os.kill(os.getpid(), 11)", "killed by SIGSEGV"),
        ("rows.clear(); sizes.clear()", r"model \(way\) answers 0 of 3 pictures"),
    ],
)
def test_a_process_that_fails(code, message, run):
    with pytest.raises(TrainerError, match=message):
        run(code if "clear" not in code else f"if len(rows) == 3:\n    {code}", pictures())


@pytest.mark.parametrize("count", [1, 4000])
def test_a_process_that_hangs_is_ended(count, run):
    begun = time.monotonic()
    with pytest.raises(TrainerError, match=r"model does not run .*: nothing happened for 0.5 s"):
        run("__import__('time').sleep(60)", pictures(1) * count, patience_secs=0.5)
    assert time.monotonic() - begun < 30


def test_a_python_that_cannot_be_started_is_no_fault_of_the_folder(run, tmp_path, monkeypatch):
    (tmp_path / "python").write_text("")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with (
        pytest.raises(
            TrainerError, match=r"^Python cannot be started as a process of its own, .*: Perm"
        ) as caught,
        put_in_place(tmp_path / "export"),
    ):
        run("", pictures())
    assert str(caught.value).endswith(f"Permission denied: {tmp_path / 'python'}")
    assert not (tmp_path / "export").exists()
