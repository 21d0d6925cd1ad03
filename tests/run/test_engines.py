"""OpenVINO beside TensorFlow for what a phase does not change: the same numbers, chosen once, never mixed."""

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

import trainer
from tests.conftest import call_main, changed, make_flower_folder
from tests.helpers.feature_runs import assert_same_numbers, computed, left, predictions, tiny_net
from tests.helpers.undrawn import PLAIN
from tests.loop.toys import plan_of
from trainer.cli.config import Config
from trainer.cli.flags import parse
from trainer.precision import choice as choice_module
from trainer.precision import choose_engine, openvino
from trainer.precision.choice import Choice
from trainer.record.workdir import Workdir
from trainer.run import arithmetic as arithmetic_module
from trainer.run import run_times
from trainer.run.arithmetic import Arithmetic
from trainer.run.engines import Engines, asked_engine, compiled
from trainer.run.experiment import Experiment
from trainer.run.finished_run import engine_at
from trainer.run.session import make_stages
from trainer.values import UsageError

pytestmark = pytest.mark.usefixtures("figures_undrawn")
PROJECT = Path(__file__).parents[2]
VERSION = openvino.version
needs_openvino = pytest.mark.extra
SPLITS = ["train", "validation", "test"]
SETTINGS = (
    "--image_size=8", "--splits=14,5,5", "--batch_size=4", "--head=mlp(6)", "--precision=float32",
    "--schedule=frozen", "--frozen_for=2epochs", "--frozen_learning_rate=0.05", "--log_every=1steps",
    "--progress=plain", *PLAIN,
)  # fmt: skip
NET = ("--backbone=keras:TinyNet", "--weights=none")
TOP = "--phase=name=top; for=1epochs; train=head backbone/last.*; lr=0.02"
HEAD = plan_of("name=head; for=1steps; train=head").phases[0]


