"""`features` through the door: parts that several processes compute, and the run that finds them."""

import json
import shutil

import pytest

from tests.conftest import make_flower_folder
from trainer.run import feature_cache


@pytest.fixture(scope="module")
def flags(tiny_backbone, tmp_path_factory):
    # 84 pictures of train are two pieces, 64 and 20, and 56 of validation are one.
    folder = make_flower_folder(tmp_path_factory.mktemp("pictures"), n=70, classes=("red", "green"))
    return [
        f"--source=folder:{folder}", f"--backbone=savedmodel:{tiny_backbone}", "--image_size=8",
        "--head=linear",
        "--splits=60%,40%", "--batch_size=16", "--precision=float32", "--schedule=frozen",
        "--frozen_for=1epochs", "--figures_every=", "--embeddings=0",
    ]  # fmt: skip


@pytest.fixture
def computed(monkeypatch):
    """How many pictures went through the network for what is kept."""
    counts = []
    whole = feature_cache.compute_features

    def counting(*given, **named):
        for rows in whole(*given, **named):
            counts.append(len(rows))
            yield rows

    monkeypatch.setattr(feature_cache, "compute_features", counting)
    return counts


def kept(cache):
    """{name of an entry: digest of its numbers} of a feature cache."""
    return {
        path.parent.name: json.loads(path.read_text())["sha256"]
        for path in (cache / "features").glob("*/entry.json")
    }


def test_pieces_smaller_than_a_batch_share_it(flags, tmp_path, run_main, computed):
    """Of 84 pictures in two pieces, 64 and 20, a batch of 96 takes all."""
    given = [one for one in flags if not one.startswith("--batch_size")]
    status, out, err = run_main("features", *given, "--batch_size=96", f"--cache_dir={tmp_path}")
    assert (status, err) == (0, "")
    assert computed == [84, 56]
    assert "features of train: 84 pictures" in out
    assert len(kept(tmp_path)) == 3


@pytest.mark.slow
def test_a_run_computes_what_no_part_has(flags, tmp_path, run_main, computed):
    cache, other = tmp_path / "cache", tmp_path / "other"
    status, out, err = run_main("features", *flags, f"--cache_dir={cache}", "--shard=2/2")
    assert (status, err) == (0, "")
    assert sum(computed) == 20
    assert "train:       20 pictures of part 2 of 2, 0 of them kept before\n" in out
    assert "validation:  0 pictures of part 2 of 2, 0 of them kept before\n" in out
    shutil.copytree(cache, other)
    # Killed and started again, it has nothing to do.
    computed.clear()
    status, out, _ = run_main("features", *flags, f"--cache_dir={cache}", "--shard=2/2")
    assert (status, computed) == (0, [])
    assert "20 pictures of part 2 of 2, 20 of them kept before" in out
    assert run_main("features", *flags, f"--cache_dir={cache}", "--shard=1/2")[0] == 0
    assert sum(computed) == 64 + 56
    # All is there.
    computed.clear()
    run = ["train", *flags, f"--workdir={tmp_path / 'run'}"]
    assert run_main(*run, f"--cache_dir={cache}")[0] == 0
    assert computed == []
    # A part is there.
    run[-1] += "2"
    assert run_main(*run, f"--cache_dir={other}")[0] == 0
    assert sum(computed) == 64 + 56
    # Nothing is there: the numbers are those of the parts.
    run[-1] += "3"
    assert run_main(*run, f"--cache_dir={tmp_path / 'none'}")[0] == 0
    alone = kept(tmp_path / "none")
    assert len(alone) == 2
    assert kept(cache).items() >= alone.items()
    assert kept(other).items() >= alone.items()


@pytest.mark.parametrize(("limit_gb", "status", "message"), [
    # 140 pictures of 2 numbers each are 1,120 bytes; those of a part are 64 or fewer.
    ("1e-6", 1, "features of train, validation: 1,120 bytes are more than the feature cache may hold"),
    ("2e-6", 0, "keeps them once more as a whole: with --cache_limit_gb=2e-06, some are computed again"),
])  # fmt: skip
def test_whether_all_parts_have_room_is_told_before_the_first(
    flags, tmp_path, run_main, computed, limit_gb, status, message
):
    given = (f"--cache_dir={tmp_path}", "--shard=2/2", f"--cache_limit_gb={limit_gb}")
    found, out, err = run_main("features", *flags, *given)
    assert found == status
    assert message in out + err
    assert bool(computed) == (not status)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--shard=3/2", "--shard=3/2 is no part, such as 1/16 to 16/16"),
        ("--shard=0/2", "--shard=0/2 is no part"),
        ("--feature_cache=off", "--feature_cache=off keeps nothing"),
        ("--augment=flip", "there are no features to keep: phase frozen augments its pictures"),
    ],
)
def test_what_is_refused(flags, tmp_path, run_main, flag, message):
    status, _, err = run_main("features", *flags, f"--cache_dir={tmp_path}", flag)
    assert status == 2
    assert message in err


def test_a_size_that_train_chooses_by_time_is_asked_for(flags, tmp_path, run_main):
    given = [flags[0], f"--cache_dir={tmp_path}", "--budget=5min", "--precision=float32"]
    status, _, err = run_main("features", *given)
    assert (status, err.count("\n")) == (2, 1)
    assert "one size: say which, here and for train, such as --image_size=224 or --image_size=288" in err
