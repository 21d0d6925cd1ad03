"""experiments/ablation.py: two real runs, the arithmetic of the table by hand, and what can go wrong."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from trainer.cli import flags
from trainer.record.workdir import Workdir

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "experiments" / "ablation.py"
sys.path.insert(0, str(ROOT / "experiments"))

import ablation  # noqa: E402
import tabling  # noqa: E402

ABLATIONS = ROOT / "experiments" / "ablations"
SHIPPED = sorted(ABLATIONS.rglob("[!_]*.flags"))
VALIDATION = [["a", "x", "1"], ["b", "x", "2"], ["c", "y", "3"], ["d", "y", "4"]]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_variants_can_be_read(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = flags.parse(["trainer", f"--flagfile={path}"]).config
    assert config.data.splits == "80%,20%"
    (variant,) = ablation.find_variants(path.parent, [path.stem])
    assert variant.what


def test_the_frozen_variants_differ_in_the_head(monkeypatch):
    monkeypatch.chdir(ROOT)
    paths = [ABLATIONS / f"{name}.flags" for name in ("frozen_linear", "frozen_mlp")]
    configs = [flags.parse(["trainer", f"--flagfile={path}"]).config for path in paths]
    assert [config.model.head for config in configs] == ["linear", "mlp(512)"]
    both = [config.replace(head="linear") for config in configs]
    assert both[0] == both[1]
    assert (both[0].plan.schedule, both[0].plan.frozen_for) == ("frozen", "10epochs")
    assert (both[0].model.backbone, both[0].model.image_size) == ("efficientnet_lite0", 224)


def result(best, last, *, seconds=1.0, validation=VALIDATION):
    return tabling.Result(best, last, seconds, 8, validation)


VARIANTS = [
    tabling.Variant(name, f"what {name} is", Path(f"{name}.flags")) for name in ("plain", "more", "odd")
]
RESULTS = {
    "plain": {0: result(0.90, 0.89, seconds=10.4), 1: result(0.92, 0.90), 2: result(0.94, 0.94)},
    # Without seed 1: compared with the base over 0 and 2 only.
    "more": {2: result(0.97, 0.96, seconds=None), 0: result(0.95, 0.90)},
}


def test_numbers_by_hand():
    plain, more, odd = tabling.summary(VARIANTS, RESULTS, base="plain")
    assert plain["best"]["mean"] == pytest.approx(0.92)
    assert plain["best"]["standard_deviation"] == pytest.approx(0.02)
    assert plain["best"]["above_base"] is None
    assert plain["last"]["mean"] == pytest.approx(0.91)
    # Deviations -2, -1 and 3 points: the root of 14 / 2.
    assert plain["last"]["standard_deviation"] == pytest.approx(0.07**0.5 / 10)
    assert list(more["best"]["by_seed"].items()) == [(0, 0.95), (2, 0.97)]
    assert more["best"]["mean"] == pytest.approx(0.96)
    # 5 and 3 points, and at the end 1 and 2.
    assert more["best"]["above_base"] == pytest.approx(0.04)
    assert more["last"]["above_base"] == pytest.approx(0.015)
    assert more["pictures"] == {"train": 8, "validation": 4}
    assert more["seconds"] == {0: 1.0, 2: None}
    assert odd["best"] == {"by_seed": {}, "mean": None, "standard_deviation": None, "above_base": None}
    assert odd["pictures"] is None


def test_the_table():
    rows = tabling.summary([*VARIANTS[:2], VARIANTS[2]._replace(what="a | b")], RESULTS, base="plain")
    shown = [line.split(" | ") for line in tabling.table(rows, seeds=[0, 1, 2], base="plain").splitlines()]
    assert shown[0][2:5] == ["best, %", "mean ± s.d.", "above plain"]
    assert shown[2] == [
        "| plain", "what plain is", "90.00, 92.00, 94.00", "92.00 ± 2.00", "", "89.00, 90.00, 94.00",
        "91.00 ± 2.65", "", "8 + 4", "10, 1, 1 |",
    ]  # fmt: skip
    assert shown[3][2:] == [
        "95.00, -, 97.00", "96.00 ± 1.41", "+4.00", "90.00, -, 96.00", "93.00 ± 4.24", "+1.50", "8 + 4",
        "1, -, - |",
    ]  # fmt: skip
    assert shown[4][1:] == ["a \\| b", "-, -, -", "-", "", "-, -, -", "-", "", "-", "-, -, - |"]
    # A single seed has a mean and no deviation.
    rows = tabling.summary(VARIANTS[:1], {"plain": {0: result(0.5, 0.25)}}, base="plain")
    assert "| 50.00 | 50.00 |  | 25.00 | 25.00 |" in tabling.table(rows, seeds=[0], base="plain")


def test_remarks():
    others = {**RESULTS, "odd": {0: result(0.9, 0.9, validation=VALIDATION[:3])}}
    told = "\n".join(tabling.remarks(others, faults={"odd, seed 1": "no such thing"}, num_left=2))
    for said in (
        "NOT THE SAME VALIDATION PICTURES",
        "NOT FINISHED: 2 of the runs",
        "odd, seed 1: no such thing",
    ):
        assert said in told
        assert said not in "\n".join(tabling.remarks(RESULTS, faults={}, num_left=0))


def finish(workdir: Path, *, own: list[str], accuracies=(0.5, 0.75, 0.25)) -> None:
    """Writes what a finished run leaves."""
    config = flags.parse(["trainer", *own]).config
    run = Workdir(str(workdir))
    run.make()
    run.write_run(config, flagfile="")
    run.write_or_check_splits({"train": VALIDATION * 2, "validation": VALIDATION})
    points = [{"split": "validation", "step": i, "accuracy": value} for i, value in enumerate(accuracies)]
    points.insert(1, {"split": "train", "step": 1, "accuracy": 1.0})
    run.metrics_jsonl.write_text("".join(json.dumps(point) + "\n" for point in points))
    run.report.mkdir()
    (run.report / "metrics.json").write_text("{}")


def test_a_finished_run_is_read(tmp_path):
    finish(tmp_path / "seed-0", own=[f"--workdir={tmp_path}/seed-0"])
    (tmp_path / "seed-0.json").write_text('{"seconds": [1.5, 2.0]}')
    assert tabling.read_result(tmp_path / "seed-0") == (0.75, 0.25, 3.5, 8, VALIDATION)


@pytest.fixture
def script(tmp_path, monkeypatch, capsys):
    """script(child, *flags) -> (status, output, runs begun), with `child(workdir, flags) -> status` as runs.

    There are two variants, one and two, and what else is put into the folder variants.
    """
    (tmp_path / "variants").mkdir()
    (tmp_path / "variants" / "_shared.flags").write_text("# No variant.\n--splits=80%,20%\n")
    for name, head in (("one", "linear"), ("two", "mlp(4)")):
        text = f"# The {name}.\n--flagfile={tmp_path}/variants/_shared.flags\n--head={head}\n"
        (tmp_path / "variants" / f"{name}.flags").write_text(text)
    monkeypatch.setattr(signal, "signal", lambda *_: None)

    def run(child, *given):
        begun = []

        def run_child(command, *, log):
            own = command[command.index("train") + 1 :]
            workdir = Path(next(flag for flag in own if flag.startswith("--workdir=")).partition("=")[2])
            begun.append(f"{workdir.parent.name} {workdir.name}")
            log.write_text("much\ntrainer: the last line\n")
            return child(workdir, own)

        monkeypatch.setattr(ablation, "run_child", run_child)
        options = [f"--out={tmp_path}/out", f"--variants={tmp_path}/variants", *given]
        monkeypatch.setattr(sys, "argv", ["ablation.py", *options])
        status = ablation.main()
        out, err = capsys.readouterr()
        return status, out + err, begun

    return run


def well(workdir, own):
    finish(workdir, own=own)
    return 0


def test_all_is_run_once(script, tmp_path):
    status, out, begun = script(well, "--seeds=5,3")
    assert status == 0
    assert begun == ["one seed-5", "two seed-5", "one seed-3", "two seed-3"]
    written = json.loads((tmp_path / "out/table.json").read_text())
    assert [row["what"] for row in written["variants"]] == ["The one.", "The two."]
    assert written["variants"][1]["best"]["by_seed"] == {"3": 0.75, "5": 0.75}
    assert (tmp_path / "out/table.md").read_text() in out
    status, _, begun = script(well, "--seeds=3,5")
    assert (status, begun) == (0, [])
    status, out, begun = script(well, "--seeds=5,3,4", "--only=two,one", "--base=one")
    assert begun == ["two seed-4", "one seed-4"]
    assert "above one" in out
    rows = json.loads((tmp_path / "out/table.json").read_text())["variants"]
    assert [row["variant"] for row in rows] == ["two", "one"]


def test_flags_for_all_runs_overrule_the_variants(script, tmp_path):
    assert script(well, "--seeds=7", "--head=mlp(9)")[0] == 0
    for name in ("one", "two"):
        config = Workdir(str(tmp_path / "out" / name / "seed-7")).read_config()
        assert (config.model.head, config.data.splits, config.run.seed) == ("mlp(9)", "80%,20%", 7)


def test_a_failure_is_named_and_the_others_run(script, tmp_path):
    (tmp_path / "variants" / "bad.flags").write_text("# A slip.\n--haed=linear\n")

    def child(workdir, own):
        return 1 if "two/" in str(workdir) else well(workdir, own)

    status, out, begun = script(child, "--seeds=0,1")
    assert status == 1
    assert begun == ["one seed-0", "two seed-0", "one seed-1", "two seed-1"]
    assert "FAILED: two, seed 1: exit status 1: trainer: the last line" in out
    assert "FAILED: bad, seed 0: Unknown command line flag 'haed'" in out
    written = json.loads((tmp_path / "out/table.json").read_text())
    assert len(written["failed"]) == 4
    assert written["variants"][1]["best"]["mean"] == 0.75
    # What failed is run again, and goes on if it can.
    status, out, begun = script(well, "--seeds=0,1", "--only=one,two")
    assert (status, begun) == (0, ["two seed-0", "two seed-1"])


def test_numbers_of_other_options_are_not_taken(script):
    assert script(well, "--seeds=0")[0] == 0
    status, out, begun = script(well, "--seeds=0", "--frozen_for=7epochs")
    assert (status, begun) == (1, [])
    assert "--frozen_for was 10epochs, now 7epochs" in out
    assert "75.00" not in out


def test_a_low_accuracy_is_a_failure_with_numbers(script):
    status, out, _ = script(lambda *given: well(*given) or 1, "--seeds=0")
    assert status == 1
    assert "FAILED: two, seed 0" in out
    assert "| The two. | 75.00 |" in out


def test_ctrl_c_leaves_the_table_of_what_is_there(script, tmp_path):
    def child(workdir, own):
        if workdir.name == "seed-1":
            raise KeyboardInterrupt
        return well(workdir, own)

    status, out, begun = script(child, "--seeds=0,1,2")
    assert (status, begun[-1]) == (75, "one seed-1")
    assert "| The one. | 75.00, -, - |" in out
    assert "NOT FINISHED: 4 of the runs" in out
    # A run that saved and ended by itself (--max_minutes) is left, too.
    status, out, begun = script(lambda workdir, own: 75, "--seeds=0,1", "--only=one")
    assert (status, begun) == (75, ["one seed-1"])


def test_the_time_of_all_processes_counts(script, tmp_path, monkeypatch):
    clock = iter([100.0, 107.5, 200.0, 202.0])
    monkeypatch.setattr(ablation.time, "monotonic", lambda: next(clock))

    def stopped(workdir, own):
        workdir.mkdir()
        return 75

    script(stopped, "--seeds=0", "--only=one")
    script(well, "--seeds=0", "--only=one")
    rows = json.loads((tmp_path / "out/table.json").read_text())["variants"]
    assert rows[0]["seconds"] == {"0": 9.5}


@pytest.mark.parametrize(
    ("given", "status", "said"),
    [
        ("--only=one,three", 2, "--only=three: "),
        ("--base=three", 2, "--base=three is none of the variants of the table: one, two"),
        ("--variants=/nowhere", 2, "there is no NAME.flags in it"),
        ("evaluate", 1, "evaluate cannot be passed on"),
    ],
)
def test_wrong_options_are_told(given, status, said, script):
    found, out, begun = script(well, given)
    assert (found, begun) == (status, [])
    assert said in out


@pytest.mark.parametrize("given", ["--seeds=0,x", "--seed=1", "--workdir=here"])
def test_what_the_script_decides_cannot_be_given(given, script, capsys):
    with pytest.raises(SystemExit, match="2"):
        script(well, given)
    assert given.partition("=")[0] in capsys.readouterr().err


def test_a_child_hears_of_ctrl_c_once_and_ends(tmp_path):
    code = (
        "import os, signal, time\nheard = []\nsignal.signal(2, lambda *_: heard.append(1))\n"
        "print('in its own group', os.getpgrp() == os.getpid())\n"
        "print('ready', flush=True)\nend = time.monotonic() + 10\n"
        "while not heard and time.monotonic() < end: time.sleep(0.01)\n"
        "time.sleep(0.3)\nprint('heard', len(heard))"
    )
    log = tmp_path / "log"

    def interrupt():
        while "ready" not in log.read_text(errors="replace"):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    log.write_text("before\n")
    thread = threading.Thread(target=interrupt)
    # Tests that run in the background of a shell ignore Ctrl-C.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            ablation.run_child([sys.executable, "-c", code], log=log)
        thread.join()
    finally:
        signal.signal(signal.SIGINT, handler)
    assert log.read_text() == "before\nin its own group True\nready\nheard 1\n"
    assert ablation.run_child([sys.executable, "-c", "raise SystemExit(3)"], log=log) == 3


@pytest.mark.slow
@pytest.mark.parametrize("heads", [("mlp(4)",), ("linear", "mlp(4)")], ids=len)
def test_real_variants(heads, tiny_backbone, tmp_path):
    folder, out = tmp_path / "variants", tmp_path / "out"
    folder.mkdir()
    (folder / "_shared.flags").write_text(
        f"--backbone=savedmodel:{tiny_backbone}\n--image_size=32\n--schedule=frozen\n--frozen_for=2epochs\n"
        "--splits=75%,25%\n"
    )
    for name in heads:
        text = f"# A head that is {name}.\n--flagfile={folder}/_shared.flags\n--head={name}\n"
        (folder / f"{name.partition('(')[0]}.flags").write_text(text)
    command = [
        sys.executable, str(SCRIPT), "--source=synthetic:flowers", "--synthetic_examples=40", "--seeds=4",
        f"--out={out}", f"--variants={folder}", "--precision=float32",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    rows = json.loads((out / "table.json").read_text())["variants"]
    assert [(row["variant"], row["what"]) for row in rows] == [
        (name.partition("(")[0], f"A head that is {name}.") for name in heads
    ]
    for row in rows:
        workdir = out / row["variant"] / "seed-4"
        lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        accuracies = [line["accuracy"] for line in lines if line["split"] == "validation"]
        assert len(accuracies) == 2
        assert row["best"]["by_seed"] == {"4": max(accuracies)}
        assert row["last"]["by_seed"] == {"4": accuracies[-1]}
        report = json.loads((workdir / "report" / "metrics.json").read_text())
        assert report["accuracy"] == pytest.approx(max(accuracies))
        assert row["pictures"] == {"train": 30, "validation": 10}
        assert row["seconds"]["4"] > 0
        assert "validation accuracy" in (out / row["variant"] / "seed-4.log").read_text()
    assert Workdir(str(out / "mlp" / "seed-4")).read_config().run.seed == 4
    table = (out / "table.md").read_text()
    assert table in done.stdout
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0
    assert ": runs, see" not in again.stdout
    assert (out / "table.md").read_text() == table
