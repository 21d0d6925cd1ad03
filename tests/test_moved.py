"""Data, networks and workdirs that are elsewhere than a run had them, or are called otherwise."""

import json
import shutil

import pytest

from tests.conftest import make_flower_folder
from tests.helpers.trained import train_colours
from trainer.store.files import read_json

PLACES = ("source", "source_place")

IF_MOVED = " There the run had its pictures; if they are elsewhere now: --source=folder:PATH"


@pytest.fixture
def moved(colours, tmp_path):
    """(Workdir of a copy of a finished run, a copy of its pictures; there are none where it had them)."""
    workdir = colours.copy(tmp_path)
    with colours.pictures_away(tmp_path) as pictures:
        yield workdir, shutil.copytree(pictures, tmp_path / "moved")


def report_of(workdir, split=""):
    return read_json(workdir / "report" / split / "metrics.json")


def numbers(report):
    return {name: value for name, value in report.items() if name not in PLACES}


def at(colours, workdir, **others):
    """The flags of the run with others in place of some."""
    flags = [flag for flag in colours.arguments if flag[2:].split("=")[0] not in others]
    return [*flags, *(f"--{name}={value}" for name, value in others.items()), f"--workdir={workdir}"]


def go_back(workdir, *, to):
    """Removes the checkpoints after a step, and that the run has come to its end."""
    run = read_json(workdir / "run.json")
    run.pop("finished", None)
    (workdir / "run.json").write_text(json.dumps(run))
    for path in (workdir / "checkpoints").glob("ckpt-*"):
        if int(path.name.split(".")[0].split("-")[1]) > to:
            path.unlink()


def steps_of(workdir):
    return sorted(int(path.stem.split("-")[1]) for path in (workdir / "checkpoints").glob("ckpt-*.index"))


def test_a_run_goes_on_with_its_pictures_in_another_folder(colours, moved, run_main):
    workdir, pictures = moved
    before = (
        (workdir / "metrics.jsonl").read_bytes(),
        numbers(report_of(workdir)),
        read_json(workdir / "run.json"),
    )
    go_back(workdir, to=steps_of(workdir)[-2])
    status, out, err = run_main("train", *at(colours, workdir, source=f"folder:{pictures}/"))
    assert (status, err) == (0, "")
    assert "goes on from step" in out
    assert ((workdir / "metrics.jsonl").read_bytes(), numbers(report_of(workdir))) == before[:2]
    run = read_json(workdir / "run.json")
    assert run["identity"] == before[2]["identity"]
    assert run["config"]["source"] == f"folder:{pictures}/"
    assert run["first_names"] == {"source": f"folder:{colours.source}"}


def test_other_pictures_under_another_name_are_another_run(colours, moved, run_main):
    workdir, others = moved
    with open(others / "red" / "000.jpg", "ab") as file:
        file.write(b" ")
    status, _, err = run_main("train", *at(colours, workdir, source=f"folder:{others}"))
    assert status == 1
    assert f"--source was folder:{colours.source}, now folder:{others}, and these are other pictures: " in err
    assert "red/000.jpg in " in err
    assert " has changed (recorded in " in err


def test_other_splits_of_the_same_pictures_are_another_run(colours, tmp_path, run_main):
    workdir = colours.copy(tmp_path)
    status, _, err = run_main("train", *at(colours, workdir, splits="15,9,rest"))
    assert (status, err) == (0, "")  # The same ones in other words.
    status, _, err = run_main("train", *at(colours, workdir, splits="60%,20%,20%"))
    assert status == 1
    assert "--splits was 15,9,rest, now 60%,20%,20%, and these are other pictures: " in err
    status, _, err = run_main("evaluate", f"--workdir={workdir}", "--splits=60%,20%,20%")
    assert status == 1
    assert "--splits was 15,9,rest, now 60%,20%,20%. Choose" in err


def test_evaluate_finds_the_pictures_where_source_says(moved, run_main):
    workdir, pictures = moved
    before = numbers(report_of(workdir))
    assert run_main("evaluate", f"--workdir={workdir}")[0] == 1
    status, out, err = run_main("evaluate", f"--workdir={workdir}", f"--source=folder:{pictures}")
    assert (status, err) == (0, "")
    assert "test accuracy" in out
    assert numbers(report_of(workdir)) == before
    assert report_of(workdir)["source"] == f"folder:{pictures}"


