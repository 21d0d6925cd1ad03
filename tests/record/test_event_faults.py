"""What TensorBoard shows after a kill and a restart, on full disks, and of damaged files."""

import contextlib
import itertools
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader

from tests.record.events import Running, scalars, steps_of
from trainer.record import event_files
from trainer.record.report_place import report_manifest
from trainer.record.summaries import OPTIONS, Summaries
from trainer.record.workdir import Workdir
from trainer.values import TrainerError

NUM_STEPS = 8
SECOND_PHASE = 4
GRAPH = tf.Graph()


def png_of(step):
    return tf.io.encode_png(np.full([4, 4, 3], step, np.uint8)).numpy()


def side_effects(workdir, at):
    """Yields after each side effect of a run of 8 steps in two phases; `at` is its checkpoint, a [step].

    In the order of a real run: numbers of every step, a checkpoint and an evaluation every second step.
    """
    summaries = Summaries(workdir, describe=lambda step: {"epoch": step / 2})
    start = at[0]
    summaries.cut_back(start)
    if start is None:
        yield summaries.hparams({"head": "linear"})
        yield summaries.text("train", "flagfile", "--seed=1")
        yield summaries.graph("train", GRAPH)

    def pictures(step):
        summaries.image("train", f"pictures/{step // SECOND_PHASE}", png_of(step), step=step + 1)

    def evaluate(step):
        summaries.scalars("validation", step, {"loss": step + 0.5})

    if start:
        yield evaluate(start)
    if start in (None, SECOND_PHASE):
        yield pictures(start or 0)
    for step in range((start or 0) + 1, NUM_STEPS + 1):
        yield summaries.scalars("train", step, {"loss": step + 0.25}, {"images_per_second": 7.0})
        if step % 2 == 0:
            summaries.sync()
            yield at.__setitem__(0, step)
            yield evaluate(step)
        if step == SECOND_PHASE:
            yield pictures(step)
    yield summaries.close()
    yield summaries.scalars("test", 6, {"loss": 6.75})
    yield summaries.image("test", "confusion_matrix", png_of(6), step=6)
    yield summaries.image("validation", "confusion_matrix", png_of(NUM_STEPS), step=NUM_STEPS)
    yield summaries.final({"test_loss": 6.75}, step=NUM_STEPS)
    yield summaries.close()


def made(path):
    workdir = Workdir(str(path))
    workdir.make()
    return workdir


def kill_after(effects, count, workdir):
    """Lets a run make some of its side effects; what it has not handed to the system is lost with it."""
    for _ in itertools.islice(effects, count):
        pass
    sizes = {path: path.stat().st_size for path in event_files_of(workdir)}
    effects.close()
    for path, size in sizes.items():
        os.truncate(path, size)


def event_files_of(workdir):
    return sorted(workdir.root.rglob("*tfevents*"))


def shown_by(running):
    """Returns what a TensorBoard shows, but for the content of the HPARAMS tab, which has times in it."""
    shown = running.look().shown()
    return {key: [step for step, _ in shown[key]] if key[0] == OPTIONS else shown[key] for key in shown}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """(what TensorBoard shows, metrics.jsonl, number of side effects) of the run that was never killed."""
    workdir = made(tmp_path_factory.mktemp("unbroken") / "run")
    count = sum(1 for _ in side_effects(workdir, [None]))
    shown = shown_by(Running(workdir.root))
    assert {key: [step for step, _ in shown[key]] for key in shown if key[0] != OPTIONS} == {
        ("train", "flagfile"): [0],
        ("train", "__run_graph__"): [0],
        ("train", "pictures/0"): [1],
        ("train", "pictures/1"): [5],
        ("train", "loss"): [1, 2, 3, 4, 5, 6, 7, 8],
        ("train", "images_per_second"): [1, 2, 3, 4, 5, 6, 7, 8],
        ("validation", "loss"): [2, 4, 6, 8],
        ("validation", "confusion_matrix"): [8],
        ("test", "loss"): [6],
        ("test", "confusion_matrix"): [6],
    }
    return shown, workdir.metrics_jsonl.read_bytes(), count


