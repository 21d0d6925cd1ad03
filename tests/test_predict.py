"""`predict` through the door: a run's own pictures, unknown ones, and what is no picture."""

import contextlib
import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

import trainer
from tests.conftest import call_main, make_flower_folder
from tests.data.inspect.test_trial import DAMAGED
from tests.data.kinds import KINDS
from tests.data.pictures import blocks, encode, jpeg
from tests.helpers.undrawn import PLAIN
from trainer.cli.config import Config
from trainer.data.inspect.bad_pictures import shown_name
from trainer.data.inspect.scan import scan
from trainer.data.loading import Loader
from trainer.data.picture_files import Found, find_pictures
from trainer.data.pipeline import Pipeline
from trainer.data.sources.folder import open_folder
from trainer.model.weights import assign_weights
from trainer.precision import supported
from trainer.record.predictions import FORMATS, Prediction, choose_format
from trainer.record.workdir import Workdir
from trainer.run import finished_run as finished
from trainer.values import Contract, TrainerError

pytestmark = pytest.mark.usefixtures("figures_undrawn")

NAMES = ["blue", "green", "red"]


@pytest.fixture(scope="module")
def trained(colours, tmp_path_factory):
    """A run on three colours whose pictures are gone; `pictures` is a copy of them."""
    root = tmp_path_factory.mktemp("predict")
    workdir = colours.copy(root)
    with contextlib.redirect_stdout(io.StringIO()):
        assert call_main("evaluate", f"--workdir={workdir}", "--eval_split=validation") == 0
    with open(workdir / "report" / "validation" / "predictions.csv") as file:
        rows = list(csv.DictReader(file))
    with colours.pictures_away(root) as pictures:
        yield SimpleNamespace(
            root=root, workdir=workdir, pictures=pictures, source=colours.source, validation=rows
        )


@pytest.fixture
def predict(trained, run_main):
    """predict(*arguments) -> (exit status, standard output, lines of standard error)."""

    def run(*arguments):
        status, out, err = run_main("predict", f"--workdir={trained.workdir}", *arguments)
        return status, out, err.splitlines()

    return run


@pytest.fixture
def mixed(trained, tmp_path):
    """A folder of four pictures and seven things that are none, and {path: reason} of those."""
    folder = tmp_path / "mixed"
    (folder / "inner").mkdir(parents=True)
    picture = trained.pictures / "red" / "000.jpg"
    for name in ("a.jpg", "inner/b.JPG", "z.jpeg"):
        shutil.copy(picture, folder / name)
    shutil.copy(picture, os.fsencode(folder) + b"/\xff.jpg")
    shutil.copy(picture, folder / ".hidden.jpg")
    (folder / "notes.txt").write_text("no picture, and no name of one")
    data = picture.read_bytes()
    (folder / "cut.jpg").write_bytes(data[:-30])
    (folder / "dir.jpg").mkdir()
    shutil.copy(picture, folder / "dir.jpg" / "inside.jpg")
    (folder / "empty.png").write_bytes(b"")
    (folder / "loop").symlink_to(folder)
    (folder / "nothing.gif").symlink_to(folder / "no-such-file")
    os.mkfifo(folder / "pipe.png")
    (folder / "text.webp").write_text("text")
    return SimpleNamespace(
        folder=folder,
        read=["a.jpg", "inner/b.JPG", "z.jpeg", "\udcff.jpg"],
        bad={
            "cut.jpg": "it ends in the middle",
            "dir.jpg": "a folder, not a picture",
            "empty.png": "it is empty (0 bytes)",
            "loop": "a link to a folder that it lies in",
            "nothing.gif": "No such file or directory",
            "pipe.png": "not a regular file",
            "text.webp": "it is none of JPEG, PNG, GIF, BMP and WebP",
        },
    )


def objects(out):
    return [json.loads(line) for line in out.splitlines()]


def paths_of(out):
    return [value["path"] for value in objects(out)]


