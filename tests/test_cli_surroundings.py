"""What a command may find around it: no permission, no space, another run; and how it goes on then."""

import contextlib
import errno
import fcntl
import importlib
import io
import json
import os
import re
import resource
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.conftest import call_main, changed, make_flower_folder
from tests.helpers.processes import run_program
from tests.helpers.undrawn import PLAIN
from trainer import commands
from trainer.runtime import start_tensorflow
from trainer.store import files

pytestmark = pytest.mark.usefixtures("figures_undrawn")
NOBODY = 65534


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return make_flower_folder(tmp_path_factory.mktemp("surroundings") / "pictures", n=10)


def test_a_run_may_lie_beside_its_pictures_but_not_among_them(arguments, tmp_path, run_main, monkeypatch):
    photos = make_flower_folder(tmp_path / "photos", n=10)
    monkeypatch.chdir(photos)
    flags = changed(arguments, "--source=folder:.", "--workdir=runs/mine", "--cache_dir=cache")
    status, out, err = run_main(*flags)
    assert (status, err) == (0, "")
    status, out, err = run_main(*flags)
    assert (status, err) == (0, "")
    assert "ways on: " in out
    assert run_main("predict", "--workdir=runs/mine", ".", "--output=found.csv")[0] == 0
    assert len((photos / "found.csv").read_text().splitlines()) == 1 + 30
    for source, workdir in (("folder:.", "."), ("folder:../photos", str(photos)), ("folder:train", "."),
                            ('joined:["folder:.","folder:red"]', ".")):  # fmt: skip
        (photos / "train").mkdir(exist_ok=True)
        status, out, err = run_main(*changed(arguments, f"--source={source}", f"--workdir={workdir}"))
        assert (status, out) == (2, "")
        assert "would have the files of the run among the pictures of --source=folder:" in err
        assert err.endswith("choose another, such as --workdir=runs/mine\n")
    assert not (photos / "run.json").exists()
    (photos / "train").rmdir()


@pytest.fixture
def arguments(pictures, tiny_backbone, tmp_path):
    """Of a run of 4 steps in two epochs, in tmp_path/run."""
    return [
        f"--source=folder:{pictures}", f"--backbone=savedmodel:{tiny_backbone}", "--image_size=8",
        "--head=linear", "--splits=60%,20%,20%", "--batch_size=9", "--schedule=frozen",
        "--frozen_for=2epochs", "--precision=float32", *PLAIN, f"--workdir={tmp_path / 'run'}",
    ]  # fmt: skip


