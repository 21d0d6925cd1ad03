"""What shells complete: bash is asked itself, and so are zsh and fish where they are installed."""

import shlex
import shutil
import subprocess

import pytest

from trainer.cli.completion import SHELLS, script
from trainer.cli.config import Config
from trainer.cli.flags import COMMANDS
from trainer.stated import names_of_options


def completed(line, folder):
    """Returns what bash offers at the end of a line."""
    words = shlex.split(line.replace("=", " = ")) + ([""] if line.endswith((" ", "=")) else [])
    asked = [
        f"COMP_LINE={shlex.quote(line)} COMP_POINT={len(line)} COMP_CWORD={len(words) - 1}",
        # Outside of a completion it has nothing to set.
        "compopt() { :; }",
        "_hub_trainer",
        "printf '%s\\n' \"${COMPREPLY[@]}\"",
    ]
    done = subprocess.run(
        ["bash", "-c", script("bash", names_of_options()) + "\n".join(asked)],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    return done.stdout.split()


def test_bash_completes_commands_options_values_and_files(tmp_path):
    (tmp_path / "mine.flags").touch()
    assert completed("hub-trainer ins", tmp_path) == ["inspect"]
    assert completed("hub-trainer ", tmp_path) == list(COMMANDS)
    assert completed("hub-trainer --frozen_f", tmp_path) == ["--frozen_for="]
    assert completed("hub-trainer predict --bn=", tmp_path) == ["frozen", "batch"]
    assert completed("hub-trainer --bn=b", tmp_path) == ["batch"]
    assert completed("hub-trainer --loss=f", tmp_path) == ["focal"]
    assert completed("hub-trainer --optimizer=ad", tmp_path) == ["adam", "adamw"]
    assert completed("hub-trainer --backbone=", tmp_path) == [f"efficientnet_lite{i}" for i in range(3)]
    assert completed("hub-trainer --flagfile=m", tmp_path) == ["mine.flags"]
    assert completed("hub-trainer predict mi", tmp_path) == ["mine.flags"]
    assert completed("hub-trainer --exten", tmp_path) == ["--extend"]


@pytest.mark.parametrize("shell", SHELLS)
def test_each_script_has_all_and_is_read_without_complaint(shell):
    text = script(shell, names_of_options())
    before = "-l " if shell == "fish" else "--"
    assert all(f"{before}{name}" in text for name in Config().flat())
    assert all(name in text for name in COMMANDS)
    if shutil.which(shell):
        done = subprocess.run([shell, "-n"], input=text, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")


def test_the_command(run_main):
    assert run_main("completion", "bash") == (0, script("bash", names_of_options()), "")
    told = "trainer: completion needs the name of a shell, one of bash, zsh, fish: completion bash\n"
    for words in ([], ["csh"], ["bash", "zsh"]):
        assert run_main("completion", *words) == (2, "", told)
