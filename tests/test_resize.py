"""--resize and --antialias through the door: every way from a file to a prediction sees the same."""

import importlib.util
import json
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import trainer
from trainer.export.loading import open_model
from trainer.run.explanations import over_picture
from trainer.values import Contract

pytestmark = pytest.mark.usefixtures("figures_undrawn")
NAMES = ["blue", "green", "red"]


def made(colours, folder, **options):
    """A copy of a finished run that is as if it had been trained with other options: weights are weights."""
    workdir = colours.copy(folder)
    run = json.loads((workdir / "run.json").read_text())
    run["config"] |= options
    run["contract"] |= {"fit": options["resize"], "antialias": options.get("antialias", False)}
    (workdir / "run.json").write_text(json.dumps(run))
    return workdir


@pytest.fixture(scope="module")
def cropped(colours, tmp_path_factory):
    """A run of --resize=crop --antialias, and pictures that say something else to whoever looks otherwise."""
    root = tmp_path_factory.mktemp("cropped")
    workdir = made(colours, root, resize="crop", antialias=True)
    paths = []
    for k, name in enumerate(NAMES):
        # Lines of black: without antialiasing, 8 of 40 columns are all black, or none is.
        pixels = np.zeros([40, 120, 3], np.uint8)
        pixels[:, :40, (k + 1) % 3] = pixels[:, 80:, (k + 1) % 3] = 255
        pixels[:, 40:80:5, :] = 255
        pixels[:, 42:80:5, {"blue": 2, "green": 1, "red": 0}[name]] = 200
        paths.append(root / f"{name}.png")
        Image.fromarray(pixels).save(paths[-1])
    return SimpleNamespace(root=root, workdir=workdir, paths=paths)


@pytest.fixture(scope="module")
def exported(cropped):
    """What `export` wrote of it."""
    return trainer.load(cropped.workdir).export(formats="saved_model,float32").folder


def probabilities(predictions):
    return np.array([[one.probabilities[name] for name in NAMES] for one in predictions])


@pytest.mark.slow
def test_every_form_sees_what_the_run_sees(cropped, exported, colours):
    wanted = probabilities(trainer.load(cropped.workdir).predict(cropped.paths))
    for other in ("stretched", "plain"):
        options = {"stretched": {"resize": "stretch"}, "plain": {"resize": "crop"}}[other]
        workdir = made(colours, cropped.root / other, **options)
        # They are pictures that would show it.
        assert np.abs(probabilities(trainer.load(workdir).predict(cropped.paths)) - wanted).max() > 0.1
    for file in ("saved_model", "float32.tflite"):
        found = probabilities(trainer.load(exported / file).predict(cropped.paths))
        np.testing.assert_allclose(found, wanted, atol=1e-5)
    served = tf.saved_model.load(str(exported / "saved_model")).signatures["serving_default"]
    found = served(image_bytes=tf.constant([path.read_bytes() for path in cropped.paths]))
    np.testing.assert_allclose(found["probabilities"], wanted, atol=1e-5)
    spec = importlib.util.spec_from_file_location("shipped", exported / "preprocess.py")
    shipped = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(shipped)
    pixels = np.concatenate([shipped.read_picture(str(path)) for path in cropped.paths])
    found = open_model(exported / "float32.tflite").probabilities(pixels)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.slow
def test_what_an_export_says_of_it(cropped, exported, run_main):
    contract = json.loads((exported / "export.json").read_text())["contract"]
    assert (contract["fit"], contract["antialias"]) == ("crop", True)
    card = " ".join((exported / "MODEL_CARD.md").read_text().split())
    assert "Pictures are cropped to their middle" in card
    assert "without regard to their aspect" not in card
    model = f"--model={exported / 'float32.tflite'}"
    status, _, err = run_main("predict", model, "--resize=stretch", cropped.paths[0])
    assert status == 2
    assert err.startswith("trainer: --resize chooses something of a run, and --model=")