@pytest.fixture(scope="module", autouse=True)
def with_openvino_and_tiny_net():
    with tiny_net(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(openvino, "version", VERSION)
        yield


@pytest.fixture(scope="module")
def train(tmp_path_factory, tiny_backbone):
    """train(*options, cache=...) -> what a run left and said; each has an empty cache, if none is named."""
    pictures = make_flower_folder(tmp_path_factory.mktemp("pictures"), n=8)
    options = [f"--source=folder:{pictures}", f"--backbone=savedmodel:{tiny_backbone}", *SETTINGS]

    def train_(*changes, cache=None, workdir=None, status=0):
        folder = tmp_path_factory.mktemp("run")
        workdir, cache = workdir or folder / "run", cache or folder / "cache"
        with (
            contextlib.redirect_stdout(io.StringIO()) as out,
            contextlib.redirect_stderr(io.StringIO()) as err,
        ):
            found = call_main(*changed(options, f"--workdir={workdir}", f"--cache_dir={cache}", *changes))
        assert found == status, err.getvalue()
        return SimpleNamespace(workdir=workdir, cache=cache, out=out.getvalue(), err=err.getvalue())

    return train_


@pytest.fixture(scope="module")
def by_tensorflow(train):
    return train("--engine=tensorflow")


@pytest.fixture(scope="module")
def by_openvino(train):
    return train("--engine=openvino")


def decided(workdir):
    return json.loads((Path(workdir) / "run.json").read_text())["precision"]


def kept(cache):
    """{describe: features} of a cache."""
    return {
        json.loads(path.read_text())["describe"]: np.load(path.parent / "features.npy")
        for path in (Path(cache) / "features").glob("*/entry.json")
    }


def same(workdir, other):
    """Whether two runs came to the same numbers, to the last bit."""
    found, expected = left(workdir), left(other)
    return all(found[name] == expected[name] for name in ("metrics.jsonl", "weights"))


# --- The same numbers


@needs_openvino
def test_a_run_comes_to_the_same_numbers(by_openvino, by_tensorflow):
    assert computed(by_openvino.out) == computed(by_tensorflow.out) == SPLITS
    assert f"engine:      openvino-float32 (OpenVINO {openvino.version()})" in by_openvino.out
    assert "engine:" not in by_tensorflow.out
    assert_same_numbers(by_openvino.workdir, by_tensorflow.workdir)
    for split in SPLITS:
        [(name, ours)] = [(n, v) for n, v in kept(by_openvino.cache).items() if f" {split}, " in n]
        [(other, theirs)] = [(n, v) for n, v in kept(by_tensorflow.cache).items() if f" {split}, " in n]
        assert name == f"{other} openvino {openvino.version()}"
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
        assert np.ptp(theirs, axis=0).min() > 0.1


@needs_openvino
def test_below_a_cut(train):
    ours, theirs = (train(*NET, TOP, f"--engine={name}") for name in ("openvino", "tensorflow"))
    assert computed(ours.out) == computed(theirs.out) == SPLITS
    assert all(value.shape[1:] == (4, 4, 6) for value in kept(ours.cache).values())
    assert_same_numbers(ours.workdir, theirs.workdir)
    assert list(decided(ours.workdir)) == ["0-top/middle_relu"]
    # The network as a whole is not frozen, and is TensorFlow's.
    assert predictions(ours.workdir)[0] == predictions(theirs.workdir)[0]


def separable():
    """A network with what TensorFlow's graph of ours scales: BatchNorm after a depthwise convolution."""
    from tf_keras import Input, Model, layers

    images = Input([12, 12, 3])
    x = layers.DepthwiseConv2D(3, padding="same", use_bias=False, depth_multiplier=2)(images)
    x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
    x = layers.SeparableConv2D(7, 3, strides=2, use_bias=False)(x)
    x = layers.Activation("swish")(layers.BatchNormalization()(x))
    network = Model(images, layers.GlobalAveragePooling2D()(x))
    draws = np.random.default_rng(0)
    network.set_weights([draws.uniform(0.5, 1.5, value.shape) for value in network.get_weights()])
    return network


@needs_openvino
def test_pictures_alone_and_in_batches():
    from trainer.model.folding import Inference

    network = separable()
    # As backbones are: folded wherever it is traced for TensorFlow.
    folded = Inference(lambda x: network(x, training=False), shape=(12, 12, 3))
    run = compiled(folded, "openvino-float32", shape=(12, 12, 3), value_range=(0, 1))
    images = np.random.default_rng(1).uniform(size=[7, 12, 12, 3]).astype(np.float32)
    found = run(images)
    np.testing.assert_allclose(found, network(images, training=False), rtol=1e-4)
    alone = np.concatenate([run(image[None]) for image in images])
    np.testing.assert_array_equal(alone, found)
    np.testing.assert_array_equal(run(images[::-1])[::-1], found)
    assert run(images[:0]).shape == (0, 7)
    # Weights are taken as they were.
    network.set_weights([2 * value for value in network.get_weights()])
    np.testing.assert_array_equal(run(images), found)
    again = compiled(folded, "openvino-float32", shape=(12, 12, 3), value_range=(0, 1))
    assert np.abs(again(images) - found).max() > 0.1


@needs_openvino
def test_where_updates_run_the_network_validation_is_tensorflows_as_well(tmp_path, tiny_backbone, caplog):
    """14 pictures of train have more bytes than the cache may hold, 5 of validation fewer."""
    caplog.set_level("INFO", "trainer")
    source = make_flower_folder(tmp_path / "pictures", n=8)
    given = (f"--source=folder:{source}", f"--backbone=savedmodel:{tiny_backbone}", *SETTINGS)
    given += (f"--cache_dir={tmp_path / 'cache'}", "--cache_limit_gb=2e-7", "--engine=openvino")
    stages = make_stages(Experiment(parse(["trainer", *given, "--workdir=none"]).config), decided={})
    stage = stages.current()
    stage.evaluate("validation")
    [before] = kept(tmp_path / "cache")
    assert "openvino" in before
    assert stage.cut_of("train") is None
    stage.evaluate("validation")
    [after] = kept(tmp_path / "cache")
    assert "openvino" not in after
    assert (
        caplog.text.count("tensorflow, which runs the network in updates, computes validation as well") == 1
    )
    recorded = stages.arithmetic.decided
    assert recorded["0-frozen/features"]["precision"] == "tensorflow-float32"
    # So it stays: where the best step is of another phase, and for a process that goes on.
    again = make_stages(stages.experiment, decided=recorded)
    assert (again.current().engine, again.arithmetic.decided) == ("tensorflow", recorded)


# --- What it cannot run


def strange(images):
    """A function that TensorFlow alone knows: no other library has this operation."""
    return tf.math.betainc(2.0, 3.0, tf.clip_by_value(tf.reduce_mean(images, [1, 2]), 0.0, 1.0))


@needs_openvino
def test_what_it_cannot_convert_is_said_in_a_line():
    with pytest.raises(openvino.UnusableError, match="Betainc"):
        compiled(strange, "openvino-float32", shape=(4, 4, 3), value_range=(0, 1))


PLUGIN = '''
import tensorflow as tf
import tf_keras

import trainer
from trainer.model.backbones import KerasBackbone


@trainer.register.backbone("strange", address="")
def strange(address: str = "", *, name, image_size):
    """Shares of three colours, through a function that TensorFlow alone knows."""
    images = tf_keras.Input([image_size, image_size, 3])
    means = tf_keras.layers.GlobalAveragePooling2D()(images)
    network = tf_keras.Model(images, tf_keras.layers.Lambda(lambda x: tf.math.betainc(2.0, 3.0, x))(means))
    return KerasBackbone(name, network, lambda x: x, size_px=image_size, value_range=(0.0, 1.0))
'''


@needs_openvino
@pytest.mark.usefixtures("without_plugins")
def test_then_tensorflow_runs_it(train, tmp_path, monkeypatch):
    # A step is measured before the first one, which tries it as well.
    monkeypatch.setattr("trainer.commands.train.LEAST_WORK", 0)
    monkeypatch.setattr("trainer.run.stages.ENOUGH_SECS", 0.01)
    plugin = tmp_path / "strange.py"
    plugin.write_text(PLUGIN)
    asked = (f"--plugin={plugin}", "--backbone=strange", "--frozen_for=1epochs")
    ours = train(*asked, "--engine=openvino")
    assert ours.out.count("engine:      OpenVINO cannot run this network, TensorFlow does") == 1
    theirs = train(*asked, "--engine=tensorflow")
    assert same(ours.workdir, theirs.workdir)
    assert kept(ours.cache).keys() == kept(theirs.cache).keys()
    assert decided(ours.workdir)["0-frozen/features"]["precision"] == "tensorflow-float32"


# --- Chosen once


@pytest.fixture(scope="module", autouse=True)
def in_float32_alone():
    """A machine without 16 bits, whatever this one has: on those that have them they are measured, too."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (choice_module, arithmetic_module, run_times):
            patch.setattr(module, "supported", lambda: ("float32",))
        patch.setattr(openvino, "precisions", lambda: ("float32",) if openvino.version() else ())
        yield


@pytest.fixture(scope="module")
def measured(train):
    """A run for which OpenVINO was measured, and taken however long it took."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choice_module, "LARGEST_SHARE", 1e9)
        return train("--precision=auto", "--engine=auto")


@pytest.fixture
def copied(measured, tmp_path):
    """The same run in a folder of a test's own; the cache is shared."""
    return SimpleNamespace(
        workdir=shutil.copytree(measured.workdir, tmp_path / "run"),
        cache=shutil.copytree(measured.cache, tmp_path / "cache"),
    )


@pytest.fixture
def elsewhere(monkeypatch):
    """A machine without OpenVINO."""
    monkeypatch.setattr(openvino, "version", lambda: "")


LONGER = ("--precision=auto", "--frozen_for=3epochs", "--extend")
GONE = r"phase frozen began with OpenVINO [\d.]+ \(float32\), which is not installed here; TensorFlow goes on"


@needs_openvino
def test_a_run_goes_on_with_what_was_measured(measured, copied, train):
    choice = decided(measured.workdir)["0-frozen/features"]
    assert choice["precision"] == "openvino-float32"
    assert choice["step_secs"].keys() == {"tensorflow-float32", "openvino-float32"}
    assert choice["machine"]["openvino"] == openvino.version()
    assert re.search(
        r"engine:      openvino-float32, measured .* ms a step against .* in tensorflow-", measured.out
    )
    # It is remembered for other runs, and recorded for this one; what it gave is kept.
    again = train(*LONGER, workdir=copied.workdir, cache=copied.cache)
    assert (computed(again.out), again.out.count("engine:")) == ([], 0)
    other = train("--precision=auto", "--seed=1", cache=copied.cache)
    assert computed(other.out) == []
    assert re.search(r"engine:      openvino-float32, .*; remembered from 20", other.out)


@needs_openvino
def test_on_a_machine_without_it_a_run_says_so(copied, train, elsewhere, run_main, tmp_path):
    again = train(*LONGER, workdir=copied.workdir, cache=copied.cache)
    assert sorted(computed(again.out)) == sorted(SPLITS)
    assert re.search(GONE, again.out + again.err)
    status, out, err = run_main("evaluate", f"--workdir={copied.workdir}", f"--cache_dir={tmp_path / 'new'}")
    assert status == 0
    assert re.search(GONE, out + err)


@needs_openvino
def test_a_run_that_began_without_it_goes_on_without(train, monkeypatch):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openvino, "version", lambda: "")
        first = train("--precision=auto")
    assert list(decided(first.workdir)) == ["0-frozen"]
    monkeypatch.setattr(choice_module, "LARGEST_SHARE", 1e9)
    again = train(*LONGER, workdir=first.workdir, cache=first.cache)
    assert (computed(again.out), again.out.count("engine:")) == ([], 0)
    assert list(decided(first.workdir)) == ["0-frozen"]


