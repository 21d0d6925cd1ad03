"""Archives: found, downloaded, checked, unpacked once."""

import dataclasses
import hashlib
import json
import os
import re
import shutil
import socket
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.data.trees import FILES, ORDER, OTHERS, add, write_tgz, write_tree, write_zip
from trainer.data.sources import Source, SourceOptions, archive, open_source
from trainer.store import files
from trainer.store.lock import file_lock
from trainer.values import TrainerError, UsageError


def archives(options: SourceOptions) -> list[str]:
    return sorted(os.listdir(Path(options.cache_dir) / "archives"))


@pytest.mark.parametrize("top", ["flower_photos/", "", "./", "./flower_photos/"])
def test_one_wrapping_folder_is_looked_through(tmp_path, options, top):
    path = write_tgz(tmp_path / "photos.tgz", {**FILES, **OTHERS}, top)
    source = open_source(f"archive:{path}", options)
    assert source.ids == ORDER
    assert source.class_names == ("daisy", "roses", "tulips")
    assert [source.read(k) for k in range(len(ORDER))] == [FILES[path] for path in ORDER]


def test_splits_in_an_archive(tmp_path, options):
    files = {"train/a/1.jpg": b"", "train/b/1.jpg": b"", "test/a/1.jpg": b""}
    source = open_source(f"archive:{write_tgz(tmp_path / 'x.tgz', files)}", options)
    assert source.native_splits == {"train": (0, 2), "test": (2, 3)}


def test_plain_tar_file_address_and_zip_with_backslashes(tmp_path, options):
    with tarfile.open(tmp_path / "x.tar", "w") as packed:
        for name, data in FILES.items():
            add(packed, name, data)
    assert open_source(f"archive:file://{tmp_path}/x.tar", options).ids == ORDER
    write_zip(tmp_path / "x.zip", {"top\\a\\1.jpg": b"", "top\\b\\1.jpg": b""})
    assert open_source(f"archive:{tmp_path}/x.zip", options).ids == ["a/1.jpg", "b/1.jpg"]


def test_unpacked_once(tmp_path, options, monkeypatch):
    path = write_tgz(tmp_path / "photos.tgz", FILES)
    open_source(f"archive:{path}", options)
    assert archives(options) == [hashlib.sha256(path.read_bytes()).hexdigest()[:16]]
    monkeypatch.setattr(archive, "unpack", None)
    assert open_source(f"archive:{path}", options).ids == ORDER


