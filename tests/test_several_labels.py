"""Any number of labels a picture, through the door: from training to an export and a comparison."""

import contextlib
import csv
import io
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest

import trainer
from tests.conftest import call_main
from tests.helpers.plugins import forget_plugins
from trainer.tasks.multi_label import NONE

HELPERS = Path(__file__).parent / "helpers"
NAMES = ("red", "green", "blue")
PLUGINS = (f"--plugin={HELPERS / 'several_labels.py'}", f"--plugin={HELPERS / 'every_kind.py'}")
OPTIONS = (
    *PLUGINS, "--task=multi_label", "--source=lamps:80", "--backbone=tiny:8", "--image_size=8",
    "--head=linear", "--splits=40,20,20", "--batch_size=8", "--evaluate_every=4epochs",
    "--save_every=4epochs", "--figures_every=", "--embeddings=0", "--precision=float32",
)  # fmt: skip
LEARNS = "--phase=for=16epochs; train=all; lr=0.03"

pytestmark = pytest.mark.usefixtures("figures_undrawn", "without_plugins")


def quietly(*arguments):
    with contextlib.redirect_stdout(io.StringIO()):
        return call_main(*arguments)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run, and one of another seed beside it that has learnt nothing."""
    forget_plugins()
    root = tmp_path_factory.mktemp("labels")
    from tests.helpers.undrawn import undrawn

    with undrawn():
        assert quietly("train", *OPTIONS, LEARNS, f"--workdir={root / 'good'}") == 0
        untrained = "--phase=for=1steps; train=head; lr=1e-6"
        assert quietly("train", *OPTIONS, untrained, f"--workdir={root / 'bad'}") == 0
        source = trainer.prepare(
            plugin=[option.partition("=")[2] for option in PLUGINS], task="multi_label",
            source="lamps:80", splits="40,20,20", batch_size=8, backbone="tiny:8", image_size=8,
        ).source  # fmt: skip
    pictures = root / "pictures"
    pictures.mkdir()
    for i in range(80):
        (pictures / source.ids[i]).write_bytes(source.read(i))
    forget_plugins()
    labels = {source.ids[i]: source.labels[i] for i in range(80)}
    return SimpleNamespace(root=root, workdir=root / "good", labels=labels, pictures=pictures)


def report(run):
    return json.loads((run.workdir / "report" / "metrics.json").read_text())


def table(run):
    with open(run.workdir / "report" / "predictions.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_every_split_has_its_share_of_every_label(run):
    splits = json.loads((run.workdir / "splits.json").read_text())["splits"]
    of_all = sum(run.labels.values())
    for rows in splits.values():
        of_split = sum(run.labels[name] for name, _, _ in rows)
        assert np.abs(of_split - of_all * len(rows) / 80).max() < 1.01
    words = {name: label for rows in splits.values() for name, label, _ in rows}
    assert words["000.png"] == NONE
    assert [words[f"00{i}.png"] for i in (1, 2, 3)] == list(NAMES)


def test_it_learns_and_says_so(run):
    values = report(run)
    assert values["several_labels"] is True
    assert values["map"] > 0.9
    lines = [json.loads(line) for line in (run.workdir / "metrics.jsonl").read_text().splitlines()]
    evaluated = [line for line in lines if line["split"] == "validation"]
    best = max(line["map"] for line in evaluated)
    assert [line["map"] for line in evaluated if line["step"] == values["step"]] == [best]
    assert evaluated[0].keys() >= {"loss", "accuracy", "map", "macro_f1", "micro_f1", "ap/red", "ap/blue"}
    # What the event files say of test is decided by the same thresholds as the report.
    assert lines[-1]["accuracy"] == pytest.approx(values["accuracy"], abs=1e-6)
    assert lines[-1]["macro_f1"] == pytest.approx(values["macro"]["f1"])


def test_files_of_a_report(run):
    values, rows = report(run), table(run)
    thresholds = values["thresholds"]
    recorded = json.loads((run.workdir / "report" / "calibration.json").read_text())
    assert recorded["thresholds"] == list(thresholds.values())
    assert values["thresholds_from"] == "validation, 20 pictures"
    for row in rows:
        said = [name for name in NAMES if float(row[f"probability_{name}"]) >= thresholds[name]]
        assert row["prediction"] == (", ".join(said) or NONE)
        assert [int(row[f"predicted_{name}"]) for name in NAMES] == [name in said for name in NAMES]
        truth = [int(row[f"label_{name}"]) for name in NAMES]
        assert truth == run.labels[row["id"]].tolist()
    right = sum(row["label"] == row["prediction"] for row in rows)
    assert (values["num_correct"], values["num_examples"]) == (right, 20)
    assert [row["right"] for row in rows] == [
        "true" if row["label"] == row["prediction"] else "false" for row in rows
    ]
    exact = pq.read_table(run.workdir / "report" / "predictions.parquet").to_pylist()
    assert [row["label_red"] for row in exact] == [int(row["label_red"]) for row in rows]
    page = (run.workdir / "report" / "index.html").read_text()
    assert f"mAP {values['map']:.3f}" in page
    assert all(title in page for title in ("By label", "Labels seen together", "validation, 20 pictures"))
    assert "<h2>Calibration</h2>" in page
    assert "<h2>Confusion matrix</h2>" not in page
    names = {path.stem for path in (run.workdir / "report").glob("*.png")}
    assert names >= {"cooccurrence", "reliability", "per_class", "roc_curve", "learning_curves"}


def test_evaluating_again_gives_the_same(run, run_main, tmp_path):
    before = report(run)
    status, out, err = run_main("evaluate", f"--workdir={run.workdir}")
    assert (status, err) == (0, "")
    assert f"test mAP {before['map']:.4f}, macro F1" in out
    after = report(run)
    assert after == before
    # Of another source, by the thresholds of the run; two of the labels have no pictures there.
    status, out, err = run_main(
        "evaluate", f"--workdir={run.workdir}", "--source=lamps:30", f"--report_dir={tmp_path / 'r'}",
        "--assert_at_least=map=0.5",
    )  # fmt: skip
    assert (status, err) == (0, ""), out
    others = json.loads((tmp_path / "r" / "metrics.json").read_text())
    assert others["thresholds"] == before["thresholds"]
    assert others["num_examples"] == 30


def test_a_score_that_is_too_low_fails(run, run_main):
    bad = run.root / "bad"
    status, _, err = run_main("evaluate", f"--workdir={bad}", "--assert_at_least=map=0.1,macro_f1=1")
    assert status == 1
    reached = json.loads((bad / "report" / "metrics.json").read_text())["macro"]["f1"]
    assert f"--assert_at_least=map=0.1,macro_f1=1: test macro_f1 {reached:.4f} is below 1" in err


def test_predictions_are_those_of_the_report(run, run_main):
    expected = {row["id"]: row["prediction"] for row in table(run)}
    paths = [run.pictures / name for name in expected]
    status, out, err = run_main("predict", f"--workdir={run.workdir}", "--format=jsonl", *paths)
    assert status == 0, err
    for line in map(json.loads, out.splitlines()):
        assert line["label"] == expected[Path(line["path"]).name]
        assert line["labels"] == ([] if line["label"] == NONE else line["label"].split(", "))
    status, out, err = run_main(
        "predict", f"--workdir={run.workdir}", "--format=table", "--top_k=2", paths[0]
    )
    assert status == 0, err
    [found] = trainer.load(run.workdir).predict(paths[0])
    assert found.label == expected[paths[0].name]
    assert set(found.labels or ()) <= set(NAMES)


def test_without_fitted_thresholds_it_is_a_half_and_said(run, run_main, tmp_path):
    """As of a run that has not come to its end."""
    copy = shutil.copytree(run.workdir, tmp_path / "copy")
    (copy / "report" / "calibration.json").unlink()
    picture, step = run.pictures / "001.png", report(run)["step"]
    status, out, err = run_main("predict", f"--workdir={copy}", "--format=csv", picture)
    assert status == 0
    assert f"no thresholds were fitted with the weights of step {step}: each class is predicted" in err
    [row] = csv.DictReader(io.StringIO(out))
    said = [name for name in NAMES if float(row[f"probability_{name}"]) >= 0.5]
    assert row["prediction"] == (", ".join(said) or NONE)
    status, out, _ = run_main("export", f"--workdir={copy}", "--formats=float32")
    assert status == 0
    assert f"no thresholds were fitted with the weights of step {step}: each class is predicted" in out


def test_mistakes_and_pictures_are_explained(run, run_main, tmp_path):
    status, _, err = run_main(
        "explain", f"--workdir={run.workdir}", f"--output={tmp_path / 'one'}", run.pictures / "002.png"
    )
    assert status == 0, err
    [line] = map(json.loads, (tmp_path / "one" / "explain.jsonl").read_text().splitlines())
    assert line["explained_class"] in NAMES
    bad = run.root / "bad"
    status, _, err = run_main(
        "explain", f"--workdir={bad}", f"--output={tmp_path / 'w'}", "--num_explained=2"
    )
    assert status == 0, err
    lines = [json.loads(one) for one in (tmp_path / "w" / "explain.jsonl").read_text().splitlines()]
    values = json.loads((bad / "report" / "metrics.json").read_text())
    assert [line["path"] for line in lines] == [one["id"] for one in values["worst_mistakes"][:2]]


@pytest.mark.slow
def test_exported_models_decide_by_the_same_thresholds(run, run_main, tmp_path):
    folder = tmp_path / "export"
    status, out, err = run_main(
        "export", f"--workdir={run.workdir}", f"--export_dir={folder}", "--formats=saved_model,float32"
    )
    assert (status, err) == (0, ""), out
    parity = json.loads((folder / "parity.json").read_text())
    assert [model["agreement"] for model in parity["models"]] == [1.0] * 4
    about = json.loads((folder / "export.json").read_text())
    assert about["thresholds"] == list(report(run)["thresholds"].values())
    card = (folder / "MODEL_CARD.md").read_text()
    assert "Mean average precision" in card
    assert "any of 3 classes, or none" in card
    forget_plugins()
    expected = {row["id"]: row["prediction"] for row in table(run)}
    paths = [run.pictures / name for name in expected]
    for model in ("float32.tflite", "saved_model"):
        status, out, err = run_main("predict", f"--model={folder / model}", "--format=csv", *paths)
        assert status == 0, err
        rows = list(csv.DictReader(io.StringIO(out)))
        assert {Path(row["path"]).name: row["prediction"] for row in rows} == expected


def test_runs_are_compared_by_their_mean_average_precision(run, run_main, tmp_path):
    good, bad = run.root / "good", run.root / "bad"
    output = tmp_path / "table.json"
    status, out, err = run_main("compare", bad, good, f"--output={output}")
    assert (status, err) == (0, "")
    [pair] = json.loads(output.read_text())["pairs"]
    scores = [json.loads((one / "report/metrics.json").read_text())["map"] for one in (bad, good)]
    assert pair["map_difference"] == pytest.approx(scores[0] - scores[1], abs=1e-5)
    assert pair["better"] == "good"
    assert f"good is better than bad: mAP +{scores[1] - scores[0]:.4f}, 95 % interval +" in out
    assert "paired bootstrap" in out
    assert max(map(len, out.splitlines()[:-1])) <= 100


def test_a_finished_run_says_what_it_has(run, run_main):
    status, out, err = run_main("train", *OPTIONS, LEARNS, f"--workdir={run.workdir}")
    assert (status, err) == (0, "")
    assert f"is finished: test mAP {report(run)['map']:.4f}" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--task=single_label"],
            "--source=lamps:80 has any number of labels per picture: use --task=multi_label",
        ),
        (["--loss=focal(2)"], "it is for examples of one class each"),
        (["--early_stop=auc"], "--early_stop=auc is not one of loss, accuracy, map, macro_f1, micro_f1"),
        (["--logits=one"], "--logits=one tells two classes apart, and here each class is true or not"),
        (["--task=multi_label(1)"], "threshold=1"),
    ],
)
def test_what_does_not_go_together_is_said_at_once(run_main, tmp_path, options, message):
    status, _, err = run_main("train", *OPTIONS, LEARNS, *options, f"--workdir={tmp_path / 'run'}")
    assert status == 2
    assert message in err


@pytest.mark.slow
def test_a_run_that_is_stopped_and_sampled_goes_on_to_the_same_numbers(run_main, tmp_path):
    """Kept features and a frozen head, then fine-tuning; asymmetric loss; rare labels seen more often."""
    phases = [
        "--phase=name=a; for=6steps; train=head; lr=0.05",
        "--phase=name=b; for=6steps; train=all; lr=0.01; augment=flip",
    ]
    options = [
        *OPTIONS, *phases, "--sampling=balanced", "--loss=asymmetric(2,1,0.05)", "--evaluate_every=4steps",
        "--save_every=2steps", "--log_every=2steps", f"--plugin={HELPERS / 'several_classes.py'}",
    ]  # fmt: skip
    status, out, err = run_main("train", *options, f"--workdir={tmp_path / 'whole'}")
    assert (status, err) == (0, ""), out
    # In the middle of an epoch of fine-tuning.
    status, _, _ = run_main("train", *options, "--callbacks=leaves(9)", f"--workdir={tmp_path / 'parts'}")
    assert status == 75
    status, out, err = run_main("train", *options, f"--workdir={tmp_path / 'parts'}")
    assert (status, err) == (0, ""), out
    whole, parts = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "parts")
    )
    assert whole == parts
    values = json.loads((tmp_path / "whole" / "report" / "metrics.json").read_text())
    assumed = values["assumed_prevalence"]
    assert assumed["why"] == "--sampling=balanced"
    # Blue is the rarest: it is seen more often than the pictures have it.
    assert assumed["classes"]["blue"]["assumed"] > 1.5 * assumed["classes"]["blue"]["train"]
    assert "Assumed shares" in (tmp_path / "whole" / "report" / "index.html").read_text()


@pytest.mark.slow
def test_folds_are_pooled_label_by_label(tmp_path):
    """What the report of all folds says, counted here from the predictions of each."""
    options = [option for option in OPTIONS if not option.startswith("--splits=")]
    phase = "--phase=for=4epochs; train=all; lr=0.03"
    asked = ("--folds=3", phase, "--metrics=confidence", f"--workdir={tmp_path}")
    assert quietly("cross_validate", *options, *asked) == 0
    of_folds = [tmp_path / f"fold-{number}" / "report" for number in (1, 2, 3)]
    seen = {
        row["id"]: row["prediction"]
        for folder in of_folds
        for row in pq.read_table(folder / "predictions.parquet").to_pylist()
    }
    pooled = json.loads((tmp_path / "report" / "metrics.json").read_text())
    rows = pq.read_table(tmp_path / "report" / "predictions.parquet").to_pylist()
    assert {row["id"]: row["prediction"] for row in rows} == seen
    assert len(rows) == len(seen) == 80
    # Each fold has decided by thresholds of its own.
    reports = [json.loads((folder / "metrics.json").read_text()) for folder in of_folds]
    assert len({tuple(report["thresholds"].values()) for report in reports}) > 1
    assert (pooled["num_examples"], pooled["num_correct"]) == (80, sum(r["num_correct"] for r in reports))
    assert "thresholds" not in pooled
    # The folds are of 27, 27 and 26 pictures.
    total = sum(report["num_examples"] * report["metrics"]["confidence"] for report in reports)
    assert pooled["metrics"] == {"confidence": pytest.approx(total / 80)}
    page = (tmp_path / "report" / "index.html").read_text()
    assert "was fitted on the validation split of the fold that was asked" in page
    result = json.loads((tmp_path / "cross_validation.json").read_text())
    assert result["pooled"]["mAP"] == pooled["map"]
    assert [fold["confidence"] for fold in result["folds"]] == [r["metrics"]["confidence"] for r in reports]
    assert [fold["mAP"] for fold in result["folds"]] == [
        json.loads((tmp_path / f"fold-{number}" / "report" / "metrics.json").read_text())["map"]
        for number in (1, 2, 3)
    ]


@pytest.mark.parametrize("verb", ["audit", "learning_curve"])
def test_verbs_for_one_class_each_say_so(verb, run_main, tmp_path):
    status, _, err = run_main(verb, *OPTIONS, f"--workdir={tmp_path / 'looked'}")
    told = f"trainer: {verb} is for labels of one class each, and --task=multi_label has others\n"
    assert (status, err) == (2, told)
