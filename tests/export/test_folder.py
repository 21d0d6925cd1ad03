"""An export folder is there whole, or as it was, with whatever else is in it."""

import json
import os

import pytest

from trainer.export.folder import kept_models, put_in_place, require_export_place, unchecked_models
from trainer.values import TrainerError


def tree(folder):
    """{path: text} of the files in a folder, and {path/: ""} of its empty folders; no record."""
    found = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != "export_manifest.json":
            found[name] = path.read_text()
        elif path.is_dir() and not any(path.iterdir()):
            found[f"{name}/"] = ""
    return found


def export(folder, error=None, kept=(), **files):
    """Puts files into place, whose names have __ for a slash and _ for a dot; returns what is there then."""
    with put_in_place(folder, kept=kept) as part:
        for name, text in {"parity_json": "{}", **files}.items():
            path = part / name.replace("__", "/").replace("_", ".")
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        if error:
            raise error
    return tree(folder)


def test_a_new_folder_takes_the_place_of_an_older_one(tmp_path):
    folder = tmp_path / "export"
    for text in ("old", "new"):
        require_export_place(folder, files=["a.tflite", "model"], num_bytes=10)
        assert export(folder, a_tflite=text, model__inner=text) == {
            "parity.json": "{}", "a.tflite": text, "model/inner": text,
        }  # fmt: skip
        assert os.stat(folder).st_mode & 0o777 == 0o755
        assert os.listdir(tmp_path) == ["export"]
    assert export(folder, b_tflite="b") == {"parity.json": "{}", "b.tflite": "b"}


def test_what_somebody_else_has_there_stays(tmp_path, caplog):
    """Files, folders, links, and what was changed; models that are kept stay in the record."""
    folder = tmp_path / "export"
    export(folder, a_tflite="a", b_tflite="b", model__inner="m", card_md="card")
    (folder / "notes.txt").write_text("mine")
    (folder / "model" / "notes.txt").write_text("mine, too")
    (folder / "deep" / "empty").mkdir(parents=True)
    (folder / "link").symlink_to(tmp_path)
    (folder / "card.md").write_text("by hand")
    folder.chmod(0o750)
    mine = {"notes.txt": "mine", "model/notes.txt": "mine, too", "deep/empty/": ""}
    found = export(folder, kept=["b.tflite"], card_md="new card")
    assert [record.getMessage() for record in caplog.records] == [
        "card.md was changed by hand: it is kept as card.edited.md"
    ]
    edited = {"card.md": "new card", "card.edited.md": "by hand"}
    assert found == {"parity.json": "{}", "b.tflite": "b", **edited, **mine}
    assert (folder / "link").readlink() == tmp_path
    assert os.stat(folder).st_mode & 0o777 == 0o750
    record = json.loads((folder / "export_manifest.json").read_text())
    assert set(record["files"]) == {"parity.json", "b.tflite", "card.md"}
    assert export(folder) == {"parity.json": "{}", "card.edited.md": "by hand", **mine}
    assert os.listdir(tmp_path) == ["export"]


def test_a_file_system_without_hard_links(tmp_path, monkeypatch):
    folder = tmp_path / "export"
    export(folder, a_tflite="a")
    (folder / "notes.txt").write_text("mine")
    monkeypatch.setattr(os, "link", lambda *given: exec("raise OSError(1, 'Operation not permitted')"))
    assert export(folder, kept=["a.tflite"]) == {"parity.json": "{}", "a.tflite": "a", "notes.txt": "mine"}


def test_an_error_leaves_the_older_one(tmp_path, monkeypatch):
    folder = tmp_path / "export"
    before = export(folder, a_tflite="old")
    (folder / "notes.txt").write_text("mine")
    before["notes.txt"] = "mine"
    full = OSError(28, "No space left on device", "x")
    with pytest.raises(ValueError, match="the middle"):
        export(folder, ValueError("the middle"))
    with pytest.raises(TrainerError) as error:
        export(folder, full)
    assert str(error.value).startswith(
        f"the export cannot be written to {folder}: No space left on device; the earlier"
    )
    replace = os.replace

    def fail_at_the_second(old, new):
        if new == folder and "-old" not in str(old):
            raise OSError(5, "Input/output error")
        replace(old, new)

    monkeypatch.setattr(os, "replace", fail_at_the_second)
    with pytest.raises(TrainerError, match="Input/output error"):
        export(folder)
    assert (tree(folder), os.listdir(tmp_path)) == (before, ["export"])


