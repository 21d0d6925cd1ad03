"""A task from outside, through the door: trained, evaluated, predicted, explained, exported."""

import contextlib
import csv
import io
import json
import shutil
from types import SimpleNamespace

import pytest

import trainer
from tests.conftest import call_main, make_flower_folder
from tests.helpers.plugins import forget_plugins
from tests.helpers.undrawn import PLAIN

NAMES = ["blue", "green", "red"]
LEAST = 0.6
# Predicts the first class wherever the network is not sure.
PLUGIN = """
import tensorflow as tf

import trainer
from trainer.tasks import OneClass


@trainer.register.task("cautious")
class Cautious(OneClass):
    \"\"\"The first class, unless another one has at least this probability.\"\"\"

    def __init__(self, least: float = 0.5):
        self.least = least

    def decide(self, probabilities):
        best = tf.argmax(probabilities, axis=1, output_type=tf.int64)
        sure = tf.reduce_max(probabilities, axis=1) >= tf.cast(self.least, probabilities.dtype)
        return tf.where(sure, best, tf.zeros_like(best))
"""


pytestmark = pytest.mark.usefixtures("figures_undrawn", "without_plugins")


@pytest.fixture(scope="module")
def run(tiny_backbone, tmp_path_factory):
    """A run of a task that no file of ours knows, which is not sure of much yet."""
    forget_plugins()
    root = tmp_path_factory.mktemp("task")
    source, workdir, plugin = make_flower_folder(root / "source", n=16), root / "run", root / "mine.py"
    plugin.write_text(PLUGIN)
    options = [
        f"--plugin={plugin}", f"--task=cautious({LEAST})", f"--source=folder:{source}", "--image_size=8",
        f"--backbone=savedmodel:{tiny_backbone}", "--head=linear", "--splits=50%,25%,25%", "--batch_size=4",
        "--schedule=frozen", "--frozen_for=3epochs", "--frozen_learning_rate=0.03", *PLAIN,
        "--precision=float32", f"--workdir={workdir}",
    ]  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        assert call_main("train", *options) == 0
    return SimpleNamespace(root=root, source=source, workdir=workdir, plugin=plugin, options=options)


def decided(row):
    """Returns what the rule says of a line of a CSV with probabilities."""
    shares = [float(row[f"probability_{name}"]) for name in NAMES]
    return NAMES[shares.index(max(shares))] if max(shares) >= LEAST else NAMES[0]


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_the_report_goes_by_its_decision(run):
    rows = rows_of(run.workdir / "report" / "predictions.csv")
    assert [row["prediction"] for row in rows] == [decided(row) for row in rows]
    best = [max(NAMES, key=lambda name, row=row: float(row[f"probability_{name}"])) for row in rows]
    # Else all of this would say nothing.
    assert best != [row["prediction"] for row in rows]
    values = json.loads((run.workdir / "report" / "metrics.json").read_text())
    right = [row["label"] == row["prediction"] for row in rows]
    assert (values["num_correct"], values["accuracy"]) == (sum(right), sum(right) / len(rows))
    said = [values["confusion_matrix"][NAMES.index(name)] for name in NAMES]
    assert [sum(column) for column in zip(*said, strict=True)] == [
        sum(row["prediction"] == name for row in rows) for name in NAMES
    ]


def test_so_does_what_is_measured_under_way(run, run_main, tmp_path):
    report = tmp_path / "validation"
    status, _, err = run_main(
        "evaluate", f"--workdir={run.workdir}", "--eval_split=validation", f"--report_dir={report}"
    )
    assert (status, err) == (0, "")
    rows = rows_of(report / "predictions.csv")
    right = sum(row["label"] == decided(row) for row in rows) / len(rows)
    step = json.loads((report / "metrics.json").read_text())["step"]
    lines = map(json.loads, (run.workdir / "metrics.jsonl").read_text().splitlines())
    [line] = [line for line in lines if (line["split"], line["step"]) == ("validation", step)]
    assert line["accuracy"] == pytest.approx(right)


