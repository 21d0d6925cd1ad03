"""Which folders are taken for splits and which for classes."""

import logging
import re
from collections.abc import Iterable

import pytest

from tests.data.trees import write_tgz, write_tree
from trainer.data.sources import SourceOptions, open_source
from trainer.data.splits import make_splits
from trainer.values import TrainerError, UsageError


def opened(tmp_path, paths: Iterable[str], **options):
    write_tree(tmp_path / "photos", dict.fromkeys(paths, b""))
    return open_source(f"folder:{tmp_path}/photos", SourceOptions(**options))


def tree(*folders: str, classes=("cats", "dogs")) -> list[str]:
    return [f"{folder}/{name}/1.jpg" for folder in folders for name in classes]


def refused(tmp_path, line: str, kind=UsageError):
    return pytest.raises(kind, match=re.escape(line.replace("PATH", str(tmp_path / "photos"))))


USUAL = {
    "kaggle": {"Training": "train", "Testing": "test"},
    "sets": {"training_set": "train", "test_set": "test"},
    "intel": {"seg_train/seg_train": "train", "seg_test/seg_test": "test"},
    "eval": {"train": "train", "eval": "validation"},
    "roboflow": {"Train": "train", "Valid": "validation"},
    "capitals": {"TRAIN": "train", "TEST": "test"},
    "dev": {"trainset": "train", "dev": "validation", "testset": "test"},
    "wrapped": {"a/b/train-images": "train", "a/b/val images": "validation"},
    "only train": {"train": "train"},
}


@pytest.mark.parametrize("kind", USUAL)
def test_usual_names_are_splits_in_any_case_and_below_single_folders(tmp_path, kind):
    names = USUAL[kind]
    source = opened(tmp_path, tree(*names))
    assert source.class_names == ("cats", "dogs")
    assert source.native_splits == {split: (2 * k, 2 * k + 2) for k, split in enumerate(names.values())}
    first = next(iter(names)).removeprefix("a/b/")
    assert source.ids[0] == f"{first}/cats/1.jpg"


def test_single_folders_are_looked_through_in_folders_and_archives(tmp_path, options, caplog):
    caplog.set_level(logging.INFO, "trainer")
    assert opened(tmp_path, tree("a/b c/d")).ids == ["cats/1.jpg", "dogs/1.jpg"]
    assert caplog.messages == [f"folder:{tmp_path}/photos: the pictures are in {tmp_path}/photos/a/b c/d"]
    packed = write_tgz(tmp_path / "x.tgz", dict.fromkeys(tree("train/train", "val/val"), b""), "a/a/")
    source = open_source(f"archive:{packed}", options)
    assert source.native_splits == {"train": (0, 2), "validation": (2, 4)}


def test_a_class_with_folders_of_its_own_is_not_looked_through(tmp_path):
    with refused(tmp_path, "PATH has only one class, cats", TrainerError):
        opened(tmp_path, ["cats/1.jpg", "cats/young/1.jpg"])


def test_one_class_of_a_split_is_a_class_and_no_wrapper(tmp_path):
    source = opened(tmp_path, [*tree("train"), "test/cats/old/1.jpg", "test/cats/young/1.jpg"])
    assert source.class_names == ("cats", "dogs")
    assert source.ids[2:] == ["test/cats/old/1.jpg", "test/cats/young/1.jpg"]


def test_links_in_circles_end(tmp_path):
    (tmp_path / "photos/a").mkdir(parents=True)
    (tmp_path / "photos/a/b").symlink_to(tmp_path / "photos")
    with refused(tmp_path, "PATH/a/b cannot be used: a link to a folder that it lies in", TrainerError):
        opened(tmp_path, [])


@pytest.mark.parametrize("wrapped", ["", "test/", "nothing/"])
def test_pictures_without_classes_beside_the_training_set_are_left_out(tmp_path, caplog, wrapped):
    if wrapped == "nothing/":
        source = opened(tmp_path, [*tree("seg_train/seg_train"), "seg_pred/seg_pred/1.jpg"])
        name = "seg_pred"
    else:
        source = opened(tmp_path, [*tree("train"), f"test/{wrapped}1.jpg"])
        name = "test"
    assert source.native_splits == {"train": (0, 2)}
    assert f"left out {name}/: its pictures are in no class folders" in caplog.text


ALIKE = {
    "two parts": (
        tree("Partie1", "Partie2"),
        "PATH: Partie1/ and Partie2/ hold folders of the same names (cats and dogs): these look like splits, "
        "not classes. If they are splits, rename them to train/, validation/ and test/, or say "
        "--splits=Partie1,Partie2; if they are classes, say --splits=80%,10%,10%",
    ),
    "one of them lacks a class": (
        [*tree("A", classes=("x", "y", "z")), *tree("B", classes=("z", "y"))],
        "(y and z): these look like splits, not classes",
    ),
    "a part of one class": ([*tree("A"), "B/cats/1.jpg"], "(cats): these look like splits, not classes"),
    "below single folders": (tree("A/a", "B/b", "C/c"), "or say --splits=A,B,C;"),
    "beside pictures": ([*tree("A", "B"), "new/1.jpg"], "these look like splits, not classes"),
    "names that --splits does not take": (
        tree("1", "2"),
        "rename them to train/, validation/ and test/; if they are classes, say",
    ),
    "splits in classes": (
        tree("cats", "dogs", classes=("train", "test")),
        "PATH: cats/ and dogs/ hold folders that look like splits (test and train). Put the splits first",
    ),
    "classes beside a split": (
        ["cats/1.jpg", "dogs/1.jpg", *tree("test")],
        "PATH: test/ holds folders of the same names as those beside it (cats and dogs): it looks like a",
    ),
}


