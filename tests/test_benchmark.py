"""The benchmark command: what it measures, how, and that it leaves nothing else behind."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import call_main, make_flower_folder
from trainer import runtime as machine
from trainer.cli import flags
from trainer.cli.config import Config
from trainer.commands import benchmark
from trainer.precision import arithmetic, supported
from trainer.run import stages as stages_module
from trainer.run.experiment import Experiment
from trainer.run.session import make_stages

PICTURES_TRAIN, BATCH_SIZE, STEPS_AN_EPOCH = 13, 4, 4


@pytest.fixture(scope="module")
def arguments(tmp_path_factory, tiny_backbone):
    pictures = make_flower_folder(tmp_path_factory.mktemp("pictures"))
    return [
        f"--source=folder:{pictures}", f"--backbone=savedmodel:{tiny_backbone}", "--image_size=8",
        "--head=linear", f"--splits={PICTURES_TRAIN},rest", f"--batch_size={BATCH_SIZE}", "--repeats=2",
        "--schedule=two_phase", "--precision=float32",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def quick():
    """One measurement takes a hundredth of a second, not half of one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "AT_LEAST_SECS", 0.01)
        yield


@pytest.fixture(scope="module")
def measured(quick, arguments, tmp_path_factory):
    """What a benchmark prints and writes; its current folder and its cache are empty before."""
    root = tmp_path_factory.mktemp("benchmark")
    for name in ("here", "cache"):
        (root / name).mkdir()
    output = root / "numbers" / "tiny.json"
    printed = root / "printed.txt"
    with pytest.MonkeyPatch.context() as patch, open(printed, "w") as out:
        patch.chdir(root / "here")
        patch.setattr(sys, "stdout", out)
        command = [*arguments, f"--output={output}", f"--cache_dir={root / 'cache'}"]
        assert call_main("benchmark", *command) == 0
    report = json.loads(output.read_text())
    return SimpleNamespace(root=root, report=report, out=printed.read_text(), command=command)


def test_the_file_holds_what_the_command_promises(measured):
    keys = re.findall(r"`(\w+)`", benchmark.run.__doc__)
    assert set(measured.report) == {*keys, "trainer"}
    assert measured.report["format"] == benchmark.FORMAT == 1
    assert measured.report["machine"] == machine.machine()
    assert {"python", "tensorflow", "numpy"} <= set(measured.report["versions"])
    assert measured.report["peak_memory_mb"] > 100
    config = flags.parse(["trainer", *measured.command]).config
    assert measured.report["flagfile"] == config.flagfile().splitlines()
    # What is asked for needs no measurement.
    assert measured.report["precision"] == {}


def test_there_is_a_row_for_each_phase_and_thing(measured):
    rows = [(row["phase"], row["what"]) for row in measured.report["measured"]]
    assert rows == [
        ("frozen", "input alone"),
        ("frozen", "forward, float32"),
        ("frozen", "train step, float32, from features"),
        ("frozen", "epoch"),
        ("finetune", "input alone"),
        ("finetune", "forward, float32"),
        ("finetune", "train step, float32"),
        ("finetune", "epoch"),
    ]


