"""Signals: an exception where nothing needs saving, a note where something does, and a way out at once."""

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from trainer import runtime
from trainer.runtime import Cluster, StopSignal, named_cluster, require_one_machine
from trainer.values import Interrupted, UsageError


def send(number):
    os.kill(os.getpid(), number)
    time.sleep(0.05)  # Python's own handlers run between two of its instructions.


def test_where_nothing_needs_saving_a_signal_ends_the_work():
    wanted = "^SIGUSR1: stopped while starting, before the first step. Run the same command again$"
    with pytest.raises(Interrupted, match=wanted), StopSignal.installed(["SIGUSR1"]):
        send(signal.SIGUSR1)
    wanted = "^SIGUSR1: stopped; everything is saved. Run the same command to continue$"
    with StopSignal.installed(["SIGUSR1"]) as stop:
        with stop.deferred():
            pass
        with pytest.raises(Interrupted, match=wanted):
            send(signal.SIGUSR1)


class Finalized:
    """Is sent a signal where Python ignores what is raised."""

    def __del__(self):
        send(signal.SIGTERM)


def finalize(*, wait_secs):
    Finalized()
    time.sleep(wait_secs)


def test_a_signal_in_a_finalizer_is_not_lost(capfd):
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(Interrupted, match=r"^SIGTERM: "), StopSignal.installed(["SIGTERM"]):
        finalize(wait_secs=10)
    assert signal.getsignal(signal.SIGALRM) == before
    assert capfd.readouterr().err == ""
    # Neither where the work ends before it is told again.
    with StopSignal.installed(["SIGTERM"]) as stop:
        finalize(wait_secs=0)
    assert stop.received() == "SIGTERM"
    time.sleep(0.1)


def send_to_a_library():
    try:
        send(signal.SIGTERM)
    except Interrupted as error:
        raise TypeError("it has no attribute `_handle`") from error


def test_a_library_that_makes_another_error_of_a_signal_does_not_hide_it():
    with pytest.raises(Interrupted, match=r"^SIGTERM: "), StopSignal.installed(["SIGTERM"]):
        send_to_a_library()
    with pytest.raises(TypeError), StopSignal.installed(["SIGTERM"]):
        raise TypeError


def work(stop, number, *, told):
    """Is sent a signal while it is deferred, and one more."""
    with stop.deferred():
        assert stop.requested() == ""
        send(number)
        assert stop.requested() == told
        send(signal.SIGTERM)
        assert stop.requested() == told


@pytest.mark.parametrize(
    ("number", "told"),
    [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM"), (signal.SIGUSR2, "SIGUSR2")],
)
def test_while_it_is_deferred_a_signal_is_a_note(number, told, capfd, monkeypatch):
    monkeypatch.setattr(runtime, "owns_process", True)
    with StopSignal.installed(["SIGTERM", "SIGUSR2"]) as stop:
        with pytest.raises(Interrupted, match=f"^{told}: "):
            work(stop, number, told=told)
        # A run that stops soon says so itself.
        assert capfd.readouterr().err == ""
        # Who leaves for a reason of his own is not interrupted on top of it.
        with pytest.raises(LookupError), stop.deferred():
            raise LookupError


def test_in_a_process_of_somebody_else_nothing_is_written_and_the_second_ctrl_c_is_an_exception(capfd):
    with StopSignal.installed() as stop, contextlib.suppress(Interrupted), stop.deferred():
        send(signal.SIGINT)
        assert stop.requested() == "Ctrl-C"
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
    assert capfd.readouterr() == ("", "")


def test_handlers_are_given_back():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    descriptors = len(os.listdir("/proc/self/fd"))
    with StopSignal.installed(["SIGTERM", "SIGUSR1"]) as stop, stop.deferred():
        assert signal.getsignal(signal.SIGTERM) not in before
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)] == before
    assert signal.set_wakeup_fd(-1) == -1
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_what_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignal.installed(["SIGHUP"]) as stop, stop.deferred():
            send(signal.SIGHUP)
            assert stop.requested() == ""
    finally:
        signal.signal(signal.SIGHUP, before)


