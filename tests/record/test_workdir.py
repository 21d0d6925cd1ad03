"""The folder of a run: atomic files, one process at a time, and always the same run."""

import contextlib
import errno
import json
import os
import re
import signal
import subprocess
import sys

import pytest

from tests.record.runs import FACTS
from trainer.cli.config import Config
from trainer.record.workdir import Workdir
from trainer.store import files
from trainer.store import lock as file_lock
from trainer.store.files import read_json, write_bytes, write_json
from trainer.values import TrainerError, UsageError


@pytest.fixture
def workdir(tmp_path):
    Workdir(str(tmp_path / "run")).make()
    return Workdir(str(tmp_path / "run"))


def test_writing_makes_folders_and_leaves_nothing_else(tmp_path):
    write_bytes(tmp_path / "a" / "b" / "file", b"one")
    write_bytes(tmp_path / "a" / "b" / "file", b"two")
    assert [(path.name, path.read_bytes()) for path in (tmp_path / "a" / "b").iterdir()] == [("file", b"two")]
    write_json(tmp_path / "x.json", {"a": [1, 2.5]})
    assert read_json(tmp_path / "x.json") == {"a": [1, 2.5]}


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_failure_while_writing_leaves_the_old_file(tmp_path, monkeypatch, moment):
    path = tmp_path / "file"
    write_bytes(path, b"old")

    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, moment, fail)
    with pytest.raises(OSError, match="No space"):
        write_bytes(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_process_killed_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    program = (
        "import os, pathlib, signal, sys; import trainer.store.files as files\n"
        "files.os.replace = lambda *args: os.kill(os.getpid(), signal.SIGKILL)\n"
        "files.write_bytes(pathlib.Path(sys.argv[1]), b'new' * 1000)"
    )
    result = subprocess.run([sys.executable, "-c", program, str(path)], check=False)
    assert result.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"
    write_bytes(path, b"newer")
    assert path.read_bytes() == b"newer"


HOLD = (
    "import sys; from trainer.record.workdir import Workdir\n"
    "with Workdir(sys.argv[1]).lock():\n"
    "    print('held', flush=True)\n"
    "    sys.stdin.read()"
)


@pytest.fixture
def holder(workdir):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(workdir.root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_process_is_refused_and_told_who_is_there(workdir, holder):
    with pytest.raises(TrainerError) as caught, workdir.lock():
        pass
    assert f"{workdir.root} is in use by process {holder.pid} on " in str(caught.value)
    assert "\n" not in str(caught.value)
    holder.communicate("")
    with workdir.lock():
        pass


def test_a_dead_process_does_not_keep_the_folder(workdir, holder):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with workdir.lock():
        assert str(os.getpid()) in (workdir.root / "lock").read_text()
        with pytest.raises(TrainerError, match=f"process {os.getpid()}"), Workdir(str(workdir.root)).lock():
            pass
    assert not (workdir.root / "lock").exists()


def test_where_files_cannot_be_locked_only_one_that_lives_keeps_others_out(workdir, monkeypatch, caplog):
    def fail(*args):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(file_lock.fcntl, "flock", fail)
    monkeypatch.setattr(files, "warned", set())
    with (
        workdir.lock(),
        pytest.raises(TrainerError, match=f"in use by process {os.getpid()}"),
        workdir.lock(),
    ):
        pass
    (workdir.root / "lock").write_text("process 7 on elsewhere\n")
    with workdir.lock():
        pass
    [line] = [record.getMessage() for record in caplog.records]
    assert line.startswith(
        f"{workdir.root}/lock: this file system cannot lock files (Function not implemented)"
    )


def refused(workdir):
    workdir.make()
    with contextlib.suppress(ValueError), workdir.lock():
        assert (workdir.root / "lock").exists()
        raise ValueError("refused")


def test_what_was_refused_before_it_was_a_run_leaves_nothing(tmp_path):
    (tmp_path / "runs").mkdir()
    refused(Workdir(str(tmp_path / "runs" / "new" / "one")))
    assert list(tmp_path.rglob("*")) == [tmp_path / "runs"]
    # A folder that was there stays, and whatever is in it.
    (tmp_path / "runs" / "photo.jpg").write_text("")
    refused(Workdir(str(tmp_path / "runs")))
    assert list((tmp_path / "runs").iterdir()) == [tmp_path / "runs" / "photo.jpg"]
    # The lock of a run stays: whoever waits for it shall find it.
    (tmp_path / "runs" / "run.json").write_text("{}")
    refused(Workdir(str(tmp_path / "runs")))
    assert (tmp_path / "runs" / "lock").read_text() == ""


def test_the_lock_is_free_after_an_error(workdir):
    with pytest.raises(ValueError, match="boom"), workdir.lock():
        raise ValueError("boom")
    with workdir.lock():
        pass


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(TrainerError, match="is a file, or lies below one"):
            Workdir(str(path)).make()


CONFIG = Config().replace(workdir="x", phase=["for=2steps; train=head"])


def test_what_is_written_is_read_back(workdir):
    workdir.write_run(CONFIG, flagfile="--seed=1\n", class_names=("a", "b"))
    assert workdir.read_config() == CONFIG
    assert workdir.flagfile.read_text() == "--seed=1\n"
    run = read_json(workdir.run_json)
    assert run["identity"] == CONFIG.identity()
    assert run["class_names"] == ["a", "b"]
    workdir.check_same_run(CONFIG)


def test_an_empty_folder_takes_any_run_and_holds_none(workdir):
    workdir.check_same_run(CONFIG)
    with pytest.raises(TrainerError, match="holds no run"):
        workdir.read_config()


def test_another_run_is_refused_naming_what_differs(workdir):
    workdir.write_run(CONFIG, flagfile="")
    workdir.check_same_run(
        CONFIG.replace(log_every="1steps", workdir="y", strategy="one", keep_checkpoints=9)
    )
    other = CONFIG.replace(
        seed=5, backbone="keras:MobileNetV2", phase=["for=3steps; train=head"], checksum="ab"
    )
    with pytest.raises(TrainerError) as caught:
        workdir.check_same_run(other)
    text = str(caught.value)
    assert "--seed was 0, now 5" in text
    assert "--backbone was efficientnet_lite0, now keras:MobileNetV2" in text
    assert "--phase was ['for=2steps; train=head'], now ['for=3steps; train=head']" in text
    assert text.count(" was ") == 3
    assert "\n" not in text


def test_a_run_of_before_an_option_is_as_it_was_then(workdir):
    workdir.write_run(CONFIG, flagfile="")
    run = read_json(workdir.run_json)
    for name in ("resize", "antialias", "features"):
        del run["config"][name]
    write_json(workdir.run_json, run)
    assert (workdir.read_config().model.resize, workdir.read_config().model.antialias) == ("auto", False)
    workdir.check_same_run(CONFIG)
    workdir.check_same_run(CONFIG.replace(resize="stretch"))
    with pytest.raises(TrainerError) as caught:
        workdir.check_same_run(CONFIG.replace(resize="crop", antialias=True))
    assert "--resize was auto, now crop; --antialias was False, now True. " in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is damaged"),
        ("[]", "is damaged: it does not say its format"),
        ('{"format": "2"}', "is damaged: it does not say its format"),
        ('{"format": 3, "con', "is damaged"),
        (
            '{"format": 99, "config": {}}',
            "has format 99, newer than the 3 that this version reads",
        ),
        (
            '{"format": 1, "config": {}}',
            "has format 1, older than the 3 that this version reads",
        ),
        ('{"format": 3}', "is damaged: it has no config"),
        ('{"format": 3, "config": {"speed": 3}}', "unknown option 'speed'"),
        ('{"format": 3, "config": {"seed": -3}}', "--seed=-3"),
    ],
)
def test_a_run_that_cannot_be_read_is_one_line(workdir, content, message):
    workdir.run_json.write_text(content)
    with pytest.raises(TrainerError) as caught:
        workdir.read_config()
    assert type(caught.value) is not UsageError
    assert str(workdir.run_json) in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("way", ["from_layer=-8", "from_layer=120", "unfreeze_top_layers=9"])