def test_predictions_of_the_validation_split_are_those_of_its_evaluation(trained, predict):
    assert not trained.source.exists()
    paths = [trained.pictures / row["id"] for row in trained.validation]
    status, out, err = predict("--format=csv", *paths)
    rows = list(csv.DictReader(io.StringIO(out)))
    assert status == 0
    assert [row["path"] for row in rows] == [str(path) for path in paths]
    assert len(rows) == 9
    columns = [
        "path",
        "prediction",
        "probability",
        "uncertain",
        "error",
        *(f"probability_{n}" for n in NAMES),
    ]
    assert list(rows[0]) == columns
    for row, evaluated in zip(rows, trained.validation, strict=True):
        assert row["prediction"] == evaluated["prediction"] == evaluated["label"]
        values = [float(row[f"probability_{name}"]) for name in NAMES]
        assert values == pytest.approx([float(evaluated[f"probability_{name}"]) for name in NAMES], abs=2e-6)
        assert (float(row["probability"]), row["uncertain"], row["error"]) == (max(values), "false", "")
    assert len(err) == 1
    assert err[0].startswith("9 of 9 pictures predicted in ")
    assert err[0].endswith("of it was waiting for input")


def test_what_is_no_picture_is_named_and_stops_nothing(mixed, predict):
    status, out, err = predict("--format=jsonl", mixed.folder)
    found = {value["path"]: value for value in objects(out)}
    undecoded = "$'" + f"{mixed.folder}/" + "\\xff.jpg'"
    names = sorted([*mixed.read, *mixed.bad])
    assert list(found) == [undecoded if n == "\udcff.jpg" else f"{mixed.folder}/{n}" for n in names]
    assert status == 0
    for name, reason in mixed.bad.items():
        nothing = {"label": None, "probability": None, "uncertain": None, "top": []}
        path = f"{mixed.folder}/{name}"
        assert found.pop(path) == {"path": path, **nothing, "error": reason}
        assert f"{path} cannot be read: {reason}" in err
    for value in found.values():
        assert (value["label"], value["uncertain"], value["error"]) == ("red", False, None)
        assert value["top"] == [{"label": "red", "probability": value["probability"]}]
    assert len(err) == 8
    assert err[-1].startswith("4 of 11 pictures predicted in ")


def test_nothing_readable_is_a_failure(predict, tmp_path, monkeypatch):
    # The network is not waited for.
    monkeypatch.setattr("trainer.commands.predict.open_network", None)
    status, out, err = predict(tmp_path / "missing.jpg", tmp_path, f"{tmp_path}/*.jpg", "--format=csv")
    assert status == 1
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [(row["path"], row["prediction"], row["error"].split(":")[0]) for row in rows] == [
        (f"{tmp_path}/missing.jpg", "", "No such file or directory"),
        (f"{tmp_path}", "", "a folder without pictures"),
        (f"{tmp_path}/*.jpg", "", "no file has a name like this"),
    ]
    assert err[-1] == "nothing predicted: none of 3 files could be read"
    assert err[0] == f"{tmp_path}/missing.jpg cannot be read: No such file or directory"
    # On a terminal the line of the picture says it already.
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    status, out, err = predict(tmp_path / "missing.jpg")
    assert "No such file or directory" in out
    assert err == ["nothing predicted: the only file cannot be read"]


def test_how_many_make_a_batch_is_asked_for_here(trained, predict, monkeypatch):
    sizes, logits = [], finished.Network.logits

    def seen(network, images, *, batch_size=0):
        sizes.append((len(images), batch_size))
        return logits(network, images, batch_size=batch_size)

    folder = trained.pictures / "red"
    _, usual, _ = predict(str(folder))
    monkeypatch.setattr(finished.Network, "logits", seen)
    status, out, _ = predict("--batch_size=5", str(folder))
    assert (status, {size for _, size in sizes}, max(sizes)[0]) == (0, {5}, 5)
    found, wanted = objects(out), objects(usual)
    assert [one["label"] for one in found] == [one["label"] for one in wanted]
    assert [one["probability"] for one in found] == pytest.approx([one["probability"] for one in wanted])


def test_order_patterns_and_each_picture_once(trained, predict):
    red, green = trained.pictures / "red", trained.pictures / "green"
    status, out, _ = predict(
        green / "005.jpg", f"{red}/00[1-3].jpg", red / ".." / "red" / "002.jpg", green, "--format=jsonl"
    )
    assert status == 0
    rest = [i for i in range(10) if i != 5]
    wanted = [
        green / "005.jpg",
        *(red / f"00{i}.jpg" for i in (1, 2, 3)),
        *(green / f"00{i}.jpg" for i in rest),
    ]
    assert paths_of(out) == [str(path) for path in wanted]
    _, out, _ = predict(f"{trained.pictures}/**/009.jpg", "--format=jsonl")
    assert paths_of(out) == [str(trained.pictures / name / "009.jpg") for name in NAMES]


