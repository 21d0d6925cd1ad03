"""Checkpoints that are damaged, cut off by a kill or a full disk, or of another version."""

import contextlib
import errno
import hashlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import tensorflow as tf
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.helpers.processes import run_program
from tests.record.test_checkpoints import CONSTANT, message, values, variables
from trainer.record import checkpoint_files, checkpoint_values
from trainer.record.checkpoints import Base, Checkpoints
from trainer.values import TrainerError

PROJECT = Path(__file__).parent.parent.parent
DATA = "data-00000-of-00001"
STEPS = (2, 4, 6)


def made(step):
    """The variables of a run of two phases: what the base of the second holds is another."""
    made = variables(step)
    for name in CONSTANT:
        made[name].assign(tf.ones_like(made[name]) * (0.5 if step < 5 else 4.5))
    return made


def base_of(made, step):
    constant = {name: made[name] for name in CONSTANT}
    return Base("phase-0", 0, constant) if step < 5 else Base("phase-1", 5, constant)


def save(checkpoints, step, *, best=False, values_of=None):
    saved = made(values_of or step)
    how = checkpoints.save_best if best else checkpoints.save
    how(saved, step=step, base=base_of(saved, step))


def restored(checkpoints, path):
    fresh = variables(99.0)
    checkpoints.restore(fresh, path, base=base_of(fresh, Checkpoints.step_of(path)))
    return values(fresh)


def assert_latest(checkpoints, step):
    path = checkpoints.latest()
    assert path == str(checkpoints.folder / f"ckpt-{step}")
    assert restored(checkpoints, path) == values(made(step))


