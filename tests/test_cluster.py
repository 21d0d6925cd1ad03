"""Training with several workers: the same numbers as with one, stopped, killed, and gone on with."""

import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import make_flower_folder
from tests.helpers.alone import assert_scored_alone, assert_steps_alone
from tests.helpers.feature_runs import assert_same_numbers, entries, left, tiny_net
from tests.helpers.processes import ROOT
from tests.helpers.small_disks import small_disk
from tests.helpers.undrawn import PLAIN, undrawn
from tests.helpers.workers import Workers, tf_config

# Of 4, 4 and 3 examples: of the last batch, worker 1 has one and padding. What would show a difference:
# kept features, BatchNorm, what is drawn, mixed, averaged.
PHASES = (
    "--phase=name=kept; for=1epochs; train=head; lr=0.1",
    "--phase=name=moving; for=4steps; train=all; bn=batch; lr=0.05; optimizer=sgd",
    "--phase=name=mixed; for=1epochs; train=all; augment=flip,crop(0.6),mixup(1); average=ema(0.9); lr=0.01",
)
STEPS, SHORT_STEPS = 10, 7


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    make_flower_folder(folder)
    # A rare class: one picture in each split.
    make_flower_folder(folder, n=3, classes=("red", "green", "blue", "grey"))
    return [
        *PHASES, f"--source=folder:{folder}", "--backbone=keras:TinyNet", "--weights=none", "--image_size=8",
        "--splits=11,5,5", "--batch_size=4", "--head=linear", "--dropout=0.5", "--precision=float32",
        "--save_every=1steps", "--keep_checkpoints=100", "--evaluate_every=3steps", "--log_every=1steps",
        "--wait_for_workers_secs=120",
        *PLAIN,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def of_two(flags, tmp_path_factory):
    """The folder of a run of two workers, each with a cache of its own."""
    folder = tmp_path_factory.mktemp("two")
    own = [[f"--workdir={folder / 'run'}", f"--cache_dir={folder / 'cache0'}"]]
    # What is not the chief's stays empty.
    own.append([f"--workdir={folder / 'nobody'}", f"--cache_dir={folder / 'cache1'}"])
    ended = Workers(flags, own=own).ended()
    assert [status for status, _, _ in ended] == [0, 0], ended
    return folder, ended


def test_each_step_and_the_report_are_those_of_one_worker(of_two, tmp_path):
    """More of what a run may be made of is in test_cluster_matrix.py."""
    with tiny_net(), undrawn():
        assert assert_steps_alone(of_two[0] / "run", tmp_path / "cache") == STEPS
        assert_scored_alone(of_two[0] / "run", tmp_path / "report", f"--cache_dir={tmp_path / 'cache'}")


# `make test` has what is above.
@pytest.mark.slow
def test_two_workers_come_to_what_one_comes_to(flags, of_two, tmp_path, run_main):
    with tiny_net(), undrawn():
        status, out, err = run_main(
            "train", *flags, f"--workdir={tmp_path / 'run'}", f"--cache_dir={tmp_path / 'cache'}"
        )
    assert status == 0, (out, err)
    assert_same_numbers(of_two[0] / "run", tmp_path / "run")


def test_only_the_chief_writes_and_tells(of_two):
    folder, [(_, out, err), (_, other, other_err)] = of_two
    assert err == other_err == ""
    assert out.count("validation loss") == 5
    assert "tells how the run goes" in other
    assert "step " not in other
    assert not (folder / "nobody").exists()
    assert [*(folder / "cache1" / "workers").iterdir()] == []
    # All features at both, each a half of the network's work.
    first, second = (
        {digest: data for (_, digest), (*_, data) in entries(folder / name).items()}
        for name in ("cache0", "cache1")
    )
    assert first == second
    assert len(first) == 3


# Six processes that train: their start alone takes too long for every day.
@pytest.mark.slow
def test_stopped_and_killed_a_run_goes_on_to_the_same_numbers(flags, of_two, tmp_path):
    flags = [*flags, f"--workdir={tmp_path / 'run'}", f"--cache_dir={tmp_path / 'cache'}"]
    ended = Workers(flags, env={1: {"WORKER_ENDS": "2 SIGTERM"}}).ended()
    assert [status for status, _, _ in ended] == [75, 75], ended
    for _, _, err in ended:
        assert err.startswith("SIGTERM to worker 1 (127.0.0.1:")
        assert err.count("stopped at step ") == err.count("\n") == 1
    at = {err.partition("stopped at step ")[2].partition(" ")[0] for _, _, err in ended}
    assert len(at) == 1

    workers = Workers(flags, env={1: {"WORKER_ENDS": "7 SIGKILL"}})
    [(status, out, err), (killed, _, _)] = workers.ended()
    assert (status, killed) == (75, -9), err
    assert f"goes on from step {at.pop()} of {STEPS}" in out
    assert err.startswith(f"trainer: worker 1 ({workers.addresses[1]}) is gone: ")
    assert err.endswith(". Run the same command on all workers to continue from step 7\n")

    ended = Workers(flags).ended()
    assert [status for status, _, _ in ended] == [0, 0], ended
    was, now = left(of_two[0] / "run"), left(tmp_path / "run")
    assert now.keys() == was.keys()
    assert {name for name in was if was[name] != now[name]} == set()


@pytest.fixture(scope="module")
def short(flags, tmp_path_factory):
    """(flags, folder of what two workers have trained by them, how many seconds that took): 7 steps."""
    folder = tmp_path_factory.mktemp("short")
    of_short = [flag for flag in flags if flag not in PHASES[2:]]
    begun = time.monotonic()
    own = [[f"--workdir={folder / 'run'}", f"--cache_dir={folder / f'cache{index}'}"] for index in range(2)]
    ended = Workers(of_short, own=own).ended()
    assert [status for status, _, _ in ended] == [0, 0], ended
    return of_short, folder, time.monotonic() - begun


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40))
def test_whoever_ends_whenever_the_run_goes_on_to_the_same_numbers(seed, short, tmp_path, record_property):
    """Of worker and signal each has its turn; the moment is drawn, by steps or by the clock."""
    flags, before, secs = short
    drawn, who = random.Random(seed), seed % 2
    end = ("SIGKILL", "SIGTERM", "SIGSTOP")[seed % 3]
    is_warm, by_steps = seed // 6 % 2 == 1, seed // 12 % 2 == 1
    caches = [tmp_path / (f"cache{index}" if drawn.random() < 0.5 else "cache") for index in range(2)]
    if is_warm:
        for index, cache in enumerate(caches):
            shutil.copytree(before / f"cache{index}", cache, dirs_exist_ok=True)
    own = [[f"--workdir={tmp_path / 'run'}", f"--cache_dir={cache}"] for cache in caches]
    at = drawn.randrange(1, SHORT_STEPS) if by_steps else drawn.uniform(0, 1.1) * secs
    workers = Workers(flags, own=own, env={who: {"WORKER_ENDS": f"{at} {end}"}} if by_steps else {})
    if not by_steps:
        time.sleep(at)
        if workers.programs[who].poll() is None:
            workers.programs[who].send_signal(getattr(signal, end))
    begun = time.monotonic()
    ended = workers.ended(hanging=who if end == "SIGSTOP" else None)
    record_property("ended", [end, who, is_warm, at, [status for status, *_ in ended]])
    record_property("secs", time.monotonic() - begun)
    status, _, err = ended[1 - who]
    if by_steps:
        assert status == 75 or "Nothing was saved" in err, (end, ended)
        if end != "SIGTERM":
            assert f"worker {who} ({workers.addresses[who]}) " in err, (end, err)
    elif status:
        assert status in (1, 75), ended
        assert err.count("\n") <= 1, ended
    if [status for status, _, _ in ended] != [0, 0]:
        ended = Workers(flags, own=own).ended()
    assert [status for status, _, _ in ended] == [0, 0], (end, ended)
    was, now = left(before / "run"), left(tmp_path / "run")
    assert {name for name in {*was, *now} if was.get(name) != now.get(name)} == set(), end