@pytest.mark.parametrize(
    "command", ["inspect", "audit", "learning_curve", "find_lr", "benchmark", "evaluate"]
)
def test_what_is_of_the_run_says_what_to_do_where_they_have_gone(command, moved, run_main):
    workdir, _ = moved
    status, _, err = run_main(command, f"--workdir={workdir}")
    assert (status, err.count("\n")) == (1, 1)
    assert err.startswith(f"trainer: --source={read_json(workdir / 'run.json')['config']['source']}: ")
    assert err.endswith(f"{IF_MOVED}\n")
    assert "?." not in err


def test_a_command_that_has_no_run_yet_does_not_speak_of_one(tmp_path, run_main):
    status, _, err = run_main(
        "inspect", f"--source=folder:{tmp_path / 'none'}", f"--workdir={tmp_path / 'run'}"
    )
    assert status != 0
    assert IF_MOVED not in err


def test_a_rate_is_found_for_the_run_that_is_there(colours, moved, run_main, tmp_path):
    workdir, pictures = moved
    options = ["--find_lr_range=1e-5,10", "--find_lr_steps=40"]
    status, out, err = run_main("find_lr", f"--workdir={workdir}", f"--source=folder:{pictures}", *options)
    assert (status, err) == (0, "")
    assert "learning rate for phase frozen: " in out
    other = tmp_path / "other"
    assert run_main("find_lr", *at(colours, other, source=f"folder:{pictures}"), *options)[0] == 0
    found, told = (read_json(one / "find_lr" / "find_lr.json") for one in (workdir, other))
    assert found == told


@pytest.mark.slow
def test_pictures_are_known_by_their_bytes_whatever_they_are_called(moved, run_main):
    workdir, pictures = moved
    before = report_of(workdir)
    for path in list(pictures.glob("*/*.jpg")):
        path.rename(path.with_name(f"{999 - int(path.stem):03}_new.jpg"))
    flags = [f"--workdir={workdir}", f"--source=folder:{pictures}"]
    assert run_main("evaluate", *flags)[0] == 0
    found = report_of(workdir)
    kept = ("loss", "accuracy", "confusion_matrix", "classes", "pictures_sha256", "calibration")
    assert {name: found[name] for name in kept} == {name: before[name] for name in kept}
    # Another class beside them: the numbers of the outputs are no longer those of the folders.
    make_flower_folder(pictures, n=2, classes=("black",))
    assert run_main("evaluate", *flags)[0] == 0
    found = report_of(workdir)
    assert (found["split"], found["num_correct"]) == ("test", before["num_correct"])
    assert found["pictures_sha256"] == before["pictures_sha256"]
    assert found["loss"] == pytest.approx(before["loss"], rel=1e-5)


@pytest.mark.slow
def test_a_split_is_scored_without_the_others(moved, run_main):
    workdir, pictures = moved
    before, splits = report_of(workdir), read_json(workdir / "splits.json")["splits"]
    (pictures / splits["train"][0][0]).unlink()
    (pictures / splits["validation"][0][0]).unlink()
    seen = {"test": {"train": 2, "validation": 1}}
    facts = {**read_json(workdir / "run.json"), "init_from": {"seen_before": seen}}
    (workdir / "run.json").write_text(json.dumps(facts))
    flags = ["evaluate", f"--workdir={workdir}", f"--source=folder:{pictures}"]
    status, out, err = run_main(*flags, "--eval_split=test")
    assert (status, err) == (0, "")
    assert "has all of test; 2 other pictures of the run are missing or have changed" in out
    found = report_of(workdir)
    assert (found["split"], found["pictures_sha256"]) == ("test", before["pictures_sha256"])
    assert found["loss"] == pytest.approx(before["loss"], rel=1e-5)
    # What its run began with had learnt from these, wherever they are.
    assert found["seen_before"] == seen["test"]
    status, _, err = run_main(*flags, "--eval_split=validation")
    assert status == 1
    assert f"has not a picture of this run: {splits['validation'][0][0]} in validation is missing" in err
    # Whoever does not name a split has other pictures.
    status, out, err = run_main(*flags)
    assert (status, err) == (0, "")
    assert f"folder:{pictures} accuracy" in out
    assert "among those the run was trained with" in out


@pytest.mark.slow
def test_export_finds_the_pictures_where_source_says(moved, run_main):
    workdir, pictures = moved
    flags = ["export", f"--workdir={workdir}", "--formats=saved_model"]
    assert run_main(*flags)[0] == 1
    status, _, err = run_main(*flags, f"--source=folder:{pictures}")
    assert (status, err) == (0, "")
    parity = read_json(workdir / "export" / "parity.json")
    assert parity["models"][0]["accuracy"] == report_of(workdir)["accuracy"] or parity["models"]