def tree(folder):
    """{path: bytes} of all files below."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def of(folder, keep=3):
    """As a process that has just started has it."""
    return Checkpoints(folder, keep=keep)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """A folder with the checkpoints of steps 2, 4 and 6, the best of step 4, and the bases of two phases."""
    checkpoints = of(tmp_path_factory.mktemp("pristine") / "checkpoints")
    for step in STEPS:
        save(checkpoints, step)
        if step == 4:
            save(checkpoints, step, best=True)
    return checkpoints.folder


@pytest.fixture
def folder(pristine, tmp_path):
    return Path(shutil.copytree(pristine, tmp_path / "checkpoints"))


# One file is not what was written.


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def empty(path):
    path.write_bytes(b"")


def grow(path):
    path.write_bytes(path.read_bytes() + b"\0")


def flip(path, at=-40):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def flip_in_the_middle(path):
    flip(path, len(path.read_bytes()) // 2)


def take_anothers(path):
    path.write_bytes(path.with_name(path.name.replace("6.", "4.").replace("-1.", "-0.")).read_bytes())


def become_a_folder(path):
    path.unlink()
    path.mkdir()


FAULTS = [cut, empty, grow, flip, flip_in_the_middle, take_anothers, Path.unlink, become_a_folder]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(
    "file", [f"ckpt-6.{DATA}", "ckpt-6.index", f"base/phase-1.{DATA}", "base/phase-1.index"]
)
def test_one_with_a_damaged_file_is_named_and_passed_over(folder, file, fault, caplog):
    fault(folder / file)
    checkpoints = of(folder)
    assert_latest(checkpoints, 4)
    [line] = caplog.messages
    assert line.startswith(f"checkpoint {folder}/ckpt-6 is damaged and passed over: ")
    assert Path(file).name in line
    checkpoints.latest()
    assert len(caplog.messages) == 1
    assert "is damaged" in message(restored, checkpoints, str(folder / "ckpt-6"))
    if fault is not become_a_folder:
        # The run goes on, and comes by there again.
        save(checkpoints, 6)
        assert_latest(of(folder), 6)
        assert_latest(checkpoints, 6)


@pytest.mark.parametrize(
    "change",
    [
        empty, flip, take_anothers, Path.unlink,
        lambda path: path.write_bytes(path.read_bytes()[:-3]),
        lambda path: path.write_text("[]"),
        lambda path: path.write_text("[" * 100_000),
        lambda path: path.write_bytes(b"\xff\xfe\xff"),
        lambda path: path.write_text(path.read_text().replace("1", "9" * 5000, 1)),
        lambda path: edit(path, format=None),
        lambda path: edit(path, format=True),
        lambda path: edit(path, step=7),
        lambda path: edit(path, step=True),
        lambda path: edit(path, step=[6]),
        lambda path: edit(path, files={}),
        lambda path: edit(path, files=[f"ckpt-6.{DATA}", "ckpt-6.index"]),
        lambda path: edit(path, files={"ckpt-6.index": {"bytes": 1, "sha256": "0" * 64}}),
        lambda path: edit_files(path, lambda files: files.popitem()),
        lambda path: edit_files(path, lambda files: files.update(record(path, 4)["files"])),
        lambda path: edit_files(path, lambda files: files["ckpt-6.index"].update(bytes=True)),
        lambda path: edit_files(path, lambda files: files["ckpt-6.index"].update(bytes="1")),
        lambda path: edit_files(path, lambda files: files["ckpt-6.index"].update(sha256=None)),
        lambda path: edit_files(path, lambda files: files["ckpt-6.index"].pop("sha256")),
        lambda path: edit(path, base={}),
        lambda path: edit(path, base={"name": "../best/ckpt-4", "files": {}}),
        lambda path: edit(path, base={"name": "phase-1", "files": {}}),
        lambda path: edit(path, base=0),
        lambda path: edit(path, more=1),
    ],
)  # fmt: skip
def test_one_with_a_damaged_record_is_named_and_passed_over(folder, change, caplog):
    change(folder / "ckpt-6.json")
    assert_latest(of(folder), 4)
    [line] = caplog.messages
    assert line.startswith(f"checkpoint {folder}/ckpt-6 is damaged and passed over: ")
    assert len(line) < 400
    # It was finished once, and is not taken for what a kill left.
    of(folder).remove_unfinished()
    assert (folder / f"ckpt-6.{DATA}").exists()
    save(of(folder), 6)
    assert_latest(of(folder), 6)


def record(path, step):
    return json.loads(path.with_name(f"ckpt-{step}.json").read_text())


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_files(path, how):
    record = json.loads(path.read_text())
    how(record["files"])
    path.write_text(json.dumps(record))


def test_the_record_of_a_base_is_not_needed_to_read_it(folder):
    empty(folder / "base" / "phase-1.json")
    (folder / "base" / "phase-0.json").unlink()
    checkpoints = of(folder)
    checkpoints.remove_unfinished()
    assert_latest(checkpoints, 6)
    assert restored(checkpoints, checkpoints.find("best")) == values(made(4))


def test_when_none_is_whole_the_ways_on_are_told(folder):
    cut(folder / "ckpt-6.index")
    flip(folder / "base" / f"phase-0.{DATA}", 1)
    size = (folder / "ckpt-6.index").stat().st_size
    expected = (
        f"no checkpoint in {folder} is whole; the newest, ckpt-6, is damaged: ckpt-6.index has {size:,} "
        f"bytes, {size + 1:,} were written. Restore the files from a copy, or remove {folder} to start over"
    )
    checkpoints = of(folder)
    assert message(checkpoints.latest) == expected
    assert message(checkpoints.find, "latest") == expected
    assert checkpoints.exist()
    shutil.rmtree(folder)
    assert not checkpoints.exist()
    assert checkpoints.latest() is None


def test_damaged_ones_do_not_count_among_those_kept(folder):
    cut(folder / f"ckpt-4.{DATA}")
    flip(folder / f"ckpt-6.{DATA}", 0)
    checkpoints = of(folder, keep=2)
    assert_latest(checkpoints, 2)
    save(checkpoints, 5)
    assert {path.stem for path in folder.glob("ckpt-*.json")} == {"ckpt-2", "ckpt-5", "ckpt-6"}
    save(checkpoints, 6)
    assert {path.stem for path in folder.glob("ckpt-*.json")} == {"ckpt-5", "ckpt-6"}
    assert_latest(of(folder), 6)


def test_a_damaged_one_asked_for_is_told_with_those_that_are_whole(folder):
    cut(folder / f"ckpt-4.{DATA}")
    flip(folder / f"ckpt-6.{DATA}", 0)
    checkpoints = of(folder)
    expected = (
        f"checkpoint {folder}/ckpt-6 is damaged: the bytes of ckpt-6.{DATA} are not those that were written"
    )
    assert message(checkpoints.find, "6") == f"{expected}; whole are those of steps 2, 4"
    # There is another one of that step.
    assert checkpoints.find("4") == str(folder / "best" / "ckpt-4")
    (folder / "best" / "ckpt-4.index").unlink()
    expected = (
        f"checkpoint {folder}/best/ckpt-4 is damaged: ckpt-4.index is missing; whole are those of steps 2"
    )
    assert message(checkpoints.find, "best") == expected
    cut(folder / "base" / "phase-0.index")
    text = message(checkpoints.find, "best")
    assert text.endswith("; none is whole")
    assert f"{folder}/best/ckpt-4 is damaged: " in text


def test_the_best_is_missed_when_a_run_goes_on(folder):
    of(folder).check_best(-1)
    of(folder).check_best(3)
    of(folder).check_best(4)
    ways_on = f"Restore the files from a copy, or remove {folder} to start over"
    expected = f"the best checkpoint, that of step 5, is lost: there is none in {folder}/best. {ways_on}"
    assert message(of(folder).check_best, 5) == expected
    (folder / "best" / "ckpt-4.index").unlink()
    expected = f"the best checkpoint, that of step 4, is lost: ckpt-4.index is missing. {ways_on}"
    assert message(of(folder).check_best, 4) == expected
    of(folder).check_best(-1)


def test_a_file_that_may_not_be_read_is_not_passed_over(folder, monkeypatch):
    def refuse(path, *args, **kwargs):
        if str(path).endswith(f"ckpt-6.{DATA}"):
            raise PermissionError(13, "Permission denied", str(path))
        return os_open(path, *args, **kwargs)

    os_open = open
    monkeypatch.setattr("builtins.open", refuse)
    path = folder / f"ckpt-6.{DATA}"
    assert message(of(folder).latest) == f"checkpoint {path} cannot be read: Permission denied"


def test_a_file_is_read_once_as_long_as_it_is_the_same(folder, monkeypatch):
    digested = []
    file_digest = hashlib.file_digest
    monkeypatch.setattr(
        hashlib, "file_digest", lambda file, name: digested.append(file.name) or file_digest(file, name)
    )
    # For longer than a tick of the system's clock, unchanged.
    time.sleep(0.1)
    checkpoints = of(folder)
    assert_latest(checkpoints, 6)
    checkpoints.check_best(4)
    names = ("ckpt-6", "best/ckpt-4", "base/phase-0", "base/phase-1")
    assert sorted(digested) == sorted(f"{folder}/{name}.{end}" for name in names for end in (DATA, "index"))
    flip_in_place(folder / f"ckpt-6.{DATA}")
    assert_latest(checkpoints, 4)


def test_a_file_that_has_just_changed_may_change_once_more_with_the_same_time(folder):
    path = folder / f"ckpt-6.{DATA}"
    now = time.time_ns()
    os.utime(path, ns=(now, now))
    checkpoints = of(folder)
    assert_latest(checkpoints, 6)
    flip_in_place(path)
    os.utime(path, ns=(now, now))
    assert_latest(checkpoints, 4)


@pytest.mark.parametrize("coarse", [False, True])
def test_how_long_a_file_may_change_unseen_goes_by_the_clock_of_its_file_system(folder, monkeypatch, coarse):
    """FAT rounds times to 2 s: for that long, a change may leave a file with the time that it has."""
    at = (time.time_ns() - 700_000_000) // 10_000_000 * 10_000_000 + (0 if coarse else 1)
    digested, fstat, file_digest = [], os.fstat, hashlib.file_digest

    def with_times(handle):
        found = fstat(handle)
        times = {"st_mtime_ns": at, "st_ctime_ns": at}
        return SimpleNamespace(st_ino=found.st_ino, st_size=found.st_size, st_mode=found.st_mode, **times)

    monkeypatch.setattr(os, "fstat", with_times)
    monkeypatch.setattr(
        hashlib, "file_digest", lambda file, name: digested.append(file.name) or file_digest(file, name)
    )
    checkpoints = of(folder)
    for _ in range(3):
        checkpoints.latest()
    assert digested.count(f"{folder}/ckpt-6.{DATA}") == (3 if coarse else 1)


def flip_in_place(path):
    """The file stays the same one, of the same size."""
    with open(path, "r+b") as file:
        byte = file.read(1)[0]
        file.seek(0)
        file.write(bytes([byte ^ 1]))


# Of another version.


@pytest.mark.parametrize(("number", "age"), [(3, "newer"), (1, "older"), (10**40, "newer")])
def test_one_of_another_format_is_named_and_left_alone(folder, number, age):
    edit(folder / "ckpt-6.json", format=number, new={"things": 1})
    (folder / f"ckpt-6.{DATA}").rename(folder / "ckpt-6.npz")
    before = {name: data for name, data in tree(folder).items() if "ckpt-6" in name}
    checkpoints = of(folder)
    checkpoints.remove_unfinished()
    expected = f"checkpoint {folder}/ckpt-6.json has format {'1000' if number > 9 else number}"
    for function in (checkpoints.latest, lambda: checkpoints.find("6"), lambda: save(checkpoints, 6)):
        text = message(function)
        assert text.startswith(expected)
        assert (
            f", {age} than the 2 that this version reads: use the version that wrote it, or another" in text
        )
    assert checkpoints.exist()
    # Nor is it removed when it is old.
    for step in (7, 8, 9, 10):
        save(checkpoints, step)
    assert {name: data for name, data in tree(folder).items() if "ckpt-6" in name} == before
    assert_latest(of(folder), 10)


def test_those_without_records_are_not_taken_for_unfinished_ones(tmp_path):
    folder = tmp_path / "checkpoints"
    for where, step in ((folder, 3), (folder, 5), (folder / "best", 3)):
        checkpoint = tf.train.Checkpoint(variables=variables(step))
        tf.train.CheckpointManager(checkpoint, str(where), 3, checkpoint_name="ckpt").save(step)
    base = variables(1.0)
    tf.train.Checkpoint(variables=base).write(str(folder / "base" / "phase-0"))
    before = tree(folder)
    checkpoints = of(folder)
    checkpoints.remove_unfinished()
    assert checkpoints.exist()
    assert "the newest, ckpt-5, is damaged: ckpt-5.json is missing" in message(checkpoints.latest)
    assert "best/ckpt-3 is damaged: ckpt-3.json is missing" in message(checkpoints.find, "best")
    assert tree(folder) == before


# A process dies.


def test_what_is_not_finished_is_removed(folder, caplog):
    caplog.set_level("INFO", "trainer")
    before = tree(folder)
    checkpoints = of(folder)
    for name in ("ckpt-8", "best/ckpt-8", "base/phase-2"):
        for ending in (DATA, "index"):
            (folder / f"{name}.{ending}").write_bytes(b"half")
    for name in (".part-1", "best/.part-x", "base/.part-y"):
        (folder / name).mkdir()
        (folder / name / "ckpt-8.index").write_bytes(b"half")
    assert_latest(checkpoints, 6)
    assert checkpoints.find("best") == str(folder / "best" / "ckpt-4")
    assert "no '8' checkpoint" in message(checkpoints.find, "8")
    checkpoints.remove_unfinished()
    assert tree(folder) == before
    removed = {line.removeprefix(f"removed {folder}/") for line in caplog.messages}
    assert removed == {
        f"{name}, which was not finished" for name in ("ckpt-8", "best/ckpt-8", "base/phase-2")
    }
    (folder / "ckpt-8.index").write_bytes(b"half")
    save(checkpoints, 7)
    assert not (folder / "ckpt-8.index").exists()
    assert not of(folder / "nowhere").exist()
    of(folder / "nowhere").remove_unfinished()


def test_what_is_named_is_on_disk_before(folder, monkeypatch):
    order = []
    replace = os.replace
    monkeypatch.setattr(checkpoint_files, "sync", lambda path: order.append(("sync", path.name)))
    monkeypatch.setattr(os, "replace", lambda a, b: order.append(("name", Path(b).name)) or replace(a, b))
    save(of(folder), 8)
    assert order[:2] == [("sync", f"ckpt-8.{DATA}"), ("sync", "ckpt-8.index")]
    # The record in the temporary folder, which `files` syncs itself.
    assert order[2] == ("name", "ckpt-8.json")
    assert order[3:5] == [("name", f"ckpt-8.{DATA}"), ("name", "ckpt-8.index")]
    assert order[5:8] == [("sync", "checkpoints"), ("name", "ckpt-8.json"), ("sync", "checkpoints")]
    assert order[-1] == ("name", "checkpoint")


class Effects:
    """Tells a function of every change that Python makes to files below a folder, right before it."""

    def __init__(self):
        self._told = None
        self._folder = ""
        sys.addaudithook(self._hear)

    @contextlib.contextmanager
    def told(self, folder, function):
        self._folder, self._told = str(folder), function
        try:
            yield
        finally:
            self._told = None

    def _hear(self, event, args):
        told = self._told
        writes = event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir") or (
            event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        )
        if told and writes and isinstance(args[0], str | os.PathLike):
            if not os.fspath(args[0]).startswith(self._folder):
                return
            self._told = None
            told()
            self._told = told


@pytest.fixture(scope="module")
def effects():
    return Effects()


# What is there (b: as the best), what is saved then, and of which step its values are.
SAVES = {
    "the first": ("", "2", 2),
    "the next": ("2 4b 4", "5", 5),
    "the first of a phase": ("2 4b 4", "6", 6),
    "the same": ("2 4 6", "6", 6),
    "another of the same step": ("2 4 6", "6", 7),
    "the first best": ("2", "2b", 2),
    "the next best": ("2b 4", "4b", 4),
    "another best of the same step": ("4 4b", "4b", 3),
    "a best before one that was left over": ("2 2b 6b", "4b", 4),
}


def save_as(checkpoints, told, values_of=None):
    save(checkpoints, int(told.rstrip("b")), best=told.endswith("b"), values_of=values_of)


@pytest.mark.parametrize(("there", "told", "values_of"), SAVES.values(), ids=SAVES)
def test_a_process_that_dies_between_any_two_changes_loses_nothing(tmp_path, effects, there, told, values_of):
    keep = 1
    folder, shots = tmp_path / "checkpoints", tmp_path / "shots"
    folder.mkdir()
    shots.mkdir()
    for earlier in there.split():
        save_as(of(folder, keep), earlier)
    before = all_whole(folder)
    with effects.told(folder, lambda: shutil.copytree(folder, shots / f"{len(os.listdir(shots)):03}")):
        save_as(of(folder, keep), told, values_of)
    after, final = all_whole(folder), tree(folder)
    assert len(os.listdir(shots)) > 5 or before == after
    for shot in sorted(shots.iterdir()):
        checkpoints = of(shot, keep)
        checkpoints.remove_unfinished()
        got = all_whole(shot)
        assert got.items() <= before.items() | after.items()
        assert len(list(shot.rglob("ckpt-*.json"))) == len(got)
        # Nothing goes before the new one is whole.
        assert got.items() >= before.items() or got.items() >= after.items()
        checkpoints.latest()
        save_as(checkpoints, told, values_of)
        assert tree(shot) == final


def all_whole(folder):
    """{path prefix: values, as text} of the checkpoints that are whole."""
    found = {}
    for path in folder.rglob("ckpt-*.json"):
        prefix = path.with_suffix("")
        with contextlib.suppress(TrainerError):
            held = of(folder).values(str(prefix))
            found[prefix.relative_to(folder).as_posix()] = str(sorted(held.items()))
    return found


# Saves step 2, then is killed right before the Nth change while it saves step 6 and the best.
KILLED = """
import os, signal, sys
from pathlib import Path