def test_the_numbers_fit_one_another(measured):
    for row in measured.report["measured"]:
        assert 0 < row["step_ms_low"] <= row["step_ms"] <= row["step_ms_high"], row
        assert row["times_measured"] == 2
        per_second, step_secs = row["pictures_per_second"], row["step_ms"] / 1e3
        if row["what"] == "epoch":
            # The last step of four has one picture.
            assert per_second * row["epoch_secs"] == pytest.approx(PICTURES_TRAIN)
            assert row["epoch_secs"] == pytest.approx(STEPS_AN_EPOCH * step_secs)
            assert 0 <= row["input_wait_share"] <= 1
        else:
            assert "epoch_secs" not in row
        if row["what"].startswith("forward"):
            assert per_second * step_secs == pytest.approx(BATCH_SIZE)


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_an_update_counts_the_pictures_it_had(measured, monkeypatch, precision):
    """Of 13 pictures in batches of 4 the last has one; under float16 some updates come to nothing first."""
    config = flags.parse(["trainer", *measured.command, "--schedule=frozen"]).config
    experiment = Experiment(config)
    stages = make_stages(experiment, decided={})
    if precision == "float16":
        recipe, terms = experiment.recipe, experiment.recipe.objective

        def larger(forward, batch, seed):
            found = terms(forward, batch, seed)
            return found._replace(losses=1e3 * found.losses)

        experiment.recipe = dataclasses.replace(recipe, objective=larger)
        monkeypatch.setattr(stages_module.Stage, "step_precision", "float16")
        monkeypatch.setattr(stages_module, "in_precision", lambda function, precision: function)
        stages.state.loss_scale.scale.assign(2.0**127)
    updates = benchmark._Updates(stages, experiment.plan.phases[0])
    done = stages.state.step
    assert (done > 1) == (precision == "float16")
    assert int(stages.state.optimizer.iterations) == 1
    # Up to the end of the epoch, and on to the end of the next ones.
    rest = -done % STEPS_AN_EPOCH
    assert updates(rest) == (PICTURES_TRAIN - BATCH_SIZE * (done % STEPS_AN_EPOCH) if rest else 0)
    assert updates(STEPS_AN_EPOCH - 1) == PICTURES_TRAIN - 1
    assert [updates(1), updates(1), updates(2 * STEPS_AN_EPOCH)] == [1, BATCH_SIZE, 2 * PICTURES_TRAIN]


@pytest.mark.skipif(
    "bfloat16" not in supported(), reason="TensorFlow's rewriter does no bfloat16 on this machine"
)
def test_the_head_stays_float32_in_what_is_measured(measured, monkeypatch):
    """As it does in the step: the rewriter would take its product, too."""
    experiment = Experiment(flags.parse(["trainer", *measured.command, "--head=mlp(64)"]).config)
    seen = []
    monkeypatch.setattr(
        benchmark, "in_precision", lambda function, precision: seen.append(function) or function
    )
    benchmark._forward(experiment, "bfloat16")
    images = tf.random.stateless_uniform([BATCH_SIZE, 8, 8, 3], [0, 0])
    with arithmetic("bfloat16"):
        logits = seen[0](images).numpy()
    rounded = tf.cast(tf.cast(logits, "bfloat16"), "float32").numpy()
    assert np.mean(rounded == logits) < 0.5


@pytest.mark.parametrize(
    "phase", ["train=head", pytest.param("train=all; lr=1e30; optimizer=sgd", marks=pytest.mark.slow)]
)
def test_what_training_would_end_at_is_told_and_not_measured(quick, arguments, tmp_path, run_main, phase):
    """Above --max_loss at the first update from features; not finite after some from pictures."""
    output = tmp_path / "numbers.json"
    options = ["--max_loss=0.5"] if "head" in phase else []
    command = [*arguments, f"--phase=name=one; for=9steps; {phase}", f"--output={output}", *options]
    status, out, err = run_main("benchmark", *command, f"--cache_dir={tmp_path / 'cache'}")
    above, not_finite = r"the loss of [\d.]+ is above --max_loss=0.5", "the (loss|gradient) is not finite .*"
    assert re.fullmatch(
        r"trainer: nothing can be measured from step \d+ of phase one on: "
        rf"{above if options else not_finite}, and training ends there\. "
        r"Try a lower learning rate or a warm-up, or another --max_loss\n",
        err,
    ), err
    assert (status, output.exists(), "ms/step" in out) == (1, False, False)


