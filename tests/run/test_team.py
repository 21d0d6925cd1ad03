"""Workers that meet, agree and end together, without anything that they would train."""

import contextlib
import json
import logging
import os
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.conftest import make_flower_folder
from tests.helpers.processes import Program
from tests.helpers.workers import free_ports, tf_config
from trainer.cli.config import Config
from trainer.run import links, picture_cache
from trainer.run import team as team_module
from trainer.run.experiment import Experiment
from trainer.run.links import Link, meet
from trainer.run.team import Team, facts_of, settled
from trainer.runtime import Cluster, StopSignal, make_strategy, share_of
from trainer.store.lock import Holder, file_lock
from trainer.values import CommonError, Interrupted, TrainerError, UsageError


def clusters(count):
    addresses = tuple(f"127.0.0.1:{port}" for port in free_ports(count))
    return [Cluster(addresses, index, "TF_CONFIG") for index in range(count)]


def meet_all(found, *, facts=None, limit_secs=30.0, later_secs=0.0):
    """Returns what came of `meet` for each, or its error; each but the first comes later."""

    def one(cluster):
        time.sleep(later_secs * cluster.index)
        try:
            return meet(cluster, facts=(facts or {}).get(cluster.index, {}), limit_secs=limit_secs)
        except TrainerError as error:
            return error

    with ThreadPoolExecutor(len(found)) as pool:
        return list(pool.map(one, found))


@pytest.fixture
def said(monkeypatch):
    """What the log says."""
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    log = logging.getLogger("trainer")
    monkeypatch.setattr(log, "handlers", [handler])
    before = log.level
    log.setLevel(logging.INFO)
    yield lines
    log.setLevel(before)


def test_all_meet_however_late_they_come(said, monkeypatch):
    monkeypatch.setattr(links, "SAY_EVERY_SECS", 0.5)
    found = clusters(3)
    chief, *others = meet_all(found, later_secs=1.5)
    assert [link.index for link in chief] == [1, 2]
    for [link], to in zip(others, chief, strict=True):
        to.send(hello=to.index)
        assert link.receive(10.0) == {"hello": to.index}
        link.close()
    with pytest.raises(links.Broken):
        chief[0].receive(10.0)
    names = [cluster.told(cluster.index) for cluster in found]
    assert any(f"for {names[1]}, {names[2]}, " in line and "of at most 30 s" in line for line in said), said
    # Whoever is there is told of who is not.
    assert sum(f"for {names[2]}, " in line for line in said) > 1
    # The ports are free again, as TensorFlow takes them next.
    for cluster in found:
        with socket.socket() as again:
            again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            again.bind(("127.0.0.1", int(cluster.addresses[cluster.index].rpartition(":")[2])))


def test_who_never_comes_is_named():
    found = clusters(3)
    begun = time.monotonic()
    chief, other = meet_all(found[:2], limit_secs=1.5)
    assert time.monotonic() - begun < 20
    assert str(chief).startswith(
        f"{found[2].told(2)} did not come within 1.5 s: start the same command there"
    )
    assert "--wait_for_workers_secs" in str(chief)
    assert f"{found[2].told(2)} did not come" in str(other)
    [alone] = meet_all(found[1:2], limit_secs=1.0)
    assert str(alone).startswith(f"{found[0].told(0)} did not come within 1 s")


def test_what_differs_is_named_to_all():
    facts = {
        0: {"--seed": 1, "the SHA-256 of this program's code": "a" * 64, "--train": ["x"]},
        1: {"--seed": 1, "the SHA-256 of this program's code": "b" * 64, "--train": ["x"]},
        2: {"--seed": 2, "the SHA-256 of this program's code": "a" * 64, "--train": ["x"]},
    }
    found = clusters(3)
    told = meet_all(found, facts=facts)
    assert {type(one) for one in told} == {UsageError}
    assert len({str(one) for one in told}) == 1
    assert "the SHA-256 of this program's code is bbb" in str(told[0])
    assert f"at {found[1].told(1)}, aaa" in str(told[0])
    two = clusters(2)
    told = meet_all(two, facts={0: facts[0], 1: facts[2]})
    assert str(told[1]).startswith(
        f"the workers are not about to do the same: --seed is 2 at {two[1].told(1)}, 1 at worker 0. Start"
    )


