"""Labels of another shape pass through all but the report: source, mixing, step, predictions, exports."""

import contextlib
import csv
import io
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import trainer
from tests.conftest import call_main
from tests.helpers.plugins import forget_plugins

HELPERS = Path(__file__).parents[1] / "helpers"
NAMES = ("red", "green", "blue")
STEPS = 40


pytestmark = pytest.mark.usefixtures("figures_undrawn", "without_plugins")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Trained to the step before the report, with mixed pictures and smoothed labels."""
    forget_plugins()
    root = tmp_path_factory.mktemp("several")
    options = [
        f"--plugin={HELPERS / 'several_classes.py'}", f"--plugin={HELPERS / 'every_kind.py'}",
        "--task=several", "--source=lights:40", "--backbone=tiny:8", "--image_size=8", "--head=linear",
        "--splits=24,8,8", "--batch_size=4", f"--phase=for={STEPS}steps; train=all; lr=0.03",
        "--augment=mixup(0.1)",
        f"--callbacks=leaves({STEPS})", "--label_smoothing=0.1", "--early_stop=accuracy", "--patience=99",
        "--evaluate_every=10steps", "--save_every=10steps", "--figures_every=", "--embeddings=0",
        "--precision=float32", f"--workdir={root / 'run'}",
    ]  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        assert call_main("train", *options) == 75
        source = trainer.prepare(**{"plugin": options[0].partition("=")[2], "task": "several"},
                                 source="lights:40", splits="24,8,8", batch_size=4).source  # fmt: skip
    for name, data in ((source.ids[i], source.read(i)) for i in range(40)):
        (root / name).write_bytes(data)
    return SimpleNamespace(root=root, workdir=root / "run", labels=source.labels, options=options)


def test_it_learns_and_is_measured_by_its_own_rule(run):
    lines = [json.loads(line) for line in (run.workdir / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["split"] == "validation"]
    # Three classes at even chances cost 3 log(2).
    assert losses[-1] < 1.5 < 3 * np.log(2)
    assert lines[-1]["accuracy"] * 8 == pytest.approx(round(lines[-1]["accuracy"] * 8), abs=1e-5)
    assert lines[-1]["accuracy"] > 1 / 2**3


def test_the_record_of_the_splits_has_all_classes_of_a_picture(run):
    splits = json.loads((run.workdir / "splits.json").read_text())
    [row] = [row for rows in splits["splits"].values() for row in rows if row[0] == "000.png"]
    assert row[1] == "+".join(name for name, on in zip(NAMES, run.labels[0], strict=True) if on)


def predicted(run, run_main, *options):
    paths = [run.root / f"{i:03d}.png" for i in range(40)]
    status, out, err = run_main("predict", "--format=csv", *options, *paths)
    assert status == 0, err
    return list(csv.DictReader(io.StringIO(out)))


def test_predictions_name_all_that_is_likely(run, run_main):
    rows = predicted(run, run_main, f"--workdir={run.workdir}", "--checkpoint=latest")
    for row in rows:
        shares = {name: float(row[f"probability_{name}"]) for name in NAMES}
        assert row["prediction"] == "+".join(name for name in NAMES if shares[name] >= 0.5)
        least = min(max(share, 1 - share) for share in shares.values())
        assert float(row["probability"]) == pytest.approx(least, abs=2e-6)
    assert len({row["prediction"] for row in rows}) > 2


@pytest.mark.slow
def test_it_is_explained_and_exported(run, run_main, tmp_path):
    options = [f"--workdir={run.workdir}", "--checkpoint=latest"]
    folder = tmp_path / "why"
    status, _, err = run_main("explain", run.root / "000.png", *options, f"--output={folder}")
    assert status == 0, err
    [line] = map(json.loads, (folder / "explain.jsonl").read_text().splitlines())
    rows = predicted(run, run_main, *options)
    assert (line["label"], line["explained_class"]) == (rows[0]["prediction"], "green")
    status, _, err = run_main(
        "export", *options, f"--export_dir={tmp_path / 'x'}", "--formats=saved_model,float32"
    )
    assert status == 0, err
    parity = json.loads((tmp_path / "x" / "parity.json").read_text())
    assert [model["agreement"] for model in parity["models"]] == [1.0] * 4
    lines = [json.loads(line) for line in (run.workdir / "metrics.jsonl").read_text().splitlines()]
    # A picture is right where all of its classes are.
    for found in (parity["network"], *parity["models"]):
        assert found["accuracy"] == pytest.approx(lines[-1]["accuracy"])
    plugin = run.options[0]
    of_model = predicted(run, run_main, f"--model={tmp_path / 'x' / 'float32.tflite'}", plugin)
    assert [row["prediction"] for row in of_model] == [row["prediction"] for row in rows]


def test_what_does_not_go_with_it_is_said_at_once(run, run_main, tmp_path):
    options = [option for option in run.options if not option.startswith("--workdir")]
    for option, message in (
        ("--early_stop=auc", "--early_stop=auc is not one of loss, accuracy"),
        ("--loss=focal(2)", "--loss=focal(2): it is for examples of one class each"),
    ):
        status, _, err = run_main(*options, option, f"--workdir={tmp_path / 'run'}")
        assert (status, err[: len("trainer: ") + len(message)]) == (2, f"trainer: {message}")