@pytest.mark.slow
def test_a_run_from_before_there_was_a_stratified_order_goes_on(tmp_path, tiny_backbone, run_main):
    old = train_colours(tmp_path, tiny_backbone, "--split_order=take_skip")
    run, splits = (read_json(old.workdir / name) for name in ("run.json", "splits.json"))
    assert splits.pop("order") == "permuted"
    del splits["missing_classes"], run["network"]
    run["config"]["split_order"] = "auto"
    (old.workdir / "run.json").write_text(json.dumps(run))
    (old.workdir / "splits.json").write_text(json.dumps(splits))
    before = (old.workdir / "metrics.jsonl").read_bytes()
    go_back(old.workdir, to=steps_of(old.workdir)[-2])
    flags = [flag for flag in old.arguments if "split_order" not in flag]
    status, out, err = run_main("train", *flags, f"--workdir={old.workdir}")
    assert (status, err) == (0, "")
    assert "goes on from step" in out
    assert (old.workdir / "metrics.jsonl").read_bytes() == before
    assert run_main("evaluate", f"--workdir={old.workdir}")[0] == 0


@pytest.mark.slow
def test_a_network_is_known_by_what_it_computes(colours, tiny_backbone, tmp_path, monkeypatch, run_main):
    workdir = colours.copy(tmp_path)
    shutil.copytree(tiny_backbone, tmp_path / "module")
    monkeypatch.chdir(tmp_path)
    for named in ("savedmodel:module", "savedmodel:./module/", f"hub:{tmp_path}/module"):
        status, _, err = run_main("train", *at(colours, workdir, backbone=named))
        assert (status, err) == (0, "")
    assert read_json(workdir / "run.json")["first_names"] == {"backbone": f"savedmodel:{tiny_backbone}"}
    picture = next(colours.source.glob("red/*.jpg"))
    (tmp_path / "module").rename(tmp_path / "elsewhere")
    assert run_main("predict", f"--workdir={workdir}", picture)[0] == 1
    status, out, err = run_main("predict", f"--workdir={workdir}", "--backbone=hub:./elsewhere", picture)
    assert (status, err[:1]) == (0, "1"), err
    assert "red" in out
    with open(tmp_path / "elsewhere" / "saved_model.pb", "ab") as file:
        file.write(b"\x1a\x00")  # An empty field more.
    for command in (["train", *at(colours, workdir, backbone="hub:./elsewhere")],
                    ["predict", f"--workdir={workdir}", "--backbone=hub:elsewhere/", picture]):  # fmt: skip
        status, _, err = run_main(*command)
        assert status == 1
        assert f"--backbone was hub:{tmp_path}/module, now hub:" in err


@pytest.mark.slow
def test_the_run_that_another_began_with_may_be_moved(colours, tmp_path, run_main):
    first, workdir = colours.copy(tmp_path), tmp_path / "second"
    assert run_main("train", *at(colours, workdir, init_from=first))[0] == 0
    first.rename(tmp_path / "moved")
    status, _, err = run_main("train", *at(colours, workdir, init_from=tmp_path / "moved"))
    assert (status, err) == (0, "")
    run = read_json(tmp_path / "moved" / "run.json")
    (tmp_path / "moved" / "run.json").write_text(json.dumps({**run, "identity": "another"}))
    status, _, err = run_main("train", *at(colours, workdir, init_from=f"{tmp_path}/moved/"))
    assert status == 1
    assert "--init_from was" in err


@pytest.mark.slow
def test_a_workdir_may_be_moved_and_copied(colours, tmp_path, monkeypatch, run_main):
    workdir = colours.copy(tmp_path)
    monkeypatch.chdir(tmp_path)
    before = numbers(report_of(workdir))
    workdir.rename(tmp_path / "moved")
    shutil.copytree("moved", "copied")
    for name in ("moved", "copied"):
        assert run_main("train", *at(colours, name))[0] == 0
        assert run_main("evaluate", f"--workdir={name}")[0] == 0
        assert numbers(report_of(tmp_path / name)) == {**before, "run": name}
    assert read_json(tmp_path / "copied" / "run.json")["config"]["workdir"] == "copied"
    assert not workdir.exists()
