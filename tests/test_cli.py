"""Through the door, on tiny pictures and a tiny network: train, evaluate, inspect, and what is left."""

import contextlib
import csv
import dataclasses
import io
import json
import re
import sys
from types import SimpleNamespace

import pytest
import tensorflow as tf

from tests.conftest import call_main, make_flower_folder
from tests.helpers.processes import run_program
from tests.helpers.undrawn import PLAIN
from trainer.cli import flags
from trainer.cli.config import Config
from trainer.precision import supported

FIELDS = [f for section in dataclasses.fields(Config) for f in dataclasses.fields(section.default)]
ENUMS = {f.name: f.metadata["choices"] for f in FIELDS if f.metadata["choices"]}
# The other two move or drop pictures, of which there must be more: see tests/test_near_duplicates.py.
ENUMS["near_duplicates"] = ("off", "report")
# Of a report without a mistake.
FIGURES = ("confusion_matrix", "reliability", "per_class", "roc_curve", "least_certain")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_backbone):
    """A finished run of two phases on three colours, 18 + 6 + 6 pictures, 3 steps an epoch."""
    root = tmp_path_factory.mktemp("cli")
    workdir = root / "run"
    arguments = [
        f"--source=folder:{make_flower_folder(root / 'pictures', n=10)}",
        f"--backbone=savedmodel:{tiny_backbone}",
        "--image_size=8",
        "--head=linear",
        "--splits=60%,20%,20%",
        "--batch_size=8",
        "--schedule=two_phase",
        "--frozen_for=40epochs",
        "--frozen_learning_rate=0.1",
        "--finetune_for=2epochs",
        "--evaluate_every=20epochs",
        "--save_every=20epochs",
        f"--workdir={workdir}",
    ]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert call_main("train", *arguments) == 0
    return SimpleNamespace(workdir=workdir, arguments=arguments, out=out.getvalue())


def read_json(path):
    return json.loads(path.read_text())


