"""Kept pictures as a user meets them: the same bits, decoded once, whatever happens to the file."""

import contextlib
import io
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from tests.conftest import call_main, changed, make_flower_folder
from tests.helpers.feature_runs import left, tiny_net
from tests.helpers.undrawn import PLAIN
from trainer.cli.flags import parse
from trainer.data.pipeline import Pipeline
from trainer.run import picture_cache
from trainer.run.experiment import Experiment
from trainer.run.session import make_stages

pytestmark = pytest.mark.usefixtures("figures_undrawn")
# 14 + 5 + 5 pictures: no split fills its last batch.
SETTINGS = (
    "--image_size=8", "--splits=14,5,5", "--batch_size=4", "--head=linear", "--precision=float32",
    "--backbone=keras:TinyNet", "--weights=none", "--progress=plain", *PLAIN,
)  # fmt: skip
HEAD = "--phase=name=head; for=2epochs; train=head; lr=0.05"
TOP = "--phase=name=top; for=2epochs; train=head backbone/last.*; lr=0.02"
ALL = "--phase=name=all; for=2epochs; train=all; lr=0.02"
AUGMENTED = ("--augment=flip,crop(0.2)",)


@pytest.fixture(scope="module", autouse=True)
def with_tiny_net():
    with tiny_net():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_flower_folder(tmp_path_factory.mktemp("pictures"), n=8)


@pytest.fixture
def train(folder, tmp_path, decoded):
    """train(*options) -> a run with a cache that all of a test share."""

    def train_(*changes, status=0, source=folder):
        workdir = tmp_path / str(len(list(tmp_path.iterdir()))) / "run"
        workdir.parent.mkdir()
        named = (f"--source=folder:{source}", f"--workdir={workdir}", f"--cache_dir={tmp_path / 'cache'}")
        decoded.clear()
        with (
            contextlib.redirect_stdout(io.StringIO()) as out,
            contextlib.redirect_stderr(io.StringIO()) as err,
        ):
            assert call_main(*changed([*named, *SETTINGS, "--picture_cache=require"], *changes)) == status
        return SimpleNamespace(workdir=workdir, out=out.getvalue(), err=err.getvalue())

    return train_


@pytest.fixture
def decoded(monkeypatch):
    """Positions of the pictures whose encoded bytes a pipeline asks for, as often as it does."""
    asked, encoded = [], Pipeline.encoded
    monkeypatch.setattr(Pipeline, "encoded", lambda self, index: asked.append(index) or encoded(self, index))
    return asked


