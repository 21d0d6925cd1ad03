"""Event files and metrics.jsonl, read back."""

import itertools
import json
import os

import numpy as np
import pytest
import tensorflow as tf
from tensorboard.plugins.hparams import metadata as hparams_metadata
from tensorboard.plugins.hparams import plugin_data_pb2

from tests.helpers.tabs import hparams_columns, hparams_rows
from tests.record.events import accumulated, plugin, scalars, steps_of
from trainer.record.summaries import Summaries
from trainer.record.workdir import Workdir
from trainer.report.figures import confusion_figure, picture_grid
from trainer.values import TrainerError


@pytest.fixture
def workdir(tmp_path):
    made = Workdir(str(tmp_path / "run"))
    made.make()
    return made


def lines(workdir):
    return [json.loads(line) for line in workdir.metrics_jsonl.read_text().splitlines()]


def write(workdir, steps, *, splits=("train", "validation", "test")):
    """Writes loss = step + 0.25 and a time; validation gets every second step, test the last."""
    summaries = Summaries(workdir, describe=lambda step: {"epoch": step / 2})
    for step in steps:
        summaries.scalars("train", step, {"loss": step + 0.25}, {"images_per_second": 1.0})
        if step % 2 == 0 and "validation" in splits:
            summaries.scalars("validation", step, {"loss": step + 0.5})
    if "test" in splits:
        summaries.scalars("test", steps[-1], {"loss": steps[-1] + 0.75})
    summaries.close()


def test_numbers_are_the_same_in_both_places(workdir):
    write(workdir, range(1, 6))
    assert lines(workdir)[:3] == [
        {"split": "train", "step": 1, "epoch": 0.5, "loss": 1.25},
        {"split": "train", "step": 2, "epoch": 1.0, "loss": 2.25},
        {"split": "validation", "step": 2, "epoch": 1.0, "loss": 2.5},
    ]
    for split in ("train", "validation", "test"):
        found = scalars(workdir.root / split)
        assert found["loss"] == [
            (line["step"], line["loss"]) for line in lines(workdir) if line["split"] == split
        ]
    assert found["loss"] == [(5, 5.75)]
    # Times differ from run to run: in TensorBoard only.
    assert [step for step, _ in scalars(workdir.root / "train")["images_per_second"]] == [1, 2, 3, 4, 5]
    assert "images_per_second" not in workdir.metrics_jsonl.read_text()


def test_numbers_are_on_disk_at_once(workdir):
    summaries = Summaries(workdir)
    summaries.scalars("train", 3, {"loss": 1.5})
    assert scalars(workdir.root / "train") == {"loss": [(3, 1.5)]}
    assert lines(workdir) == [{"split": "train", "step": 3, "loss": 1.5}]
    summaries.close()


def test_cut_back_forgets_what_will_be_written_again(workdir):
    write(workdir, range(1, 8))
    Summaries(workdir).cut_back(4)
    # The evaluation of step 4 comes after its checkpoint, so it will be made again.
    assert [(line["split"], line["step"]) for line in lines(workdir)] == [
        ("train", 1), ("train", 2), ("validation", 2), ("train", 3), ("train", 4),
    ]  # fmt: skip
    assert [step for step, _ in scalars(workdir.root / "train")["loss"]] == [1, 2, 3, 4]
    assert [step for step, _ in scalars(workdir.root / "validation")["loss"]] == [2]
    assert scalars(workdir.root / "test") == {}
    before = workdir.metrics_jsonl.read_bytes()
    Summaries(workdir).cut_back(4)
    assert workdir.metrics_jsonl.read_bytes() == before


def test_after_a_cut_each_point_is_there_once(workdir):
    write(workdir, range(1, 8))
    whole = {split: scalars(workdir.root / split) for split in ("train", "validation", "test")}
    text = workdir.metrics_jsonl.read_bytes()
    for step in (6, 3, 5):
        Summaries(workdir).cut_back(step)
        summaries = Summaries(workdir, describe=lambda step: {"epoch": step / 2})
        if step % 2 == 0:
            summaries.scalars("validation", step, {"loss": step + 0.5})
            summaries.close()
        write(workdir, range(step + 1, 8))
    assert workdir.metrics_jsonl.read_bytes() == text
    found = {split: scalars(workdir.root / split) for split in whole}
    for split in whole:
        # Several files are read in the order of their names, which is that of their times.
        for tag, points in whole[split].items():
            assert sorted(found[split][tag]) == points


