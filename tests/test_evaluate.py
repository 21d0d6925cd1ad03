"""`evaluate` through the door: splits, other pictures, what it leaves and what it refuses."""

import contextlib
import csv
import io
import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import tf_keras
from sklearn import metrics as sk_metrics
from tensorflow.python.summary.summary_iterator import summary_iterator

from tests.conftest import call_main, make_flower_folder
from tests.helpers.feature_runs import TinyNet, tiny_net
from tests.helpers.undrawn import PLAIN
from trainer.model.initializers import reseed

pytestmark = pytest.mark.usefixtures("figures_undrawn")


@pytest.fixture(scope="module")
def trained(tiny_backbone, tmp_path_factory):
    """A run on three colours that knows them well but not surely; its pictures are there no more."""
    root = tmp_path_factory.mktemp("evaluate")
    source, workdir = make_flower_folder(root / "source", n=12), root / "run"
    arguments = [
        f"--source=folder:{source}", f"--backbone=savedmodel:{tiny_backbone}", "--image_size=8",
        "--head=linear", "--splits=50%,25%,25%", "--batch_size=4", "--schedule=frozen",
        "--frozen_for=10epochs", "--frozen_learning_rate=0.1", "--precision=float32", f"--workdir={workdir}",
    ]  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        assert call_main("train", *arguments) == 0
    source.rename(root / "away")
    return SimpleNamespace(root=root, workdir=workdir, source=source, away=root / "away")


@pytest.fixture
def evaluate(trained, run_main, tmp_path):
    """evaluate(*arguments) -> (exit status, standard output, standard error), into tmp_path / "report"."""

    def run(*arguments):
        folder = f"--report_dir={tmp_path / 'report'}"
        return run_main("evaluate", f"--workdir={trained.workdir}", folder, *arguments)

    return run


def report_of(folder):
    return json.loads((folder / "metrics.json").read_text())


