"""`sweep` through the door: trials over kept features, trials that are runs, and what is left of both."""

import json
import re
import shutil
import signal
import time

import pytest

from tests.conftest import make_flower_folder
from tests.helpers.processes import Program
from tests.record.events import scalars
from trainer.cli.flags import parse
from trainer.cli.search import read_space
from trainer.commands import sweep as of_sweep
from trainer.commands import train
from trainer.commands.sweep import _first_that_begins, _gpu_of, _Watch
from trainer.store.files import read_json
from trainer.values import MachineError, TrainerError, UsageError

SEARCH = [
    "--search=frozen_learning_rate=log(1e-3,1e-1)", "--search=dropout=uniform(0.1,0.6)",
    "--search=label_smoothing=uniform(0.01,0.2)", "--search=weight_decay=log(1e-3,1)",
]  # fmt: skip
# Ten are drawn at random; the others by what these have come to.
TRIALS = 13


@pytest.fixture(scope="module")
def base(tiny_backbone, tmp_path_factory):
    """The flags of a small experiment, whose features are kept for all tests of this file."""
    pictures = make_flower_folder(tmp_path_factory.mktemp("pictures"), n=20)
    return [
        f"--source=folder:{pictures}", f"--backbone=savedmodel:{tiny_backbone}", "--image_size=8",
        "--splits=60%,40%", "--batch_size=8", "--precision=float32", "--schedule=frozen",
        "--frozen_for=2epochs", "--head=mlp(4)", f"--cache_dir={tmp_path_factory.mktemp('cache')}",
        "--figures_every=", "--embeddings=0", "--lr_schedule=cosine", "--optimizer=adamw",
        "--metric=validation_loss",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def flags(base):
    return [*base, *SEARCH, f"--trials={TRIALS}", "--repeat_seeds=2"]


@pytest.fixture(scope="module")
def swept(flags, tmp_path_factory):
    """A finished sweep that nobody may change."""
    from tests.conftest import call_main

    folder = tmp_path_factory.mktemp("swept") / "sweep"
    assert call_main("sweep", *flags, f"--workdir={folder}") == 0
    return folder


def validations(workdir):
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line for line in lines if line["split"] == "validation"}


def trials(folder):
    """What trials came to, but for the time they took."""
    found = read_json(folder / "sweep.json")
    return [{k: v for k, v in one.items() if k != "seconds"} for one in found["trials"]], found["repeats"]


@pytest.mark.slow
def test_the_best_flagfile_gives_the_numbers_of_the_trial_to_the_last_digit(swept, tmp_path, run_main):
    found = read_json(swept / "sweep.json")
    best = found["trials"][found["best"] - 1]
    status, _, _ = run_main("train", f"--flagfile={swept / 'best.flags'}", f"--workdir={tmp_path / 'best'}")
    assert status == 0
    assert best["value"] in [line["loss"] for line in validations(tmp_path / "best").values()]


def test_what_a_sweep_leaves(swept):
    found = read_json(swept / "sweep.json")
    assert [one["state"] for one in found["trials"]] == ["done"] * TRIALS
    values = [one["value"] for one in found["trials"]]
    # The best three, each with two seeds; the best on average of these is named.
    ranked = sorted(range(TRIALS), key=lambda i: values[i])
    assert [int(number) - 1 for number in found["repeats"]] == ranked[:3]
    means = {int(number): sum(of) / 2 for number, of in found["repeats"].items()}
    assert found["best"] == min(means, key=means.get)
    assert set(found["importance"]) == {"frozen_learning_rate", "dropout", "label_smoothing", "weight_decay"}
    page = (swept / "index.html").read_text()
    assert page.count("data:image/png") == 4
    assert "http" not in page.split("<body>")[1]
    shown = scalars(swept / "trials" / "0000" / "options")
    [(_, loss)] = shown["final/validation_loss"]
    assert loss == pytest.approx(values[0])


def test_a_finished_sweep_does_nothing_again(swept, flags, tmp_path, run_main):
    folder = tmp_path / "sweep"
    shutil.copytree(swept, folder)
    before = (folder / "study.journal").read_bytes()
    status, out, err = run_main("sweep", *flags, f"--workdir={folder}")
    assert (status, err) == (0, "")
    assert "trial 1 of" not in out
    assert trials(folder) == trials(swept)
    assert (folder / "study.journal").read_bytes().startswith(before)
    status, _, err = run_main("sweep", *flags, f"--workdir={folder}", "--seed=1")
    assert status == 1
    assert "holds a sweep of something else: options was" in err