def test_a_download_is_kept_and_its_checksum_remembered(tmp_path, options, server):
    data = write_tgz(tmp_path / "x.tgz", FILES).read_bytes()
    server.files["/a/photos.tgz"] = data
    address = f"archive:{server.url}/a/photos.tgz"
    assert open_source(address, options).ids == ORDER
    server.status = 503
    assert open_source(address, options).ids == ORDER
    assert server.asked == ["/a/photos.tgz"]
    (record,) = [name for name in archives(options) if name.endswith(".json")]
    remembered = json.loads((Path(options.cache_dir) / "archives" / record).read_text())
    assert remembered == {"url": address[8:], "sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    kept = Path(options.cache_dir) / "archives" / record.removesuffix(".json")
    kept.unlink()
    server.status = 200
    server.files["/a/photos.tgz"] = write_tgz(
        tmp_path / "x.tgz", {**FILES, "roses/new.jpg": b""}
    ).read_bytes()
    new = hashlib.sha256(server.files["/a/photos.tgz"]).hexdigest()
    line = (
        f"--source={address}: the archive from {address[8:]} has the SHA-256 {new}, expected "
        f"{remembered['sha256']} (as {kept}.json has it): it is damaged or has changed; give its SHA-256 as "
        "--checksum to take it as it is"
    )
    with pytest.raises(TrainerError, match=f"^{re.escape(line)}$"):
        open_source(address, options)
    assert not kept.exists()
    assert "roses/new.jpg" in open_source(address, dataclasses.replace(options, checksum=new)).ids


def test_a_kept_download_that_does_not_fit_the_checksum_stays(tmp_path, options, server):
    data = server.files["/x.tgz"] = write_tgz(tmp_path / "x.tgz", FILES).read_bytes()
    address = f"archive:{server.url}/x.tgz"
    open_source(address, options)
    before = {path: path.read_bytes() for path in Path(options.cache_dir).rglob("*") if path.is_file()}
    sha256, other = hashlib.sha256(data).hexdigest(), "a" * 64
    line = (
        rf"x.tgz has the SHA-256 {sha256}, expected {other} \(--checksum\): it is damaged or has changed; "
        r"remove \S+-x.tgz to have it anew, or give its SHA-256 as --checksum to take it as it is$"
    )
    with pytest.raises(TrainerError, match=line):
        open_source(address, dataclasses.replace(options, checksum=other))
    assert {
        path: path.read_bytes() for path in Path(options.cache_dir).rglob("*") if path.is_file()
    } == before


def test_known_checksums_hold_for_both_schemes(tmp_path, options, server, monkeypatch):
    data = write_tgz(tmp_path / "x.tgz", FILES).read_bytes()
    server.files["/photos.tgz"] = data
    place = server.url.removeprefix("http://") + "/photos.tgz"
    monkeypatch.setitem(archive.KNOWN_CHECKSUMS, place, "0" * 64)
    with pytest.raises(TrainerError, match=rf"expected {'0' * 64} \(on record\): "):
        open_source(f"archive:http://{place}", options)
    monkeypatch.setitem(archive.KNOWN_CHECKSUMS, place, hashlib.sha256(data).hexdigest())
    assert open_source(f"archive:http://{place}", options).ids == ORDER
    assert not [name for name in archives(options) if name.endswith(".json")]


def test_the_table_agrees_with_what_tfds_has_on_record():
    import tensorflow_datasets as tfds

    urls = tfds.builder_cls("tf_flowers").url_infos
    for place, sha256 in archive.KNOWN_CHECKSUMS.items():
        assert urls[f"http://{place}"].checksum == sha256


def test_a_given_checksum_must_hold(tmp_path, options):
    path = write_tgz(tmp_path / "x.tgz", FILES)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()

    def opened(checksum: str) -> Source:
        return open_source(f"archive:{path}", SourceOptions(cache_dir=options.cache_dir, checksum=checksum))

    assert opened(sha256.upper()).ids == ORDER
    with pytest.raises(
        TrainerError, match=f"has the SHA-256 {sha256}, expected {'a' * 64}: it is another archive or"
    ):
        opened("a" * 64)
    with pytest.raises(UsageError, match=r"^--checksum=abc: expected a SHA-256, which is 64 hex digits$"):
        opened("abc")


WAYS_OUT = (
    "Ways out: correct the address, download it by hand and give --source=archive:PATH, or point --cache_dir "
    "to the cache folder of a machine that has it"
)


def refused(options, address: str, reason: str) -> None:
    line = f"--source={address}: could not download {address[8:]}: {reason}. {WAYS_OUT}"
    with pytest.raises(TrainerError, match=f"^{re.escape(line)}$"):
        open_source(address, options)
    assert archives(options) == []


def test_no_network(options):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"archive:http://127.0.0.1:{free.getsockname()[1]}/x.tgz"
        refused(options, address, "Connection refused")
    with pytest.raises(
        TrainerError, match=r"could not download https://no-such-host.invalid/x.tgz: [^.]+. Ways out"
    ):
        open_source("archive:https://no-such-host.invalid/x.tgz", options)
    refused(options, "archive:http:///x.tgz", "no host given")


def test_too_little_room_is_told_before_the_download(tmp_path, options, server, monkeypatch):
    data = server.files["/x.tgz"] = write_tgz(tmp_path / "x.tgz", FILES).read_bytes()
    monkeypatch.setattr(files, "told_size", str)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**9, 10**9, 7))
    address, folder = f"archive:{server.url}/x.tgz", f"{options.cache_dir}/archives"
    line = (
        f"--source={address}: the archive needs {len(data)} and {folder} has 7 left: {len(data) - 7} are "
        "missing; make room there, or set --cache_dir"
    )
    with pytest.raises(TrainerError, match=f"^{re.escape(line)}$"):
        open_source(address, options)
    assert archives(options) == []


def test_a_download_stays_where_only_unpacking_lacks_room(tmp_path, options, server, monkeypatch):
    server.files["/x.tgz"] = write_tgz(tmp_path / "x.tgz", FILES).read_bytes()

    def full():
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "sync", full)
        with pytest.raises(TrainerError, match="No space left on device"):
            open_source(f"archive:{server.url}/x.tgz", options)
    assert len(archives(options)) == 1
    assert open_source(f"archive:{server.url}/x.tgz", options).ids == ORDER
    assert server.asked == ["/x.tgz"]


