"""What a user writes for a path: addresses, `~`, patterns; and a cache where there is no home."""

import contextlib
import os
import pwd
import re
import tempfile
from pathlib import Path

import pytest

from trainer.paths import home, local_path, pattern_in, settle_home, temporary_home
from trainer.store.places import cache_root, hub_cache_root, keras_folder
from trainer.values import UsageError


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("gs://bucket/run", "expected a path on this machine, not gs://: mount the bucket with gcsfuse and"),
        ("S3://bucket/run", "not s3://: mount the bucket with mount-s3 or s3fs and give the path below the"),
        ("abfss://c@a.net/run", "not abfss://: mount the bucket with blobfuse2 and give the path below the"),
        ("hdfs://name/run", "not hdfs://: mount the bucket and give the path below the mount point"),
        ("https://host/run", "expected a path on this machine, not an address: download it first"),
        ("file:///data/run", "write the path alone, without file://"),
        # As pathlib writes an address.
        (
            "gs:/bucket/run",
            "mount the bucket with gcsfuse and give the path below the mount point (of a folder "
            "that is so named, write ./gs:/bucket/run)",
        ),
        (Path("S3://bucket/run"), "not s3://: mount the bucket with mount-s3 or s3fs and"),
        (
            Path("hdfs://name/run"),
            "not hdfs://: mount the bucket and give the path below the mount point (of ",
        ),
        (Path("file:///data/run"), "write the path alone, without file:// (of a folder that is so named, "),
        ("~nobody-here/run", "there is no user nobody-here (of a folder that is so named, write ./~nobody-h"),
    ],
)
def test_what_is_no_path_is_refused_in_one_line(text, says):
    with pytest.raises(UsageError) as caught:
        local_path(text, flag=f"--workdir={text}")
    assert str(caught.value).startswith(f"--workdir={text}: ")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_a_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert local_path("run", flag="") == tmp_path / "run"
    assert local_path("~/run", flag="") == tmp_path / "run"
    assert local_path("./gs:/bucket", flag="") == tmp_path / "gs:" / "bucket"
    assert local_path("run:/1", flag="") == tmp_path / "run:" / "1"
    assert local_path(tmp_path / "gs:" / "bucket", flag="") == tmp_path / "gs:" / "bucket"
    assert local_path("./~/run", flag="") == tmp_path / "~" / "run"
    assert local_path("a[1]", flag="") == tmp_path / "a[1]"


@pytest.mark.parametrize("name", ["a[1]", "a*", "a?", "a\\b", "["])
def test_what_tensorflow_reads_as_a_pattern_is_refused_wherever_it_is(name, tmp_path, monkeypatch):
    with pytest.raises(UsageError, match=r"^--workdir: TensorFlow reads . in a path as a pattern"):
        local_path(tmp_path / name / "run", flag="--workdir", for_tensorflow=True)
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    with pytest.raises(UsageError) as caught:
        local_path("run", flag="--workdir=run", for_tensorflow=True)
    assert str(caught.value).startswith(f"--workdir=run: {tmp_path / name / 'run'}: TensorFlow reads ")


@pytest.mark.parametrize("name", ["a b", "a]b", "a{b,c}", "a%d", "a#1", "a,b", "ä", "a'b", "$a", "(1)"])
def test_what_is_not_refused_tensorflow_finds_again(name, tmp_path):
    import tensorflow as tf

    assert not pattern_in(tmp_path / name)
    # As close to the name as a pattern could come.
    for number, folder in enumerate([name, "ab", "a1", "ac"]):
        tf.train.Checkpoint(variables={"x": tf.Variable(number)}).write(str(tmp_path / folder / "ckpt-1"))
    reader = tf.train.load_checkpoint(str(tmp_path / name / "ckpt-1"))
    assert reader.get_tensor("variables/x/.ATTRIBUTES/VARIABLE_VALUE") == 0


def test_what_is_refused_tensorflow_would_not_find():
    """The reason for it all; where it is gone, so may the refusal be."""
    import tensorflow as tf

    with tempfile.TemporaryDirectory() as folder:
        prefix = f"{folder}/a[1]/ckpt-1"
        tf.train.Checkpoint(variables={"x": tf.Variable(1)}).write(prefix)
        with pytest.raises(tf.errors.NotFoundError):
            tf.train.load_checkpoint(prefix)


