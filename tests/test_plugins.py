"""Code from outside: each kind of idea through the door, killed and resumed, evaluated, refused."""

import dataclasses
import inspect
import json
import py_compile
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import trainer
from tests.helpers.continuations import Killed, told_faults
from tests.helpers.plugins import forget_plugins
from tests.helpers.undrawn import PLAIN
from tests.loop.toys import batch_of, dataset_of, run_of, softmax, state_of
from trainer import plugins
from trainer.model.backbones import open_backbone
from trainer.values import Contract, UsageError

pytestmark = pytest.mark.usefixtures("figures_undrawn", "without_plugins")
NETWORKS = """
import trainer
from trainer.values import Contract

CONTRACT = Contract(8, 8, (0.0, 1.0), feature_width=2, any_size=False)

@trainer.register.backbone("open")
class Open:
    contract = CONTRACT

@trainer.register.backbone("closed")
class Closed:
    @property
    def contract(self):
        return CONTRACT
"""


def test_pictures_get_to_the_size_of_any_backbone_as_the_options_say(tmp_path):
    (tmp_path / "networks.py").write_text(NETWORKS)
    plugins.load_plugins([str(tmp_path / "networks.py")])
    contract = Contract(8, 8, (0.0, 1.0), feature_width=2, any_size=False)
    opened = open_backbone("open", resize="crop", antialias=True)
    fitted = dataclasses.replace(contract, fit="crop", antialias=True, resizes_bytes=True)
    assert opened.contract == fitted
    assert open_backbone("open").contract == contract
    assert open_backbone("closed").contract == contract
    with pytest.raises(UsageError) as caught:
        open_backbone("closed", resize="pad")
    told = "--resize=pad, --antialias=False: closed does not let its contract be changed"
    assert str(caught.value) == told


