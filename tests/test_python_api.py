"""`trainer.train`, `trainer.load` and what a run can do: from a notebook, a thread, another folder."""

import dataclasses
import html.parser
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import trainer
from tests.conftest import make_flower_folder
from tests.helpers.plugins import forget_plugins
from trainer import plugins
from trainer.cli import keywords
from trainer.cli.config import Config
from trainer.registry import Origin
from trainer.values import TrainerError, UsageError

pytestmark = pytest.mark.usefixtures("figures_undrawn")

ROOT = Path(__file__).parent.parent
CLASSES = ("blue", "green", "red")
# Two phases of two epochs; each option as Python has it.
OPTIONS = {
    "image_size": 8, "head": "linear", "splits": "60%,20%,20%", "batch_size": 4,
    "schedule": "two_phase", "frozen_for": "2epochs",
    "finetune_for": "2epochs", "frozen_learning_rate": 0.05, "precision": "float32", "embeddings": 0,
    "log_every": "1steps", "figures_every": "",
}  # fmt: skip


@pytest.fixture(scope="module")
def places(tmp_path_factory, tiny_backbone):
    """Options of a run but its workdir, and the folder of the pictures."""
    pictures = make_flower_folder(tmp_path_factory.mktemp("api") / "pictures")
    return {**OPTIONS, "source": f"folder:{pictures}", "backbone": f"savedmodel:{tiny_backbone}"}


@pytest.fixture(scope="module")
def run(places, tmp_path_factory):
    return trainer.train(**places, workdir=tmp_path_factory.mktemp("runs") / "mine")


@pytest.fixture
def pictures(places):
    return Path(places["source"].removeprefix("folder:"))


def as_typed(options):
    return [f"--{name}={value}" for name, value in options.items()]


def message_of(call_main_arguments, run_main):
    status, _, err = run_main(*call_main_arguments)
    assert status != 0
    return err.removeprefix("trainer: ").removesuffix("\n")


def test_a_run_is_that_of_the_command_line(run, places, tmp_path, run_main):
    """The same numbers, in the report and under way, in both phases."""
    assert run_main("train", f"--workdir={tmp_path / 'run'}", *as_typed(places))[0] == 0
    typed = json.loads((tmp_path / "run" / "report" / "metrics.json").read_text())
    assert run.metrics == {**typed, "run": "mine"}
    assert [line["phase"] for line in run.history if line["split"] == "validation"] == [
        "frozen", "frozen", "finetune", "finetune",
    ]  # fmt: skip
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert run.history == [json.loads(line) for line in lines]
    assert run.metrics["split"] == "test"
    assert run.class_names == CLASSES
    assert (run.options["batch_size"], run.options["schedule"]) == (4, "two_phase")


def test_predict_evaluate_explain(run, pictures):
    found = run.predict(pictures / "red")
    assert [one.label for one in found] == ["red"] * 6
    assert run.predict([]) == []
    scored = run.evaluate(eval_split="validation")
    assert (scored["split"], scored["num_examples"]) == ("validation", 4)
    assert json.loads((run.workdir / "report" / "validation" / "metrics.json").read_text()) == scored
    assert run.metrics["split"] == "test"  # The report that the run ended with stays where it is.
    assert trainer.load(run.workdir, checkpoint="latest").evaluate(eval_split="train")["num_examples"] == 10
    others = run.evaluate(source=f"folder:{pictures}")
    assert others["num_examples"] == 4
    [one, two] = run.explain([pictures / "red" / "000.jpg", "nothing.jpg"], explain_class="blue")
    assert (one.label, one.explained_class, one.error) == ("red", "blue", None)
    assert one.file.read_bytes().startswith(b"\x89PNG")
    assert one.file.parent == run.workdir / "explain"
    assert (two.label, two.file) == (None, None)
    assert two.error


