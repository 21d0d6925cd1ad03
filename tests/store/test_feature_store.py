"""The feature store in one process: what it keeps, what it refuses, what it removes."""

import datetime
import errno
import hashlib
import itertools
import json
import os
import re
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from trainer.store import array_file, feature_store
from trainer.store import feature_store as feature_entry
from trainer.store import lock as file_lock
from trainer.store.array_file import Damaged
from trainer.store.feature_store import FeatureCacheError, FeatureStore

KEY = {"network": {"weights": "ab12", "cut": "features"}, "view": None, "size": [8, 8], "rate": 0.5, "n": 1}
ROWS = np.random.default_rng(0).normal(size=(7, 2, 3)).astype(np.float32)
HEADER_BYTES = 128
FILE_BYTES = HEADER_BYTES + ROWS.nbytes


class Computing:
    """Yields ROWS in two blocks and counts how often."""

    def __init__(self, rows=ROWS):
        self.rows, self.times = rows, 0

    def __call__(self):
        self.times += 1
        yield self.rows[:4]
        yield self.rows[4:]


@pytest.fixture
def root(tmp_path):
    return tmp_path / "cache" / "features"


@pytest.fixture
def store(root):
    return FeatureStore(root, limit_bytes=10**6)


def get(store, key=KEY, compute=None, **options):
    options = {"num_rows": 7, "shape": (2, 3), "describe": "train, view 0", **options}
    return store.get(key, compute=compute or Computing(), **options)


def names(root):
    return sorted(path.name for path in root.iterdir()) if root.exists() else []