def test_after_two_kills_tensorboard_shows_each_point_once(unbroken, tmp_path):
    shown, metrics, count = unbroken
    for first in range(count + 1):
        workdir, at = made(tmp_path / f"run{first}"), [None]
        # One looks at once, one looks before each kill, one some time before it.
        running = [Running(workdir.root) for _ in range(3)]
        for index, kill in enumerate((first, first * 7 % 11)):
            effects = side_effects(workdir, at)
            for _ in itertools.islice(effects, max(0, kill - 3)):
                running[0].look()
            running[2].look()
            kill_after(effects, min(3, kill), workdir)
            running[1].look()
            if index == 1:
                running[0].look()
        for _ in side_effects(workdir, at):
            running[0].look()
        for one in (*running, Running(workdir.root)):
            assert shown_by(one) == shown, f"killed after {first}"
        assert workdir.metrics_jsonl.read_bytes() == metrics


class Server:
    """A TensorBoard as users start it, asked over HTTP."""

    def __init__(self, root, *, load_fast):
        command = [
            sys.executable, "-m", "tensorboard.main", f"--logdir={root}", "--port=0",
            "--reload_interval=1", f"--load_fast={load_fast}",
        ]  # fmt: skip
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self._url = next(
            found[0] for line in self._process.stderr if (found := re.search(r"http:\S+/", line))
        )

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._process.kill()
        self._process.communicate()

    def _get(self, route, **query):
        with urllib.request.urlopen(
            f"{self._url}data/plugin/{route}?{urllib.parse.urlencode(query)}"
        ) as reply:
            return json.load(reply)

    def steps(self):
        """Returns {(run, tag): its steps} of numbers, pictures and texts."""
        shown = {}
        for route, query in (("scalars/scalars", {}), ("images/images", {"sample": 0}), ("text/text", {})):
            for run, tags in self._get(f"{route.split('/')[0]}/tags").items():
                for tag in tags:
                    points = self._get(route, run=run, tag=tag, **query)
                    shown[run, tag] = [p[1] if route == "scalars/scalars" else p["step"] for p in points]
        return {key: steps for key, steps in shown.items() if steps}

    def wait_until(self, expected):
        """Waits until it shows these steps, or fails with what it shows instead."""
        deadline = time.monotonic() + 30
        while (steps := self.steps()) != expected and time.monotonic() < deadline:
            time.sleep(0.2)
        assert steps == expected


@pytest.mark.slow
@pytest.mark.parametrize("load_fast", ["false", "true"])
def test_a_server_that_is_running_shows_each_point_once(load_fast, unbroken, tmp_path):
    if load_fast == "true":
        pytest.importorskip("tensorboard_data_server")
    shown, _, _ = unbroken
    whole = {key: shown[key] if key[0] == OPTIONS else [step for step, _ in shown[key]] for key in shown}
    whole = {key: steps for key, steps in whole.items() if "_" not in key[1][:2]}
    workdir, at = made(tmp_path / "run"), [None]
    with Server(workdir.root, load_fast=load_fast) as server:
        kill_after(side_effects(workdir, at), 18, workdir)
        assert at == [6]
        read = dict(whole)
        # The evaluation of step 6 and the numbers of step 7 come after the checkpoint.
        for key, count in {("train", "loss"): 7, ("train", "images_per_second"): 7}.items():
            read[key] = whole[key][:count]
        read["validation", "loss"] = [2, 4, 6]
        ending = (
            ("validation", "confusion_matrix"), ("test", "loss"), ("test", "confusion_matrix"),
            (OPTIONS, "final/test_loss"),
        )  # fmt: skip
        for key in ending:
            del read[key]
        server.wait_until(read)
        for _ in side_effects(workdir, at):
            pass
        server.wait_until(whole)
        # Once more, from the end.
        for _ in side_effects(workdir, at):
            pass
        time.sleep(3)
        server.wait_until(whole)


def test_files_of_one_second_are_read_in_the_order_of_time(tmp_path):
    for index in range(12):
        # TensorFlow numbers the files of a process as text: 10 comes before 9.
        file = event_files.EventFile(tmp_path, create=tf.summary.create_file_writer)
        with file.writing(index, num_events=1):
            tf.summary.scalar("index", index)
        file.close()
    assert scalars(tmp_path)["index"] == [(index, float(index)) for index in range(12)]


def test_a_name_that_was_there_is_outdone_even_when_its_file_is_gone(tmp_path):
    workdir = made(tmp_path / "run")
    train = workdir.root / "train"
    train.mkdir()
    # Of a process with a greater number, in a second that has only begun.
    name = f"events.out.tfevents.{int(time.time()) + 1:010d}.zzz.99999.0.v2"
    (train / name).write_bytes(b"")
    summaries = Summaries(workdir)
    summaries.cut_back(None)
    assert list(train.iterdir()) == []
    summaries.scalars("train", 1, {"loss": 1.0})
    summaries.close()
    [path] = train.iterdir()
    assert path.name > name


