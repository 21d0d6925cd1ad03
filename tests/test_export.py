"""`export` through the door: files, numbers, the model card, and `predict` from what was written."""

import contextlib
import csv
import io
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from PIL import Image

import trainer
from tests.conftest import COLOURS, call_main, make_flower_folder
from tests.data.kinds import exif
from tests.helpers.processes import run_program
from tests.helpers.small_disks import small_disk
from tests.helpers.undrawn import PLAIN
from trainer.commands import export
from trainer.export import tflite
from trainer.export.fresh_process import Answers
from trainer.export.models import FORMS
from trainer.model.weights import weights_sha256
from trainer.record.checkpoints import Checkpoints
from trainer.run import inference
from trainer.tasks import SINGLE_LABEL
from trainer.values import TrainerError, UsageError

pytestmark = pytest.mark.usefixtures("figures_undrawn")

NAMES = ["blue", "green", "red"]
TFLITE = [f"{form}.tflite" for form in tflite.FORMATS]
# Loads a SavedModel where there is neither this package nor what it is made with.
LOADER = """
import json, sys
for name in ("trainer", "tf_keras", "tensorflow_hub"):
    sys.modules[name] = None
import tensorflow as tf
folder, *paths = sys.argv[1:]
model = tf.saved_model.load(folder)
pictures = tf.constant([open(path, "rb").read() for path in paths])
found = model.signatures["serving_default"](image_bytes=pictures)
names = model.signatures["class_names"]()["class_names"].numpy().tolist()
values = {name: value.numpy().tolist() for name, value in found.items()}
values["all"] = [name.decode() for name in names]
values["class_names"] = [name.decode() for name in values["class_names"]]
print(json.dumps(values))
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory, tiny_backbone):
    """A run on three colours, exported with its report; some of its pictures lie on their side."""
    root = tmp_path_factory.mktemp("export")
    source, workdir = make_flower_folder(root / "source", n=12), root / "run"
    for name in NAMES:
        turned = Image.open(source / name / "001.jpg").rotate(90, expand=True)
        turned.save(source / name / "001.jpg", quality=95, exif=exif(6))
    arguments = [
        f"--source=folder:{source}", f"--backbone=savedmodel:{tiny_backbone}", "--image_size=8",
        "--head=linear", "--splits=60%,40%", "--batch_size=4", "--schedule=frozen", "--frozen_for=3epochs",
        "--frozen_learning_rate=0.05", "--average=ema(0.5)", "--precision=float32", *PLAIN,
        f"--workdir={workdir}",
    ]  # fmt: skip
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert call_main("train", *arguments) == 0
        assert call_main("export", f"--workdir={workdir}", "--calibration_pictures=12") == 0
    folder = workdir / "export"
    parity = json.loads((folder / "parity.json").read_text())
    validation = json.loads((workdir / "splits.json").read_text())["splits"]["validation"]
    return SimpleNamespace(
        root=root,
        source=source,
        workdir=workdir,
        folder=folder,
        parity=parity,
        models={(model["file"], model["input"]): model for model in parity["models"]},
        paths=[source / row[0] for row in validation],
        labels=[row[1] for row in validation],
        out=out.getvalue(),
    )


@pytest.fixture
def predict(exported, run_main):
    """predict(*arguments) -> [(label, probabilities)] of the validation pictures."""

    def run(*arguments):
        status, out, _ = run_main("predict", *arguments, "--format=csv", *exported.paths)
        assert status == 0
        rows = list(csv.DictReader(io.StringIO(out)))
        return [(row["prediction"], [float(row[f"probability_{name}"]) for name in NAMES]) for row in rows]

    return run


def test_the_digest_of_the_weights_is_that_of_those_that_are_exported(exported):
    checkpoints = Checkpoints(exported.workdir / "checkpoints", keep=1)
    values = checkpoints.values(checkpoints.find("best"))
    averaged = {
        f"model/{name.removeprefix('average/')}": v for name, v in values.items() if "average/" in name
    }
    of_model = {name: value for name, value in values.items() if name.startswith("model/")}
    assert 0 < len(averaged) <= len(of_model)
    assert exported.parity["weights"]["sha256"] == weights_sha256(of_model | averaged)
    assert exported.parity["weights"]["sha256"] != weights_sha256(of_model)


def test_what_is_in_the_folder(exported):
    found = {
        path.relative_to(exported.folder).as_posix() for path in exported.folder.rglob("*") if path.is_file()
    }
    assert {path for path in found if not path.startswith("saved_model/variables/")} == {
        "MODEL_CARD.md", "parity.json", "export.json", "labels.txt", "preprocess.py", *TFLITE,
        "export_manifest.json", "saved_model/saved_model.pb", "saved_model/fingerprint.pb",
        "saved_model/assets/export.json",
    }  # fmt: skip
    assert (exported.folder / "labels.txt").read_text() == "blue\ngreen\nred\n"
    about = json.loads((exported.folder / "export.json").read_text())
    run = json.loads((exported.workdir / "run.json").read_text())
    assert (about["format"], about["class_names"], about["exif"], about["input_range"]) == (
        1,
        NAMES,
        "apply",
        [0, 1],
    )
    assert about["contract"] == run["contract"]
    assert about["run"]["identity"] == run["identity"]
    calibration = json.loads((exported.workdir / "report" / "calibration.json").read_text())
    assert (about["temperature"], about["temperature_applied"]) == (calibration["temperature"], False)
    assert about["run"]["step"] == calibration["step"]
    with zipfile.ZipFile(exported.folder / "int8.tflite") as archive:
        assert json.loads(archive.read("export.json")) == about
    assert not [name for name in os.listdir(exported.workdir) if name.startswith(".part")]


def test_the_saved_model_in_a_process_without_this_package(exported, predict):
    copy = shutil.copytree(exported.folder / "saved_model", exported.root / "copied" / "elsewhere")
    command = [sys.executable, "-I", "-c", LOADER, str(copy), *map(str, exported.paths)]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", check=True)
    found = json.loads(done.stdout)
    wanted = predict(f"--workdir={exported.workdir}")
    assert found["all"] == NAMES
    assert found["class_names"] == [label for label, _ in wanted]
    assert found["class_ids"] == [NAMES.index(label) for label, _ in wanted]
    np.testing.assert_allclose(found["probabilities"], [values for _, values in wanted], atol=2e-6)


def test_parity_is_what_the_interpreter_gives(exported, predict):
    """Recomputed with code of its own, from `predict` and the LiteRT interpreter."""
    truth = np.array([NAMES.index(label) for label in exported.labels])
    network = np.array([values for _, values in predict(f"--workdir={exported.workdir}")])
    # The same pixels: what predict makes of the pictures as a model wants them.
    pixels = pixels_of(exported)
    assert exported.parity["num_examples"] == len(truth) == 15
    assert exported.parity["network"]["accuracy"] == pytest.approx((network.argmax(1) == truth).mean())
    for file in TFLITE:
        interpreter = Interpreter(str(exported.folder / file))
        interpreter.allocate_tensors()
        [taken], [given] = interpreter.get_input_details(), interpreter.get_output_details()
        rows = []
        for image in pixels:
            is_bytes = taken["dtype"] == np.uint8
            interpreter.set_tensor(
                taken["index"], np.round(image * 255).astype(np.uint8)[None] if is_bytes else image[None]
            )
            interpreter.invoke()
            rows.append(interpreter.get_tensor(given["index"])[0] / (256 if is_bytes else 1))
        rows, model = np.array(rows), exported.models[file, "images"]
        assert model["accuracy"] == pytest.approx((rows.argmax(1) == truth).mean()), file
        assert model["agreement"] == pytest.approx((rows.argmax(1) == network.argmax(1)).mean()), file
        assert model["largest_probability_difference"] == pytest.approx(
            np.abs(rows - network).max(), abs=2e-6
        )
        assert model["accuracy_drop"] == pytest.approx(
            exported.parity["network"]["accuracy"] - model["accuracy"]
        )
        assert model["size_bytes"] == (exported.folder / file).stat().st_size
        # The pictures are JPEGs: the decoders differ in some bits of some pixels.
        by_files = exported.models[file, "files"]
        assert by_files["agreement"] == 1
        assert by_files["largest_probability_difference"] < 0.1 if file == "int8.tflite" else 0.02
    for way in ("serving_default", "images"):
        model = exported.models["saved_model", way]
        assert (model["agreement"], model["accuracy_drop"]) == (1, 0)
        assert model["largest_probability_difference"] < 1e-5
    assert exported.models["float32.tflite", "images"]["largest_probability_difference"] < 1e-5
    assert all(model["images_per_second"] > 0 for model in exported.parity["models"])
    assert exported.parity["passed"]


def pixels_of(exported):
    from trainer.data.loading import Loader
    from trainer.data.picture_files import Found
    from trainer.values import Contract

    contract = Contract(8, 8, (0.0, 1.0), feature_width=2, any_size=True)
    loader = Loader(contract, exif="apply", max_pixels=10**6, decoding="exact")
    return [one.pixels for one in loader.load_all([Found(str(path)) for path in exported.paths], ahead=1)]


@pytest.mark.parametrize(
    ("file", "within"), [("saved_model", 1e-5), ("float32.tflite", 1e-5), ("int8.tflite", 0.1)]
)
def test_predict_from_a_model_as_from_the_run(file, within, exported, predict):
    by_run, by_model = predict(f"--workdir={exported.workdir}"), predict(f"--model={exported.folder / file}")
    assert [label for label, _ in by_model] == [label for label, _ in by_run]
    np.testing.assert_allclose([p for _, p in by_model], [p for _, p in by_run], atol=within)
    found = trainer.load(exported.folder / file).predict(exported.paths[:2])
    assert [one.label for one in found] == [label for label, _ in by_model[:2]]
    np.testing.assert_allclose(
        [list(one.probabilities.values()) for one in found], [p for _, p in by_model[:2]], atol=1e-6
    )


@pytest.mark.parametrize(("given", "exif_is"), [([], "ignore"), (["--exif=apply"], "apply")])
def test_predict_reads_pictures_as_the_model_says(given, exif_is, exported, run_main, tmp_path, monkeypatch):
    model = shutil.copytree(exported.folder / "saved_model", tmp_path / "model")
    about = {
        **json.loads((exported.folder / "export.json").read_text()),
        "exif": "ignore",
        "decoding": "scaled",
    }
    (model / "assets" / "export.json").write_text(json.dumps(about))

    def loader(contract, **options):
        raise TrainerError(f"{options} {contract.image_shape} {contract.value_range}")

    monkeypatch.setattr(inference, "Loader", loader)
    _, _, err = run_main("predict", f"--model={model}", *given, exported.paths[0])
    options = {"exif": exif_is, "max_pixels": 100_000_000, "decoding": "scaled"}
    assert err == f"trainer: {options} (8, 8, 3) (0.0, 1.0)\n"


def test_options_of_predict_with_a_model(exported, run_main):
    model = f"--model={exported.folder / 'saved_model'}"
    status, out, _ = run_main("predict", model, "--top_k=3", "--batch_size=2", *exported.paths[:3])
    assert status == 0
    assert [len(json.loads(line)["top"]) for line in out.splitlines()] == [3, 3, 3]
    status, _, err = run_main("predict", model, "--top_k=4", exported.paths[0])
    assert (status, err) == (2, "trainer: --top_k=4: this model knows only 3 classes\n")


def test_models_that_predict_cannot_take(exported, run_main, tmp_path, tiny_backbone):
    (tmp_path / "text.tflite").write_text("text")
    (tmp_path / "text.onnx").write_text("text")
    (tmp_path / "lite").mkdir()
    (tmp_path / "lite" / "int8.tflite").write_text("text")
    with zipfile.ZipFile(tmp_path / "strange.tflite", "w") as archive:
        archive.writestr("labels.txt", "a")
    for change, name in (({"format": 2}, "newer.tflite"), ({"class_names": None}, "odd.tflite")):
        about = {**json.loads((exported.folder / "export.json").read_text()), **change}
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("export.json", json.dumps(about))
    shutil.copytree(exported.folder / "saved_model", tmp_path / "cut")
    graph = tmp_path / "cut" / "saved_model.pb"
    graph.write_bytes(graph.read_bytes()[:-100])
    with zipfile.ZipFile(tmp_path / "empty.tflite", "w") as archive:
        archive.writestr("export.json", (exported.folder / "export.json").read_text())
    for name, status, message in (
        ("missing.tflite", 2, "is not there: name a SavedModel folder or a .tflite file that export wrote"),
        ("text.tflite", 2, "is no model that export wrote: there is no export.json inside of it"),
        ("strange.tflite", 2, "is no model that export wrote: there is no export.json inside of it"),
        (tiny_backbone, 2, "is no model that export wrote: there is no export.json in its assets"),
        ("lite", 2, "is a folder of models: name one of them, such as"),
        (
            "text.onnx",
            2,
            "is no file that predict takes, which are .tflite files and SavedModel folders: ",
        ),
        (
            exported.folder,
            2,
            f"holds several models: name one of them, such as {exported.folder}/saved_model",
        ),
        ("newer.tflite", 1, "has format 2, and this version reads 1: use the version that wrote it"),
        ("odd.tflite", 1, "is damaged: export.json inside of it cannot be read"),
        ("cut", 1, "is damaged: saved_model.pb cannot be read"),
        ("empty.tflite", 1, "cannot be run: "),
    ):
        path = tmp_path / name
        found, out, err = run_main("predict", f"--model={path}", exported.paths[0])
        assert (found, out) == (status, ""), name
        assert err.startswith(f"trainer: --model={path} {message}"), name
        assert len(err.splitlines()) == 1, name
    model = f"--model={exported.folder / 'saved_model'}"
    for more, message in (
        (f"--workdir={exported.workdir}", "both say what to predict with: give one"),
        ("--checkpoint=latest", "chooses something of a run"),
    ):
        status, _, err = run_main("predict", model, more, exported.paths[0])
        assert status == 2
        assert message in err
    with pytest.raises(UsageError, match="is no model that export wrote"):
        trainer.load(tmp_path / "text.tflite")


def test_the_card(exported):
    text = (exported.folder / "MODEL_CARD.md").read_text()
    metrics = json.loads((exported.workdir / "report" / "metrics.json").read_text())
    low, high = metrics["accuracy_95_percent_interval"]
    assert f"accuracy {metrics['accuracy']:.2%}, 95 % interval {low:.1%} to {high:.1%} (Wilson)" in text
    train = json.loads((exported.workdir / "splits.json").read_text())["splits"]["train"]
    for name in NAMES:
        count = sum(row[1] == name for row in train)
        assert f"| {name} | {count} | {exported.labels.count(name)} |" in text
    assert "- frozen, steps 0 to 18, adam at 0.05 (constant), BatchNorm statistics stored" in text
    assert "--frozen_learning_rate=0.05" in text
    temperature = json.loads((exported.folder / "export.json").read_text())["temperature"]
    assert f"Temperature fitted on validation: {temperature:.4f}" in text
    for part in (
        "## Data",
        "## Recipe",
        "## Metrics",
        "## Calibration",
        "## Limits",
        "## Files",
        "## Versions",
    ):
        assert f"\n{part}\n" in text
    for file in ("saved\\_model", "int8.tflite"):
        assert f"| {file} |" in text


def code_of(text):
    """Returns the blocks of Python in a page of Markdown."""
    return [block for block in re.findall(r"```\w*\n(.*?)```\n", text, re.DOTALL) if "import " in block]


@pytest.mark.parametrize("page", ["MODEL_CARD.md", "docs/export.md"])
def test_code_on_the_pages_runs(page, exported, monkeypatch, capsys, tmp_path):
    """As it stands there, in a folder with an export and a picture."""
    text = (Path(trainer.__file__).parents[1] / page if "/" in page else exported.folder / page).read_text()
    (tmp_path / "export").symlink_to(exported.folder)
    shutil.copy(exported.paths[0], tmp_path / "picture.jpg")
    shutil.copytree(exported.folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "preprocess", raising=False)
    blocks = code_of(text)
    assert len(blocks) >= 2
    for block in blocks:
        exec(compile(block, page, "exec"), {})
        assert "0." in capsys.readouterr().out


def striped(path, name, *, turn):
    """A photo of 696x520 px of another colour, with dots of a class just where 8 px see it.

    Seen without smoothing it is of the class; smoothed, it is of the other one.
    """
    other = NAMES[(NAMES.index(name) + 1) % 3]
    height, width = 520, 696
    pixels = np.empty([height, width, 3], np.uint8)
    pixels[:] = COLOURS[other]
    rows, columns = ([int((at + 0.5) * size / 8) for at in range(8)] for size in (height, width))
    for row, column in itertools.product(rows, columns):
        pixels[row - 8 : row + 8, column - 8 : column + 8] = COLOURS[name]
    Image.fromarray(pixels).save(path, quality=95, subsampling=0, exif=exif(turn))


@pytest.mark.parametrize(("file", "within"), [("float32.tflite", 0.01), ("int8.tflite", 0.1)])
def test_the_documented_way_on_large_photos_is_that_of_predict(
    file, within, exported, monkeypatch, capsys, tmp_path
):
    """The code of docs/export.md, run on files: the same classes, and probabilities that are close."""
    text = (Path(trainer.__file__).parents[1] / "docs" / "export.md").read_text()
    [block] = [block for block in code_of(text) if f'"export/{file}"' in block]
    (tmp_path / "export").symlink_to(exported.folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "preprocess", raising=False)
    smoothed_away = 0
    for turn, name in enumerate(NAMES, 5):
        striped(tmp_path / "picture.jpg", name, turn=turn)
        [wanted] = trainer.load(exported.workdir).predict(["picture.jpg"])
        capsys.readouterr()
        exec(compile(block, "docs/export.md", "exec"), {})
        found = np.array(re.findall(r"\d\.\d*(?:e-\d+)?", capsys.readouterr().out), float)
        probabilities = [wanted.probabilities[n] for n in NAMES]
        assert found == pytest.approx(probabilities, abs=within)
        assert NAMES[found.argmax()] == wanted.label
        small = Image.open("picture.jpg").convert("RGB").resize((8, 8), Image.Resampling.BILINEAR)
        small.save("small.png")
        [smooth] = trainer.load(exported.workdir).predict(["small.png"])
        smoothed_away += abs(smooth.probabilities[wanted.label] - wanted.probability) > 0.1
    assert smoothed_away


def test_what_the_terminal_says(exported):
    lines = exported.out.splitlines()
    at = lines.index(f"export:      {exported.folder}")
    places = [line.partition(":")[0] for line in lines[at + 1 :]]
    assert places == ["phone", "browser", "server", "try one"]
    model = exported.folder / "int8.tflite"
    assert lines[-1] == f"try one:     python -m trainer.main predict --model={model} photo.jpg"
    assert any(line.startswith("network:     weights of step 18 (best): ") for line in lines)
    assert any(line.startswith("int8.tflite (images: pixels): ") for line in lines)
    # Each model is announced before it takes its time.
    written = [line.removeprefix("model:       writes ") for line in lines if line.startswith("model: ")]
    assert "int8.tflite" in written
    assert lines.index("model:       writes int8.tflite") < at


@pytest.mark.slow
def test_a_program_says_nothing_of_the_converter(exported, tmp_path):
    """Which writes what it quantizes to standard error, past Python."""
    command = ["export", f"--workdir={exported.workdir}", f"--export_dir={tmp_path / 'out'}"]
    done = run_program([*command, "--formats=int8"])
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture
def copied(exported, tmp_path):
    """A copy of the run whose export is an older one: `parity.json` and no more."""
    workdir = tmp_path / "run"
    shutil.copytree(exported.workdir, workdir, ignore=shutil.ignore_patterns("export"))
    (workdir / "export").mkdir()
    (workdir / "export" / "parity.json").write_text("older")
    return workdir


def wrong_answers(model, pictures, **options):
    count = len(list(pictures))
    return {"images": Answers(np.full([count, 3], 1 / 3, np.float32), np.zeros(count, int), 1.0)}


def test_a_model_that_loses_too_much_fails_the_export(copied, exported, run_main, monkeypatch):
    monkeypatch.setattr(export, "run_model", wrong_answers)
    options = ["--formats=float32", "--max_accuracy_drop=0.1"]
    status, _, err = run_main("export", f"--workdir={copied}", *options)
    accuracy, was = exported.labels.count("blue") / 15, exported.parity["network"]["accuracy"]
    assert (status, err) == (
        1,
        f"trainer: float32.tflite (images) has accuracy {accuracy:.4f} on validation, and the network "
        f"{was:.4f}: that is more than --max_accuracy_drop=0.1 allows. All is in "
        f"{copied}/export/parity.json\n",
    )
    parity = json.loads((copied / "export" / "parity.json").read_text())
    assert (parity["passed"], parity["max_accuracy_drop"], parity["models"][0]["accuracy"]) == (
        False,
        0.1,
        accuracy,
    )
    assert "| NO |" in (copied / "export" / "MODEL_CARD.md").read_text()
    assert sorted(os.listdir(copied / "export")) == [
        "MODEL_CARD.md", "export.json", "export_manifest.json", "float32.tflite", "labels.txt", "parity.json",
        "preprocess.py",
    ]  # fmt: skip


@pytest.mark.slow
def test_other_forms_are_added_and_notes_stay(exported, run_main, tmp_path):
    """Models with the same weights stay, on record and in the card; with others they are not mixed."""
    folder = tmp_path / "export"
    arguments = [f"--workdir={exported.workdir}", f"--export_dir={folder}"]
    assert run_main("export", *arguments, "--formats=float32")[0] == 0
    model = (folder / "float32.tflite").read_bytes()
    (folder / "notes.txt").write_text("mine")
    (folder / "MODEL_CARD.md").write_text("by hand")
    status, out, _ = run_main("export", *arguments, "--formats=float16")
    assert status == 0
    assert "MODEL_CARD.md was changed by hand" in out
    parity = json.loads((folder / "parity.json").read_text())
    assert [(row["file"], row["input"]) for row in parity["models"]] == [
        ("float16.tflite", "files"), ("float16.tflite", "images"),
        ("float32.tflite", "files"), ("float32.tflite", "images"),
    ]  # fmt: skip
    card = (folder / "MODEL_CARD.md").read_text()
    assert all(f"| {file} |" in card for file in ("float16.tflite", "float32.tflite"))
    assert (folder / "float32.tflite").read_bytes() == model
    assert (folder / "notes.txt").read_text() == "mine"
    assert (folder / "MODEL_CARD.edited.md").read_text() == "by hand"
    parity["weights"] = {"step": 6, "sha256": "0f"}
    (folder / "parity.json").write_text(json.dumps(parity))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    status, _, err = run_main("export", *arguments, "--formats=float16")
    assert (status, err) == (
        1,
        f"trainer: --export_dir={folder} holds float32.tflite with other weights, those of step 6: "
        "--formats=float32,float16 writes all of them anew, or name another folder\n",
    )
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.slow
def test_what_fails_on_the_way_leaves_the_older_export(copied, run_main, monkeypatch):
    def fail(model, pictures, **options):
        raise TrainerError(f"{model.name} does not run")

    monkeypatch.setattr(export, "run_model", fail)
    status, _, err = run_main("export", f"--workdir={copied}", "--formats=float32")
    assert (status, err) == (1, "trainer: float32.tflite does not run\n")
    monkeypatch.setitem(tflite.FORMATS, "float16", lambda converter, pictures: 1 / 0)
    monkeypatch.setattr(export, "run_model", wrong_answers)
    status, _, err = run_main("export", f"--workdir={copied}", "--formats=float32,float16")
    assert status == 1
    assert err.startswith(
        "trainer: --formats=float16: TensorFlow cannot convert this network: division by zero"
    )
    assert (copied / "export" / "parity.json").read_text() == "older"
    assert os.listdir(copied / "export") == ["parity.json"]
    assert not [name for name in os.listdir(copied) if name.startswith(".part")]


def test_without_the_pictures_nothing_is_written(copied, exported, run_main, monkeypatch):
    exported.source.rename(exported.root / "gone")
    try:
        status, _, err = run_main("export", f"--workdir={copied}")
    finally:
        (exported.root / "gone").rename(exported.source)
    assert status != 0
    assert len(err.splitlines()) == 1
    assert err.startswith(
        "trainer: export checks each model on the pictures of the run, which cannot be had: "
        f"--source=folder:{exported.source}: "
    )
    assert err.endswith("; if they are elsewhere now: --source=folder:PATH\n")
    assert os.listdir(copied / "export") == ["parity.json"]


def test_options_and_places_that_are_wrong(copied, run_main, tmp_path):
    for option, status, message in (
        ("--formats=int4", 2, f"--formats=int4 is not one of {', '.join(FORMS)}"),
        ("--formats=,", 2, "--formats=, is not a list of names with arguments, such as"),
        ("--checkpoint=7", 1, "no '7' checkpoint in"),
        ("--image_size=9", 1, f"{copied} holds a run with other options: --image_size was 8, now 9"),
    ):
        found, _, err = run_main("export", f"--workdir={copied}", option)
        assert (found, len(err.splitlines())) == (status, 1), option
        assert err.startswith(f"trainer: {message}"), option


def test_a_full_disk_is_told(copied, run_main, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_OVERHEAD_BYTES", 0)
    with small_disk(tmp_path / "small", size_kb=16):
        status, _, err = run_main("export", f"--workdir={copied}", f"--export_dir={tmp_path}/small/new")
        assert status == 1
        assert f"the export cannot be written to {tmp_path}/small/new: " in err
        assert "Make room, or name another --export_dir" in err
        assert len(err.splitlines()) == 1
        assert os.listdir(tmp_path / "small") == []


def test_onnx_where_its_packages_are_not_installed(copied, run_main, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    status, _, err = run_main("export", f"--workdir={copied}", "--formats=onnx")
    assert (status, err) == (
        2,
        "trainer: --formats=onnx needs tf2onnx and onnx and onnxruntime, not installed here: "
        "pip install tf2onnx onnx onnxruntime\n",
    )


@pytest.mark.extra
def test_onnx_beside_the_network(copied, run_main, exported, predict):
    onnxruntime = pytest.importorskip("onnxruntime")
    assert run_main("export", f"--workdir={copied}", "--formats=onnx")[0] == 0
    assert sorted(os.listdir(copied / "export")) == [
        "MODEL_CARD.md",
        "export.json",
        "export_manifest.json",
        "labels.txt",
        "model.onnx",
        "parity.json",
        "preprocess.py",
    ]
    models = json.loads((copied / "export" / "parity.json").read_text())["models"]
    assert [(m["file"], m["input"], m["agreement"], m["accuracy_drop"]) for m in models] == [
        ("model.onnx", "files", 1, 0),
        ("model.onnx", "images", 1, 0),
    ]
    session = onnxruntime.InferenceSession(
        copied / "export" / "model.onnx", providers=["CPUExecutionProvider"]
    )
    [found] = session.run(None, {"images": np.array(pixels_of(exported))})
    wanted = [values for _, values in predict(f"--workdir={copied}")]
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    properties = session.get_modelmeta().custom_metadata_map
    assert properties["labels.txt"] == "blue\ngreen\nred\n"
    assert json.loads(properties["export.json"])["class_names"] == NAMES


def test_representative_pictures_are_spread_over_classes():
    labels = np.array([0] * 50 + [1] * 3 + [2] * 10)
    experiment = SimpleNamespace(
        splits=SimpleNamespace(indices={"train": np.arange(63)}),
        source=SimpleNamespace(labels=labels),
        task=SINGLE_LABEL,
    )
    chosen = export.spread(experiment, 12)
    assert np.bincount(labels[chosen]).tolist() == [5, 3, 4]
    assert chosen.tolist() == [0, 12, 24, 36, 49, 50, 51, 52, 53, 56, 59, 62]
    assert export.spread(experiment, 2).tolist() == [0, 50]
    assert sorted(export.spread(experiment, 1000).tolist()) == list(range(63))
