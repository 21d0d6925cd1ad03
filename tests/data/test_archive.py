"""Archives: found, downloaded, checked, unpacked once."""

import hashlib
import json
import os
import re
import socket
import tarfile
from pathlib import Path

import pytest

from tests.data.trees import FILES, ORDER, OTHERS, add, write_tgz, write_zip
from trainer.data import archive, download
from trainer.data.sources import Source, SourceOptions, open_source
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
    with pytest.raises(TrainerError, match=f"has the SHA-256 [0-9a-f]+, expected {remembered['sha256']}: "):
        open_source(address, options)
    assert not kept.exists()


def test_known_checksums_hold_for_both_schemes(tmp_path, options, server, monkeypatch):
    data = write_tgz(tmp_path / "x.tgz", FILES).read_bytes()
    server.files["/photos.tgz"] = data
    place = server.url.removeprefix("http://") + "/photos.tgz"
    monkeypatch.setitem(archive.KNOWN_CHECKSUMS, place, "0" * 64)
    with pytest.raises(TrainerError, match=f"expected {'0' * 64}: "):
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
    with pytest.raises(TrainerError, match=f"has the SHA-256 {sha256}, expected {'a' * 64}: remove it"):
        opened("a" * 64)
    with pytest.raises(UsageError, match=r"^--checksum=abc: expected a SHA-256, which is 64 hex digits$"):
        opened("abc")


WAYS_OUT = (
    "Ways out: download it by hand and give --source=archive:PATH, or point --cache_dir to the cache folder "
    "of a machine that has it"
)


def refused(options, address: str, reason: str) -> None:
    folder = Path(options.cache_dir) / "archives"
    line = f"--source={address}: could not download {address[8:]} to {folder}: {reason}. {WAYS_OUT}"
    with pytest.raises(TrainerError, match=f"^{re.escape(line)}$"):
        open_source(address, options)
    assert archives(options) == []


def test_downloads_that_fail_say_what_was_tried_and_leave_nothing(tmp_path, options, server, monkeypatch):
    address = f"archive:{server.url}/photos.tgz"
    refused(options, address, "the server says 404 Not Found")
    server.status = 403
    refused(options, address, "the server says 403 Forbidden")
    server.status = 200
    data = server.files["/photos.tgz"] = write_tgz(tmp_path / "x.tgz", FILES).read_bytes()
    server.missing_bytes = 100
    refused(options, address, f"only {len(data) - 100:,} of {len(data):,} bytes came")
    server.missing_bytes = 0
    monkeypatch.setattr(download, "TIMEOUT_S", 0.2)
    server.silent.set()
    refused(options, address, "no answer within 0.2 s")
    server.silent.clear()
    assert open_source(address, options).ids == ORDER


def test_no_network(options):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"archive:http://127.0.0.1:{free.getsockname()[1]}/x.tgz"
        refused(options, address, "Connection refused")
    with pytest.raises(
        TrainerError, match=r"could not download https://no-such-host.invalid/x.tgz to \S+: .*Ways out"
    ):
        open_source("archive:https://no-such-host.invalid/x.tgz", options)


def test_a_broken_download_does_not_stand_in_the_way_of_the_next(tmp_path, options, server):
    server.files["/x.tgz"] = b"<html>Sign in</html>"
    with pytest.raises(TrainerError, match=r"is damaged or no .tgz"):
        open_source(f"archive:{server.url}/x.tgz", options)
    assert archives(options) == []
    server.files["/x.tgz"] = write_tgz(tmp_path / "x.tgz", FILES).read_bytes()
    assert open_source(f"archive:{server.url}/x.tgz", options).ids == ORDER


def test_archives_that_are_none(tmp_path, options):
    with pytest.raises(
        TrainerError, match=r"cannot read the archive \S+/gone.tgz: No such file or directory$"
    ):
        open_source(f"archive:{tmp_path}/gone.tgz", options)
    with pytest.raises(TrainerError, match=r"cannot read the archive \S+: Is a directory$"):
        open_source(f"archive:{tmp_path}", options)
    with pytest.raises(UsageError, match=r"expected a path or a file:, http: or https: address$"):
        open_source("archive:ftp://example.com/x.tgz", options)


def test_a_cache_that_cannot_be_written(tmp_path, server):
    server.files["/x.tgz"] = write_tgz(tmp_path / "x.tgz", FILES).read_bytes()
    (tmp_path / "file").write_bytes(b"")
    options = SourceOptions(cache_dir=str(tmp_path / "file"))
    for address in (f"archive:{server.url}/x.tgz", f"archive:{tmp_path}/x.tgz"):
        with pytest.raises(
            TrainerError, match=r"cannot (write to|make) \S+/file/archives: Not a directory; set --cache_dir$"
        ):
            open_source(address, options)