@pytest.mark.parametrize("share", [0.7])
def test_killed_between_any_two_lines_of_its_record_it_comes_to_the_same(
    swept, flags, tmp_path, run_main, share
):
    folder = tmp_path / "sweep"
    shutil.copytree(swept, folder)
    lines = (folder / "study.journal").read_bytes().splitlines(keepends=True)
    # The last one half written, as on a disk that was full.
    left = int(share * len(lines))
    (folder / "study.journal").write_bytes(b"".join(lines[:left]) + lines[left][:10])
    status, _, err = run_main("sweep", *flags, f"--workdir={folder}")
    assert (status, err) == (0, "")
    assert trials(folder) == trials(swept)


@pytest.mark.slow
def test_two_processes_share_a_sweep_and_a_third_takes_up_what_they_leave(swept, flags, tmp_path, run_main):
    folder = tmp_path / "sweep"
    asked = ["sweep", *(flag for flag in flags if not flag.startswith("--trials")), f"--workdir={folder}"]
    programs = [Program([*asked, "--trials=10"]) for _ in range(2)]
    while not (folder / "trials" / "0003").exists():
        assert all(program.poll() is None for program in programs), programs[0].communicate()
        time.sleep(0.02)
    programs[0].send_signal(signal.SIGKILL)
    programs[1].send_signal(signal.SIGTERM)
    _, err = programs[1].communicate()
    # It may have ended just before.
    assert programs[1].returncode in (0, 75)
    if programs[1].returncode:
        assert re.fullmatch(r"SIGTERM: stopped after \d+ of 10 trials; everything is saved. Run .*\n", err)
    programs[0].communicate()
    status, _, err = run_main(*asked, "--trials=10")
    assert (status, err) == (0, "")
    # Which process does a trial, and how often it was begun, changes nothing.
    assert trials(folder)[0] == trials(swept)[0][:10]


@pytest.mark.slow
def test_trials_that_are_runs_have_the_same_numbers(swept, flags, tmp_path, run_main):
    folder = tmp_path / "sweep"
    flags = [flag for flag in flags if not flag.startswith("--trials")]
    status, out, err = run_main(
        "sweep", *flags, f"--workdir={folder}", "--feature_cache=off", "--trials=2", "--repeat_seeds=0"
    )
    assert (status, err) == (0, "")
    assert "each trial is a run of its own, in trials/, as --feature_cache=off" in out
    mine, others = trials(folder)[0], trials(swept)[0][:2]
    # Both draw the same. TensorFlow rounds otherwise where a head stands behind a network.
    assert [one["options"] for one in mine] == [one["options"] for one in others]
    assert [one["value"] for one in mine] == pytest.approx([one["value"] for one in others], rel=1e-5)
    assert (folder / "trials" / "0001" / "report" / "index.html").exists()


@pytest.mark.slow
def test_pictures_that_come_while_a_sweep_trains_runs_end_it_until_they_go(
    base, tmp_path, run_main, monkeypatch
):
    pictures, real = make_flower_folder(tmp_path / "pictures", n=8), train.run
    first = next(pictures.rglob("*.*"))
    copy = first.with_name(f"new{first.suffix}")

    def run_and_add(line, *args, **options):
        status = real(line, *args, **options)
        if line.config.run.workdir.endswith("0000"):
            copy.write_bytes(first.read_bytes() + b" ")
        return status

    monkeypatch.setattr(train, "run", run_and_add)
    command = [
        "sweep", *base[1:], f"--source=folder:{pictures}", f"--workdir={tmp_path / 'sweep'}",
        "--search=dropout=0,0.1", "--sampler=grid", "--repeat_seeds=0", "--feature_cache=off",
        "--frozen_for=1epochs",
    ]  # fmt: skip
    status, _, err = run_main(*command)
    assert status == 1
    told = "the pictures are not those that the sweep in .* began with: .*this one counts no more"
    assert re.search(told, err), err
    copy.unlink()
    status, _, err = run_main(*command)
    assert (status, err) == (0, "")
    assert [one["state"] for one in trials(tmp_path / "sweep")[0]] == ["done"] * 2


