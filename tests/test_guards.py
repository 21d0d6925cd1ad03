"""Through the door: bad batches left out, runs that stop by the clock, weights of another run."""

import json
import re

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tests.conftest import make_flower_folder
from tests.helpers.feature_runs import metrics, weights
from tests.helpers.undrawn import PLAIN
from trainer.commands import train
from trainer.loop import standard_callbacks
from trainer.precision import left_out
from trainer.record.workdir import Workdir
from trainer.values import TrainerError

pytestmark = pytest.mark.usefixtures("figures_undrawn")
STEPS = 9


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """A network whose features are not finite for a picture that is all black."""
    module = tf.train.Checkpoint()
    # Of a black picture, log(0) is infinite, and the softmax of it is none.
    light = tf.function(lambda inputs, training=False: tf.math.log(tf.reduce_mean(inputs, [1, 2])))
    for training in (True, False):
        light.get_concrete_function(tf.TensorSpec([None, 8, 8, 3]), training)
    module.__call__ = light
    module.variables, module.trainable_variables, module.regularization_losses = [], [], []
    tf.saved_model.save(module, str(folder := tmp_path_factory.mktemp("light") / "module"))
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Eighteen, of which one is black."""
    folder = make_flower_folder(tmp_path_factory.mktemp("guards") / "pictures")
    Image.fromarray(np.zeros((10, 12, 3), np.uint8)).save(folder / "red" / "000.png")
    (folder / "red" / "000.jpg").unlink()
    return folder


@pytest.fixture(scope="module")
def light(tmp_path_factory):
    """Pictures of which none is black."""
    return make_flower_folder(tmp_path_factory.mktemp("guards") / "light")


@pytest.fixture
def arguments(pictures, backbone, tmp_path):
    """Of 9 steps in 3 epochs; the black picture is one of the 12 that train."""
    return [
        f"--source=folder:{pictures}", f"--backbone=savedmodel:{backbone}", "--image_size=8", "--head=linear",
        "--splits=12,3,3", "--batch_size=4", "--schedule=frozen", f"--frozen_for={STEPS}steps",
        "--log_every=1steps", "--save_every=1steps", "--precision=float32", f"--workdir={tmp_path / 'run'}",
        *PLAIN,
    ]  # fmt: skip


def run_json(workdir):
    return json.loads((workdir / "run.json").read_text())


@pytest.mark.parametrize("cache", ["auto", pytest.param("off", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_the_batch_is_named_and_nothing_is_saved_from_there(arguments, tmp_path, run_main, cache):
    status, _, err = run_main(*arguments, f"--feature_cache={cache}", "--split_seed=1")
    assert status == 1
    found = re.fullmatch(
        r"trainer: the loss is not finite \(nan\) at step (\d) \(phase frozen, learning rate 0.001\); "
        r"nothing was saved from there\. The batch: (.*)\. A lower learning rate or a warm-up may help; "
        r"--on_nonfinite=rollback goes on without that batch\n",
        err,
    )
    assert found, err
    step, batch = int(found[1]), found[2].split(", ")
    assert step < 3
    assert len(batch) == 4
    assert "red/000.png" in batch
    saved = {path.name for path in (tmp_path / "run" / "checkpoints").glob("ckpt-*.index")}
    assert saved == {f"ckpt-{at}.index" for at in range(1, step + 1)}
    # Every epoch has that picture: with two batches left out, the third ends the run.
    status, out, err = run_main(
        *arguments,
        f"--feature_cache={cache}",
        "--split_seed=1",
        "--on_nonfinite=rollback",
        "--max_rollbacks=2",
    )
    if step:
        assert f"goes on from step {step} of {STEPS}" in out
    assert (status, err.count("\n")) == (1, 1)
    assert re.match(
        r"trainer: the loss is not finite \(nan\) at step \d+, and as many batches are left out as "
        r"--max_rollbacks=2 allows \(those of steps \d, \d\): it is not the batch\. ",
        err,
    )
    noted = run_json(tmp_path / "run")["rollbacks"]
    assert [rollback["step"] // 3 for rollback in noted] == [0, 1]
    assert all("red/000.png" in rollback["examples"] and len(rollback["examples"]) == 4 for rollback in noted)
    # One more is enough. A run that was never stopped comes to the same numbers.
    more = (f"--feature_cache={cache}", "--split_seed=1", "--on_nonfinite=rollback", "--max_rollbacks=3")
    status, out, err = run_main(*arguments, *more)
    assert (status, err) == (0, "")
    fresh = tmp_path / "fresh"
    assert run_main(*arguments, *more, f"--workdir={fresh}")[0] == 0
    assert metrics(tmp_path / "run") == metrics(fresh)
    got, expected = weights(tmp_path / "run"), weights(fresh)
    for name, value in expected.items():
        np.testing.assert_array_equal(got[name], value, err_msg=name)
    left_out = [rollback["step"] for rollback in run_json(fresh)["rollbacks"]]
    assert [step // 3 for step in left_out] == [0, 1, 2]
    assert [row["step"] for row in metrics(fresh) if row["split"] == "train"] == list(range(1, STEPS + 1))
    report = json.loads((fresh / "report" / "metrics.json").read_text())
    assert [batch["step"] for batch in report["left_out_batches"]] == left_out


@pytest.mark.slow
def test_padding_shows_a_network_nothing_else_than_pictures(arguments, light, run_main):
    # Batches of 4, 4 and 2, of which none is black.
    source = (f"--source=folder:{light}", "--splits=10,5,3")
    status, _, err = run_main(*arguments, *source, "--feature_cache=off", "--frozen_for=1epochs")
    assert (status, err) == (0, "")


def test_a_loss_that_explodes_is_noticed(arguments, run_main):
    other = ("--source=synthetic:flowers", "--synthetic_examples=18")
    status, _, err = run_main(*arguments, *other, "--max_loss=0.5")
    assert status == 1
    assert re.match(r"trainer: the loss of [\d.]+ is above --max_loss=0.5 at step 0 \(phase frozen, ", err)


@pytest.mark.slow
def test_a_run_whose_layers_were_counted_otherwise_is_not_gone_on_with(
    arguments, light, tmp_path, run_main, monkeypatch
):
    going_on = (f"--source=folder:{light}", "--frozen_for=1steps")
    assert run_main(*arguments, *going_on)[0] == 0
    asked = []

    def refuse(workdir, count, specs):
        asked.append((count, [spec.name for spec in specs]))
        raise TrainerError("they are others")

    monkeypatch.setattr(Workdir, "check_layers", refuse)
    (tmp_path / "run" / "report" / "metrics.json").unlink()  # Else it is finished.
    for command in ("train", "evaluate"):
        status, _, err = run_main(command, *arguments, *going_on)
        assert (status, err.splitlines()[-1]) == (1, "trainer: they are others")
    # A SavedModel shows none.
    assert asked == [(0, ["frozen"])] * 2


@pytest.mark.slow
def test_time_is_up(arguments, light, run_main, monkeypatch):
    monkeypatch.setattr(standard_callbacks.Stop, "next_due", lambda self, step: step + 1)
    options = (
        f"--source=folder:{light}", "--frozen_for=3steps", "--feature_cache=off", "--max_minutes=0.000001",
    )  # fmt: skip
    for step in (1, 2):
        status, _, err = run_main(*arguments, *options)
        stopped = f"--max_minutes=1e-06: stopped at step {step} of 3; everything is saved. "
        assert (status, err) == (75, f"{stopped}Run the same command to continue\n")
    # A limit that is not reached is none.
    status, _, err = run_main(*arguments, *options, "--max_minutes=9")
    assert (status, err) == (0, "")


@pytest.mark.slow
def test_weights_of_another_run(tmp_path, tiny_backbone, flower_folder, run_main):
    pictures = flower_folder(tmp_path / "pictures")
    common = [f"--source=folder:{pictures}", f"--backbone=savedmodel:{tiny_backbone}", "--image_size=8",
              "--splits=9,5,4", "--batch_size=4", "--head=mlp(3)", "--precision=float32", *PLAIN]  # fmt: skip
    train_all = "--phase=for=6steps; train=all; lr=0.1"
    first = tmp_path / "first"
    assert run_main(*common, train_all, f"--workdir={first}")[0] == 0
    best = run_json_step(first)

    def begin(name, *options):
        """A run whose only update changes nothing."""
        still = "--phase=for=1steps; train=head; lr=1e-30"
        return run_main(*common, still, f"--workdir={tmp_path / name}", f"--init_from={first}", *options)

    status, out, err = begin("all")
    assert (status, err) == (0, "")
    assert f"weights:     all of {first}, step {best}\n" in out
    assert probabilities(tmp_path / "all") == probabilities(first)
    noted = run_json(tmp_path / "all")["init_from"]
    assert (noted["workdir"], noted["step"], noted["part"]) == (str(first), best, "all")
    # The network alone fits any head.
    status, out, err = begin("backbone", "--init_part=backbone", "--head=linear")
    assert (status, err) == (0, "")
    assert f"weights:     backbone of {first}, step {best}\n" in out
    taken = weights(tmp_path / "backbone")
    trained = model_weights(first / "checkpoints" / "best" / f"ckpt-{best}", first)
    kernel = next(name for name in trained if "conv" in name and "kernel" in name)
    found = model_weights(tmp_path / "backbone" / "checkpoints" / "ckpt-1", tmp_path / "backbone")
    np.testing.assert_array_equal(found[kernel], trained[kernel])
    assert taken
    # What has been begun goes on without the other run.
    first.rename(tmp_path / "moved")
    status, out, err = begin("all")
    assert (status, err) == (0, "")
    assert "is finished" in out
    status, _, err = begin("gone")
    assert (status, err) == (1, f"trainer: --init_from={first} holds no run (no run.json in it)\n")
    assert not list((tmp_path / "gone").rglob("ckpt-*"))


@pytest.mark.slow
def test_weights_that_do_not_fit(tmp_path, tiny_backbone, flower_folder, run_main):
    common = [
        f"--backbone=savedmodel:{tiny_backbone}", "--image_size=8", "--splits=60%,20%,20%", "--batch_size=4",
        "--phase=for=1steps; train=head", *PLAIN,
    ]  # fmt: skip
    three = f"--source=folder:{flower_folder(tmp_path / 'three')}"
    four = f"--source=folder:{flower_folder(tmp_path / 'four', classes=('red', 'green', 'blue', 'grey'))}"
    first = tmp_path / "first"
    assert run_main(*common, three, "--head=mlp(3)", f"--workdir={first}")[0] == 0

    def message(*options):
        status, _, err = run_main(
            *common, *options, f"--workdir={tmp_path / 'second'}", f"--init_from={first}"
        )
        assert status == 1
        assert not list((tmp_path / "second").rglob("ckpt-*"))
        return err.removeprefix(f"trainer: --init_from={first} ")

    assert message(four, "--head=mlp(3)") == (
        "tells blue, green, red apart, this run blue, green, grey, red: its head means something else; "
        "--init_part=backbone takes the network alone\n"
    )
    assert re.fullmatch(
        r"does not fit: head/\S+ is \[\S+\] there and \[\S+\] here; "
        r"--init_part=backbone takes the network alone\n",
        message(three, "--head=mlp(5)"),
    )
    assert re.fullmatch(
        r"does not fit: backbone/\S+ is missing there and \[.*\] here; the networks differ\n",
        message(three, "--backbone=efficientnet_lite0", "--image_size=32", "--init_part=backbone"),
    )


def test_changed_code_is_noted(arguments, light, tmp_path, run_main, monkeypatch):
    options = (f"--source=folder:{light}", "--frozen_for=2steps")
    assert run_main(*arguments, *options)[0] == 0
    before = run_json(tmp_path / "run")
    assert re.fullmatch("[0-9a-f]{64}", before["code"]["source_sha256"])
    assert before["code_changes"] == []
    monkeypatch.setattr(train, "code", lambda: {**before["code"], "trainer": "9.9"})
    for _ in range(2):
        # Else it is finished, and nothing is done.
        (tmp_path / "run" / "report" / "metrics.json").unlink()
        status, out, _ = run_main(*arguments, *options)
        assert status == 0
    assert "the code has changed" not in out
    after = run_json(tmp_path / "run")
    assert after["code"]["trainer"] == "9.9"
    assert after["code_changes"] == [{"step": 2, "changed": {"trainer": [before["code"]["trainer"], "9.9"]}}]


def test_what_a_run_computes_in_float32_stays(arguments, light, tmp_path, run_main):
    options = (f"--source=folder:{light}", "--frozen_for=2steps")
    assert run_main(*arguments, *options)[0] == 0
    path = tmp_path / "run" / "run.json"
    first = run_json(tmp_path / "run")
    assert first["left_out"] == ["DepthwiseConv2dNativeBackpropFilter", "DepthwiseConv2dNativeBackpropInput"]
    # As the version wrote it that knew of none.
    older = {name: value for name, value in first.items() if name not in ("left_out", "finished")}
    for written, kept in ((older, []), ({**older, "left_out": ["Conv2D"]}, ["Conv2D"])):
        path.write_text(json.dumps(written))
        (tmp_path / "run" / "report" / "metrics.json").unlink()
        assert run_main(*arguments, *options)[0] == 0
        assert run_json(tmp_path / "run")["left_out"] == kept
    assert left_out() == first["left_out"]


def run_json_step(workdir):
    return json.loads((workdir / "report" / "metrics.json").read_text())["step"]


def probabilities(workdir):
    return (workdir / "report" / "predictions.csv").read_text()


def model_weights(prefix, workdir):
    """{name: value} of a checkpoint and of what its phase leaves as it is."""
    found = {}
    for path in (prefix, *sorted((workdir / "checkpoints" / "base").glob("phase-0.index"))):
        reader = tf.train.load_checkpoint(str(path).removesuffix(".index"))
        found |= {
            name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map() if "model" in name
        }
    return found