@pytest.mark.parametrize("layers", [None, 98])
def test_layers_that_are_counted_otherwise_by_now_are_refused(workdir, way, layers):
    """None: EfficientNet-Lite0 before its layers were recorded, without those that have no variables."""
    config = Config().replace(phase=["for=2steps; train=head; name=top", f"for=2steps; {way}; name=rest"])
    specs = config.phases
    workdir.check_layers(155, specs)  # Nothing is there yet.
    run = {**FACTS, **({"layers": layers} if layers else {})}
    workdir.write_run(config, flagfile="", **run)
    there = "had 98" if layers else "counted others"
    message = (
        rf"{re.escape(str(workdir.root))} holds a run of another version: phase rest trains {way}, and of "
        rf"155 layers these are not those that it trained \(the version that began it {there}\)\. Use that"
    )
    with pytest.raises(TrainerError, match=message):
        workdir.check_layers(155, specs)
    # By name, or by their share of those with variables, they are the same.
    named = Config().replace(
        phase=["for=2steps; from_layer=blocks_14/expand", "for=2steps; train=top_share=0.5"]
    )
    workdir.check_layers(155, named.phases)


def test_layers_that_are_counted_as_before_are_not_refused(workdir):
    config = Config().replace(phase=["for=2steps; from_layer=-8"])
    workdir.write_run(config, flagfile="", **FACTS, layers=155)
    workdir.check_layers(155, config.phases)
    # Of other networks that count was never another.
    workdir.write_run(config.replace(backbone="keras:MobileNet"), flagfile="", **FACTS)
    workdir.check_layers(90, config.phases)


