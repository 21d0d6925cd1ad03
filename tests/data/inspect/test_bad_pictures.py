"""Bad pictures from a folder to the splits: named before training, or left out, and nobody else moves."""

import logging
import os
import re
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import make_flower_folder
from trainer.cli.flags import parse
from trainer.data.inspect.bad_pictures import BadPictureError, one_line, refusal, told_left_out
from trainer.run.experiment import Experiment
from trainer.values import TrainerError


def test_the_refusal_names_each_a_line():
    ids = [f"a/{k}.jpg" for k in range(1234)]
    assert str(refusal("folder:x", ids, {3: "it is empty (0 bytes)"})) == (
        "1 of 1,234 pictures in folder:x cannot be used; --on_bad_image=skip leaves it out:\n"
        "  a/3.jpg: it is empty (0 bytes)"
    )
    assert str(refusal("folder:x", ids, {9: "cut", 2: "empty"})) == (
        "2 of 1,234 pictures in folder:x cannot be used; --on_bad_image=skip leaves them out:\n"
        "  a/2.jpg: empty\n"
        "  a/9.jpg: cut"
    )


@pytest.mark.parametrize(
    ("count", "last"), [(20, "  a/19.jpg: 19"), (21, "  and 1 more"), (1234, "  and 1,214 more")]
)
def test_the_refusal_has_a_limit(count, last):
    lines = str(refusal("x", [f"a/{k}.jpg" for k in range(1234)], {k: f"{k}" for k in range(count)})).split(
        "\n"
    )
    assert lines[0].startswith(f"{count:,} of 1,234 pictures in x cannot be used; ")
    assert lines[1:21] == [f"  a/{k}.jpg: {k}" for k in range(20)]
    assert lines[-1] == last
    assert len(lines) == (21 if count == 20 else 22)


def test_what_is_left_out_is_told_in_one_line():
    bad = [(f"{k}.jpg", f"r{k}") for k in range(5)]
    first = "which cannot be used: 0.jpg: r0; 1.jpg: r1; 2.jpg: r2"
    assert told_left_out(bad[:3], total=1800) == f"left out 3 of 1,800 pictures, {first}"
    assert told_left_out(bad, total=1800) == f"left out 5 of 1,800 pictures, {first}; and 2 more"


def test_a_reason_is_one_line_that_can_be_printed_and_has_an_end():
    assert one_line(" two\n lines\t\x1b[31mred\x85\u2028 ü\x00") == r"two lines \x1b[31mred ü\x00"
    assert len(one_line("word " * 1000)) == 300
    assert one_line("word " * 1000).endswith("w ...")
    assert str(BadPictureError("a", "b\nc")) == "a is not a picture that can be read: b c"


@pytest.fixture
def photos(tmp_path) -> Path:
    return make_flower_folder(tmp_path / "photos", n=10)


@pytest.fixture
def open_experiment(photos, tiny_backbone, tmp_path):
    """open(*arguments) -> Experiment of the photos, with scans in tmp_path/cache."""

    def open(*arguments: str) -> Experiment:
        line = parse([
            "trainer", f"--source=folder:{photos}", f"--backbone=savedmodel:{tiny_backbone}",
            "--image_size=8", "--splits=60%,20%,20%", "--batch_size=4", f"--workdir={tmp_path / 'run'}",
            "--schedule=frozen", f"--cache_dir={tmp_path / 'cache'}", *arguments,
        ])  # fmt: skip
        return Experiment(line.config)

    return open


def spoil(photos: Path) -> list[tuple[str, str]]:
    """Spoils five pictures, and adds one more; returns what is to be said of them."""
    (photos / "blue/003.jpg").write_bytes(b"")
    (photos / "blue/007.jpg").write_text("<html>not found</html>")
    picture = photos / "green/002.jpg"
    picture.write_bytes(picture.read_bytes()[:-20])
    (photos / "red/001.jpg").unlink()
    (photos / "red/001.jpg").symlink_to("gone.jpg")
    (photos / "red/004.jpg").unlink()
    (photos / "red/004.jpg").mkdir()
    os.mkfifo(photos / "red/pipe.jpg")
    return [
        ("blue/003.jpg", "it is empty (0 bytes)"),
        ("blue/007.jpg", "it is none of JPEG, PNG, GIF, BMP and WebP"),
        ("green/002.jpg", "it ends in the middle"),
        ("red/001.jpg", "a link to nothing"),
        ("red/004.jpg", "a folder, not a picture"),
        ("red/pipe.jpg", "not a regular file"),
    ]


