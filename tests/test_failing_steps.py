"""Faults of TensorFlow's operations in the middle of the work: one line with the reason, and nothing lost."""

import json
import re

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tests.conftest import make_flower_folder
from tests.helpers.feature_runs import metrics, weights
from tests.helpers.undrawn import PLAIN
from trainer.serving.server import Listener

pytestmark = pytest.mark.usefixtures("figures_undrawn")

STEPS = 9
PAGES = ("/predict", "/explain")
REASONS = {
    "assertion": r"TensorFlow failed: assertion failed: \[a picture is too bright:\] \[.*\]",
    "memory": r"out of memory: there is no room for a tensor of shape \[1099511627776,16\] \(float\)\. "
    r"A smaller --batch_size or --image_size needs less; in training also --accumulate=2, which computes "
    r"each batch in 2 parts",
}


class Faulty:
    """A network that fails for a white picture as long as there is a file of the name of a fault.

    If there is one named `any`, too, then for any picture but a black one.
    """

    def __init__(self, folder):
        self.folder, self.path = folder, folder / "module"
        module = tf.train.Checkpoint()
        features = tf.function(self._features)
        for training in (True, False):
            features.get_concrete_function(tf.TensorSpec([None, 8, 8, 3]), training)
        module.__call__ = features
        module.variables, module.trainable_variables, module.regularization_losses = [], [], []
        tf.saved_model.save(module, str(self.path))

    def _features(self, inputs, training=False):
        light = tf.reduce_mean(inputs, [1, 2])

        def there(name):
            return tf.size(tf.io.matching_files(str(self.folder / name))) > 0

        is_bright = tf.reduce_any(tf.reduce_min(light, axis=1) > 0.98)
        is_bright |= tf.reduce_any(light > 0.1) & there("any")

        def fails(fault):
            return is_bright & there(fault)

        checks = [tf.debugging.Assert(~fails("assertion"), ["a picture is too bright:", light])]
        with tf.control_dependencies(checks):
            rows = tf.where(fails("memory"), 2**40, tf.constant(1, tf.int64))
            return light + tf.reduce_sum(tf.fill([rows, 16], 0.0))


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    return Faulty(tmp_path_factory.mktemp("faulty"))


