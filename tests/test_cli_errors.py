"""Wrong command lines: one clear line, the right status, nothing left in the way."""

import re
import string
import tarfile
from pathlib import Path

import pytest

from tests.conftest import make_flower_folder
from tests.model.modules import save_tiny, save_with_signature

# What is right but for what a case changes. $ names are those of `places`.
RIGHT = {
    "source": "folder:$good", "splits": "60%,20%,20%", "backbone": "savedmodel:$tiny", "image_size": "8",
    "head": "linear", "schedule": "frozen", "frozen_for": "2steps", "batch_size": "4", "workdir": "$workdir",
}  # fmt: skip


@pytest.fixture(scope="module")
def places(tmp_path_factory, tiny_backbone):
    """{name: path} of folders, files and modules, most of them wrong."""
    root = tmp_path_factory.mktemp("places")
    found = {name: make_flower_folder(root / name) for name in ("good", "text", "cut", "zero", "empty")}
    found["tiny"] = tiny_backbone
    found["one"] = make_flower_folder(root / "one", classes=["red"])
    found["loose"] = make_flower_folder(root / "loose", classes=["red"]) / "red"
    found["native"] = root / "native"
    for split in ("train", "test"):
        make_flower_folder(found["native"] / split)
    found["no_train"] = make_flower_folder(root / "no_train" / "test").parent
    found["rare"] = make_flower_folder(root / "rare", n=3)
    for name in ("green", "blue"):
        for i in (1, 2):
            (found["rare"] / name / f"{i:03d}.jpg").unlink()
    (found["text"] / "green" / "002.jpg").write_text("not a picture at all")
    picture = found["cut"] / "green" / "002.jpg"
    picture.write_bytes(picture.read_bytes()[:-20])
    (found["zero"] / "blue" / "001.jpg").write_bytes(b"")
    (found["empty"] / "yellow").mkdir()
    (found["empty"] / "yellow" / "notes.txt").write_text("")
    found["file"] = root / "file.txt"
    found["file"].write_text("a file\n")
    found["tar"] = root / "flowers.tar"
    with tarfile.open(found["tar"], "w") as tar:
        tar.add(found["good"], arcname="flowers")
    found["fixed"] = save_tiny(root / "fixed", image_size=8)
    found["served"] = save_with_signature(root / "served")
    found["damaged"] = save_tiny(root / "damaged")
    (found["damaged"] / "variables" / "variables.index").unlink()
    found["nowhere"] = root / "nowhere"
    found["cache"] = root / "cache"
    return found


def arguments(places, changes, *, workdir):
    values = {name: value for name, value in {**RIGHT, **changes}.items() if value is not None}
    names = {**places, "workdir": workdir}
    return [f"--{name}={string.Template(value).safe_substitute(names)}" for name, value in values.items()]


def assert_one_line(err, message, places):
    """`message` holds $names of places, and ... for anything."""
    wanted = re.escape(string.Template(message).safe_substitute(places)).replace(r"\.\.\.", ".*")
    assert re.fullmatch(f"trainer: {wanted}\n", err), err


def read_cases():
    for block in (Path(__file__).parent / "wrong_command_lines.txt").read_text().split("\n\n")[1:]:
        title, *given, message = block.strip().splitlines()
        name, status = re.fullmatch(r"\[(\w+)\] ([12])", title).groups()
        flags = [re.fullmatch("--([a-z_]+)(?:=(.*))?", flag).groups() for flag in given]
        yield pytest.param(int(status), dict(flags), message.removeprefix("trainer: "), id=name)


@pytest.mark.parametrize(("status", "changes", "message"), read_cases())
def test_one_clear_line(status, changes, message, places, run_main, tmp_path):
    workdir = tmp_path / "run"
    got, _, err = run_main(*arguments(places, changes, workdir=workdir))
    assert got == status, err
    assert_one_line(err, message, places)
    # Nothing that the corrected command would stumble over.
    left = (
        {path.relative_to(workdir).as_posix() for path in workdir.rglob("*")} if workdir.exists() else set()
    )
    assert left <= {"lock"}, left