def test_it_predicts_from_the_workdir_alone(run, run_main, tmp_path):
    output = tmp_path / "found.csv"
    status, _, err = run_main("predict", run.source, f"--workdir={run.workdir}", f"--output={output}")
    assert (status, "cannot" in err) == (0, False)
    rows = rows_of(output)
    assert [row["prediction"] for row in rows] == [decided(row) for row in rows]
    assert "blue" in {
        row["prediction"] for row in rows if max(by_class(row), key=by_class(row).get) != "blue"
    }
    # What is shown is the probability of the prediction, not the highest.
    assert all(row["probability"] == row[f"probability_{row['prediction']}"] for row in rows)
    forget_plugins()
    found = trainer.load(run.workdir).predict(run.source)
    assert [one.label for one in found] == [row["prediction"] for row in rows]


def by_class(row):
    return {name: float(row[f"probability_{name}"]) for name in NAMES}


def test_it_is_explained(run, run_main, tmp_path):
    folder, pictures = tmp_path / "why", sorted(run.source.rglob("*.jpg"))[::6]
    status, _, err = run_main("explain", *pictures, f"--workdir={run.workdir}", f"--output={folder}")
    assert (status, err) == (0, "")
    lines = [json.loads(line) for line in (folder / "explain.jsonl").read_text().splitlines()]
    found = trainer.load(run.workdir).predict(pictures)
    assert [(line["label"], line["probability"]) for line in lines] == [
        (one.label, one.probability) for one in found
    ]
    assert [line["explained_class"] for line in lines] == [one.label for one in found]
    # What it decides is not always the likeliest.
    assert any(one.label != max(one.probabilities, key=one.probabilities.get) for one in found)


@pytest.mark.slow
def test_it_is_exported_and_the_model_decides_alike(run, run_main, tmp_path):
    folder = tmp_path / "export"
    status, out, err = run_main(
        "export", f"--workdir={run.workdir}", f"--export_dir={folder}", "--formats=saved_model,float32"
    )
    assert (status, err) == (0, ""), out
    parity = json.loads((folder / "parity.json").read_text())
    assert [model["agreement"] for model in parity["models"]] == [1.0] * 4
    assert json.loads((folder / "export.json").read_text())["task"] == f"cautious({LEAST})"
    # Of a model, the plugin has to be named; without it nobody knows what it decides.
    forget_plugins()
    predict = ["predict", run.source, f"--model={folder / 'float32.tflite'}", "--format=csv"]
    status, _, err = run_main(*predict)
    assert (status, err.splitlines()[-1]) == (
        2, f"trainer: --task=cautious({LEAST}) is not one of single_label, multi_label",
    )  # fmt: skip
    status, out, _ = run_main(*predict, f"--plugin={run.plugin}")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert (status, [row["prediction"] for row in rows]) == (0, [decided(row) for row in rows])
    assert len(rows) == 48


def test_another_task_is_another_run(run, run_main):
    status, _, err = run_main(*run.options, "--task=cautious(0.7)")
    assert (status, f"--task was cautious({LEAST}), now cautious(0.7)" in err) == (1, True)


@pytest.mark.slow
def test_a_run_that_is_older_than_tasks_is_of_single_labels(run, run_main, tmp_path, tiny_backbone):
    workdir = tmp_path / "run"
    options = [
        option.replace(str(run.workdir), str(workdir))
        for option in run.options
        if not option.startswith(("--plugin", "--task"))
    ]
    assert run_main(*options)[0] == 0
    facts = json.loads((workdir / "run.json").read_text())
    assert facts["config"].pop("task") == "single_label"
    (workdir / "run.json").write_text(json.dumps(facts))
    scored = json.loads((workdir / "report" / "metrics.json").read_text())
    shutil.rmtree(workdir / "report")
    assert run_main("evaluate", f"--workdir={workdir}")[0] == 0
    again = json.loads((workdir / "report" / "metrics.json").read_text())
    assert (again["loss"], again["accuracy"]) == (scored["loss"], scored["accuracy"])
    # Started again, it is the same run: nothing is left to do.
    assert run_main(*options)[0] == 0


def test_a_task_that_leaves_something_unsaid_is_refused_at_once(tmp_path, run_main):
    plugin = tmp_path / "half.py"
    plugin.write_text(
        "import trainer\nfrom trainer.tasks import OneClass\n\n\n"
        "@trainer.register.task('half')\nclass Half(OneClass):\n    'All but what is decided.'\n"
    )
    status, _, err = run_main(f"--plugin={plugin}", "--task=half", f"--workdir={tmp_path / 'run'}")
    assert status == 2
    assert err == "trainer: --task=half does not say decide, which each task must\n"