@pytest.mark.slow
def test_other_pictures_are_named(flags, tmp_path):
    make_flower_folder(tmp_path / "pictures")
    pictures = make_flower_folder(tmp_path / "pictures", n=3, classes=("red", "green", "blue", "grey"))
    (pictures / "red" / "000.jpg").write_bytes((pictures / "red" / "001.jpg").read_bytes())
    [source] = [flag for flag in flags if flag.startswith("--source=")]
    rest = [*(flag for flag in flags if flag != source), f"--workdir={tmp_path / 'run'}"]
    workers = Workers(rest, own=[[source], [f"--source=folder:{pictures}"]])
    ended = workers.ended()
    assert [status for status, _, _ in ended] == [1, 1], ended
    told = f"worker 1 ({workers.addresses[1]}) has other pictures than worker 0 ("
    assert all(told in err for _, _, err in ended), ended
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_one_comes_late_and_one_never_does(short, tmp_path):
    flags, before, _ = short
    own = [[f"--workdir={tmp_path / 'run'}"], [f"--workdir={tmp_path / 'nobody'}"]]
    never = Workers(
        [*flags, "--wait_for_workers_secs=12"], count=3, own=[*own, own[1]], late_secs={2: math.inf}
    )
    told = f"trainer: worker 2 ({never.addresses[2]}) did not come within 12 s: start the same command there"
    for status, out, err in never.ended():
        assert status == 1
        assert err.startswith(told)
        assert f"waiting:     for worker 2 ({never.addresses[2]}), 10 of at most 12 s" in out
    assert not (tmp_path / "run").exists()
    ended = Workers(flags, own=own, late_secs={1: 15.0}).ended()
    assert [status for status, _, _ in ended] == [0, 0], ended
    assert "waiting:     for worker 1 (" in ended[0][1]
    assert left(tmp_path / "run") == left(before / "run")


