"""Heads that are fitted, and what every report is compared with, through the door."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

import trainer
from tests.conftest import call_main, make_flower_folder
from tests.helpers.feature_runs import left, predictions
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


def page_of(run):
    return (run.workdir / "report" / "index.html").read_text()


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


@pytest.mark.slow
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


@pytest.mark.parametrize("name", ["probe", pytest.param("knn", marks=pytest.mark.slow)])
@pytest.mark.slow
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
        # TensorFlow's converter writes a line there.
        assert (status, "error" in err) == (0, False)
    models = [tmp_path / "exported" / "saved_model", *(tmp_path / "exported").glob("*.tflite")]
    assert len(models) > 1
    for model in models:
        status, out, _ = run_main("predict", f"--model={model}", picture)
        assert status == 0
        assert rows[0][2] in out
    status, out, _ = run_main("train", *run.options, f"--workdir={run.workdir}")
    assert status == 0
    assert "is finished: test accuracy" in out


@pytest.mark.slow
def test_the_head_of_a_fit_is_what_updates_begin_with(door, probe):
    tuned = door("tuned", "--head=probe(1)", "--phase=for=1steps; train=all; lr=0; average=ema(0.9)")
    assert tuned.status == 0
    np.testing.assert_array_equal(predictions(tuned.workdir)[1], predictions(probe.workdir)[1])


def test_a_head_of_another_run_is_not_fitted_anew(door, probe, capsys):
    # What it would be fitted to is the same, and would come to something else.
    still = ("--head=probe(0.001)", "--phase=for=1steps; train=head; lr=0", f"--init_from={probe.workdir}")
    taken = door("taken", *still)
    assert (taken.status, "logistic regression, C=0.001" in capsys.readouterr().out) == (0, False)
    np.testing.assert_array_equal(predictions(taken.workdir)[1], predictions(probe.workdir)[1])
    fitted = door("fitted", *still, "--init_part=backbone")
    assert (fitted.status, "logistic regression, C=0.001, on 36" in capsys.readouterr().out) == (0, True)
    assert np.abs(predictions(fitted.workdir)[1] - predictions(probe.workdir)[1]).max() > 0.01


def test_where_there_is_nothing_but_a_fit_the_head_is_fitted_whatever_was_taken(door, probe):
    """A network of another run, and a head of these pictures."""
    anew = door("anew", "--head=probe(0.001)", f"--init_from={probe.workdir}")
    alone = door("of_itself", "--head=probe(0.001)")
    assert (anew.status, alone.status) == (0, 0)
    np.testing.assert_array_equal(predictions(anew.workdir)[1], predictions(alone.workdir)[1])


def compared_with(probabilities, labels, of_run):
    right = probabilities.argmax(axis=1) == labels
    counts = {"num_correct": int(right.sum()), "num_examples": len(labels), "accuracy": right.mean()}
    better, worse = int((of_run & ~right).sum()), int((right & ~of_run).sum())
    # All that differ are coins, of which at least so many fall on one side.
    coins, fewer = better + worse, min(better, worse)
    p_value = min(1.0, 2 * sum(math.comb(coins, k) for k in range(fewer + 1)) / 2**coins)
    return {**counts, "only_run": better, "only_this": worse, "p_value": pytest.approx(p_value)}


@pytest.mark.slow
def test_every_report_shows_what_the_pretrained_network_could(door, run_main):
    """Fine-tuned at a rate that ruins the network, the run is beside what the network was before."""
    run = door(
        "ruined",
        "--head=linear",
        "--schedule=finetune",
        "--finetune_learning_rate=1",
        "--finetune_for=1epochs",
    )
    beside = values(run)["pretrained"]
    run_main("evaluate", f"--workdir={run.workdir}", "--eval_split=validation")
    strength = float(beside["linear_probe"]["how"].split("C=")[1].split(",")[0])
    for split, folder in (("test", "report"), ("validation", "report/validation")):
        found = values(run, folder)["pretrained"]
        of_run = np.array(
            [
                row[1] == row[2]
                for row in predictions(run.workdir, folder.removeprefix("report").strip("/"))[0]
            ]
        )
        expected = {
            "linear_probe": compared_with(*scikit_learns(run, split, strength), of_run),
            "knn": compared_with(*by_hand(run, split, 20, 0.07), of_run),
        }
        assert found["knn"]["only_this"] > 0
        assert {key: {name: found[key][name] for name in one} for key, one in expected.items()} == expected
        assert found["linear_probe"]["num_fitted"] == 36
    page = page_of(run)
    assert "<h2>Beside the pretrained network</h2>" in page
    assert "logistic regression, C=" in page
    assert f"the linear probe {beside['linear_probe']['only_this']:,}: more than chance (p=" in page
    run_main("evaluate", f"--workdir={run.workdir}", "--eval_split=train")
    why = {"why_not": "these are the pictures that it was fitted to"}
    assert values(run, "report/train")["pretrained"] == {"linear_probe": why, "knn": why}


def test_the_run_of_a_probe_is_the_probe_beside_it(door):
    run = door("alone", "--head=probe")
    found = values(run)
    assert {name: found["pretrained"]["linear_probe"][name] for name in ("num_correct", "loss")} == {
        "num_correct": found["num_correct"],
        "loss": pytest.approx(found["loss"], rel=1e-5),
    }
    same = {"only_run": 0, "only_this": 0, "p_value": 1.0}
    assert {name: found["pretrained"]["linear_probe"][name] for name in same} == same
    assert "The run and the linear probe have the same pictures right." in page_of(run)


@pytest.mark.parametrize(
    "schedule",
    ["frozen", *(pytest.param(name, marks=pytest.mark.slow) for name in ("finetune", "two_phase"))],
)
@pytest.mark.slow
def test_no_number_of_a_run_depends_on_the_comparison(door, schedule):
    """What a run leaves is the same without it, to the last bit, but for the lines about it."""
    flags = ("--head=mlp(4)", f"--schedule={schedule}", "--frozen_for=2epochs", "--finetune_for=2epochs")
    flags = (*flags, "--dropout=0.3", "--augment=flip") if schedule == "finetune" else flags
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "record_pretrained", lambda features, workdir: None)
        without = left(door(f"{schedule}_without", *flags).workdir)
    with_it = left(door(f"{schedule}_with", *flags).workdir)
    lines = ("metrics.json", "index.html", "report_manifest.json")
    assert with_it.keys() == without.keys()
    assert [name for name in with_it if with_it[name] != without[name] and name not in lines] == []
    assert with_it["metrics.json"] != without["metrics.json"]


@pytest.mark.slow
def test_what_would_cost_too_much_is_left_out_with_the_reason(door, monkeypatch, capsys):
    monkeypatch.setattr(fitting, "ALWAYS_CHEAP", 0)
    flags = ("--head=linear", "--schedule=finetune")
    run = door("dear", *flags, "--finetune_for=19steps")
    why = "training does not need the features of 60 pictures, and to compute them takes more than 25% of it"
    assert values(run)["pretrained"] == {"linear_probe": {"why_not": why}, "knn": {"why_not": why}}
    assert f"pretrained:  no linear probe: {why}" in capsys.readouterr().out
    assert (
        f"No linear probe and nearest neighbours: {why}." in (run.workdir / "report/index.html").read_text()
    )
    # 20 updates of 4 pictures, each in three passes, are four times as many as 60.
    assert "accuracy" in values(door("cheap", *flags, "--finetune_for=20steps"))["pretrained"]["knn"]
    # What is kept costs nothing, but that of test is for nothing else if another phase comes.
    two = door("two", "--head=linear", "--frozen_for=1steps", "--finetune_for=3steps")
    assert "of 12 pictures" in values(two)["pretrained"]["knn"]["why_not"]
    frozen = door("kept", "--head=linear", "--schedule=frozen", "--frozen_for=1steps")
    assert "accuracy" in values(frozen)["pretrained"]["knn"]


def test_of_many_pictures_an_even_choice_is_fitted(door, monkeypatch):
    monkeypatch.setattr(fitting, "MOST_FITTED", 9)
    run = door("few", "--head=linear", "--schedule=frozen", "--frozen_for=1epochs")
    assert values(run)["pretrained"]["knn"]["num_fitted"] == 9


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--head=knn", "--schedule=finetune"], "no update can change it: leave --schedule=finetune away"),
        (["--head=knn", "--phase=for=1epochs; train=head"], "leave --phase away, or take --head=probe"),
        (["--head=knn", "--augment=flip"], "--augment=flip: --head=knn is fitted to pictures as they are"),
        (["--head=probe", "--frozen_for=3epochs"], "or train on from it with --schedule=finetune"),
        (["--head=probe", "--label_smoothing=0.1"], "--label_smoothing=0.1: --head=probe is fitted"),
        (["--head=knn", "--weight_column=w"], "--weight_column=w: --head=knn is fitted to pictures as they"),
        (["--head=probe", "--dropout=0.2"], "--dropout=0.2: --head=probe is fitted"),
        (["--head=probe", "--schedule=auto"], "--schedule=auto trains a head that starts at zero"),
        (["--head=linear", "--schedule=fit"], "--head=linear is trained, not fitted"),
        (["--head=probe", "--schedule=fit", "--phase=for=1epochs; train=head"], "give one of them"),
        (["--head=knn(0)"], "--head=knn(0): k=0 must be"),
    ],
)
def test_what_makes_no_sense_is_refused(door, capsys, flags, message):
    assert door("refused", *flags).status == 2
    assert message in capsys.readouterr().err


def test_there_is_no_rate_to_find(probe, tmp_path, run_main):
    status, _, err = run_main("find_lr", *probe.options, f"--workdir={tmp_path}")
    assert (status, "there is no learning rate to find" in err) == (2, True)
