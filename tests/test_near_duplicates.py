"""--near_duplicates through the door: report, group and drop, and what comes after training."""

import shutil

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.conftest import changed
from tests.helpers.undrawn import PLAIN
from trainer.store.files import read_json

COLOURS = {"red": (200, 40, 30), "blue": (30, 40, 200)}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two classes of 10 scenes, and a mirrored, smaller copy of each of the first five of a class."""
    root = tmp_path_factory.mktemp("pictures")
    for k, (name, colour) in enumerate(COLOURS.items()):
        (root / name).mkdir()
        for i in range(10):
            noise = np.random.default_rng([k, i]).integers(-60, 61, (7, 9, 1))
            small = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
            scene = Image.fromarray(small).resize((96, 72), Image.Resampling.BICUBIC)
            scene.save(root / name / f"{i}.jpg", quality=95)
            if i < 5:
                ImageOps.mirror(scene).resize((64, 48)).save(root / name / f"{i}_copy.jpg", quality=80)
    return root


@pytest.fixture
def arguments(pictures, tiny_backbone):
    return (
        f"--source=folder:{pictures}", f"--backbone=savedmodel:{tiny_backbone}", "--image_size=8",
        "--head=linear", "--splits=50%,25%,25%", "--batch_size=4", "--precision=float32",
        "--schedule=frozen", "--frozen_for=1epochs", *PLAIN,
    )  # fmt: skip


def torn(workdir):
    """Returns the scenes that are in two splits, by the names of their files."""
    splits = {}
    for split, rows in read_json(workdir / "splits.json")["splits"].items():
        for name, _, _ in rows:
            splits.setdefault(name.replace("_copy", ""), set()).add(split)
    return sorted(name for name, of in splits.items() if len(of) > 1)


def names(workdir):
    return {
        split: [name for name, _, _ in rows]
        for split, rows in read_json(workdir / "splits.json")["splits"].items()
    }


@pytest.fixture
def plain(tmp_path, arguments, run_main):
    """The run without the option, made once for its splits alone."""
    assert run_main(*arguments, f"--workdir={tmp_path / 'plain'}")[0] == 0
    return tmp_path / "plain"


@pytest.mark.usefixtures("figures_undrawn")
@pytest.mark.slow
def test_report_group_and_drop(arguments, tmp_path, plain, run_main):
    before = torn(plain)
    # Ten pairs over three splits: some are torn, or the test would be of nothing.
    assert len(before) > 2
    assert "near_duplicates" not in read_json(plain / "splits.json")
    found = {}
    for how in ("report", "group", "drop"):
        workdir = tmp_path / how
        status, out, err = run_main(*arguments, f"--near_duplicates={how}", f"--workdir={workdir}")
        assert (status, err) == (0, "")
        now = {
            "report": "are in two splits (--near_duplicates=group or drop keeps them apart): ",
            "group": "were in two splits, and are put into one: ",
            "drop": "were in two splits, and are left out of the earlier one: ",
        }
        assert f"near duplicates: {len(before)} groups of pictures that are one {now[how]}" in out
        groups = read_json(workdir / "splits.json")["near_duplicates"]
        assert sorted(group[0].split(" ")[0].replace("_copy", "") for group in groups) == before
        table = (workdir / "near_duplicates" / "near_duplicates.csv").read_text().splitlines()
        assert len(table) == 11
        page = (workdir / "near_duplicates" / "index.html").read_text()
        assert page.count("<img") == 20
        assert "http" not in page.replace("http-equiv", "")
        found[how] = names(workdir)
    assert found["report"] == names(plain)
    assert (tmp_path / "report" / "metrics.jsonl").read_bytes() == (plain / "metrics.jsonl").read_bytes()
    assert torn(tmp_path / "group") == torn(tmp_path / "drop") == []
    flat = {how: sorted(name for of in splits.values() for name in of) for how, splits in found.items()}
    assert flat["group"] == flat["report"]
    # The earlier split loses its copy, the test split nothing.
    assert len(flat["drop"]) == len(flat["report"]) - len(before)
    assert found["drop"]["test"] == found["report"]["test"]
    # What is left of each is where it was.
    for split, of in found["drop"].items():
        assert of == [name for name in found["report"][split] if name in of]
    assert run_main("evaluate", f"--workdir={tmp_path / 'group'}")[0] == 0
    assert run_main("evaluate", f"--workdir={tmp_path / 'drop'}", "--eval_split=train")[0] == 0
    # The same splits under another value are the same run; others are not.
    again = run_main(*arguments, "--near_duplicates=report", f"--workdir={plain}")
    assert (again[0], "is finished" in again[1]) == (0, True)
    status, _, err = run_main(*arguments, "--near_duplicates=drop", f"--workdir={plain}")
    assert status == 1
    assert "--near_duplicates was report, now drop" in err


def test_group_leaves_the_sources_own_splits_alone(pictures, arguments, tmp_path, run_main):
    root = tmp_path / "own"
    for split in ("train", "val"):
        shutil.copytree(pictures, root / split)
    status, _, err = run_main(
        *changed(arguments, f"--source=folder:{root}", "--splits=auto", "--near_duplicates=group"),
        f"--workdir={tmp_path / 'run'}",
    )  # fmt: skip
    assert (status, err) == (
        2,
        "trainer: --near_duplicates=group divides pictures anew, and these splits are the source's own: use "
        "--near_duplicates=drop, or shares such as --splits=80%,10%,10%\n",
    )


@pytest.mark.usefixtures("figures_undrawn")
@pytest.mark.slow
def test_groups_and_near_duplicates_stay_together(pictures, arguments, tmp_path, run_main):
    """Red and blue of a number are a group, and copies in none: what either connects is in one split."""
    seen = {}
    for fold in (1, 2, 3):
        workdir = tmp_path / str(fold)
        status, _, err = run_main(
            *arguments, "--splits=auto", "--folds=3", f"--fold={fold}", "--groups=/([0-9])[.]",
            "--near_duplicates=group", f"--workdir={workdir}",
        )  # fmt: skip
        assert (status, err) == (0, "")
        where = {}
        for split, of in names(workdir).items():
            for name in of:
                where.setdefault(name.partition("/")[2][0], set()).add(split)
        assert len(where) == 10
        assert {len(splits) for splits in where.values()} == {1}
        for name in names(workdir)["test"]:
            seen.setdefault(name, set()).add(fold)
    # Each picture is for test in one fold, as without copies.
    assert len(seen) == 30
    assert {len(folds) for folds in seen.values()} == {1}