def test_a_run_goes_on_with_what_it_was_begun_with(cropped, colours, run_main):
    begin = ["train", *colours.arguments, f"--workdir={cropped.workdir}"]
    status, _, err = run_main(*begin, "--resize=pad", "--antialias")
    assert status == 1
    assert "holds a run with other options: --resize was crop, now pad. " in err
    status, _, err = run_main(*begin, "--resize=crop")
    assert status == 1
    assert "holds a run with other options: --antialias was True, now False. " in err
    for command in ("predict", "explain"):
        status, _, err = run_main(command, f"--workdir={cropped.workdir}", "--noantialias", cropped.paths[0])
        assert status == 1
        assert "--antialias was True, now False. " in err
    # Without its report it is scored again.
    (cropped.workdir / "report" / "metrics.json").unlink()
    status, out, err = run_main(*begin, "--resize=crop", "--antialias")
    assert (status, err) == (0, "")
    assert ", 2 features, pictures cropped, antialiased\n" in out
    # From before bytes were resized, it goes on as it was.
    assert json.loads((cropped.workdir / "run.json").read_text())["contract"]["resizes_bytes"] is False


@pytest.mark.parametrize(
    ("options", "resizes_bytes"), [(["--antialias"], True), pytest.param([], False, marks=pytest.mark.slow)]
)
def test_a_new_run_that_smooths_resizes_bytes(options, resizes_bytes, colours, run_main, tmp_path):
    """Others keep to what the tutorials do."""
    workdir = f"--workdir={tmp_path / 'run'}"
    status, out, err = run_main("train", *colours.arguments, workdir, *options)
    assert (status, err) == (0, ""), out
    contract = json.loads((tmp_path / "run" / "run.json").read_text())["contract"]
    assert contract["resizes_bytes"] is resizes_bytes
    exported = trainer.load(tmp_path / "run").export(formats="float32").folder
    assert json.loads((exported / "export.json").read_text())["contract"] == contract


@pytest.mark.parametrize(
    ("fit", "size", "box"),
    [
        # Of a picture that is three times as wide as high, the middle is a third.
        ("crop", (120, 40), [1 / 3, 0, 1 / 2, 1]),
        ("crop", (40, 120), [0, 1 / 3, 1 / 2, 2 / 3]),
        ("pad", (120, 40), [0, 0, 1 / 2, 1]),
        ("pad", (60, 120), [0, 0, 1 / 2, 1]),
        ("stretch", (120, 40), [0, 0, 1 / 2, 1]),
    ],
)
def test_the_heat_is_where_the_class_is_in_the_whole_picture(fit, size, box, colours, tmp_path):
    """A picture whose left half is red and whose right half is green."""
    workdir = made(colours, tmp_path, resize=fit)
    pixels = np.zeros([size[1], size[0], 3], np.uint8)
    pixels[:, : size[0] // 2, 0] = pixels[:, size[0] // 2 :, 1] = 220
    Image.fromarray(pixels).save(tmp_path / "halves.png")
    [found] = trainer.load(workdir).explain(tmp_path / "halves.png", explain_class="red")
    assert found.box == pytest.approx(box, abs=0.05)


@pytest.mark.parametrize(
    ("fit", "shape", "shown", "wanted"),
    [
        ("stretch", (40, 80), (2, 4), [[1, 2], [3, 4]]),
        ("crop", (40, 80), (2, 4), [[0, 1, 2, 0], [0, 3, 4, 0]]),
        ("crop", (80, 40), (4, 2), [[0, 0], [1, 2], [3, 4], [0, 0]]),
        # A picture of 1x5000 px is seen in a single place.
        ("crop", (1, 5000), (1, 5), [[0, 0, 2.5, 0, 0]]),
        ("pad", (40, 80), (2, 4), [[1, 2]]),
        ("pad", (80, 40), (4, 2), [[1], [3]]),
        ("pad", (1, 5000), (1, 5), [[1, 2]]),
    ],
)
def test_heat_over_a_picture_by_hand(fit, shape, shown, wanted):
    contract = Contract(2, 2, (0.0, 1.0), 2, any_size=True, fit=fit)
    found = over_picture(np.float32([[1, 2], [3, 4]]), shape, shown, contract)
    np.testing.assert_allclose(found, wanted)
