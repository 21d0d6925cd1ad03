"""The feature cache as a user meets it: the same numbers, computed once, whatever happens to its files."""

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import call_main, changed, make_flower_folder
from tests.helpers.feature_runs import (
    assert_same_numbers,
    computed,
    entries,
    left,
    metrics,
    predictions,
    tiny_net,
    weights,
)
from tests.helpers.processes import Program
from tests.helpers.undrawn import PLAIN
from trainer.cli.flags import parse
from trainer.data import features, pipeline
from trainer.run import feature_cache
from trainer.run.experiment import Experiment
from trainer.run.session import make_stages
from trainer.run.team import Team
from trainer.store import provenance
from trainer.store.feature_store import FeatureStore, StoredFeatures

pytestmark = pytest.mark.usefixtures("figures_undrawn")
PROJECT = Path(__file__).parents[2]
SPLITS = ["train", "validation", "test"]
# 14 + 5 + 5 pictures: no split fills its last batch.
SETTINGS = (
    "--image_size=8", "--splits=14,5,5", "--batch_size=4", "--head=mlp(6)", "--dropout=0.3",
    "--schedule=frozen", "--frozen_for=2epochs", "--frozen_learning_rate=0.05", "--precision=float32",
    "--log_every=1steps", "--progress=plain", *PLAIN,
)  # fmt: skip
STEPS = 8
NET = ("--backbone=keras:TinyNet", "--weights=none")
TOP = "--phase=name=top; for=3epochs; train=head backbone/last.*; lr=0.02"


@pytest.fixture(scope="module", autouse=True)
def with_tiny_net():
    with tiny_net():
        yield


@pytest.fixture(scope="module")
def options(tmp_path_factory, tiny_backbone):
    pictures = make_flower_folder(tmp_path_factory.mktemp("pictures"), n=8)
    return [f"--source=folder:{pictures}", f"--backbone=savedmodel:{tiny_backbone}", *SETTINGS]