import tests.conftest
from tests.record.test_checkpoint_faults import Effects, of, save

folder, moments = Path(sys.argv[1]), map(int, sys.argv[2:])
effects = Effects()
for moment in moments:
    # TensorFlow starts its threads when it first computes, which is in the child.
    child = os.fork()
    if not child:
        checkpoints = of(folder / str(moment), keep=1)
        save(checkpoints, 2)
        left = iter(range(moment))
        die = lambda: next(left, None) is None and os.kill(os.getpid(), signal.SIGKILL)
        with effects.told(checkpoints.folder, die):
            save(checkpoints, 6)
            save(checkpoints, 6, best=True)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def test_killed_processes_leave_whole_checkpoints(tmp_path):
    moments = [1, 4, 7, 10, 13, 16, 20, 24, 99]
    done = run_program([tmp_path, *moments], code=KILLED)
    statuses = list(map(int, done.stdout.split()))
    assert (done.returncode, len(statuses)) == (0, len(moments)), done.stderr[-2000:]
    assert statuses[-1] == 0
    assert statuses.count(-signal.SIGKILL) >= 7
    # This process writes the very bytes that another one does.
    for moment in moments:
        folder = tmp_path / str(moment)
        checkpoints = of(folder, keep=1)
        checkpoints.remove_unfinished()
        assert_latest(checkpoints, 6 if (folder / "ckpt-6.json").exists() else 2)
        save(checkpoints, 6)
        save(checkpoints, 6, best=True)
        assert tree(folder) == tree(tmp_path / "99")