def test_other_code_is_noted_with_the_step_from_which_it_ran(workdir):
    first, second = {"trainer": "1", "git_commit": None}, {"trainer": "1", "git_commit": "ab"}
    workdir.write_run(CONFIG, flagfile="", **{**FACTS, "code": first})
    assert workdir.note_code(first, step=3) == []
    assert workdir.note_code(second, step=5) == ["git_commit None -> ab"]
    assert workdir.note_code(second, step=7) == []
    assert workdir.note_code({**first, "trainer": "2"}, step=9) == ["trainer 1 -> 2", "git_commit ab -> None"]
    assert workdir.read_facts()["code_changes"] == [
        {"step": 5, "changed": {"git_commit": [None, "ab"]}},
        {"step": 9, "changed": {"trainer": ["1", "2"], "git_commit": ["ab", None]}},
    ]
    assert workdir.read_config() == CONFIG


SPLITS = {
    "train": [("roses/1.jpg", "roses", "aa"), ("tulips/1.jpg", "tulips", "bb")],
    "validation": [("roses/2.jpg", "roses", "cc")],
}


def test_splits_are_written_once_and_compared_from_then_on(workdir):
    workdir.write_or_check_splits(SPLITS, how="by hand")
    written = workdir.splits_json.read_bytes()
    assert json.loads(written)["splits"]["validation"] == [["roses/2.jpg", "roses", "cc"]]
    assert json.loads(written)["how"] == "by hand"
    workdir.write_or_check_splits(SPLITS, how="told otherwise")
    assert workdir.splits_json.read_bytes() == written


def test_other_names_of_the_same_pictures_are_taken(workdir):
    workdir.write_or_check_splits({"train": [("a/1.jpg", "caf\u00e9", "aa")]})
    workdir.write_or_check_splits({"train": [("moved/7.jpg", "cafe\u0301", "aa")]})