def test_time_runs_out(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with StopSignal.installed(max_minutes=1.5) as stop, stop.deferred():
        now[0] += 89.9
        assert stop.requested() == ""
        now[0] += 0.1
        assert stop.requested() == "--max_minutes=1.5"
    with StopSignal.installed() as stop, stop.deferred():
        now[0] += 1e9
        assert stop.requested() == ""


BUSY = """
import ctypes, signal
from trainer import runtime
from trainer.runtime import StopSignal
runtime.owns_process = True
with StopSignal.installed(["SIGTERM"]) as stop, stop.deferred():
    print("busy", flush=True)
    # In C, as a long step is: no handler in Python runs until it is over. A signal ends the first call.
    for _ in range(9):
        ctypes.CDLL(None).poll(None, 0, 60_000)
"""


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_the_second_ctrl_c_leaves_at_once_even_in_the_middle_of_a_step(first):
    command = [sys.executable, "-c", BUSY]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        assert program.stdout.readline() == "busy\n"
        program.send_signal(first)
        assert program.stderr.readline().startswith("stopping after the current step")
        program.send_signal(signal.SIGINT)
        assert program.wait(timeout=20) == 130


def test_in_a_thread_there_are_no_handlers_and_time_runs_out():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    def work():
        with StopSignal.installed(["SIGTERM"], max_minutes=1e-9) as stop, stop.deferred():
            time.sleep(0.001)
            told = stop.requested()
            return told, [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(work).result() == ("--max_minutes=1e-09", before)
    assert signal.set_wakeup_fd(-1) == -1


# --- the workers that the environment names


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "{}",
        '{"task": {"type": "worker", "index": 0}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 0}}',
        '{"cluster": {"chief": ["a:1"], "worker": [], "ps": []}}',
        '{"cluster": {"worker": {"0": "a:1"}}, "environment": "cloud"}',
    ],
)
def test_a_cluster_of_one_is_this_machine(text, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", text)
    assert named_cluster() is None
    require_one_machine("find_lr")


@pytest.mark.parametrize(
    ("text", "addresses", "index"),
    [
        (
            '{"cluster": {"worker": ["a:1", "b:2"]}, "task": {"type": "worker", "index": 1}}',
            ("a:1", "b:2"),
            1,
        ),
        (
            '{"cluster": {"worker": ["b:1", "c:1"], "chief": ["a:1"]}, '
            '"task": {"type": "worker", "index": "1"}}',
            ("a:1", "b:1", "c:1"),
            2,
        ),
        (
            '{"cluster": {"worker": {"10": "c:1", "9": "[::1]:7"}}, "task": {"type": "worker", "index": 0}}',
            ("[::1]:7", "c:1"),
            0,
        ),
    ],
)
def test_who_is_who_in_tf_config(text, addresses, index, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", text)
    assert named_cluster() == Cluster(addresses, index, "TF_CONFIG")
    with pytest.raises(
        UsageError, match=f"lists {len(addresses)} workers, and find_lr does not work on several"
    ):
        require_one_machine("find_lr")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "={ does not say which machines train together: correct it, or unset it"),
        ("[]", "=[] does not say"),
        ('{"cluster": 3}', "does not say"),
        ('{"cluster": {"worker": 2}}', "does not say"),
        (
            '{"cluster": {"worker": ["a:1", "b:1"]}}',
            "lists 2 workers, and its task null is none of them: name",
        ),
        (
            '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 2}}',
            "lists 2 workers, and its task",
        ),
        (
            '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": true}}',
            "is none of them",
        ),
        ('{"cluster": {"worker": {"0": "a:1"}, "evaluator": ["b:1"]}}', "a task of kind evaluator, and only"),
        ('{"cluster": {"chief": ["a:1", "b:1"]}}', "lists 2 chiefs, and there can be one"),
        (
            '{"cluster": {"worker": ["a:1", "b"]}, "task": {"type": "worker", "index": 0}}',
            "names the worker 'b': expected HOST:PORT",
        ),
        (
            '{"cluster": {"worker": ["a:1", "a:1"]}, "task": {"type": "worker", "index": 0}}',
            "names a:1 twice",
        ),
    ],
)
def test_what_tf_config_cannot_mean(text, says, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(UsageError) as caught:
        named_cluster()
    assert str(caught.value).startswith("TF_CONFIG")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def slurm(monkeypatch, **values):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    for name, value in values.items():
        monkeypatch.setenv(f"SLURM_{name}", value)


def test_the_tasks_of_srun_stand_in_the_order_of_their_nodes(monkeypatch):
    step = {
        "STEP_NUM_TASKS": "5", "STEP_NODELIST": "gpu[9-10],login", "STEP_TASKS_PER_NODE": "2(x2),1",
        "PROCID": "3", "JOB_ID": "7",
    }  # fmt: skip
    slurm(monkeypatch, **step)
    found = named_cluster()
    # In the order of the alphabet, gpu10 would come before gpu9.
    assert found.addresses == ("gpu9:20448", "gpu9:20449", "gpu10:20448", "gpu10:20449", "login:20448")
    assert (found.index, found.named_by) == (3, "SLURM")
    slurm(monkeypatch, STEP_NODELIST="n[008-011,20]-ib", STEP_TASKS_PER_NODE="1(x5)")
    hosts = [address.partition(":")[0] for address in named_cluster().addresses]
    assert hosts == ["n008-ib", "n009-ib", "n010-ib", "n011-ib", "n20-ib"]
    slurm(monkeypatch, STEP_TASKS_PER_NODE="1(x4)")
    with pytest.raises(UsageError, match="srun started 5 tasks, and SLURM's variables do not say where"):
        named_cluster()
    slurm(monkeypatch, STEP_NUM_TASKS="1")
    assert named_cluster() is None


def test_a_process_ends_as_it_was_to_whatever_has_become_of_its_temporary_files(tmp_path):
    file = tmp_path / "made.py"
    file.touch()
    compiled = Path(importlib.util.cache_from_source(file))
    compiled.parent.mkdir()
    compiled.touch()
    code = f"""
import sys, types
from trainer.runtime import leave
for name, place in (("a", {str(tmp_path)!r}), ("b", "/none/there.py"), ("c", {str(file)!r})):
    module = types.ModuleType(name)
    module.__file__ = place
    sys.modules["__autograph_generated_file" + name] = module
leave(75)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 75
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("started", "called"),
    [("/home/me/.local/bin/hub-trainer", "hub-trainer"), ("trainer/main.py", "python -m trainer.main")],
)
def test_the_program_is_called_as_it_was_started(started, called, run_main, monkeypatch):
    monkeypatch.setattr(sys, "argv", [started])
    assert f"\nusage: {called} [COMMAND] " in run_main("--help")[1]
    assert f"\nusage: {called} recipes [--FLAG=VALUE ...] NAME ...\n" in run_main("recipes", "--help")[1]