def test_a_file_with_brackets_in_its_name_is_no_pattern(trained, predict, tmp_path):
    path = shutil.copy(trained.pictures / "red" / "000.jpg", tmp_path / "a[1].jpg")
    (tmp_path / "a1.jpg").write_text("")
    assert paths_of(predict(path, "--format=jsonl")[1]) == [str(path)]


def test_folders_in_code_point_order_of_paths(trained, predict, tmp_path):
    for name in ("a/x.jpg", "a-b/x.jpg", "a.jpg", "a/A.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(trained.pictures / "blue" / "000.jpg", tmp_path / name)
    wanted = sorted(["a/x.jpg", "a-b/x.jpg", "a.jpg", "a/A.jpg"])
    assert paths_of(predict(tmp_path, "--format=jsonl")[1]) == [f"{tmp_path}/{name}" for name in wanted]


@pytest.mark.parametrize("arguments", [[], ["-"]])
def test_a_list_on_standard_input(arguments, trained, predict, monkeypatch):
    lines = b"%s\n\n%s\r\nno\0file\n%s" % tuple(
        os.fsencode(trained.pictures / name) for name in ("red/001.jpg", "blue/002.jpg", "green/*.jpg")
    )
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines)))
    status, out, _ = predict("--format=jsonl", *arguments)
    found = [(os.path.basename(value["path"]), value["label"], value["error"]) for value in objects(out)]
    assert status == 0
    assert found == [
        ("001.jpg", "red", None),
        ("002.jpg", "blue", None),
        ("$'no\\x00file'", None, "its name holds a zero byte: a list has one path a line"),
        ("*.jpg", None, "No such file or directory"),
    ]


def test_an_empty_list_and_none_at_all(predict, monkeypatch, tmp_path):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\n")))
    message = "trainer: there are no pictures: the list of paths is empty"
    assert predict(f"--output={tmp_path / 'new.csv'}")[::2] == (1, [message])
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    status, out, err = predict()
    assert (status, out, len(err)) == (2, "", 1)
    assert err[0].startswith("trainer: predict needs pictures: ")


PREDICTIONS = [
    Prediction("a.jpg", "daisy", 0.7, {"daisy": 0.7, "rose": 0.1, "tulip": 0.2}),
    Prediction("b\n.jpg", "tulip", 0.4, {"daisy": 0.3, "rose": 0.3, "tulip": 0.4}),
    Prediction("c.jpg", error="it is empty (0 bytes)"),
]


@pytest.mark.parametrize(
    ("form", "top_k", "threshold", "wanted"),
    [
        (
            "table", 1, 0.0,
            "probability  class       picture\n"
            "     0.7000  daisy       a.jpg\n"
            "     0.4000  tulip       $'b\\n.jpg'\n"
            "          -  (not read)  c.jpg: it is empty (0 bytes)\n",
        ),
        (
            "table", 2, 0.5,
            "probability  class         probability  class         picture\n"
            "     0.7000  daisy              0.2000  tulip         a.jpg\n"
            "     0.4000  tulip ?            0.3000  daisy         $'b\\n.jpg'\n"
            "          -  (not read)                               c.jpg: it is empty (0 bytes)\n",
        ),
        (
            "csv", 1, 0.5,
            "path,prediction,probability,uncertain,error,probability_daisy,probability_rose,probability_tulip\n"
            "a.jpg,daisy,0.700000,false,,0.700000,0.100000,0.200000\n"
            "$'b\\n.jpg',tulip,0.400000,true,,0.300000,0.300000,0.400000\n"
            "c.jpg,,,,it is empty (0 bytes),,,\n",
        ),
        (
            "jsonl", 2, 0.5,
            '{"path": "a.jpg", "label": "daisy", "probability": 0.7, "uncertain": false, "top": '
            '[{"label": "daisy", "probability": 0.7}, {"label": "tulip", "probability": 0.2}], '
            '"error": null}\n'
            '{"path": "$\'b\\\\n.jpg\'", "label": "tulip", "probability": 0.4, "uncertain": true, "top": '
            '[{"label": "tulip", "probability": 0.4}, {"label": "daisy", "probability": 0.3}], '
            '"error": null}\n'
            '{"path": "c.jpg", "label": null, "probability": null, "uncertain": null, "top": [], "error": '
            '"it is empty (0 bytes)"}\n',
        ),
    ],
)  # fmt: skip
def test_every_format_to_the_letter(form, top_k, threshold, wanted):
    lines = FORMATS[form](["daisy", "rose", "tulip"], top_k=top_k, threshold=threshold)
    written = lines.head + "".join(lines.line(p, shown=shown_name(p.path)) for p in PREDICTIONS)
    assert written == wanted