def test_other_pictures_are_scored_beside_the_report(run, places, tmp_path):
    make_flower_folder(tmp_path / "others", n=2, classes=("red", "blue"))
    scored = run.evaluate(source=f"folder:{tmp_path / 'others'}")
    assert (scored["num_examples"], scored["split"]) == (4, f"folder:{tmp_path / 'others'}")
    assert (run.workdir / "report" / "others" / "index.html").exists()


@pytest.mark.slow
def test_export_and_what_was_exported(run, pictures, tmp_path):
    exported = run.export(formats="saved_model", export_dir=tmp_path / "export")
    assert exported.files == (tmp_path / "export" / "saved_model",)
    assert exported.parity["passed"] is True
    model = trainer.load(exported.files[0])
    paths = sorted(pictures.rglob("*.jpg"))
    assert model.class_names == CLASSES
    assert [one.label for one in model.predict(paths)] == [one.label for one in run.predict(paths)]
    for ask in (lambda: model.metrics, model.evaluate, model.explain, model.export, lambda: model.report):
        with pytest.raises(TrainerError, match="is an exported model, and no run: it can only predict"):
            ask()
    assert str(exported.files[0]) in model._repr_html_()
    with pytest.raises(UsageError, match=r"^plugin=.*: a run brings its own; an exported model may need one"):
        trainer.load(run.workdir, plugin=tmp_path / "mine.py")


def test_no_pictures_are_no_pictures(run, tmp_path):
    """Not the mistakes of the report, which are explained where nothing is named."""
    before = sorted(run.workdir.rglob("explain/*"))
    assert run.explain(tmp_path.glob("*.jpg")) == run.explain([]) == run.predict([]) == []
    assert sorted(run.workdir.rglob("explain/*")) == before


def test_a_run_is_called_again_from_another_folder(run, pictures, tmp_path, monkeypatch):
    """A path is that of the folder in which it was said."""
    monkeypatch.chdir(run.workdir.parent)
    opened = trainer.load("mine")
    monkeypatch.chdir(tmp_path)
    assert opened.workdir == run.workdir
    assert opened.metrics == run.metrics
    assert opened.report.read_text().lower().startswith("<!doctype html>")
    assert opened.predict([pictures / "blue" / "000.jpg"]) == run.predict([pictures / "blue" / "000.jpg"])
    assert opened.evaluate()["accuracy"] == run.metrics["accuracy"]


WRONG = [
    {"shedule": "frozen"},
    {"schedule": "frozzen"},
    {"batch_size": 0},
    {"batch_size": 2.5},
    {"dropout": "much"},
    {"progress": "loud"},
    {"drop_duplicates": "perhaps"},
    {"frozen_for": "10"},
    {"loss": "focal(x=1)"},
    {"source": "folder:/there/is/no/such/folder"},
    {"plugin": ["/there/is/no.py"]},
    {"splits": "1,1,1,1"},
    {"flagfile": "/there/is/no.flags"},
    {"clip_norm": 1, "clip_value": 2},
    {"workdir": None},
    {"workdir": "gs://bucket/run"},
]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: ",".join(wrong))
def test_an_error_has_the_message_of_the_command_line(wrong, places, tmp_path, run_main):
    options = {**places, "workdir": tmp_path / "run", **wrong}
    with pytest.raises(TrainerError) as error:
        trainer.train(**options)
    typed = []
    for name, value in options.items():
        several = value if isinstance(value, list) else [value]
        typed += [f"--{name}={one}" for one in several if one is not None]
    status, _, err = run_main("train", *typed)
    assert err == f"trainer: {error.value}\n"
    assert status == error.value.exit_status