def kept(folder, *files, weights="0f"):
    return kept_models(folder, files=files, weights=weights, way_out="do it anew")


def test_models_that_stay_are_of_the_same_weights_and_whole(tmp_path):
    folder = tmp_path / "export"
    numbers = ("accuracy", "accuracy_drop", "agreement", "num_not_finite", "images_per_second", "size_bytes")
    row = {**dict.fromkeys(numbers, 1), "input": "files", "largest_probability_difference": None}
    rows = [{**row, "file": "a.tflite"}, {**row, "file": "b.tflite"}]
    found = {"format": 2, "weights": {"step": 7, "sha256": "0f"}, "models": rows}
    assert kept(folder, "a.tflite") == []
    export(folder, parity_json=json.dumps(found), a_tflite="a", b_tflite="b")
    assert kept(folder) == rows
    assert kept(folder, "a.tflite") == rows[1:]
    assert kept(folder, "a.tflite", "b.tflite", weights="other") == []
    with pytest.raises(TrainerError) as error:
        kept(folder, "a.tflite", weights="other")
    assert str(error.value) == (
        f"--export_dir={folder} holds b.tflite with other weights, those of step 7: do it anew, or name "
        "another folder"
    )
    (folder / "parity.json").write_text(json.dumps({**found, "models": [{"file": "b.tflite"}]}))
    with pytest.raises(TrainerError, match=r"parity\.json is damaged: it has no models\[0\]\.input"):
        kept(folder, "a.tflite")
    (folder / "b.tflite").write_text("by hand")
    assert kept(folder, "a.tflite", weights="other") == []


def test_models_that_are_not_checked_stay_beside_others_of_the_same_weights(tmp_path):
    folder = tmp_path / "export"
    found = {"format": 2, "weights": {"step": 7, "sha256": "0f"}, "models": []}
    export(folder, parity_json=json.dumps(found), grey_csv="g", labels_txt="a")
    (folder / "notes.txt").write_text("mine")
    assert unchecked_models(folder, files=["a.tflite"]) == ["grey.csv"]
    assert kept(folder, "a.tflite") == kept(folder, "grey.csv", weights="other") == []
    with pytest.raises(TrainerError, match=r"holds grey\.csv with other weights, those of step 7: do it"):
        kept(folder, "a.tflite", weights="other")


def test_an_export_of_an_older_version(tmp_path):
    folder = tmp_path / "export"
    (folder / "saved_model").mkdir(parents=True)
    rows = [{"file": "a.tflite", "input": "images"}, {"file": "saved_model", "input": "images"}]
    (folder / "parity.json").write_text(json.dumps({"format": 1, "models": rows}))
    for name in ("a.tflite", "saved_model/graph", "notes.txt"):
        (folder / name).write_text(name)
    with pytest.raises(TrainerError, match=r"holds a\.tflite, saved_model of another version.*do it anew"):
        kept(folder)
    require_export_place(folder, files=["a.tflite", "saved_model"], num_bytes=0)
    assert kept(folder, "a.tflite", "saved_model") == []
    assert export(folder, b_tflite="b") == {"parity.json": "{}", "b.tflite": "b", "notes.txt": "notes.txt"}


def test_places_that_are_none(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    export(tmp_path / "taken", b_tflite="b")
    (tmp_path / "taken" / "a.tflite").write_text("mine")
    for name, message in (
        ("file", "is a link or a file"),
        ("link", "is a link or a file"),
        ("file/below", "lies below a file"),
        ("taken", r"holds a\.tflite, which this command did not write"),
    ):
        with pytest.raises(TrainerError, match=message):
            require_export_place(tmp_path / name, files=["a.tflite"], num_bytes=0)
    with pytest.raises(TrainerError, match="are missing"):
        require_export_place(tmp_path / "new", files=[], num_bytes=10**18)
    # Whose notes they are: they stay beside it.
    require_export_place(tmp_path / "photos", files=["a.tflite"], num_bytes=0)
    found = export(tmp_path / "photos", b_tflite="b")
    assert found == {"parity.json": "{}", "b.tflite": "b", "a.jpg": ""}
    (tmp_path / "empty").mkdir()
    require_export_place(tmp_path / "empty", files=[], num_bytes=0)
    require_export_place(tmp_path / "deep" / "new", files=[], num_bytes=0)
    assert (tmp_path / "photos" / "a.jpg").exists()
