"""Files of a run that are whole JSON and hold something else: one line, and never a traceback."""

import contextlib
import copy
import io
import json
import shutil

import pytest

from tests.conftest import call_main, make_flower_folder
from tests.helpers.undrawn import PLAIN
from trainer.record.calibration import recorded_temperature
from trainer.record.workdir import Workdir
from trainer.report.scored import read_report
from trainer.store.files import read_json, require_shape
from trainer.values import TrainerError

pytestmark = pytest.mark.usefixtures("figures_undrawn")

WRONG = [[], {}, None, "x", 5, True, [[]], {"x": {}}, -1.5]
FILES = ("run.json", "splits.json", "report/metrics.json", "report/calibration.json")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_backbone):
    """The folder of a finished run that makes mistakes, which `explain` looks up, and the flags of it."""
    root = tmp_path_factory.mktemp("wrong_json")
    pictures, workdir = make_flower_folder(root / "pictures"), root / "run"
    flags = [
        f"--source=folder:{pictures}", f"--backbone=savedmodel:{tiny_backbone}", "--image_size=8",
        "--head=linear", "--splits=10,4,4", "--batch_size=4", "--schedule=frozen", "--frozen_for=2epochs",
        "--precision=float32", *PLAIN, f"--workdir={workdir}",
    ]  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        assert call_main("train", *flags) == 0
    return workdir, flags, pictures


@pytest.fixture
def run(trained, tmp_path):
    """A copy of it that may be harmed."""
    return shutil.copytree(trained[0], tmp_path / "run")


def places(value, at=()):
    """Yields the way to each value in a JSON value, itself first."""
    yield at
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(inner)[:3]:
        yield from places(item, (*at, key))


def changed(value, at, to):
    """Returns a copy of a value with another one somewhere inside of it."""
    if not at:
        return to
    value = copy.deepcopy(value)
    inner = value
    for key in at[:-1]:
        inner = inner[key]
    inner[at[-1]] = to
    return value


def readers(run):
    """Returns {file: the functions that read it}."""
    workdir, step = Workdir(str(run)), json.loads((run / "report/calibration.json").read_text())["step"]
    config = workdir.read_config()
    return {
        "run.json": [
            workdir.read_config, workdir.read_facts, lambda: workdir.check_same_run(config),
            lambda: workdir.note_code({}, step=1),
        ],
        "splits.json": [workdir.read_splits, lambda: workdir.write_or_check_splits({"train": []})],
        "report/metrics.json": [lambda: read_report(run / "report/metrics.json")],
        "report/calibration.json": [lambda: recorded_temperature(workdir, step=step)],
    }  # fmt: skip


@pytest.mark.parametrize("file", FILES)
def test_whatever_is_in_a_file_is_read_or_refused_in_a_line(run, file):
    path = run / file
    right, found = json.loads(path.read_text()), readers(run)[file]
    refused = []
    for at in places(right):
        for to in WRONG:
            path.write_text(json.dumps(changed(right, at, to)))
            for read in found:
                try:
                    read()
                except TrainerError as error:
                    refused.append(error)
    assert len(refused) > 20
    assert not [str(error) for error in refused if "\n" in str(error) or error.exit_status != 1]
    for text in ("[" * 10_000, "{", '{"format": NaN}', "\0", "\ufeff{}", '{"format": 1e999}'):
        path.write_text(text)
        with pytest.raises(TrainerError, match=f"{path} (is damaged: |does not fit)"):
            found[0]()


@pytest.mark.parametrize("wrong", ["[]", "{}", '"x"', '{"format": 3}', '{"format": 2}', '{"format": 1}'])
def test_every_command_that_reads_one_says_so(trained, run, wrong, run_main):
    _, flags, pictures = trained
    at = f"--workdir={run}"
    picture = next(pictures.rglob("*.jpg"))
    commands = {
        "run.json": [
            ("train", *flags, at), ("evaluate", at), ("predict", at, picture), ("explain", at, picture),
            ("inspect", *flags, at), ("compare", run, trained[0]), ("export", at), ("serve", at, "--port=0"),
            ("train", *flags, f"--workdir={run}2", f"--init_from={run}"),
        ],
        "splits.json": [
            ("train", *flags, at), ("evaluate", at), ("evaluate", at, f"--source=folder:{pictures}/."),
            ("explain", at), ("compare", run, trained[0]),
        ],
        "report/metrics.json": [("compare", run, trained[0]), ("export", at)],
        "report/calibration.json": [("evaluate", at)],
    }  # fmt: skip
    for file, lines in commands.items():
        right = (run / file).read_text()
        (run / file).write_text(wrong)
        for line in lines:
            if file == "report/calibration.json" and wrong in ('{"format": 2}', '{"format": 3}'):
                continue  # Of another version, and fitted anew.
            status, _, err = run_main(*line)
            assert (status, err.count("\n")) == (1, 1), (file, line, err)
            assert err.startswith("trainer: ")
            assert str(run / file) in err, (line, err)
        (run / file).write_text(right)


def test_the_end_of_a_training_needs_no_report_that_can_be_read(trained, run, run_main):
    for name in ("metrics.json", "calibration.json"):
        (run / "report" / name).write_text("[]")
    assert run_main("train", *trained[1], f"--workdir={run}")[::2] == (0, "")
    assert read_json(run / "report" / "calibration.json")["split"] == "validation"


SHAPE = {"a": int, "b?": [float], "c": {str: (str, bool)}, "d": str | None, "e": object}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, ""),
        ({"b": [1, 2.5], "more": 3, "d": None, "e": {"x": 1}}, ""),
        ({"a": 1.0}, "a is 1.0, expected a whole number"),
        ({"a": True}, "a is True, expected a whole number"),
        ({"b": [1, "2"]}, r"b\[1\] is '2', expected a number"),
        ({"b": [float("nan")]}, r"b\[0\] is nan, expected a finite number"),
        ({"b": {}}, r"b is \{\}, expected a list"),
        ({"c": {"x": ["y"]}}, r"c.x is \['y'\], expected a list of 2"),
        ({"c": {"x": ["y", 1]}}, r"c.x\[1\] is 1, expected true or false"),
        ({"a": 10**30}, "a is 1000000000000000000000000000000, expected a number below .*"),
        ({"b": [10**400]}, r"b\[0\] is 1000.*"),
        ({"c": []}, r"c is \[\], expected an object"),
        ({"d": 5}, r"d is 5, expected str \| None"),
    ],
)
def test_shapes(change, message):
    value = {"a": 1, "c": {"x": ["y", True]}, "d": "z", "e": None, **change}
    if not message:
        require_shape(value, SHAPE)
        return
    with pytest.raises(ValueError, match=f"^{message}$"):
        require_shape(value, SHAPE)
    with pytest.raises(ValueError, match="it has no a"):
        require_shape({}, SHAPE)
