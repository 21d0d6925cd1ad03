"""hub: with an address, against a server on 127.0.0.1, and with archives and handles of other kinds."""

import functools
import hashlib
import http.server
import io
import os
import re
import shutil
import socket
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tf_keras

from tests.model.modules import pack, save_tiny
from trainer.model import hub_cache
from trainer.model.backbones import open_backbone
from trainer.model.hub import hub
from trainer.model.hub_cache import fetched_folder, module_folder
from trainer.store import downloads
from trainer.store import unpack as limits
from trainer.store import unpack as unpacking
from trainer.store.lock import file_lock
from trainer.values import TrainerError, UsageError


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
    with pytest.raises(
        TrainerError, match=r"cannot get it \(what came is not unpacked: '\S+' (leads|links|is a)"
    ):
        open_backbone(f"hub:{server.handle}")
    assert list(cache.iterdir()) == []
    assert not list(tmp_path.rglob("evil.txt"))


def bomb(num_bytes):
    """Returns a small .tar.gz of a module whose variables are zeros."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=9) as tar:
        member = tarfile.TarInfo("variables/variables.data-00000-of-00001")
        member.size = num_bytes
        tar.addfile(member, io.BytesIO(bytes(num_bytes)))
    return buffer.getvalue()


@pytest.mark.parametrize("how", ["fetched", "local"])
def test_a_bomb_is_refused_before_anything_is_written(cache, server, tmp_path, monkeypatch, how):
    monkeypatch.setattr(limits, "FREE_BYTES", 10**6)
    monkeypatch.setattr(unpacking, "write_file", None)
    server.body = bomb(10**7)
    handle = server.handle
    if how == "local":
        handle = tmp_path / "m.tar.gz"
        handle.write_bytes(server.body)
    with pytest.raises(TrainerError, match=rf"its {len(server.body):,} bytes unpack to more than [\d,]+"):
        open_backbone(f"hub:{handle}", image_size=4, cache_dir=str(tmp_path / "mine"))
    assert [path for path in (tmp_path / "mine").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("told", [True, False])
def test_a_download_without_an_end_is_not_written_for_ever(cache, server, monkeypatch, told):
    monkeypatch.setattr(hub_cache, "download", functools.partial(downloads.download, max_bytes=10**5))
    server.body, server.length = bytes(10**6), 10**6 if told else 0
    with pytest.raises(TrainerError, match=r"cannot get it \(it has .*more than 100.0 kB\)"):
        open_backbone(f"hub:{server.handle}", image_size=4)
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("top", ["", "tiny/"])
@pytest.mark.parametrize("scheme", ["hub", "savedmodel"])
def test_a_local_archive(cache, packed, tmp_path, monkeypatch, scheme, top):
    (tmp_path / "source").mkdir()
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        tar.extractall(tmp_path / "source" / top, filter="data")
    with tarfile.open(tmp_path / "m.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "source", arcname=".")
    address, mine = f"{scheme}:{tmp_path}/m.tar.gz", str(tmp_path / "mine")
    digests = {open_backbone(address, image_size=4, cache_dir=mine).fingerprint for _ in range(2)}
    assert digests == {open_backbone(f"hub:{tmp_path}/source/{top}", image_size=4).fingerprint}
    digest = hashlib.sha256((tmp_path / "m.tar.gz").read_bytes()).hexdigest()[:16]
    assert [path.name for path in (tmp_path / "mine" / "modules").iterdir()] == [digest]
    # A copy that was damaged since is unpacked again.
    flip_a_bit(tmp_path / "mine" / "modules" / digest / DATA)
    assert open_backbone(address, image_size=4, cache_dir=mine).fingerprint in digests
    assert not cache.exists()


def test_an_archive_of_something_else_says_so(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "readme.txt").write_text("no module")
    (tmp_path / "m.tar.gz").write_bytes(pack(tmp_path / "a"))
    line = f"^--backbone=hub:{tmp_path}/m.tar.gz: {tmp_path}/m.tar.gz is not a whole SavedModel: saved_model"
    with pytest.raises(TrainerError, match=line):
        open_backbone(f"hub:{tmp_path}/m.tar.gz", cache_dir=str(tmp_path / "mine"))
    (tmp_path / "notes.txt").write_text("no archive")
    with pytest.raises(
        TrainerError, match=r"notes.txt is damaged or no .tgz, .tar or .zip: .*give another --backbone"
    ):
        open_backbone(f"hub:{tmp_path}/notes.txt", cache_dir=str(tmp_path / "mine"))


@pytest.mark.parametrize("scheme", ["hub", "savedmodel"])
@pytest.mark.parametrize("name", ["m.keras", "m.h5", "weights"])
def test_files_of_keras_say_what_is_meant(tmp_path, scheme, name):
    model = tf_keras.Sequential([tf_keras.layers.Dense(2, input_shape=(3,))])
    model.save(tmp_path / ("m.h5" if name == "weights" else name))
    path = tmp_path / name
    if name == "weights":
        (tmp_path / "m.h5").rename(path)
    with pytest.raises(
        UsageError, match=f"^--backbone={scheme}:{path}: {name} is a file of Keras, "
    ) as caught:
        open_backbone(f"{scheme}:{path}")
    assert f"--backbone=keras:NAME --weights={path}" in str(caught.value)


def test_the_graph_of_a_saved_model_is_no_module(tmp_path):
    folder = save_tiny(tmp_path / "tiny")
    with pytest.raises(UsageError, match=f"give the folder of the SavedModel, {folder}$"):
        open_backbone(f"hub:{folder}/saved_model.pb")


@pytest.mark.parametrize("framework", ["tensorFlow2", "TensorFlow2", "tensorflow1"])
def test_kaggle_handles_are_addresses(monkeypatch, framework):
    asked = []
    monkeypatch.setattr(
        hub_cache, "fetched_folder", lambda handle, cache_dir: asked.append(handle) or Path("x")
    )
    module_folder(f"google/mobilenet-v2/{framework}/100-224-feature-vector/2", flag="--backbone=hub:x")
    of = f"TensorFlow{framework[-1]}"
    assert asked == [f"https://www.kaggle.com/models/google/mobilenet-v2/{of}/100-224-feature-vector/2"]


@pytest.mark.parametrize(
    ("rest", "reason"),
    [
        (
            "google/mobilenet-v2/tensorFlow2/100-224-feature-vector",
            "add the version of the model, as in hub:google/",
        ),
        ("google/gemma/pyTorch/2b/1", "a model of Kaggle for pyTorch; expected one for TensorFlow2"),
        ("google/nowhere", "there is no folder or archive .*/google/nowhere"),
    ],
)
def test_handles_that_name_no_saved_model(rest, reason):
    with pytest.raises(TrainerError, match=f"^--backbone=hub:{rest}: {reason}"):
        open_backbone(f"hub:{rest}")


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


def test_what_a_killed_download_left_is_removed(cache, server, packed):
    key = folder_of(cache, server.handle).name[:16]
    left = [cache / f".part-{key}-x", cache / f".unpacking-{key}-x", cache / ".part-0123456789abcdef-x"]
    left[1].mkdir(parents=True)
    (left[1] / "saved_model.pb").write_bytes(b"half")
    for path in (left[0], left[2]):
        path.write_bytes(b"half")
    server.body = packed
    with file_lock(cache / "0123456789abcdef.lock"):  # Another module, which somebody is at.
        open_backbone(f"hub:{server.handle}", image_size=4)
        assert [path for path in left if path.exists()] == [left[2]]


def test_what_tensorflow_hub_itself_is_at_stays(cache, server, packed):
    """Another program may fetch the same module: both put it in place in one step."""
    folder = folder_of(cache, server.handle)
    theirs = [folder.with_name(f"{folder.name}{end}") for end in (".lock", ".0a1b.tmp")]
    theirs[1].mkdir(parents=True)
    theirs[0].write_text("elsewhere.7.0a1b")
    server.body = packed
    open_backbone(f"hub:{server.handle}", image_size=4)
    assert [path.exists() for path in theirs] == [True, True]


def test_one_who_comes_second_waits_and_finds_it_there(cache, server, packed):
    server.body = packed
    with ThreadPoolExecutor(3) as pool:
        found = set(pool.map(fetched_folder, [server.handle] * 3))
    assert found == {folder_of(cache, server.handle)}
    assert len(server.paths) == 1


def test_tensorflow_hub_finds_what_was_fetched(cache, server, packed, monkeypatch):
    server.body = packed
    folder = fetched_folder(server.handle)
    assert hub.resolve(server.handle) == str(folder)
    assert (
        folder.with_name(folder.name + ".descriptor.txt")
        .read_text()
        .startswith(f"Module: {server.handle}\nDownload Time: ")
    )
    assert len(server.paths) == 1


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