@pytest.mark.slow
def test_on_several_devices(quick, arguments, tmp_path, run_main):
    """Loaded for several devices, a module cannot be called outside of them."""
    options = ["--schedule=frozen", "--strategy=mirrored", "--repeats=1"]
    options += [f"--output={tmp_path / 'numbers.json'}", f"--cache_dir={tmp_path / 'cache'}"]
    status, _, err = run_main("benchmark", *arguments, *options)
    assert (status, "trainer:" in err) == (0, False), err
    rows = json.loads((tmp_path / "numbers.json").read_text())["measured"]
    forward = next(row for row in rows if row["what"] == "forward, float32")
    assert forward["pictures_per_second"] * forward["step_ms"] / 1e3 == pytest.approx(BATCH_SIZE)


def test_a_table_is_printed(measured):
    table = benchmark.table(measured.report)
    assert measured.out.endswith(f"{table}written to {measured.root / 'numbers' / 'tiny.json'}\n")
    lines = table.splitlines()
    here = measured.report["machine"]
    assert f"{here['cores']} cores" in lines[0]
    assert f"TensorFlow {measured.report['versions']['tensorflow']}" in lines[0]
    assert lines[1].split() == ["phase", "what", "pictures/s", "ms/step", "low", "high", "times"]
    rows = measured.report["measured"]
    for line, row in zip(lines[2:], rows, strict=False):
        numbers = [row[name] for name in ("pictures_per_second", "step_ms", "step_ms_low", "step_ms_high")]
        shown = line.removeprefix(f"{row['phase']:<11} {row['what']:<42}").replace(",", "").split()
        assert [float(number) for number in shown] == [
            pytest.approx(numbers[0], abs=0.051), *(pytest.approx(n, abs=0.0051) for n in numbers[1:]), 2,
        ]  # fmt: skip
    epochs = [row for row in rows if row["what"] == "epoch"]
    assert lines[2 + len(rows) : -1] == [
        f"{row['phase']}: an epoch takes {row['epoch_secs']:,.2f} s; "
        f"{row['input_wait_share']:.1%} of it is waiting for input"
        for row in epochs
    ]
    assert lines[-1] == f"peak memory: {measured.report['peak_memory_mb']:,} MB"


def test_nothing_else_is_written(measured):
    root = measured.root
    assert sorted(path.name for path in root.iterdir()) == ["cache", "here", "numbers", "printed.txt"]
    assert [path.name for path in (root / "numbers").iterdir()] == ["tiny.json"]
    assert list((root / "here").iterdir()) == []


def test_auto_says_what_it_measured_and_without_output_nothing_is_written(
    quick, arguments, tmp_path, run_main
):
    more = ("--schedule=frozen", "--precision=auto", f"--cache_dir={tmp_path / 'cache'}")
    (tmp_path / "here").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path / "here")
        patch.setattr(Config, "flagfile", lambda config: "")
        patch.setattr(benchmark, "table", lambda report: json.dumps(report) + "\n")
        status, out, err = run_main("benchmark", *arguments, *more, "--repeats=1")
    assert (status, err) == (0, "")
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == ["here"]
    assert list((tmp_path / "here").iterdir()) == []
    report = json.loads(out.splitlines()[-1])
    assert list(report["precision"]) == ["0-frozen"]
    forward = next(row for row in report["measured"] if row["what"].startswith("forward"))
    assert forward["what"] == f"forward, {report['precision']['0-frozen']['precision']}"
    assert forward["step_ms_low"] == forward["step_ms"] == forward["step_ms_high"]


def test_a_file_that_cannot_be_written_is_told_before_anything_is_measured(
    arguments, tmp_path, run_main, monkeypatch
):
    monkeypatch.setattr(benchmark, "Experiment", None)
    (tmp_path / "file").write_text("")
    below, folder, closed = (tmp_path / name for name in ("file/below/numbers.json", ".", "closed/numbers"))
    for output, why in (
        (below, "lies below a file: it must be a file in a folder"),
        (below.parent, "lies below a file: it must be a file in a folder"),
        (folder, "is a folder: it must be a file"),
    ):
        status, out, err = run_main("benchmark", *arguments, f"--output={output}")
        assert (status, out, err) == (1, "", f"trainer: --output={output} {why}\n")
    # Whoever runs the tests may be allowed everything.
    monkeypatch.setattr(os, "access", lambda path, mode: path != closed.parent)
    status, out, err = run_main("benchmark", *arguments, f"--output={closed}")
    assert (status, out) == (1, "")
    assert err == f"trainer: --output={closed} cannot be written: permission denied\n"