def test_a_run_keeps_the_order_of_its_splits(workdir):
    assert workdir.split_order("auto") == "auto"
    workdir.write_or_check_splits(SPLITS, order="stratified")
    assert [workdir.split_order(asked) for asked in ("auto", "source")] == ["stratified", "source"]
    workdir.splits_json.unlink()
    # As it was before there was a stratified order.
    workdir.write_or_check_splits(SPLITS)
    assert workdir.split_order("auto") == "take_skip"
    workdir.splits_json.unlink()
    workdir.write_or_check_splits(SPLITS, order="by size")
    with pytest.raises(TrainerError, match="damaged: order is 'by size'"):
        workdir.split_order("auto")


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({**SPLITS, "validation": [("roses/2.jpg", "roses", "dd")]}, "roses/2.jpg in validation has changed"),
        (
            {**SPLITS, "validation": [("roses/2.jpg", "tulips", "cc")]},
            "roses/2.jpg in validation has changed",
        ),
        ({**SPLITS, "train": SPLITS["train"][::-1]}, "train had roses/1.jpg where there is now tulips/1.jpg"),
        ({**SPLITS, "train": SPLITS["train"][:1]}, "train had 2 pictures, now 1"),
        ({"train": SPLITS["train"]}, "validation had 1 pictures, now 0"),
        ({**SPLITS, "test": SPLITS["validation"]}, "test had 0 pictures, now 1"),
    ],
)
def test_other_pictures_are_refused_naming_the_first(workdir, splits, message):
    workdir.write_or_check_splits(SPLITS)
    with pytest.raises(TrainerError) as caught:
        workdir.write_or_check_splits(splits)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("extend", [False, True])
def test_no_longer_run_begins_as_a_recommended_one(workdir, extend):
    """Whoever has set its length: the rate falls to the end."""
    asked = Config().replace(workdir="x", finetune_for="2epochs")
    workdir.write_run(asked, flagfile="")
    with pytest.raises(TrainerError) as caught:
        workdir.check_same_run(asked.replace(finetune_for="4epochs", extend=extend))
    assert "--finetune_for was 2epochs, now 4epochs. " in str(caught.value)
    assert ("--extend cannot go on with it: --schedule=recommended" in str(caught.value)) == extend
    assert "--extend goes on with it" not in str(caught.value)


def test_what_a_rule_was_told_is_left_out_where_another_schedule_is_asked_of_a_run(workdir):
    workdir.write_run(Config().replace(dropout=0.5, budget="quick"), flagfile="")
    for given in {"schedule": "two_phase"}, {"phase": ("for=1steps; train=head",)}:
        config = workdir.or_run(Config(), given)
        assert (config.plan.by_hand, config.plan.budget, config.model.dropout) == ((), "", 0.5)
        with pytest.raises(UsageError, match="--budget is of --schedule=recommended"):
            workdir.or_run(Config(), {**given, "budget": "5min"})
    same = workdir.or_run(Config(), {"warmup": "1steps"})
    assert (same.plan.by_hand, same.plan.budget) == (("dropout", "warmup"), "quick")


def test_an_option_set_by_hand_to_what_was_chosen_for_the_run_is_no_other(workdir):
    asked = Config().replace(workdir="x", dropout=0.5)
    chosen = {"image_size": 288, "warmup": "10%", "dropout": 0.0, "frozen_for": "3epochs"}
    workdir.write_run(asked, flagfile="", **{**FACTS, "chosen": chosen})
    named = asked.replace(image_size=288, warmup="10%").with_given(["image_size", "warmup"])
    workdir.check_same_run(named)
    assert workdir.as_begun(named, ["image_size"]) == asked
    for others, told in (
        ({"dropout": 0.1}, "--dropout was 0.5, now 0.1. "),
        ({"frozen_for": "9epochs"}, "--frozen_for was 3epochs, now 9epochs. "),
        ({"schedule": "frozen", "by_hand": ()}, "--schedule was recommended, now frozen"),
    ):
        with pytest.raises(TrainerError) as caught:
            workdir.check_same_run(named.replace(**others))
        assert told in str(caught.value)
        assert "image_size" not in str(caught.value)
