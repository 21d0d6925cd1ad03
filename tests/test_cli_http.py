"""Downloads through the door: a real server that misbehaves, and the same command once it behaves again."""

import os
import re
import signal
import tarfile
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import call_main, make_flower_folder
from tests.helpers import wrong_server as server_that
from tests.helpers.processes import Program
from tests.helpers.small_disks import small_disk
from tests.model.modules import pack, save_tiny
from tests.test_cli_errors import contents
from tests.test_cli_surroundings import without_privileges
from trainer.store import downloads as network

pytestmark = pytest.mark.usefixtures("figures_undrawn")

TIMEOUT_SECS = 0.3
NOISE_BYTES = 200_000
ARCHIVE_WAYS_OUT = (
    "Ways out: correct the address, download it by hand and give --source=archive:PATH, or point --cache_dir "
    "to the cache folder of a machine that has it"
)


class Kind(NamedTuple):
    """What is downloaded: its flag with $url, and what is said around the reason why it cannot be."""

    flag: str
    failed: str
    unusable: str


KINDS = {
    "archive": Kind(
        "--source=archive:$url",
        f"--source=archive:$url: could not download $url: $reason. {ARCHIVE_WAYS_OUT}",
        "--source=archive:$url: the archive from $url is damaged or no .tgz, .tar or .zip: $reason; get it "
        "anew, or give another --source",
    ),
    "hub": Kind(
        "--backbone=hub:$url",
        *2
        * ("--backbone=hub:$url: cannot get it ($reason), and it is not cached in $cache/tfhub_modules/...",),
    ),
}


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture(scope="module")
def server():
    with server_that.serving() as made:
        yield made


@pytest.fixture(scope="module")
def parts(tmp_path_factory, tiny_backbone):
    """What commands are made of: pictures, a module, the bytes that a server sends of both, a cache."""
    root = tmp_path_factory.mktemp("http")
    pictures = make_flower_folder(root / "pictures")
    # What hardly shrinks, and is no part of the pictures or of the module.
    (pictures / "red" / "noise.txt").write_bytes(os.urandom(NOISE_BYTES))
    with tarfile.open(root / "pictures.tgz", "w:gz") as tar:
        tar.add(pictures, arcname="")
    (module := save_tiny(root / "module") / "noise.txt").write_bytes(os.urandom(NOISE_BYTES))
    bodies = {"archive": (root / "pictures.tgz").read_bytes(), "hub": pack(module.parent)}
    return {"pictures": pictures, "module": tiny_backbone, "cache": root / "cache", "bodies": bodies}


@pytest.fixture(scope="module")
def cache(parts, server):
    """A cache that holds an archive and a module already."""
    patch = pytest.MonkeyPatch()
    patch.setenv("no_proxy", "*")
    for kind in KINDS:
        assert call_main("inspect", *command(kind, offered(server, parts, kind, "earlier"), parts)) == 0
    patch.undo()
    return parts["cache"]


def offered(server, parts, kind, name, behaviour=server_that.good):
    """Returns an address at which the server has what is right, or behaves."""
    path = f"/{name}.tgz" if kind == "archive" else f"/{name}/1"
    server.bodies[path], server.behaviours[path] = parts["bodies"][kind], behaviour
    return server.url + path


def command(kind, url, parts, *, workdir=None, cache=None):
    """Returns a command line, of a run where there is a workdir."""
    right = [
        f"--source=folder:{parts['pictures']}", f"--backbone=savedmodel:{parts['module']}", "--image_size=8",
        "--head=linear", "--splits=60%,20%,20%", "--batch_size=4", "--schedule=frozen", "--frozen_for=2steps",
        "--precision=float32", f"--cache_dir={cache or parts['cache']}",
    ]  # fmt: skip
    return [*right, KINDS[kind].flag.replace("$url", url), *([f"--workdir={workdir}"] if workdir else [])]


def assert_one_line(result, message, *, url, reason, cache):
    status, _, err = result
    said = message.replace("$url", url).replace("$reason", reason).replace("$cache", str(cache))
    fits = re.fullmatch("trainer: " + re.escape(said).replace(r"\.\.\.", ".*") + "\n", err)
    assert fits, err
    assert status == 1


def of_cache(cache):
    """What is in it, but for empty folders and what was found out about pictures that are good."""
    return {name: digest for name, digest in contents(cache).items() if digest and "scans/" not in name}