@pytest.mark.parametrize(
    "options",
    [
        pytest.param((TOP, *AUGMENTED), marks=pytest.mark.slow),
        pytest.param((HEAD, TOP, *AUGMENTED, "--feature_cache=off"), marks=pytest.mark.slow),
        pytest.param((HEAD, ALL), marks=pytest.mark.slow),
        (TOP, "--augment=flip,mixup(0.2)", "--resize=pad", "--antialias"),
        pytest.param((HEAD, TOP, *AUGMENTED, "--feature_views=2"), marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_the_same_bits_with_and_without(train, decoded, options):
    without = train(*options, "--picture_cache=off")
    many = len(decoded)
    kept = train(*options)
    assert left(kept.workdir) == left(without.workdir)
    assert "14 of train at 8x8 px are kept" in kept.out
    assert "5 of validation at 8x8 px are kept" in kept.out
    # Each of train and validation once; those of test are needed no oftener than they were.
    training = [at for at in decoded if decoded.count(at) == 1]
    assert len(training) >= 19
    assert len(decoded) < many
    again = train(*options)
    assert left(again.workdir) == left(without.workdir)
    assert len(set(decoded)) <= 5, "another run decodes test pictures alone"


@pytest.mark.slow
def test_pictures_that_have_changed_are_decoded_anew(train, tmp_path, folder):
    train(ALL)
    other = shutil.copytree(folder, tmp_path / "other")
    for path in other.rglob("*.jpg"):
        Image.open(path).transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(path)
    changed_, without = train(ALL, source=other), train(ALL, "--picture_cache=off", source=other)
    assert left(changed_.workdir) == left(without.workdir)


@pytest.mark.slow
def test_what_is_damaged_or_was_never_finished_is_made_anew(train, tmp_path, monkeypatch):
    without = train(ALL, "--picture_cache=off")
    pixels = Pipeline.pixels

    def broken(self, indices):
        yield next(iter(pixels(self, indices)))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Pipeline, "pixels", broken)
        train(ALL, status=130)
    assert not list((tmp_path / "cache" / "pictures").glob("*/entry.json"))
    assert left(train(ALL).workdir) == left(without.workdir)
    file = max((tmp_path / "cache" / "pictures").glob("*/features.npy"), key=lambda path: path.stat().st_size)
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    mended = train(ALL)
    assert "picture cache, folder:" in mended.out
    assert "is damaged, computing it anew" in mended.out
    assert left(mended.workdir) == left(without.workdir)
    assert file.read_bytes() == whole


@pytest.mark.parametrize(
    ("every", "step", "train", "validation"),
    # Two phases of 2 epochs, 4 steps each; the first one keeps features.
    [
        ("1epochs", 0, 3, 3),
        ("1steps", 0, 3, 9),
        ("3steps", 0, 3, 5),
        ("1steps", 13, 1, 3),
        ("2epochs", 0, 3, 2),
    ],
)
def test_pictures_of_validation_are_needed_in_each_evaluation(folder, every, step, train, validation):
    given = (f"--source=folder:{folder}", *SETTINGS, HEAD, ALL, f"--evaluate_every={every}", "--workdir=none")
    stages = make_stages(Experiment(parse(["trainer", *given]).config), decided={})
    stages.state.jump(step)
    passes = [picture_cache.passes(stages, split) for split in ("train", "validation")]
    assert passes == [train, validation]


def test_no_room(train):
    less = "--cache_limit_gb=0.000001"
    failed = train(ALL, less, status=1)
    assert "10,880 bytes are more than the picture cache may hold (1,000 bytes" in failed.err
    assert failed.err.count("\n") == 1


def test_nothing_is_needed_twice(train):
    failed = train(ALL.replace("2epochs", "1epochs"), status=2)
    assert failed.err == "trainer: --picture_cache=require: this run goes through no picture more than once\n"


@pytest.mark.slow
def test_auto_keeps_large_photos_and_no_small_ones(train, tmp_path, monkeypatch):
    monkeypatch.setattr(picture_cache, "LEAST_SAVED_SECS", 0.0)
    random = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "large" / name).mkdir(parents=True)
        for number in range(4):
            coarse = Image.fromarray(random.integers(0, 255, (8, 8, 3), np.uint8))
            coarse.resize((1500, 1500)).save(tmp_path / "large" / name / f"{number}.jpg")
    options = ("--picture_cache=auto", "--splits=4,2,2", "--batch_size=2")
    with monkeypatch.context() as patch:
        # A few milliseconds are not worth a file.
        patch.setattr(picture_cache, "LEAST_SAVED_SECS", 60.0)
        assert "are kept" not in train(*options, ALL, source=tmp_path / "large").out
    large = train(*options, ALL, source=tmp_path / "large")
    assert "4 of train at 8x8 px are kept, 3.1 kB" in large.out
    # What is there is taken, and nothing is measured.
    with monkeypatch.context() as patch:
        patch.delattr(picture_cache, "_decode_secs")
        assert "4 of train at 8x8 px are kept" in train(*options, ALL, source=tmp_path / "large").out
    small = train("--picture_cache=auto", "--image_size=224", ALL)
    assert "are kept" not in small.out
    # One epoch gains nothing.
    once = train(*options, ALL.replace("2epochs", "1epochs"), source=tmp_path / "large")
    assert "are kept" not in once.out
