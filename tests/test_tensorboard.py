"""What a run through the program's own door shows in TensorBoard's tabs, and what going on leaves of it."""

import gzip
import hashlib
import html
import json
import re

import numpy as np
import pytest
import tensorflow as tf
from tensorboard.plugin_util import markdown_to_safe_html

from tests.conftest import call_main, make_flower_folder
from tests.helpers.tabs import Projector, hparams_rows
from tests.record.events import accumulated, plugin, scalars, steps_of
from trainer.record.workdir import Workdir

# In Markdown or HTML, these would be something else.
NAMES = ("red", "gre|en", "<i>b_l_ue")
WATCHED = ("--histograms_every=3steps", "--figures_every=3steps", "--profile_steps=2-3", "--embeddings=4")
CLASSES = ("red", "green", "blue")


@pytest.fixture(scope="module")
def options(tiny_backbone, tmp_path_factory):
    pictures = tmp_path_factory.mktemp("pictures")
    make_flower_folder(pictures / "made")
    for old, new in zip(CLASSES, NAMES, strict=True):
        (pictures / "made" / old).rename(pictures / new)
    (pictures / "made").rmdir()
    return (
        f"--source=folder:{pictures}", f"--backbone=savedmodel:{tiny_backbone}", "--image_size=8",
        "--splits=10,5,3", "--batch_size=4", "--head=linear", "--schedule=two_phase", "--frozen_for=4steps",
        "--finetune_for=3steps", "--log_every=2steps", "--evaluate_every=2steps", "--precision=float32",
        "--progress=plain",
    )  # fmt: skip


@pytest.fixture(scope="module")
def workdir(options, tmp_path_factory):
    """Of a run with all that TensorBoard can show."""
    folder = tmp_path_factory.mktemp("runs") / "mine"
    assert call_main(*options, *WATCHED, f"--workdir={folder}") == 0
    return Workdir(str(folder))


def shown(workdir, split):
    """Returns {plugin: tags} of what a split shows."""
    events = accumulated(workdir.root / split)
    found = {}
    for tag in events.Tags()["tensors"]:
        found.setdefault(plugin(events, tag), set()).add(tag)
    return found


def test_the_same_tags_in_all_splits_and_pictures_of_evaluations(workdir):
    by_class = {f"{kind}/{name}" for kind in ("precision", "recall") for name in NAMES}
    validation = shown(workdir, "validation")
    assert {"loss", "accuracy"} <= validation["scalars"] <= {"loss", "accuracy"} | by_class
    assert {"loss", "accuracy"} <= shown(workdir, "train")["scalars"] & shown(workdir, "test")["scalars"]
    assert {"confusion_matrix", "reliability"} <= validation["images"]
    steps = steps_of(workdir.root / "validation")
    assert steps["loss"] == [2, 4, 6, 7]
    assert steps["confusion_matrix"] == steps["reliability"] == [4, 6, 7]
    assert set(shown(workdir, "options")) == {"hparams", "scalars"}


def test_distributions_of_all_variables(workdir):
    run = json.loads(workdir.run_json.read_text())
    found = shown(workdir, "train")["histograms"]
    assert {"head/logits/kernel", "head/logits/bias"} <= found
    assert any(name.startswith("backbone/") for name in found)
    steps = steps_of(workdir.root / "train")
    assert all(steps[tag] == [0, 3, 4, 6, 7] for tag in found)
    assert run["config"]["histograms_every"] == "3steps"


def test_the_manifest_is_a_table_of_just_these_names(workdir):
    [event] = accumulated(workdir.root / "train").Tensors("manifest")
    page = markdown_to_safe_html(tf.make_ndarray(event.tensor_proto).item().decode())
    assert "<i>" not in page
    cells = [html.unescape(cell) for cell in re.findall("<t[dh][^>]*>(.*?)</t[dh]>", page)]
    splits = json.loads(workdir.splits_json.read_text())["splits"]
    counts = {name: [sum(row[1] == name for row in rows) for rows in splits.values()] for name in NAMES}
    assert cells == [
        *("class", "train", "validation", "test"),
        *(cell for name in sorted(NAMES) for cell in (name, *map(str, counts[name]))),
        *(f"<strong>{word}</strong>" for word in ("all", 10, 5, 3)),
    ]
    assert hashlib.sha256(workdir.splits_json.read_bytes()).hexdigest() in page


