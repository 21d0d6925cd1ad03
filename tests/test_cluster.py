"""Training with several workers: the same numbers as with one, stopped, killed, and gone on with."""

import random
import signal
import time

import pytest

from tests.conftest import make_flower_folder
from tests.helpers.feature_runs import assert_same_numbers, entries, left, tiny_net
from tests.helpers.undrawn import PLAIN, undrawn
from tests.helpers.workers import Workers

# Of 4, 4 and 3 examples: of the last batch, worker 1 has one and padding. What would show a difference:
# kept features, BatchNorm, what is drawn, mixed, averaged.
PHASES = (
    "--phase=name=kept; for=1epochs; train=head; lr=0.1",
    "--phase=name=moving; for=4steps; train=all; bn=batch; lr=0.05; optimizer=sgd",
    "--phase=name=mixed; for=1epochs; train=all; augment=flip,crop(0.6),mixup(1); average=ema(0.9); lr=0.01",
)
STEPS = 10


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    make_flower_folder(folder)
    # A rare class: one picture in each split.
    make_flower_folder(folder, n=3, classes=("red", "green", "blue", "grey"))
    return [
        *PHASES, f"--source=folder:{folder}", "--backbone=keras:TinyNet", "--weights=none", "--image_size=8",
        "--splits=11,5,5", "--batch_size=4", "--head=linear", "--dropout=0.5", "--precision=float32",
        "--save_every=3steps", "--evaluate_every=3steps", "--log_every=1steps", "--wait_for_workers_secs=120",
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


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40))
def test_whoever_ends_whenever_the_run_goes_on_to_the_same_numbers(seed, flags, of_two, tmp_path):
    drawn = random.Random(seed)
    who, shares_cache = drawn.randrange(2), drawn.random() < 0.5
    caches = [
        f"--cache_dir={tmp_path / ('cache' if shares_cache else f'cache{index}')}" for index in range(2)
    ]
    flags, own = [*flags, f"--workdir={tmp_path / 'run'}"], [[cache] for cache in caches]
    if seed % 2:
        # At any moment, from before they meet to after the report.
        workers = Workers(flags, own=own)
        time.sleep(drawn.uniform(0, 60))
        if workers.programs[who].poll() is None:
            workers.programs[who].send_signal(signal.SIGKILL)
        ended, end = workers.ended(), "SIGKILL"
    else:
        end = drawn.choice(["SIGKILL", "SIGTERM", "SIGSTOP", "raise"])
        workers = Workers(flags, own=own, env={who: {"WORKER_ENDS": f"{drawn.randrange(1, STEPS)} {end}"}})
        begun = time.monotonic()
        ended = workers.ended(hanging=who if end == "SIGSTOP" else None)
        status, _, err = ended[1 - who]
        assert status == 75 or "Nothing was saved" in err, (end, ended)
        if end != "SIGTERM":
            assert f"worker {who} ({workers.addresses[who]}) " in err, (end, err, time.monotonic() - begun)
    if [status for status, _, _ in ended] != [0, 0]:
        ended = Workers(flags, own=own).ended()
    assert [status for status, _, _ in ended] == [0, 0], (end, ended)
    was, now = left(of_two[0] / "run"), left(tmp_path / "run")
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
