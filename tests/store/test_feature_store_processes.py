"""The feature store between processes that wait, die and read, and on disks that are full or read-only."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.store.test_feature_store import digest, names
from trainer.store.feature_store import FeatureStore

PROJECT = Path(__file__).parent.parent.parent
# Arguments: folder, name of the key, value of the numbers [4, 3], where to wait for a line of input.
PROGRAM = """
import logging, pathlib, sys
import numpy as np
from trainer.store.feature_store import FeatureCacheError, FeatureStore

logging.basicConfig(stream=sys.stdout, format="%(message)s", level=logging.INFO)
root, name, value, pause = sys.argv[1:]

def compute():
    block = np.full((2, 3), float(value), np.float32)
    yield block
    print("computing", flush=True)
    if pause == "computing":
        sys.stdin.readline()
    yield block

store = FeatureStore(pathlib.Path(root), limit_bytes=2 * (128 + 48))
try:
    kept = store.get({"name": name}, num_rows=4, shape=(3,), compute=compute, describe=f"features {name}")
except FeatureCacheError as error:
    sys.exit(f"FeatureCacheError: {error}")
print("got", kept.whole().mean(), flush=True)
if pause == "reading":
    sys.stdin.readline()
    print("read", kept.rows(np.array([1, 3])).tolist(), flush=True)
"""


class Process:
    """One that runs PROGRAM."""

    def __init__(self, root, name="x", value=1, pause=""):
        self.popen = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(root), name, str(value), pause],
            cwd=PROJECT,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def line(self):
        return self.popen.stdout.readline().strip()

    def rest(self):
        """Lets it go on, and returns what else it says."""
        out, _ = self.popen.communicate("\n", timeout=60)
        return out.splitlines()

    def kill(self):
        self.popen.kill()
        self.popen.communicate(timeout=60)
        assert self.popen.returncode == -signal.SIGKILL


@pytest.fixture
def root(tmp_path):
    return tmp_path / "features"


@pytest.fixture
def start(root):
    started = []

    def start(**options):
        started.append(Process(root, **options))
        return started[-1]

    yield start
    for process in started:
        with process.popen:
            process.popen.kill()


def get(root, name, value=1.0):
    """Returns the mean of the features and whether this process computed them."""
    computed = []

    def compute():
        computed.append(name)
        yield np.full((4, 3), value, np.float32)

    store = FeatureStore(root, limit_bytes=2 * (128 + 48))
    kept = store.get({"name": name}, num_rows=4, shape=(3,), compute=compute, describe=name)
    return kept.whole().mean(), bool(computed)


def test_one_computes_and_the_others_wait_and_read(start, root):
    writer = start(value=1, pause="computing")
    assert writer.line() == "computing"
    waiters = [start(value=2), start(value=3)]
    for waiter in waiters:
        said = waiter.line()
        assert said.startswith(f"feature cache, features x: waiting for process {writer.popen.pid} on ")
    assert writer.rest() == ["got 1.0"]
    # One of them may wait a moment more for the other.
    assert all([line for line in w.rest() if "waiting" not in line] == ["got 1.0"] for w in waiters)
    assert names(root) == [digest({"name": "x"})]


def test_who_waits_takes_over_from_a_writer_that_dies(start, root):
    writer = start(value=1, pause="computing")
    assert writer.line() == "computing"
    waiter = start(value=2)
    assert "waiting for process" in waiter.line()
    writer.kill()
    assert waiter.rest() == ["computing", "got 2.0"]
    assert names(root) == [digest({"name": "x"})]


def test_what_a_dead_process_left_is_removed_and_what_a_living_one_writes_is_not(start, root):
    dead, living = start(name="dead", pause="computing"), start(name="living", pause="computing")
    assert (dead.line(), living.line()) == ("computing", "computing")
    dead.kill()
    assert sum(name.endswith(".tmp") for name in names(root)) == 2
    assert sum(name.endswith(".lock") for name in names(root)) == 2
    # As old as can be: age tells nothing.
    for path in root.iterdir():
        os.utime(path, (0, 0))
    assert get(root, "mine") == (1, True)
    left = [name for name in names(root) if name != digest({"name": "mine"})]
    assert len(left) == 2
    assert all(digest({"name": "living"}) in name for name in left)
    assert living.rest() == ["got 1.0"]
    assert names(root) == sorted(digest({"name": name}) for name in ("living", "mine"))
    assert get(root, "living") == (1, False)


def test_who_reads_goes_on_when_the_entry_is_removed_to_make_room(start, root):
    reader = start(name="old", value=7, pause="reading")
    assert (reader.line(), reader.line()) == ("computing", "got 7.0")
    for name in "ab":
        get(root, name)
    assert names(root) == sorted(digest({"name": name}) for name in "ab")
    assert reader.rest()[-1] == "read [[7.0, 7.0, 7.0], [7.0, 7.0, 7.0]]"


def test_several_that_finish_together_keep_the_limit(start, root):
    writers = [start(name=str(number), pause="computing") for number in range(4)]
    assert [writer.line() for writer in writers] == ["computing"] * 4
    for writer in writers:
        writer.popen.stdin.write("\n")
        writer.popen.stdin.flush()
    assert all("got 1.0" in writer.rest() for writer in writers)
    assert len(names(root)) == 2


# --- Disks


def in_own_namespace(script, *arguments):
    """Runs a shell script whose mounts nobody else sees; skips where that is not possible."""
    if not shutil.which("unshare"):
        pytest.skip("there is no unshare here")
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", *map(str, arguments)],
        cwd=PROJECT,
        text=True,
        capture_output=True,
        timeout=60,
    )
    if done.returncode == 99 or done.stderr.startswith("unshare:"):
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
    return done


ON_FULL_DISK = """
import pathlib, shutil, sys
import numpy as np
from trainer.store.feature_store import FeatureCacheError, FeatureStore

