"""Stamps: what tells files apart without reading them."""

import os
import time
from pathlib import Path

from tests.data.trees import LONG_AGO, age, prepare_tiny, write_tree
from trainer.data.sources import open_source
from trainer.data.stamps import stamp_files


def test_the_stamp_of_a_tfds_data_set_is_that_of_its_files(options):
    prepare_tiny(options.data_dir)
    age(Path(options.data_dir), time.time_ns() + 10**11)  # As if just written, however slow this machine is.
    assert open_source("tfds:tiny_blooms:plain", options).stamp() is None
    age(Path(options.data_dir))
    source = open_source("tfds:tiny_blooms:plain", options)
    again = open_source("tfds:tiny_blooms:plain", options)
    assert again.stamp() == source.stamp() is not None
    for name in ("features.json", "tiny_blooms-test.tfrecord-00000-of-00001"):
        path = Path(options.data_dir, "tiny_blooms/plain/1.0.0", name)
        os.utime(path, ns=(LONG_AGO + 1, LONG_AGO + 1))
        changed = open_source("tfds:tiny_blooms:plain", options)
        assert changed.stamp() not in (None, again.stamp())
        again = changed


def test_stamps_of_files_tell_names_apart_from_what_follows(tmp_path):
    age(write_tree(tmp_path, {"a": b"1", "b": b"1"}))
    root = str(tmp_path)
    stamps = [stamp_files(root, names) for names in (["a", "b"], ["b", "a"], ["a"], [])]
    stamps += [stamp_files(root, ["a"], extra="x"), stamp_files(f"{root}/.", ["a"])]
    assert len(set(stamps)) == 6
    assert stamp_files(root, ["a", "gone"]) is None