def engines(*, several_devices=False, decided=(), on_decision=lambda decided: None, **options):
    config = Config().replace(**options)
    arithmetic = Arithmetic("auto", decided=dict(decided), cache_dir="", on_decision=on_decision)
    return Engines(config, arithmetic=arithmetic, several_devices=several_devices)


def decide(made, make=lambda engine: pytest.fail(f"{engine} was measured")):
    return made.decide(HEAD, "features", precision="float32", make=make, key={})


def test_where_nothing_is_measured(monkeypatch, caplog):
    monkeypatch.setattr(openvino, "version", lambda: "1.2")
    monkeypatch.setattr(openvino, "precisions", lambda: ("float32",))
    monkeypatch.setattr(openvino, "require_installed", lambda *, flag: None)
    assert decide(engines(engine="tensorflow")) == "tensorflow"
    assert decide(engines(precision="float32")) == "tensorflow"
    assert decide(engines(several_devices=True)) == "tensorflow"
    # Whatever one machine has chosen before the others came.
    alone = {"0-head/features": Choice("openvino-float32", {}, "", {"openvino": "1.2"}, "").to_json()}
    assert decide(engines(decided=alone)) == "openvino-float32"
    assert decide(engines(several_devices=True, decided=alone)) == "tensorflow"
    of_before = {"0-other": Choice("float32", {}, "", {}, "2026-01-01").to_json()}
    assert decide(engines(decided=of_before)) == "tensorflow"
    later = {"0-head": Choice("float32", {}, "", {"openvino": "1.2"}, "2026-01-02").to_json()}
    assert decide(engines(decided={**of_before, **later})) == "tensorflow"
    seen = []
    decide(engines(decided={**later, **of_before}), make=seen.append)
    assert seen == ["tensorflow-float32", "openvino-float32"]
    # The only one that is asked for.
    assert decide(engines(engine="openvino", precision="float32")) == "openvino-float32"
    with caplog.at_level("INFO", "trainer"):
        assert decide(engines(engine="openvino", several_devices=True)) == "tensorflow"
    assert "OpenVINO is for one device, and there are several" in caplog.text


