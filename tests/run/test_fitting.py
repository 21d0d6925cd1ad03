"""Heads that are fitted, and what every report is compared with, through the door."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

import trainer
from tests.conftest import call_main, make_flower_folder
from tests.helpers.feature_runs import left, predictions, weights
from tests.helpers.undrawn import PLAIN
from trainer.record.workdir import Workdir
from trainer.run import fitting, session
from trainer.run.experiment import Experiment

pytestmark = pytest.mark.usefixtures("figures_undrawn")
NAMES = ["blue", "green", "red"]


@pytest.fixture(scope="module")
def door(tiny_backbone, tmp_path_factory):
    """run(name, *flags) -> a run on 36 pictures of three colours, with 12 to validate and 12 to test."""
    root = tmp_path_factory.mktemp("fitting")
    source = make_flower_folder(root / "source", n=20)

    def run(name, *flags):
        options = (
            f"--source=folder:{source}", f"--backbone=savedmodel:{tiny_backbone}", "--image_size=8",
            "--splits=60%,20%,20%", "--batch_size=4", "--precision=float32", *PLAIN, *flags,
        )  # fmt: skip
        status = call_main("train", *options, f"--workdir={root / name}")
        return SimpleNamespace(status=status, workdir=root / name, options=options, source=source)

    return run


@pytest.fixture(scope="module")
def probe(door):
    return door("probe", "--head=probe(1)")


@pytest.fixture(scope="module")
def knn(door):
    return door("knn", "--head=knn(3,0.5)")


def values(run, folder="report"):
    return json.loads((run.workdir / folder / "metrics.json").read_text())


def features(run, split):
    """Features, red + blue and green + blue, of the pictures of a split as the run has divided them."""
    experiment = Experiment(Workdir(str(run.workdir)).read_config())
    batches = experiment.pipeline.once(experiment.splits.indices[split])
    rows = [(b["image"].numpy()[b["mask"] > 0], b["label"].numpy()[b["mask"] > 0]) for b in batches]
    pixels, labels = (np.concatenate(part) for part in zip(*rows, strict=True))
    means = pixels.astype(np.float64).mean(axis=(1, 2))
    return means[:, :2] + means[:, 2:], labels


def scikit_learns(run, split, strength=1.0):
    """Returns the probabilities [N, K] of logistic regression, and the labels of a split."""
    scaler = StandardScaler().fit(features(run, "train")[0])
    model = LogisticRegression(C=strength, max_iter=200)
    model.fit(scaler.transform(features(run, "train")[0]), features(run, "train")[1])
    inputs, labels = features(run, split)
    return model.predict_proba(scaler.transform(inputs)), labels


def by_hand(run, split, k, temperature):
    """Returns the probabilities [N, K] of the k nearest neighbours, and the labels of a split."""
    (kept, classes), (inputs, labels) = features(run, "train"), features(run, split)
    kept, inputs = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (kept, inputs))
    rows = []
    for cosines in inputs @ kept.T:
        nearest = np.argsort(-cosines, kind="stable")[:k]
        votes = np.exp((cosines[nearest] - cosines[nearest[0]]) / temperature)
        shares = np.bincount(classes[nearest], votes, minlength=3)
        rows.append((shares + 1 / 3) / (votes.sum() + 1))
    return np.stack(rows), labels


def test_a_probe_gives_what_scikit_learn_does(probe):
    expected, labels = scikit_learns(probe, "test")
    np.testing.assert_allclose(predictions(probe.workdir)[1], expected, atol=1e-4)
    found = values(probe)
    assert found["num_correct"] == (expected.argmax(axis=1) == labels).sum()
    assert (found["step"], found["schedule"], found["phases"]) == (1, "fit", ["fit: nothing trains"])


def test_neighbours_give_what_is_worked_out_by_hand(knn):
    expected, labels = by_hand(knn, "test", 3, 0.5)
    np.testing.assert_allclose(predictions(knn.workdir)[1], expected, atol=1e-4)
    assert values(knn)["num_correct"] == (expected.argmax(axis=1) == labels).sum()


@pytest.mark.parametrize("name", ["probe", "knn"])
def test_all_commands_take_such_a_run(request, name, tmp_path, run_main):
    run = request.getfixturevalue(name)
    rows, shares = predictions(run.workdir)
    picture = run.source / rows[0][0]
    (prediction,) = trainer.load(run.workdir).predict(picture)
    np.testing.assert_allclose([prediction.probabilities[one] for one in NAMES], shares[0], atol=1e-5)
    for command in (
        ("evaluate", "--eval_split=validation"),
        ("explain", picture, f"--output={tmp_path / 'explained'}"),
        ("export", f"--export_dir={tmp_path / 'exported'}"),
    ):
        status, _, err = run_main(*command, f"--workdir={run.workdir}")
        assert (status, err) == (0, "")
    models = [tmp_path / "exported" / "saved_model", *(tmp_path / "exported").glob("*.tflite")]
    assert len(models) > 1
    for model in models:
        status, out, err = run_main("predict", f"--model={model}", picture)
        assert (status, err) == (0, "")
        assert rows[0][2] in out
    status, out, _ = run_main("train", *run.options, f"--workdir={run.workdir}")
    assert status == 0
    assert "is finished: test accuracy" in out


def test_the_head_of_a_fit_is_what_updates_begin_with(door, probe):
    tuned = door("tuned", "--head=probe(1)", "--phase=for=1steps; train=all; lr=0; average=ema(0.9)")
    assert tuned.status == 0
    np.testing.assert_array_equal(predictions(tuned.workdir)[1], predictions(probe.workdir)[1])


def kernel(run):
    [name] = [name for name in weights(run.workdir) if "model" in name and "kernel" in name and "logits" in name]
    return weights(run.workdir)[name]