@pytest.mark.parametrize("logdir", [".", ".."])
def test_the_hparams_tab_has_the_final_numbers(workdir, logdir):
    [row] = hparams_rows((workdir.root / logdir).resolve()).values()
    best = max(value for _, value in scalars(workdir.root / "validation")["accuracy"])
    [(_, test_accuracy)] = scalars(workdir.root / "test")["accuracy"]
    assert row["final/validation_accuracy"] == pytest.approx(best)
    assert row["final/test_accuracy"] == pytest.approx(test_accuracy)
    assert set(row) == {
        f"final/{split}_{name}" for split in ("validation", "test") for name in ("accuracy", "loss")
    }


def test_the_projector_shows_features_by_the_best_weights(workdir):
    tab = Projector(workdir.root)
    [run] = tab.get("/runs").json
    [embedding] = tab.get("/info", run=run).json["embeddings"]
    assert embedding["tensorShape"] == [4, 2]
    asked = {"run": run, "name": embedding["tensorName"]}
    features = np.frombuffer(tab.get("/tensor", **asked).data, np.float32).reshape(4, 2)
    rows = [line.split("\t") for line in tab.get("/metadata", **asked).text.splitlines()]
    validation = json.loads(workdir.splits_json.read_text())["splits"]["validation"]
    # Four of five, spread evenly.
    assert [(label, at) for label, _, at in rows[1:]] == [
        (validation[i][1], validation[i][0]) for i in (0, 1, 2, 3)
    ]
    sprite = tf.io.decode_png(tab.get("/sprite_image", **asked).data).numpy()
    assert sprite.shape == (128, 128, 3)
    for i, (label, _, _) in enumerate(rows[1:]):
        red, green, blue = sprite[64 * (i // 2) :, 64 * (i % 2) :][:64, :64].mean((0, 1))
        assert int(np.argmax([red, green, blue])) == NAMES.index(label)
    assert np.isfinite(features).all()
    assert len({tuple(row) for row in features.tolist()}) == 4


def test_the_profile_is_of_these_updates(workdir):
    folder = workdir.root / "train" / "plugins" / "profile" / "updates_2-3"
    [trace] = folder.glob("*.trace.json.gz")
    [xplane] = folder.glob("*.xplane.pb")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    assert [e["args"]["step_num"] for e in events if e["name"] == "train"] == [2, 3]
    assert xplane.stat().st_size > 1000


def test_a_run_that_is_started_again_at_its_end_writes_the_same(workdir, options):
    folder = workdir.root / "validation"

    def left():
        files = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and "tfevents" not in p.name}
        return files, [steps_of(workdir.root / split) for split in ("options", "train", "validation", "test")]

    before = left()
    assert len(before[0]) == 4
    for path in before[0]:
        path.write_bytes(b"damaged")
    # Else it is finished, and nothing is done.
    (workdir.report / "metrics.json").unlink()
    assert call_main(*options, *WATCHED, f"--workdir={workdir.root}") == 0
    assert left() == before


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ("7-8", "--profile_steps=7-8: the run has only 7 updates"),
        ("3-2", "--profile_steps=3-2: updates count from 1"),
        ("some", "--profile_steps=some is not the number of an update"),
    ],
)
def test_a_profile_of_other_updates_is_refused_before_anything_is_written(
    steps, message, options, run_main, tmp_path
):
    folder = tmp_path / "run"
    status, _, err = run_main(*options, f"--workdir={folder}", f"--profile_steps={steps}")
    assert status == 2
    assert message in err
    assert not (folder / "run.json").exists()


@pytest.mark.slow
def test_little_is_shown_where_nothing_is_asked_for(options, tmp_path):
    workdir = Workdir(str(tmp_path / "run"))
    none = ("--figures_every=", "--embeddings=0", "--schedule=frozen")
    assert call_main(*options, *none, f"--workdir={workdir.root}") == 0
    assert not (workdir.root / "validation" / "projector").exists()
    assert not (workdir.root / "train" / "plugins").exists()
    assert "histograms" not in shown(workdir, "train")
    assert not {"confusion_matrix", "reliability"} & shown(workdir, "validation")["images"]