def test_without_a_checkpoint_everything_is_forgotten(workdir):
    summaries = Summaries(workdir)
    summaries.text("train", "flagfile", "--seed=1")
    summaries.close()
    write(workdir, range(1, 4))
    Summaries(workdir).cut_back(None)
    assert workdir.metrics_jsonl.read_bytes() == b""
    for split in ("train", "validation", "test"):
        assert steps_of(workdir.root / split) == {}


def test_what_was_written_at_the_start_stays(workdir):
    summaries = Summaries(workdir)
    summaries.text("train", "flagfile", "--seed=1")
    summaries.close()
    write(workdir, range(1, 4))
    Summaries(workdir).cut_back(1)
    assert steps_of(workdir.root / "train") == {"flagfile": [0], "loss": [1], "images_per_second": [1]}


@pytest.mark.parametrize("cut_bytes", [1, 5, 40])
def test_what_broke_off_in_the_middle_is_left_out(workdir, cut_bytes):
    write(workdir, range(1, 6), splits=("train",))
    [events] = (workdir.root / "train").glob("events*")
    for path in (events, workdir.metrics_jsonl):
        path.write_bytes(path.read_bytes()[:-cut_bytes])
    Summaries(workdir).cut_back(4)
    assert [step for step, _ in scalars(workdir.root / "train")["loss"]] == [1, 2, 3, 4]
    assert [line["step"] for line in lines(workdir)] == [1, 2, 3, 4]
    assert list((workdir.root / "train").iterdir()) == [events]
    # It can be read to the end by the strict reader, too.
    assert len(list(tf.data.TFRecordDataset(str(events)))) > 4


def test_a_broken_line_is_left_out_even_when_nothing_else_is(workdir):
    write(workdir, range(1, 4), splits=("train",))
    whole = workdir.metrics_jsonl.read_bytes()
    workdir.metrics_jsonl.write_bytes(whole + b'{"split": "tr')
    Summaries(workdir).cut_back(3)
    assert workdir.metrics_jsonl.read_bytes() == whole


# Lines 1 to 5 of the file stay after a restore at step 4: train 1, 2, validation 2, train 3, 4.
DAMAGED_LINES = [
    (1, b"{", "it is not JSON"),
    (3, b"\xff\xfe", "it is not JSON"),
    (3, b"", "it is not JSON"),
    (4, b"[" * 100_000, "it is not JSON"),
    (5, b"\0" * 60, "it is not JSON"),
    (2, b'["train", 2]', "it names no split of a run"),
    (2, b'{"split": "trail", "step": 2}', "it names no split of a run"),
    (2, b'{"split": ["train"], "step": 2}', "it names no split of a run"),
    (4, b'{"split": "train", "loss": 3.25}', "it has no step"),
    (4, b'{"split": "train", "step": true}', "it has no step"),
    (4, b'{"split": "train", "step": 3.0}', "it has no step"),
    (4, b'{"split": "train", "step": 2}', "step 2 of train comes after step 2"),
    (4, b'{"split": "train", "step": 1}', "step 1 of train comes after step 2"),
    (3, b'{"split": "validation", "step": 5}', "what comes after it is older"),
    # It may have been one that stays.
    (6, b"{", "it is not JSON"),
]


@pytest.mark.parametrize(("number", "bad", "fault"), DAMAGED_LINES)
def test_a_damaged_line_is_named_and_nothing_is_touched(number, bad, fault, workdir):
    write(workdir, range(1, 6))
    damaged = workdir.metrics_jsonl.read_bytes().splitlines(keepends=True)
    damaged[number - 1] = bad + b"\n"
    workdir.metrics_jsonl.write_bytes(b"".join(damaged))
    before = {path: path.read_bytes() for path in workdir.root.rglob("*") if path.is_file()}
    with pytest.raises(TrainerError) as caught:
        Summaries(workdir).cut_back(4)
    assert str(caught.value) == (
        f"{workdir.metrics_jsonl} is damaged in line {number}: {fault}. "
        "Mend or remove that line, and start again"
    )
    assert {path: path.read_bytes() for path in workdir.root.rglob("*") if path.is_file()} == before
    # Where nothing of it is needed, it does not matter.
    Summaries(workdir).cut_back(None)
    assert workdir.metrics_jsonl.read_bytes() == b""


@pytest.mark.parametrize("bad", [b"{", b"\0" * 60, b'{"split": "train"}'])
def test_a_damaged_line_among_those_to_be_forgotten_does_not_matter(bad, workdir):
    write(workdir, range(1, 6))
    whole = workdir.metrics_jsonl.read_bytes().splitlines(keepends=True)
    workdir.metrics_jsonl.write_bytes(b"".join(whole[:6]) + bad + b"\n" + whole[7] + bad)
    Summaries(workdir).cut_back(4)
    assert workdir.metrics_jsonl.read_bytes() == b"".join(whole[:5])


