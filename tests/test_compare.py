"""`compare` through the door: runs that were trained and evaluated here, and the files it writes."""

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import call_main, make_flower_folder
from tests.helpers.undrawn import PLAIN
from tests.record.runs import make_run, outcomes

pytestmark = pytest.mark.usefixtures("figures_undrawn")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_backbone):
    """The folder of two runs on the same pictures, `good` and `bad`."""
    root = tmp_path_factory.mktemp("compare")
    source = make_flower_folder(root / "source", n=20)
    recipes = {
        "good": ["--frozen_for=10epochs", "--frozen_learning_rate=0.1"],
        "bad": ["--frozen_for=1steps", "--frozen_learning_rate=1e-6"],
    }
    for name, recipe in recipes.items():
        arguments = [
            f"--source=folder:{source}", f"--backbone=savedmodel:{tiny_backbone}", "--image_size=8",
            "--head=linear", "--splits=40%,20%,40%", "--batch_size=8", "--schedule=frozen",
            "--precision=float32", *PLAIN, f"--workdir={root / 'runs' / name}", *recipe,
        ]  # fmt: skip
        with contextlib.redirect_stdout(io.StringIO()):
            assert call_main("train", *arguments) == 0
    return root / "runs"


def test_runs_that_were_trained(trained, run_main, tmp_path):
    output = tmp_path / "new" / "table.json"
    status, out, err = run_main("compare", trained / "good", trained / "bad", f"--output={output}")
    assert (status, err) == (0, "")
    found = json.loads(output.read_text())
    [pair] = found["pairs"]
    for run in found["runs"]:
        report = json.loads((trained / run["run"] / "report" / "metrics.json").read_text())
        assert run["accuracy"] == report["num_correct"] / 24
        assert (run["num_examples"], run["split"], run["image_size_px"]) == (24, "test", 8)
        assert run["log_loss"] is not None
        assert run["macro_f1"] is not None
        assert run["expected_calibration_error"] is not None
    good, bad = (run["num_correct"] for run in found["runs"])
    assert pair["num_shared"] == 24
    assert pair["only_first_right"] - pair["only_second_right"] == good - bad
    assert pair["better"] == "good"
    assert f"good is better than bad: right alone on {pair['only_first_right']} against" in out
    options = found["runs"][0]["options"]
    assert options == {"frozen_for": "10epochs", "frozen_learning_rate": 0.1}
    assert max(map(len, out.splitlines()[:-1])) <= 100
    assert out.splitlines()[-1] == f"written:     {output}"


@pytest.fixture
def two(tmp_path):
    first, second = outcomes(80, 12, 3, 5)
    return make_run(tmp_path / "a", first), make_run(tmp_path / "b", second)


@pytest.mark.parametrize(("ending", "begins"), [("csv", "run,backbone,"), ("MD", "| run | backbone |")])
def test_other_files(ending, begins, two, run_main, tmp_path):
    # A pattern, as of a shell that does not expand it.
    status, _, _ = run_main("compare", tmp_path / "*", f"--output={tmp_path / 'table'}.{ending}")
    assert status == 0
    assert (tmp_path / f"table.{ending}").read_text().startswith(begins)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["a"], 2, "compare needs the folders of two runs or more"),
        ([], 2, "compare needs the folders of two runs or more"),
        (["a", "a"], 2, "are the same run"),
        (["a", "none"], 1, "there is no none: expected the folder of a run"),
        (["a", "b", "--output=x.txt"], 2, "--output=x.txt must end in .json, .csv, .md"),
        (["a", "b", "--output=a/run.json/x.md"], 1, "--output=a/run.json/x.md lies below a file"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(arguments, status, message, two, run_main, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = run_main("compare", *arguments)
    assert found[0] == status
    assert found[2].count("\n") == 1
    assert message in found[2]


def test_neither_it_nor_doctor_needs_tensorflow(two):
    code = (
        "import sys\n"
        "from trainer.main import main\n"
        "assert main(['trainer', 'compare', *sys.argv[1:]]) == 0\n"
        "import trainer.commands.doctor\n"
        "assert 'tensorflow' not in sys.modules"
    )
    command = [sys.executable, "-c", code, *map(str, two)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert (done.returncode, done.stderr) == (0, "")
    assert "a is better than b: right alone on 12 against 3, p = 0.035" in done.stdout


def test_what_runs_star_fits_besides_is_skipped_by_name(tmp_path, run_main):
    right, other = outcomes(5, 1, 1, 1)
    runs = [make_run(tmp_path / "runs" / name, of) for name, of in (("a", right), ("b", other))]
    unfinished = make_run(tmp_path / "runs" / "unfinished", right)
    (unfinished / "report" / "metrics.json").unlink()
    (tmp_path / "runs" / "notes").mkdir()
    status, out, err = run_main("compare", *sorted((tmp_path / "runs").iterdir()))
    assert (status, err) == (0, "")
    skipped = [line for line in out.splitlines() if line.startswith("skipped: ")]
    assert [line.split()[1] for line in skipped] == [str(tmp_path / "runs" / "notes"), str(unfinished)]
    assert "a and b: no difference can be shown" in out
    # Where too few are left, that is why.
    status, out, err = run_main("compare", runs[0], unfinished)
    assert status == 1
    assert err.startswith(f"trainer: {unfinished} cannot be compared, it has no report: evaluate ")