def digest(key):
    text = json.dumps(key, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def bits(path):
    return {file.name: file.read_bytes() for file in path.iterdir()}


# --- What is kept


def test_features_are_computed_once_and_read_back(store, root):
    compute = Computing()
    for _ in range(2):
        kept = get(store, compute=compute)
        assert (kept.shape, kept.dtype, kept.nbytes) == ((7, 2, 3), np.float32, ROWS.nbytes)
        np.testing.assert_array_equal(kept.whole(), ROWS)
        at = np.array([6, 0, 0, 3])
        assert kept.rows(at).dtype == np.float32
        np.testing.assert_array_equal(kept.rows(at), ROWS[at])
        assert kept.rows(np.zeros(0, np.int64)).shape == (0, 2, 3)
        kept.close()
    assert compute.times == 1
    assert names(root) == [digest(KEY)]


def test_whether_there_is_an_entry_is_told_without_reading_it(store, root):
    assert not store.has(KEY)
    store.get(KEY, num_rows=7, shape=(2, 3), compute=Computing(), describe="")
    assert store.has(KEY)
    assert not store.has({**KEY, "n": 2})
    for path in root.glob("*/features.npy"):
        path.write_bytes(b"")
    assert store.has(KEY)


def test_what_lies_on_disk_can_be_read_without_this_program(store, root):
    get(store)
    folder = root / digest(KEY)
    assert names(folder) == ["entry.json", "features.npy"]
    mapped = np.load(folder / "features.npy", mmap_mode="r")
    assert (mapped.dtype, mapped.shape) == (np.float32, (7, 2, 3))
    np.testing.assert_array_equal(mapped, ROWS)
    entry = json.loads((folder / "entry.json").read_text())
    created = datetime.datetime.fromisoformat(entry.pop("created"))
    assert abs(datetime.datetime.now(datetime.UTC) - created) < datetime.timedelta(minutes=5)
    assert entry == {
        "format": 1,
        "describe": "train, view 0",
        "key": KEY,
        "shape": [7, 2, 3],
        "dtype": "float32",
        "bytes": ROWS.nbytes,
        "sha256": hashlib.sha256(ROWS.tobytes()).hexdigest(),
    }


@pytest.mark.parametrize("shape", [(0, 5), (3,), (1,), (12345, 1), (2, 0)])
def test_the_header_is_that_of_numpy(shape, store, tmp_path):
    rows = np.zeros(shape, np.float32)
    np.save(tmp_path / "theirs.npy", rows)
    kept = store.get({}, num_rows=shape[0], shape=shape[1:], compute=lambda: iter([rows]), describe="")
    assert kept.whole().shape == shape
    ours = (tmp_path / "cache" / "features" / digest({}) / "features.npy").read_bytes()
    assert ours == (tmp_path / "theirs.npy").read_bytes()


def test_blocks_need_not_lie_in_one_piece(store):
    kept = get(store, compute=lambda: iter([np.asfortranarray(ROWS)]))
    np.testing.assert_array_equal(kept.whole(), ROWS)
    numbers = np.arange(10, dtype=np.float32)[::2]
    kept = store.get({}, num_rows=5, shape=(), compute=lambda: iter([numbers]), describe="")
    np.testing.assert_array_equal(kept.rows(np.array([4, 1])), [8, 2])


def test_everything_is_on_disk_before_it_has_its_name(store, root, monkeypatch):
    said, fsync, replace = [], os.fsync, os.replace

    def tell_fsync(handle):
        said.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        return fsync(handle)

    def tell_rename(source, target):
        said.append("rename")
        scratch.append(source.name)
        return replace(source, target)

    scratch = []
    monkeypatch.setattr(feature_store.os, "fsync", tell_fsync)
    monkeypatch.setattr(feature_store.os, "replace", tell_rename)
    get(store)
    assert said == ["features.npy", "entry.json", *scratch, "rename", root.name]


def test_the_order_of_a_key_does_not_matter_and_tuples_are_lists(store):
    compute = Computing()
    get(store, compute=compute)
    get(store, dict(reversed(KEY.items())) | {"size": (8, 8)}, compute)
    assert compute.times == 1


@pytest.mark.parametrize(
    "change",
    [
        {"network": {"weights": "ab13", "cut": "features"}},
        {"network": {"weights": "ab12"}},
        {"view": 0},
        {"view": False},
        {"size": [8, 9]},
        {"size": [8]},
        {"rate": 0.5000000000000001},
        {"n": 1.0},
        {"n": True},
        {"n": "1"},
        {"more": None},
    ],
)
def test_another_value_anywhere_is_another_entry(store, root, change):
    get(store)
    other = Computing(-ROWS)
    np.testing.assert_array_equal(get(store, KEY | change, other).whole(), -ROWS)
    np.testing.assert_array_equal(get(store).whole(), ROWS)
    assert other.times == 1
    assert len(names(root)) == 2


def test_a_key_that_is_no_json_is_refused(store, root):
    with pytest.raises(TypeError):
        get(store, {"path": Path("x")})
    with pytest.raises(ValueError, match="not JSON compliant"):
        get(store, {"rate": float("nan")})
    assert names(root) == []


def test_the_disk_may_take_and_give_less_at_a_time(store, root, monkeypatch):
    write, preadv = os.write, os.preadv
    monkeypatch.setattr(array_file.os, "write", lambda handle, data: write(handle, data[:7]))

    def read_less(handle, views, at):
        return preadv(handle, [memoryview(views[0])[:5]], at)

    monkeypatch.setattr(array_file.os, "preadv", read_less)
    kept = get(store)
    np.testing.assert_array_equal(kept.whole(), ROWS)
    np.testing.assert_array_equal(kept.rows(np.array([5, 2])), ROWS[[5, 2]])
    monkeypatch.undo()
    np.testing.assert_array_equal(np.load(root / digest(KEY) / "features.npy"), ROWS)


def test_several_that_have_no_room_together_are_refused_before_any_is_computed(root, monkeypatch):
    store = FeatureStore(root, limit_bytes=10 * FILE_BYTES)
    free = 3 * FILE_BYTES
    usage = shutil.disk_usage(root.parents[1])._replace(free=free)
    monkeypatch.setattr(feature_store.shutil, "disk_usage", lambda path: usage)
    store.require_room(5 * FILE_BYTES, missing_bytes=free, describe="all")
    with pytest.raises(FeatureCacheError, match=r"all: the feature cache needs .* are free; make room"):
        store.require_room(5 * FILE_BYTES, missing_bytes=free + 1, describe="all")
    with pytest.raises(FeatureCacheError, match=r"all: .* are more than the feature cache may hold"):
        store.require_room(10 * FILE_BYTES + 1, missing_bytes=0, describe="all")


def test_who_waits_for_what_another_computes_may_leave(root):
    def leave():
        raise KeyboardInterrupt

    compute, waiting = Computing(), FeatureStore(root, limit_bytes=10**6, while_waiting=leave)
    root.mkdir(parents=True)
    with file_lock.file_lock(root / f"{digest(KEY)}.lock"), pytest.raises(KeyboardInterrupt):
        get(waiting, compute=compute)
    assert (compute.times, names(root)) == (0, [])


# --- Reading


def test_a_position_outside_is_refused(store):
    kept = get(store)
    for position in (-1, 7):
        with pytest.raises(IndexError, match=f"row {position} of 7"):
            kept.rows(np.array([0, position]))


def test_after_closing_nothing_is_read(store):
    kept = get(store)
    kept.close()
    kept.close()
    # Takes the number that the file had.
    with open(__file__, "rb"), pytest.raises(ValueError, match="is closed"):
        kept.rows(np.array([0]))


def test_dropping_the_last_reference_closes_the_file(store):
    before = len(os.listdir("/proc/self/fd"))
    kept = [get(store) for _ in range(3)]
    assert len(os.listdir("/proc/self/fd")) == before + 3
    kept.clear()
    assert len(os.listdir("/proc/self/fd")) == before


def test_threads_read_the_same_file(store):
    rows = np.random.default_rng(1).normal(size=(500, 64)).astype(np.float32)
    kept = store.get({}, num_rows=500, shape=(64,), compute=lambda: iter([rows]), describe="")
    wrong = []

    def read(seed):
        rng = np.random.default_rng(seed)
        for _ in range(100):
            at = rng.integers(0, 500, 32)
            if not np.array_equal(kept.rows(at), rows[at]):
                wrong.append(seed)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert wrong == []


def test_a_file_cut_short_while_in_use_is_an_error_and_no_numbers(store, root):
    kept = get(store)
    os.truncate(root / digest(KEY) / "features.npy", FILE_BYTES - 1)
    np.testing.assert_array_equal(kept.rows(np.array([0])), ROWS[:1])
    for read in (kept.whole, lambda: kept.rows(np.array([6]))):
        with pytest.raises(FeatureCacheError, match=r"features\.npy was cut short while in use"):
            read()


# --- Damage


def flip(path, bit):
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def change_entry(**changes):
    def change(folder):
        entry = json.loads((folder / "entry.json").read_text())
        (folder / "entry.json").write_text(json.dumps(entry | changes))

    return change


def to_folder(name):
    def change(folder):
        (folder / name).unlink()
        (folder / name).mkdir()

    return change


def to_file(folder):
    shutil.rmtree(folder)
    folder.write_text("a file")


DAMAGES = {
    "a bit of the header": (lambda f: flip(f / "features.npy", 8 * 30), "does not begin as an array"),
    "the first bit": (lambda f: flip(f / "features.npy", 8 * HEADER_BYTES), "the numbers in"),
    "the last bit": (lambda f: flip(f / "features.npy", 8 * FILE_BYTES - 1), "the numbers in"),
    "short": (lambda f: os.truncate(f / "features.npy", FILE_BYTES - 1), "has 295 bytes, expected 296"),
    "empty": (lambda f: os.truncate(f / "features.npy", 0), "has 0 bytes, expected 296"),
    "long": (lambda f: os.truncate(f / "features.npy", FILE_BYTES + 4), "has 300 bytes, expected 296"),
    "no numbers": (lambda f: (f / "features.npy").unlink(), "features.npy: No such file"),
    "numbers a folder": (to_folder("features.npy"), "features.npy has [0-9,]+ bytes"),
    "no entry": (lambda f: (f / "entry.json").unlink(), "entry.json: No such file"),
    "entry a folder": (to_folder("entry.json"), "entry.json: Is a directory"),
    "nothing": (lambda f: [p.unlink() for p in f.iterdir()], "entry.json: No such file"),
    "entry cut": (lambda f: os.truncate(f / "entry.json", 100), "entry.json is no JSON"),
    "entry empty": (lambda f: os.truncate(f / "entry.json", 0), "entry.json is no JSON"),
    "entry no text": (lambda f: (f / "entry.json").write_bytes(b"\xff\xfe\x80"), "entry.json is no JSON"),
    "entry a list": (lambda f: (f / "entry.json").write_text("[]"), "entry.json is no JSON object"),
    "entry deep": (lambda f: (f / "entry.json").write_text("[" * 10**5), "entry.json is no JSON"),
    "format": (change_entry(format=2), "entry.json has format 2, expected 1"),
    "no format": (change_entry(format=None), "entry.json has format None, expected 1"),
    "key": (change_entry(key=KEY | {"n": True}), "entry.json has key"),
    "shape": (change_entry(shape=[7, 3, 2]), r"entry.json has shape \[7, 3, 2\], expected \[7, 2, 3\]"),
    "type": (change_entry(dtype="float16"), "entry.json has dtype 'float16'"),
    "bytes": (change_entry(bytes=7), "entry.json has bytes 7, expected 168"),
    "digest": (change_entry(sha256="0" * 64), "the numbers in"),
    "no digest": (change_entry(sha256=None), "the numbers in"),
    "a file": (to_file, "entry.json: Not a directory"),
    "a lost link": (lambda f: [shutil.rmtree(f), f.symlink_to("nowhere")], "entry.json: No such file"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_entry_is_named_and_replaced(store, root, caplog, name):
    damage, message = DAMAGES[name]
    get(store)
    folder = root / digest(KEY)
    damage(folder)
    compute = Computing()
    np.testing.assert_array_equal(get(store, compute=compute).whole(), ROWS)
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "train, view 0" in record.message
    assert re.search(f"{folder} is damaged, computing it anew: .*{message}", record.message)
    assert compute.times == 1
    np.testing.assert_array_equal(get(store, compute=compute).whole(), ROWS)
    assert compute.times == 1
    assert names(root) == [digest(KEY)]


@pytest.mark.parametrize("name", ["entry.json", "features.npy"])
def test_no_flipped_bit_gives_wrong_numbers_or_an_error(store, root, name):
    get(store)
    file = root / digest(KEY) / name
    for bit in np.random.default_rng(0).integers(0, 8 * file.stat().st_size, 60).tolist():
        flip(file, bit)
        store.entries()
        np.testing.assert_array_equal(get(store).whole(), ROWS)


def test_an_entry_under_the_name_of_another_is_not_taken_for_it(store, root, caplog):
    other = KEY | {"n": 2}
    get(store, other, Computing(-ROWS))
    (root / digest(other)).rename(root / digest(KEY))
    np.testing.assert_array_equal(get(store).whole(), ROWS)
    assert "entry.json has key" in caplog.text


def test_a_file_that_cannot_be_opened_for_another_reason_is_not_removed(store, root, monkeypatch):
    get(store)
    before = bits(root / digest(KEY))

    def fail(*args):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(array_file.os, "open", fail)
    with pytest.raises(FeatureCacheError, match=r"features\.npy cannot be read: Too many open files"):
        get(store)
    monkeypatch.undo()
    assert bits(root / digest(KEY)) == before


def test_an_entry_removed_between_two_looks_is_no_damage(store, root, caplog, monkeypatch):
    get(store)
    read, looks = feature_entry.StoredFeatures, []

    def too_late(*args, **options):
        looks.append(args)
        if len(looks) == 1:
            raise Damaged("so that it looks again, with the lock")
        shutil.rmtree(root / digest(KEY), ignore_errors=True)
        monkeypatch.setattr(feature_entry, "StoredFeatures", read)
        return read(*args, **options)

    monkeypatch.setattr(feature_entry, "StoredFeatures", too_late)
    np.testing.assert_array_equal(get(store).whole(), ROWS)
    assert len(looks) == 2
    assert "damaged" not in caplog.text


# --- What cannot be kept


def test_more_than_the_limit_is_refused_before_computing(root):
    store, compute = FeatureStore(root, limit_bytes=FILE_BYTES - 1), Computing()
    with pytest.raises(FeatureCacheError, match=r"296 bytes .*--cache_limit_gb=2\.95e-07"):
        get(store, compute=compute)
    assert (compute.times, names(root)) == (0, [])
    get(FeatureStore(root, limit_bytes=FILE_BYTES))


def filled(root):
    """A store with room for three entries that has two, "a" used before "b"."""
    store = FeatureStore(root, limit_bytes=3 * FILE_BYTES)
    for seconds, name in enumerate("ab"):
        get(store, {"name": name})
        os.utime(root / digest({"name": name}) / "entry.json", (seconds, seconds))
    return store


def test_no_space_is_named_before_computing(root, monkeypatch):
    store, compute = filled(root), Computing()
    before = {name: bits(root / name) for name in names(root)}
    usage = shutil.disk_usage(root)._replace(free=FILE_BYTES)
    monkeypatch.setattr(feature_store.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(
        FeatureCacheError, match=rf"needs 65,832 bytes in {root}, 296 are free; .*--cache_dir"
    ):
        get(store, compute=compute)
    assert compute.times == 0
    assert {name: bits(root / name) for name in names(root)} == before


def test_what_must_go_anyway_goes_early_where_its_space_is_needed(root, monkeypatch):
    store, seen = filled(root), []
    get(store, {"name": "c"})
    monkeypatch.setattr(feature_store, "_SPARE_BYTES", 0)
    usage = shutil.disk_usage(root)._replace(free=10)
    monkeypatch.setattr(feature_store.shutil, "disk_usage", lambda path: usage)

    def compute():
        seen.extend(entry.key["name"] for entry in store.entries())
        yield ROWS

    with pytest.raises(FeatureCacheError, match="needs 296 bytes"):
        get(FeatureStore(root, limit_bytes=10 * FILE_BYTES), compute=compute)
    get(store, compute=compute)
    assert seen == ["c", "b"]


def fail_with(number):
    def fail(*args, **options):
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize(
    ("where", "call", "number"),
    [
        (array_file.os, "write", errno.ENOSPC),
        (array_file.os, "write", errno.EDQUOT),
        (array_file.os, "write", errno.EFBIG),
        (array_file.os, "fsync", errno.EIO),
        (feature_store.os, "replace", errno.EACCES),
        (feature_entry.Path, "mkdir", errno.EROFS),
    ],
)
def test_a_disk_that_fails_leaves_nothing_of_this_and_all_of_the_others(
    root, monkeypatch, where, call, number
):
    store = filled(root)
    before = {name: bits(root / name) for name in names(root)}
    monkeypatch.setattr(where, call, fail_with(number))
    message = f"train, view 0: the feature cache cannot write 296 bytes to {root}: {os.strerror(number)}"
    with pytest.raises(FeatureCacheError, match=re.escape(message)):
        get(store)
    monkeypatch.undo()
    assert {name: bits(root / name) for name in names(root)} == before
    get(store)


def test_a_disk_that_gives_back_something_else_is_noticed(store, root, monkeypatch):
    write = os.write

    def spoil(handle, data):
        return write(handle, data) if len(data) == HEADER_BYTES else write(handle, b"\1" * len(data))

    monkeypatch.setattr(array_file.os, "write", spoil)
    monkeypatch.setattr(file_lock.os, "pwrite", lambda *args: 0)
    with pytest.raises(FeatureCacheError, match="does not give back what was written: the numbers in"):
        get(store)
    assert names(root) == []


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ([ROWS[:6]], "6 rows or more were computed, expected 7"),
        ([ROWS, ROWS[:1]], "8 rows or more were computed, expected 7"),
        (itertools.repeat(ROWS), "14 rows or more were computed, expected 7"),
        ([], "0 rows or more"),
        ([ROWS[:, :1]], r"a block is float32 \(7, 1, 3\), expected float32 \[b, \*\(2, 3\)\]"),
        ([ROWS[..., None]], "a block is float32"),
        ([ROWS.astype(np.float64)], "a block is float64"),
        ([ROWS.astype(np.float16)], "a block is float16"),
        ([np.float32(1)], r"a block is float32 \(\)"),
    ],
)
def test_what_is_not_of_the_shape_is_refused_and_not_kept(store, root, blocks, message):
    with pytest.raises(ValueError, match=message):
        get(store, compute=lambda: iter(blocks))
    assert names(root) == []


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), RuntimeError("no"), OSError(errno.ENOSPC, "not ours"), SystemExit(3)]
)
def test_an_error_of_the_computation_passes_and_leaves_nothing(store, root, error):
    def compute():
        yield ROWS[:4]
        raise error

    with pytest.raises(type(error)) as caught:
        get(store, compute=compute)
    assert caught.value is error
    assert names(root) == []
    get(store)