def rows_of(folder):
    with open(folder / "predictions.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_other_pictures_are_scored_by_the_names_of_their_classes(evaluate, trained, tmp_path):
    # 'red' is the first class here and the last one of the run.
    new = make_flower_folder(tmp_path / "new photos", n=14, classes=("red", "green"))
    (new / "green").rename(new / "zgreen")
    message = f"trainer: --source=folder:{new}: zgreen is none of the classes of the run, which are "
    message += "blue, green, red: is it green? Classes are matched"
    status, out, err = evaluate(f"--source=folder:{new}")
    assert (status, err.startswith(message)) == (2, True)
    (new / "zgreen").rename(new / "green")
    status, out, err = evaluate(f"--source=folder:{new}")
    assert (status, err) == (0, "")
    assert f"folder:{new} has no pictures of blue" in out
    report, rows = report_of(tmp_path / "report"), rows_of(tmp_path / "report")
    assert sorted(row["id"] for row in rows) == sorted(
        f"{c}/{i:03d}.jpg" for c in ("red", "green") for i in range(14)
    )
    assert all(row["label"] == row["id"].split("/")[0] for row in rows)
    assert (report["num_examples"], report["accuracy"]) == (28, 1.0)
    names = list(report["classes"])
    assert names == ["blue", "green", "red"]
    assert [report["classes"][name]["support"] for name in names] == [0, 14, 14]
    probabilities = np.array([[float(row[f"probability_{name}"]) for name in names] for row in rows])
    loss = sk_metrics.log_loss([row["label"] for row in rows], probabilities, labels=names)
    assert report["loss"] == pytest.approx(loss, abs=1e-5)
    # Twelve of each colour were in the run: half trained with, a quarter chose the best weights.
    splits = json.loads((trained.workdir / "splits.json").read_text())["splits"]
    counts = {name: sum(label != "blue" for _, label, _ in rows) for name, rows in splits.items()}
    assert report["seen_before"] == counts
    assert f"{counts['train']} of these pictures are among those the run was trained with" in out


def test_the_same_probabilities_as_predict(evaluate, trained, tmp_path, run_main):
    new = make_flower_folder(tmp_path / "new", n=5)
    assert evaluate(f"--source=folder:{new}")[0] == 0
    arguments = ("predict", f"--workdir={trained.workdir}", str(new), f"--output={tmp_path / 'p.csv'}")
    status, _, err = run_main(*arguments)
    assert (status, err.splitlines()[-1].endswith(f"; they are in {tmp_path / 'p.csv'}")) == (0, True)
    with open(tmp_path / "p.csv") as file:
        predicted = {row["path"].removeprefix(f"{new}/"): row for row in csv.DictReader(file)}
    for row in rows_of(tmp_path / "report"):
        theirs = predicted.pop(row["id"])
        assert all(row[key] == theirs[key] for key in row if key.startswith(("probability_", "prediction")))
    assert not predicted


def test_tensorboard_shows_an_evaluation_as_a_run_of_its_own(evaluate, trained, tmp_path):
    new = make_flower_folder(tmp_path / "new", n=5)
    for _ in range(2):  # The second time in place of the first.
        assert evaluate(f"--source=folder:{new}")[0] == 0
    report = report_of(tmp_path / "report")
    (path,) = (tmp_path / "report").glob("events.out.tfevents.*")
    shown = [(v.tag, e.step) for e in summary_iterator(str(path)) for v in e.summary.value]
    assert {step for _, step in shown} == {report["step"]}
    wanted = {
        "loss",
        "accuracy",
        "recall/red",
        "precision/blue",
        "report/confusion_matrix",
        "report/reliability",
    }
    assert wanted <= {tag for tag, _ in shown}
    assert len(shown) == len(set(shown))


def test_bad_pictures_are_named_and_left_out_on_demand(evaluate, tmp_path):
    new = make_flower_folder(tmp_path / "new", n=3)
    (new / "red" / "000.jpg").write_bytes((new / "red" / "000.jpg").read_bytes()[:200])
    status, _, err = evaluate(f"--source=folder:{new}")
    assert status == 1
    assert f"trainer: 1 of 9 pictures in folder:{new} cannot be used; --on_bad_image=skip" in err
    assert evaluate(f"--source=folder:{new}", "--on_bad_image=skip")[0] == 0
    report = report_of(tmp_path / "report")
    assert report["num_examples"] == 8
    assert [name for name, _ in report["left_out_pictures"]] == ["red/000.jpg"]
    page = (tmp_path / "report" / "index.html").read_text()
    assert "red/000.jpg" in page


@pytest.mark.slow
def test_pictures_none_of_which_can_be_read_are_no_score(evaluate, tmp_path):
    new = make_flower_folder(tmp_path / "new", n=1)
    for path in new.glob("*/*.jpg"):
        path.write_bytes(path.read_bytes()[:200])
    status, _, err = evaluate(f"--source=folder:{new}", "--on_bad_image=skip")
    assert (status, f"trainer: --source=folder:{new} has no picture that can be read\n" in err) == (1, True)
    assert not (tmp_path / "report").exists()


def test_without_a_report_dir_each_source_has_a_folder_of_its_own(trained, tmp_path, run_main):
    before = (trained.workdir / "report" / "metrics.json").read_bytes()
    for name, folder in (("new photos", "new_photos"), ("test", "test_pictures")):
        new = make_flower_folder(tmp_path / name, n=2)
        status, out, err = run_main("evaluate", f"--workdir={trained.workdir}", f"--source=folder:{new}")
        assert (status, err) == (0, "")
        assert out.splitlines()[-1] == f"report:      {trained.workdir / 'report' / folder / 'index.html'}"
        assert report_of(trained.workdir / "report" / folder)["num_examples"] == 6
        shutil.rmtree(trained.workdir / "report" / folder)
    assert (trained.workdir / "report" / "metrics.json").read_bytes() == before


@pytest.mark.slow
def test_sources_of_one_name_have_folders_of_their_own(trained, tmp_path, run_main):
    """The same pictures, or the same place, replace their own report; another source's is never replaced."""

    def evaluated(new, *, cwd=None):
        status, out, err = run_main("evaluate", f"--workdir={trained.workdir}", f"--source=folder:{new}")
        assert (status, err) == (0, "")
        place = out.splitlines()[-1].removeprefix("report:      ")
        return place.removesuffix("/index.html").removeprefix(f"{trained.workdir}/report/")

    places = {}
    try:
        for name, count in (("a", 2), ("b", 3), ("c", 4)):
            places[name] = evaluated(make_flower_folder(tmp_path / name / "new", n=count))
        assert places["a"] == "new"
        assert len(set(places.values())) == 3
        for name in "bc":
            assert re.fullmatch("new-[0-9a-f]{8}", places[name])
        # Each again, the second one with more pictures; then a copy of the first, elsewhere.
        make_flower_folder(tmp_path / "b" / "new", n=5)
        assert {name: evaluated(tmp_path / name / "new") for name in "cba"} == places
        shutil.copytree(tmp_path / "a" / "new", tmp_path / "copy" / "new")
        assert evaluated(tmp_path / "copy" / "new") == "new"
        for name, count in (("a", 6), ("b", 15), ("c", 12)):
            assert report_of(trained.workdir / "report" / places[name])["num_examples"] == count
        # A folder that is named is not taken from another source, either.
        asked = f"--report_dir={trained.workdir}/report/new"
        arguments = ("evaluate", f"--workdir={trained.workdir}", f"--source=folder:{tmp_path}/b/new", asked)
        assert run_main(*arguments)[::2] == (
            1,
            f"trainer: {asked} holds the report of another source, folder:{tmp_path}/copy/new: name another "
            "folder, or remove that report\n",
        )
    finally:
        for place in places.values():
            shutil.rmtree(trained.workdir / "report" / place)


@pytest.mark.slow
def test_what_else_is_in_the_folder_of_a_report_stays(trained, tmp_path, run_main):
    """The training curves of a run, a page that somebody wrote, and whatever else."""
    folder, new = tmp_path / "train", make_flower_folder(tmp_path / "new", n=2)
    shutil.copytree(trained.workdir / "train", folder)
    (folder / "notes.txt").write_text("mine")
    # Of other programs, and of the run, dated in the year 2286.
    for name in ("99.other", "abc", "9999999999.elsewhere.1.0.v2"):
        (folder / f"events.out.tfevents.{name}").write_bytes(b"theirs")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert any("tfevents" in name for name in before)
    arguments = [f"--workdir={trained.workdir}", f"--report_dir={folder}", f"--source=folder:{new}"]
    for _ in range(2):
        assert run_main("evaluate", *arguments)[0] == 0
        assert {name: (folder / name).read_bytes() for name in before} == before
        events = {path.name for path in folder.glob("events.out.tfevents.*")}
        assert len(events - set(before)) == 1
    site = tmp_path / "site"
    site.mkdir()
    (site / "index.html").write_text("mine")
    status, _, err = run_main("evaluate", *arguments, f"--report_dir={site}")
    assert (status, err) == (
        1,
        f"trainer: --report_dir={site} holds index.html, which this command did not write and would have to "
        "replace: move it, or name another folder\n",
    )
    assert {path.name: path.read_text() for path in site.iterdir()} == {"index.html": "mine"}


def test_the_temperature_is_that_of_validation_wherever_it_is_used(evaluate, trained, tmp_path):
    fitted = json.loads((trained.workdir / "report" / "calibration.json").read_text())
    assert (fitted["split"], fitted["num_examples"]) == ("validation", 9)
    main = report_of(trained.workdir / "report")
    assert fitted["step"] == main["step"]
    assert main["calibration"]["temperature"] == fitted["temperature"]
    new = make_flower_folder(tmp_path / "new", n=3, classes=("red", "blue"))
    assert evaluate(f"--source=folder:{new}")[0] == 0
    assert report_of(tmp_path / "report")["calibration"]["temperature"] == fitted["temperature"]
    # Of other weights nothing is known where their validation pictures are not there.
    last = max(int(p.stem.split("-")[1]) for p in (trained.workdir / "checkpoints").glob("ckpt-*.index"))
    if last != fitted["step"]:
        assert evaluate(f"--source=folder:{new}", "--checkpoint=latest")[0] == 0
        assert report_of(tmp_path / "report")["calibration"]["temperature"] is None


def test_options_of_splits_make_no_sense_for_other_pictures(evaluate, tmp_path):
    new = make_flower_folder(tmp_path / "new", n=2)
    for flag in ("--splits=50%,50%", "--split_seed=7"):
        status, _, err = evaluate(f"--source=folder:{new}", flag)
        name = flag.split("=")[0]
        assert (status, err) == (
            2,
            f"trainer: {name}: all pictures of another source are scored; leave it out, or --source\n",
        )


def test_a_bar_for_other_pictures(evaluate, tmp_path):
    new = make_flower_folder(tmp_path / "new", n=2, classes=("red", "green"))
    (new / "green").rename(new / "blue")  # So all of those are wrong.
    status, _, err = evaluate(f"--source=folder:{new}", "--assert_accuracy_at_least=0.9")
    assert status == 1
    assert err == f"trainer: folder:{new} accuracy 0.5000 is below --assert_accuracy_at_least=0.9\n"
    mistakes = report_of(tmp_path / "report")["worst_mistakes"]
    assert {(m["label"], m["prediction"]) for m in mistakes} == {("blue", "green")}


def test_the_run_without_its_pictures_says_so(evaluate, trained):
    status, _, err = evaluate()
    assert status == 1
    assert str(trained.source) in err


@pytest.mark.parametrize(
    "kind", ["one class", "an empty one beside it", "one class below test/", "a class of notes"]
)
def test_pictures_of_one_class_are_enough(evaluate, tmp_path, kind):
    folder = tmp_path / "new" / ("test" if "test/" in kind else "")
    make_flower_folder(folder, n=2, classes=("green",))
    if kind.startswith("an"):
        (folder / "red").mkdir()
        (folder / "blue").mkdir()
    if kind.endswith("notes"):
        (folder / "red").mkdir()
        (folder / "red" / "notes.txt").write_text("none yet")
    status, out, err = evaluate(f"--source=folder:{tmp_path / 'new'}")
    assert (status, err) == (0, "")
    assert "has no pictures of blue, red\n" in out
    report = report_of(tmp_path / "report")
    assert (report["num_examples"], report["accuracy"]) == (2, 1.0)
    assert report["classes"]["green"]["support"] == 2
    assert report["roc_auc"] is None


def test_a_class_of_the_run_may_be_below_folders_of_any_name(evaluate, tmp_path):
    for part in ("Teil 1", "Teil 2"):
        make_flower_folder(tmp_path / "new" / part, n=2, classes=("green", "red"))
    (tmp_path / "new" / "Teil 3").mkdir()
    status, out, err = evaluate(f"--source=folder:{tmp_path / 'new'}")
    assert (status, err) == (0, "")
    assert "left out Teil 3/: it holds none of the classes of the run" in out
    assert report_of(tmp_path / "report")["num_examples"] == 8


def test_pictures_of_no_class_of_the_run_are_refused(evaluate, tmp_path):
    (tmp_path / "empty" / "red").mkdir(parents=True)
    status, _, err = evaluate(f"--source=folder:{tmp_path / 'empty'}")
    assert status == 1
    assert "empty has no class folder with pictures: " in err
    make_flower_folder(tmp_path / "new", n=1, classes=("red", "black"))
    status, _, err = evaluate(f"--source=folder:{tmp_path / 'new'}")
    assert status == 2
    assert "black is none of the classes of the run, which are blue, green, red. Classes are matched" in err


@pytest.mark.slow
def test_weights_that_a_run_began_with_are_needed_no_more(run_main, tmp_path):
    photos, began_with = make_flower_folder(tmp_path / "photos"), tmp_path / "net.weights.h5"
    with tiny_net():
        TinyNet(include_top=False, weights=None, input_shape=(8, 8, 3), pooling="avg").save_weights(
            began_with
        )
        status, *_ = run_main(
            "train", f"--source=folder:{photos}", "--backbone=keras:TinyNet", f"--weights={began_with}",
            "--image_size=8", "--phase=for=2steps; train=all; lr=0.1; optimizer=sgd", "--batch_size=4",
            "--precision=float32", f"--workdir={tmp_path / 'run'}", *PLAIN,
        )  # fmt: skip
        assert status == 0
        began_with.unlink()
        status, _, err = run_main(
            "evaluate", f"--workdir={tmp_path / 'run'}", f"--report_dir={tmp_path / 'again'}"
        )
        assert (status, err) == (0, "")
        assert rows_of(tmp_path / "again") == rows_of(tmp_path / "run" / "report")
        status, _, err = run_main("export", f"--workdir={tmp_path / 'run'}", "--formats=saved_model")
        assert (status, err) == (0, "")


def ScaledNet(*, include_top, weights, input_shape, pooling):
    """As EfficientNet in Keras: for its ImageNet weights it is built otherwise, without a variable more."""
    assert (include_top, pooling) == (False, "avg")
    images = tf_keras.Input(input_shape)
    x = images * 0.25 if weights == "imagenet" else images
    x = tf_keras.layers.Conv2D(4, 3, activation="relu", name="stem")(x)
    network = tf_keras.Model(images, tf_keras.layers.GlobalAveragePooling2D(name="average")(x))
    reseed(network, seed=1)
    return network


@pytest.mark.slow
def test_a_network_that_keras_builds_otherwise_for_its_imagenet_weights(run_main, tmp_path, monkeypatch):
    monkeypatch.setattr(ScaledNet, "__module__", "tests.helpers.feature_runs")  # It has `preprocess_input`.
    monkeypatch.setattr(tf_keras.applications, "ScaledNet", ScaledNet, raising=False)
    photos, run = make_flower_folder(tmp_path / "photos"), tmp_path / "run"
    status, *_ = run_main(
        "train", f"--source=folder:{photos}", "--backbone=keras:ScaledNet", "--image_size=8",
        "--batch_size=4", "--phase=for=2steps; train=all; lr=0.1; optimizer=sgd", "--precision=float32",
        f"--workdir={run}", *PLAIN,
    )  # fmt: skip
    assert status == 0
    status, _, err = run_main("evaluate", f"--workdir={run}", f"--report_dir={tmp_path / 'again'}")
    assert (status, err) == (0, "")
    known = rows_of(run / "report")
    assert rows_of(tmp_path / "again") == known
    status, out, _ = run_main("predict", f"--workdir={run}", "--format=jsonl", photos / known[0]["id"])
    assert status == 0
    said = json.loads(out.splitlines()[-1])
    assert said["label"] == known[0]["prediction"]
    highest = max(float(value) for name, value in known[0].items() if name.startswith("probability_"))
    assert said["probability"] == pytest.approx(highest, abs=1e-6)