@pytest.fixture
def fault(faulty):
    """Sets faults; none is left for the next test."""
    yield lambda name: (faulty.folder / name).touch()
    for name in (*REASONS, "any"):
        (faulty.folder / name).unlink(missing_ok=True)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Eighteen, of which one is white: it is one of the 12 that train."""
    folder = make_flower_folder(tmp_path_factory.mktemp("pictures") / "pictures")
    Image.fromarray(np.full((10, 12, 3), 255, np.uint8)).save(folder / "red" / "000.png")
    (folder / "red" / "000.jpg").unlink()
    return folder


@pytest.fixture(scope="module")
def arguments(pictures, faulty):
    return [
        f"--source=folder:{pictures}", f"--backbone=savedmodel:{faulty.path}", "--image_size=8",
        "--head=linear", "--splits=12,3,3", "--split_order=take_skip", "--split_seed=2", "--seed=1",
        "--batch_size=4",
        "--schedule=frozen", f"--frozen_for={STEPS}steps", "--save_every=1steps", "--precision=float32",
        *PLAIN,
        "--feature_cache=off", "--value_range=0,1",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(arguments, tmp_path_factory):
    from tests.conftest import call_main

    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    assert call_main(*arguments, f"--workdir={workdir}") == 0
    return workdir


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name == "memory")) for name in REASONS]
)
@pytest.mark.slow
def test_a_step_that_fails_is_told_in_a_line_and_the_run_goes_on_from_the_last_checkpoint(
    arguments, undisturbed, fault, faulty, tmp_path, run_main, name
):
    workdir = tmp_path / "run"
    fault(name)
    status, _, err = run_main(*arguments, f"--workdir={workdir}")
    assert re.fullmatch(f"trainer: {REASONS[name]}\n", err), err
    assert status == 1
    saved = sorted(path.stem for path in (workdir / "checkpoints").glob("ckpt-*.index"))
    failed_at = len(saved)
    assert saved == [f"ckpt-{step}" for step in range(1, failed_at + 1)]
    assert 1 <= failed_at < 3  # An epoch has three steps, and one of them the white picture.
    # The last checkpoint is whole.
    status, _, err = run_main(
        "evaluate", f"--workdir={workdir}", "--checkpoint=latest", f"--report_dir={tmp_path / 'report'}"
    )
    assert (status, err) == (0, "")
    assert json.loads((tmp_path / "report" / "metrics.json").read_text())["step"] == failed_at
    (faulty.folder / name).unlink()
    status, out, err = run_main(*arguments, f"--workdir={workdir}")
    assert (status, err) == (0, "")
    assert f"goes on from step {failed_at} of {STEPS}" in out
    assert metrics(workdir) == metrics(undisturbed)
    got, expected = weights(workdir), weights(undisturbed)
    for variable, value in expected.items():
        np.testing.assert_array_equal(got[variable], value, err_msg=variable)


def test_features_and_evaluations_that_fail(arguments, fault, tmp_path, run_main):
    fault("assertion")
    command = (*arguments, f"--cache_dir={tmp_path / 'cache'}", f"--workdir={tmp_path / 'run'}")
    status, _, err = run_main(*command, "--feature_cache=require")
    assert (status, re.fullmatch(f"trainer: {REASONS['assertion']}\n", err) is not None) == (1, True), err
    # With these shares it is one of those that validate: the first evaluation is at the end of the epoch.
    status, _, err = run_main(*command, "--splits=9,6,3")
    assert (status, re.fullmatch(f"trainer: {REASONS['assertion']}\n", err) is not None) == (1, True), err
    assert (tmp_path / "run" / "checkpoints" / "ckpt-3.json").exists()


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("evaluate", "assertion"), ("predict", "assertion"), ("explain", "assertion"),
        ("export", "assertion"), pytest.param("predict", "memory", marks=pytest.mark.slow),
        pytest.param("export", "memory", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_other_commands_that_fail(undisturbed, pictures, fault, tmp_path, run_main, command, name):
    given = {
        "evaluate": ["--eval_split=train", f"--report_dir={tmp_path / 'report'}"],
        "predict": [pictures / "red" / "000.png"],
        "export": ["--formats=saved_model", f"--export_dir={tmp_path / 'export'}"],
        "explain": [pictures / "red" / "000.png", f"--output={tmp_path / 'explained'}"],
    }[command]
    fault(name)
    if command == "export":
        fault("any")  # It needs only pictures of validation.
    status, _, err = run_main(command, *given, f"--workdir={undisturbed}")
    assert re.fullmatch(f"trainer: {REASONS[name]}\n", err), err
    assert status == 1
    assert not (tmp_path / "export").exists()


# TensorFlow waits ten seconds for memory, each time.
@pytest.mark.parametrize("name", ["assertion", pytest.param("memory", marks=pytest.mark.slow)])
def test_a_page_that_fails(undisturbed, pictures, fault, name, monkeypatch, run_main):
    """Whoever asked is told, and the next one gets an answer."""
    answers = []

    def ask(listener, app):
        client = app.test_client()
        for picture in ("red/000.png", "red/001.jpg"):
            data = (pictures / picture).read_bytes()
            answers.extend(client.post(path, data=data, base_url=listener.url) for path in PAGES)

    # Before the first picture: from then on TensorFlow takes what is there for a constant.
    fault(name)
    monkeypatch.setattr(Listener, "serve", ask)
    status, _, err = run_main("serve", f"--workdir={undisturbed}", "--port=0")
    assert (status, err) == (0, "")
    assert [answer.status_code for answer in answers] == [500, 500, 200, 200]
    for answer in answers[:2]:
        assert re.fullmatch(REASONS[name], answer.json["error"]), answer.json


def test_all_else_that_tensorflow_fails_with_is_a_line_too(run_main, monkeypatch):
    from trainer import commands

    def fail(error):
        def run(line):
            raise error

        monkeypatch.setattr(commands, "run", run)
        return run_main("inspect", "--source=synthetic:flowers")

    status, _, err = fail(tf.errors.NotFoundError(None, None, "{{function_node f}} no such kernel [Op:F]"))
    assert (status, err) == (1, "trainer: TensorFlow failed: no such kernel\n")
    status, _, err = fail(MemoryError("Unable to allocate 7 TiB"))
    assert (status, err.startswith("trainer: out of memory: Unable to allocate 7 TiB. A smaller ")) == (
        1,
        True,
    )
    with pytest.raises(ZeroDivisionError):
        fail(ZeroDivisionError())
