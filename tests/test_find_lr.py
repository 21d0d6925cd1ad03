"""`find_lr` through the door: what it writes, and what it refuses."""

import json
import math

import pytest

from tests.conftest import make_flower_folder
from tests.record.events import scalars, steps_of
from trainer.store.files import read_json


@pytest.fixture
def find(tmp_path, tiny_backbone, run_main):
    pictures = make_flower_folder(tmp_path / "pictures", n=12)

    def found(*flags):
        return run_main(
            "find_lr", f"--source=folder:{pictures}", f"--backbone=savedmodel:{tiny_backbone}",
            "--image_size=8", "--splits=60%,40%", "--batch_size=8", "--head=mlp(8)", "--precision=float32",
            "--schedule=two_phase", f"--workdir={tmp_path / 'run'}", *flags,
        )  # fmt: skip

    return found


def test_it_leaves_a_curve_and_a_rate(find, tmp_path):
    status, out, err = find("--find_lr_range=1e-5,10", "--find_lr_steps=60")
    assert (status, err) == (0, "")
    folder = tmp_path / "run" / "find_lr"
    values = read_json(folder / "find_lr.json")
    assert 1e-5 < values["proposed"] < 10
    assert f"learning rate for phase frozen: {values['proposed']:.2g}, where the loss falls fastest" in out
    assert values["rates"][0] == pytest.approx(1e-5)
    assert len(values["losses"]) == len(values["rates"]) == len(values["smoothed"]) <= 60
    assert (folder / "find_lr.png").read_bytes().startswith(b"\x89PNG")
    events = scalars(folder / "train")
    assert [value for _, value in events["loss"]] == pytest.approx(values["losses"])
    assert [value for _, value in events["learning_rate"]] == pytest.approx(values["rates"])
    assert steps_of(folder / "train")["find_lr"] == [len(values["rates"])]
    # It is not the beginning of a run.
    assert not (tmp_path / "run" / "run.json").exists()
    # Done again, it is written anew.
    assert find("--find_lr_range=1e-5,10", "--find_lr_steps=40")[0] == 0
    assert len(read_json(folder / "find_lr.json")["rates"]) <= 40
    assert len((folder / "metrics.jsonl").read_text().splitlines()) <= 40
    assert json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])["step"] == 1


def test_a_head_that_is_fitted_before_it_trains_is_fitted_here_too(find, tmp_path):
    flags = ("--schedule=finetune", "--find_lr_range=1e-5,10", "--find_lr_steps=40")
    assert find("--head=zero_linear", *flags)[0] == 0
    values = read_json(tmp_path / "run" / "find_lr" / "find_lr.json")
    assert values["losses"][0] == pytest.approx(math.log(3), abs=1e-3)
    status, out, err = find("--head=probe(0.01)", *flags)
    assert (status, err) == (0, "")
    assert "head:        logistic regression, C=0.01, on " in out
    fitted = read_json(tmp_path / "run" / "find_lr" / "find_lr.json")
    assert fitted["losses"][0] < 1.0


def test_another_phase(find, tmp_path):
    status, out, err = find("--find_lr_phase=finetune", "--find_lr_range=1e-5,10", "--find_lr_steps=40")
    assert (status, err) == (0, "")
    assert "learning rate for phase finetune: " in out
    assert read_json(tmp_path / "run" / "find_lr" / "find_lr.json")["phase"] == "finetune"


@pytest.mark.parametrize(
    ("flag", "status", "message"),
    [
        ("--find_lr_range=1", 2, "--find_lr_range=1 is not two rates such as 1e-6,1"),
        ("--find_lr_range=1,0.1", 2, "--find_lr_range=1,0.1: the first number must be below the second"),
        ("--find_lr_range=0,1", 2, "--find_lr_range=0,1: the lowest rate must be above 0"),
        ("--find_lr_range=1,inf", 2, "--find_lr_range=1,inf: the first number must be below the second"),
        ("--find_lr_phase=last", 2, "--find_lr_phase=last is not one of frozen, finetune"),
        ("--find_lr_steps=3", 2, "--find_lr_steps=3 must be 10 or more"),
        (
            "--find_lr_range=1e-12,1e-11", 1,
            "phase frozen: the loss does not fall over a decade of rates from 1e-12 to 9.77e-12; try another "
            "--find_lr_range, or more --find_lr_steps",
        ),
    ],
)  # fmt: skip
def test_what_it_refuses(flag, status, message, find):
    assert find(flag)[0::2] == (status, f"trainer: {message}\n")