def test_which_format_auto_is(monkeypatch):
    assert [choose_format("auto", output=f"a.{end}") for end in ("csv", "CSV", "txt", "jsonl", "x")] == [
        "csv", "csv", "table", "jsonl", "jsonl",
    ]  # fmt: skip
    for is_terminal, form in ((True, "table"), (False, "jsonl")):
        monkeypatch.setattr("sys.stdout", SimpleNamespace(isatty=lambda answer=is_terminal: answer))
        assert choose_format("auto", output="") == form
        assert choose_format("csv", output="") == "csv"


def test_an_output_file_is_whole_or_as_it_was(trained, predict, tmp_path, monkeypatch):
    output = tmp_path / "new" / "file.csv"
    status, out, err = predict(trained.pictures, f"--output={output}", "--progress=bar")
    assert (status, out) == (0, "")
    assert any("%|" in line for line in err)
    rows = list(csv.DictReader(io.StringIO(output.read_text())))
    assert [row["path"] for row in rows] == [
        f"{trained.pictures}/{name}/{i:03d}.jpg" for name in NAMES for i in range(10)
    ]
    assert os.listdir(output.parent) == ["file.csv"]
    before = output.read_bytes()

    def fail(self, found):
        raise TrainerError("the middle")

    monkeypatch.setattr(Loader, "load", fail)
    assert predict(trained.pictures, f"--output={output}")[::2] == (1, ["trainer: the middle"])
    assert (output.read_bytes(), os.listdir(output.parent)) == (before, ["file.csv"])


def test_places_where_no_output_can_be(trained, predict, tmp_path):
    (tmp_path / "file").write_text("")
    for output, message in (
        (tmp_path, "is a folder: it must be a file"),
        ("/dev/null", "is no regular file: it must be a file"),
        (tmp_path / "file" / "a.csv", "lies below a file: it must be a file in a folder"),
    ):
        assert predict(trained.pictures, f"--output={output}") == (
            1,
            "",
            [f"trainer: --output={output} {message}"],
        )


def test_options_out_of_range(trained, predict):
    for option, message in (
        ("--top_k=4", "this run knows only 3 classes"),
        ("--top_k=0", "must be 1 or more"),
        ("--threshold=1.5", "must be from 0 to 1"),
        ("--format=xml", "value should be one of <auto|table|jsonl|csv>"),
    ):
        status, out, err = predict(option, trained.pictures)
        assert (status, out, len(err)) == (2, "", 1)
        assert err[0].removeprefix("trainer: ").startswith((option, f"flag {option}"))
        assert err[0].endswith(message)


def test_runs_that_cannot_predict(trained, predict, run_main, tmp_path):
    status, out, err = run_main("predict", f"--workdir={tmp_path}", trained.pictures)
    assert (status, out, err) == (1, "", f"trainer: --workdir={tmp_path} holds no run (no run.json in it)\n")
    assert run_main("predict", trained.pictures)[0] == 2
    shutil.copytree(trained.workdir, tmp_path / "run")
    _, _, err = run_main("predict", f"--workdir={tmp_path / 'runn'}", trained.pictures)
    assert err.endswith("holds no run (no run.json in it): is it run?\n")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    status, out, err = run_main("predict", f"--workdir={tmp_path / 'run'}", trained.pictures)
    message = f"trainer: no 'best' checkpoint in {tmp_path / 'run'}/checkpoints; there is none at all: of"
    assert (status, out) == (1, "")
    assert err == f"{message} a run that was stopped before its first step, run the command again\n"
    status, out, err = predict(trained.pictures, "--image_size=9")
    assert (status, out) == (1, "")
    assert "holds a run with other options: --image_size was 8, now 9" in err[0]


