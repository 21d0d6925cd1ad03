"""What a command wrote into a folder, and what of it a later one may replace or remove."""

import json
import os

import pytest

from trainer.record.manifest import Manifest
from trainer.values import TrainerError


def manifest(folder, *older):
    return Manifest(folder, "thing", older=lambda folder: older)


def write(folder, **texts):
    """Writes files as a command does; returns what is in the folder then, {name: text}."""
    names = [name.replace("_", ".") for name in texts]
    found = manifest(folder)
    found.begin(names)
    for name, text in zip(names, texts.values(), strict=True):
        (folder / name).write_text(text)
    found.finish(names)
    return texts_in(folder)


def texts_in(folder):
    return {path.name: path.read_text() for path in folder.iterdir() if path.name != "thing_manifest.json"}


def test_only_what_was_written_before_is_removed(tmp_path):
    assert write(tmp_path, a_txt="1", b_txt="2") == {"a.txt": "1", "b.txt": "2"}
    (tmp_path / "notes.txt").write_text("mine")
    assert write(tmp_path, a_txt="3") == {"a.txt": "3", "notes.txt": "mine"}
    assert write(tmp_path) == {"notes.txt": "mine"}
    assert json.loads((tmp_path / "thing_manifest.json").read_text()) == {"format": 1, "files": {}}


def test_a_file_that_was_changed_by_hand_is_kept(tmp_path, caplog):
    write(tmp_path, a_txt="1", b_txt="2")
    (tmp_path / "a.txt").write_text("by hand")
    (tmp_path / "b.txt").write_text("by hand, too")
    wanted = {"a.txt": "3", "a.edited.txt": "by hand", "b.txt": "by hand, too"}
    with caplog.at_level("WARNING", "trainer"):
        assert write(tmp_path, a_txt="3") == wanted
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}/a.txt was changed by hand: it is kept as a.edited.txt",
        f"{tmp_path}/b.txt was changed by hand: it stays",
    ]
    (tmp_path / "a.txt").write_text("again")
    assert write(tmp_path, a_txt="4") == {**wanted, "a.txt": "4", "a.edited-2.txt": "again"}


def test_what_is_in_the_way_and_of_somebody_else_is_told(tmp_path):
    write(tmp_path, a_txt="1")
    (tmp_path / "b.txt").write_text("mine")
    (tmp_path / "c.txt").mkdir()
    found = manifest(tmp_path)
    found.require_free(["a.txt", "new.txt"], flag="--output=x")
    for name in ("b.txt", "c.txt"):
        with pytest.raises(TrainerError, match=f"^--output=x holds {name}, which this command did not write"):
            found.require_free(["a.txt", name], flag="--output=x")


def test_a_stop_in_the_middle_leaves_nothing_that_is_nobodys(tmp_path):
    write(tmp_path, a_txt="1")
    manifest(tmp_path).begin(["a.txt", "b.txt"])
    (tmp_path / "b.txt").write_text("half")
    assert write(tmp_path, c_txt="3") == {"c.txt": "3"}


@pytest.mark.parametrize(
    "record", ["{", "[]", '{"format": 2, "files": {"a.txt": ""}}', '{"format": 1, "files": [1]}']
)
def test_without_a_record_that_can_be_read_it_is_that_of_an_older_version(record, tmp_path):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(name)
    (tmp_path / "thing_manifest.json").write_text(record)
    found = manifest(tmp_path, "a.txt")
    assert (found.is_ours("a.txt"), found.is_ours("b.txt")) == (True, False)
    found.finish([])
    assert texts_in(tmp_path) == {"b.txt": "b.txt"}


def test_a_record_reaches_nothing_outside_of_its_folder(tmp_path):
    (tmp_path / "precious.txt").write_text("precious")
    folder = tmp_path / "folder"
    folder.mkdir()
    names = ["../precious.txt", str(tmp_path / "precious.txt"), "a/../../precious.txt", "", "."]
    (folder / "thing_manifest.json").write_text(json.dumps({"format": 1, "files": dict.fromkeys(names, "")}))
    manifest(folder).finish([])
    manifest(folder, *names).finish([])
    assert (tmp_path / "precious.txt").read_text() == "precious"
    assert os.listdir(folder) == ["thing_manifest.json"]