def test_a_folder_that_cannot_be_created_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    store, compute = FeatureStore(tmp_path / "file" / "features", limit_bytes=10**6), Computing()
    with pytest.raises(FeatureCacheError, match=r"file/features: Not a directory; --cache_dir"):
        get(store, compute=compute)
    assert (compute.times, store.entries()) == (0, [])


# --- The limit


def test_the_one_used_longest_ago_goes_first(root, caplog):
    caplog.set_level("INFO", logger="trainer")
    store = filled(root)
    get(store, {"name": "c"})
    get(store, {"name": "a"})
    get(store, {"name": "d"})
    assert {entry.key["name"] for entry in store.entries()} == {"a", "c", "d"}
    assert f"removing {root / digest({'name': 'b'})} to make room" in caplog.text
    get(store, {"name": "large"}, lambda: iter([ROWS] * 4), num_rows=28)
    assert [entry.key["name"] for entry in store.entries()] == ["large"]
    assert names(root) == [digest({"name": "large"})]


def test_what_a_run_uses_goes_after_what_it_does_not(root):
    """However long ago it was opened: a run may last for days."""
    filled(root)
    store = FeatureStore(root, limit_bytes=3 * FILE_BYTES)
    get(store, {"name": "a"})
    os.utime(root / digest({"name": "a"}) / "entry.json", (0, 0))
    for name, left in (("c", "abc"), ("d", "acd"), ("e", "cde")):
        get(store, {"name": name})
        assert sorted(entry.key["name"] for entry in store.entries()) == list(left)