def test_all_combinations_and_a_median_that_ends_some_early(base, tmp_path, run_main):
    # At a rate of 1e-6 nothing is learned. Seven combinations are before those: five to judge by are enough.
    rates = "0.1,0.09,0.08,0.07,0.06,0.05,1e-6"
    status, out, err = run_main(
        "sweep", *base, f"--workdir={tmp_path}", f"--search=frozen_learning_rate={rates}", "--sampler=grid",
        "--pruner=median", "--repeat_seeds=0",
    )  # fmt: skip
    assert (status, err) == (0, "")
    found = trials(tmp_path)[0]
    assert [one["options"]["frozen_learning_rate"] for one in found] == rates.split(",")
    assert found[-1]["state"] == "ended early"
    assert "(ended early)" in out


@pytest.mark.slow
def test_plugins_phases_and_trials_that_fail(base, tmp_path, run_main, without_plugins):
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "import tensorflow as tf\nimport trainer\n\n\n@trainer.register.loss('scaled')\n"
        "def scaled(scale: float = 1.0, *, smoothing, task):\n"
        "    'Cross-entropy times a number.'\n    plain = task.cross_entropy(smoothing=smoothing)\n"
        "    return lambda *given: scale * plain(*given)\n"
    )
    status, out, _ = run_main(
        "sweep", *base, f"--workdir={tmp_path / 'sweep'}", f"--plugin={plugin}", "--repeat_seeds=0",
        "--phase=name=only; for=2epochs; train=head; optimizer=sgd; momentum=0",
        "--search=phase.only.lr=0.01,1e25", "--search=loss=scaled(choice(1|10))", "--sampler=grid",
    )  # fmt: skip
    assert status == 0
    found = trials(tmp_path / "sweep")[0]
    assert [one["state"] for one in found] == ["done", "done", "failed", "failed"]
    assert "is not finite" in found[2]["why"]
    # Ten times the loss is ten times the step.
    assert found[1]["value"] < found[0]["value"]
    assert "2 done, 2 failed" in out


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ("loss=cross_entropy|focl(2)", "--loss=focl(2)"),
        ("loss=focal(uniform(-1,2))", "--loss=focal(-1.0)"),
        ("dropout=0,1", "--search: --dropout=1 must be 0 or more and below 1"),
    ],
)
def test_what_an_option_refuses_is_refused_at_the_door(base, tmp_path, run_main, search, message):
    status, _, err = run_main("sweep", *base, f"--workdir={tmp_path / 'x'}", f"--search={search}")
    assert status == 2
    assert message in err
    assert not (tmp_path / "x").exists()


def test_helpers_are_told_what_is_set_by_hand_and_nothing_else(swept, flags):
    told = parse(["trainer", "sweep", f"--flagfile={swept / 'sweep.flags'}"])
    asked = parse(["trainer", "sweep", *flags, f"--workdir={swept}"])
    assert (told.given, told.config) == (asked.given, asked.config)


@pytest.mark.slow
def test_helpers_train_the_same_trials(base, tmp_path, run_main):
    # Of a schedule that recommends, everything else is chosen, and a head that is fitted takes no rate.
    own = ("--schedule", "--frozen_for", "--head", "--batch_size", "--lr_schedule", "--optimizer")
    rest = [flag for flag in base if not flag.startswith(own)]
    found = {}
    for jobs in (1, 2):
        folder = tmp_path / f"of-{jobs}"
        status, out, err = run_main(
            "sweep", *rest, f"--workdir={folder}", f"--jobs={jobs}", "--search=head=probe|linear|mlp(4)",
            "--sampler=grid", "--repeat_seeds=0",
        )  # fmt: skip
        assert (status, err, "ended with status" in out) == (0, "", False)
        found[jobs] = {one["options"]["head"]: (one["state"], one["value"]) for one in trials(folder)[0]}
    assert found[2] == found[1]
    recorded = [read_json(path) for path in sorted((tmp_path / "of-2" / "trials").glob("*/run.json"))]
    assert [run["config"]["keep_checkpoints"] for run in recorded] == [1, 1, 1]
    assert (tmp_path / "of-2" / "job-2.log").exists()


@pytest.mark.slow
def test_a_head_that_is_fitted_makes_trials_runs_also_behind_one_that_is_not(base, tmp_path, run_main):
    """Not fitted, it would be near chance, and in the ranking as if that said something of it."""
    folder, alone = tmp_path / "sweep", tmp_path / "alone"
    given = ("--sampler=grid", "--repeat_seeds=0", "--search=head=linear|probe", f"--workdir={folder}")
    status, out, err = run_main("sweep", *base, *given)
    assert (status, "each trial is a run of its own" in out) == (0, True), err
    [probe] = [one["value"] for one in trials(folder)[0] if one["options"]["head"] == "probe"]
    base = [one for one in base if not one.startswith("--metric=")]
    assert run_main("train", *base, "--head=probe", f"--workdir={alone}")[0] == 0
    best = json.loads((alone / "run.json").read_text())["finished"]["best_step"]
    assert probe == validations(alone)[best]["loss"]