def run(*arguments):
    """Calls the program; returns its status and what it printed."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        status = call_main(*arguments)
    return SimpleNamespace(status=status, out=out.getvalue(), err=err.getvalue())


@pytest.fixture(scope="module")
def train(options, tmp_path_factory):
    """train(*options, cache=...) -> a finished run; each has an empty cache, if none is named."""

    def train_(*changes, cache=None, status=0):
        folder = tmp_path_factory.mktemp("run")
        cache = cache or folder / "cache"
        done = run(*changed(options, f"--workdir={folder / 'run'}", f"--cache_dir={cache}", *changes))
        assert done.status == status, done.err
        assert done.err == "" or status
        return SimpleNamespace(workdir=folder / "run", cache=cache, out=done.out, err=done.err)

    return train_


@pytest.fixture(scope="module")
def cached(train):
    return train("--feature_cache=require")


@pytest.fixture(scope="module")
def uncached(train):
    return train("--feature_cache=off")


@pytest.fixture
def copied(cached, tmp_path):
    """A cache that holds what the run with it left, for a test to spoil."""
    return Path(shutil.copytree(cached.cache, tmp_path / "copied"))


def entry_of(cache, split):
    [folder] = [
        path.parent
        for path in (Path(cache) / "features").glob("*/entry.json")
        if f" {split}, " in json.loads(path.read_text())["describe"]
    ]
    return folder


# --- The same numbers


def test_numbers_are_those_of_a_run_without(cached, uncached):
    assert (computed(cached.out), computed(uncached.out)) == (SPLITS, [])
    assert not (uncached.cache / "features").exists()
    assert_same_numbers(cached.workdir, uncached.workdir)
    # A comparison that could fail: something was learned, and pictures differ.
    losses = [row["loss"] for row in metrics(cached.workdir) if row["split"] == "validation"]
    assert losses[1] < losses[0] - 0.01
    assert np.ptp(predictions(cached.workdir)[1], axis=0).min() > 0.05


@pytest.mark.slow
def test_numbers_of_a_network_that_trains_in_part_are_those_of_a_run_without(train):
    with_it = train(*NET, TOP, "--feature_cache=auto")
    without = train(*NET, TOP, "--feature_cache=off")
    assert (computed(with_it.out), computed(without.out)) == (SPLITS, [])
    assert_same_numbers(with_it.workdir, without.workdir)
    losses = [row["loss"] for row in metrics(with_it.workdir) if row["split"] == "validation"]
    assert len({round(loss, 4) for loss in losses}) == 3


@pytest.mark.slow
def test_numbers_of_mobilenet_are_those_of_a_run_without(train, tmp_path):
    import tf_keras

    network = tf_keras.applications.MobileNetV2(
        include_top=False, weights=None, input_shape=(64, 64, 3), pooling="avg"
    )
    random = np.random.default_rng(0)
    for layer in network.layers:
        for weight in layer.weights:
            if "kernel" in weight.name:
                # With Keras's own initial weights, all pictures give the same features.
                inputs = 9 if "depthwise" in weight.name else np.prod(weight.shape[:-1])
                weight.assign(random.normal(size=weight.shape) * np.sqrt(2 / inputs))
    network.save_weights(tmp_path / "net.weights.h5")
    changes = (
        "--backbone=keras:MobileNetV2", f"--weights={tmp_path / 'net.weights.h5'}", "--image_size=64",
        "--phase=for=3epochs; train=head backbone/block_16.* backbone/Conv_1.*; lr=0.001; optimizer=sgd",
    )  # fmt: skip
    with_it, without = train(*changes, "--feature_cache=require"), train(*changes, "--feature_cache=off")
    assert computed(with_it.out) == SPLITS
    assert_same_numbers(with_it.workdir, without.workdir)
    assert np.ptp(predictions(with_it.workdir)[1], axis=0).min() > 0.01


@pytest.mark.slow
def test_a_view_an_epoch_gives_the_numbers_of_augmented_pictures(train):
    changes = (*NET, "--augment=flip,crop(0.3)")
    with_it, without = train(*changes, "--feature_views=2"), train(*changes)
    # The probe of the report asks for validation first, and for train as it is, which is not kept.
    assert computed(with_it.out) == ["validation", "test", "train, view 1", "train, view 2"]
    assert_same_numbers(with_it.workdir, without.workdir)
    # Without views, it says why nothing is computed once.
    assert computed(without.out) == []
    line = (
        "features:    phase frozen augments its pictures, so nothing is computed once; --feature_views=K "
        "keeps K augmented views of each\n"
    )
    assert line in without.out
    assert line not in with_it.out


# --- Once


@pytest.mark.parametrize("changes", [(), ("--memory_budget_mb=0",)], ids=["held", "from the files"])
def test_the_same_run_again_computes_nothing_and_is_the_same_to_the_last_bit(cached, train, changes):
    before = entries(cached.cache)
    again = train(*changes, cache=cached.cache)
    assert computed(again.out) == []
    assert left(again.workdir) == left(cached.workdir)
    assert entries(cached.cache) == before
    assert [describe for describe, _ in sorted(before)] == [
        f"{found} {split}, {backbone} to features, float32"
        for split in sorted(SPLITS)
        for found, backbone in [re.search(r"(folder:\S+), .*\n.*\n.*backbone: +(\S+),", cached.out).groups()]
    ]


@pytest.mark.slow
def test_another_seed_head_and_size_of_batch_share_the_features(cached, train):
    before = entries(cached.cache)
    # Fewer pictures than a batch has.
    changes = ("--seed=1", "--head=linear", "--dropout=0", "--batch_size=24")
    other = train(*changes, cache=cached.cache)
    assert computed(other.out) == []
    assert entries(cached.cache) == before
    assert_same_numbers(other.workdir, train(*changes, "--feature_cache=off").workdir)


def test_inspect_shows_what_is_kept(copied, options, tmp_path):
    kept = sorted((copied / "features").iterdir())
    for hours, folder in enumerate(kept):
        os.utime(folder / "entry.json", (3600 * hours, 3600 * hours))
    done = run("inspect", "--verbose", *options, f"--cache_dir={copied}", "--cache_limit_gb=1.5")
    assert (done.status, done.err) == (0, "")
    assert "\n  features: computed once up to features, 2: 0.0 KB a picture\n" in done.out
    head, *lines = done.out[done.out.index("\nfeature cache: ") + 1 :].splitlines()
    assert head == f"feature cache: {copied / 'features'}, 3 entries, 0.0 MB of at most 1.5 GB"
    assert lines == [
        f"  {folder.name[:12]}        0.0 MB  used 1970-01-01 0{hours}:00  "
        + json.loads((folder / "entry.json").read_text())["describe"]
        for hours, folder in reversed(list(enumerate(kept)))
    ]
    done = run("inspect", "--verbose", *options, f"--cache_dir={tmp_path / 'none'}", "--feature_cache=off")
    assert "\n  features: computed in each epoch, as --feature_cache=off asks for\n" in done.out
    assert done.out.endswith(
        f"\nfeature cache: {tmp_path / 'none/features'}, 0 entries, 0.0 MB of at most 20 GB\n"
    )
    assert not (tmp_path / "none" / "features").exists()


# --- Where it cannot be had


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (("--schedule=finetune",), "phase finetune trains the network from its first layers on"),
        (
            ("--augment=flip",),
            "phase frozen augments its pictures, so nothing is computed once; --feature_views=K keeps K "
            "augmented views of each",
        ),
    ],
    ids=["all trained", "augmented"],
)
def test_require_is_refused_where_no_phase_can_use_it(train, changes, why):
    done = train(*changes, "--feature_cache=require", status=2)
    assert done.err == f"trainer: --feature_cache=require: {why}\n"
    assert not list(done.workdir.rglob("ckpt-*"))
    assert not (done.cache / "features").exists()


@pytest.fixture(
    params=[pytest.param("below a file", marks=pytest.mark.slow), "no room under the limit", "full disk"]
)
def hindrance(request, tmp_path, copied):
    """(folder of the cache, options, what the message says, splits that cannot be kept)."""
    if request.param == "below a file":
        (tmp_path / "file").write_text("")
        cache = tmp_path / "file" / "cache"
        yield cache, (), f"the feature cache cannot write 240 bytes to {cache}/features: Not a dir", SPLITS
    elif request.param == "no room under the limit":
        shutil.rmtree(entry_of(copied, "train"))
        yield (
            copied,
            ("--cache_limit_gb=0.0000001",),
            "than the feature cache may hold (100 bytes, --cache_limit_gb=1e-07)",
            ["train"],
        )
    else:
        command = ["mount", "-t", "tmpfs", "-o", "size=60k", "tmpfs", copied]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("mounting takes more rights than this user has")
        yield copied, (), f"the feature cache needs 65,776 bytes in {copied}/features, ", SPLITS
        subprocess.run(["umount", copied], check=True)


def test_where_features_cannot_be_kept_auto_goes_on_and_require_fails(hindrance, train, uncached):
    cache, changes, message, splits = hindrance
    before = entries(cache)
    done = train(*changes, cache=cache)
    warnings = [line for line in done.out.splitlines() if line.startswith("features: ")]
    assert len(warnings) == len(splits)
    for split, line in zip(splits, warnings, strict=True):
        assert f" {split}, savedmodel:" in line
        assert line.endswith(". Without them, the network runs anew in each epoch")
    assert message in warnings[0]
    assert computed(done.out) == []
    assert_same_numbers(done.workdir, uncached.workdir)
    failed = train(*changes, "--feature_cache=require", cache=cache, status=1)
    assert re.fullmatch(r"trainer: folder:\S+ train, .*\n", failed.err)
    assert message in failed.err
    assert not list(failed.workdir.rglob("ckpt-*"))
    assert entries(cache) == before


class Two(Team):
    """A worker whose other one has the same of everything."""

    count = 2

    def exchange(self, what, value):
        return [value] * 2


def test_several_workers_compute_nothing_that_is_too_large_to_be_kept(train, monkeypatch):
    monkeypatch.setattr(feature_cache, "team", Two)
    failed = train("--feature_cache=require", "--cache_limit_gb=0.0000001", status=1)
    assert "than the feature cache may hold (100 bytes" in failed.err
    assert computed(failed.out) == []


def test_several_workers_remove_what_they_use_last_too(copied, options, monkeypatch):
    monkeypatch.setattr(feature_cache, "team", Two)
    limit = sum(path.stat().st_size for path in copied.glob("features/*/features.npy"))
    given = (f"--cache_dir={copied}", "--workdir=none", f"--cache_limit_gb={limit / 1e9}")
    experiment = Experiment(parse(["trainer", *options, *given]).config)
    stage = make_stages(experiment, decided={}).current()
    assert stage.cut_of("train")
    used = entry_of(copied, "train")
    os.utime(used / "entry.json", (0, 0))
    # Others, for which something must go.
    experiment.backbone.libraries = {"keras-hub": "0.1"}
    assert stage.cut_of("validation")
    assert used.exists()
    assert len(entries(copied)) == len(SPLITS)


# --- Damage, death and company


# --- What the numbers of a cache are of


@pytest.mark.slow
def test_views_go_by_the_places_of_pictures_in_their_source(train, tmp_path):
    """By these it is drawn what becomes of each: where a picture before them has gone, all is drawn anew."""
    for split, count in (("train", 6), ("validation", 2), ("test", 2)):
        make_flower_folder(tmp_path / "pictures" / split, n=count)
    cut = tmp_path / "pictures" / "train" / "blue" / "0.jpg"
    cut.write_bytes(b"\xff\xd8 cut")
    changes = (f"--source=folder:{tmp_path / 'pictures'}", "--splits=auto", "--on_bad_image=skip", *NET, TOP)
    changes = (*changes, "--split_order=source", "--augment=flip,crop(0.5)", "--feature_views=2")
    before = train(*changes)
    cut.unlink()
    again, fresh = train(*changes, cache=before.cache), train(*changes)
    assert left(again.workdir) == left(fresh.workdir)


def test_pictures_that_have_changed_places_are_looked_at_anew(train, tmp_path):
    pictures = make_flower_folder(tmp_path / "pictures", n=8, classes=("grey", "black"))
    for path in pictures.rglob("*.jpg"):
        # All of one size and time: nothing but their bytes tells one from another.
        path.write_bytes(path.read_bytes() + bytes(2000 - path.stat().st_size))
        os.utime(path, ns=(10**18, 10**18))
    changes = (f"--source=folder:{pictures}", "--splits=8,4,4", "--split_seed=3")
    before = train(*changes)
    for names in (("grey", "aside"), ("black", "grey"), ("aside", "black")):
        (pictures / names[0]).rename(pictures / names[1])
    again = train(*changes, cache=before.cache)
    fresh = train(*changes)
    assert computed(again.out) == SPLITS
    assert left(again.workdir) == left(fresh.workdir)
    splits = json.loads((again.workdir / "splits.json").read_text())["splits"]
    for path, name, digest in (row for rows in splits.values() for row in rows):
        assert digest == hashlib.sha256((pictures / path).read_bytes()).hexdigest()
        assert path.split("/")[0] == name


@pytest.mark.slow
def test_other_code_computes_other_features(cached, train, tmp_path, monkeypatch):
    # As in a checkout of this project in which `to_contract` was edited: the source, and what it does.
    package = tmp_path / "trainer"
    shutil.copytree(provenance._PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    source = package / "data" / "decode.py"
    edited = source.read_text().replace(
        "return _resized(image, wanted", "return 0.0 * _resized(image, wanted"
    )
    assert edited != source.read_text()
    source.write_text(edited)
    cache = shutil.copytree(cached.cache, tmp_path / "cache")
    monkeypatch.setattr(provenance, "_PACKAGE", package)
    real = pipeline.to_contract
    monkeypatch.setattr(pipeline, "to_contract", lambda *given: 0.0 * real(*given))
    black = train(cache=cache)
    assert computed(black.out) == SPLITS
    features = {np.frombuffer(data[128:], np.float32).max() for *_, data in entries(cache).values()}
    assert 0.0 in features
    assert len(entries(cache)) == 2 * len(entries(cached.cache))
    assert computed(train(cache=cache).out) == []
    monkeypatch.undo()
    assert computed(train(cache=cache).out) == []


def test_another_version_of_a_library_that_a_network_needs_computes_other_features(cached, options):
    config = parse(["trainer", *options, f"--cache_dir={cached.cache}", "--workdir=none"]).config
    experiment = Experiment(config)

    def missing():
        return make_stages(experiment, decided={}).current().missing(*SPLITS)

    assert missing() == 0
    experiment.backbone.libraries = {"keras-hub": "0.1"}
    assert missing() == 24


def test_features_of_a_gpu_that_rounds_are_others(cached, options, monkeypatch):
    config = parse(["trainer", *options, f"--cache_dir={cached.cache}", "--workdir=none"]).config
    experiment = Experiment(config)

    def missing():
        return make_stages(experiment, decided={}).current().missing(*SPLITS)

    real, enabled = tf.config.list_logical_devices, True
    monkeypatch.setattr(tf.config.experimental, "tensor_float_32_execution_enabled", lambda: enabled)
    assert missing() == 0
    monkeypatch.setattr(
        tf.config, "list_logical_devices", lambda kind=None: [kind] if kind == "GPU" else real(kind)
    )
    assert missing() == 24
    enabled = False
    assert missing() == 0


def test_all_code_that_runs_on_the_way_to_features_is_covered(train):
    covered = provenance.covered_files(*features.COMPUTING)
    ran = set()

    def note(frame, event, argument):
        ran.add(frame.f_code.co_filename)

    real = FeatureStore.get

    def get(self, key, *, compute, **options):
        def noted():
            blocks = compute()
            while True:
                # From the first block on: pictures are opened, functions are traced and run.
                sys.setprofile(note)
                try:
                    block = next(blocks, None)
                finally:
                    sys.setprofile(None)
                if block is None:
                    return
                yield block

        # A probe is fitted to features, and is on no way to them.
        return real(self, key, compute=compute if "probe" in key else noted, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FeatureStore, "get", get)
        train(*NET, "--augment=flip,crop(0.5)", "--feature_views=2", TOP)
    package = provenance._PACKAGE
    ours = {Path(name) for name in ran if name.startswith(f"{package}{os.sep}")}
    assert {package / "data" / "decode.py", package / "model" / "cuts.py"} <= ours
    wiring = {package.joinpath(*name.split(".")[1:]).with_suffix(".py") for name in features.WIRING}
    # These show how far the work is, and end it; the store is asked what others have computed.
    told = {
        package / name
        for name in ("record/progress.py", "runtime.py", "run/session.py", "store/feature_store.py")
    }
    assert ours - covered - wiring - told == set()


def test_damaged_files_are_named_and_computed_anew(cached, copied, train):
    flipped, cut, garbage = (entry_of(copied, split) for split in SPLITS)
    data = bytearray((flipped / "features.npy").read_bytes())
    data[-5] ^= 1
    (flipped / "features.npy").write_bytes(data)
    os.truncate(cut / "features.npy", 140)
    (garbage / "entry.json").write_text("garbage")
    done = train(cache=copied)
    damaged = re.findall(
        r"^feature cache, folder:\S+ (\S+), .*: (\S+) is damaged, computing it anew: ", done.out, re.M
    )
    assert damaged == [("train", str(flipped)), ("validation", str(cut)), ("test", str(garbage))]
    assert computed(done.out) == SPLITS
    assert left(done.workdir) == left(cached.workdir)
    assert {key: data for key, (*_, data) in entries(copied).items()} == {
        key: data for key, (*_, data) in entries(cached.cache).items()
    }


@pytest.mark.slow
def test_a_file_cut_short_while_in_use_is_named_and_computed_anew(cached, copied, options, tmp_path):
    file, rows = entry_of(copied, "train") / "features.npy", StoredFeatures.rows
    reads = []

    def cut_short(self, positions):
        reads.append(1)
        if len(reads) == STEPS:
            os.truncate(file, 200)
        return rows(self, positions)

    command = [*options, f"--cache_dir={copied}", f"--workdir={tmp_path / 'run'}", "--memory_budget_mb=0"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StoredFeatures, "rows", cut_short)
        done = run(*command)
    message = f"trainer: {file} was cut short while in use; the same command computes it anew\n"
    assert (done.status, done.err) == (1, message)
    done = run(*command)
    assert (done.status, computed(done.out)) == (0, ["train"])
    assert left(tmp_path / "run") == left(cached.workdir)


def program(text, *arguments):
    return Program(arguments, code=text)


# Waits at each split until another process asks for the same.
TOGETHER = """
import os, pathlib, sys, time
from tests.helpers.undrawn import undrawn
from trainer.store.feature_store import FeatureStore
from trainer.main import main