def test_a_network_that_is_not_what_it_was(trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained.workdir, run)
    record = json.loads((run / "run.json").read_text())
    record["contract"]["feature_width"] = 3
    (run / "run.json").write_text(json.dumps(record))
    with pytest.raises(
        TrainerError, match="is not the network this run was trained with: feature_width was 3"
    ):
        trainer.load(run).predict([])


def test_a_checkpoint_by_its_step_has_its_own_weights(trained):
    picture = trained.pictures / "red" / "000.jpg"
    first, last = (trainer.load(trained.workdir, checkpoint=c).predict(picture)[0] for c in ("32", "latest"))
    assert first.probability < last.probability


def test_from_python(trained, mixed):
    predictor = trainer.load(trained.workdir)
    assert predictor.class_names == tuple(NAMES)
    red, cut = trained.pictures / "red", f"{mixed.folder}/cut.jpg"
    found = predictor.predict([red, cut, f"{mixed.folder}/[za].*"])
    wanted = [f"{red}/009.jpg", cut, f"{mixed.folder}/a.jpg", f"{mixed.folder}/z.jpeg"]
    assert [p.path for p in found[9:]] == wanted
    assert found[10] == Prediction(cut, error="it ends in the middle")
    for one in (*found[:10], *found[11:]):
        assert (one.label, one.error, list(one.probabilities)) == ("red", "", NAMES)
        assert sum(one.probabilities.values()) == pytest.approx(1)
        assert one.probability == one.probabilities["red"] == max(one.probabilities.values())
    assert [p.label for p in predictor.predict(trained.pictures / "blue" / "000.jpg")] == ["blue"]


STATE_OF_PROCESS = """
signal handlers: {signals}
filters: {filters}
options: {options}
standard error: {stderr}, {python}
"""


def state_of_process():
    """What belongs to all threads together, as text."""
    return STATE_OF_PROCESS.format(
        signals=[signal.getsignal(number) for number in signal.valid_signals()],
        filters=warnings.filters,
        options=tf.config.optimizer.get_experimental_options(),
        stderr=[os.fstat(descriptor)[:3] for descriptor in (1, 2)],
        python=(id(sys.stdout), id(sys.stderr)),
    )


@pytest.mark.parametrize("rounds", [5, pytest.param(40, marks=pytest.mark.slow)])
def test_two_threads_predict_at_once(trained, mixed, capfd, monkeypatch, rounds):
    # Other than the arithmetic of the rest of the process, so that it would show.
    monkeypatch.setattr(finished, "precision_at", lambda *arguments: supported()[-1])
    paths = [trained.pictures / "red", mixed.folder, trained.pictures / "blue"]
    predictor = trainer.load(trained.workdir)
    alone = predictor.predict(paths)
    assert {one.error for one in alone if one.error} == set(mixed.bad.values())
    before = state_of_process()
    capfd.readouterr()
    begin = threading.Barrier(2)

    def predict_often(each):
        begin.wait()
        return [(predictor if each else trainer.load(trained.workdir)).predict(paths) for _ in range(rounds)]

    with ThreadPoolExecutor(2) as pool:
        found = [rounds for both in pool.map(predict_often, range(2)) for rounds in both]
    assert len(found) == 2 * rounds
    assert all(predictions == alone for predictions in found)
    assert state_of_process() == before
    os.write(2, b"still here\n")
    assert capfd.readouterr().err == "still here\n"


def test_the_program_in_a_thread(trained, tiny_backbone, tmp_path):
    folder = make_flower_folder(tmp_path / "source")
    arguments = [
        f"--source=folder:{folder}", f"--backbone=savedmodel:{tiny_backbone}", "--image_size=8",
        "--head=linear", "--splits=60%,20%,20%", "--batch_size=4", "--schedule=frozen",
        "--frozen_for=2epochs", "--precision=float32", *PLAIN, f"--workdir={tmp_path / 'run'}",
    ]  # fmt: skip
    before = state_of_process()
    with contextlib.redirect_stdout(io.StringIO()), ThreadPoolExecutor(1) as pool:
        assert pool.submit(call_main, "train", *arguments).result() == 0
        assert pool.submit(call_main, "predict", f"--workdir={tmp_path / 'run'}", folder).result() == 0
    assert state_of_process() == before
    assert (tmp_path / "run" / "report" / "metrics.json").exists()


