"""tfds data sets, prepared here from a tiny builder, and what is said where there is none."""

import dataclasses
import re
import socket
from pathlib import Path

import pytest
import tensorflow as tf
from tensorflow_datasets.core.naming import parse_builder_name_kwargs

from tests.data.trees import prepare_tiny
from trainer.data.sources import open_source
from trainer.data.sources.tfds_reader import _tfds_name
from trainer.values import TrainerError, UsageError


def test_tfds_splits_order_and_ids(options):
    prepare_tiny(options.data_dir)
    source = open_source("tfds:tiny_blooms:plain", options)
    assert source.class_names == ("b", "a")
    assert source.native_splits == {"train": (0, 8), "test": (8, 11)}
    assert not source.sorted_by_class
    assert source.ids[0] == "train/tiny_blooms-train.tfrecord-00000-of-00001__0"
    assert source.ids[10] == "test/tiny_blooms-test.tfrecord-00000-of-00001__2"
    shades = [int(tf.io.decode_image(source.read(k))[0, 0, 0]) for k in range(11)]
    assert sorted(shades[:8]) == list(range(8))
    assert sorted(shades[8:]) == [20, 21, 22]
    assert source.labels.tolist() == [shade % 2 for shade in shades]
    assert source.read(0).startswith(b"\x89PNG")


@pytest.mark.parametrize("budget_bytes", [0, 10**6])
def test_tfds_splits_without_public_labels_are_left_out(options, caplog, budget_bytes):
    prepare_tiny(options.data_dir, "hidden")
    source = open_source(
        "tfds:tiny_blooms:hidden", dataclasses.replace(options, memory_budget_bytes=budget_bytes)
    )
    assert source.native_splits == {"train": (0, 8)}
    assert len(source.ids) == len(source.labels) == len(source.encoded) == 8
    line = "tfds:tiny_blooms:hidden: left out the split test, whose labels are not public"
    assert caplog.messages.count(line) == 1


@pytest.mark.parametrize(
    ("rest", "resolved"),
    [
        ("tiny_blooms/plain", "tiny_blooms/plain"),
        ("tiny_blooms/plain:1.0.0", "tiny_blooms/plain:1.0.0"),
        ("tiny_blooms:plain:1.0.0", "tiny_blooms:plain:1.0.0"),
        ("tiny_blooms/plain:1.*.*", "tiny_blooms/plain:1.0.0"),
        ("tiny_blooms:*.*.*", "tiny_blooms:1.0.0"),
    ],
)
def test_tfds_names_with_a_version(options, rest, resolved):
    prepare_tiny(options.data_dir)
    source = open_source(f"tfds:{rest}", options)
    assert (source.name, len(source.ids)) == (f"tfds:{resolved}", 11)


@pytest.mark.parametrize("rest", ["tiny_blooms/plain:2.0.0", "tiny_blooms/plain:2.*.*"])
def test_tfds_versions_that_do_not_exist(options, rest):
    prepare_tiny(options.data_dir)
    with pytest.raises(UsageError, match=rf"^--source=tfds:{re.escape(rest)}: tfds cannot open it: .*2\."):
        open_source(f"tfds:{rest}", options)


@pytest.mark.parametrize(
    ("rest", "name"),
    [
        ("mnist", "mnist"),
        ("mnist:3.0.1", "mnist:3.0.1"),
        ("mnist:3.*.*", "mnist:3.*.*"),
        ("imagenette/160px:1.0.0", "imagenette/160px:1.0.0"),
        ("imagenette:160px-v2", "imagenette/160px-v2"),
        ("imagenette:160px:1.0.0", "imagenette/160px:1.0.0"),
        ("imagenet2012_corrupted/spatter_1:3.*.*/a=1", "imagenet2012_corrupted/spatter_1:3.*.*/a=1"),
    ],
)
def test_tfds_reads_the_names_as_they_are_meant(rest, name):
    assert _tfds_name(rest, name="x") == name
    data_set, options = parse_builder_name_kwargs(name)
    parts = (data_set.name, options.get("config"), options.get("version"))
    assert rest.removesuffix("/a=1").replace("/", ":") == ":".join(filter(None, parts))