def test_a_last_line_that_lacks_only_its_end_stays(workdir):
    write(workdir, range(1, 4), splits=("train",))
    whole = workdir.metrics_jsonl.read_bytes()
    workdir.metrics_jsonl.write_bytes(whole[:-1])
    Summaries(workdir).cut_back(3)
    assert workdir.metrics_jsonl.read_bytes() == whole


def test_what_comes_before_damage_in_an_event_file_is_kept(workdir, caplog):
    write(workdir, range(1, 6), splits=("train",))
    [events] = (workdir.root / "train").glob("events*")
    data = bytearray(events.read_bytes())
    # Its fourth record is the loss of step 2: version, then loss and images_per_second of step 1.
    ends = list(itertools.accumulate(16 + len(r.numpy()) for r in tf.data.TFRecordDataset(str(events))))
    data[ends[2] + 20] ^= 1
    events.write_bytes(data)
    Summaries(workdir).cut_back(4)
    assert steps_of(workdir.root / "train") == {"loss": [1], "images_per_second": [1]}
    assert events.stat().st_size == ends[2]
    num_cut = len(data) - ends[2]
    assert f"{events}: its last {num_cut} of {len(data)} bytes had broken off or were damaged" in caplog.text


def test_an_event_file_that_would_show_nothing_is_removed(workdir):
    for step in (2, 4):
        summaries = Summaries(workdir)
        summaries.cut_back(step)
        summaries.scalars("validation", step, {"loss": 1.0})
        summaries.close()
        Summaries(workdir).cut_back(step)
    assert list((workdir.root / "validation").iterdir()) == []


def test_tensorboard_does_not_see_an_event_file_that_is_being_cut(workdir, monkeypatch):
    write(workdir, range(1, 6), splits=("train",))
    folder = workdir.root / "train"
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    seen = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda *paths: (seen.append(list(folder.iterdir())), replace(*paths)))
    Summaries(workdir).cut_back(3)
    there = {path for paths in seen for path in paths if "tfevents" in path.name}
    assert {path.name for path in there} == set(whole)
    assert len(max(seen, key=len)) == len(whole) + 1
    # One that a kill left behind is removed.
    [part] = {path for paths in seen for path in paths} - there
    part.write_bytes(b"begun")
    Summaries(workdir).cut_back(3)
    assert set(folder.iterdir()) == there


OPTIONS = {"head": "linear", "batch_size": 32, "dropout": 0.5, "drop": True}
FINAL = {"validation_accuracy": 0.75, "validation_loss": 0.5, "test_accuracy": 0.25, "test_loss": 2.0}


def test_options_of_the_run_for_the_hparams_tab(workdir):
    summaries = Summaries(workdir)
    summaries.hparams(OPTIONS)
    summaries.close()
    events = accumulated(workdir.root / "options")
    data = {}
    for tag in events.Tags()["tensors"]:
        if plugin(events, tag) == "hparams":
            data[tag] = plugin_data_pb2.HParamsPluginData.FromString(
                events.SummaryMetadata(tag).plugin_data.content
            )
    started = data[hparams_metadata.SESSION_START_INFO_TAG].session_start_info
    assert {name: value.WhichOneof("kind") for name, value in started.hparams.items()} == {
        "head": "string_value",
        "batch_size": "number_value",
        "dropout": "number_value",
        "drop": "bool_value",
    }
    assert started.hparams["batch_size"].number_value == 32
    # TensorBoard would go by the one of the first run that it finds.
    assert hparams_metadata.EXPERIMENT_TAG not in data


def test_the_hparams_tab_shows_first_in_which_options_runs_differ(tmp_path):
    for name, changes in (("a", {}), ("b", {"zoom": 3})):
        workdir = Workdir(str(tmp_path / name))
        workdir.make()
        summaries = Summaries(workdir)
        summaries.hparams({**OPTIONS, "zoom": 2, **changes})
        summaries.scalars("validation", 3, {"loss": 1.0, "accuracy": 0.5})
        summaries.final(FINAL, step=9)
        summaries.close()
    columns, metrics = hparams_columns(tmp_path)
    assert columns == ["zoom", "batch_size", "drop", "dropout", "head"]
    # And nothing of the splits, which has its place elsewhere.
    assert metrics == {f"final/{name}" for name in FINAL}


