"""Wrong command lines and surroundings: one clear line, the right status, nothing left, nothing harmed."""

import hashlib
import re
import string
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import call_main, make_flower_folder
from tests.helpers.wrong_archives import assert_unharmed, save_wrong_archives
from tests.helpers.wrong_labels import save_wrong_labels
from tests.model.modules import save_tiny, save_with_asset, save_with_signature

pytestmark = pytest.mark.usefixtures("figures_undrawn")

# What is right but for what a case changes. $ names are those of `places`.
RIGHT = {
    "source": "folder:$good", "splits": "60%,20%,20%", "backbone": "savedmodel:$tiny", "image_size": "8",
    "head": "linear", "schedule": "frozen", "frozen_for": "2steps", "batch_size": "4", "workdir": "$workdir",
    "precision": "float32", "cache_dir": "$cache",
}  # fmt: skip
# All that a command may add which fails: what it found out about pictures, and empty folders.
MAY_BE_NEW = re.compile(r"cache/(scans(/[0-9a-f]{64}\.scan)?|tfhub_modules)")


class Case(NamedTuple):
    """A block of wrong_command_lines.txt: words are what is no flag, None removes a flag."""

    status: int
    words: list[str]
    changes: dict[str, str | None]
    message: str


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture(scope="module")
def places(tmp_path_factory, tiny_backbone):
    """{name: path} of folders, files and modules, most of them wrong, and of an earlier run and its cache."""
    root = tmp_path_factory.mktemp("places")
    found = {name: make_flower_folder(root / name) for name in ("good", "text", "cut", "zero", "empty")}
    found["root"] = root
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
    found["brackets"] = save_tiny(root / "tiny [1]")
    found["served"] = save_with_signature(root / "served")
    found["damaged"] = save_tiny(root / "damaged")
    (found["damaged"] / "variables" / "variables.index").unlink()
    found["half"] = save_tiny(root / "half")
    (data,) = found["half"].glob("variables/variables.data*")
    data.write_bytes(data.read_bytes()[:-9])
    found["cut_graph"] = save_tiny(root / "cut_graph")
    (found["cut_graph"] / "saved_model.pb").write_bytes(b"")
    found["lost_asset"] = save_with_asset(root / "lost_asset")
    (found["lost_asset"] / "assets" / "names.txt").unlink()
    found["unlearned"] = make_flower_folder(root / "unlearned" / "train").parent
    make_flower_folder(found["unlearned"] / "validation", classes=["red", "grey"])
    found["one_sided"] = make_flower_folder(root / "one_sided" / "train", classes=["red", "green"]).parent
    make_flower_folder(found["one_sided"] / "validation", classes=["red"])
    found["nowhere"] = root / "nowhere"
    found["cache"] = root / "cache"
    found |= save_wrong_archives(root, found["good"])
    found |= save_wrong_labels(root / "labels", too_high=2, negative=-5, kept_back=-1)
    found["earlier"] = root / "earlier"
    assert call_main(*arguments(found, {}, workdir=found["earlier"])) == 0
    assert call_main("inspect", *arguments(found, {"source": "archive:$tar"}, workdir=root / "none")) == 0
    return found


def arguments(places, changes, *, workdir):
    values = {name: value for name, value in {**RIGHT, **changes}.items() if value is not None}
    names = {**places, "workdir": workdir}
    return [f"--{name}={string.Template(value).safe_substitute(names)}" for name, value in values.items()]


def contents(root):
    """Returns {path: SHA-256 of a file} of all that a command must leave alone."""
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else ""
        for path in root.rglob("*")
        if path.name != "lock"
    }


@pytest.fixture(scope="module")
def before(places):
    """What the next command must leave alone."""
    return contents(places["root"])


def assert_nothing_harmed(root, before):
    was, now = dict(before), contents(root)
    before.clear()
    before.update(now)
    assert {name: now.get(name) for name in was} == was
    assert [name for name in now if name not in was and not MAY_BE_NEW.fullmatch(name)] == []
    assert_unharmed(root)


def pattern(message, places):
    """`message` holds $names of places, and ... for anything."""
    wanted = re.escape(string.Template(message).safe_substitute(places)).replace(r"\.\.\.", ".*")
    return f"trainer: {wanted}\n"


def read_cases():
    for block in (Path(__file__).parent / "wrong_command_lines.txt").read_text().split("\n\n")[1:]:
        title, given = block.strip().split("\n", 1)
        name, status = re.fullmatch(r"\[(\w+)\] ([12])", title).groups()
        given, message = re.fullmatch(r"((?:.*\n)*?)trainer: ([^\0]*)", given).groups()
        flags = [re.fullmatch("--([a-z_]+)(?:=(.*))?", line) for line in given.splitlines()]
        words = [line for line, flag in zip(given.splitlines(), flags, strict=True) if not flag]
        case = Case(int(status), words, dict(flag.groups() for flag in flags if flag), message)
        yield pytest.param(case, id=name)


@pytest.mark.parametrize("case", read_cases())
def test_one_clear_line(case, places, before, run_main, tmp_path):
    workdir = tmp_path / "run"
    status, _, err = run_main(*case.words, *arguments(places, case.changes, workdir=workdir))
    fits = re.fullmatch(pattern(case.message, places), err)
    assert fits, err
    assert status == case.status
    # Nothing that the corrected command would stumble over, or that somebody would have to remove.
    assert not workdir.exists()
    assert_nothing_harmed(places["root"], before)


@pytest.mark.parametrize("case", [case for case in read_cases() if "workdir" not in case.values[0].changes])
def test_an_earlier_run_is_not_harmed(case, places, before, run_main):
    workdir = places["earlier"]
    status, _, err = run_main(*case.words, *arguments(places, case.changes, workdir=workdir))
    # What would change its numbers is refused before anything else is looked at.
    other = f"trainer: {re.escape(str(workdir))} holds a run with other options: .*\n"
    fits = re.fullmatch(f"{other}|{pattern(case.message, places)}", err)
    assert fits, err
    assert status == case.status or (status == 1 and re.fullmatch(other, err))
    assert_nothing_harmed(places["root"], before)


@pytest.mark.parametrize("command", ["train", "inspect", "find_lr"])
def test_a_path_alone_is_told_before_tensorflow_is_imported(command, tmp_path):
    for source, told in (
        (tmp_path, f"--source={tmp_path} is a folder: write --source=folder:{tmp_path}"),
        (
            f"folder:{tmp_path}/x",
            f"--source=folder:{tmp_path}/x: {tmp_path}/x does not exist: expected a folder of",
        ),
    ):
        code = (
            "import sys; from trainer.main import main; main(sys.argv); "
            "print('tensorflow' in sys.modules, file=sys.stderr)"
        )
        words = [command, f"--source={source}", f"--workdir={tmp_path / 'run'}"]
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
        assert done.stderr.startswith(f"trainer: {told}")
        assert done.stderr.endswith("\nFalse\n")
    assert list(tmp_path.iterdir()) == []
