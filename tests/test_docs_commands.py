"""Every command of the pages of docs/ is run, in order, each page in a folder of its own: `make test-docs`.

What a page says of pictures is done with small ones. Comments above a block, which readers do not see, say
how it is run:

  <!-- not run: REASON -->         it cannot be run here
  <!-- small: --FLAG=VALUE ... -->  flags that make our commands in it small, after SMALL
  <!-- network: real -->           with the network that it says, or that is the default
  <!-- first: COMMAND -->          what has to be there before
  <!-- fails: STATUS -->           it ends with this status, and says what stands below it
  <!-- background: TEXT -->        it does not end by itself; it is waited for until it says this
"""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers import page_sources
from tests.helpers.pages import DOCS, PAGES, Shell, blocks, commands, masked
from tests.helpers.plugins import forget_plugins
from trainer.cli.flags import COMMANDS

pytestmark = [pytest.mark.docs, pytest.mark.usefixtures("figures_undrawn")]

FLOWERS = ("daisy", "dandelion", "roses", "sunflowers", "tulips")
# Their Python is run by these tests, with what it needs.
TESTED_ELSEWHERE = {
    "export.md": "tests/test_export.py",
    "extending.md": "tests/test_extending.py",
    "python.md": "tests/test_examples.py",
    "README.md": "tests/test_examples.py",
    "sources.md": "tests/data/sources/test_conversions.py",
}
# Where training commands name no network of their own, they have one of two features.
TRAINING = ("train", "inspect", "find_lr", "benchmark", "learning_curve", "audit", "cross_validate")
SMALL = ("--backbone=savedmodel:.tiny", "--precision=float32", "--image_size=32", "--embeddings=0")
SHORT = ("--frozen_for=1epochs", "--finetune_for=1epochs")
# Lines of output that depend on the machine, or on there being many pictures; so do those of single pictures.
DEPENDS = (
    "precision:",
    "saved_model",
    "int8.tflite",
    "phone:",
    "browser:",
    "TensorBoard:",
    "results:",
    "step ",
)


def draw(folder: Path, names, *, count: int, first: int = 0) -> None:
    """Writes `count` JPEGs of 40x30 px of each class, in a colour of its own, but each third in another's.

    So there are mistakes to be explained.
    """
    for k, name in enumerate(names):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(first, first + count):
            rng = np.random.default_rng([k, i])
            at = (k + (i % 3 == 2)) % len(names)
            pixels = np.clip(rng.integers(0, 80, (30, 40, 3)) + 35 * np.array([at, 4 - at, at % 2]), 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{k}_{i:03d}.jpg", quality=95)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory, tiny_backbone):
    """What the pages take for there."""
    root = tmp_path_factory.mktemp("pictures")
    for name in ("flower_photos", "my_pictures", "photos"):
        draw(root / name, FLOWERS, count=12)
    for name in ("new_photos", "more_photos"):
        draw(root / name, FLOWERS, count=2, first=100)
    draw(root / "two_classes", FLOWERS[:2], count=20)
    shutil.copy(root / "flower_photos/daisy/0_000.jpg", root / "photo.jpg")
    shutil.copytree(Path(__file__).parent.parent / "experiments", root / "experiments")
    shutil.copytree(tiny_backbone, root / ".tiny")
    return root


def made_small(block, command):
    """Returns the flags behind a command."""
    named = set(re.findall(r"--(\w+)", command))
    words = [word for word in command.split() if not word.startswith("-")]
    verb = next((word for word in words if word in COMMANDS), "train")
    if verb not in TRAINING or "help" in named:
        return ""
    short = () if named & {"schedule", "flagfile", "budget"} else SHORT
    flags = [flag for flag in (*SMALL, *short) if flag[2:].partition("=")[0] not in named]
    if named & {"backbone", "flagfile"} or "network" in block.notes:
        flags = [flag for flag in flags if not flag.startswith(("--backbone", "--image_size"))]
    return " ".join([*flags, block.notes.get("small", "")])


def named(page):
    return page.relative_to(DOCS).as_posix() if DOCS in page.parents else page.name


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_the_blocks_of_a_page_run(page, pictures, tmp_path, monkeypatch, run_main):
    to_run = [block for block in blocks(page.read_text()) if block.kind in ("sh", "console", "python")]
    if not to_run:
        pytest.skip("it has none")
    shutil.copytree(pictures, tmp_path, dirs_exist_ok=True)
    if page.name == "sources.md":
        page_sources.make(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    shell = Shell(tmp_path, run_main)
    try:
        for block in to_run:
            run_block(shell, block, named(page))
    finally:
        shell.end()
        forget_plugins()


def run_block(shell, block, page):
    if "not run" in block.notes:
        return
    for command in block.notes.get("first", "").splitlines():
        status, told = shell.run(command, small=made_small(block, command))
        assert status == 0, f"{command}\n{told}"
    if block.kind == "python":
        if page in TESTED_ELSEWHERE:
            return
        if block.title:
            Path(block.title).write_text(block.text)
        else:
            shell.execute(block.text, page)
        return
    for command, output in commands(block):
        if until := block.notes.get("background"):
            shell.begin(command, until=until)
            continue
        small = made_small(block, command) or block.notes.get("small", "")
        status, told = shell.run(command, small=small)
        forget_plugins()
        assert status == int(block.notes.get("fails", 0)), f"{command}\n{told}"
        # Pages name paths from the working folder on.
        said = masked(told.replace(f"{Path.cwd()}/", ""))
        for line in masked(output):
            if line != "..." and not line.startswith(DEPENDS) and not line.endswith(".jpg"):
                assert line in said, f"{line}\nis not in\n{told}"
