"""Class names in other spellings of Unicode, in other cases, and where the locale knows ASCII alone."""

import os
import subprocess
import sys
import unicodedata

import numpy as np
import pytest

from tests.conftest import make_flower_folder
from tests.data.trees import write_tree, write_zip
from trainer.data.sources import SourceOptions, open_source
from trainer.loop.losses import class_weights_from
from trainer.run.explanations import label_of
from trainer.run.new_pictures import match_classes
from trainer.values import TrainerError, UsageError

ONE, TWO = "caf\xe9", "cafe\u0301"  # NFC and NFD.


def opened(tmp_path, *paths: str, **options):
    write_tree(tmp_path / "photos", dict.fromkeys(paths, b""))
    return open_source(f"folder:{tmp_path}/photos", SourceOptions(**options))


def test_two_spellings_are_one_class_of_pictures_where_they_lie(tmp_path):
    source = opened(tmp_path, f"train/{TWO}/1.jpg", "train/tea/1.jpg", f"test/{ONE}/{TWO}.jpg")
    assert source.class_names == (ONE, "tea")
    assert source.ids == [f"train/{TWO}/1.jpg", "train/tea/1.jpg", f"test/{ONE}/{TWO}.jpg"]
    assert source.labels.tolist() == [0, 1, 0]
    assert [source.read(at) for at in range(3)] == [b""] * 3


def test_both_spellings_in_one_folder_are_refused_by_name(tmp_path):
    line = rf"has the class {ONE} twice, in two spellings of Unicode: 'cafe\\u0301' and 'caf\\xe9'. Move"
    with pytest.raises(TrainerError, match=line):
        opened(tmp_path, f"{ONE}/1.jpg", f"{TWO}/2.jpg", "tea/1.jpg")
    packed = write_zip(tmp_path / "x.zip", {f"{TWO}/1.jpg": b"", f"{ONE}/2.jpg": b"", "tea/1.jpg": b""})
    with pytest.raises(TrainerError, match=line):
        open_source(f"archive:{packed}", SourceOptions(cache_dir=str(tmp_path / "cache")))


def test_names_that_differ_in_case_or_spaces_are_warned_of(tmp_path, caplog):
    assert opened(tmp_path, "Cat/1.jpg", "cat/2.jpg", "cat /3.jpg", "dog/1.jpg").class_names == (
        "Cat", "cat", "cat ", "dog",
    )  # fmt: skip
    [record] = caplog.records
    assert (
        "photos: the classes 'Cat' and 'cat' and 'cat ' differ only in case or spaces" in record.getMessage()
    )
    with pytest.raises(TrainerError, match=r"has the class cat, which train/ has not: is it Cat\?$"):
        opened(tmp_path / "2", "train/Cat/1.jpg", "train/dog/1.jpg", "val/cat/1.jpg", "val/dog/1.jpg")


def test_what_names_a_class_names_it_in_any_spelling(tmp_path):
    assert match_classes([TWO, "tea"], ["tea", ONE], source="x").tolist() == [1, 0]
    assert match_classes([ONE, "tea"], ["tea", TWO], source="x").tolist() == [1, 0]
    with pytest.raises(UsageError):
        match_classes(["cafe"], ["tea", ONE], source="x")
    assert label_of(TWO, ["tea", ONE], flag="--explain_class") == 1
    weights = class_weights_from(f"{TWO}=2", class_names=("tea", ONE), counts={})
    np.testing.assert_array_equal(weights, [1, 2])
    scored = opened(tmp_path, f"{TWO}/1.jpg", "tea/1.jpg", run_classes=(ONE, "tea"))
    assert scored.class_names == (ONE, "tea")


def test_letters_beyond_ascii_in_a_locale_and_a_terminal_without_them(tmp_path, tiny_backbone):
    photos = make_flower_folder(tmp_path / "ü", n=5, classes=("red", "blue"))
    (photos / "red").rename(photos / TWO)
    (photos / "blue").rename(photos / "猫")
    arguments = [f"--source=folder:{photos}", f"--backbone=savedmodel:{tiny_backbone}", "--batch_size=2"]
    arguments += ["--splits=60%,20%,20%", "--schedule=frozen", "--image_size=8"]
    # As hard as it gets: Python is told not to take this locale for one of UTF-8.
    surroundings = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-m", "trainer.main", "inspect", *arguments],
        env={**os.environ, **surroundings},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "Unicode" not in done.stderr
    assert r"(caf\xe9 3, \u732b 3)" in done.stdout
    assert unicodedata.is_normalized("NFC", ONE)