def test_what_tensorflow_took_over_stays_with_it(monkeypatch):
    """What it was measured for, another command may ask OpenVINO for."""
    monkeypatch.setattr(openvino, "version", lambda: "1.2")
    monkeypatch.setattr(openvino, "precisions", lambda: ("float32",))
    monkeypatch.setattr(openvino, "require_installed", lambda *, flag: None)
    alone = Choice("openvino-float32", {}, "", {"openvino": "1.2"}, "")
    both = replace(alone, step_secs={"tensorflow-bfloat16": 3.0, "openvino-float32": 2.0})
    config, workdir = Config().replace(engine="openvino", schedule="auto"), Workdir("none")
    for choice, precision, engine in (
        (alone, "tensorflow-float32", "tensorflow"),
        (both, "tensorflow-bfloat16", "openvino-float32"),
    ):
        recorded = {}
        left = engines(decided={"0-head/features": choice.to_json()}, on_decision=recorded.update)
        left.leave(HEAD, "features")
        assert recorded["0-head/features"]["precision"] == precision
        assert decide(engines(decided=recorded)) == "tensorflow"
        assert decide(engines(decided=recorded, engine="openvino")) == engine
        monkeypatch.setattr(workdir, "read_facts", lambda recorded=recorded: {"precision": recorded})
        assert engine_at(config, workdir, 1) == engine