def test_it_needs_pictures_as_every_command(run_main, tmp_path):
    status, _, err = run_main("benchmark", f"--source=folder:{tmp_path / 'nowhere'}")
    assert (status, err.count("\n")) == (1, 1)
    assert "nowhere does not exist" in err


# How it measures, on a clock of its own.


class Work:
    """Work of known seconds a unit; the first call takes longer. Remembers how many were asked for."""

    def __init__(self, *secs, first=100.0):
        self.secs, self.first, self.now, self.counts = list(secs), first, 0.0, []

    def __call__(self, count):
        self.counts.append(count)
        begins = len(self.counts) == 1
        self.now += count * (
            self.first if begins else self.secs.pop(0) if len(self.secs) > 1 else self.secs[0]
        )
        return 3 * count

    def perf_counter(self):
        return self.now


@pytest.mark.parametrize(
    ("secs", "repeats", "counts", "found"),
    [
        # Once to trace, once to see how long it takes, then half a second each.
        ([0.1], 3, [1, 1, 5, 5, 5], [0.1, 0.1, 0.1]),
        ([0.1, 0.1, 0.3, 0.2], 3, [1, 1, 5, 5, 5], [0.1, 0.3, 0.2]),
        ([0.001], 1, [1, 1, 500], [0.001]),
        ([2.0], 2, [1, 1, 1, 1], [2.0, 2.0]),
        ([60.0], 2, [1, 1, 1, 1], [60.0, 60.0]),
        # Over a minute once is enough.
        ([60.1], 5, [1, 1], [60.1]),
        ([0.0], 1, [1, 1, 500_000], [0.0]),
    ],
)
def test_what_is_measured_how_often(monkeypatch, secs, repeats, counts, found):
    work = Work(*secs)
    monkeypatch.setattr(benchmark, "time", work)
    monkeypatch.setattr(benchmark, "AT_LEAST_SECS", 0.5)
    measured = benchmark.measure(work, repeats=repeats)
    assert [one.secs for one in measured] == pytest.approx(found)
    assert {one.pictures for one in measured} == {3}
    assert work.counts == counts


# The machine.


def test_the_machine_has_what_every_machine_has():
    here = machine.machine()
    assert json.loads(json.dumps(here)) == here
    assert here["processor"]
    assert 1 <= here["cores"] == machine.cores()
    assert here["memory_gb"] > 0.5
    assert set(here["instruction_sets"]) <= set(machine.INSTRUCTION_SETS) & machine.processor()[1]
    assert isinstance(here["gpus"], list)


def test_cores_are_those_that_this_process_may_use(monkeypatch):
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda process: {0, 5, 7}, raising=False)
    assert machine.cores() == 3
    monkeypatch.delattr(machine.os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(machine.os, "cpu_count", lambda: None)
    assert machine.cores() == 1


GROWING = """
from trainer.runtime import peak_memory_mb
before = peak_memory_mb()
touched = bytearray(b"x" * 200_000_000)
grown = peak_memory_mb()
del touched
print(before, grown, peak_memory_mb())
"""


def test_the_peak_of_memory_is_in_megabytes_and_never_falls():
    root = Path(__file__).parents[1]
    out = subprocess.run(
        [sys.executable, "-c", GROWING], cwd=root, capture_output=True, text=True, check=True
    ).stdout
    before, grown, after = map(float, out.split())
    assert 1 < before < 200
    assert 200 <= grown - before < 450
    assert after >= grown