def test_tfds_names_that_are_none(options):
    for rest in ("mnist:3.0.1:3.0.1:x", "mnist//x", "mnist:", "a b", "/mnist", "mnist:3.0.1/"):
        with pytest.raises(
            UsageError, match=r": expected NAME, NAME/CONFIG or NAME:CONFIG, and after it :VERS"
        ):
            open_source(f"tfds:{rest}", options)


@pytest.mark.parametrize(
    ("rest", "told"),
    [
        ("tf_flowers:3", "tf_flowers has no configuration 3, nor any other; a VERSION has three numbers, "),
        ("tf_flowers:3.*", "tf_flowers has no configuration 3.*, nor any other; a VERSION has three numb"),
        ("mnist:nope", "mnist has no configuration nope, nor any other"),
        ("imagenette/99px", "imagenette has no configuration 99px (it has full-size-v2, 320px-v2, 160px-"),
        ("cycle_gan:appel2orange", "cycle_gan has no configuration appel2orange (it has apple2orange)"),
        ("tf_flowers:9.9.9", "tfds cannot open it: Dataset tf_flowers cannot be loaded at version 9.9.9, "),
    ],
)
def test_tfds_configurations_and_versions_that_do_not_exist(options, rest, told):
    with pytest.raises(UsageError) as caught:
        open_source(f"tfds:{rest}", options)
    assert str(caught.value).startswith(f"--source=tfds:{rest}: {told}")


def test_an_address_with_one_slash_is_no_folder_of_prepared_data_sets(options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"^--data_dir=gs:/b/x: an address begins with gs:// "):
        open_source("tfds:mnist", dataclasses.replace(options, data_dir="gs:/b/x"))
    assert not (tmp_path / "gs:").exists()


def test_tfds_says_which_features_there_are(options):
    prepare_tiny(options.data_dir, "bare")
    line = (
        "--source=tfds:tiny_blooms:bare: expected the features image (Image) and label (ClassLabel), but it "
        "has image (Image), mask (Tensor)"
    )
    with pytest.raises(TrainerError, match=f"^{re.escape(line)}$"):
        open_source("tfds:tiny_blooms:bare", options)


def test_tfds_names_that_do_not_exist(options):
    line = "--source=tfds:tf_flower: tfds knows no data set of this name. "
    line += "Did you mean: tf_flower -> tf_flowers ?"
    with pytest.raises(UsageError, match=f"^{re.escape(line)}$"):
        open_source("tfds:tf_flower", options)
    with pytest.raises(UsageError, match=r"^--source=tfds:qqzzxx: tfds knows no data set of this name.$"):
        open_source("tfds:qqzzxx", options)


def test_tfds_without_network_says_so_at_once(options, monkeypatch, capfd):
    def unresolved(host, *args, **kwargs):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unresolved)
    line = (
        f"--source=tfds:tf_flowers: not prepared in {options.data_dir}/tf_flowers/3.0.1, and preparing it "
        "failed: no network: download.tensorflow.org: Name or service not known. Ways out: prepare it on a "
        "machine with a network, copy the folder and set --data_dir to the folder above it, or set "
        "$TFDS_DATA_DIR to where it is prepared already, or take the same pictures as archive:PATH or "
        "folder:PATH"
    )
    with pytest.raises(TrainerError, match=f"^{re.escape(line)}$"):
        open_source("tfds:tf_flowers", options)
    assert capfd.readouterr().out == ""


def test_tfds_damaged_files_are_named(options):
    prepare_tiny(options.data_dir)
    (record,) = Path(options.data_dir).glob("tiny_blooms/plain/1.0.0/*train.tfrecord*")
    record.write_bytes(record.read_bytes()[:-20])
    with pytest.raises(
        TrainerError, match=r"the split train in \S+ cannot be read: .*; remove the folder to prepare"
    ):
        open_source("tfds:tiny_blooms:plain", options)


def test_a_folder_that_tfds_would_not_find_again(options, tmp_path):
    folder = tmp_path / "sets [1]"
    prepare_tiny(str(folder))
    with pytest.raises(
        UsageError, match=r": --data_dir=.*/sets \[1\]: TensorFlow reads \[ in a path as a pat"
    ):
        open_source("tfds:tiny_blooms:plain", dataclasses.replace(options, data_dir=str(folder)))
