"""`audit` and --relabel through the door, one after the other."""

import csv
import hashlib
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.conftest import make_flower_folder
from tests.helpers.undrawn import PLAIN
from trainer.store.files import read_json


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Three colours of 16 pictures; two of them are in the wrong folder, one is black, one is tiny."""
    root = make_flower_folder(tmp_path_factory.mktemp("audited") / "pictures", n=16)
    (root / "red" / "003.jpg").rename(root / "blue" / "wrong.jpg")
    (root / "green" / "005.jpg").rename(root / "red" / "=wrong.jpg")
    dark = np.random.default_rng(0).integers(0, 30, (10, 12, 3)).astype(np.uint8)
    Image.fromarray(dark).save(root / "blue" / "dark.png")
    with Image.open(root / "green" / "001.jpg") as image:
        image.resize((3, 3)).save(root / "green" / "tiny.png")
    return root


@pytest.fixture
def arguments(pictures, tiny_backbone):
    return (
        f"--source=folder:{pictures}", f"--backbone=savedmodel:{tiny_backbone}", "--image_size=8",
        "--head=linear", "--splits=60%,20%,20%", "--batch_size=8", "--precision=float32",
        "--schedule=frozen", "--frozen_for=2epochs", *PLAIN,
    )  # fmt: skip


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def write_rows(path, rows):
    with open(path, "w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


def placed(workdir):
    """Returns {id: (split, class)} of a run."""
    splits = read_json(workdir / "splits.json")["splits"]
    return {name: (split, label) for split, rows in splits.items() for name, label, _ in rows}


@pytest.fixture
def audited(arguments, tmp_path, run_main):
    status, out, err = run_main("audit", *arguments, "--audit_folds=3", f"--workdir={tmp_path / 'audit'}")
    assert (status, err) == (0, "")
    return out, tmp_path / "audit" / "audit"


@pytest.mark.usefixtures("figures_undrawn")
@pytest.mark.slow
def test_wrong_labels_are_found_corrected_and_stay_so(audited, arguments, pictures, tmp_path, run_main):
    out, folder = audited
    rows = rows_of(folder / "audit.csv")
    reasons = {row["id"]: row["reason"] for row in rows}
    assert "label is probably wrong" in reasons["blue/wrong.jpg"]
    assert "label is probably wrong" in reasons["red/=wrong.jpg"]
    assert "dark" in reasons["blue/dark.png"].split("; ")
    assert "tiny" in reasons["green/tiny.png"].split("; ")
    assert not any(row["new_label"] for row in rows)
    (wrong,) = [row for row in rows if row["id"] == "blue/wrong.jpg"]
    assert (wrong["label"], wrong["suggested"]) == ("blue", "red")
    assert wrong["sha256"] == hashlib.sha256((pictures / "blue" / "wrong.jpg").read_bytes()).hexdigest()
    page = (folder / "index.html").read_text()
    assert "red/=wrong.jpg" in page
    assert "http" not in page.replace("http-equiv", "")
    assert "label is probably wrong: " in out

    for row in rows:
        if "probably" in row["reason"]:
            row["new_label"] = row["suggested"]
        if row["id"] == "green/tiny.png":
            row["new_label"] = "leave out"
    table = tmp_path / "corrected.csv"
    write_rows(table, rows)
    workdir = tmp_path / "run"
    status, out, err = run_main(*arguments, f"--relabel={table}", f"--workdir={workdir}")
    assert (status, err) == (0, "")
    assert "relabel:     labels changed: 2, pictures left out: 1" in out
    run_main(*arguments, f"--workdir={tmp_path / 'plain'}")
    before, after = placed(tmp_path / "plain"), placed(workdir)
    assert after["blue/wrong.jpg"] == (before["blue/wrong.jpg"][0], "red")
    assert after["red/=wrong.jpg"] == (before["red/=wrong.jpg"][0], "green")
    assert "green/tiny.png" not in after
    # Nobody else has moved.
    changed = {name for name in before if before[name] != after.get(name)}
    assert changed == {row["id"] for row in rows if row["new_label"]}
    assert ["green/tiny.png", f"left out by --relabel={table}"] in read_json(workdir / "splits.json")[
        "left_out"
    ]

    # The run has its own copy, and goes by that where the table is gone; another table is another run.
    table.rename(tmp_path / "elsewhere.csv")
    assert "is finished" in run_main(*arguments, f"--relabel={table}", f"--workdir={workdir}")[1]
    for split in ("train", "test"):
        assert run_main("evaluate", f"--workdir={workdir}", f"--eval_split={split}")[0] == 0
    copy = shutil.copytree(pictures, tmp_path / "copy")
    assert (
        run_main("evaluate", f"--workdir={workdir}", f"--source=folder:{copy}", "--eval_split=test")[0] == 0
    )
    assert run_main("export", f"--workdir={workdir}", "--formats=saved_model")[0] == 0
    write_rows(table, rows[:1])
    status, _, err = run_main(*arguments, f"--relabel={table}", f"--workdir={workdir}")
    assert status == 1
    assert "holds a run that began with another table than" in err
    status, _, err = run_main(*arguments, f"--workdir={workdir}")
    assert status == 1
    assert f"--relabel was {table}, now ''" in err


HEAD = "id,sha256,new_label\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "No such file or directory"),
        ("id,new_label\na,b\n", "it has no column sha256; `audit` writes such a table"),
        (HEAD + "red/000.jpg,{red},violet\n", "line 2: 'violet' is none of the classes blue, green, red"),
        (HEAD + "red/000.jpg,{red},Blue\n", "and not 'leave out': is it blue?"),
        (HEAD + "red/000.jpg,00,blue\n", "line 2: red/000.jpg is another picture than the table"),
        (HEAD + "red/no.jpg,00,blue\n", "line 2: red/no.jpg is not there"),
        (HEAD + "red/000.jpg,{red},blue\nred/000.jpg,{red},Leave out\n", "lines 2 and 3 say different"),
        (b"\xff\xfe", "it is no text in UTF-8"),
    ],
)  # fmt: skip
def test_a_wrong_table_is_told(text, message, arguments, pictures, tmp_path, run_main):
    table = tmp_path / "table.csv"
    if isinstance(text, bytes):
        table.write_bytes(text)
    elif text:
        digest = hashlib.sha256((pictures / "red" / "000.jpg").read_bytes()).hexdigest()
        table.write_text(text.replace("{red}", digest))
    status, _, err = run_main(*arguments, f"--relabel={table}", f"--workdir={tmp_path / 'run'}")
    assert status in (1, 2)
    assert err.startswith(f"trainer: --relabel={table}")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_a_table_of_renamed_pictures_with(delimiter, arguments, pictures, tmp_path, run_main):
    digest = hashlib.sha256((pictures / "red" / "000.jpg").read_bytes()).hexdigest()
    table = tmp_path / "table.csv"
    lines = ["\ufeffsha256;id;x;new_label", f"{digest.upper()};was/called.jpg;1;blue", ""]
    table.write_bytes("\n".join(lines).replace(";", delimiter).encode())
    status, out, err = run_main("inspect", *arguments, f"--relabel={table}")
    assert (status, err) == (0, "")
    assert "relabel:     labels changed: 1, pictures left out: 0" in out


def test_nothing_stands_out(arguments, tmp_path, run_main):
    """Pictures as sharp, as bright and as much alike as one another, each in its own class."""
    random = np.random.default_rng(0)
    for colour, name in ((np.array(rgb), name) for rgb, name in (
        ((200, 60, 60), "red"), ((60, 200, 60), "green"), ((60, 60, 200), "blue")
    )):  # fmt: skip
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(12):
            noise = random.integers(-50, 50, (32, 32, 1))
            pixels = np.clip(colour + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / name / f"{number}.png")
    source = f"--source=folder:{tmp_path / 'pictures'}"
    status, out, err = run_main(
        "audit", *arguments[1:], source, "--audit_folds=3", f"--workdir={tmp_path / 'audit'}"
    )
    assert (status, err) == (0, "")
    assert out.endswith("nothing stands out: no label, and no picture by its look\n"), out
    assert rows_of(tmp_path / "audit" / "audit" / "audit.csv") == []