def test_pictures_are_loaded_only_some_batches_ahead(trained):
    given = 0

    def endless():
        nonlocal given
        while True:
            given += 1
            yield Found(str(trained.pictures / "green" / "000.jpg"))

    stream = trainer.load(trained.workdir).stream(endless())
    assert [next(stream).label for _ in range(9)] == ["green"] * 9
    assert given <= 12 + 4 + 1  # Three batches of four, and one that is being loaded.
    stream.close()


def write_kinds(folder):
    """Writes a picture of every kind into two classes, as they must be for a source."""
    for k, (name, data) in enumerate(KINDS.items()):
        path = folder / ("odd" if k % 2 else "even") / f"{name.replace('/', ' ')}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    return open_folder(str(folder), name="folder:kinds")


@pytest.mark.parametrize(
    ("exif_is", "decoding"), [("apply", "exact"), ("ignore", "exact"), ("apply", "scaled")]
)
def test_pixels_are_those_of_training_to_the_last_bit(exif_is, decoding, tmp_path):
    source, contract = write_kinds(tmp_path), Contract(9, 8, (-1.0, 1.0), feature_width=2, any_size=False)
    pipeline = Pipeline(
        source, scan(source, exif=exif_is), contract=contract, batch_size=4, seed=0, decoding=decoding
    )
    trained_on = np.concatenate(
        [b["image"][b["mask"] > 0] for b in pipeline.once(np.arange(len(source.ids)))]
    )
    loader = Loader(contract, exif=exif_is, max_pixels=10**6, decoding=decoding)
    loaded = list(loader.load_all((Found(f"{tmp_path}/{name}") for name in source.ids), ahead=3))
    assert [one.problem for one in loaded] == [""] * len(KINDS)
    np.testing.assert_array_equal([one.pixels for one in loaded], trained_on)


@pytest.mark.parametrize("decoding", ["exact", "scaled"])
def test_damage_is_told_in_the_words_of_training(decoding, tmp_path, capfd):
    for k, (data, _) in enumerate([*DAMAGED.values(), (jpeg(), ""), (encode(blocks(), "PNG"), "")]):
        (tmp_path / f"{k:02d}.jpg").write_bytes(data)
    contract = Contract(8, 8, (0.0, 1.0), feature_width=2, any_size=True)
    loader = Loader(contract, exif="apply", max_pixels=10**6, decoding=decoding)
    loaded = list(loader.load_all(find_pictures([str(tmp_path)]), ahead=8))
    small = Loader(contract, exif="apply", max_pixels=191, decoding=decoding)
    small = small.load(Found(f"{tmp_path}/{len(DAMAGED)}.jpg"))
    for one, (kind, (_, reason)) in zip(loaded, DAMAGED.items(), strict=False):
        assert one.problem.startswith(reason), kind
        assert one.problem, kind
        assert one.pixels is None
    assert [one.problem for one in loaded[-2:]] == ["", ""]
    assert small.problem == "16x12 px are more than --max_pixels=191"
    assert capfd.readouterr().err == ""


def classifier_of(**values):
    return SimpleNamespace(named_variables={name: tf.Variable(value) for name, value in values.items()})


def test_averaged_weights_go_first_and_every_weight_is_matched():
    network = classifier_of(kernel=[0.0, 0.0], bias=0.0)
    assign_weights(
        network,
        {
            "model/kernel": np.float32([1, 2]),
            "model/bias": np.float32(3),
            "average/kernel": np.float32([4, 5]),
            "average/count": np.float32(9),
            "step": np.int64(7),
        },
    )
    assert [v.numpy().tolist() for v in network.named_variables.values()] == [[4, 5], 3]
    for values, difference in (
        ({"model/kernel": np.zeros(2)}, "bias is missing in the checkpoint and [] here"),
        (
            {"model/kernel": np.zeros(2), "model/bias": np.float32(1), "model/gamma": np.zeros(1)},
            "gamma is [1] in the checkpoint and missing here",
        ),
        (
            {"model/kernel": np.zeros(2), "average/kernel": np.zeros(3), "model/bias": np.float32(1)},
            "kernel is [3] in the checkpoint and [2] here",
        ),
    ):
        with pytest.raises(TrainerError) as error:
            assign_weights(network, values)
        assert difference in str(error.value)
    assert [v.numpy().tolist() for v in network.named_variables.values()] == [[4, 5], 3]


