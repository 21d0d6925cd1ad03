"""Tables, groups, folds and joined sources through the door."""

import json
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet

from tests.conftest import make_flower_folder
from tests.data.tables.tables import write_parquet
from tests.data.trees import age
from tests.helpers.undrawn import PLAIN
from trainer.cli import flags

pytestmark = pytest.mark.usefixtures("figures_undrawn")
CLASSES = ("blue", "green", "red")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Three classes of ten pictures in folders; a table of them, where two pictures each have one owner."""
    folder = make_flower_folder(tmp_path_factory.mktemp("tables") / "photos", n=10)
    lines = ["file,colour,owner,weight"]
    lines += [f"photos/{name}/{k:03d}.jpg,{name},{name}-{k // 2},2.0" for name in CLASSES for k in range(10)]
    (folder.parent / "photos.csv").write_text("\n".join(lines))
    age(folder.parent)
    return folder


@pytest.fixture
def run(run_main, tiny_backbone, tmp_path):
    """run(verb, *flags) -> (exit status, standard output, standard error) of a run of a few updates."""

    def run_(verb, *more, workdir="run", trains=True):
        recipe = (
            f"--backbone=savedmodel:{tiny_backbone}", "--image_size=8", "--head=linear", "--batch_size=4",
            "--schedule=frozen", "--frozen_for=2epochs", "--frozen_learning_rate=0.1", "--precision=float32",
            *PLAIN,
        )  # fmt: skip
        return run_main(verb, f"--workdir={tmp_path / workdir}", *(recipe if trains else ()), *more)

    return run_


def splits_of(workdir):
    return json.loads((Path(workdir) / "splits.json").read_text())


def report_of(workdir):
    return json.loads((Path(workdir) / "report/metrics.json").read_text())


def test_a_table_trains_as_the_folder_of_the_same_pictures(run, pictures, tmp_path, monkeypatch):
    given = ("--splits=50%,30%,20%",)
    assert run("train", f"--source=folder:{pictures}", *given, workdir="folder")[0] == 0
    monkeypatch.chdir(pictures)
    status, out, _ = run("train", "--source=table:../photos.csv", "--label_column=colour", *given)
    assert status == 0
    assert "pictures in column file, labels in colour (3 classes), not used: " in out
    as_folder, as_table = splits_of(tmp_path / "folder"), splits_of(tmp_path / "run")
    assert [row[1:] for row in as_folder["splits"]["test"]] == [row[1:] for row in as_table["splits"]["test"]]
    assert as_table["splits"]["test"][0][0] == f"photos/{as_folder['splits']['test'][0][0]}"
    numbers = [report_of(tmp_path / name) for name in ("folder", "run")]
    assert numbers[0]["loss"] == numbers[1]["loss"]
    assert numbers[0]["accuracy"] == numbers[1]["accuracy"]
    # Its pictures are found again in their folder.
    status, out, err = run("evaluate", f"--source=folder:{pictures}", trains=False)
    assert status == 0, err
    assert f"test accuracy {100 * numbers[0]['accuracy']:.2f} %" in out


def test_groups_are_kept_together_and_recorded(run, pictures, tmp_path):
    table = f"--source=table:{pictures}/../photos.csv"
    columns = ("--label_column=colour", "--group_column=owner", "--splits=60%,20%,20%")
    status, out, _ = run("train", table, *columns)
    assert status == 0
    assert "15 groups of up to 2 kept together" in out
    owners = {
        split: {f"{label}-{int(name[-7:-4]) // 2}" for name, label, _ in rows}
        for split, rows in splits_of(tmp_path / "run")["splits"].items()
    }
    assert len(set().union(*owners.values())) == 15
    # Each class has its share: three owners in train, one in validation and one in test.
    assert {split: len(names) for split, names in owners.items()} == {"train": 9, "validation": 3, "test": 3}
    # Another grouping is another run.
    status, _, err = run("train", table, "--label_column=colour", "--splits=60%,20%,20%")
    assert status == 1
    assert "--group_column was owner, now ''" in err


@pytest.mark.slow
def test_weights_count_in_the_loss(run, pictures, tmp_path):
    """Logits of zero have a loss of ln 3 for each of three classes; and each picture counts twice."""
    table = (f"--source=table:{pictures}/../photos.csv", "--label_column=colour", "--weight_column=weight")
    assert run("train", *table, "--head=zero_linear", "--log_every=1steps", "--frozen_for=1steps")[0] == 0
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    losses = {line["split"]: line["loss"] for line in lines if "loss" in line}
    assert losses["train"] == pytest.approx(2 * np.log(3), rel=1e-5)
    # What is evaluated has no weights.
    assert losses["validation"] < 1.5


@pytest.mark.slow
def test_all_folds_and_what_they_say_together(run, pictures, tmp_path):
    table = (f"--source=table:{pictures}/../photos.csv", "--label_column=colour", "--group_column=owner")
    cache = f"--cache_dir={tmp_path / 'cache'}"
    status, out, err = run(
        "cross_validate", *table, "--folds=3", cache, "--feature_cache=require", workdir="cv"
    )
    assert status == 0, err
    # Features are computed once for all folds.
    assert out.count("features of all folds: 30 pictures") == 1
    result = json.loads((tmp_path / "cv/cross_validation.json").read_text())
    accuracies = [report_of(tmp_path / f"cv/fold-{k}")["accuracy"] for k in (1, 2, 3)]
    assert [fold["accuracy"] for fold in result["folds"]] == accuracies
    assert result["mean"]["accuracy"] == pytest.approx(np.mean(accuracies))
    assert result["standard_deviation"]["accuracy"] == pytest.approx(np.std(accuracies, ddof=1))
    # All pictures are there once, with what the run said that never saw them.
    pooled = parquet.read_table(tmp_path / "cv/report/predictions.parquet").to_pylist()
    assert len({row["id"] for row in pooled}) == len(pooled) == 30
    of_folds = {
        row["id"]: row
        for k in (1, 2, 3)
        for row in parquet.read_table(tmp_path / f"cv/fold-{k}/report/predictions.parquet").to_pylist()
    }
    assert all(row["prediction"] == of_folds[row["id"]]["prediction"] for row in pooled)
    assert all(
        row["probability_red"] == pytest.approx(of_folds[row["id"]]["probability_red"]) for row in pooled
    )
    assert result["pooled"]["num_examples"] == 30
    assert result["pooled"]["accuracy"] == pytest.approx(report_of(tmp_path / "cv")["accuracy"])
    assert "| mean " in out
    # A fold by itself is the same run; and the second time nothing is trained.
    alone = run("train", *table, "--folds=3", "--fold=2", cache, workdir="alone")
    assert alone[0] == 0, alone[2]
    assert report_of(tmp_path / "alone")["loss"] == report_of(tmp_path / "cv/fold-2")["loss"]
    status, out, _ = run("cross_validate", *table, "--folds=3", cache, workdir="cv")
    assert status == 0
    assert out.count("is finished") == 3
    assert "| mean " in out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--folds=3", "--fold=1"), "--fold=1 is of train: cross_validate runs all of --folds"),
        (("--folds=2",), "--folds=2 must be 3 or more"),
        (("--folds=40",), "the test split is empty"),
    ],
)
def test_folds_that_cannot_be_are_refused_before_anything_trains(run, pictures, tmp_path, more, message):
    status, _, err = run("cross_validate", f"--source=folder:{pictures}", *more)
    assert status in (1, 2)
    assert message in err
    assert not (tmp_path / "run").exists()


def test_joined_sources_train_and_are_told_apart(run, pictures, tmp_path):
    more = make_flower_folder(tmp_path / "more", n=4, classes=("red", "green", "black"))
    both = (f"--source=folder:{pictures}", f"--source=folder:{more}")
    ranges = ("--splits=photos,more[:50%],more[50%:]", "--split_order=permuted")
    status, _, err = run("train", *both, *ranges)
    # A class that only the second has is in no training picture.
    assert status == 1
    assert "class 'black' is in the" in err
    status, out, err = run("train", *both)
    assert status == 0, err
    assert "joined: 30 of photos, 12 of more" in out
    rows = [row for rows in splits_of(tmp_path / "run")["splits"].values() for row in rows]
    assert {row[0].split("/")[0] for row in rows} == {"photos", "more"}
    assert {row[1] for row in rows} == {"black", "blue", "green", "red"}
    line = next(
        line for line in (tmp_path / "run/flagfile.flags").read_text().splitlines() if "--source" in line
    )
    assert line == f'--source=joined:["folder:{pictures}", "folder:{more}"]'


@pytest.mark.slow
def test_shards_are_trained_with_and_exported(run, pictures, tmp_path):
    data = [(pictures / f"{name}/{k:03d}.jpg").read_bytes() for k in range(10) for name in CLASSES]
    for split, part in {"train": slice(0, 24), "test": slice(24, 30)}.items():
        labels = [k % 3 for k in range(30)][part]
        path = tmp_path / f"shards/data/{split}-00000-of-00001.parquet"
        write_parquet(path, data[part], label=labels, names=CLASSES, group_rows=5)
    status, _, err = run("train", f"--source=table:{tmp_path}/shards")
    assert status == 0, err
    assert {k: len(v) for k, v in splits_of(tmp_path / "run")["splits"].items()} == {
        "train": 22, "validation": 2, "test": 6,
    }  # fmt: skip
    # A row without a picture ends the command.
    write_parquet(path, [*data[24:29], None], label=[0, 1, 2, 0, 1, 2], names=CLASSES)
    status, _, err = run("train", f"--source=table:{tmp_path}/shards", workdir="second")
    assert status == 1
    assert "test-00000-of-00001.parquet:6: there is no picture in column image" in err


@pytest.mark.slow
def test_rows_that_are_left_out_are_in_the_record(run, pictures, tmp_path):
    broken = pictures.parent / "broken.csv"
    broken.write_text((pictures.parent / "photos.csv").read_text().replace("000.jpg,red", "000.jpg,"))
    given = (f"--source=table:{broken}", "--label_column=colour", "--splits=60%,20%,20%")
    status, _, err = run("train", *given)
    assert status == 1
    assert "1 of 30 rows of" in err
    status, _, _ = run("train", *given, "--on_bad_image=skip")
    assert status == 0
    assert splits_of(tmp_path / "run")["left_out"] == [["broken.csv line 22", "no label"]]


def test_columns_are_of_tables(tmp_path):
    # That a flagfile has them at their defaults says nothing.
    (tmp_path / "all.flags").write_text(flags.parse(["trainer", "--source=table:x.csv"]).config.flagfile())
    assert (
        flags.parse(["trainer", f"--flagfile={tmp_path}/all.flags", "--source=folder:x"]).command == "train"
    )
    with pytest.raises(Exception, match="--label_column=x is of --source=table:"):
        flags.parse(["trainer", "--source=folder:x", "--label_column=x"])