# There is no room.


@pytest.fixture
def small_disk(tmp_path):
    """mount(size_kb) -> path of a file system of that size."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = []

    def mount(size_kb):
        command = ["mount", "-t", "tmpfs", "-o", f"size={size_kb}k", "tmpfs", disk]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("mounting takes more rights than this user has")
        mounted.append(disk)
        return disk

    yield mount
    if mounted:
        subprocess.run(["umount", disk], check=True)


def large(step, num_bytes=200_000):
    return {"large": tf.Variable(tf.fill([num_bytes // 4], float(step))), "step": tf.Variable(step)}


def test_a_full_disk_leaves_what_was_there_intact(small_disk, monkeypatch):
    folder = small_disk(500) / "checkpoints"
    checkpoints = of(folder)
    checkpoints.save(large(1), step=1)
    before = tree(folder)
    text = message(lambda: checkpoints.save(large(2, 400_000), step=2))
    told = re.fullmatch(
        rf"the checkpoint of step 2 needs (\S+) kB and {folder} has (\S+) kB left: (\S+) kB are missing; "
        "the one of step 1 is intact; make room and run the same command again", text,
    )  # fmt: skip
    needed, left, missing = map(float, told.groups())
    assert needed == pytest.approx(left + missing, abs=0.11)
    assert 400 < needed < 450
    assert tree(folder) == before
    # Somebody else fills it meanwhile.
    monkeypatch.setattr(checkpoint_values, "require_room", lambda *args, **kwargs: None)
    for act, what in (
        (checkpoints.save, "checkpoint of step 2"),
        (checkpoints.save_best, r"best checkpoint \(step 2\)"),
    ):
        text = message(lambda act=act: act(large(2, 400_000), step=2))
        assert re.fullmatch(
            rf"{what} was not saved: No space left on device in {folder}(/best)?: \S+ kB are missing; the "
            "one of step 1 is intact; make room and run the same command again", text,
        ), text  # fmt: skip
        assert tree(folder) == before
        assert not list(folder.glob("**/.*"))
    monkeypatch.undo()
    fresh = large(0)
    checkpoints.restore(fresh, checkpoints.latest())
    assert int(fresh["step"]) == 1
    checkpoints.save(large(2), step=2)
    assert checkpoints.latest() == str(folder / "ckpt-2")


def test_the_first_checkpoint_may_be_the_one_without_room(small_disk):
    folder = small_disk(60) / "checkpoints"
    text = message(lambda: of(folder).save(large(1), step=1))
    assert text.endswith(" kB are missing; none was saved before; make room and run the same command again")
    assert not of(folder).exist()


def test_a_limit_on_files_is_told(tmp_path):
    checkpoints = of(tmp_path / "checkpoints")
    checkpoints.save(large(1), step=1)
    before = tree(checkpoints.folder)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        text = message(lambda: checkpoints.save(large(2), step=2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    expected = (
        f"checkpoint of step 2 was not saved: File too large in {checkpoints.folder}; the one of step 1 is"
    )
    assert text.startswith(expected)
    assert tree(checkpoints.folder) == before


@pytest.mark.parametrize("what", ["mkdtemp", "replace", "fsync"])
def test_a_failure_of_the_disk_leaves_what_was_there_intact(folder, what, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), "somewhere")

    before = tree(folder)
    with monkeypatch.context() as patch:
        patch.setattr(tempfile if what == "mkdtemp" else os, what, fail)
        text = message(lambda: save(of(folder), 8))
    assert text.startswith("checkpoint of step 8 was not saved: ")
    assert "the one of step 6 is intact" in text
    of(folder).remove_unfinished()
    assert tree(folder) == before


def test_no_checkpoint_takes_more_room_than_was_asked_for(tmp_path):
    for number, name_length, size in ((1, 1, 1), (300, 5, 3), (300, 150, 40), (2, 30, 100_000)):
        saved = {
            f"{i}{'/a.b' * name_length}"[: name_length + 4]: tf.Variable(tf.ones([size]))
            for i in range(number)
        }
        checkpoints = of(tmp_path / f"{number}-{size}")
        checkpoints.save(saved, step=1)
        taken = sum(-(-path.stat().st_size // 4096) * 4096 for path in checkpoints.folder.rglob("*"))
        assert taken <= checkpoint_values.bytes_of(saved) < 4 * number * size + 1000 * number + 40_000


# Anything at all happens to the files.

CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["flip", "cut", "insert", "zero", "swap", "append"]),
        st.integers(0, 10**6),
        st.integers(0, 10**6),
        st.integers(0, 10**6),
    ),
    min_size=1,
    max_size=3,
)


def change(folder, names, kind, which, where, amount):
    """Does something to the file `which`, at `where`."""
    path = folder / names[which % len(names)]
    data = bytearray(path.read_bytes())
    at = where % (len(data) + 1)
    if kind == "flip" and data:
        data[at % len(data)] ^= 1 << amount % 8
    elif kind == "cut":
        del data[at:]
    elif kind == "insert":
        data[at:at] = random.Random(amount).randbytes(amount % 9 + 1)
    elif kind == "zero":
        length = len(data[at : at + amount % 64])
        data[at : at + length] = bytes(length)
    elif kind == "append":
        data += data[:at]
    elif kind == "swap":
        other = folder / names[where % len(names)]
        path.write_bytes(other.read_bytes())
        other.write_bytes(data)
        return
    path.write_bytes(data)


def files_of(step):
    base = "phase-0" if step < 5 else "phase-1"
    return {f"{name}.{end}" for name in (f"ckpt-{step}", f"base/{base}") for end in (DATA, "index")} | {
        f"ckpt-{step}.json"
    }


def check_changed(pristine, changes):
    """Changes a copy of the folder; what is read from it is what was saved, or an error."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(shutil.copytree(pristine, Path(parent) / "checkpoints"))
        before, names = tree(folder), sorted(tree(folder))
        for each in changes:
            change(folder, names, *each)
        after = tree(folder)
        whole = [step for step in STEPS if all(after[file] == before[file] for file in files_of(step))]
        checkpoints = of(folder)
        checkpoints.remove_unfinished()
        fault = ""
        try:
            step = Checkpoints.step_of(checkpoints.latest())
            assert_latest(checkpoints, step)
            assert step >= max(whole, default=0)
        except TrainerError as error:
            fault = str(error)
        # A digit of the format is a byte like any other.
        assert not fault or not whole or "has format" in fault
        for which in ("best", "2", "4"):
            with contextlib.suppress(TrainerError):
                path = checkpoints.find(which)
                assert restored(checkpoints, path) == values(made(Checkpoints.step_of(path)))
        with contextlib.suppress(TrainerError):
            checkpoints.check_best(4)
        save(checkpoints, 8)
        assert_latest(of(folder), 8)


FUZZ = {"deadline": None, "database": None, "phases": [Phase.generate, Phase.shrink]}


@settings(max_examples=40, derandomize=True, **FUZZ)
@given(CHANGES)
def test_what_is_read_is_what_was_saved_or_an_error(pristine, changes):
    check_changed(pristine, changes)


@pytest.mark.slow
@settings(max_examples=1500, **FUZZ)
@given(CHANGES)
def test_what_is_read_is_what_was_saved_or_an_error_in_many_cases(pristine, changes):
    check_changed(pristine, changes)
