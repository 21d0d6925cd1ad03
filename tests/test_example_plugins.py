"""The plugins in experiments/plugins, with the commands that they give."""

import shlex
from pathlib import Path

import pytest

from tests.conftest import make_flower_folder
from tests.helpers.plugins import forget_plugins
from tests.record.events import scalars
from trainer.record.workdir import Workdir

pytestmark = pytest.mark.usefixtures("figures_undrawn")

EXAMPLES = Path(__file__).parent.parent / "experiments" / "plugins"


@pytest.fixture(autouse=True)
def without_plugins():
    yield
    forget_plugins()


def command_of(plugin):
    """Returns the arguments of the command in the docstring of a plugin, without its workdir and flagfile."""
    text = (EXAMPLES / plugin).read_text().split('"""')[1].replace("\\\n", "")
    words = shlex.split(text[text.index("python -m trainer.main") :])[3:]
    assert words[0] == f"--plugin=experiments/plugins/{plugin}"
    return [f"--plugin={EXAMPLES / plugin}"] + [
        word for word in words[1:] if not word.startswith(("--workdir=", "--flagfile="))
    ]


def test_examples_through_the_door(tmp_path, monkeypatch, tiny_backbone, run_main):
    photos = make_flower_folder(tmp_path / "photos")
    pictures = sorted(path.relative_to(tmp_path).as_posix() for path in photos.rglob("*.jpg"))
    lines = [f"{path},{path.split('/')[1]}\n" for path in reversed(pictures)]
    (tmp_path / "photos.csv").write_text("".join(lines))
    monkeypatch.chdir(tmp_path)
    source, callback = command_of("csv_source.py"), command_of("weight_norm.py")
    assert source[1:] == ["--source=csv:photos.csv"]
    callback = [word.replace("(10)", "(2)") for word in callback]
    status, _, err = run_main(
        *source, *callback, f"--backbone=savedmodel:{tiny_backbone}", "--image_size=8", "--head=linear",
        "--batch_size=3", "--splits=12,3,3", "--schedule=frozen", "--frozen_for=4steps",
        "--precision=float32", "--embeddings=0", "--workdir=run",
    )  # fmt: skip
    assert (status, err) == (0, "")
    splits = Workdir(str(tmp_path / "run")).read_splits()
    found = {row[0]: row[1] for rows in splits.values() for row in rows}
    assert found == {path: path.split("/")[1] for path in pictures}
    norms = scalars(tmp_path / "run" / "train")["weight_norm"]
    assert [step for step, _ in norms] == [2, 4]
