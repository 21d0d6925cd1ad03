"""hub: with an address: the real downloader of tensorflow_hub against a server on 127.0.0.1."""

import hashlib
import http.server
import io
import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import threading

import pytest
import tensorflow_hub

from tests.model.modules import pack, save_tiny
from trainer.model.backbones import open_backbone
from trainer.values import TrainerError


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    return pack(save_tiny(tmp_path_factory.mktemp("source") / "tiny"))


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    root = tmp_path / "hub"
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(root))
    return root


@pytest.fixture
def server():
    """Answers with `server.body` or `server.status`; `server.paths` are the requests it got."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.paths.append(self.path)
            self.send_response(self.server.status)
            self.send_header("Content-Length", str(self.server.length or len(self.server.body)))
            self.end_headers()
            self.wfile.write(self.server.body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.status, server.body, server.length, server.paths = 200, b"", 0, []
    server.handle = f"http://127.0.0.1:{server.server_port}/tiny/1"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def folder_of(cache, handle):
    return cache / hashlib.sha1(handle.encode()).hexdigest()


def test_fetched_once_then_read_from_the_cache(cache, server, packed):
    server.body = packed
    for handle in (server.handle, server.handle, server.handle + "/"):
        backbone = open_backbone(f"hub:{handle}", image_size=4)
        assert backbone.contract.feature_width == 2
    assert server.paths == ["/tiny/1?tf-hub-format=compressed"]
    assert (folder_of(cache, server.handle) / "saved_model.pb").is_file()


def test_cache_dir_names_the_place(cache, server, packed, tmp_path):
    server.body = packed
    open_backbone(f"hub:{server.handle}", image_size=4, cache_dir=str(tmp_path / "mine"))
    assert folder_of(tmp_path / "mine" / "tfhub_modules", server.handle).is_dir()
    assert not cache.exists()


@pytest.mark.parametrize("status", [403, 404])
def test_refused_by_the_server(cache, server, status):
    server.status = status
    with pytest.raises(TrainerError) as caught:
        open_backbone(f"hub:{server.handle}")
    message = str(caught.value)
    assert "\n" not in message
    for part in (
        f"the server says {status}",
        server.handle,
        str(cache),
        "--cache_dir",
        "hub:/",
        "efficientnet_lite0",
    ):
        assert part in message
    assert not folder_of(cache, server.handle).exists()


def test_no_network(cache):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        handle = f"http://127.0.0.1:{free.getsockname()[1]}/tiny/1"
    with pytest.raises(TrainerError, match=r"cannot get it \(Connection refused\), .*Ways out"):
        open_backbone(f"hub:{handle}")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("promised", [True, False])
def test_truncated_download(cache, server, packed, share, promised):
    server.body = packed[: int(share * len(packed))]
    server.length = len(packed) if promised else 0
    with pytest.raises(TrainerError, match="Ways out"):
        open_backbone(f"hub:{server.handle}", image_size=4)
    assert not folder_of(cache, server.handle).exists()
    server.body, server.length = packed, 0
    open_backbone(f"hub:{server.handle}", image_size=4)


def test_an_archive_of_something_else(cache, server, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "readme.txt").write_text("no module")
    server.body = pack(tmp_path / "other")
    with pytest.raises(TrainerError, match=r"saved_model.pb is missing"):
        open_backbone(f"hub:{server.handle}")
    assert list(cache.iterdir()) == []


UNSAFE = {
    "leads out": {"name": "../evil.txt"},
    "a link": {"name": "assets", "type": tarfile.SYMTYPE, "linkname": "/etc"},
    "a hard link": {"name": "assets", "type": tarfile.LNKTYPE, "linkname": "../evil.txt"},
    "a pipe": {"name": "assets", "type": tarfile.FIFOTYPE},
}


@pytest.mark.parametrize("facts", UNSAFE.values(), ids=UNSAFE.keys())
def test_an_unsafe_archive_is_refused(cache, server, tmp_path, facts):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        member = tarfile.TarInfo()
        for name, value in facts.items():
            setattr(member, name, value)
        tar.addfile(member)
    server.body = buffer.getvalue()
    with pytest.raises(TrainerError, match=r"cannot get it \((Relative path|Unexpected object) [^()]+\), "):
        open_backbone(f"hub:{server.handle}")
    assert list(cache.iterdir()) == []
    assert not list(tmp_path.rglob("evil.txt"))


def cut(path, share=0.5):
    with open(path, "r+b") as file:
        file.truncate(int(share * path.stat().st_size))


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


DATA = "variables/variables.data-00000-of-00001"
DAMAGE = {
    "no graph": lambda folder: (folder / "saved_model.pb").unlink(),
    "empty graph": lambda folder: (folder / "saved_model.pb").write_bytes(b""),
    "cut graph": lambda folder: cut(folder / "saved_model.pb"),
    "no variables": lambda folder: shutil.rmtree(folder / "variables"),
    "no index": lambda folder: (folder / "variables/variables.index").unlink(),
    "cut index": lambda folder: cut(folder / "variables/variables.index"),
    "no data": lambda folder: (folder / DATA).unlink(),
    "cut data": lambda folder: cut(folder / DATA, 0.9),
    "altered data": lambda folder: flip_a_bit(folder / DATA),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_damaged_cache_is_fetched_again(cache, server, packed, damage, caplog):
    server.body = packed
    open_backbone(f"hub:{server.handle}", image_size=4)
    folder = folder_of(cache, server.handle)
    damage(folder)
    with caplog.at_level("WARNING", "trainer"):
        open_backbone(f"hub:{server.handle}", image_size=4)
    assert len(server.paths) == 2
    assert "damaged" in caplog.text
    assert folder.with_name(folder.name + ".broken").is_dir()
    # Without the server, the damage is said together with the ways out.
    damage(folder)
    server.status = 404
    with pytest.raises(TrainerError, match="the server says 404 Not Found"):
        open_backbone(f"hub:{server.handle}", image_size=4)


def left_by(cache, handle, lock=None):
    """Makes what a download leaves behind that is killed; returns its files and folders, the lock first."""
    cache.mkdir()
    folder = folder_of(cache, handle)
    left = [folder.with_name(folder.name + end) for end in (".lock", ".0a1b.tmp", ".descriptor.txt.tmp0a1b")]
    left[1].mkdir()
    (left[1] / "saved_model.pb").write_bytes(b"half")
    left[2].write_bytes(b"")
    if lock is not None:
        left[0].write_text(lock)
    return left


@pytest.mark.parametrize("whose", ["a dead process", "this process", "nobody", "half", "empty"])
def test_what_a_killed_download_left_is_removed(cache, server, packed, whose):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host = socket.gethostname()
    # A number may be given again: that of this process is never that of another download.
    locks = {"a dead process": f"{host}.{dead.pid}.0a1b", "this process": f"{host}.{os.getpid()}.0a1b"}
    locks |= {"half": host[:3], "empty": ""}
    left = left_by(cache, server.handle, locks.get(whose))
    server.body = packed
    open_backbone(f"hub:{server.handle}", image_size=4)  # Would wait 10 minutes.
    assert [path for path in left if path.exists()] == []


@pytest.mark.parametrize("whose", ["of a living process", "of another machine"])
def test_what_another_download_is_at_stays(cache, server, packed, monkeypatch, caplog, whose):
    owner = f"{socket.gethostname()}.1" if "living" in whose else "elsewhere.example.com.7"
    left = left_by(cache, server.handle, f"{owner}.0a1b")
    waited = []

    def done(handle, lock, timeout_secs):
        waited.append([path for path in left if path.exists()])
        left[0].unlink()

    monkeypatch.setattr(tensorflow_hub.resolver, "_wait_for_lock_to_disappear", done)
    server.body = packed
    with caplog.at_level("WARNING", "trainer"):
        open_backbone(f"hub:{server.handle}", image_size=4)
    assert waited == [left]
    host, _, pid = owner.rpartition(".")
    assert (
        f"process {pid} on {host} seems to be fetching this module: waiting; remove {left[0]}" in caplog.text
    )


def test_a_file_in_place_of_the_module(cache, server, packed):
    cache.mkdir()
    folder_of(cache, server.handle).write_bytes(b"in the way")
    server.body = packed
    open_backbone(f"hub:{server.handle}", image_size=4)
    assert folder_of(cache, server.handle).is_dir()


def test_unwritable_cache(server, packed, tmp_path, monkeypatch):
    server.body = packed
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path / "file" / "hub"))
    line = (
        f"--backbone=hub:{server.handle}: cannot make {tmp_path}/file/hub: Not a directory; set --cache_dir"
    )
    with pytest.raises(TrainerError, match=f"^{re.escape(line)}$"):
        open_backbone(f"hub:{server.handle}", image_size=4)
    assert server.paths == []
    assert os.environ["TFHUB_CACHE_DIR"] == str(tmp_path / "file" / "hub")