@pytest.mark.slow
def test_other_code_is_named(short, tmp_path):
    flags = [*short[0], f"--workdir={tmp_path / 'run'}"]
    shutil.copytree(ROOT / "trainer", tmp_path / "other" / "trainer")
    with open(tmp_path / "other" / "trainer" / "loop" / "losses.py", "a") as file:
        file.write("# Nothing is computed otherwise.\n")
    # The network of these tests is there for both.
    shutil.copytree(ROOT / "tests", tmp_path / "other" / "tests")
    workers = Workers(flags, late_secs={1: math.inf})
    other = subprocess.run(
        [sys.executable, "-m", "tests.helpers.worker_program", *flags],
        cwd=tmp_path / "other",
        env={**os.environ, "TF_CONFIG": tf_config(workers.addresses, 1)},
        capture_output=True,
        text=True,
    )
    [(status, _, err)] = workers.ended()
    told = "trainer: the workers are not about to do the same: the SHA-256 of this program's code is "
    assert (status, other.returncode) == (2, 2), (err, other.stderr)
    assert err.startswith(told)
    assert other.stderr.splitlines()[-1].startswith(told)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_plugin_that_makes_a_tensor_when_it_is_imported_is_told_of(short, tmp_path):
    plugin = tmp_path / "early.py"
    plugin.write_text("import tensorflow as tf\n\nMEAN = tf.constant([0.5])\n")
    ended = Workers([*short[0], f"--workdir={tmp_path / 'run'}", f"--plugin={plugin}"]).ended()
    assert {status for status, _, _ in ended} <= {1, 2}
    assert any("plugin must not make tensors while it is imported" in err for _, _, err in ended), ended
    assert not any("Traceback" in err for _, _, err in ended), ended


@pytest.mark.slow
@pytest.mark.parametrize("who", [0, 1])
def test_a_full_disk_of_one_is_named_by_all(who, short, tmp_path):
    flags, before, _ = short
    flags = [*flags, "--save_every=1steps", "--keep_checkpoints=100"]
    with small_disk(tmp_path / "disk", size_kb=300) as grow:
        places = [tmp_path / "disk" if index == who else tmp_path for index in range(2)]
        own = [
            [f"--workdir={place / 'run'}", f"--cache_dir={place / f'cache{index}'}"]
            for index, place in enumerate(places)
        ]
        workers = Workers(flags, own=own)
        ended = workers.ended()
        (status, _, err), (other, _, other_err) = ended[who], ended[1 - who]
        assert status == 1, ended
        # A checkpoint, or what is written at the end.
        assert re.search("was not saved: |No space left on device: ", err), ended
        assert other == 75, ended
        assert other_err.startswith(f"trainer: worker {who} ({workers.addresses[who]}) has ended: ")
        assert re.search("was not saved: |No space left on device: ", other_err), ended
        grow(100_000)
        ended = Workers(flags, own=own).ended()
        assert [status for status, _, _ in ended] == [0, 0], ended
        assert re.search("goes on from step | is finished", ended[0][1]), ended
        assert_same_numbers(places[0] / "run", before / "run")