@pytest.mark.slow
def test_a_head_with_one_logit_and_averaged_weights(tiny_backbone, tmp_path, run_main):
    make_flower_folder(tmp_path / "pictures", classes=["red", "green"])
    workdir = tmp_path / "run"
    status, _, err = run_main(
        f"--source=folder:{tmp_path / 'pictures'}", f"--backbone=savedmodel:{tiny_backbone}",
        "--image_size=8", "--head=linear", "--logits=one", "--splits=50%,50%", "--batch_size=4",
        "--schedule=frozen", "--frozen_for=5epochs", "--frozen_learning_rate=0.1", "--precision=float32",
        "--average=ema(0.95)", *PLAIN, f"--workdir={workdir}",
    )  # fmt: skip
    assert (status, err) == (0, "")
    with open(workdir / "report" / "predictions.csv") as file:
        rows = list(csv.DictReader(file))
    found = trainer.load(workdir).predict([tmp_path / "pictures" / row["id"] for row in rows])
    for one, row in zip(found, rows, strict=True):
        values = {
            name: pytest.approx(float(row[f"probability_{name}"]), abs=2e-6) for name in ("green", "red")
        }
        assert (one.label, one.probabilities) == (row["prediction"], values)


@pytest.mark.parametrize(
    ("options", "shapes"),
    [
        ({"head": "auto"}, [[2, 512], [512], [512, 3], [3]]),
        ({"head": "auto", "schedule": "auto"}, [[2, 3], [3]]),
        ({"head": "mlp(4)", "schedule": "auto"}, [[2, 4], [4], [4, 3], [3]]),
        ({"head": "linear"}, [[2, 3], [3]]),
    ],
)
def test_the_head_is_that_of_training(options, shapes):
    contract = Contract(8, 8, (0.0, 1.0), feature_width=2, any_size=True)
    backbone = SimpleNamespace(name="stub", contract=contract, variables={}, layers=())
    classifier = finished.make_classifier(
        Config().replace(**options), backbone, num_classes=3, num_examples=9
    )
    assert [variable.shape.as_list() for variable in classifier.named_variables.values()] == shapes


@pytest.mark.parametrize(("step", "precision"), [(40, "float32"), (41, "bfloat16"), (99, "bfloat16")])
def test_the_arithmetic_is_that_of_the_phase_that_made_the_weights(step, precision, trained, monkeypatch):
    workdir = Workdir(str(trained.workdir))
    config = workdir.read_config().replace(schedule="two_phase", finetune_for="5epochs", precision="auto")
    choices = {
        name: {"precision": kind, "step_secs": {}, "what": "", "machine": {}, "measured_at": ""}
        for name, kind in (("0-frozen", "float32"), ("1-finetune", "bfloat16"))
    }
    for choice in choices.values():
        choice["step_secs"] = {"float32": 1.0, "bfloat16": 1.0}
    monkeypatch.setattr(Workdir, "read_facts", lambda self: {"precision": choices})
    monkeypatch.setattr(finished, "supported", lambda: ("float32", "bfloat16"))
    assert finished.precision_at(config, workdir, step) == precision
    monkeypatch.setattr(finished, "supported", lambda: ("float32",))
    assert finished.precision_at(config, workdir, step) == "float32"


@pytest.mark.slow
def test_as_a_program_between_others(trained):
    """Lines and nothing else go to standard output, and a reader that leaves is no error to be told."""
    command = f"{sys.executable} -m trainer.main predict --workdir={trained.workdir}"
    run = f"find {trained.pictures} -name '*0.jpg' | sort | {command}"
    done = subprocess.run(run, shell=True, capture_output=True, text=True)
    assert [value["label"] for value in objects(done.stdout)] == NAMES
    assert len(done.stderr.splitlines()) == 1
    done = subprocess.run(
        f"{command} {trained.pictures} | head -1", shell=True, capture_output=True, text=True
    )
    assert paths_of(done.stdout) == [f"{trained.pictures}/blue/000.jpg"]
    assert "Traceback" not in done.stderr