def test_files_dated_later_than_now_are_still_read_first(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(event_files.time, "sleep", lambda secs: None)
    workdir = made(tmp_path / "run")
    for step, year in ((1, 9_000_000_000), (2, 9_100_000_000), (3, None)):
        summaries = Summaries(workdir)
        summaries.cut_back(step - 1)
        summaries.scalars("train", step, {"loss": float(step)})
        summaries.close()
        if year:
            path = event_files.event_files(workdir.root / "train")[-1]
            path.rename(path.with_name(f"events.out.tfevents.{year}.elsewhere.1.0.v2"))
    assert scalars(workdir.root / "train")["loss"] == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert "dated later than it is now" in caplog.text


def test_only_the_event_files_of_the_run_are_cut_back(tmp_path):
    workdir = made(tmp_path / "run")
    train = workdir.root / "train"
    summaries = Summaries(workdir)
    for step in (1, 5):
        summaries.scalars("train", step, {"loss": float(step)})
    of_report = summaries.score(train, 5, {"accuracy": 0.5}, {})
    report_manifest(train).add([of_report.name])
    summaries.close()
    # The same as the run's own, but for its name.
    theirs = train / "events.out.tfevents.99.other"
    theirs.write_bytes(of_report.read_bytes())
    before = of_report.read_bytes()
    Summaries(workdir).cut_back(1)
    assert of_report.read_bytes() == theirs.read_bytes() == before
    of_report.unlink()
    theirs.unlink()
    assert scalars(train) == {"loss": [(1, 1.0)]}


def noise():
    """A PNG of more bytes than are held back before they are written."""
    return tf.io.encode_png(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).numpy()


@contextlib.contextmanager
def files_that_end_at(num_bytes):
    """No file may grow beyond a size: as on a full disk, but that no disk is needed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_does_not_fit_is_told_of_before_a_checkpoint_counts_it(unbroken, tmp_path):
    shown, metrics, _ = unbroken
    failed_at = set()
    for num_bytes in range(60, 1500, 180):
        workdir, at = made(tmp_path / f"run{num_bytes}"), [None]
        effects = side_effects(workdir, at)
        too_large = pytest.raises(TrainerError, match=r"cannot be written: .*File too large")
        with files_that_end_at(num_bytes), too_large:
            list(effects)
        failed_at.add(at[0])
        # Whatever the checkpoint counts is there: after it, all goes on as if there had been room.
        for _ in side_effects(workdir, at):
            pass
        assert shown_by(Running(workdir.root)) == shown
        assert workdir.metrics_jsonl.read_bytes() == metrics
    assert failed_at >= {None, 2, 4}


def test_a_picture_that_tensorflow_drops_without_a_word_is_missed(tmp_path):
    workdir = made(tmp_path / "run")
    summaries = Summaries(workdir)
    with files_that_end_at(5000):
        with pytest.raises(TrainerError) as caught:
            summaries.image("train", "pictures", noise(), step=1)
        [path] = (workdir.root / "train").iterdir()
        assert str(caught.value) == f"event files of train cannot be written: File too large: {path}"
        # It has been said; closing must not hide it behind another error.
        summaries.sync()
        summaries.close()


def test_numbers_that_do_not_fit_into_metrics_jsonl(tmp_path):
    workdir = made(tmp_path / "run")
    summaries = Summaries(workdir)
    workdir.metrics_jsonl.write_text("x" * 4990)
    with files_that_end_at(5000), pytest.raises(TrainerError) as caught:
        summaries.scalars("train", 1, {"loss": 1.0})
    assert str(caught.value) == f"{workdir.metrics_jsonl} cannot be written: File too large"
    summaries.close()


@pytest.mark.parametrize("num_kb", [4, 8, 16, 32])
def test_a_disk_that_is_full(num_kb, tmp_path):
    made_disk = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={num_kb}k", "tmpfs", tmp_path], capture_output=True
    )
    if made_disk.returncode:
        pytest.skip("mounting takes more rights than this user has")
    try:
        workdir = made(tmp_path / "run")
        summaries = Summaries(workdir)
        written = []

        def fill():
            for step in range(1, 9):
                summaries.image("train", f"pictures/{step}", noise(), step=step)
                summaries.scalars("train", step, {"loss": 1.0})
                written.append((step, 1.0))

        with pytest.raises(TrainerError, match=r"cannot be written: .*No space left on device"):
            fill()
        summaries.close()
        # What was whole before is still read; of the last step, perhaps only metrics.jsonl had no room.
        read = scalars(workdir.root / "train").get("loss", [])
        assert read[: len(written)] == written
        assert len(read) <= len(written) + 1
    finally:
        subprocess.run(["umount", "--lazy", tmp_path], check=True)


def test_sync_waits_for_the_disk(tmp_path, monkeypatch):
    synced = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.readlink(f"/proc/self/fd/{fd}")), real(fd)))
    workdir = made(tmp_path / "run")
    summaries = Summaries(workdir)
    summaries.sync()
    assert synced == []
    summaries.text("train", "flagfile", "--seed=1")
    summaries.scalars("validation", 1, {"loss": 1.0})
    summaries.sync()
    folders = [workdir.root / "train", workdir.root / "validation"]
    paths = [path for folder in folders for path in folder.iterdir()]
    wanted = {workdir.root, workdir.metrics_jsonl, *folders, *paths}
    assert set(map(Path, synced)) == wanted
    assert steps_of(workdir.root / "train") == {"flagfile": [0]}
    synced.clear()
    summaries.close()
    assert set(map(Path, synced)) == {*folders, *paths}


def test_a_disk_that_does_not_take_it(tmp_path, monkeypatch):
    def broken(handle):
        raise OSError(5, "Input/output error")

    workdir = made(tmp_path / "run")
    summaries = Summaries(workdir)
    summaries.scalars("train", 1, {"loss": 1.0})
    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(
        TrainerError, match=r"^event files of train cannot be written: Input/output error: .*tfevents"
    ):
        summaries.sync()
    with pytest.raises(TrainerError, match=r"metrics.jsonl cannot be written: Input/output error$"):
        summaries.sync()


def test_an_event_file_that_someone_removes(tmp_path):
    workdir = made(tmp_path / "run")
    summaries = Summaries(workdir)
    summaries.scalars("train", 1, {"loss": 1.0})
    shutil.rmtree(workdir.root / "train")
    with pytest.raises(TrainerError, match=r"^event files of train cannot be written: .*tfevents"):
        summaries.scalars("train", 2, {"loss": 1.0})
    summaries.close()


WRITER = """
import sys
from trainer.record.summaries import OPTIONS, Summaries
from trainer.record.workdir import Workdir

summaries = Summaries(Workdir(sys.argv[1]))
print("ready", flush=True)
restored, step = map(int, sys.stdin.readline().split())
summaries.cut_back(restored)
summaries.scalars("train", step, {"loss": step + 0.25})
print("done", flush=True)
sys.stdin.readline()
"""


@pytest.mark.slow
def test_processes_of_one_second_are_read_in_the_order_of_time(tmp_path):
    workdir = made(tmp_path / "run")
    command = [sys.executable, "-c", WRITER, str(workdir.root)]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    # The numbers of processes are compared as text; the worst order is the one to be tried.
    processes.sort(key=lambda process: str(process.pid), reverse=True)
    time.sleep(1 - time.time() % 1)
    for step, process in enumerate(processes, start=1):
        process.stdin.write(f"{step - 1} {step}\n")
        process.stdin.flush()
        assert process.stdout.readline() == "done\n"
        process.kill()
        process.communicate()
    assert scalars(workdir.root / "train")["loss"] == [(step, step + 0.25) for step in range(1, 5)]


# Of the last steps of each split that stay after a restore; see `Summaries.cut_back`.
LAST = {
    step: {
        OPTIONS: max(step - 1, 0),
        ".": max(step - 1, 0),
        "train": step,
        "validation": step - 1,
        "test": -1,
    }
    for step in (0, 2, 3, 4, 6, 8)
} | {None: dict.fromkeys((OPTIONS, ".", "train", "validation", "test"), -1)}
DAMAGE = st.tuples(
    st.integers(0, 10**6),
    st.integers(0, 10**6),
    st.one_of(st.none(), st.binary(max_size=3), st.sampled_from([b"\n", b"\0" * 40, b"9", b'"step": 1'])),
)


@pytest.fixture(scope="module")
def twice_killed(tmp_path_factory):
    """A folder as two kills and the end of the run leave it: several files in each split."""
    workdir, at = made(tmp_path_factory.mktemp("killed") / "run"), [None]
    for count in (12, 7):
        kill_after(side_effects(workdir, at), count, workdir)
    for _ in side_effects(workdir, at):
        pass
    # So that each file's step counts are read only once.
    return workdir.root, {path.relative_to(workdir.root): records(path) for path in event_files_of(workdir)}


def records(path):
    """Returns [(where a record of an event file ends, step, what it is of)], up to the first damage."""
    found, end = [], 0
    for content in RawEventFileLoader(str(path)).Load():
        end += 16 + len(content)
        found.append((end, tf.compat.v1.Event.FromString(content).step, content))
    return found


def check_damaged(folder, before, damage, step):
    """Damages a copy of the folder and cuts it back; what is left is what was whole, and is not too much.

    Args:
      folder, before: as `twice_killed` gives them.
      damage: [(which file, where, what is put there)]; None: the file ends there.
      step: that of the restored checkpoint.
    """
    with tempfile.TemporaryDirectory() as parent:
        workdir = Workdir(shutil.copytree(folder, Path(parent) / "run"))
        paths = [*event_files_of(workdir), workdir.metrics_jsonl]
        # Every second time metrics.jsonl.
        chosen = [path for events in paths[:-1] for path in (events, paths[-1])]
        whole_up_to = {path: path.stat().st_size for path in paths}
        lines = workdir.metrics_jsonl.read_bytes().splitlines(keepends=True)
        only_shorter = True
        for which, where, what in damage:
            path = chosen[which % len(chosen)]
            data = path.read_bytes()
            where %= len(data) + 1
            path.write_bytes(data[:where] + (b"" if what is None else what + data[where + len(what) :]))
            whole_up_to[path] = min(whole_up_to[path], where)
            only_shorter &= what is None or path != workdir.metrics_jsonl
        lines_after = workdir.metrics_jsonl.read_bytes().splitlines(keepends=True)
        last = LAST[step]
        fault = ""
        try:
            Summaries(workdir).cut_back(step)
        except TrainerError as error:
            fault = str(error)
        if fault:
            assert not only_shorter
            assert re.fullmatch(r"\S+/metrics.jsonl is damaged in line \d+: .*, and start again", fault)
            # Nothing is harmed.
            assert workdir.metrics_jsonl.read_bytes() == b"".join(lines_after)
            return
        for path in paths[:-1]:
            name = path.relative_to(workdir.root)
            last_step = last[str(name.parent)]
            stays = [
                record for end, at, record in before[name] if at <= last_step and end <= whole_up_to[path]
            ]
            left = records(path) if path.exists() else []
            assert [record for _, _, record in left][: len(stays)] == stays or not left
            if not left:
                events = map(tf.compat.v1.Event.FromString, stays)
                assert {event.WhichOneof("what") for event in events} <= {"file_version", "session_log"}
            else:
                assert left[-1][0] == path.stat().st_size
            assert all(at <= last_step for _, at, _ in left)
        left = workdir.metrics_jsonl.read_bytes().splitlines(keepends=True)
        points = [json.loads(line) for line in left]
        assert all(point["step"] <= last[point["split"]] for point in points)
        assert len({(point["split"], point["step"]) for point in points}) == len(points)
        # Lines that nothing happened to stay, if they are not after the step.
        untouched = [line for line in lines if line in lines_after]
        kept = [line for line in untouched if is_kept(line, last)]
        assert [line for line in left if line in untouched] == kept


def is_kept(line, last):
    point = json.loads(line)
    return point["step"] <= last[point["split"]]


FUZZ = {"deadline": None, "database": None, "phases": [Phase.explicit, Phase.generate, Phase.shrink]}
CASES = given(st.lists(DAMAGE, min_size=1, max_size=4), st.sampled_from(list(LAST)))


@settings(max_examples=100, derandomize=True, **FUZZ)
# A step in metrics.jsonl that has become larger hides those of lines that are to stay.
@example(damage=[(1, 76, b'"step": 1'), (1, 116, b"\0")], step=3)
@CASES
def test_of_damaged_files_what_was_whole_is_left(twice_killed, damage, step):
    check_damaged(*twice_killed, damage, step)


@pytest.mark.slow
@settings(max_examples=1500, **FUZZ)
@CASES
def test_of_damaged_files_what_was_whole_is_left_in_many_cases(twice_killed, damage, step):
    check_damaged(*twice_killed, damage, step)
