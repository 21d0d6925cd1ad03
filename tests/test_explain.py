"""`explain` through the door: named pictures, the worst mistakes of a report, and what is no picture."""

import csv
import json
import shutil
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import trainer
from tests.helpers.trained import train_colours
from tests.model.modules import save_tiny
from trainer.record.workdir import Workdir

NAMES = ["blue", "green", "red"]
KEYS = [
    "path", "true_label", "label", "probability", "explained_class", "explained_probability", "method",
    "file", "box", "gain", "completeness_error", "error",
]  # fmt: skip


@pytest.fixture(scope="module")
def trained(colours, tmp_path_factory):
    root = tmp_path_factory.mktemp("explain")
    return SimpleNamespace(root=root, source=colours.source, workdir=colours.copy(root))


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    """A picture whose left half is red and whose right half is green."""
    pixels = np.zeros((100, 200, 3), np.uint8)
    pixels[:, :100, 0] = pixels[:, 100:, 1] = 220
    path = tmp_path_factory.mktemp("halves") / "halves.png"
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def explain(trained, run_main, tmp_path):
    """explain(*arguments) -> (exit status, lines of output, error output, lines of explain.jsonl)."""

    def run(*arguments, workdir=trained.workdir):
        output = tmp_path / "out"
        status, out, err = run_main("explain", f"--workdir={workdir}", f"--output={output}", *arguments)
        file = output / "explain.jsonl"
        lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        return status, out.splitlines(), err, lines

    return run


def write_report(trained, rows):
    """Writes predictions.csv with rows (id, label, prediction, its probability)."""
    path = trained.workdir / "report" / "predictions.csv"
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "label", "prediction", *(f"probability_{name}" for name in NAMES)])
        for name, label, prediction, p in rows:
            writer.writerow(
                [name, label, prediction, *(p if n == prediction else (1 - p) / 2 for n in NAMES)]
            )
    return path


def test_pictures_that_are_named(trained, explain, tmp_path):
    paths = [trained.source / "red" / "000.jpg", trained.source / "blue" / "000.jpg"]
    status, out, err, lines = explain(*paths)
    assert (status, err) == (0, "")
    assert out[-1] == f"2 of 2 pictures explained by integrated gradients: {tmp_path / 'out'}"
    files = ["0001-000.png", "0002-000.png"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        *files,
        "contact_sheet.png",
        "explain.jsonl",
        "explain_manifest.json",
    ]
    for name in files:
        with Image.open(tmp_path / "out" / name) as image:
            assert image.width > 2 * image.height
    predictions = trainer.load(trained.workdir).predict(paths)
    for line, prediction, label, file in zip(lines, predictions, ("red", "blue"), files, strict=True):
        assert list(line) == KEYS
        assert (line["path"], line["label"], line["explained_class"]) == (prediction.path, label, label)
        assert line["probability"] == line["explained_probability"] == pytest.approx(prediction.probability)
        assert (line["true_label"], line["file"], line["error"]) == (None, file, None)
        # The network is linear in its pictures.
        assert line["method"] == "integrated_gradients"
        assert abs(line["completeness_error"]) < 1e-4
    # How many make a batch is no matter of the run.
    status, _, err, _ = explain("--batch_size=1", *paths)
    assert (status, err) == (0, "")


@pytest.mark.parametrize(("label", "left", "right"), [("red", 0.0, 0.5), ("green", 0.5, 1.0)])
@pytest.mark.parametrize("gives_maps", [False, True])
def test_the_heat_is_where_the_class_is(
    explain, halves, tmp_path, trained, request, gives_maps, label, left, right
):
    workdir = request.getfixturevalue("maps_run").workdir if gives_maps else trained.workdir
    status, _, err, [line] = explain(halves, f"--explain_class={label}", workdir=workdir)
    assert (status, err) == (0, "")
    assert (line["explained_class"], line["method"]) == (
        label,
        "grad_cam" if gives_maps else "integrated_gradients",
    )
    assert (line["box"][0], line["box"][2]) == (pytest.approx(left, abs=0.13), pytest.approx(right, abs=0.13))
    assert (line["box"][1], line["box"][3]) == (pytest.approx(0, abs=0.13), pytest.approx(1, abs=0.13))
    # Three panels in the picture's aspect of 2:1, at 480 px.
    with Image.open(tmp_path / "out" / line["file"]) as image:
        assert image.width == pytest.approx(3 * 480, abs=60)
    assert not (tmp_path / "out" / "contact_sheet.png").exists()


def test_picture_and_heat_are_upright(explain, halves, tmp_path):
    turned = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # What is stored on the left is at the top.
    Image.open(halves).save(turned, exif=exif, quality=95)
    _, _, _, [line] = explain(turned, "--explain_class=red")
    assert line["box"] == [0, 0, 1, pytest.approx(0.5, abs=0.13)]
    panels = np.asarray(Image.open(tmp_path / "out" / line["file"]).convert("RGB"), int)
    height, width = panels.shape[:2]
    assert height > 480
    # The left one of the three panels is 240 px wide, at the bottom.
    assert width == pytest.approx(3 * 240, abs=60)
    upper, lower = panels[height - 420, 60], panels[height - 60, 60]
    assert upper[0] > 200 > 50 > upper[1]
    assert lower[1] > 200 > 50 > lower[0]