@pytest.mark.parametrize("shown", ["run", "."])
def test_the_hparams_tab_finds_the_numbers_of_a_run_from_any_folder(shown, tmp_path):
    for i, name in enumerate(("a/seed-0", "b/seed-0", "c")):
        workdir = Workdir(str(tmp_path / "run" / name if shown == "run" else tmp_path / "run"))
        workdir.make()
        summaries = Summaries(workdir)
        summaries.hparams(OPTIONS)
        summaries.final({metric: value + i for metric, value in FINAL.items()}, step=9)
        summaries.close()
        if shown == ".":
            break
    rows = hparams_rows(tmp_path / "run")
    names = ["a/seed-0/options", "b/seed-0/options", "c/options"] if shown == "run" else ["options"]
    # Two runs of the same name are two rows, and each has its own numbers.
    assert rows == {
        name: {f"final/{metric}": value + i for metric, value in FINAL.items()}
        for i, name in enumerate(names)
    }


def test_final_numbers_are_there_once_after_a_second_end(workdir):
    for _ in range(2):
        summaries = Summaries(workdir)
        summaries.cut_back(9)
        summaries.final(FINAL, step=9)
        summaries.close()
    folder = workdir.root / "options"
    assert scalars(folder) == {f"final/{name}": [(9, value)] for name, value in FINAL.items()}
    Summaries(workdir).cut_back(9)
    assert scalars(folder) == {}


def test_cut_back_keeps_the_options(workdir):
    summaries = Summaries(workdir)
    summaries.hparams(OPTIONS)
    summaries.close()
    Summaries(workdir).cut_back(1)
    assert len(steps_of(workdir.root / "options")) == 1
    Summaries(workdir).cut_back(None)
    assert steps_of(workdir.root / "options") == {}


def test_distributions_of_arrays(workdir):
    grid = np.arange(60, dtype=np.float32).reshape(3, 20)
    summaries = Summaries(workdir)
    summaries.histograms("train", 7, {"a/kernel": grid, "a/bias": np.zeros(4), "b": np.full(3, np.nan)})
    summaries.close()
    events = accumulated(workdir.root / "train")
    assert {tag: plugin(events, tag) for tag in events.Tags()["tensors"]} == {
        "a/kernel": "histograms",
        "a/bias": "histograms",
    }
    [event] = events.Tensors("a/kernel")
    found = tf.make_ndarray(event.tensor_proto)
    # Two in each of 30 bins, left edge, right edge, count.
    assert event.step == 7
    np.testing.assert_allclose(found, [[i * 59 / 30, (i + 1) * 59 / 30, 2] for i in range(30)])


def test_graph_text_and_pictures(workdir):
    @tf.function
    def double(x):
        return tf.multiply(x, 2.0, name="doubled")

    red = np.zeros([2, 6, 6, 3], np.float32)
    red[..., 0] = 1.0
    png = picture_grid(red, ["rose", "tulip"])
    summaries = Summaries(workdir)
    summaries.graph("train", double.get_concrete_function(tf.TensorSpec([3])).graph)
    summaries.text("train", "flagfile", "    --seed=1")
    summaries.image("train", "pictures/frozen", png, step=0)
    summaries.close()
    events = accumulated(workdir.root / "train")
    assert events.Tags()["graph"]
    assert "doubled" in {node.name for node in events.Graph().node}
    assert {tag: plugin(events, tag) for tag in events.Tags()["tensors"]} == {
        "flagfile": "text",
        "pictures/frozen": "images",
    }
    width, height, encoded = tf.make_ndarray(events.Tensors("pictures/frozen")[0].tensor_proto).tolist()
    assert encoded == png
    picture = tf.io.decode_png(encoded, channels=3).numpy()
    assert picture.shape == (int(height), int(width), 3)
    assert ((picture == [255, 0, 0]).all(axis=-1)).mean() > 0.1


@pytest.mark.parametrize("count", [1, 3, 4, 5, 16])
def test_a_grid_of_any_number_of_pictures(count):
    png = picture_grid(
        np.random.default_rng(0).random((count, 5, 4, 3)), [f"class {i}" for i in range(count)]
    )
    assert png.startswith(b"\x89PNG")
    assert b"Software" not in png


def test_a_confusion_matrix_gives_the_same_bytes_again():
    matrix, names = np.array([[3, 1], [0, 2]]), ["a", "b"]
    first = confusion_figure(matrix, names, title="two classes")
    assert first == confusion_figure(matrix, names, title="two classes")
    assert first != confusion_figure(matrix[::-1], names, title="two classes")


def test_a_confusion_matrix_of_many_classes():
    png = confusion_figure(np.eye(31, dtype=int), [f"class {i}" for i in range(31)], title="all right")
    assert png.startswith(b"\x89PNG")