def test_strangers_and_twins_do_no_harm():
    found = clusters(3)
    port = int(found[0].addresses[0].rpartition(":")[2])

    def say(text):
        """Connects as soon as the chief listens."""
        for _ in range(100):
            try:
                one = socket.create_connection(("127.0.0.1", port), timeout=5)
                one.sendall(text)
                return one
            except OSError:
                time.sleep(0.05)
        raise AssertionError("nobody listens")

    hello = b'{"greeting": "hub-trainer worker 1", "index": %d, "facts": {}}\n'
    with ThreadPoolExecutor(3) as pool:
        chief = pool.submit(meet, found[0], facts={}, limit_secs=60)
        for text in (b"GET / HTTP/1.1\r\n\r\n", b"[1]\n", b'{"index": 2}\n', b""):
            say(text).close()
        first = say(hello % 1)
        # The place is taken by whoever comes first.
        refused = [Link(say(hello % index)).receive(10.0)["refuse"] for index in (1, 7, 0)]
        assert refused[0].startswith("worker 1 is there already: see which index each has in TF_CONFIG")
        assert refused[1].startswith("worker 7 is none of 3")
        assert refused[2].startswith("worker 0 is none of 3")
        # It leaves before all have come, and comes again.
        first.close()
        others = [pool.submit(meet, cluster, facts={}, limit_secs=60) for cluster in found[1:]]
        assert [link.index for link in chief.result(60)] == [1, 2]
        assert [len(other.result(60)) for other in others] == [1, 1]


def test_a_port_that_is_taken_is_named():
    found = clusters(2)
    with socket.create_server(("127.0.0.1", int(found[0].addresses[0].rpartition(":")[2]))):
        [error] = meet_all(found[:1])
    assert "cannot be used: Address already in use. Another process has it, or TF_CONFIG gives two" in str(
        error
    )


def test_a_signal_is_heard_while_it_waits():
    cluster = clusters(2)[0]
    threading.Timer(0.7, os.kill, (os.getpid(), signal.SIGTERM)).start()
    begun = time.monotonic()
    with pytest.raises(Interrupted, match="SIGTERM"), StopSignal.installed(["SIGTERM"]):
        meet(cluster, facts={}, limit_secs=60)
    assert time.monotonic() - begun < 20


def end(what, folder, count=2):
    """Returns (status, standard output, standard error) of each of several workers, and their addresses."""
    (folder / "0" / "deep").mkdir(parents=True)
    (folder / "0" / "deep" / "large").write_bytes(os.urandom(700_000))
    (folder / "0" / "empty").touch()
    addresses = [f"127.0.0.1:{port}" for port in free_ports(count)]
    programs = [
        Program(
            [what, folder],
            module="tests.helpers.team_program",
            env={**os.environ, "TF_CONFIG": tf_config(addresses, index)},
        )
        for index in range(count)
    ]
    found = []
    for index, program in enumerate(programs):
        if what.startswith("hangs") and index == 1:
            continue
        out, err = program.communicate(100)
        found.append((program.returncode, out, err))
    for program in programs:
        program._process.kill()
    return found, addresses


def test_they_agree_and_part(tmp_path):
    found, _ = end("parts", tmp_path, count=3)
    assert [status for status, _, _ in found] == [0, 0, 0], found
    [out] = {out for _, out, _ in found}
    assert out.startswith("agreed 0.1\nexchanged [0, 1, 2]\nclock ")
    assert out.endswith("shared [('deep/large', 700000), ('empty', 0)]\n")
    sent, got = ((tmp_path / name / "deep" / "large").read_bytes() for name in "02")
    assert sent == got