def scalars(folder):
    """Returns {tag: [(step, value)]} of all event files in a folder."""
    found = {}
    for path in sorted(folder.glob("events.out.tfevents.*")):
        for record in tf.data.TFRecordDataset(str(path)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name == "scalars":
                    number = float(tf.make_ndarray(value.tensor))
                    found.setdefault(value.tag, []).append((event.step, number))
    return found


def test_training_leaves_these_files(trained):
    files = {
        path.relative_to(trained.workdir).as_posix() for path in trained.workdir.rglob("*") if path.is_file()
    }
    shown = {re.sub(r"tfevents\..*", "tfevents", file) for file in files}
    best = read_json(trained.workdir / "report" / "metrics.json")["step"]
    checkpoints = [f"checkpoints/ckpt-{step}" for step in (60, 120, 126)] + [f"checkpoints/best/ckpt-{best}"]
    # Evaluated only because the run ends there, the best is kept beside the one before it.
    assert best == 126
    checkpoints += ["checkpoints/best/ckpt-120"]
    # What a phase leaves as it is: the network, then its statistics.
    checkpoints += ["checkpoints/base/phase-0", "checkpoints/base/phase-1"]
    assert shown == {
        "flagfile.flags", "run.json", "splits.json", "metrics.jsonl", "lock",
        "checkpoints/checkpoint", "checkpoints/best/checkpoint",
        *(f"{name}.{end}" for name in checkpoints for end in ("json", "index", "data-00000-of-00001")),
        *(f"{split}/events.out.tfevents" for split in ("train", "validation", "test", "options")),
        "validation/projector_config.pbtxt",
        *(f"validation/projector/{name}" for name in ("features.tsv", "metadata.tsv", "sprite.png")),
        *(f"report/{name}.json" for name in ("metrics", "calibration")), "report/index.html",
        "report/predictions.csv", "report/predictions.parquet", "report/learning_curves.png",
        "report/report_manifest.json",
        *(f"report/{name}.png" for name in FIGURES),
    }  # fmt: skip


def test_training_learns_colours_and_says_so(trained):
    report = read_json(trained.workdir / "report" / "metrics.json")
    assert (report["accuracy"], report["num_correct"], report["num_examples"]) == (1.0, 6, 6)
    with open(trained.workdir / "report" / "predictions.csv") as file:
        rows = list(csv.DictReader(file))
    splits = read_json(trained.workdir / "splits.json")["splits"]
    assert [row["id"] for row in rows] == [name for name, _, _ in splits["test"]]
    assert all(row["label"] == row["prediction"] == row["id"].split("/")[0] for row in rows)
    lines = trained.out.splitlines()
    assert "test accuracy 100.00 % (6 of 6 right; 95 % interval 61.0 to 100.0 %)" in trained.out
    assert lines[-2] == f"results:     {trained.workdir}"
    assert lines[-1] == f"TensorBoard: {sys.executable} -m tensorboard.main --logdir {trained.workdir}"


def test_numbers_are_in_metrics_jsonl_and_in_the_event_files(trained):
    lines = [json.loads(line) for line in (trained.workdir / "metrics.jsonl").read_text().splitlines()]
    steps = {split: [r["step"] for r in lines if r["split"] == split] for split in ("train", "validation")}
    assert steps == {"train": [*range(10, 121, 10), 126], "validation": [60, 120, 126]}
    assert {(r["phase"], r["step"] > 120) for r in lines} == {("frozen", False), ("finetune", True)}
    pictures = read_json(trained.workdir / "splits.json")["splits"]
    by_class = {
        split: {f"{what}/{row[1]}" for what in ("precision", "recall") for row in rows}
        for split, rows in pictures.items()
    }
    for split, tags in (
        ("train", {"loss", "accuracy", "learning_rate", "gradient_norm"}),
        ("validation", {"loss", "accuracy", *by_class["validation"]}),
        ("test", {"loss", "accuracy", *by_class["test"]}),
    ):
        events = scalars(trained.workdir / split)
        assert set(events) == tags | (
            {"images_per_second", "input_wait_share"} if split == "train" else set()
        )
        for tag in tags:
            written = [(r["step"], r[tag]) for r in lines if r["split"] == split]
            assert events[tag] == [(step, pytest.approx(value, rel=1e-6)) for step, value in written]


def test_the_same_command_again_changes_nothing(trained, run_main):
    before = (trained.workdir / "metrics.jsonl").read_bytes(), read_json(trained.workdir / "run.json")
    # The flagfile in the folder is the same command.
    status, out, err = run_main(f"--flagfile={trained.workdir / 'flagfile.flags'}")
    assert (status, err) == (0, "")
    assert "precision:" not in out
    told = rf"{trained.workdir} is finished: test accuracy \S+ % \(\d+ of \d+ right\), weights of step \d+\. "
    assert re.match(told, out.splitlines()[-3])
    assert "--extend" in out.splitlines()[-1]
    assert (
        (trained.workdir / "metrics.jsonl").read_bytes(),
        read_json(trained.workdir / "run.json"),
    ) == before


def test_evaluate_needs_only_the_workdir(trained, run_main):
    files = [trained.workdir / "report" / name for name in ("metrics.json", "predictions.csv")]
    before = [file.read_bytes() for file in files]
    for file in files:
        file.unlink()
    status, out, err = run_main("evaluate", f"--workdir={trained.workdir}")
    assert (status, err) == (0, "")
    assert "test accuracy 100.00 %" in out
    assert [file.read_bytes() for file in files] == before


@pytest.mark.parametrize(
    "split",
    [pytest.param(name, marks=[pytest.mark.slow] * (name != "validation")) for name in ENUMS["eval_split"]],
)
def test_evaluate_scores_any_split_with_any_checkpoint(split, trained, run_main):
    sizes = {"train": 18, "validation": 6, "test": 6}
    for checkpoint, step in (("latest", 126), ("60", 60)) if split == "validation" else (("60", 60),):
        arguments = (f"--workdir={trained.workdir}", f"--eval_split={split}", f"--checkpoint={checkpoint}")
        assert run_main("evaluate", *arguments)[0] == 0
        report = read_json(trained.workdir / "report" / ("" if split == "test" else split) / "metrics.json")
        assert (report["split"], report["step"], report["num_examples"]) == (split, step, sizes[split])
    assert run_main("evaluate", f"--workdir={trained.workdir}", "--eval_split=test")[0] == 0


@pytest.mark.slow
def test_evaluate_as_a_program(trained):
    done = run_program([f"--workdir={trained.workdir}", "evaluate"])
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("test accuracy 100.00 % (6 of 6 right;")


def test_inspect_shows_everything_and_writes_nothing(trained, tmp_path, run_main):
    elsewhere = [*trained.arguments[:-1], f"--workdir={tmp_path / 'new'}"]
    status, short, err = run_main("inspect", *elsewhere)
    assert (status, err) == (0, "")
    status, out, err = run_main("inspect", "--verbose", *elsewhere)
    assert (status, err) == (0, "")
    assert not (tmp_path / "new").exists()
    # What is looked for first and on a screen, the rest behind it.
    first, rest = short.rsplit("\n\n", 1)
    assert rest == "--verbose shows all options, variables and what is cached\n"
    assert out.startswith(first)
    assert len(short.splitlines()) <= 24
    config = flags.parse(["trainer", *elsewhere, "--verbose"]).config
    assert f"\nconfiguration (identity {config.identity()})\n" in out.removeprefix(first)
    for line in config.flagfile().splitlines():
        assert f"\n  {line}\n" in out.removeprefix(first)
    splits = read_json(trained.workdir / "splits.json")["splits"]
    for split, rows in splits.items():
        counts = ", ".join(f"{c} {[row[1] for row in rows].count(c)}" for c in ("blue", "green", "red"))
        assert f"\n  {split:<11}{len(rows):>8}  ({counts})\n" in out
    assert "splits: 60%,20%,20% of 30, class by class, shuffled (--split_seed=42)\n" in out
    for line in ("height_px     8", "value_range   (0.0, 1.0)", "feature_width 2", "any_size      True"):
        assert f"\n  {line}\n" in out
    assert "\nplan: 3 steps an epoch, 126 in all\n" in out
    assert "\n  frozen, steps 0 to 120, adam at 0.1 (constant), BatchNorm statistics stored\n" in out
    assert "\n  finetune, steps 120 to 126, adam at 0.0001 (constant), BatchNorm statistics stored\n" in out
    tables, cache = out.split("\nfeature cache: ")
    assert re.match(r"\S+/hub-trainer/features, \d+ entries, [\d.]+ MB of at most 20 GB\n", cache)
    assert short.split("\n\n")[2:-1] == [
        "phase frozen: 9 of 19 parameters train, in 2 of 5 variables (0 of the backbone)\n"
        "  frozen          backbone/conv to backbone/bn: 10 parameters\n"
        "  trains          head: 9 parameters\n"
        "  features: computed once up to features, 2: 0.0 KB a picture",
        "phase finetune: 17 of 19 parameters train, in 4 of 5 variables (2 of the backbone)\n"
        "  trains          backbone/conv to head: 17 parameters\n"
        "  features: computed in each epoch: phase finetune trains the network from its first layers on",
    ]
    frozen, finetune = tables.split("\nvariables in phase ")[1:]
    table = [line.split() for line in frozen.splitlines()[1:]]
    assert table == [
        ["frozen", "backbone/conv/kernel", "3x2", "6"],
        ["frozen", "backbone/bn/beta", "2", "2"],
        ["statistics", "backbone/bn/moving_mean", "2", "2"],
        ["train", "head/logits/kernel", "2x3", "6"],
        ["train", "head/logits/bias", "3", "3"],
    ]
    marks = [line.split()[0] for line in finetune.splitlines()[1:]]
    assert marks == ["train", "train", "statistics", "train", "train"]
    # Of a run, the same from its folder alone.
    assert run_main("inspect", f"--workdir={trained.workdir}") == (
        0, run_main("inspect", *trained.arguments)[1], "",
    )  # fmt: skip


# The first through the door; `make test-slow` has all.
@pytest.mark.parametrize(
    "row",
    [
        row if row == 0 else pytest.param(row, marks=pytest.mark.slow)
        for row in range(max(map(len, ENUMS.values())))
    ],
)
def test_every_value_of_every_enum_trains(row, tiny_backbone, tmp_path, run_main, figures_undrawn):
    # Row 0 has the first value of each, row 1 the second, and so on, around.
    values = {name: choices[row % len(choices)] for name, choices in ENUMS.items()}
    unsupported = values["precision"] not in ("auto", *supported())
    # Several workers have tests of their own, and so have engines where they are installed.
    values |= {"strategy": "one"} if values["strategy"] == "multi_worker" else {}
    values |= {"engine": "tensorflow"} if values["engine"] == "openvino" else {}
    for split in ("train", "validation", "test"):
        # Two classes: what is for two only takes part, too.
        make_flower_folder(tmp_path / "pictures" / split, n=2, classes=("red", "green"))
    workdir = tmp_path / "run"
    status, out, err = run_main(
        f"--source=folder:{tmp_path / 'pictures'}", f"--backbone=savedmodel:{tiny_backbone}",
        "--image_size=8", "--head=mlp(4)", "--splits=train,validation,test", "--batch_size=4",
        "--schedule=two_phase", "--frozen_for=2steps", "--finetune_for=2steps", "--augment=flip,crop(0.6)",
        "--dropout=0.3",
        "--log_every=1steps", "--feature_views=2", *PLAIN,
        f"--workdir={workdir}", *(f"--{name}={value}" for name, value in values.items()),
    )  # fmt: skip
    if unsupported:
        # What a machine cannot do is refused, not left out in silence.
        assert (status, values["precision"] in err, "has no effect on this machine" in err) == (2, True, True)
        return
    assert status == 0, err
    assert "%|" in err if values["progress"] == "bar" else err == ""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["split"] == "train"] == [1, 2, 3, 4]
    config = read_json(workdir / "run.json")["config"]
    assert {name: config[name] for name in values} == values
    status, out, err = run_main("evaluate", f"--workdir={workdir}")
    assert status == 0, err
    assert "%|" in err if values["progress"] == "bar" else err == ""
    assert f"{values['eval_split']} accuracy " in out


def test_the_rows_above_hold_every_value():
    rows = range(max(map(len, ENUMS.values())))
    for choices in ENUMS.values():
        assert {choices[row % len(choices)] for row in rows} == set(choices)


def test_without_a_test_split_the_validation_split_is_scored(trained, tmp_path, run_main):
    changes = (
        "--splits=60%,40%",
        "--schedule=frozen",
        "--frozen_for=2steps",
        f"--workdir={tmp_path}",
        *PLAIN,
    )
    status, out, err = run_main(*trained.arguments, *changes)
    assert (status, err) == (0, "")
    assert re.search(r"^validation accuracy .* \(\d+ of 12 right;", out, re.MULTILINE)
    assert (tmp_path / "report" / "metrics.json").exists()
    message = "trainer: --eval_split=test: this run has only train, validation\n"
    assert run_main("evaluate", f"--workdir={tmp_path}", "--eval_split=test") == (2, "", message)
    assert run_main("evaluate", f"--workdir={tmp_path}")[1].startswith("validation accuracy ")