def test_values_that_no_command_line_has(places, tmp_path):
    with pytest.raises(UsageError, match=r"^--metrics=\['confidence'\] must be one value, and is a list$"):
        trainer.train(**places, metrics=["confidence"], workdir=tmp_path / "run")
    with pytest.raises(UsageError, match="must be on one line"):
        trainer.train(**{**places, "head": "lin\near"}, workdir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_that_is_not_there(run, tmp_path):
    with pytest.raises(TrainerError, match="holds no run"):
        trainer.load(tmp_path)
    with pytest.raises(TrainerError, match="no '99' checkpoint"):
        trainer.load(run.workdir, checkpoint=99)
    with pytest.raises(UsageError, match="is not best, latest or a step number"):
        trainer.load(run.workdir, checkpoint="bset")
    with pytest.raises(UsageError, match="has its own"):
        run.evaluate(workdir=tmp_path)
    with pytest.raises(UsageError, match="--eval_split=tets"):
        run.evaluate(eval_split="tets")


def test_a_full_disk_is_told_in_a_line(run, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device", "/some/file")

    monkeypatch.setattr("trainer.commands.evaluate.evaluate", full)
    with pytest.raises(TrainerError, match=r"^No space left on device: /some/file\. Make room") as error:
        run.evaluate()
    assert isinstance(error.value.__cause__, OSError)


@pytest.mark.slow
def test_a_flagfile_and_options_beside_it(places, tmp_path):
    (tmp_path / "some.flags").write_text(
        "\n".join([*as_typed(places), "--schedule=frozen", "--batch_size=5"])
    )
    run = trainer.train(flagfile=tmp_path / "some.flags", frozen_for="1epochs", workdir=tmp_path / "run")
    assert (run.options["batch_size"], run.options["frozen_for"]) == (5, "1epochs")
    assert {line["phase"] for line in run.history} == {"frozen"}


def test_phases_beside_a_flagfile_take_the_place_of_its_own(places, tmp_path):
    file = tmp_path / "some.flags"
    file.write_text("\n".join([*as_typed(places), "--phase=name=first; for=1steps; train=head"]))
    mine = ["name=mine; for=2steps; train=head", "name=more; for=1steps; train=all"]
    for given, names in (
        ({"phase": mine}, ["mine", "more"]),
        ({"phase": mine[0]}, ["mine"]),
        ({}, ["first"]),
    ):
        phases = trainer.prepare(flagfile=file, **given).plan.phases
        assert [phase.spec.name for phase in phases] == names


def process_state():
    """What belongs to whoever calls: handlers of signals and logs, random numbers of nobody, the streams."""
    loggers = [logging.getLogger(name) for name in (None, "trainer", "absl", "tensorflow")]
    return (
        [signal.getsignal(number) for number in signal.valid_signals()],
        [(log.handlers[:], log.level, log.propagate, log.disabled) for log in loggers],
        os.getcwd(), dict(os.environ), id(sys.stdout), id(sys.stderr),
    )  # fmt: skip


def test_nothing_is_printed_and_nothing_of_the_process_is_changed(run, places, tmp_path, capfd, pictures):
    before = process_state()
    capfd.readouterr()
    # It warns that --finetune_for has no effect.
    quiet = trainer.train(**{**places, "schedule": "frozen"}, workdir=tmp_path / "run")
    quiet.evaluate()
    quiet.predict(pictures)
    quiet.explain([pictures / "red" / "000.jpg", "nothing.jpg"])
    assert capfd.readouterr() == ("", "")
    assert process_state() == before


def test_who_turns_logging_on_sees_the_lines(run, caplog):
    with caplog.at_level(logging.INFO, logger="trainer"):
        run.evaluate()
    assert any(record.message.startswith("test accuracy") for record in caplog.records)


@pytest.mark.slow
def test_runs_in_threads(run, places, tmp_path):
    """Two train at once, each what it trains alone."""
    seeds = [0, 1]
    with ThreadPoolExecutor(2) as pool:
        runs = list(
            pool.map(
                lambda at: trainer.train(**places, seed=seeds[at], workdir=tmp_path / f"run{at}"), range(2)
            )
        )
    assert runs[0].history == run.history
    assert runs[1].history != run.history


IDEA = """
import tensorflow as tf
import trainer

@trainer.register.loss("mine")
def mine():
    "Mine."
    return lambda logits, labels, targets: {0} * tf.reduce_logsumexp(logits, axis=-1)

@trainer.register.metric("version")
def version():
    "Which one this is."
    return lambda logits, batch: tf.fill(tf.shape(logits)[:1], {0})
"""


@pytest.fixture
def ideas(tmp_path):
    """Two versions of a plugin, {which: its file}."""
    made = {number: tmp_path / str(number) / "idea.py" for number in (1.0, 1000.0)}
    for number, path in made.items():
        path.parent.mkdir()
        path.write_text(IDEA.format(number))
    yield made
    forget_plugins()


CAUTIOUS = """import trainer
import tensorflow as tf
from trainer.tasks import OneClass

@trainer.register.task("cautious")
class Cautious(OneClass):
    "Takes the class {0} whatever the network says."

    def decide(self, probabilities):
        return tf.fill(tf.shape(probabilities)[:1], tf.constant({0}, tf.int64))
"""


def test_the_task_of_one_run_is_not_that_of_another(places, pictures, tmp_path):
    runs = {}
    for number in (0, 1):
        path = tmp_path / str(number) / "task.py"
        path.parent.mkdir()
        path.write_text(CAUTIOUS.format(number))
        runs[number] = trainer.train(
            **places, plugin=path, task="cautious", workdir=tmp_path / f"run{number}"
        )
    data = (pictures / "blue" / "000.jpg").read_bytes()
    try:
        for number in (0, 1, 0):
            (one,) = trainer.load(runs[number].workdir).predict_encoded([("p", data)])
            assert one.label == CLASSES[number]
        (model,) = runs[1].export(formats="saved_model").files
        with pytest.raises(UsageError, match="--task=cautious is not one of"):
            trainer.load(model)
        loaded = trainer.load(model, plugin=tmp_path / "1" / "task.py")
        assert loaded.predict_encoded([("p", data)])[0].label == CLASSES[1]
    finally:
        forget_plugins()


def test_each_call_has_plugins_of_its_own(ideas, places, tmp_path):
    """Two versions at once in threads; each run keeps to its own; without plugin= there is none."""
    asked = {**places, "loss": "mine", "metrics": "version"}

    def train(number):
        return trainer.train(**asked, plugin=ideas[number], workdir=tmp_path / f"run{number}")

    with ThreadPoolExecutor(2) as pool:
        runs = dict(zip(ideas, pool.map(train, ideas), strict=True))
    for number, run in runs.items():
        assert {line["version"] for line in run.history} == {number}
        assert all((line["loss"] > 50) == (number > 1) for line in run.history if line["split"] == "train")
        assert (run.workdir / "plugins" / "idea.py").read_bytes() == ideas[number].read_bytes()
    for number in (1.0, 1000.0, 1.0):
        assert runs[number].evaluate()["metrics"] == {"version": number}
    with pytest.raises(UsageError, match=r"^--loss=mine is not one of"):
        trainer.train(**asked, workdir=tmp_path / "none")


CHANGES = """
import trainer
from trainer.data.augment import Change

@trainer.register.augmentation("dim")
def dim():
    return Change(1, lambda images, draws: images * {0})

@trainer.register.loss("broken")
def broken():
    return {{}}["nothing"]
"""


def test_what_was_prepared_keeps_its_plugin_and_what_fails_in_one_is_a_line(places, tmp_path):
    for number in (0, 1):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "mine.py").write_text(CHANGES.format(number))
    try:
        first, _ = (
            trainer.prepare(**places, augment="dim", plugin=tmp_path / str(number) / "mine.py")
            for number in (0, 1)
        )
        changed = first.augment(first.plan.phases[0].spec).apply(np.ones([1, 2, 2, 3], "f4"), np.ones([1, 1]))
        assert np.max(changed) == 0
        path = tmp_path / "0" / "mine.py"
        told = f"the plugin failed at {path}, line 11: KeyError: 'nothing'"
        with pytest.raises(TrainerError, match=f"^{re.escape(told)}$"):
            trainer.prepare(**places, loss="broken", plugin=path)
    finally:
        forget_plugins()


def test_a_cell_may_register_again_what_it_has_registered(caplog, ideas):
    scope = {"__name__": "__main__"}
    keys = []
    for scale in (1, 2):
        exec(IDEA.format(scale), scope)
        keys.append(plugins.sources("loss"))
    losses = trainer.register.registries()["loss"]
    try:
        assert losses["mine"].make is scope["mine"]
        # Nobody knows what else of the notebook has changed: what was kept of it is made anew.
        assert [len(key) for key in keys] == [1, 1]
        assert keys[0] != keys[1] == plugins.sources("loss")
        assert plugins.sources("augmentation") == []
        told = [record.message for record in caplog.records if record.message.startswith("--loss mine")]
        assert told == 2 * [
            "--loss mine is of __main__: a run with it keeps no copy of that code, as it does of a file that "
            "plugin= or --plugin= names"
        ]
        # And its code may become a file, which is seen where it is named.
        with plugins.apart():
            plugins.load_plugins([str(ideas[1.0])])
            assert losses["mine"].plugin == "idea.py"
        with plugins.apart():
            assert losses["mine"].make is scope["mine"]
    finally:
        forget_plugins()
        for registry in trainer.register.registries().values():
            registry.forget(Origin("", "__main__"))
    assert "mine" not in losses
    assert "focal" in losses


def test_a_run_in_use_is_refused(places, tmp_path):
    from trainer.record.workdir import Workdir

    workdir = Workdir(str(tmp_path / "run"))
    workdir.make()
    with workdir.lock(), pytest.raises(TrainerError, match="is in use by"):
        trainer.train(**places, workdir=tmp_path / "run")


def in_this_thread(**options):
    trainer.train(**options)


def in_another_thread(**options):
    with ThreadPoolExecutor(1) as pool:
        pool.submit(trainer.train, **options).result()


@pytest.mark.parametrize("call", [in_this_thread, pytest.param(in_another_thread, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_an_interrupted_run_goes_on_when_it_is_called_again(run, places, tmp_path, call):
    """By the clock, which reaches threads, too; and by a signal in the main thread."""
    options = {**places, "workdir": tmp_path / "run"}
    # Over before it has begun, it ends after its first step.
    stops = {"max_minutes": 1e-9}
    if call is in_this_thread:
        (tmp_path / "stops.py").write_text(STOPS)
        options["plugin"], stops = tmp_path / "stops.py", {"callbacks": "stops"}
    handlers = [signal.getsignal(number) for number in signal.valid_signals()]
    with pytest.raises(trainer.Interrupted, match="; everything is saved"):
        call(**options, **stops)
    assert [signal.getsignal(number) for number in signal.valid_signals()] == handlers
    reached = trainer.load(tmp_path / "run", checkpoint="latest")
    with pytest.raises(TrainerError, match=r"there is no .*index\.html: `evaluate` writes it"):
        _ = reached.report
    assert 0 < reached.history[-1]["step"] < run.history[-1]["step"]
    again = trainer.train(**options)
    assert again.history == run.history
    assert again.metrics == {**run.metrics, "run": "run"}


STOPS = """
import os, signal
import trainer
from trainer.loop.callbacks import Callback

@trainer.register.callback("stops")
class Stops(Callback):
    "Sends this process a signal after three steps, as an impatient user does."

    def __init__(self, *, run): ...

    def next_due(self, step):
        return step + 1

    def __call__(self, state):
        if state.step == 3:
            os.kill(os.getpid(), signal.SIGINT)
"""


class Cells(html.parser.HTMLParser):
    """The texts of a table, and the names of all tags."""

    def __init__(self, text):
        super().__init__()
        self.texts, self.tags = [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)

    def handle_data(self, data):
        self.texts.append(data)


def test_shown_in_a_notebook(run):
    cells = Cells(run._repr_html_())
    assert cells.tags == {"table", "tr", "th", "td"}
    assert str(run.workdir) in cells.texts
    low, high = (100 * share for share in run.metrics["accuracy_95_percent_interval"])
    counts = f"{run.metrics['num_correct']} of {run.metrics['num_examples']}"
    percent = f"{100 * run.metrics['accuracy']:.2f}"
    assert f"{percent} % ({counts}; 95 % interval {low:.1f} to {high:.1f} %)" in cells.texts
    assert repr(run) == f"<trainer run in {run.workdir}, checkpoint best>"


def test_what_is_shown_is_escaped(run, tmp_path):
    """Names of folders are written by others."""
    folder = tmp_path / "<script>alert(1)<" / "a&b"
    shutil.copytree(run.workdir, folder)
    shown = trainer.load(folder)._repr_html_()
    assert Cells(shown).tags == {"table", "tr", "th", "td"}
    assert str(folder) in Cells(shown).texts
    # What is missing, or damaged, is left out.
    (folder / "report" / "metrics.json").write_text("{")
    assert str(folder) in Cells(trainer.load(folder)._repr_html_()).texts


def test_the_keywords_are_the_options():
    """Editors and type checkers know each option with its type."""
    lines = []
    for section in dataclasses.fields(Config):
        lines.append(f"    # {type(section.default).__doc__.strip()}")
        for option in dataclasses.fields(type(section.default)):
            kind = type(option.default).__name__
            kind = "PathLike" if option.metadata["path"] else "Sequence[str]" if kind == "tuple" else kind
            kind = "PathLike | Sequence[PathLike]" if option.name == "plugin" else kind
            lines.append(f"    {option.name}: {kind}")
    _, found = Path(keywords.__file__).read_text().split("flagfile: PathLike | Sequence[PathLike]\n")
    assert found.splitlines() == lines


USER = """
import trainer

run = trainer.train(source="folder:photos", batch_size=16, workdir="runs/mine", plugin=["a.py"])
accuracy: float = run.metrics["accuracy"]
for one in trainer.load("runs/mine", checkpoint="latest").predict(["a.jpg"]):
    label: str | None = one.label
for explained in run.explain(explain_class="roses"):
    if explained.file:
        print(explained.file.name)
print(run.export(formats="int8").files, run.report, run.history[-1]["loss"], run.evaluate(eval_split="train"))
try:
    experiment = trainer.prepare(source="folder:photos")
    print(experiment.source.class_names)
except trainer.UsageError as error:
    print(error)
"""
MISTAKES = {
    'trainer.train(shedule="frozen")': 'Unexpected keyword argument "shedule" for "train"',
    "trainer.train(batch_size='many')": 'Argument "batch_size" to "train" has incompatible type "str"',
    "trainer.load()": 'Missing positional argument "workdir"',
    "trainer.load('a').metrix": '"Run" has no attribute "metrix"',
}


@pytest.mark.slow
def test_a_strict_type_checker_takes_what_a_user_writes(tmp_path):
    pytest.importorskip("mypy")
    (tmp_path / "right.py").write_text(USER)
    (tmp_path / "wrong.py").write_text("import trainer\n" + "\n".join(MISTAKES) + "\n")
    # Nothing of this project's settings holds for a user.
    settings = ("--strict", "--config-file=", "--follow-imports=silent", f"--cache-dir={tmp_path / 'cache'}")
    command = [sys.executable, "-m", "mypy", *settings, "right.py", "wrong.py"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "MYPYPATH": str(ROOT)}
    )
    errors = [line for line in done.stdout.splitlines() if ": error: " in line]
    assert len(errors) == len(MISTAKES), done.stdout + done.stderr
    for number, (error, message) in enumerate(zip(errors, MISTAKES.values(), strict=True), 2):
        assert error.startswith(f"wrong.py:{number}: error: {message}")