def test_a_run_that_was_moved_goes_on_where_its_engine_is_gone(tmp_path, elsewhere, monkeypatch):
    began, here = (
        Config().replace(engine="openvino", workdir=str(tmp_path / "before")),
        Workdir(str(tmp_path)),
    )
    here.run_json.touch()
    monkeypatch.setattr(here, "read_config", lambda: began)
    assert asked_engine(began, here) == "tensorflow"
    with pytest.raises(UsageError, match="not installed here"):
        asked_engine(began, Workdir(began.run.workdir))


def test_what_cannot_be_had_is_refused(monkeypatch):
    monkeypatch.setattr(openvino, "version", lambda: "")
    with pytest.raises(
        UsageError, match=r"^--engine=openvino needs OpenVINO, .* pip install 'hub-trainer\[openvino"
    ):
        engines(engine="openvino")
    monkeypatch.setattr(openvino, "version", lambda: "1.2")
    monkeypatch.setattr(openvino, "precisions", lambda: ("float32",))
    monkeypatch.setattr(openvino, "require_installed", lambda *, flag: None)
    with pytest.raises(
        UsageError, match=r"^--engine=openvino computes in float32 on this machine, not in --prec"
    ):
        engines(engine="openvino", precision="float16")


@pytest.mark.parametrize(
    ("secs", "chosen"),
    [
        ((10, 8, 7.5), "b"),
        ((10, 9.5, 8), "c"),
        ((10, 9.5, 9.2), "a"),
        ((10, 7, None), "b"),
        ((10, None, None), "a"),
    ],
)
def test_another_one_must_save_a_tenth(monkeypatch, tmp_path, secs, chosen):
    monkeypatch.setattr(choice_module, "machine", lambda: {"cpu": "an abacus"})
    now, calls = [0.0], []
    of = dict(zip("abc", secs, strict=True))

    def make(name):
        calls.append(name)

        def step():
            now[0] += of[name]

        return step if of[name] else None

    def choose():
        return choose_engine(
            make, candidates="abc", what="it", key={"a": 1}, cache_dir=str(tmp_path), clock=lambda: now[0]
        )

    found = choose()
    assert (found.precision, calls) == (chosen, ["a", "b", "c"])
    alone = secs[1:] == (None, None)
    expected = {} if alone else {name: pytest.approx(value) for name, value in of.items() if value}
    assert found.step_secs == expected
    if all(secs):
        assert choose() == found
        assert calls == ["a", "b", "c"]


# --- Commands on a finished run


@needs_openvino
@pytest.mark.parametrize(
    ("trained", "asked", "has_compiled"),
    [
        ("by_openvino", (), True),
        ("by_openvino", ("--engine=tensorflow",), False),
        ("by_tensorflow", (), False),
        ("by_tensorflow", ("--engine=openvino",), True),
    ],
)
def test_predictions_are_those_of_the_report(
    trained, asked, has_compiled, request, run_main, tmp_path, monkeypatch
):
    workdir = request.getfixturevalue(trained).workdir
    rows, expected = predictions(workdir)
    folder = json.loads((workdir / "run.json").read_text())["config"]["source"].removeprefix("folder:")
    output, sizes, once = tmp_path / "found.csv", [], openvino.Compiled.__call__
    monkeypatch.setattr(
        openvino.Compiled, "__call__", lambda self, images: sizes.append(len(images)) or once(self, images)
    )
    paths = [Path(folder) / row[0] for row in rows]
    status, _, err = run_main("predict", f"--workdir={workdir}", f"--output={output}", *asked, *paths)
    assert status == 0, err
    lines = [line.split(",") for line in output.read_text().splitlines()[1:]]
    found = np.array([line[-expected.shape[1] :] for line in lines], float)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    # Two to compare with TensorFlow, then batches of which none is filled up.
    assert sizes == ([2, 4, len(rows) - 4] if has_compiled else [])