def test_a_replaced_entry_does_not_count_twice(root):
    store = FeatureStore(root, limit_bytes=2 * FILE_BYTES)
    for name in "ab":
        get(store, {"name": name})
    flip(root / digest({"name": "b"}) / "features.npy", 8 * 200)
    get(store, {"name": "b"})
    assert {entry.key["name"] for entry in store.entries()} == {"a", "b"}


def test_damaged_entries_count_and_go_first(root):
    store = filled(root)
    get(store, {"name": "c"})
    (root / digest({"name": "c"}) / "entry.json").unlink()
    get(store, {"name": "d"})
    assert {entry.key["name"] for entry in store.entries()} == {"a", "b", "d"}
    assert len(names(root)) == 3


def test_two_that_finish_together_keep_the_limit(root, monkeypatch):
    store, replace, both = FeatureStore(root, limit_bytes=FILE_BYTES), os.replace, threading.Barrier(2)

    def rename_late(source, target):
        time.sleep(0.1)
        return replace(source, target)

    def compute():
        both.wait()
        yield ROWS

    monkeypatch.setattr(feature_store.os, "replace", rename_late)
    threads = [threading.Thread(target=get, args=(store, {"n": n}, compute)) for n in range(2)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(names(root)) == 1


def test_entries_tells_what_is_kept_and_ignores_the_rest(store, root):
    assert store.entries() == []
    before = datetime.datetime.now(datetime.UTC)
    for name in "abc":
        get(store, {"name": name}, describe=f"pictures {name}")
    for seconds, name in enumerate("cab"):
        os.utime(root / digest({"name": name}) / "entry.json", (seconds, seconds))
    (root / digest({"name": "c"}) / "entry.json").write_text("{")
    (root / "notes.txt").write_text("mine")
    (root / ("0" * 64)).mkdir()
    (root / ("1" * 64)).write_text("")
    shutil.copytree(root / digest({"name": "a"}), root / ("2" * 64))
    first, second = store.entries()
    assert [first.key, second.key] == [{"name": "b"}, {"name": "a"}]
    assert (first.digest, first.describe, first.num_bytes) == (
        digest({"name": "b"}),
        "pictures b",
        FILE_BYTES,
    )
    assert first.last_used == datetime.datetime.fromtimestamp(2, datetime.UTC)
    assert abs(first.created - before) < datetime.timedelta(minutes=5)
    assert (root / "notes.txt").read_text() == "mine"


# --- Where files cannot be locked


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_without_locks_the_first_to_finish_wins(root, monkeypatch, number):
    # There is room for one, which is theirs or mine.
    store = FeatureStore(root, limit_bytes=FILE_BYTES)
    monkeypatch.setattr(file_lock.fcntl, "flock", fail_with(number))

    def compute():
        yield ROWS[:4]
        get(store, compute=Computing(-ROWS))
        yield ROWS[4:]

    np.testing.assert_array_equal(get(store, compute=compute).whole(), -ROWS)
    np.testing.assert_array_equal(get(store).whole(), -ROWS)
    assert names(root) == [digest(KEY)]


def test_without_locks_what_another_left_damaged_is_not_used(store, root, monkeypatch):
    monkeypatch.setattr(file_lock.fcntl, "flock", fail_with(errno.ENOLCK))

    def compute():
        get(store, compute=Computing(-ROWS))
        flip(root / digest(KEY) / "features.npy", 8 * 200)
        yield ROWS

    np.testing.assert_array_equal(get(store, compute=compute).whole(), ROWS)
    np.testing.assert_array_equal(get(store).whole(), ROWS)
    assert names(root) == [digest(KEY)]


def test_without_locks_nobody_can_tell_what_is_left_over(store, root, monkeypatch):
    monkeypatch.setattr(file_lock.fcntl, "flock", fail_with(errno.ENOLCK))
    left = root / f".{digest(KEY)}.0123abcd.tmp"
    left.mkdir(parents=True)
    get(store)
    assert names(root) == [left.name, digest(KEY)]
    monkeypatch.undo()
    get(store, {"name": "other"})
    assert not left.exists()