@pytest.mark.parametrize("kind", ALIKE)
def test_what_looks_like_splits_is_refused_and_shares_say_that_it_is_not(tmp_path, kind):
    paths, line = ALIKE[kind]
    with refused(tmp_path, line):
        opened(tmp_path, paths)
    tops = sorted({path.split("/")[0] for path in paths})
    assert opened(tmp_path, [], splits="80%,10%,10%").class_names == tuple(tops)


HONEST = {
    "one folder each": ["cats/images/1.jpg", "dogs/images/1.jpg"],
    "pictures beside": ["cats/1.jpg", "cats/a/1.jpg", "cats/b/1.jpg", "dogs/1.jpg", "dogs/a/1.jpg"],
    "one name in common": ["cats/red/1.jpg", "cats/x/1.jpg", "dogs/red/1.jpg", "dogs/y/1.jpg"],
    "a class called like a split": ["train/1.jpg", "cats/1.jpg", "dogs/1.jpg"],
    "classes called like splits": ["valid/1.jpg", "invalid/1.jpg"],
}


@pytest.mark.parametrize("kind", HONEST)
def test_honest_classes_are_classes(tmp_path, kind):
    source = opened(tmp_path, HONEST[kind])
    assert source.class_names == tuple(sorted({path.split("/")[0] for path in HONEST[kind]}))
    assert source.native_splits == {}


def test_a_training_set_beside_other_folders_is_asked_about(tmp_path):
    paths = [*tree("train"), "extra/1.jpg"]
    with refused(tmp_path, "extra/ beside train/: expected either class folders", TrainerError):
        opened(tmp_path, paths)
    assert opened(tmp_path, [], splits="80%,10%,10%").class_names == ("extra", "train")


def test_folders_that_splits_names_are_splits(tmp_path, caplog):
    caplog.set_level(logging.INFO, "trainer")
    spec = "Partie2[:50%],Partie2[50%:],Partie1"
    source = opened(tmp_path, tree("Partie1", "Partie2", "Partie3"), splits=spec)
    assert source.class_names == ("cats", "dogs")
    assert source.native_splits == {"Partie2": (0, 2), "Partie1": (2, 4)}
    assert "left out Partie3/: --splits does not name it" in caplog.text
    splits = make_splits(source, "Partie2,Partie1")
    assert {name: sorted(at.tolist()) for name, at in splits.indices.items()} == {
        "train": [0, 1],
        "validation": [2, 3],
    }
    three = opened(tmp_path / "x", tree("train", "val", "eval"), splits="train,val,eval")
    assert list(three.native_splits) == ["train", "val", "eval"]


def test_splits_that_are_named_as_they_are_taken_do_not_depend_on_their_folders(tmp_path, caplog):
    source = opened(tmp_path, [*tree("Training", "Testing", "Valid"), "new/1.jpg"], splits="train,test")
    assert source.native_splits == {"train": (0, 2), "validation": (2, 4), "test": (4, 6)}
    assert "left out new/" in caplog.text


def test_in_scoring_the_classes_of_the_run_decide(tmp_path):
    run = ("cats", "dogs", "train")
    assert opened(tmp_path / "1", tree("A", "B"), run_classes=run).class_names == ("cats", "dogs")
    assert opened(tmp_path / "2", ["train/a/1.jpg", "train/b/1.jpg"], run_classes=run).ids == [
        "train/a/1.jpg",
        "train/b/1.jpg",
    ]
    assert opened(tmp_path / "3", tree("test"), run_classes=run).class_names == ("cats", "dogs")
    assert opened(tmp_path / "4", ["cats/a/1.jpg", "cats/b/1.jpg"], run_classes=run).class_names == ("cats",)
    assert opened(tmp_path / "5", ["x/1.jpg", "y/1.jpg"], run_classes=run).class_names == ("x", "y")


def test_a_class_without_pictures_in_validation_is_no_error(tmp_path, caplog):
    (tmp_path / "photos/val/dogs").mkdir(parents=True)
    source = opened(tmp_path, [*tree("train"), "val/cats/1.jpg"])
    assert source.native_splits == {"train": (0, 2), "validation": (2, 3)}
    assert "val/dogs holds no picture" in caplog.text
    (tmp_path / "photos/train/birds").mkdir()
    with refused(tmp_path, "the class folder PATH/train/birds holds no picture: expected JPEG", TrainerError):
        opened(tmp_path, [])
