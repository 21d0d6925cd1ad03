"""`recipes`: what experiments/ holds, from any folder; and what is said to whoever asks for nothing."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NAMES = sorted(path.stem for path in ROOT.glob("experiments/*.flags"))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_all_are_listed_with_what_they_are(run_main):
    status, out, err = run_main("recipes")
    assert (status, err) == (0, "")
    lines = out.splitlines()[: len(NAMES)]
    assert [line.split()[0] for line in lines] == NAMES
    [demo] = [line for line in lines if line.startswith("demo ")]
    assert demo.split(maxsplit=1)[1] == "The demo: everything once, on a machine that has nothing."


def test_they_are_written_as_they_are_and_can_be_named_as_files(run_main):
    status, out, _ = run_main("recipes", "demo", "experiments/alpaca_mobilenet_v2.flags", "demo")
    assert status == 0
    assert sorted(path.name for path in Path("experiments").iterdir()) == [
        "alpaca_mobilenet_v2.flags",
        "demo.flags",
    ]
    for path in Path("experiments").iterdir():
        assert path.read_bytes() == (ROOT / path).read_bytes()
    # The very command that it names reads the file.
    command = out.splitlines()[0].partition("python -m trainer.main ")[2].split()
    assert run_main("inspect", *command, "--synthetic_examples=60", "--image_size=32")[0] == 0


def test_another_file_is_not_written_over(run_main):
    assert run_main("recipes", "demo")[0] == 0
    assert run_main("recipes", "demo")[0] == 0
    Path("experiments/demo.flags").write_text("--seed=1\n")
    status, _, err = run_main("recipes", "demo")
    assert (status, Path("experiments/demo.flags").read_text()) == (1, "--seed=1\n")
    assert err.startswith("trainer: experiments/demo.flags is there already, and is another one")


def test_a_wrong_name_says_what_is_close(run_main):
    status, _, err = run_main("recipes", "dmeo")
    assert (status, err) == (2, "trainer: there is no recipe 'dmeo'; there are demo\n")
    assert list(Path().iterdir()) == []


def test_who_asks_for_nothing_is_led_to_the_demo(run_main):
    status, _, err = run_main()
    assert status == 2
    assert err.startswith(
        "trainer: train needs --workdir=FOLDER, where its results go, such as --workdir=runs/mine. "
        "A first try"
    )
    told = err.partition("needs no data: python -m trainer.main ")[2].split(", then")[0]
    assert run_main(*told.split())[0] == 0
    assert Path("experiments/demo.flags").exists()
    # Whoever has asked for something knows what for.
    assert "first try" not in run_main("--seed=1")[2]