get, here, asked = FeatureStore.get, pathlib.Path(sys.argv.pop(1)), []

def get_together(*args, **options):
    asked.append(1)
    (here / f"{len(asked)}-{os.getpid()}").touch()
    while len(list(here.glob(f"{len(asked)}-*"))) < 2:
        time.sleep(0.01)
    return get(*args, **options)

FeatureStore.get = get_together
with undrawn():
    sys.exit(main(sys.argv))
"""


@pytest.mark.slow
def test_two_runs_at_once_compute_once_and_give_the_same(cached, options, tmp_path):
    (tmp_path / "here").mkdir()
    # The report names the folder of its run.
    name = cached.workdir.name
    cache, workdirs = tmp_path / "cache", [tmp_path / "one" / name, tmp_path / "two" / name]
    started = [
        program(TOGETHER, tmp_path / "here", *options, f"--cache_dir={cache}", f"--workdir={workdir}")
        for workdir in workdirs
    ]
    outs = []
    for each in started:
        out, err = each.communicate()
        assert each.returncode == 0, err[-2000:]
        outs.append(out)
    assert sorted(computed("".join(outs))) == sorted(SPLITS)
    assert [left(workdir) for workdir in workdirs] == [left(cached.workdir)] * 2
    assert entries(cache).keys() == entries(cached.cache).keys()


# Dies in the middle of the training pictures.
KILLED = """
import os, signal, sys
from trainer.store.feature_store import FeatureStore
from trainer.main import main

