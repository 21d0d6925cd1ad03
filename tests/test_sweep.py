"""`sweep` through the door: trials over kept features, and what it leaves."""

import json

import pytest

from tests.conftest import make_flower_folder
from trainer.store.files import read_json


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return make_flower_folder(tmp_path_factory.mktemp("pictures"), n=20)


@pytest.fixture(scope="module")
def base(pictures, tiny_backbone, tmp_path_factory):
    """The flags of a small experiment, whose features are kept for all tests of this file."""
    return [
        f"--source=folder:{pictures}", f"--backbone=savedmodel:{tiny_backbone}", "--image_size=8",
        "--splits=60%,40%", "--batch_size=8", "--precision=float32", "--schedule=frozen", "--frozen_for=2epochs",
        "--head=mlp(4)", f"--cache_dir={tmp_path_factory.mktemp('cache')}", "--figures_every=", "--embeddings=0",
    ]  # fmt: skip


def validations(workdir):
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line for line in lines if line["split"] == "validation"}


def test_a_trial_has_the_numbers_of_a_run(base, tmp_path, run_main):
    folder = tmp_path / "sweep"
    status, out, err = run_main(
        "sweep", *base, f"--workdir={folder}", "--metric=validation_loss", "--trials=6", "--sampler=random",
        "--search=frozen_learning_rate=log(1e-3,1e-1)", "--search=dropout=uniform(0.1,0.6)",
        "--search=label_smoothing=uniform(0.01,0.2)", "--search=optimizer=adam,adamw", "--repeat_seeds=2",
        "--weight_decay=0", "--lr_schedule=cosine",
    )  # fmt: skip
    print(out, err)
    assert (status, err) == (0, "")
    found = read_json(folder / "sweep.json")
    print(json.dumps(found, indent=1))
    status, out, err = run_main("train", f"--flagfile={folder / 'best.flags'}")
    print(out)
    best = found["trials"][found["best"] - 1]
    run = validations(folder / "best")
    print(best, run)
    assert best["value"] in [line["loss"] for line in run.values()]
    assert 0