FAILURES = {
    "403": (server_that.status(403), "the server says 403 Forbidden"),
    "404": (server_that.status(404), "the server says 404 Not Found"),
    "500": (server_that.status(500), "the server says 500 Internal Server Error"),
    "stalls": (server_that.stalls, "no answer within 0.3 s"),
    "stalls_midway": (server_that.stalls_midway, "nothing came for 0.3 s, after ... of $size bytes"),
    "breaks_off": (server_that.breaks_off, "the connection broke off after ... of $size bytes"),
    "resets": (server_that.resets, "Connection reset by peer, after ... of $size bytes"),
    "resets_at_once": (server_that.resets_at_once, "Connection reset by peer"),
    "ends_chunks_early": (server_that.ends_chunks_early, "the connection broke off, after ... bytes"),
    "no_http": (server_that.speaks_no_http, "220 mail.example.com ESMTP ready"),
    "to_a_file": (
        server_that.redirects("file:///etc/passwd"),
        "the server redirects to file:///etc/passwd, and only http and https are followed",
    ),
    "to_ftp": (
        server_that.redirects("ftp://127.0.0.1/x"),
        "the server redirects to ftp://127.0.0.1/x, and only http and https are followed",
    ),
    "in_a_circle": (server_that.redirects("?again"), "the server redirects in a circle, to $url?again again"),
    "on_and_on": (server_that.redirects_on, "the server redirects more than 10 times"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FAILURES)
def test_a_download_that_fails(kind, name, parts, cache, server, run_main, tmp_path, monkeypatch):
    behaviour, reason = FAILURES[name]
    monkeypatch.setattr(network, "TIMEOUT_SECS", TIMEOUT_SECS)
    url = offered(server, parts, kind, name, behaviour)
    before, workdir = of_cache(cache), tmp_path / "run"
    reason = reason.replace("$size", f"{len(parts['bodies'][kind]):,}").replace("$url", url)
    result = run_main("train", *command(kind, url, parts, workdir=workdir))
    assert_one_line(result, KINDS[kind].failed, url=url, reason=reason, cache=cache)
    assert not workdir.exists()
    assert of_cache(cache) == before
    offered(server, parts, kind, name)
    assert run_main("inspect", *command(kind, url, parts))[0] == 0
    after = of_cache(cache)
    assert {path: after[path] for path in before} == before


CONTENTS = {
    "page": (b"<!DOCTYPE html><html>Sign in</html>", "it is a web page, perhaps one to sign in on", "..."),
    "nothing": (b"", "it is empty (0 bytes)", "..."),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [*CONTENTS, "half"])
def test_what_comes_is_something_else(kind, name, parts, cache, server, run_main, tmp_path):
    ended = "Compressed file ended before the end-of-stream marker was reached"
    body, *reasons = CONTENTS.get(name, (parts["bodies"][kind][:50_000], ended, "..."))
    url = offered(server, parts, kind, name, server_that.says(body))
    before, workdir = of_cache(cache), tmp_path / "run"
    result = run_main("train", *command(kind, url, parts, workdir=workdir))
    reason = reasons[kind == "hub"]
    assert_one_line(result, KINDS[kind].unusable, url=url, reason=reason, cache=cache)
    assert not workdir.exists()
    assert of_cache(cache) == before
    offered(server, parts, kind, name)
    assert run_main("inspect", *command(kind, url, parts))[0] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_slow_and_roundabout_but_right(kind, parts, cache, server, run_main, tmp_path, monkeypatch):
    monkeypatch.setattr(network, "TIMEOUT_SECS", TIMEOUT_SECS)
    target = offered(server, parts, kind, "target", server_that.drips)
    other_host = target.replace("127.0.0.1", "localhost")
    url = offered(server, parts, kind, "roundabout", server_that.redirects(other_host))
    # To train to the end takes seconds, and once is enough.
    line = command(kind, url, parts, workdir=tmp_path / "run")
    assert run_main("train" if kind == "hub" else "inspect", *line)[0] == 0
    asked = len(server.asked)
    assert run_main("inspect", *line)[0] == 0
    assert len(server.asked) == asked


def test_a_right_archive_with_another_checksum(parts, cache, server, run_main, tmp_path):
    url = offered(server, parts, "archive", "checked")
    before = of_cache(cache)
    line = command("archive", url, parts, workdir=tmp_path / "run")
    status, _, err = run_main(*line, f"--checksum={'0' * 64}")
    said = (
        rf"trainer: --source=archive:{url}: the archive from {url} has the SHA-256 ([0-9a-f]+), expected 0+ "
        r"\(--checksum\): it is damaged or has changed; give its SHA-256 as --checksum to take it as it is\n"
    )
    assert (status, bool(re.fullmatch(said, err))) == (1, True), err
    assert of_cache(cache) == before
    sha256 = re.fullmatch(said, err)[1]
    assert run_main("inspect", *line[:-1], f"--checksum={sha256}")[0] == 0


def test_a_module_that_was_left_half(parts, cache, server, run_main, tmp_path):
    url = offered(server, parts, "hub", "half_left")
    assert run_main("inspect", *command("hub", url, parts))[0] == 0
    (folder,) = [path.parent for path in cache.glob("tfhub_modules/*/noise.txt") if _is_of(path.parent, url)]
    data = folder / "variables" / "variables.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:-9])
    lock, left = (
        folder.with_name(f"{begin}{folder.name[:16]}{end}")
        for begin, end in (("", ".lock"), (".unpacking-", "-x"))
    )
    lock.write_text("half of a li")
    left.mkdir()
    server.behaviours["/half_left/1"] = server_that.status(403)
    line = command("hub", url, parts, workdir=tmp_path / "run")
    result, reason = run_main("train", *line), "the server says 403 Forbidden"
    assert_one_line(result, KINDS["hub"].failed, url=url, reason=reason, cache=cache)
    assert [path for path in (folder, lock, left) if path.exists()] == []
    server.behaviours["/half_left/1"] = server_that.good
    assert run_main("inspect", *command("hub", url, parts))[0] == 0


def _is_of(folder: Path, url: str) -> bool:
    return url in folder.with_name(folder.name + ".descriptor.txt").read_text()


def test_a_download_that_is_killed_leaves_nothing_in_the_way(parts, server, run_main, tmp_path):
    urls = {kind: offered(server, parts, kind, "killed", server_that.stalls_midway) for kind in KINDS}
    lines = {kind: command(kind, url, parts, cache=tmp_path / "cache") for kind, url in urls.items()}
    running = [Program(["inspect", *line]) for line in lines.values()]
    try:
        for _ in running:
            assert server.reached.acquire(timeout=120)
        # The first half may still be on its way from the socket to the file.
        while len(left := _left_overs(tmp_path / "cache")) < 4:
            assert all(process.poll() is None for process in running)
            time.sleep(0.05)
    finally:
        for process in running:
            process.send_signal(signal.SIGKILL)
            process.communicate()
    assert sorted(path.suffix or path.name[:6] for path in left) == [".lock", ".lock", ".part-", ".part-"]
    assert not list((tmp_path / "cache").rglob("saved_model.pb"))
    for kind, line in lines.items():
        offered(server, parts, kind, "killed")
        status, _, err = run_main("inspect", *line)
        assert (status, err) == (0, "")
    assert _left_overs(tmp_path / "cache") == []


def _left_overs(cache):
    return [path for path in cache.rglob("*") if re.search(r"^\.part-|^\.unpacking-|\.lock$", path.name)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_that_may_not_be_written_to(kind, parts, server, run_main):
    url = offered(server, parts, kind, "no_permission")
    # The folders of pytest are closed to other users.
    with tempfile.TemporaryDirectory() as open_folder:
        cache = Path(open_folder, "cache")
        pictures = make_flower_folder(Path(open_folder, "pictures"))
        folder = cache / ("archives" if kind == "archive" else "tfhub_modules")
        folder.mkdir(parents=True)
        os.chmod(open_folder, 0o755)
        os.chmod(folder, 0o555)
        line = command(kind, url, {**parts, "pictures": pictures}, cache=cache)
        with without_privileges():
            status, _, err = run_main("inspect", *line)
        flag = re.escape(KINDS[kind].flag.replace("$url", url))
        said = rf"trainer: {flag}: cannot write to {folder}: .*Permission denied; set --cache_dir\n"
        assert (status, bool(re.fullmatch(said, err))) == (1, True), err
        assert list(folder.iterdir()) == []
        os.chmod(folder, 0o755)
        assert run_main("inspect", *line)[0] == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("told", [True, False])
def test_a_disk_without_room_for_a_download(kind, told, parts, server, run_main, tmp_path):
    way = server_that.good if told else server_that.tells_no_size
    url = offered(server, parts, kind, f"no_room_{told}", way)
    cache, workdir = tmp_path / "disk", tmp_path / "run"
    line = command(kind, url, parts, cache=cache, workdir=workdir)
    with small_disk(cache, size_kb=100) as resize:
        status, _, err = run_main("train", *line)
        what, folder = {"archive": ("the archive", "archives"), "hub": ("the module", "tfhub_modules")}[kind]
        flag = KINDS[kind].flag.replace("$url", url)
        if told:
            size = f"{len(parts['bodies'][kind]) / 1e3:.1f} kB"
            said = f"{what} needs {size} and {cache}/{folder} has ... kB left: ... kB are missing; make room "
            said += "there, or"
        else:
            said = f"cannot write to {cache}/{folder}: ...No space left on device;"
        wanted = re.escape(f"{flag}: {said} set --cache_dir").replace(r"\.\.\.", ".*")
        assert re.fullmatch(f"trainer: {wanted}\n", err), err
        assert status == 1
        assert [path for path in cache.rglob("*") if path.is_file() and path.suffix != ".scan"] == []
        assert not workdir.exists()
        resize(4000)
        assert run_main("inspect", *line[:-1])[0] == 0


def test_a_disk_without_room_for_what_is_unpacked(parts, server, run_main, tmp_path):
    url = offered(server, parts, "archive", "no_room_unpacked")
    with small_disk(tmp_path / "disk", size_kb=300) as resize:
        line = command("archive", url, parts, cache=tmp_path / "disk")
        status, _, err = run_main("inspect", *line)
        said = (
            rf"trainer: --source=archive:{url}: the archive from {url}, unpacked, needs 2\S+ kB and "
            rf"{tmp_path}/disk/archives has \S+ kB left: \S+ kB are missing; make room there, or set "
            r"--cache_dir\n"
        )
        assert (status, bool(re.fullmatch(said, err))) == (1, True), err
        asked = len(server.asked)
        resize(4000)
        assert run_main("inspect", *line)[0] == 0
        # The download was whole, and is not made again.
        assert len(server.asked) == asked