SOURCE = Path(__file__).parent / "helpers" / "every_kind.py"
PHASES = (
    "--phase=name=a; for=4steps; train=head; lr=0.05; augment=flip,dim; lr_schedule=saw(0.25)",
    "--phase=name=b; for=5steps; train=all; lr=0.02; optimizer=sgd; bn=batch; augment=flip,mixup(0.5)",
)
SETTINGS = (
    "--image_size=8", "--splits=10,4,4", "--batch_size=4", "--head=narrow", "--log_every=2steps",
    "--evaluate_every=3steps", "--save_every=3steps", "--precision=float32", "--progress=plain",
    "--embeddings=0", "--objective=learnt_scale(0.5)", "--loss=squared(2)", "--metrics=confidence,top(1)",
    "--gradient_rule=walking(0.1,0.01)", "--callbacks=kernel_norm(3)",
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Went through unbroken, and has been observed; the plugin that it was given is gone."""
    forget_plugins()
    folder = tmp_path_factory.mktemp("plugins")
    plugin = shutil.copy(SOURCE, folder / "mine.py")
    options = ("--source=noise:18", "--backbone=tiny:4", f"--plugin={plugin}", *SETTINGS, *PHASES)
    return Killed(options, folder / "killed")


def test_each_idea_leaves_its_mark(run):
    lines = [json.loads(line) for line in run.expected["metrics.jsonl"].splitlines()]
    train = [line for line in lines if line["split"] == "train"]
    told = {"loss", "accuracy", "confidence", "top(k=1)", "scaled", "sharpness", "learning_rate"}
    assert {*told, "gradient_norm"} <= {*train[0]}
    assert all(line["sharpness"] > 0 for line in train)
    for line in train:
        # The largest logit is the label's: that is accuracy.
        assert line["top(k=1)"] == line["accuracy"]
        assert line["scaled"] == line["loss"]
    assert all(line["top(k=1)"] == line["accuracy"] for line in lines if line["split"] == "validation")
    rates = {line["step"]: line["learning_rate"] for line in train}
    assert (rates[2], rates[4]) == pytest.approx((0.0375, 0.0375))
    assert [step for step, _ in run.expected["TensorBoard, train: kernel_norm"]] == [3, 6, 9]


def test_state_is_kept_in_checkpoints_and_what_can_be_trained_is(run):
    run.put_back(run.kills[-1])
    reader = tf.train.load_checkpoint(str(run.workdir / "checkpoints" / "ckpt-9"))
    found = {
        name.split("/.ATTRIBUTES")[0]: reader.get_tensor(name)
        for name in reader.get_variable_to_shape_map()
        if "objective" in name
    }
    values = {name.rsplit("/", 1)[-1].split(".S")[-1]: value for name, value in found.items()}
    calls = next(value for name, value in found.items() if name.endswith("calls"))
    # Twice an update, as the gradient rule asks for.
    assert calls == 18, values
    kept = {
        name.split("gradient_rule")[1]: reader.get_tensor(name)
        for name in reader.get_variable_to_shape_map()
        if "gradient_rule" in name
    }
    [updates] = [value for name, value in kept.items() if "updates" in name]
    assert updates == 9
    # Of all that trains in the last phase: the head, the network, and what the objective learns.
    walks = {name: value for name, value in kept.items() if "walk" in name}
    for part in ("head", "backbone", "log_scale"):
        moved = [bool(np.abs(value).max() > 0) for name, value in walks.items() if part in name]
        assert moved, (part, list(walks))
        assert all(moved)
    scales = [v for name, v in found.items() if name.endswith("log_scale") and "ptimizer" not in name]
    assert scales
    assert abs(scales[0] - 0.5) > 1e-3


@pytest.mark.parametrize("some", [slice(60, 61), pytest.param(slice(0, None, 20), marks=pytest.mark.slow)])
def test_killed_and_resumed_it_is_the_same_run(run, some):
    after = [kill for kill in run.kills if any("ckpt-3.index" in name for name in kill.disk)]
    assert after[some]
    told_faults(run, after[some], warm=False)


@pytest.mark.slow
def test_what_a_plugin_is_the_first_to_import_is_not_its_own(tmp_path):
    plugin = tmp_path / "mine.py"
    plugin.write_text("from trainer.model.saliency import Saliency")
    code = (
        "import sys; from trainer import plugins; plugins.load_plugins(sys.argv[1:]);"
        "from trainer.model.saliency import SALIENCY; print([SALIENCY[name].plugin for name in SALIENCY])"
    )
    done = subprocess.run([sys.executable, "-c", code, plugin], capture_output=True, text=True, check=True)
    assert done.stdout == "['', '']\n"


def finished(run):
    assert run.kills[-1].when.endswith("at the end, elsewhere")
    run.put_back(run.kills[-1])
    return run.workdir


@pytest.mark.slow
def test_a_run_brings_its_plugins(run, tmp_path, monkeypatch, run_main):
    workdir = finished(run)
    assert (workdir / "plugins" / "mine.py").read_bytes() == SOURCE.read_bytes()
    assert f"--plugin={workdir}/plugins/mine.py\n" in (workdir / "flagfile.flags").read_text()
    monkeypatch.chdir(tmp_path)
    forget_plugins()
    scored = json.loads((workdir / "report" / "metrics.json").read_text())
    status, out, err = run_main("evaluate", f"--workdir={workdir}", f"--report_dir={tmp_path / 'again'}")
    assert (status, err) == (0, "")
    assert f"{workdir}/plugins/mine.py, code that came with the run, is loaded" in out
    again = json.loads((tmp_path / "again" / "metrics.json").read_text())
    assert again["accuracy"] == scored["accuracy"]
    assert again["loss"] == scored["loss"]
    assert again["metrics"] == scored["metrics"]
    assert scored["metrics"]["top(k=1)"] == scored["accuracy"]
    assert 1 / 3 < scored["metrics"]["confidence"] < 1
    # Other pictures, the last batch of which is not full, by the same metrics.
    others = ("--source=noise:11", f"--report_dir={tmp_path / 'others'}")
    status, out, err = run_main("evaluate", f"--workdir={workdir}", *others)
    assert (status, err) == (0, ""), out
    of_others = json.loads((tmp_path / "others" / "metrics.json").read_text())
    assert of_others["num_examples"] == 11
    assert of_others["metrics"]["top(k=1)"] == pytest.approx(of_others["accuracy"], abs=1e-6)
    told = f"confidence {of_others['metrics']['confidence']:.4f}, top(k=1) {of_others['accuracy']:.4f}"
    assert f"\n             {told}\n" in out
    page = (tmp_path / "others" / "index.html").read_text()
    assert f"Besides, as means over the pictures: {told}." in page
    forget_plugins()
    (tmp_path / "black.png").write_bytes(tf.io.encode_png(np.zeros([9, 9, 3], np.uint8)).numpy())
    [prediction] = trainer.load(workdir).predict([tmp_path / "black.png"])
    assert prediction.label in ("dark", "grey", "bright")
    forget_plugins()
    status, out, err = run_main("export", f"--workdir={workdir}", "--formats=saved_model,grey")
    assert (status, err) == (0, ""), out
    assert "grey.csv is not checked" in out
    rows = [line.split(",") for line in (workdir / "export" / "grey.csv").read_text().splitlines()]
    assert [name for name, _ in rows] == ["dark", "grey", "bright"]
    assert sum(float(p) for _, p in rows) == pytest.approx(1, abs=1e-5)
    # Once more, over what is there.
    status, out, err = run_main("export", f"--workdir={workdir}", "--formats=grey")
    assert (status, err) == (0, ""), out
    forget_plugins()
    explain = ["explain", tmp_path / "black.png", f"--workdir={workdir}", f"--output={tmp_path / 'why'}"]
    status, out, err = run_main(*explain, "--saliency=brightness(2)")
    assert (status, err) == (0, ""), out
    [line] = map(json.loads, (tmp_path / "why" / "explain.jsonl").read_text().splitlines())
    assert (line["method"], line["box"]) == ("brightness", None)
    assert "1 of 1 pictures explained by Brightness" in out
    status, out, err = run_main(*explain, "--saliency=brightnes")
    assert (status, err.split(": is it ")[-1]) == (2, "brightness?\n")


def test_another_plugin_is_another_run(run, tmp_path, run_main):
    workdir = finished(run)
    edited = tmp_path / "mine.py"
    edited.write_text(SOURCE.read_text() + "\n# Edited.\n")
    options = [option for option in run.arguments if not str(option).startswith("--plugin=")]
    for other, told in ((f"--plugin={edited}", r"now mine\.py "), ("--seed=0", "now none")):
        forget_plugins()
        ideas = [] if other != "--seed=0" else [
            "--objective=supervised", "--loss=cross_entropy", "--gradient_rule=plain", "--callbacks=",
        ]  # fmt: skip
        status, _, err = run_main(*options, other, *ideas)
        assert status in (1, 2)
        assert "holds a run with other" in err or "is not one of" in err, (told, err)
        forget_plugins()
        assert run_main(*options, other, *ideas, "--dry_run")[::2] == (status, err)
    forget_plugins()
    copy = workdir / "plugins" / "mine.py"
    copy.write_text(copy.read_text() + "\nraise SystemError\n")
    status, _, err = run_main("evaluate", f"--workdir={workdir}")
    assert (status, err) == (
        1, f"trainer: {copy} is not the plugin that the run was trained with: it was changed\n"
    )  # fmt: skip
    copy.unlink()
    status, _, err = run_main("evaluate", f"--workdir={workdir}")
    assert (status, err) == (1, f"trainer: {copy} is missing, a plugin that the run was trained with\n")


@pytest.mark.slow
def test_what_is_kept_of_a_plugin_is_made_anew_with_another(tmp_path, run_main):
    """Its pictures are looked at again, and what its network makes of them is computed again."""
    plugin, cache = Path(shutil.copy(SOURCE, tmp_path / "mine.py")), tmp_path / "cache"
    options = [
        "--source=noise:9", "--backbone=tiny", "--image_size=8", "--splits=5,2,2", "--batch_size=2",
        "--schedule=frozen", "--frozen_for=1epochs", "--head=linear", "--feature_cache=require",
        "--precision=float32", *PLAIN, f"--plugin={plugin}", f"--cache_dir={cache}",
    ]  # fmt: skip

    def kept(name):
        status, _, err = run_main(*options, f"--workdir={tmp_path / name}")
        assert status == 0, err
        scans, features = (sorted(p.name for p in (cache / kind).iterdir()) for kind in ("scans", "features"))
        return [name for name in scans if name.endswith(".scan")], features

    scans, features = kept("first")
    assert len(scans) == 1
    assert kept("same") == (scans, features)
    plugin.write_text(plugin.read_text() + "# Edited.\n")
    more_scans, more_features = kept("edited")
    assert len(more_scans) == 2
    assert len(more_features) == 2 * len(features)


def test_addresses_of_a_plugin(tmp_path, run_main):
    options = [f"--plugin={SOURCE}", f"--workdir={tmp_path / 'run'}", f"--cache_dir={tmp_path / 'cache'}"]
    for option, message in (
        ("--source=nois:9", r"--source=nois:9 is not one of .*, noise:COUNT: is it noise:COUNT\?"),
        ("--source=noise", "--source=noise: expected noise:COUNT"),
        ("--backbone=tini", r"--backbone=tini is not one of .*, tiny\[:WIDTH\]: is it tiny\[:WIDTH\]\?"),
    ):
        status, _, err = run_main(*options, option)
        assert status == 2
        assert re.fullmatch(f"trainer: {message}\n", err), err
    options += ["--source=noise:9", "--splits=5,2,2", "--batch_size=2", "--backbone=tiny"]
    status, _, err = run_main(*options, "--weights=none")
    assert (status, err) == (
        2, "trainer: --weights=none: tiny brings its own weights; leave --weights away\n"
    )  # fmt: skip
    status, out, _ = run_main("--helpfull", f"--plugin={SOURCE}")
    assert status == 0
    assert "  tiny[:WIDTH]\n      Averages of one convolution. [plugin every_kind.py]\n" in out
    assert "  folder:PATH\n" in out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def f(:\n", r"mine\.py cannot be loaded: SyntaxError: .* \(line 1\)$"),
        (
            "import os\n\n1 / 0\n",
            r"mine\.py cannot be loaded: ZeroDivisionError: division by zero \(line 3\)$",
        ),
        (
            "import trainer\n@trainer.register.loss('focal')\ndef f():\n    'Mine.'\n",
            r"mine\.py: plugin mine\.py registers the loss 'focal', and there is one already$",
        ),
        (
            "import trainer\n@trainer.register.loss('mine')\ndef f(sizes: list[int]):\n    'Mine.'\n",
            r"mine\.py cannot be loaded: TypeError: .*: sizes must be annotated as int, float, bool or ",
        ),
    ],
)
def test_a_plugin_that_fails_is_one_line(text, message, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(UsageError, match=message) as caught:
        plugins.load_plugins([str(path)])
    assert str(caught.value).startswith(f"--plugin={path}")
    assert "\n" not in str(caught.value)
    assert "mine" not in trainer.register.registries()["loss"]


WRONG = """
import tensorflow as tf
import trainer

@trainer.register.loss("column")
def column():
    return lambda logits, labels, targets: tf.reduce_mean(logits, axis=1, keepdims=True)

@trainer.register.loss("flat")
def flat():
    return lambda logits, labels, targets: tf.reduce_mean(logits)

@trainer.register.loss("deep")
def deep():
    def loss(logits, labels, targets):
        if labels.shape.rank == 1:
            logits = twice(logits)
        return tf.reduce_mean(logits, axis=1)
    return loss

def twice(logits):
    return tf.concat([logits, logits], axis=2)

@trainer.register.metric("sure")
def sure():
    return lambda logits, batch: tf.reduce_max(logits, axis=1) > 0

@trainer.register.callback("lost")
def lost(*, run):
    class Lost:
        def next_due(self, step):
            return step + 1
        def __call__(self, state):
            return {}["nothing"]
        def resume(self, state):
            pass
    return Lost()
"""


def line_of(text):
    return WRONG[: WRONG.index(text)].count("\n") + 1


OF_EXAMPLES = "must be [{}] float32, a number for each example; it is"


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("--loss=column", f"the loss {OF_EXAMPLES.format(4)} (4, 1) float32"),
        ("--loss=column --accumulate=2", f"the loss {OF_EXAMPLES.format(2)} (2, 1) float32"),
        ("--loss=flat", f"the loss {OF_EXAMPLES.format(4)} () float32"),
        (
            "--loss=deep",
            f"the plugin failed at {{}}, line {line_of('axis=2')}: ValueError: Shape must be at least rank 3",
        ),
        ("--metrics=sure", f"the metric sure {OF_EXAMPLES.format(4)} (4,) bool"),
        ("--callbacks=lost", f"the plugin failed at {{}}, line {line_of('nothing')}: KeyError: 'nothing'"),
    ],
)
def test_what_a_plugin_does_wrong_while_it_runs_is_one_line(option, told, tmp_path, run_main):
    # Before anything is captured: the first time, TensorFlow tells of a machine without a GPU.
    tf.config.list_logical_devices()
    (tmp_path / "wrong.py").write_text(WRONG)
    options = (f"--plugin={SOURCE}", f"--plugin={tmp_path / 'wrong.py'}", *PLAIN, "--precision=float32")
    status, _, err = run_main(
        "train", "--source=noise:18", "--backbone=tiny:4", "--image_size=8", "--splits=10,4,4",
        "--batch_size=4", "--head=linear", "--schedule=frozen", "--frozen_for=2steps",
        f"--workdir={tmp_path / 'run'}",
        *options, *option.split(),
    )  # fmt: skip
    assert status == (1 if "failed" in told else 2)
    assert err.startswith(f"trainer: {told.format(tmp_path / 'wrong.py')}")
    assert err.count("\n") == 1


def test_what_is_no_plugin_is_refused(tmp_path):
    (tmp_path / "a").mkdir()
    for name in ("mine.py", "a/mine.py"):
        (tmp_path / name).write_text("")
    for texts, message in (
        (["there/is/none.py"], "--plugin=there/is/none.py: No such file or directory"),
        (
            ["no_such_module"],
            "--plugin=no_such_module is neither a file such as my_idea.py nor a module that",
        ),
        ([f"{tmp_path}/mine.py", f"{tmp_path}/a/mine.py"], "there is another plugin called mine.py"),
    ):
        with pytest.raises(UsageError) as caught:
            plugins.load_plugins(texts)
        assert message in str(caught.value)


def test_a_module_is_a_plugin_and_an_edited_file_is_loaded_again(tmp_path, monkeypatch):
    (tmp_path / "ideas_of_mine").mkdir()
    (tmp_path / "ideas_of_mine" / "__init__.py").write_text("")
    path = tmp_path / "ideas_of_mine" / "mine.py"
    text = "import trainer\n@trainer.register.metric('mine')\ndef mine():\n    '{}'\n    return None\n"
    path.write_text(text.format("One."))
    monkeypatch.syspath_prepend(tmp_path)
    [plugin] = plugins.load_plugins(["ideas_of_mine.mine"])
    assert plugin.source == path.read_bytes()
    metrics = trainer.register.registries()["metric"]
    assert (metrics["mine"].help, metrics["mine"].plugin) == ("One.", "mine.py")
    assert plugins.sources("metric") == [path.read_bytes()]
    assert plugins.sources("augmentation") == []
    path.write_text(text.format("Two."))
    plugins.load_plugins([str(path)])
    assert metrics["mine"].help == "Two."


def test_a_command_reads_a_plugin_once_and_runs_what_it_read(tmp_path, monkeypatch):
    path = tmp_path / "edited_in_between.py"
    text = "import trainer\n@trainer.register.metric('mine')\ndef mine():\n    '{}'\n    return None\n"
    path.write_text(text.format("One."))
    # What Python has compiled of it is taken for that of another file of the same size and time.
    py_compile.compile(str(path), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    path.write_text(text.format("Two."))
    monkeypatch.syspath_prepend(tmp_path)
    metrics = trainer.register.registries()["metric"]
    for named in (str(path), path.stem):
        with plugins.apart():
            [first] = plugins.load_plugins([named])
            assert metrics["mine"].help == "Two."
            path.write_text(text.format("Three."))
            assert plugins.load_plugins([named]) == [first]
            assert metrics["mine"].help == "Two."
            assert inspect.getsource(metrics["mine"].make).endswith("'Two.'\n    return None\n")
        with plugins.apart():
            plugins.load_plugins([named])
            assert metrics["mine"].help == "Three."
        path.write_text(text.format("Two."))
        forget_plugins()


def test_a_run_that_was_moved_has_its_plugins_where_it_is_now(tmp_path):
    copies = tmp_path / "now" / "plugins"
    copies.mkdir(parents=True)
    (copies / "mine.py").write_text("")
    was = tmp_path / "before" / "plugins" / "mine.py"
    with plugins.apart():
        [plugin] = plugins.load_plugins([str(was)], copies=copies)
        assert plugin.path == copies / "mine.py"
        # Who asks again in the same command need not know of the folder.
        assert plugins.load_plugins([str(was)]) == [plugin]
    for text, place in ((str(was), None), (str(tmp_path / "mine.py"), copies)):
        with plugins.apart(), pytest.raises(UsageError, match="No such file"):
            plugins.load_plugins([text], copies=place)


def test_what_could_not_be_loaded_from_its_copy_is_refused_at_once(tmp_path, monkeypatch):
    folder = tmp_path / "parts_of_mine"
    (folder / "deep").mkdir(parents=True)
    for name, text in (
        ("__init__.py", "import trainer\n"),
        ("helper.py", "ONE = 1\n"),
        ("mine.py", "import trainer\n\ndef late():\n    from .helper import ONE\n    return ONE\n"),
        ("deep/__init__.py", ""),
        ("deep/mine.py", "from .. import helper as helping\nfrom . import deep\n"),
        ("broken.py", "def f(:\n"),
    ):
        (folder / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    ways_on = (
        ", and a run keeps a copy of one file: write what it needs into a file that stands alone, and give "
        "that by its path, such as --plugin=my_idea.py"
    )
    for text, told in (
        ("parts_of_mine", "is a package"),
        ("parts_of_mine.deep", "is a package"),
        ("parts_of_mine.mine", "imports from its package (from .helper import ONE, line 4)"),
        ("parts_of_mine.deep.mine", "imports from its package (from .. import helper as helping, line 1)"),
    ):
        with pytest.raises(UsageError) as caught:
            plugins.load_plugins([text])
        assert str(caught.value) == f"--plugin={text} {told}{ways_on}"
    with pytest.raises(UsageError, match=r"parts_of_mine\.broken cannot be loaded: SyntaxError: .*line 1"):
        plugins.load_plugins(["parts_of_mine.broken"])
    assert not plugins.loaded


def test_it_stands_in_the_help(run_main):
    status, out, _ = run_main("--helpfull", f"--plugin={SOURCE}")
    assert status == 0
    assert "\nobjective (--objective):\n  supervised\n" in out
    assert "\n  learnt_scale(weight=1.0)\n" in out
    told = "noise that becomes smaller from update to update. arXiv 2010.01412 [plugin every_kind.py]"
    assert told in " ".join(out.split())


def test_sharpness_aware_gradients_by_hand():
    """w - lr g(w + rho g(w) / |g(w)|), of softmax regression."""
    plugins.load_plugins([str(SOURCE)])
    sam = trainer.register.registries()["gradient_rule"].choose("sam(0.3)")()
    features, labels = np.array([[1.0, 0.2, 0.0], [0.1, 0.5, 1.0]]), np.array([0, 2])
    told = {"metrics": ("accuracy", "sharpness"), "gradient_rule": sam}
    state = state_of("for=9steps; train=head; lr=0.5; optimizer=sgd; momentum=0", **told)
    kernel, bias = (v.numpy() for v in state.classifier.head.weights)

    def gradients(kernel, bias):
        difference = (softmax(features @ kernel + bias) - np.eye(3)[labels]) / 2
        return features.T @ difference, difference.sum(axis=0)

    def loss_of(kernel, bias):
        return -np.log(softmax(features @ kernel + bias)[[0, 1], labels]).mean()

    first = gradients(kernel, bias)
    norm = np.sqrt(sum((g**2).sum() for g in first))
    there = [v + 0.3 / norm * g for v, g in zip((kernel, bias), first, strict=True)]
    worst = gradients(*there)
    run_of(state, gradient_rule=sam)(iter(dataset_of(batch_of(features, labels))), tf.constant(1))
    for variable, before, gradient in zip(state.classifier.head.weights, (kernel, bias), worst, strict=True):
        np.testing.assert_allclose(variable, before - 0.5 * gradient, rtol=1e-5, atol=1e-6)
    loss = loss_of(kernel, bias)
    assert state.metrics.read()["loss"] == pytest.approx(loss, rel=1e-5)
    assert state.metrics.read()["sharpness"] == pytest.approx(loss_of(*there) - loss, rel=1e-4)
    assert state.metrics.count("loss") == state.metrics.count("sharpness") == 2
    assert state.variables()["gradient_rule/updates"] is sam.variables["updates"]
    # A metric that nobody has announced is told, rather than left out.
    with pytest.raises(UsageError, match=r"sharpness is told as a metric, and is not among metric_names"):
        run_of(state_of("for=9steps; train=head", gradient_rule=sam), gradient_rule=sam)(
            iter(dataset_of(batch_of(features, labels))), tf.constant(1)
        )