root = pathlib.Path(sys.argv[1]) / "features"
store = FeatureStore(root, limit_bytes=10**8)
block = np.random.default_rng(0).normal(size=(8, 1024)).astype(np.float32)

def get(name, blocks):
    return store.get(
        {"name": name}, num_rows=8 * blocks, shape=(1024,), compute=lambda: (block for _ in range(blocks)),
        describe=name,
    )

def refused(name):
    try:
        get(name, 32)
    except FeatureCacheError as error:
        print(error)
    print(sorted(path.name for path in root.iterdir()))

get("small", 2)
usage = shutil.disk_usage(root)._replace(free=10**9)
refused("told before")
shutil.disk_usage = lambda path: usage
refused("found out")
store.get({"name": "small"}, num_rows=16, shape=(1024,), compute=None, describe="")
print(len(store.entries()))
"""


def test_a_full_disk_is_told_and_leaves_the_others_intact(tmp_path):
    script = 'mount -t tmpfs -o size=1m tmpfs "$1" || exit 99; exec "$2" -c "$3" "$1"'
    done = in_own_namespace(script, tmp_path, sys.executable, ON_FULL_DISK)
    assert (done.returncode, done.stderr) == (0, "")
    before, kept, writing, still_kept, entries = done.stdout.splitlines()
    # 256 rows of 4 KiB, the header, and 64 KiB to spare.
    assert before.startswith("told before: the feature cache needs 1,114,240 bytes in ")
    assert "are free; make room" in before
    assert writing.startswith("found out: the feature cache cannot write 1,048,704 bytes to ")
    assert "No space left on device" in writing
    assert kept == still_kept == str([digest({"name": "small"})])
    assert entries == "1"


def test_a_limit_on_the_size_of_files_is_told(tmp_path):
    limited = (
        f"import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))\n{ON_FULL_DISK}"
    )
    done = subprocess.run(
        [sys.executable, "-c", limited, str(tmp_path)],
        cwd=PROJECT,
        text=True,
        capture_output=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    first, kept, second, still_kept, entries = done.stdout.splitlines()
    for message in (first, second):
        assert "cannot write 1,048,704 bytes to" in message
        assert "File too large" in message
    assert kept == still_kept == str([digest({"name": "small"})])
    assert entries == "1"


def test_in_a_read_only_folder_what_is_there_can_be_read(root):
    get(root, "kept", 5)
    get(root, "damaged")
    with open(root / digest({"name": "damaged"}) / "features.npy", "r+b") as file:
        file.write(b"x")
    script = (
        'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" || exit 99; '
        'for name in kept other damaged; do "$2" -c "$3" "$1" $name 1 "" 2>&1; done'
    )
    done = in_own_namespace(script, root, sys.executable, PROGRAM)
    kept, other, warning, damaged = done.stdout.splitlines()
    assert kept == "got 5.0"
    assert other.startswith(
        f"FeatureCacheError: features other: the feature cache cannot write 176 bytes to {root}"
    )
    assert "Read-only file system" in other
    assert "does not begin as an array" in warning
    assert "Read-only file system" in damaged


# --- Speed and memory


READ_ALL = """
import pathlib, resource, sys
import numpy as np
from trainer.store.feature_store import FeatureStore

def compute():
    block = np.ones((1024, 2048), np.float32)
    for _ in range(8):
        yield block

def get():
    store = FeatureStore(pathlib.Path(sys.argv[1]), limit_bytes=10**9)
    return store.get({}, num_rows=8192, shape=(2048,), compute=compute, describe="")

if sys.argv[2] == "write":
    sys.exit(get().close())
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
kept = get()
for start in range(0, 8192, 32):
    kept.rows(np.arange(start, start + 32))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_reading_does_not_hold_the_file_in_memory(root):
    def run(mode):
        command = [sys.executable, "-c", READ_ALL, str(root), mode]
        return subprocess.run(command, cwd=PROJECT, text=True, capture_output=True, check=True).stdout

    run("write")
    # The file has 64 MiB.
    assert int(run("read")) < 8 * 1024


def test_a_batch_of_rows_is_read_in_a_fraction_of_a_millisecond(root):
    rows = np.random.default_rng(0).normal(size=(2000, 2048)).astype(np.float32)
    store = FeatureStore(root, limit_bytes=10**9)
    kept = store.get({}, num_rows=2000, shape=(2048,), compute=lambda: iter([rows]), describe="")
    at, secs = np.random.default_rng(1).integers(0, 2000, (100, 32)), []
    for positions in at:
        start = time.perf_counter()
        kept.rows(positions)
        secs.append(time.perf_counter() - start)
    # 60 microseconds on an idle machine.
    assert sorted(secs)[50] < 1e-3
