"""`inspect`: what a run is, in lines that can be read whatever there is to say."""

import shutil

import numpy as np
from PIL import Image

from tests.conftest import make_flower_folder
from trainer.commands.inspect import told_counts


def test_of_many_classes_the_smallest_and_the_largest_are_told():
    counts = {f"class {k:03d}": 10 + k for k in range(20)}
    assert told_counts(counts).startswith("class 000 10, class 001 11, ")
    assert told_counts(counts).count(", ") == 19
    counts |= {
        "none": 0,
        "Canis lupus familiaris, beagle, by day": 5,
        "Canis lupus familiaris, boxer, by day": 6,
    }
    assert told_counts(counts) == (
        "23 classes of 0 to 29, 1 of them empty; fewest: none 0, Canis lupus fam…beagle, by day 5, "
        "Canis lupus fam… boxer, by day 6; most: class 017 27, class 018 28, class 019 29; "
        "--verbose lists all"
    )
    assert told_counts(counts, all_of=True) == ", ".join(f"{name} {count}" for name, count in counts.items())


def test_a_thousand_classes_make_no_long_line(tmp_path, tiny_backbone, run_main):
    picture = tmp_path / "picture.png"
    Image.fromarray(np.zeros([8, 8, 3], np.uint8)).save(picture)
    for split, num_classes in (("train", 1000), ("validation", 10)):
        for k in range(num_classes):
            folder = tmp_path / "pictures" / split / f"a class of things with a long name, number {k:03d}"
            folder.mkdir(parents=True)
            for i in range(1 + (k == 7)):
                (folder / f"{i}.png").write_bytes(picture.read_bytes())
    options = [
        f"--source=folder:{tmp_path / 'pictures'}", f"--backbone=savedmodel:{tiny_backbone}",
        "--image_size=8", "--precision=float32",
    ]  # fmt: skip
    status, out, err = run_main("inspect", *options)
    assert (status, err) == (0, "")
    assert max(map(len, out.splitlines())) < 500
    assert "  train         1,001  (1,000 classes of 1 to 2; fewest: a class of thin…" in out
    assert "  validation       11  (1,000 classes of 0 to 2, 990 of them empty; fewest: " in out
    status, out, err = run_main("inspect", *options, "--verbose")
    assert (status, err) == (0, "")
    of_train, of_validation = (
        next(line for line in out.splitlines() if line.startswith(f"  {split} "))
        for split in ("train", "validation")
    )
    assert of_train.count("a class of things with a long name, number ") == 1000
    assert of_validation.count("a class of things with a long name, number ") == 1000
    assert "number 006 1, a class of things with a long name, number 007 2, a class" in of_train


def test_who_has_few_pictures_need_not_know_of_batches(tmp_path, tiny_backbone, run_main):
    options = [
        f"--source=folder:{make_flower_folder(tmp_path / 'pictures', n=4)}", "--image_size=8",
        f"--backbone=savedmodel:{tiny_backbone}", "--precision=float32", "--schedule=frozen",
    ]  # fmt: skip
    status, out, err = run_main(*options, "--dry_run")
    assert (status, err) == (0, "")
    drawn = "no --source, so the pictures are drawn; of your own, --source=folder:PATH"
    assert drawn not in out
    status, forgotten, _ = run_main(*options[1:], "--synthetic_examples=30", "--batch_size=4", "--dry_run")
    assert (status, drawn in forgotten.splitlines()) == (0, True)
    assert "--batch_size=32: there are only 9 pictures to train with, so every update sees all of them" in out
    assert "plan: 1 steps an epoch, 10 in all" in out
    status, _, err = run_main(*options, "--batch_size=16", "--dry_run")
    assert (status, "--batch_size=16 is larger than the data: there are 12 pictures" in err) == (2, True)


def test_a_dry_run_refuses_what_training_would(colours, tmp_path, run_main):
    workdir = colours.copy(tmp_path)
    flagfile = (f"--flagfile={workdir / 'flagfile.flags'}", f"--workdir={workdir}")
    for options in ([*flagfile, "--seed=77"], [f"--workdir={workdir}"]):
        status, _, told = run_main("train", *options)
        assert status in (1, 2)
        assert run_main("train", *options, "--dry_run") == (status, "", told)
    assert "no --source is given: write it, or" in told
    # These are found out by what is in the pictures, and of plugins by their bytes.
    (tmp_path / "idea.py").write_text("# Nothing yet.\n")
    for option in ("--splits=60%,20%,20%", f"--plugin={tmp_path / 'idea.py'}"):
        status, _, told = run_main("train", *flagfile, option)
        assert (status, "holds a run with other" in told) == (1, True)
        before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
        assert run_main("train", *flagfile, option, "--dry_run") == (status, "", told)
        assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")} == before
    # What inspect shows of a run with other options is no refusal, nor are those of the run itself.
    assert run_main("inspect", *flagfile, "--seed=77")[0] == 0
    status, out, _ = run_main(*flagfile, "--dry_run")
    assert (status, "plan: " in out) == (0, True)
    # What saved nothing binds nobody.
    (tmp_path / "none").mkdir()
    shutil.copy(workdir / "run.json", tmp_path / "none")
    assert run_main(flagfile[0], "--seed=77", f"--workdir={tmp_path / 'none'}", "--dry_run")[0] == 0