@needs_openvino
def test_what_a_run_asked_for_and_is_not_there(by_openvino, elsewhere, train, run_main, tmp_path):
    workdir, cache = shutil.copytree(by_openvino.workdir, tmp_path / "run"), tmp_path / "cache"
    gone = "the run began with --engine=openvino, which cannot be had here; TensorFlow goes on"
    evaluate = ("evaluate", f"--workdir={workdir}", f"--cache_dir={cache}")
    before = predictions(workdir)
    for asked, times in (((), 1), (("--engine=tensorflow",), 0)):
        status, out, err = run_main(*evaluate, *asked)
        assert status == 0, err
        assert (out + err).count(gone) == times
        np.testing.assert_allclose(predictions(workdir)[1], before[1], rtol=0, atol=1e-5)
    folder = json.loads((workdir / "run.json").read_text())["config"]["source"].removeprefix("folder:")
    picture = Path(folder) / before[0][0][0]
    status, out, err = run_main("predict", f"--workdir={workdir}", f"--cache_dir={cache}", picture)
    assert (status, out.count("\n"), err.count(gone)) == (0, 1, 1)
    # From Python, the folder where the run was made is not asked for.
    run_json = json.loads((workdir / "run.json").read_text())
    run_json["config"]["workdir"] = str(tmp_path / "before")
    (workdir / "run.json").write_text(json.dumps(run_json))
    assert len(trainer.load(workdir).predict([picture])) == 1
    again = train("--engine=openvino", "--frozen_for=3epochs", "--extend", workdir=workdir, cache=cache)
    assert (again.out + again.err).count(gone) == 1


@needs_openvino
def test_what_nobody_has_begun_with_is_refused(by_tensorflow, elsewhere, train, run_main):
    for err in (
        train("--engine=openvino", status=2).err,
        run_main("evaluate", f"--workdir={by_tensorflow.workdir}", "--engine=openvino")[2],
    ):
        assert err.count("\n") == 1
        assert "--engine=openvino needs OpenVINO, which is not installed here" in err


# --- Nothing is sent


TELEMETRY = """
import pathlib, socket, sys

opened = []
class Refused(socket.socket):
    def __init__(self, *args, **kwargs):
        opened.append(args)
        raise OSError("no network here")
def look_up(*args, **kwargs):
    opened.append(args)
    raise OSError("no network here")
socket.socket, socket.getaddrinfo = Refused, look_up
import tensorflow as tf
from trainer.run.engines import compiled
from trainer.precision import openvino
home = pathlib.Path.home()
before = sorted(home.rglob("*"))
opened.clear()  # urllib3 opens one when it is imported.
mean = lambda x: 2 * tf.reduce_mean(x, [1, 2])
run = compiled(mean, "openvino-float32", shape=(4, 4, 3), value_range=(0, 1))
assert abs(run(tf.ones([2, 4, 4, 3]).numpy()) - 2).max() < 1e-6
import concurrent.futures.thread as threads
for thread in list(threads._threads_queues):
    thread.join(5)
print(opened, sorted(home.rglob("*")) == before, "openvino" in sys.modules)
"""


@needs_openvino
def test_nothing_is_sent_and_nothing_is_left_at_home(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    environment = {
        name: value for name, value in os.environ.items() if name not in ("CI", "TF_BUILD", "JENKINS_URL")
    }
    environment |= {"HOME": str(home), "PYTHONPATH": str(PROJECT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, "-c", TELEMETRY],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split("\n")[-2:] == ["[] True True", ""], done.stderr