@pytest.fixture
def open_folder():
    """An empty folder that every user may read, and only this one may write to."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@contextlib.contextmanager
def without_privileges():
    """Permissions do not bind root: becomes another user for the length of a block."""
    if os.geteuid() != 0:
        yield
        return
    # The other user may not be allowed to read the interpreter's own modules.
    start_tensorflow()
    importlib.import_module("trainer.commands.train")
    os.setresuid(NOBODY, NOBODY, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


def assert_fails_once(result, message, *, status=1):
    got, _, err = result
    assert err == f"trainer: {message}\n"
    assert got == status


def test_a_workdir_that_cannot_be_made(arguments, open_folder, run_main):
    os.chmod(open_folder, 0o555)
    with without_privileges():
        result = run_main("--source=synthetic:flowers", *arguments[1:-1], f"--workdir={open_folder / 'run'}")
    assert_fails_once(result, f"--workdir={open_folder / 'run'} cannot be written: Permission denied")


def test_a_workdir_that_cannot_be_written_to(arguments, open_folder, run_main):
    (open_folder / "run").mkdir(mode=0o555)
    with without_privileges():
        result = run_main("--source=synthetic:flowers", *arguments[1:-1], f"--workdir={open_folder / 'run'}")
    assert_fails_once(result, f"--workdir={open_folder / 'run'} cannot be written: permission denied")


def test_pictures_that_may_not_be_read(arguments, open_folder, run_main):
    folder = make_flower_folder(open_folder / "pictures", n=10)
    workdir = open_folder / "run"
    workdir.mkdir()
    os.chmod(workdir, 0o777)
    command = [f"--source=folder:{folder}", *arguments[1:-1], f"--workdir={workdir}"]
    os.chmod(folder / "green" / "003.jpg", 0)
    with without_privileges():
        result = run_main(*command)
    first = f"1 of 30 pictures in folder:{folder} cannot be used; --on_bad_image=skip leaves it out:"
    assert_fails_once(result, f"{first}\n  green/003.jpg: Permission denied")
    os.chmod(folder / "green", 0)
    with without_privileges():
        result = run_main(*command)
    message = f"--source=folder:{folder}: cannot list the folder {folder}/green: Permission denied"
    assert_fails_once(result, message)
    os.chmod(folder / "green", 0o755)
    os.chmod(folder / "green" / "003.jpg", 0o644)
    assert list(workdir.iterdir()) == []


def test_another_run_in_the_workdir(arguments, tmp_path, run_main):
    workdir = tmp_path / "run"
    assert run_main(*arguments)[0] == 0
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.name != "lock"}
    message = (
        f"{workdir} holds a run with other options: --head was linear, now mlp(8); "
        "--phase was [], now ['for=9steps; train=head']; --seed was 0, now 1. "
        f"Choose another --workdir; --init_from={workdir} begins with the weights of this run"
    )
    other = ("--seed=1", "--head=mlp(8)", "--phase=for=9steps; train=head", "--log_every=1steps")
    assert_fails_once(run_main(*arguments, *other), message)
    elsewhere = make_flower_folder(tmp_path / "elsewhere", n=9)
    status, _, err = run_main(f"--source=folder:{elsewhere}", *arguments[1:], "--seed=1")
    assert (status, "--seed was 0, now 1" in err) == (1, True)
    # Which might have been the same pictures at another place.
    assert f"{arguments[0].replace('=', ' was ', 1)}, now folder:{elsewhere}" in err
    message = f"{workdir} holds a run with other options: --batch_size was 9, now 7. Choose another ..."
    status, _, err = run_main("evaluate", f"--workdir={workdir}", "--batch_size=7")
    assert (status, err.startswith(f"trainer: {message.removesuffix('...')}")) == (1, True)
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.name != "lock"} == before
    # What does not change the numbers may change.
    status, out, _ = run_main(*arguments, "--log_every=1steps", "--progress=plain")
    assert status == 0
    assert f"{workdir} is finished: test accuracy " in out
    # A score that is demanded is looked at.
    status, _, err = run_main(*arguments, "--assert_accuracy_at_least=1")
    assert (status == 1) == (json.loads((workdir / "report" / "metrics.json").read_text())["accuracy"] < 1), (
        err
    )
    # Without its report the run is scored again.
    (workdir / "report" / "metrics.json").unlink()
    status, out, _ = run_main(*arguments)
    assert status == 0
    assert "goes on from step 4 of 4" in out
    assert (workdir / "report" / "metrics.json").exists()
    # Moved pictures are another thing than other options.
    splits = json.loads((workdir / "splits.json").read_text())
    splits["splits"]["train"][3][2] = "0" * 64
    (workdir / "splits.json").write_text(json.dumps(splits))
    changed = splits["splits"]["train"][3][0]
    status, _, err = run_main("train", *arguments)
    assert status == 1
    assert re.match(f"trainer: the pictures .*: {changed} in train has changed", err)
    status, _, err = run_main("evaluate", arguments[-1], "--eval_split=train")
    assert status == 1
    assert f"has not a picture of this run: {changed} in train is missing or has changed" in err
    # The others are still those that they were.
    status, out, _ = run_main("evaluate", arguments[-1])
    assert status == 0
    assert "has all of test; 1 other pictures of the run are missing or have changed" in out


def test_a_workdir_in_use(arguments, tmp_path, run_main):
    workdir = tmp_path / "run"
    workdir.mkdir()
    with open(workdir / "lock", "w") as lock:
        lock.write("process 7 on elsewhere\n")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert_fails_once(run_main(*arguments), f"--workdir={workdir} is in use by process 7 on elsewhere")
    assert [path.name for path in workdir.iterdir()] == ["lock"]


@pytest.mark.slow
def test_a_file_system_that_can_do_little(arguments, tmp_path, run_main, monkeypatch):
    assert run_main(*arguments[:-1], f"--workdir={tmp_path / 'plain'}")[0] == 0
    fsync, asked = os.fsync, set()

    def fail(name, number):
        def call(*args, **kwargs):
            asked.add(name)
            raise OSError(number, os.strerror(number))

        return call

    def sync(handle):
        return fail("fsync", errno.EINVAL)() if stat.S_ISDIR(os.fstat(handle).st_mode) else fsync(handle)

    monkeypatch.setattr(fcntl, "flock", fail("flock", errno.ENOSYS))
    monkeypatch.setattr(os, "chmod", fail("chmod", errno.EPERM))
    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", fail("replace", errno.EOPNOTSUPP))
    monkeypatch.setattr(files, "warned", set())
    status, out, err = run_main(*arguments, f"--cache_dir={tmp_path / 'cache'}")
    monkeypatch.undo()
    assert (status, err) == (0, "")
    assert asked == {"flock", "chmod", "fsync", "replace"}
    # All is on one file system here.
    [line] = [line for line in out.splitlines() if "file system" in line]
    assert line == (
        f"{tmp_path}/run/lock: this file system cannot lock files (Function not implemented); continuing "
        "without. Do not run two commands in the same folder at once, and after a power failure check what "
        "was written last"
    )
    assert run_main("evaluate", arguments[-1])[0] == 0
    one, other = (tmp_path / name / "report" / "predictions.csv" for name in ("plain", "run"))
    assert one.read_bytes() == other.read_bytes()


def test_an_error_that_names_no_file_says_what_was_tried(arguments, run_main, monkeypatch):
    monkeypatch.setattr(commands, "run", lambda line: os.fstat(10**6))
    status, _, err = run_main(*arguments)
    assert status == 1
    assert re.fullmatch(
        r"trainer: Bad file descriptor: .*os\.fstat\(10\*\*6\)\) \(test_cli_surroundings.py, line \d+\)\n",
        err,
    )


def test_one_of_several_machines(arguments, tmp_path, run_main, monkeypatch):
    task = '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 0}}'
    monkeypatch.setenv("TF_CONFIG", task)
    for command in ("find_lr", "benchmark", "audit"):
        status, _, err = run_main(command, *arguments)
        assert status == 2
        assert err.startswith(f"trainer: TF_CONFIG lists 2 workers, and {command} does not work on several")
        assert err.count("\n") == 1
    for strategy in ("one", "mirrored"):
        status, _, err = run_main("train", *arguments, f"--strategy={strategy}")
        assert (status, err.count("\n")) == (2, 1)
        assert (
            f"lists 2 workers, and --strategy={strategy} trains with one: use --strategy=multi_worker" in err
        )
    monkeypatch.delenv("TF_CONFIG")
    status, _, err = run_main("train", *arguments, "--strategy=multi_worker")
    assert status == 2
    assert err.startswith(
        "trainer: --strategy=multi_worker: nothing says which workers there are. Set TF_CONFIG"
    )
    assert not (tmp_path / "run").exists()


WINDOWS = """
import logging, runpy, shutil, signal, socket, subprocess, sys, tempfile, absl.flags
sys.platform = "win32"
sys.modules |= dict.fromkeys(["fcntl", "grp", "pwd", "resource", "termios"])
runpy.run_module("trainer.main", run_name="__main__")
"""
# What is missing there, and what that is used in without TensorFlow.
MACOS = """
import errno, os
del errno.EUCLEAN, os.sched_getaffinity
import trainer.commands.doctor, trainer.store.array_file, trainer.record.checkpoint_files
from trainer.data.sources.synthetic.workers import draw_all
from trainer.runtime import cores
assert cores() == os.cpu_count()
assert list(draw_all(2, draw=str, seed=0, name="")) == ["0", "1"]
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems are made out of Linux")
@pytest.mark.parametrize(
    ("program", "said"),
    [
        (
            WINDOWS,
            "trainer: Windows is not supported, Linux and macOS are; on Windows, run it in WSL (wsl --",
        ),
        (MACOS, ""),
    ],
)
def test_other_systems(program, said):
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (bool(said), bool(said)), done.stderr
    assert done.stderr.startswith(said)