@pytest.fixture(scope="module")
def maps_run(tmp_path_factory):
    root = tmp_path_factory.mktemp("maps")
    return train_colours(root, save_tiny(root / "module", output="maps"))


@pytest.mark.parametrize("has_record", [True, False])
@pytest.mark.slow
def test_pictures_of_an_earlier_call_go_and_others_stay(trained, explain, tmp_path, has_record):
    """With its record, or, as of a version that wrote none, by what explain.jsonl lists."""
    red, out = trained.source / "red", tmp_path / "out"
    assert explain(red / "000.jpg", red / "001.jpg", red / "002.jpg")[0] == 0
    if not has_record:
        (out / "explain_manifest.json").unlink()
    (out / "0009-mine.png").write_text("mine")
    (out / "0003-002.png").write_bytes((out / "0003-002.png").read_bytes() + b" edited" * has_record)
    assert explain(red / "003.jpg")[0] == 0
    edited = ["0003-002.png"] if has_record else []
    assert sorted(path.name for path in out.iterdir()) == sorted(
        ["0001-003.png", "0009-mine.png", "explain.jsonl", "explain_manifest.json", *edited]
    )


@pytest.mark.slow
def test_what_a_process_left_that_was_killed_is_removed_and_a_living_one_is_waited_for(
    trained, explain, tmp_path
):
    out = tmp_path / "out"
    code = """
import os, sys
from pathlib import Path
from trainer.commands import explain
with explain.part_folder(Path(sys.argv[1])) as part:
    (part / "0001-000.png").write_bytes(b"half")
    print(part.name, flush=True)
    sys.stdin.read()
    os.kill(os.getpid(), 9)
"""
    out.mkdir()
    command = [sys.executable, "-c", code, str(out)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        left = out / other.stdout.readline().strip()
        assert left.name.startswith(".part-")
        timer = threading.Timer(0.5, lambda: (out / "lives").write_text(str(left.exists())))
        timer.start()
        killer = threading.Timer(1, other.stdin.close)
        killer.start()
        assert explain(trained.source / "red" / "000.jpg")[0] == 0
        killer.join()
    assert (out / "lives").read_text() == "True"
    assert sorted(path.name for path in out.iterdir()) == [
        "0001-000.png", "explain.jsonl", "explain_manifest.json", "lives",
    ]  # fmt: skip


def test_what_is_not_ours_stays_and_a_failure_changes_nothing(trained, explain, tmp_path, monkeypatch):
    red, out = trained.source / "red", tmp_path / "out"
    assert explain(red / "000.jpg", red / "001.jpg")[0] == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    (out / "0001-002.png").write_text("mine")
    status, _, err, _ = explain(red / "002.jpg")
    assert (status, err) == (
        1,
        f"trainer: --output={out} holds 0001-002.png, which this command did not write and would have to "
        "replace: move it, or name another folder\n",
    )
    (out / "0001-002.png").unlink()
    monkeypatch.setattr("trainer.commands.explain.contact_sheet", lambda *given: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        explain(red / "002.jpg", red / "003.jpg")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_grad_cam_of_an_opaque_module_is_refused_with_the_alternative(explain, halves):
    status, _, err, lines = explain(halves, "--saliency=grad_cam")
    assert (status, lines) == (2, [])
    assert err.startswith("trainer: --saliency=grad_cam needs feature maps")
    assert "--saliency=integrated_gradients" in err


def test_what_is_no_picture_is_told_and_stops_nothing(trained, explain, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    data = (trained.source / "red" / "000.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(data[:-30])
    (folder / "good.jpg").write_bytes(data)
    (folder / "text.webp").write_text("text")
    status, out, err, lines = explain(folder, folder / "missing.jpg")
    assert (status, err) == (0, "")
    assert [(line["path"].rsplit("/", 1)[1], line["error"]) for line in lines] == [
        ("cut.jpg", "it ends in the middle"),
        ("good.jpg", None),
        ("text.webp", "it is none of JPEG, PNG, GIF, BMP and WebP"),
        ("missing.jpg", "No such file or directory"),
    ]
    assert f"{folder / 'cut.jpg'} cannot be read: it ends in the middle" in out
    assert lines[0] == dict.fromkeys(KEYS) | {"path": lines[0]["path"], "error": lines[0]["error"]}
    assert out[-1].startswith("1 of 4 pictures explained")
    status, out, _, lines = explain(folder / "cut.jpg")
    assert (status, len(lines), out[-1].startswith("0 of 1 pictures")) == (1, 1, True)


@pytest.mark.slow
def test_files_neither_collide_nor_leave_the_folder(trained, explain, tmp_path):
    folder = tmp_path / "in"
    names = [
        "a/x.jpg",
        "b/x.jpg",
        "b/x.png",
        "..jpg.jpg",
        "a b;$(c).jpg",
        "l\nb.jpg",
        "花.jpg",
        "y" * 200 + ".jpg",
    ]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(trained.source / "red" / "000.jpg", folder / name)
    status, _, _, lines = explain(*(folder / name for name in names), f"{folder}/a/../../in/a/x.jpg")
    assert status == 0
    files = [line["file"] for line in lines]
    assert len({*files}) == len(files) == len(names)
    assert files[:4] == ["0001-x.png", "0002-x.png", "0003-x.png", "0004-jpg.png"]
    assert files[6] == "0007-picture.png"
    assert all(
        len(file) < 80 and set(file) <= {*"0123456789-_.", *map(chr, range(65, 123))} for file in files
    )
    written = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*")}
    assert written == {*files, "contact_sheet.png", "explain.jsonl", "explain_manifest.json"}
    assert "\n" not in lines[5]["path"]


def test_the_worst_mistakes_of_the_report(trained, explain):
    rows = [
        ("red/000.jpg", "red", "red", 0.99),
        ("green/001.jpg", "green", "blue", 0.6),
        ("red/003.jpg", "red", "blue", 0.9),
        ("blue/002.jpg", "blue", "red", 0.7),
    ]
    write_report(trained, rows)
    status, _, err, lines = explain("--num_explained=2", "--checkpoint=best")
    assert (status, err) == (0, "")
    assert [(line["path"], line["true_label"]) for line in lines] == [
        ("red/003.jpg", "red"),
        ("blue/002.jpg", "blue"),
    ]
    # Not what the report says counts, but what the network does.
    assert [line["label"] for line in lines] == ["red", "blue"]
    assert [line["path"] for line in explain()[3]] == ["red/003.jpg", "blue/002.jpg", "green/001.jpg"]


def test_without_mistakes_there_is_nothing_to_do(trained, explain, tmp_path):
    path = write_report(trained, [("red/000.jpg", "red", "red", 0.99)])
    status, out, _, _ = explain()
    assert (status, out) == (0, [f"{path} has no mistakes; pictures can be named behind explain"])
    assert not (tmp_path / "out").exists()


def test_a_picture_that_is_not_the_one_of_the_run(trained, explain):
    write_report(trained, [("red/000.jpg", "red", "blue", 0.9), ("gone/0.jpg", "red", "blue", 0.8)])
    path = trained.source / "red" / "000.jpg"
    before = path.read_bytes()
    try:
        shutil.copy(trained.source / "red" / "001.jpg", path)
        status, _, _, lines = explain()
    finally:
        path.write_bytes(before)
    assert status == 1
    assert [line["error"] for line in lines] == [
        f"folder:{trained.source} does not have the picture that this run had"
    ] * 2


def test_errors(trained, explain, run_main, tmp_path, halves):
    path = write_report(trained, [("red/000.jpg", "red", "blue", 0.9)])
    status, _, err, _ = explain("--explain_class=mauve", halves)
    assert (status, err) == (
        2,
        "trainer: --explain_class=mauve is none of the classes of this run: blue, green, red\n",
    )
    # Pictures that have moved.
    moved = trained.source.rename(trained.root / "moved")
    try:
        status, _, err, _ = explain()
    finally:
        moved.rename(trained.source)
    assert status in (1, 2)
    assert err.startswith("trainer: the pictures of the mistakes cannot be had: ")
    assert err.endswith("; or name pictures behind explain\n")
    for text in ("id,label,prediction\na,b,c\n", "nothing\nat all\n"):
        path.write_text(text)
        status, _, err, _ = explain()
        assert status == 1
        assert err.startswith(f"trainer: {path} is damaged (")
    path.unlink()
    status, _, err, _ = explain()
    assert status == 1
    assert err.startswith(
        f"trainer: there is no {path} to take mistakes from: `evaluate --workdir=...` writes it"
    )
    for text in (halves, halves / "below"):
        status, _, err = run_main("explain", f"--workdir={trained.workdir}", f"--output={text}", halves)
        wanted = f"trainer: --output={text} is a file, or lies below one: it must be a folder\n"
        assert (status, err) == (1, wanted)
    status, _, err = run_main("explain", f"--workdir={tmp_path}", halves)
    assert (status, err.startswith("trainer: --workdir=")) == (1, True)


def test_the_folder_is_below_the_run_unless_told_otherwise(trained, run_main, halves):
    status, out, err = run_main("explain", f"--workdir={trained.workdir}", halves)
    folder = Workdir(str(trained.workdir)).root / "explain"
    assert (status, err, out.splitlines()[-1].endswith(str(folder))) == (0, "", True)
    assert (folder / "0001-halves.png").exists()
    assert json.loads((folder / "explain.jsonl").read_text())["path"] == str(halves)