def test_the_functions_for_other_programs_refuse_it_too(tmp_path):
    import trainer
    from trainer.export.loading import open_model

    (tmp_path / "a[1]" / "run").mkdir(parents=True)
    for opened in (trainer.load, open_model):
        with pytest.raises(UsageError, match=r"a\[1\]/run: TensorFlow reads \[ in a path as a pattern"):
            opened(tmp_path / "a[1]" / "run")
        with pytest.raises(UsageError, match=r"^gs://bucket/run: expected a path on this machine"):
            opened("gs://bucket/run")


def test_export_needs_a_temporary_folder_that_tensorflow_finds(tmp_path, run_main, monkeypatch):
    (tmp_path / "[1]").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "[1]"))
    status, _, err = run_main("export", f"--workdir={tmp_path}")
    assert status == 2
    assert err.startswith(f"trainer: the temporary folder {tmp_path}/[1] ($TMPDIR): TensorFlow reads [ in ")


def test_pictures_may_lie_in_such_folders(tmp_path, flower_folder):
    from trainer.data.picture_files import find_pictures
    from trainer.data.sources.folder import open_folder

    root = flower_folder(tmp_path / "my [1] photos*?")
    (root / "red").rename(root / "red [a-z]")
    (root / "red [a-z]" / "000.jpg").rename(root / "red [a-z]" / "[0].jpg")
    source = open_folder(str(root), name="folder:x")
    assert source.class_names == ("blue", "green", "red [a-z]")
    assert "red [a-z]/[0].jpg" in source.ids
    for index, name in enumerate(source.ids):
        assert source.read(index) == (root / name).read_bytes()
    found = [one.path for one in find_pictures([str(root / "red [a-z]" / "[0].jpg"), str(root)])]
    assert found[0] == str(root / "red [a-z]" / "[0].jpg")
    assert len(found) == len(source.ids)


# --- Where there is no home folder


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """A user without an entry in the system's list, and with an own temporary folder."""

    def unknown(number):
        raise KeyError(number)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for name in ("HOME", "XDG_CACHE_HOME", "TFHUB_CACHE_DIR", "TFDS_DATA_DIR", "KERAS_HOME", "MPLCONFIGDIR"):
        monkeypatch.setenv(name, "")  # What was not set before is not set after the test, either.
        monkeypatch.delenv(name)
    return tmp_path / "tmp" / f"hub-trainer-{os.getuid()}"


@pytest.fixture
def warned(caplog):
    """warned() -> the warnings since it was last called."""

    def take():
        found = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        caplog.clear()
        return found

    return take


NO_HOMES = [None, "", "/", "//", "relative", "/nonexistent/home"]


@pytest.mark.parametrize("value", NO_HOMES)
def test_without_a_home_caches_are_in_a_temporary_folder_with_one_warning(
    value, nowhere, warned, monkeypatch
):
    if value is not None:
        monkeypatch.setenv("HOME", value)
    assert cache_root() == nowhere / ".cache" / "hub-trainer"
    assert hub_cache_root() == nowhere / ".cache" / "hub-trainer" / "tfhub_modules"
    [line] = warned()
    assert f"caches are kept in {nowhere}/.cache/hub-trainer, which a reboot may delete" in line
    assert cache_root("named") == Path.cwd() / "named"
    assert not list(Path.cwd().iterdir())


@pytest.fixture
def closed(nowhere, tmp_path, monkeypatch):
    """A home folder that cannot be written: whoever runs the tests, `os.access` says so."""
    folder = tmp_path / "closed"
    folder.mkdir()
    access = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: not (Path(path) == folder and mode & os.W_OK) and access(path, mode)
    )
    monkeypatch.setenv("HOME", str(folder))
    return folder


def kept_below(folder):
    return {
        "XDG_CACHE_HOME": str(folder / ".cache"),
        "TFDS_DATA_DIR": str(folder / "tensorflow_datasets"),
        "KERAS_HOME": str(folder / ".keras"),
        "MPLCONFIGDIR": str(folder / ".config" / "matplotlib"),
    }


def test_a_home_that_cannot_be_written(nowhere, closed, warned):
    assert cache_root() == nowhere / ".cache" / "hub-trainer"
    assert warned() == [
        f"{closed} cannot be written: caches are kept in {nowhere}/.cache/hub-trainer, which a reboot may "
        "delete; set --cache_dir=FOLDER"
    ]
    # What is kept there can still be read.
    (closed / ".cache" / "hub-trainer").mkdir(parents=True)
    assert cache_root() == closed / ".cache" / "hub-trainer"