@pytest.mark.slow
def test_evaluate_where_there_is_nothing_to_evaluate(arguments, tmp_path, run_main):
    workdir = tmp_path / "run"
    missing = f"--workdir={workdir} holds no run (no run.json in it)"
    assert_fails_once(run_main("evaluate", f"--workdir={workdir}"), missing)
    assert_fails_once(
        run_main("evaluate"),
        "evaluate needs --workdir=FOLDER, the folder of a run: evaluate --workdir=RUN",
        status=2,
    )
    assert not workdir.exists()
    assert run_main(*arguments)[0] == 0
    there = f"in {workdir}/checkpoints; there are those of steps 2, 4"
    result = run_main("evaluate", f"--workdir={workdir}", "--checkpoint=3")
    assert_fails_once(result, f"no '3' checkpoint {there}")
    shutil.rmtree(workdir / "checkpoints" / "best")
    assert_fails_once(run_main("evaluate", f"--workdir={workdir}"), f"no 'best' checkpoint {there}")
    shutil.rmtree(workdir / "checkpoints")
    message = (
        f"no 'best' checkpoint in {workdir}/checkpoints; there is none at all: of a run that was stopped "
        "before its first step, run the command again"
    )
    assert_fails_once(run_main("evaluate", f"--workdir={workdir}"), message)
    run = json.loads((workdir / "run.json").read_text())
    (workdir / "run.json").write_text(json.dumps({**run, "format": 99}))
    message = (
        f"{workdir}/run.json has format 99, newer than the 3 that this version reads: use the version that "
    )
    message += "wrote it, or another --workdir"
    assert_fails_once(run_main("evaluate", f"--workdir={workdir}"), message)
    (workdir / "run.json").write_text("{")
    status, _, err = run_main("evaluate", f"--workdir={workdir}")
    assert (status, err.count("\n")) == (1, 1)
    assert err.startswith(f"trainer: {workdir}/run.json is damaged: ")