@pytest.mark.parametrize(
    ("what", "status", "says"),
    [
        ("dies", 1, "is gone: its process died, or the network did. Nothing was saved; run the same"),
        ("checkpoint", 75, "Run the same command on all workers to continue from step 1,234\n"),
        ("hangs", 1, "has said nothing for 3 s. Nothing was saved"),
        ("fails", 1, "has ended: its disk is full. Nothing was saved"),
        pytest.param(
            "is stopped", 75, "has ended: SIGTERM: stopped. Nothing was saved", marks=pytest.mark.slow
        ),
    ],
)  # fmt: skip
def test_who_ends_takes_the_others_along(what, status, says, tmp_path):
    found, addresses = end(what, tmp_path, count=3)
    # The first, and the last one, which has no connection with the one that ended.
    for got, _, err in (found[0], found[-1]):
        assert err.splitlines()[-1].startswith(f"trainer: worker 1 ({addresses[1]}) "), err
        assert says in err
        assert got == status


@pytest.mark.parametrize("what", ["hangs late", "dies late", "fails late"])
def test_who_ends_when_all_is_written_spoils_nothing(what, tmp_path):
    found, _ = end(what, tmp_path, count=3)
    for status, out, err in (found[0], found[-1]):
        assert (status, err) == (0, ""), out


def test_workers_that_come_apart_say_so(tmp_path):
    found, _ = end("apart", tmp_path)
    assert found[1][0] != 0
    assert "the workers came apart: worker 0 (127.0.0.1:" in found[1][2]