def test_bad_pictures_are_named_all_at_once_before_anything_else(open_experiment, photos, tmp_path):
    bad = spoil(photos)
    expected = "\n".join([
        f"6 of 31 pictures in folder:{photos} cannot be used; --on_bad_image=skip leaves them out:",
        *(f"  {name}: {reason}" for name, reason in bad),
    ])  # fmt: skip
    for _ in range(2):
        with pytest.raises(TrainerError) as caught:
            open_experiment("--backbone=savedmodel:nowhere")
        assert str(caught.value) == expected
    assert not (tmp_path / "run").exists()


def test_bad_pictures_are_left_out_and_nobody_else_moves(open_experiment, photos, caplog):
    caplog.set_level(logging.INFO, "trainer")
    os.mkfifo(photos / "red/pipe.jpg")
    places = open_experiment("--on_bad_image=skip").splits.indices
    (photos / "red/pipe.jpg").unlink()
    bad = spoil(photos)
    experiment = open_experiment("--on_bad_image=skip")
    assert experiment.left_out == bad
    assert caplog.messages[-1] == (
        "left out 6 of 31 pictures, which cannot be used: blue/003.jpg: it is empty (0 bytes); blue/007.jpg: "
        "it is none of JPEG, PNG, GIF, BMP and WebP; green/002.jpg: it ends in the middle; and 3 more"
    )
    gone = [experiment.source.ids.index(name) for name, _ in bad]
    for split, positions in experiment.splits.indices.items():
        assert positions.tolist() == [at for at in places[split].tolist() if at not in gone]
    assert experiment.splits.how.endswith("; 6 bad pictures left out")
    shown = [row[0] for rows in experiment.split_record().values() for row in rows]
    assert sorted([*shown, *(name for name, _ in bad)]) == sorted(experiment.source.ids)
    # The record of the first scan says the same.
    again = open_experiment("--on_bad_image=skip")
    assert again.left_out == bad
    assert again.split_record() == experiment.split_record()
    batches = list(experiment.pipeline.once(experiment.splits.indices["train"]))
    assert all(np.isfinite(batch["image"]).all() for batch in batches)


def test_without_bad_pictures_both_are_the_same(open_experiment):
    fail, skip = open_experiment(), open_experiment("--on_bad_image=skip")
    assert fail.left_out == skip.left_out == []
    assert fail.splits.how == skip.splits.how
    assert fail.split_record() == skip.split_record()


def test_a_class_that_train_lost_and_an_empty_split_are_errors(open_experiment, photos):
    for path in (photos / "green").iterdir():
        path.write_bytes(b"")
    with pytest.raises(TrainerError, match=r"^class 'green' has only bad pictures in train: nothing could"):
        open_experiment("--on_bad_image=skip")
    for path in photos.rglob("*.jpg"):
        path.write_bytes(b"")
    expected = "the train split is empty without bad pictures: all 18 in it are bad"
    with pytest.raises(TrainerError, match=f"^{re.escape(expected)}$"):
        open_experiment("--on_bad_image=skip")


def test_a_copy_of_a_bad_picture_is_no_duplicate(open_experiment, photos):
    for name in ("blue/003.jpg", "green/003.jpg", "red/003.jpg", "red/005.jpg"):
        (photos / name).write_bytes(b"")
    experiment = open_experiment("--on_bad_image=skip", "--drop_duplicates")
    assert experiment.shared == []
    assert experiment.splits.how.endswith("; 4 bad pictures left out")


def test_the_limit_of_pixels_is_an_option(open_experiment):
    open_experiment("--max_pixels=120")
    with pytest.raises(TrainerError) as caught:
        open_experiment("--max_pixels=119")
    lines = str(caught.value).split("\n")
    assert lines[0].startswith("30 of 30 pictures in ")
    assert lines[1] == "  blue/000.jpg: 12x10 px are more than --max_pixels=119"
    assert lines[-1] == "  and 10 more"
