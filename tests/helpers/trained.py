"""A small finished run that whole files of tests share."""

import contextlib
import io
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import call_main, make_flower_folder
from tests.helpers.undrawn import PLAIN, undrawn


@dataclass(frozen=True)
class Trained:
    """A finished run on three colours, and where its pictures are: `source`/red/000.jpg to 009.jpg."""

    workdir: Path
    source: Path
    arguments: tuple[str, ...]
    """Its flags but --workdir."""

    def copy(self, folder: Path) -> Path:
        """Returns the workdir of a copy that may be changed; its pictures are those of the first."""
        return shutil.copytree(self.workdir, folder / "run")

    @contextlib.contextmanager
    def pictures_away(self, folder: Path) -> Iterator[Path]:
        """Within the block, the pictures are in another folder, and none where the run had them."""
        away = self.source.rename(folder / "pictures")
        try:
            yield away
        finally:
            away.rename(self.source)


def train_colours(root: Path, backbone: Path, *more: str) -> Trained:
    """Trains a head for ten epochs: 15 + 9 + 6 pictures, which it knows well in the end; `more` are flags."""
    source, workdir = make_flower_folder(root / "source", n=10), root / "run"
    arguments = (
        f"--source=folder:{source}", f"--backbone=savedmodel:{backbone}", "--image_size=8",
        "--head=linear", "--splits=50%,30%,20%", "--batch_size=4", "--schedule=frozen",
        "--frozen_for=10epochs", "--frozen_learning_rate=0.1", "--precision=float32", *PLAIN, *more,
    )  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()), undrawn():
        assert call_main("train", *arguments, f"--workdir={workdir}") == 0
    return Trained(workdir, source, arguments)
