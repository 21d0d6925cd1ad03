"""Damaged files of the caches: what is read is what was written, or it is made anew; never anything else."""

import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from trainer.data.inspect.scan import scan
from trainer.data.sources.folder import open_folder
from trainer.store.feature_store import FeatureStore

KEY = {"network": "ab12", "view": None}
ROWS = np.random.default_rng(0).normal(size=(9, 5)).astype(np.float32)
FUZZ = {"deadline": None, "suppress_health_check": list(HealthCheck)}
CHANGE = st.tuples(
    st.sampled_from(["flip", "cut", "insert", "zero", "remove", "swap"]),
    st.integers(0, 3),  # Which file.
    st.floats(0, 1, exclude_max=True),  # Where in it.
    st.integers(1, 64),  # How much.
    st.binary(min_size=1, max_size=8),
)
CHANGES = st.lists(CHANGE, min_size=1, max_size=4)


def change(paths, how, which, where, count, data):
    """Damages one of the files."""
    path = paths[which % len(paths)]
    if not path.exists():
        return
    old, other = path.read_bytes(), paths[(which + 1) % len(paths)]
    at = int(where * len(old))
    new = {
        "flip": old[:at] + bytes([old[at] ^ (1 << count % 8)]) + old[at + 1 :] if old else old,
        "cut": old[:at],
        "insert": old[:at] + data + old[at:],
        "zero": old[:at] + bytes(min(count, len(old) - at)) + old[at + count :],
        "swap": other.read_bytes() if other.exists() else b"",
        "remove": b"",
    }[how]
    path.unlink() if how == "remove" else path.write_bytes(new)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """A store with an entry, pictures of which one is bad, and the record of their scan."""
    root = tmp_path_factory.mktemp("caches")
    store = FeatureStore(root / "kept" / "features", limit_bytes=10**6)
    store.get(KEY, num_rows=9, shape=(5,), compute=lambda: iter([ROWS]), describe="rows").close()
    for name in ("a", "b"):
        (root / "pictures" / name).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (4 + i, 4), (i, 9, 9)).save(root / "pictures" / name / f"{i}.png")
    (root / "pictures" / "b" / "2.png").write_text("no picture")
    for path in (root / "pictures").rglob("*"):
        os.utime(path, (1e9, 1e9))  # Of what has just changed, nothing is recorded.
    source = open_folder(str(root / "pictures"), name="folder:pictures")
    found = scan(source, recorded=root / "kept" / "scans")
    assert list(found.bad) == [5]
    return SimpleNamespace(root=root, source=source, found=found)


def check(pristine, changes):
    root = pristine.root / "damaged"
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(pristine.root / "kept", root)
    paths = sorted(path for path in root.rglob("*") if path.is_file())
    assert len(paths) == 3
    for one in changes:
        change(paths, *one)
    computed = []

    def compute():
        computed.append(1)
        yield ROWS

    for made in (None, []):
        if made == []:
            computed.clear()
        store = FeatureStore(root / "features", limit_bytes=10**6)
        kept = store.get(KEY, num_rows=9, shape=(5,), compute=compute, describe="rows")
        np.testing.assert_array_equal(kept.whole(), ROWS)
        kept.close()
        found = scan(pristine.source, recorded=root / "scans")
        assert found.digests == pristine.found.digests
        assert found.bad == pristine.found.bad
        np.testing.assert_array_equal(found.orientations, pristine.found.orientations)
    # What was made anew is whole again.
    assert computed == []


@settings(max_examples=60, derandomize=True, **FUZZ)
@given(CHANGES)
def test_what_is_read_is_what_was_written(pristine, changes):
    check(pristine, changes)


@pytest.mark.slow
@settings(max_examples=1000, **FUZZ)
@given(CHANGES)
def test_what_is_read_is_what_was_written_in_many_cases(pristine, changes):
    check(pristine, changes)