get = FeatureStore.get

def get_and_die(*args, compute, **options):
    def some():
        blocks = compute()
        yield next(blocks)
        yield next(blocks)
        os.kill(os.getpid(), signal.SIGKILL)
    return get(*args, compute=some, **options)

FeatureStore.get = get_and_die
main(sys.argv)
"""


@pytest.mark.slow
def test_a_run_killed_while_it_computes_is_simply_started_again(cached, options, tmp_path):
    command = [*options, f"--cache_dir={tmp_path / 'cache'}", f"--workdir={tmp_path / 'run'}"]
    killed = program(KILLED, *command)
    _, err = killed.communicate()
    assert killed.returncode == -signal.SIGKILL, err[-2000:]
    assert list((tmp_path / "cache" / "features").glob(".*.tmp/features.npy"))
    assert entries(tmp_path / "cache") == {}
    done = run(*command)
    assert (done.status, done.err, computed(done.out)) == (0, "", SPLITS)
    assert left(tmp_path / "run") == left(cached.workdir)
    kept = {path.name for path in (tmp_path / "cache" / "features").iterdir()}
    assert kept == {digest for _, digest in entries(cached.cache)}


def stopping(*arguments, after):
    """Runs the program; it is asked to stop after so many steps of its own."""
    from trainer.loop.standard_callbacks import Stop
    from trainer.runtime import StopSignal

    looks, look = [], Stop.__call__

    def counted(self, state):
        looks.append(state.step)
        look(self, state)

    with pytest.MonkeyPatch.context() as patch:
        for asked in ("received", "requested"):
            patch.setattr(StopSignal, asked, lambda self: "a signal" if len(looks) >= after else "")
        patch.setattr(Stop, "__call__", counted)
        patch.setattr(Stop, "next_due", lambda self, step: step + 1)
        return run(*arguments)


def test_a_run_stopped_while_features_are_computed_goes_on_to_the_last_bit(cached, options, tmp_path):
    command = [*options, f"--cache_dir={tmp_path / 'cache'}", f"--workdir={tmp_path / 'run'}"]
    done = stopping(*command, after=0)
    assert done.status == 75
    assert "stopped before the first step. Run the same command to start again" in done.err
    assert not list((tmp_path / "cache" / "features").glob("*/features.npy"))
    done = run(*command)
    assert (done.status, computed(done.out)) == (0, SPLITS)
    assert left(tmp_path / "run") == left(cached.workdir)


@pytest.mark.slow
def test_a_run_stopped_in_the_middle_goes_on_to_the_last_bit(cached, options, tmp_path):
    command = [*options, f"--cache_dir={tmp_path / 'cache'}", f"--workdir={tmp_path / 'run'}"]
    assert stopping(*command, after=3).status == 75
    # With the features it left, then without them.
    done = stopping(*command, after=3)
    assert (done.status, computed(done.out)) == (75, [])
    shutil.rmtree(tmp_path / "cache")
    done = run(*command)
    assert (done.status, computed(done.out)) == (0, SPLITS)
    assert "goes on from step 6 of 8" in done.out
    assert left(tmp_path / "run") == left(cached.workdir)


# --- Features in one phase, pictures in the next


@pytest.mark.slow
def test_two_phases_and_what_is_scored_later(train):
    changes = (
        "--schedule=two_phase", "--frozen_for=2epochs", "--finetune_for=1epochs",
        "--finetune_learning_rate=1", "--optimizer=sgd", "--frozen_learning_rate=0.5",
    )  # fmt: skip
    with_it, without = train(*changes), train(*changes, "--feature_cache=off")
    assert_same_numbers(with_it.workdir, without.workdir)
    assert computed(with_it.out) == SPLITS
    report = with_it.workdir / "report"
    best = json.loads((report / "metrics.json").read_text())["step"]
    assert best <= STEPS < metrics(with_it.workdir)[-2]["step"]  # The best are of the frozen phase.
    # The record of what was written here covers the reports of other splits, too.
    before = {path.name: path.read_bytes() for path in report.iterdir() if "manifest" not in path.name}
    assert {"metrics.json", "calibration.json", "index.html"} <= set(before)
    # Alone, the best weights are scored with the features that are kept, and the last ones with pictures.
    for checkpoint, split in (("best", "test"), ("latest", "validation")):
        arguments = (f"--workdir={with_it.workdir}", f"--checkpoint={checkpoint}", f"--eval_split={split}")
        done = run("evaluate", *arguments)
        assert (done.status, done.err, computed(done.out)) == (0, "", [])
    assert {name: (report / name).read_bytes() for name in before} == before
    last = [row for row in metrics(without.workdir) if row["split"] == "validation"][-1]
    scored = json.loads((report / "validation" / "metrics.json").read_text())
    assert (scored["step"], scored["accuracy"]) == (last["step"], pytest.approx(last["accuracy"]))
    assert scored["loss"] == pytest.approx(last["loss"], abs=1e-5)


# --- Several devices

ON_TWO = """
import sys
from trainer.runtime import start_tensorflow
start_tensorflow()
import tensorflow as tf
[cpu] = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from trainer.main import main
sys.exit(main(sys.argv))
"""


@pytest.mark.slow
def test_two_devices_give_the_numbers_of_one(cached, options, tmp_path):
    command = [*options, f"--cache_dir={tmp_path / 'cache'}", f"--workdir={tmp_path / 'run'}"]
    mirrored = program(ON_TWO, *command, "--strategy=mirrored")
    out, err = mirrored.communicate()
    assert mirrored.returncode == 0, err[-2000:]
    assert computed(out) == SPLITS
    assert_same_numbers(tmp_path / "run", cached.workdir)
    assert weights(tmp_path / "run").keys() == weights(cached.workdir).keys()
    one, two = entries(cached.cache), entries(tmp_path / "cache")
    assert one.keys() == two.keys()
    for key, (*_, data) in one.items():
        found, expected = (np.frombuffer(each[128:], np.float32) for each in (two[key][2], data))
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
