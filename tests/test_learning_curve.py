"""`learning_curve` through the door: what it writes, says and refuses."""

import dataclasses

import pytest

from tests.conftest import make_flower_folder
from trainer.commands import learning_curve
from trainer.metrics.sample_size import Outlook
from trainer.store.files import read_json


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return make_flower_folder(tmp_path_factory.mktemp("pictures"), n=20)


@pytest.fixture
def curve(tmp_path, pictures, tiny_backbone, run_main):
    def found(*flags):
        return run_main(
            "learning_curve", f"--source=folder:{pictures}", f"--backbone=savedmodel:{tiny_backbone}",
            "--image_size=8", "--splits=60%,20%,20%", "--batch_size=8", "--precision=float32",
            f"--workdir={tmp_path / 'run'}", *flags,
        )  # fmt: skip

    return found


def test_it_leaves_a_table_a_figure_and_a_line(curve, tmp_path):
    # 36 of 60 pictures are for training: 9, 18 and all of them. Three colours are told apart by any.
    status, out, err = curve("--curve_shares=25%,50%,100%", "--curve_draws=2", "--schedule=finetune")
    assert (status, err) == (0, "")
    folder = tmp_path / "run" / "learning_curve"
    values = read_json(folder / "learning_curve.json")
    assert (values["split"], values["head"], values["num_scored"]) == ("test", "probe", 12)
    assert [(one["pictures"], one["draws"]) for one in values["points"]] == [
        (9, [1, 1]),
        (18, [1, 1]),
        (36, [1]),
    ]
    assert values["twice"] == {"pictures": 72, "gain": 0, "gain_95_percent_interval": [0, 0]}
    assert "twice the pictures (72) would buy about +0.0 points of test accuracy (95 % interval +0.0" in out
    lines = (folder / "learning_curve.csv").read_text().splitlines()
    assert lines == [
        "pictures,draw,test_accuracy", *(f"{size},{draw},1.000000" for size in (9, 18) for draw in (0, 1)),
        "36,0,1.000000",
    ]  # fmt: skip
    assert (folder / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    # It is not the beginning of a run.
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_fall_is_no_forecast(curve, monkeypatch):
    real = learning_curve.learning_curve

    def falling(*args, **options):
        found = real(*args, **options)
        return dataclasses.replace(found, outlook=Outlook(72, -0.127, -0.3, 0.1))

    monkeypatch.setattr(learning_curve, "learning_curve", falling)
    out = curve("--curve_shares=25%,50%,100%", "--curve_draws=2", "--schedule=finetune")[1]
    assert "would buy about -12.7 points" in out
    assert "on the frozen network; 12 pictures are too few to tell\n" in out


def test_of_a_run_that_is_there_it_takes_pictures_and_network(colours, tmp_path, run_main):
    workdir = colours.copy(tmp_path)
    status, _, err = run_main("learning_curve", f"--workdir={workdir}", "--curve_shares=40%,60%,100%")
    assert (status, err) == (0, "")
    values = read_json(workdir / "learning_curve" / "learning_curve.json")
    assert [one["pictures"] for one in values["points"]] == [6, 9, 15]


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--curve_shares=5%,100%", "must be three or more shares that rise up to 100%, such as 5%,20%"),
        ("--curve_shares=5%,50%,20%", "must be three or more shares that rise up to 100%"),
        ("--curve_shares=0%,50%,100%", "must be three or more shares that rise up to 100%"),
        ("--curve_shares=5%,50%,101%", "must be three or more shares that rise up to 100%"),
        ("--curve_shares=1,2,3", "must be three or more shares that rise up to 100%"),
        ("--curve_draws=1", "must be from 2 to 100"),
        (
            "--curve_shares=1%,2%,100%",
            "a curve needs 3 sizes, and shares of 36 training pictures are of 2: take more pictures",
        ),
    ],
)  # fmt: skip
def test_what_it_refuses(flag, message, curve):
    status, _, err = curve(flag)
    assert status == 2
    assert message in err
    assert err.startswith("trainer: ")
    assert err.count("\n") == 1