def test_what_one_worker_alone_may_do(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", tf_config(["a:1", "b:1"], 1))
    assert settled(Config()) == Cluster(("a:1", "b:1"), 1, "TF_CONFIG")
    assert settled(Config().replace(strategy="multi_worker")).index == 1
    with pytest.raises(UsageError, match="--budget=5min works with one worker, and there are 2"):
        settled(Config().replace(budget="5min"))
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": {"worker": ["a:1"]}}))
    assert settled(Config().replace(strategy="multi_worker")) is None
    step = {
        "STEP_NUM_TASKS": "2",
        "STEP_NODELIST": "a,b",
        "STEP_TASKS_PER_NODE": "1(x2)",
        "PROCID": "0",
        "JOB_ID": "1",
    }
    monkeypatch.delenv("TF_CONFIG")
    for name, value in step.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert settled(Config()).addresses == ("a:20064", "b:20064")
    # A run for each task.
    assert settled(Config().replace(strategy="one")) is None


def test_alone_nothing_is_asked():
    alone = Team()
    assert (alone.count, alone.is_chief, alone.agree("x", 3), alone.exchange("x", 3)) == (1, True, 3, [3])
    stop = StopSignal()
    assert alone.stop(stop) is stop
    # A run that several have trained, evaluated by one.
    assert make_strategy("multi_worker") is make_strategy("auto")
    assert share_of(make_strategy("multi_worker")) == (0, 1)


class Two(Team):
    """A worker whose other one has something else."""

    count = 2

    def exchange(self, what, value):
        return [value, value[::-1]]


def test_who_has_other_pictures_is_named():
    Two().require_same("pictures", "abba")
    with pytest.raises(
        TrainerError, match=r"^worker 1 has other pictures than worker 0 \(ba, ab\): all workers"
    ):
        Two().require_same("pictures", "ab")


def two_ends():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return Link(socket.create_connection(listener.getsockname()), "worker 1"), Link(listener.accept()[0])


LOW = CommonError("test accuracy 0.5 is below --assert_accuracy_at_least=0.9")
WRONG = UsageError("--batch_size=3 must be a multiple of 2")
OWN = UsageError("--cache_dir=/nowhere is a file")
FULL = TrainerError("its disk is full")
SAID = {
    LOW: (1, f"trainer: {LOW}"),
    WRONG: (2, f"trainer: {WRONG}"),
    OWN: (2, f"trainer: worker 1 has ended: {OWN}"),
    FULL: (
        75,
        f"trainer: worker 1 has ended: {FULL}. Run the same command on all workers to continue from step 7",
    ),
}


def test_what_all_come_to_is_said_by_all(monkeypatch, capsys):
    """Also by one that takes longer than the others to come to it."""
    left, statuses, chiefs = threading.Semaphore(0), [], []
    monkeypatch.setattr(team_module, "leave", lambda status: (statuses.append(status), left.release()))
    cluster = Cluster(("a:1", "b:1"), 0, "TF_CONFIG")
    for error in SAID:
        ours, theirs = two_ends()
        other = team_module.Joined(cluster, [theirs], own_options=["cache_dir"])
        with contextlib.suppress(TrainerError), other.leaving():
            raise error
        chiefs.append(team_module.Joined(cluster, [ours]))
        chiefs[-1].stands = lambda: 7
    assert all(left.acquire(timeout=30) for _ in SAID)
    for chief in chiefs:
        with contextlib.suppress(TrainerError), chief.leaving():
            raise FULL
    assert sorted(statuses) == sorted(status for status, _ in SAID.values())
    assert sorted(capsys.readouterr().err.splitlines()) == sorted(line for _, line in SAID.values())


@pytest.mark.parametrize(
    ("asked", "error", "of_all"),
    [
        ({"engine": "openvino"}, "--engine=openvino needs OpenVINO, which is not installed here", False),
        ({"precision": "float16"}, "--precision=float16 has no effect on this machine", False),
        ({"batch_size": 3}, "--batch_size=3 must be a multiple of 2", True),
    ],
)
def test_what_one_machine_lacks_is_not_said_of_all(asked, error, of_all, tmp_path, monkeypatch):
    config = Config().replace(workdir=str(tmp_path / "run"), cache_dir=str(tmp_path / "cache"), **asked)
    told = []
    with monkeypatch.context() as patch:
        tell_all = team_module.tell_all
        patch.setattr(team_module, "tell_all", lambda to, **said: told.append(said) or tell_all(to, **said))
        with pytest.raises(UsageError), as_worker_1(config, monkeypatch):
            raise UsageError(error)
    assert [said["of_all"] for said in told if said.get("leaving") == error] == [of_all]


@contextlib.contextmanager
def as_worker_1(config, monkeypatch, *, stands=None):
    """Gives the options of a worker beside a chief that has the same of everything, and lets both part."""
    ours, theirs = two_ends()
    theirs.send(agreed="the newest checkpoint", value=stands)

    def answer():
        while True:
            message = theirs.receive(60.0) or {}
            if "leaving" in message:
                return
            if "given" in message:
                theirs.send(agreed=message["given"], value=[message["value"]] * 2)
            elif "done" in message:
                theirs.send(bye=True)
                return

    threading.Thread(target=answer, daemon=True).start()
    monkeypatch.setattr(team_module, "settled", lambda config: Cluster(("a:1", "b:1"), 1, "TF_CONFIG"))
    monkeypatch.setattr(team_module, "meet", lambda *args, **facts: [ours])
    monkeypatch.setattr(team_module, "join", lambda cluster: None)
    with team_module.together(config, StopSignal()) as own:
        yield own


def test_a_worker_leaves_out_the_workdir_that_was_asked_for(tmp_path, monkeypatch):
    """It writes to a folder of its own, and the chief to that one."""
    pictures = make_flower_folder(tmp_path / "pictures")
    (pictures / "runs").mkdir()
    (pictures / "runs" / "lock").touch()
    config = Config().replace(
        source=f"folder:{pictures}", workdir=str(pictures / "runs"), cache_dir=str(tmp_path / "cache"),
        splits="10,4,4", batch_size=4,
    )  # fmt: skip
    with as_worker_1(config, monkeypatch) as own:
        assert own.run.workdir != config.run.workdir
        found = Experiment(own, pictures_only=True)
    assert found.source.class_names == ("blue", "green", "red")


def test_what_killed_workers_left_goes_when_the_next_one_starts(tmp_path, monkeypatch):
    root, of_another = tmp_path / "cache" / "workers", replace(Holder.this_process(), host="another")
    for name in ("lost-1", "away-1", "lives-2"):
        (root / name / "checkpoints").mkdir(parents=True)
    (root / "away-1.lock").write_text(of_another.signature())
    config = Config().replace(workdir=str(tmp_path / "run"), cache_dir=str(tmp_path / "cache"))
    with file_lock(root / "lives-2.lock") as lives:
        assert lives
        with as_worker_1(config, monkeypatch) as own:
            beside = {path.name for path in root.glob("*-*/")}
            assert beside - {Path(own.run.workdir).name} == {"away-1", "lives-2"}
    assert {path.name for path in root.iterdir()} == {"away-1", "away-1.lock", "lives-2"}


def test_a_worker_knows_what_the_chief_has_saved_before_it_has_it_itself(tmp_path, monkeypatch):
    config = Config().replace(workdir=str(tmp_path / "run"), cache_dir=str(tmp_path / "cache"))
    with as_worker_1(config, monkeypatch, stands=40) as own:
        assert team_module.team().stands() == 40
        folder = Path(own.run.workdir) / "checkpoints"
        folder.mkdir(parents=True)
        (folder / "ckpt-44.index").touch()
        assert team_module.team().stands() == 44


def test_several_workers_keep_no_pictures(monkeypatch):
    monkeypatch.setattr(picture_cache, "team", Two)
    config = Config().replace(picture_cache="auto")
    stages = SimpleNamespace(experiment=SimpleNamespace(config=config))
    picture_cache.keep_pictures(stages)
    stages.experiment.config = config.replace(picture_cache="require")
    with pytest.raises(UsageError, match=r"^--picture_cache=require: several workers do not keep pictures"):
        picture_cache.keep_pictures(stages)


def test_only_a_run_that_begins_is_refused_to_keep_pictures_that_it_needs_once(monkeypatch):
    """In its last epoch, every run is one."""
    monkeypatch.setattr(picture_cache, "passes", lambda stages, split: 1)
    stages = SimpleNamespace(
        experiment=SimpleNamespace(config=Config().replace(picture_cache="require")),
        state=SimpleNamespace(step=0),
    )
    with pytest.raises(UsageError, match="goes through no picture more than once"):
        picture_cache.keep_pictures(stages)
    stages.state.step = 7
    picture_cache.keep_pictures(stages)


class Told(Team):
    """A worker that is told what another one has said."""

    count = 2

    def __init__(self, told=None):
        self.said, self._told = [], told

    def agree(self, what, value):
        self.said.append(json.loads(json.dumps(value)))
        return self.said[-1] if self._told is None else self._told.pop(0)


@pytest.mark.parametrize("shape", [(3,), (700, 300), (0, 4), ()])
def test_all_take_the_chiefs_numbers_whatever_their_own(shape):
    rng = np.random.default_rng(0)
    theirs = [np.asarray(rng.normal(size=shape), np.float32) for _ in range(2)]
    chief = Told()
    np.testing.assert_array_equal(chief.agree_array("x", theirs[0]), theirs[0])
    # A message holds at most 1 MiB.
    assert all(len(part) < 2**20 for part in chief.said)
    found = Told(list(chief.said)).agree_array("x", theirs[1])
    assert (found.shape, found.dtype) == (shape, np.float32)
    np.testing.assert_array_equal(found, theirs[0])
    assert Team().agree_array("x", theirs[1]) is theirs[1]


def test_places_are_not_compared_by_what_they_are_called(tmp_path, monkeypatch):
    """One worker stands in the folder that another one names in full."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "fixed.csv").write_text("")
    asked = {"seed": 3, "backbone": "efficientnet_lite0"}
    full = Config().replace(
        source=f"folder:{tmp_path / 'photos'}", relabel=str(tmp_path / "fixed.csv"), **asked
    )
    monkeypatch.chdir(tmp_path)
    here = Config().replace(source="folder:photos", relabel="fixed.csv", **asked)
    facts = [facts_of(config) for config in (full, here)]
    assert facts[0] == facts[1]
    assert facts[0]["--backbone"] == "efficientnet_lite0"
    assert "--source" not in facts[0]
    assert "--source" in facts_of(Config().replace(source="tfds:tf_flowers"))