def _spoil_inside(path):
    """Makes a JPEG that only decoding finds fault with: the Huffman codes are impossible."""
    data = path.read_bytes()
    at = data.index(b"\xff\xc4") + 5
    path.write_bytes(data[:at] + b"\xff" * 16 + data[at + 16 :])


def test_a_picture_damaged_inside_is_named_and_taken_out(arguments, tmp_path, run_main):
    for split in ("train", "validation"):
        make_flower_folder(tmp_path / "pictures" / split)
    bad = tmp_path / "pictures" / "train" / "blue" / "001.jpg"
    _spoil_inside(bad)
    arguments = changed(arguments, f"--source=folder:{tmp_path / 'pictures'}", "--splits=auto")
    status, _, err = run_main(*arguments)
    assert (status, "Traceback" in err) == (1, False)
    what = f"1 of 36 pictures in folder:{tmp_path / 'pictures'} cannot be used"
    told, reason = err.splitlines()[-2:]
    assert told == f"trainer: {what}; --on_bad_image=skip leaves it out:"
    assert reason.startswith("  train/blue/001.jpg: it cannot be decoded: ")
    assert not (tmp_path / "run").exists()
    bad.unlink()
    status, out, err = run_main(*arguments)
    assert (status, err) == (0, "")
    assert "train 17, validation 18" in out


@pytest.mark.slow
def test_after_numbers_that_are_not_finite_another_rate_can_be_tried(arguments, tmp_path, run_main):
    hot = ("--optimizer=sgd", "--head=mlp(4)", "--frozen_learning_rate=1e30")
    status, _, err = run_main(*arguments, *hot)
    assert status == 1
    assert re.fullmatch(r"trainer: the \w+ is not finite \(.*\) at step \d+ \(phase frozen, .*\n", err)
    assert not list((tmp_path / "run").rglob("ckpt-*"))
    status, out, err = run_main(*arguments, "--optimizer=sgd", "--head=mlp(4)")
    assert (status, err) == (0, "")
    assert "goes on" not in out


@pytest.mark.slow
def test_nothing_stays_in_the_folder_for_temporary_files(arguments, tmp_path):
    # AutoGraph writes the code that it makes there, and removes it when Python ends as it usually does.
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    # As most people have it, Python writes down what it compiles.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    ended = run_program(arguments, env={**environment, "TMPDIR": str(temporary)})
    assert ended.returncode == 0, ended.stderr
    assert not list(temporary.iterdir())


