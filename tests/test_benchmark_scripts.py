"""The programs under experiments/benchmarks/: opponents run for real, and the arithmetic of the tables."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import call_main
from tests.helpers.undrawn import PLAIN
from tests.model.modules import save_tiny
from tests.test_experiments import caches  # noqa: F401  (a fixture)

ROOT = Path(__file__).parent.parent
SCRIPTS = ROOT / "experiments" / "benchmarks"
sys.path.insert(0, str(SCRIPTS))

import compare  # noqa: E402
import measuring  # noqa: E402
import memory_curve  # noqa: E402
import minutes  # noqa: E402
import networks  # noqa: E402
import reading  # noqa: E402
import suites  # noqa: E402
import workers  # noqa: E402

SUITES = suites.comparisons(textbook_epochs=0, steps=8, epochs=3)
PROGRAMS = [program for suite in SUITES.values() for c in suite for program in c.programs]


def run_script(name: str, root: Path, output: Path, *flags: str) -> dict:
    """Runs a script with the prepared data under `root` and returns the JSON it writes."""
    environment = {**os.environ, "TFDS_DATA_DIR": str(root / "tfds")}
    command = [sys.executable, str(SCRIPTS / name), *flags, f"--output={output}"]
    # From elsewhere: the opponents must not need this project.
    done = subprocess.run(command, cwd=output.parent, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(output.read_text())


@pytest.mark.slow
def test_textbook_loop(caches, tmp_path):  # noqa: F811
    root, _ = caches
    module = save_tiny(tmp_path / "tiny")
    told = run_script(
        "textbook_loop.py", root, tmp_path / "told.json", f"--hub_module={module}", "--image_size=8",
        "--batch_size=4", "--epochs=2", "--trainable", "--test", "--take_examples=41", f"--logdir={tmp_path}",
    )  # fmt: skip
    # Half rounded down, half of the rest rounded up, the rest: as --splits=50%,25%,25% divides.
    assert told["split_sizes"] == [20, 11, 10]
    assert [epoch["train_images"] for epoch in told["epochs"]] == [20, 20]
    # Kernel 3x2 and beta 2 of the module, then 2 x 512 + 512, 512 x 5 + 5.
    assert told["trained_parameters"] == 8 + 1536 + 2565
    assert told["images_per_second_of"] == "epochs after the first"
    # The accuracies are shares of 11 and of 10 pictures.
    for scored, count in ((told["epochs"][-1]["validation"], 11), (told["test"], 10)):
        assert scored["accuracy"] * count == pytest.approx(round(scored["accuracy"] * count), abs=1e-5)
    for split in ("train", "validation"):
        points = reading.points(tmp_path / split, "accuracy")
        assert [point.step for point in points] == [0, 1]
        assert points[1].value == pytest.approx(told["epochs"][1][split]["accuracy"])
    found = reading.theirs(tmp_path / "told.json")
    seconds = told["epochs"][1]["train_seconds"]
    assert found["train_seconds_per_epoch"] == seconds
    assert found["images_per_second"] == pytest.approx(20 / seconds)
    assert found["seconds_per_epoch"] == pytest.approx(seconds + told["epochs"][1]["validation_seconds"])
    assert found["test_accuracy"] == told["test"]["accuracy"]


@pytest.mark.slow
def test_keras_fit(caches, tmp_path):  # noqa: F811
    root, _ = caches
    told = run_script(
        "keras_fit.py", root, tmp_path / "told.json", "--image_size=32", "--batch_size=4", "--epochs=1",
        "--from_layer=Conv_1_bn", "--test", "--max_steps=5",
    )  # fmt: skip
    assert told["split_sizes"] == [30, 15, 15]
    # Gamma and beta of the last BatchNorm of 1,280, then 1280 x 5 + 5.
    assert told["trained_parameters"] == 2 * 1280 + 6405
    assert [epoch["steps"] for epoch in told["epochs"]] == [5]
    assert told["images_per_second_of"] == "steps after the first 3"
    assert told["images_per_second"] > 0
    found = reading.theirs(tmp_path / "told.json")
    assert found["validation_accuracy"] == told["epochs"][0]["validation"]["accuracy"]
    assert "seconds_per_epoch" not in found  # There is no epoch after the first.


@pytest.mark.slow
def test_what_a_run_of_ours_tells(flower_folder, tiny_backbone, tmp_path, capfd):
    photos = flower_folder(tmp_path / "photos", n=10)
    workdir = tmp_path / "run"
    status = call_main(
        f"--source=folder:{photos}", "--splits=60%,20%,20%", f"--backbone=savedmodel:{tiny_backbone}",
        "--image_size=8", "--head=linear", "--schedule=frozen", "--frozen_for=3epochs", "--batch_size=4",
        "--log_every=1epochs", "--precision=float32", *PLAIN, f"--workdir={workdir}",
        f"--cache_dir={tmp_path / 'cache'}",
    )  # fmt: skip
    printed = capfd.readouterr().out
    assert status == 0
    found = reading.ours(workdir, printed)
    assert found["trained_parameters"] == 2 * 3 + 3
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    for split in ("validation", "test"):
        last = [line for line in lines if line["split"] == split][-1]
        assert found[f"{split}_accuracy"] == pytest.approx(last["accuracy"])
    # 18 images in 5 steps: epochs 2 and 3.
    shown = [point.value for point in reading.points(workdir / "train", "images_per_second")][1:]
    seconds = [18 / value for value in shown]
    assert found["images_per_second"] == pytest.approx(36 / sum(seconds))
    assert found["train_seconds_per_epoch"] == pytest.approx(sum(seconds) / 2)
    ends = [point.seconds for point in reading.points(workdir / "validation", "accuracy")]
    assert found["seconds_per_epoch"] == pytest.approx((ends[2] - ends[0]) / 2)
    # A run without a test split leaves no such folder.
    assert reading.points(workdir / "nowhere", "accuracy") == []
    assert reading.points(workdir / "train", "no such tag") == []


def test_a_run_that_does_not_say_what_trains(tmp_path):
    (tmp_path / "splits.json").write_text('{"splits": {"train": [1, 2]}}')
    (tmp_path / "flagfile.flags").write_text("--batch_size=2\n")
    with pytest.raises(SystemExit, match="did not print how many parameters train"):
        reading.ours(tmp_path, "something else")


@pytest.mark.parametrize(
    ("start", "stop", "images"),
    # 10 images in batches of 4: 4, 4, 2, and again.
    [(0, 1, 4), (0, 3, 10), (2, 3, 2), (1, 4, 10), (3, 6, 10), (5, 6, 2), (0, 7, 24), (2, 2, 0)],
)
def test_real_images(start, stop, images):
    assert reading.real_images(start, stop, 10, 4) == images


def test_speed_leaves_out_the_first_interval_and_padding():
    # Steps of 1 s, then of 0.5 s, on 10 images in three of them.
    points = [reading.Point(3, 0.0, 10 / 3), reading.Point(6, 0.0, 20 / 3), reading.Point(9, 0.0, 20 / 3)]
    found = reading.speed(points, train_images=10, batch_size=4)
    assert found == {"images_per_second": pytest.approx(20 / 3), "train_seconds_per_epoch": 1.5}
    # An interval across the end of the first epoch belongs to none.
    across = [reading.Point(2, 0.0, 4.0), reading.Point(4, 0.0, 3.0), reading.Point(6, 0.0, 6.0)]
    assert reading.speed(across, train_images=10, batch_size=4)["train_seconds_per_epoch"] == 1.5
    # With one interval there is nothing else to take.
    assert reading.speed(points[:1], train_images=10, batch_size=4) == {"images_per_second": 10 / 3}
    assert reading.speed([], train_images=10, batch_size=4) == {}


def test_extrapolation():
    # 3 epochs in 100 s, the later ones of 10 and 20 s; 7 more of 15 s.
    assert reading.extrapolated(100.0, [60.0, 10.0, 20.0], epochs=10) == 205.0
    assert reading.extrapolated(100.0, [60.0, 10.0], epochs=2) == 100.0


def test_better_by_compares_round_by_round():
    theirs, ours = [100.0, 60.0, 80.0], [10.0, 20.0, 16.0]
    assert measuring.better_by(theirs, ours, kind="time") == (5.0, 3.0, 10.0)
    assert measuring.better_by(ours, theirs, kind="rate") == (5.0, 3.0, 10.0)
    assert measuring.better_by([0.5, 0.75], [0.75, 0.5], kind="share") == (0.0, -0.25, 0.25)
    with pytest.raises(ValueError, match="shorter"):
        measuring.better_by(theirs, ours[:2], kind="time")


def test_table():
    runs = {
        "plain": [{"wall_seconds": w, "test_accuracy": 0.9} for w in (1000.0, 1200.0, 1100.0)],
        "ours": [{"wall_seconds": w, "test_accuracy": 0.905, "speed": 5.0} for w in (50.0, 50.0, 44.0)],
    }
    shown = compare.table(runs, {"wall_seconds": "time", "test_accuracy": "share", "speed": "rate"})
    assert shown.splitlines()[2:] == [
        "| wall_seconds | plain | 1,100 | 1,000 to 1,200 |  |",
        "| wall_seconds | ours | 50 | 44 to 50 | 24x (20 to 25) |",
        "| test_accuracy | plain | 90.00 % | 90.00 % to 90.00 % |  |",
        "| test_accuracy | ours | 90.50 % | 90.50 % to 90.50 % | +0.50 (+0.50 to +0.50) points |",
        # The opponent does not tell it.
        "| speed | ours | 5 | 5 to 5 |  |",
    ]


def test_memory_table():
    # 1,024 pictures and 2 MB more: 2 kB a picture.
    shown = memory_curve.table(500.0, {1000: 700.0, 2024: 702.0})
    assert shown.splitlines()[2:] == [
        "| only the network |  | 500 |  |  |",
        "| one frozen epoch | 1,000 | 700 | 200 |  |",
        "| one frozen epoch | 2,024 | 702 | 202 | 2.00 |",
    ]


def test_extrapolated_and_unequal_runs_are_said_to_be_so():
    comparison = suites.comparisons(textbook_epochs=3, steps=1, epochs=1)["frozen"][0]
    runs = {
        "textbook loop": [{"trained_parameters": 1000, "epoch_seconds": [3.0, 2.0, 2.0]}],
        "ours": [{"trained_parameters": 1001}],
    }
    told = "\n".join(compare.remarks(comparison, runs))
    assert "textbook loop 1,000, ours 1,001" in told
    assert "NOT THE SAME PARAMETERS" in told
    assert "EXTRAPOLATED. It ran 3 epochs; wall_seconds has 7 more" in told
    whole = SUITES["frozen"][0]
    assert len(compare.remarks(whole, dict.fromkeys(("a", "b"), runs["ours"]))) == 1


def test_extrapolation_enters_the_runs(tmp_path, monkeypatch):
    comparison = suites.comparisons(textbook_epochs=2, steps=1, epochs=1)["frozen_warm"][0]
    bench = compare.Bench(tmp_path)
    asked = []

    def measure(program, round_number):
        asked.append((program.name, round_number))
        return {"wall_seconds": 50.0, "epoch_seconds": [20.0, 10.0]}

    monkeypatch.setattr(bench, "measure", measure)
    runs = compare.run_comparison(bench, comparison, rounds=2)
    names = ["textbook loop", "ours, feature cache full"]
    assert asked == [(name, number) for number in range(2) for name in names]  # In turn.
    assert [run["wall_seconds"] for run in runs[names[0]]] == [130.0, 130.0]
    assert [run["wall_seconds"] for run in runs[names[1]]] == [50.0, 50.0]


def test_one_textbook_epoch_is_refused(capsys):
    with pytest.raises(SystemExit):
        compare.parse_arguments(["--suite=frozen", "--textbook_epochs=1"])
    assert "--textbook_epochs=1" in capsys.readouterr().err


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_command_lines_are_valid(program, tmp_path, monkeypatch):
    monkeypatch.setattr(compare.Bench, "_saved_lite0", lambda self: "/somewhere/lite0")
    bench = compare.Bench(tmp_path, ours_flags=["--precision=float32"])
    command = bench.command(program, tmp_path / "run", 2)
    assert "{" not in " ".join(command)
    if program.script:
        module = __import__(program.script.removesuffix(".py"))
        monkeypatch.setattr(sys, "argv", command[1:])
        assert module.parse_arguments().output == str(tmp_path / "run" / "measured.json")
    else:
        from trainer.cli import flags

        monkeypatch.chdir(ROOT)
        config = flags.parse(command[2:]).config
        assert (config.run.workdir, config.plan.batch_size) == (str(tmp_path / "run" / "workdir"), 32)


def test_networks_outlive_an_emptied_cache(tmp_path, monkeypatch):
    modules = tmp_path / "modules"
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(modules))
    bench = compare.Bench(tmp_path / "scratch")
    (bench.cache / "features" / "one").mkdir(parents=True)
    (bench.cache / "measured.json").touch()
    (bench.cache / "tfhub_modules" / "inception").mkdir()
    bench.empty_cache()
    assert {path.name for path in bench.cache.iterdir()} == {"tfhub_modules"}
    assert (modules / "inception").is_dir()


def test_a_full_cache_is_filled_once(tmp_path, monkeypatch):
    bench = compare.Bench(tmp_path)
    names = []

    def run(program, name, round_number):
        names.append(name)
        (bench.cache / "features").mkdir(exist_ok=True)
        return {}

    monkeypatch.setattr(bench, "_run", run)
    _, cold, warm = SUITES["frozen"][0].programs
    for round_number in range(2):
        bench.measure(warm, round_number)
    assert names == ["filling", warm.name, warm.name]
    bench.measure(cold, 0)
    bench.measure(warm, 2)
    assert names[3:] == [cold.name, warm.name]  # The cold run left it full.


def test_pictures_are_divided_class_by_class_the_same_each_time(tmp_path):
    for klass, count in (("ant", 10), ("bee", 4)):
        (tmp_path / "all" / klass).mkdir(parents=True)
        for number in range(count):
            (tmp_path / "all" / klass / f"{number}.jpg").write_text(f"{klass} {number}")

    def divided(place: Path) -> dict[str, str]:
        minutes.divide(tmp_path / "all", place)
        files = sorted(path for path in place.rglob("*.jpg"))
        return {str(path.relative_to(place)): path.read_text() for path in files}

    found = divided(tmp_path / "first")
    counts = [
        sum(name.startswith(part) for name in found) for part in ("valid/ant", "train/ant", "valid/bee")
    ]
    assert counts == [2, 8, 1]
    assert len(set(found.values())) == 14
    assert divided(tmp_path / "second") == found == divided(tmp_path / "first")


def test_opponents_get_the_epochs_that_end_in_time(tmp_path, monkeypatch):
    """A run takes 10 s and 7 s an epoch: in a minute seven epochs, and one where there is no time for it."""
    wanted = []

    def run_child(command, *, log):
        output = Path(next(flag.partition("=")[2] for flag in command if flag.startswith("--output=")))
        epochs = int(next(flag.partition("=")[2] for flag in command if flag.startswith("--epochs=")))
        output.write_text(json.dumps({"epochs": [{"validation": {"accuracy": epochs / 100}}]}))
        wanted.append(epochs)
        return measuring.Child(10 + 7 * epochs, 0, "")

    monkeypatch.setattr(measuring, "run_child", run_child)
    options = minutes.parse_arguments(["--pictures=x", f"--scratch={tmp_path}"])
    opponents = minutes.Opponents(options, tmp_path, tmp_path)
    assert opponents.names == ["tf_keras"]
    found = [opponents.measure("tf_keras", minutes=number, seed=1) for number in (1, 0.1)]
    assert [(run["epochs"], run["accuracy"]) for run in found] == [(7, 0.07), (1, 0.01)]
    assert wanted == [2, 4, 8, 7, 1]
    # What is measured already is not measured again.
    minutes.Opponents(options, tmp_path, tmp_path).measure("tf_keras", minutes=1, seed=1)
    assert wanted == [2, 4, 8, 7, 1]


def test_table_of_minutes():
    runs = [{"accuracy": share, "wall_seconds": secs} for share, secs in ((0.95, 110), (0.97, 130))]
    lines = minutes.table({"ours": {2: runs, 5: runs[:1]}}).splitlines()
    assert lines[-1] == "| ours | 96.0 ± 1.4 (120 s) | 95.0 (110 s) |"


def test_a_child_is_measured_and_its_failure_told(tmp_path):
    held = b"x" * (300 << 20)  # What this process holds must not count.
    code = "import os; data = b'x' * (100 << 20); print(os.environ['SAID'])"
    child = measuring.run_child(
        [sys.executable, "-c", code], log=tmp_path / "log", environment={"SAID": "hello"}
    )
    assert child.output == "hello\n"
    assert child.wall_seconds > 0
    assert 100 < child.peak_rss_mb < 250 < len(held)
    with pytest.raises(SystemExit, match=r"(?s)exit status 3.*no such thing"):
        measuring.run_child(
            [sys.executable, "-c", "print('no such thing'); raise SystemExit(3)"], log=tmp_path / "log"
        )


def test_networks_beside_one_another():
    told = {"measured": [{"what": "input alone", "pictures_per_second": 900.0}]}
    told["measured"] += [
        {"what": "forward, float32", "pictures_per_second": 30.0},
        {"what": "train step, float32", "pictures_per_second": 8.0},
    ]
    ours = [networks.ours_of(told), {"forward": 20.0, "update": 8.0}]
    theirs = [{"forward": 10.0, "update": 4.0}, {"forward": 10.0, "update": 2.0}]
    tabled = networks.table({"timm": theirs, "ours": ours}, macs=1e9, peak=2e11)
    # A picture forward is 2 GFLOP, an update three times that; the machine does 200 a second.
    assert tabled.splitlines()[2:] == [
        "| forward | timm | 10 | 10 to 10 | 10 % |  |",
        "| forward | ours | 25 | 20 to 30 | 25 % | 2.5x (2 to 3) |",
        "| update | timm | 3 | 2 to 4 | 9 % |  |",
        "| update | ours | 8 | 8 to 8 | 24 % | 3x (2 to 4) |",
    ]


def test_what_two_workers_are_measured_with_is_valid_and_summed_up(tmp_path):
    from trainer.cli import flags

    for name, own in workers.RUNS.items():
        config = flags.parse(["trainer", "train", *workers.COMMON, *own, "--workdir=x"]).config
        [phase] = config.phases
        assert (phase.name, config.plan.batch_size) == (name, workers.BATCH_SIZE)
    workers.draw_photos(tmp_path, count=3)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.jpg")) == [
        "a/000.jpg", "a/002.jpg", "b/001.jpg",
    ]  # fmt: skip
    one, two = (
        [{"images_per_second": speed, "trained_parameters": 312.5e6} for speed in of]
        for of in ((10, 20), (15, 38))
    )
    runs = {"one": one, "two": two}
    assert workers.efficiencies(runs) == pytest.approx([0.75, 0.95])
    # A gigabyte and a quarter takes a second; of two workers, each sends it whole, in two hops of 50 us.
    assert workers.simulated(1.0, 1.25e9, 2) == pytest.approx(1 / 2.0001)
    assert workers.simulated(1.0, 1.25e9, 4) == pytest.approx(1 / (1 + 1.5 + 6 * 50e-6))
    *_, told = workers.measured_table({"network": runs}).splitlines()
    assert told == "| network | 15 | 26.5 | 85 % (75 % to 95 %) |"
    steps = workers.steps_of_one({"network": runs})
    assert steps == {"network": (pytest.approx(32 / 15), 1.25e9)}
    told = workers.simulated_table(steps).splitlines()[2]
    assert told.startswith("| network | 1250.00 | 2,133 ms | 58.7 % |")
    assert workers.given_steps(["a:b:1.5:4"]) == {"a:b": (0.0015, 4e6)}