def test_a_time_for_each_trial_is_refused(base, tmp_path, run_main):
    rest = [flag for flag in base if not flag.startswith(("--schedule", "--frozen_for"))]
    given = (*rest, f"--workdir={tmp_path / 'x'}", "--search=dropout=0,0.5")
    status, _, err = run_main("sweep", *given, "--budget=5min")
    assert (status, "--budget=5min: each trial would measure for itself" in err) == (2, True)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--metric=validation_acuracy"], "--metric=validation_acuracy is not one of validation_loss, "
         "validation_accuracy: is it validation_accuracy?"),
        (["--metric=validation_confidence", "--search=metrics=confidence|"], ""),
        (["--metric=validation_recall/red"], ""),
        (["--early_stop=auc", "--search=augment=flip|"], "--early_stop=auc"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_all_trials_is_told_before_the_first(base, tmp_path, run_main, flags, message):
    status, _, err = run_main(
        "sweep", *base, f"--workdir={tmp_path / 'sweep'}", "--search=dropout=0.1,0.2", "--trials=1",
        "--frozen_for=1epochs", "--repeat_seeds=0", *flags,
    )  # fmt: skip
    assert status == (2 if message else 0), err
    assert message in err
    assert len(err.splitlines()) == bool(message)
    assert (tmp_path / "sweep" / "study.journal").exists() == (not message)


@pytest.mark.parametrize(
    ("errors", "told"),
    [
        ({"0": TrainerError("no weights")}, ""),
        ({"0": MemoryError("no 9 GB"), "0.1": UsageError("does not fit")}, ""),
        ({"0": MemoryError("no 9 GB"), "0.1": UsageError("b"), "0.2": TrainerError("c")}, "out of memory"),
        ({"0": MachineError("no room")}, "no room"),
        ({"0": KeyError("a fault of ours")}, "a fault of ours"),
    ],
)
def test_an_end_of_the_space_that_cannot_be_opened_is_a_trial_that_fails(monkeypatch, tmp_path, errors, told):
    def opened(config):
        if error := errors.get(f"{config.model.dropout:g}"):
            raise error
        return config

    monkeypatch.setattr(of_sweep, "Experiment", opened)
    asked_of = pytest.importorskip("trainer.run.sweep").Asked
    line = parse(["trainer", "sweep", f"--workdir={tmp_path}", "--search=dropout=0,0.1,0.2"])
    asked = asked_of(line.config, line.given, read_space(line.config.sweep.search, ""))
    if told:
        with pytest.raises(Exception, match=told):
            _first_that_begins(asked)
    else:
        assert f"{_first_that_begins(asked).model.dropout:g}" not in errors


@pytest.mark.parametrize(
    ("visible", "count", "expected"),
    [
        (None, 2, "0 1 0"),
        ("", 2, "0 1 0"),
        ("2, 3", 2, "2 3 2"),
        ("GPU-8f,GPU-1a,-1,5", 2, "GPU-8f GPU-1a GPU-8f"),
    ],
)
def test_each_job_has_one_of_the_gpus_that_the_user_lets_be_seen(monkeypatch, visible, count, expected):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert " ".join(_gpu_of(number, count) for number in range(3)) == expected


class Stop:
    def received(self):
        return ""


def test_a_run_is_watched_by_its_record(tmp_path):
    told = []

    def tell(count, values):
        told.append((count, values))
        return "worse" * (count == 2)

    watch = _Watch(Stop(), tmp_path / "metrics.jsonl", tell, str)
    assert watch.requested() == ""
    for step, split in ((5, "train"), (5, "validation"), (10, "validation")):
        with open(tmp_path / "metrics.jsonl", "a") as file:
            file.write(
                json.dumps({"split": split, "step": step, "epoch": 1.0, "phase": "a", "loss": step}) + "\n"
            )
        watch.requested()
        watch.requested()
    assert told == [(1, {"loss": 5}), (2, {"loss": 10})]
    assert watch.ended == watch.requested() == "worse"