def test_libraries_are_given_other_places_than_a_home_that_cannot_be_written(nowhere, closed, warned):
    settle_home()
    assert warned() == [
        f"{closed} cannot be written: caches and data sets are kept in {nowhere}, which a reboot may delete; "
        "set HOME"
    ]
    wanted = kept_below(nowhere)
    assert {name: os.environ[name] for name in wanted} == wanted
    assert cache_root() == nowhere / ".cache" / "hub-trainer"
    # There may be pictures.
    assert local_path("~/photos", flag="") == closed / "photos"
    settle_home()
    assert warned() == []


def test_what_is_in_a_home_that_cannot_be_written_or_named_elsewhere_stays(
    nowhere, closed, warned, monkeypatch, tmp_path
):
    before = dict(os.environ)
    for below in (".cache/hub-trainer", "tensorflow_datasets", ".keras"):
        (closed / below).mkdir(parents=True)
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path))
    settle_home()
    assert warned() == []
    assert dict(os.environ) == {**before, "MPLCONFIGDIR": str(tmp_path)}


def test_a_relative_cache_home_is_ignored_and_an_absolute_one_need_not_exist(nowhere, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    assert cache_root() == tmp_path / ".cache" / "hub-trainer"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "new" / "cache"))
    assert cache_root() == tmp_path / "new" / "cache" / "hub-trainer"


def test_a_cache_home_that_is_a_pattern(nowhere, warned, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "[x]"))
    assert cache_root() == nowhere / ".cache" / "hub-trainer"
    assert warned()[0].startswith(f"TensorFlow reads [ in {tmp_path}/[x]/hub-trainer as a pattern: ")
    monkeypatch.setenv("TFHUB_CACHE_DIR", "gs://bucket/modules")
    with pytest.raises(UsageError, match=r"^\$TFHUB_CACHE_DIR=gs://bucket/modules: expected a path"):
        hub_cache_root()


@pytest.mark.parametrize("value", NO_HOMES)
def test_libraries_find_a_home(value, nowhere, warned, monkeypatch):
    if value is not None:
        monkeypatch.setenv("HOME", value)
    why = "$HOME is not set, and this user has no home folder"
    if value is not None:
        why = f"$HOME is {value!r}, which is no home folder"
    refused = rf"^--workdir=~/run: {re.escape(why)}: write the whole path \(of a folder that"
    with pytest.raises(UsageError, match=refused):
        local_path("~/run", flag="--workdir=~/run")
    assert home() is None
    settle_home()
    assert os.environ["HOME"] == str(nowhere)
    assert home() == nowhere
    assert warned() == [
        f"{why}: caches and data sets are kept in {nowhere}, which a reboot may delete; set HOME"
    ]
    settle_home()
    assert cache_root() == nowhere / ".cache" / "hub-trainer"
    assert keras_folder() == nowhere / ".keras"
    assert warned() == []
    # It is no place of the user's.
    with pytest.raises(UsageError, match=refused):
        local_path("~/run", flag="--workdir=~/run")


def test_where_keras_keeps_weights_is_told_as_it_is(closed, tmp_path, monkeypatch):
    from tf_keras.src.utils import data_utils

    def keeps():
        # It asks for a file that is there already, and whose name tells nothing.
        with monkeypatch.context() as patch:
            made = []
            patch.setattr(data_utils, "_makedirs_exist_ok", made.append)
            with contextlib.suppress(Exception):
                data_utils.get_file("x", "file:///nonexistent", cache_subdir="models")
            return made[0]

    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "elsewhere"))
    assert str(keras_folder() / "models") == keeps() == "/tmp/.keras/models"
    (closed / ".keras").mkdir()
    assert str(keras_folder() / "models") == keeps() == f"{closed}/.keras/models"


def test_the_temporary_home_of_another_user_is_not_used(nowhere, tmp_path):
    assert temporary_home() == nowhere
    assert nowhere.stat().st_mode & 0o777 == 0o700
    assert temporary_home() == nowhere
    nowhere.rmdir()
    (tmp_path / "theirs").mkdir()
    nowhere.symlink_to(tmp_path / "theirs")
    assert temporary_home() not in (nowhere, tmp_path / "theirs")
    assert not list((tmp_path / "theirs").iterdir())
