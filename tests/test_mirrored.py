"""Runs on several devices whose BatchNorm statistics move: evaluated, cached, killed, rolled back."""

import json

import numpy as np
import pytest

from tests.helpers.processes import run_program


@pytest.fixture(scope="module", params=[pytest.param(count, marks=pytest.mark.slow) for count in (2, 3, 4)])
def found(request, tmp_path_factory, tiny_backbone):
    folder = tmp_path_factory.mktemp("mirrored")
    done = run_program([request.param, folder, tiny_backbone], module="tests.helpers.mirrored_program")
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_evaluate_scores_what_training_scored(found):
    status, step, scored, in_training = found["evaluated"]
    assert (status, step) == (0, 3)
    # float64 in one file, float32 in the other.
    assert np.float32(scored).tolist() == pytest.approx(np.float32(in_training).tolist(), rel=1e-6)


def test_a_killed_run_goes_on_to_the_same_numbers(found):
    assert [found[name][0] for name in ("whole", "killed")] == [0, 0]
    assert "goes on from step 3 of 7" in found["killed"][1]
    assert found["rows"]["killed"] == found["rows"]["whole"]
    assert found["weights"]["killed"] == found["weights"]["whole"]


def test_kept_features_are_those_of_all_devices(found):
    assert found["uncached"][0] == 0
    assert "features of train" in found["whole"][1]
    assert "features of train" not in found["uncached"][1]
    for with_them, without in zip(found["rows"]["whole"], found["rows"]["uncached"], strict=True):
        assert with_them.keys() == without.keys()
        for name, value in with_them.items():
            assert value == (pytest.approx(without[name], rel=1e-5) if name == "loss" else without[name])


def test_a_run_that_goes_back_ends_in_the_same_process(found):
    status, out = found["rollback"]
    assert status == 0, out
    assert out.count("goes back to step") == found["rollbacks"] == 2


def test_steps_are_measured_on_all_devices_before_a_run_begins(tmp_path, tiny_backbone):
    """What the optimizer of a later phase keeps must be on all of them."""
    done = run_program([tmp_path, tiny_backbone], module="tests.helpers.foreseen_program")
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {"frozen": True, "finetune": True}


@pytest.mark.parametrize(
    ("count", "flags", "said"),
    [
        (3, ("--batch_size=32",), "32 must be a multiple of 3, for 3 devices: use 30 or 33"),
        (3, ("--batch_size=2",), "2 must be a multiple of 3, for 3 devices: use 3"),
        (
            2,
            ("--batch_size=6", "--accumulate=2", "--schedule=frozen"),
            "6 must be a multiple of 4, for 2 devices in 2 parts each: use 4 or 8",
        ),
    ],
)
def test_batches_that_devices_cannot_share_are_refused_with_those_that_they_can(count, flags, said, tmp_path):
    code = f"""
import sys
import tensorflow as tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * {count}
)
from trainer.main import program
program()
"""
    done = run_program(["train", "--strategy=mirrored", f"--workdir={tmp_path}", *flags], code=code)
    assert (done.returncode, done.stderr) == (2, f"trainer: --batch_size={said}\n")