@pytest.fixture
def small_disk(tmp_path):
    """mount(size_kb) -> path of a file system of that size, or of the new size."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = []

    def mount(size_kb):
        options = f"{'remount,' if mounted else ''}size={size_kb}k"
        made = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", disk], capture_output=True)
        if made.returncode:
            pytest.skip("mounting takes more rights than this user has")
        mounted.append(disk)
        return disk

    yield mount
    if mounted:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize(
    "size_kb", [4, pytest.param(16, marks=pytest.mark.slow), pytest.param(64, marks=pytest.mark.slow)]
)
def test_a_full_disk(size_kb, small_disk, arguments, run_main):
    command = [*arguments[:-1], "--head=mlp(64)", f"--workdir={small_disk(size_kb) / 'run'}"]
    status, _, err = run_main(*command)
    assert (status, err.count("\n")) == (1, 1), err
    told = "kB are missing; none was saved before; make room" if size_kb == 64 else "No space left on device"
    assert re.match(f"trainer: .*{told}", err), err
    small_disk(4096)
    status, out, err = run_main(*command)
    assert (status, err) == (0, "")
    assert "test accuracy" in out


@pytest.mark.slow
def test_files_that_may_not_grow(arguments, run_main):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))
    try:
        status, _, err = run_main(*arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (status, err.count("\n")) == (1, 1), err
    assert re.match("trainer: .*File too large", err), err
    assert run_main(*arguments)[0] == 0


class Gone(io.StringIO):
    """Standard output that cannot be written."""

    def __init__(self, error):
        super().__init__()
        self.error = OSError(error, os.strerror(error))

    def write(self, text):
        raise self.error


@pytest.mark.parametrize("error", [errno.EPIPE, pytest.param(errno.ENOSPC, marks=pytest.mark.slow)])
def test_nobody_can_read_what_is_printed(error, arguments, tmp_path, monkeypatch, capfd):
    full = "trainer: standard output cannot be written: No space left on device\n"
    monkeypatch.setattr(sys, "stdout", Gone(error))
    # What is logged is lost, and the work is done.
    assert call_main(*arguments) == (0 if error == errno.EPIPE else 1)
    assert (tmp_path / "run" / "report" / "index.html").exists()
    assert capfd.readouterr().err == ("" if error == errno.EPIPE else full)
    # What a command is there to print cannot be.
    for command in (["inspect", *arguments], ["--help"], ["--helpfull"]):
        assert call_main(*command) == 1
        assert "Traceback" not in (err := capfd.readouterr().err)
        assert err.count("\n") <= (0 if error == errno.EPIPE else 2)


class Unseen(io.StringIO):
    """Standard error whose terminal or reader has gone."""

    def write(self, text):
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


@pytest.mark.slow
def test_nobody_can_see_the_bar_or_the_last_words(arguments, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Unseen())
    assert call_main(*arguments, "--progress=bar") == 0
    assert (tmp_path / "run" / "report" / "index.html").exists()
    assert call_main(*arguments, "--batch_size=0") == 2


@pytest.mark.slow
def test_a_folder_that_stands_where_no_path_is_expected(run_main, arguments, tmp_path):
    photos = tmp_path / "my photos"
    photos.mkdir()
    told = f"trainer: {photos} is a folder: write --source=folder:'{photos}', of pictures\n"
    for words in ([photos], ["train", photos]):
        assert run_main(*words) == (2, "", told)
    assert run_main(*arguments)[0] == 0
    run = tmp_path / "run"
    wanted = f"trainer: {run} is the folder of a run: write --workdir={run}\n"
    assert run_main(run) == (2, "", wanted)
    wanted = f"trainer: predict needs --workdir=FOLDER, the folder of a run: predict --workdir={run}\n"
    assert run_main("predict", run, photos) == (2, "", wanted)
    assert run_main("inspect", "--splits=80%,", "20%") == (
        2, "", "trainer: a value is one word: --splits=80%,20%, not --splits=80%, 20%\n"
    )  # fmt: skip


def test_no_source_is_told_at_once_and_never_goes_on_with_another_run(run_main, arguments, tmp_path):
    assert run_main(*arguments)[0] == 0
    without = [argument for argument in arguments if not argument.startswith("--source=")]
    status, out, err = run_main(*without)
    assert (status, out) == (2, "")
    assert f"{tmp_path / 'run'} holds a run on --source=folder:" in err
    assert f"--flagfile={tmp_path / 'run' / 'flagfile.flags'}, which has all options of the run" in err
    status, out, _ = run_main(*without, f"--workdir={tmp_path / 'other'}", "--synthetic_examples=20")
    assert status == 0
    assert out.startswith("pictures:    no --source, so they are drawn (synthetic:flowers); of your own,")