def test_what_killed_processes_left_is_removed_and_what_is_in_use_stays(tmp_path, options):
    path = write_tgz(tmp_path / "x.tgz", FILES)
    folder = Path(options.cache_dir) / "archives"
    write_tree(folder, {".unpacking-0123456789abcdef-x/a/1.jpg": b"", ".part-0123456789abcdef-x": b""})
    write_tree(folder, {"fedcba9876543210.lock": b"", "mine.txt": b"", ".part-mine": b""})
    write_tree(folder, {".part-aaaaaaaaaaaaaaaa-x": b"", ".unpacking-aaaaaaaaaaaaaaaa-x/a/1.jpg": b""})
    with file_lock(folder / "aaaaaaaaaaaaaaaa.lock"):
        open_source(f"archive:{path}", options)
        kept = {".part-aaaaaaaaaaaaaaaa-x", ".unpacking-aaaaaaaaaaaaaaaa-x", "aaaaaaaaaaaaaaaa.lock"}
        unpacked = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        assert set(archives(options)) == {"mine.txt", ".part-mine", unpacked, *kept}


def test_one_who_comes_second_waits_and_finds_it_there(tmp_path, options, server):
    server.files["/x.tgz"] = write_tgz(tmp_path / "x.tgz", FILES).read_bytes()
    with ThreadPoolExecutor(4) as pool:
        opened = list(pool.map(open_source, [f"archive:{server.url}/x.tgz"] * 4, [options] * 4))
    assert [source.ids for source in opened] == [ORDER] * 4
    assert server.asked == ["/x.tgz"]
    assert len(archives(options)) == 3


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"1.jpg": b"", "2.jpg": b""}, " has 2 pictures but no class folders: "),
        ({"a/1.jpg": b"", "b/notes.txt": b""}, "/b holds no picture (but 1 .txt): "),
    ],
)
def test_an_archive_of_something_else_is_not_kept(tmp_path, options, server, wrong, reason):
    server.files["/x.tgz"] = write_tgz(tmp_path / "x.tgz", wrong, top="").read_bytes()
    with pytest.raises(TrainerError, match=re.escape(f"the archive from {server.url}/x.tgz{reason}")):
        open_source(f"archive:{server.url}/x.tgz", options)
    assert archives(options) == []
    folder = f"the class folder {tmp_path}/x.tgz" if reason[0] == "/" else f"{tmp_path}/x.tgz"
    with pytest.raises(TrainerError, match=re.escape(f": {folder}{reason}")):
        open_source(f"archive:{tmp_path}/x.tgz", options)
    assert archives(options) == []
    server.files["/x.tgz"] = write_tgz(tmp_path / "x.tgz", FILES).read_bytes()
    assert open_source(f"archive:{server.url}/x.tgz", options).ids == ORDER


def test_a_broken_download_does_not_stand_in_the_way_of_the_next(tmp_path, options, server):
    server.files["/x.tgz"] = b"<html>Sign in</html>"
    line = (
        f"the archive from {server.url}/x.tgz is damaged or no .tgz, .tar or .zip: it is a web page, perhaps "
        "one to sign in on; get it anew"
    )
    with pytest.raises(TrainerError, match=re.escape(line)):
        open_source(f"archive:{server.url}/x.tgz", options)
    assert archives(options) == []
    server.files["/x.tgz"] = write_tgz(tmp_path / "x.tgz", FILES).read_bytes()
    assert open_source(f"archive:{server.url}/x.tgz", options).ids == ORDER


def test_archives_that_are_none(tmp_path, options):
    with pytest.raises(
        TrainerError, match=r"cannot read the archive \S+/gone.tgz: No such file or directory$"
    ):
        open_source(f"archive:{tmp_path}/gone.tgz", options)
    line = (
        f"--source=archive:{tmp_path}: {tmp_path} is a folder: give --source=folder:{tmp_path}, or an archive"
    )
    with pytest.raises(TrainerError, match=f"^{re.escape(line)}$"):
        open_source(f"archive:{tmp_path}", options)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(TrainerError, match=r"/pipe is no regular file$"):
        open_source(f"archive:{tmp_path}/pipe", options)
    with pytest.raises(TrainerError, match=r"there is no user nobody-here"):
        open_source("archive:~nobody-here/x.tgz", options)
    with pytest.raises(UsageError, match=r"http://\[::1/x.tgz is no address: Invalid IPv6 URL$"):
        open_source("archive:http://[::1/x.tgz", options)
    with pytest.raises(
        UsageError, match=r"expected a path on this machine, not an address: download it first$"
    ):
        open_source("archive:ftp://example.com/x.tgz", options)


def test_a_cache_that_cannot_be_written(tmp_path, server):
    server.files["/x.tgz"] = write_tgz(tmp_path / "x.tgz", FILES).read_bytes()
    (tmp_path / "file").write_bytes(b"")
    options = SourceOptions(cache_dir=str(tmp_path / "file"))
    for address in (f"archive:{server.url}/x.tgz", f"archive:{tmp_path}/x.tgz"):
        with pytest.raises(
            TrainerError, match=r"cannot make \S+/file/archives: Not a directory; set --cache_dir$"
        ):
            open_source(address, options)
