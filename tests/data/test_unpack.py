"""Unpacking what somebody else packed: unsafe, damaged and exploding archives, and a full disk."""

import gzip
import os
import re
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.data.trees import FILES, add, write_tgz, write_zip
from trainer.data import unpack
from trainer.data.sources import SourceOptions, open_source
from trainer.values import TrainerError


def archives(options: SourceOptions) -> list[str]:
    return sorted(os.listdir(Path(options.cache_dir) / "archives"))


def test_links_inside_become_copies_and_others_are_refused(tmp_path, options):
    with tarfile.open(tmp_path / "x.tar", "w") as packed:
        add(packed, "a/1.jpg", b"one")
        add(packed, "b/1.jpg", type=tarfile.LNKTYPE, linkname="a/1.jpg")
        add(packed, "b/2.jpg", type=tarfile.SYMTYPE, linkname="../a/1.jpg")
    source = open_source(f"archive:{tmp_path}/x.tar", options)
    assert [source.read(k) for k in range(3)] == [b"one"] * 3
    assert not any((source.root / path).is_symlink() for path in source.ids)


def test_unsafe_tars_are_refused_and_leave_nothing(tmp_path, options):
    victim = tmp_path / "victim.jpg"
    victim.write_bytes(b"mine")
    bad = {
        f"'{tmp_path}/evil.jpg' is an absolute path": {"name": f"{tmp_path}/evil.jpg"},
        "'../../../evil.jpg' leads out of the folder": {"name": "../../../evil.jpg"},
        "'c/../../e.jpg' leads out of the folder": {"name": "c/../../e.jpg"},
        f"'c/1.jpg' links to no file in it: '{victim}'": {
            "name": "c/1.jpg",
            "type": tarfile.SYMTYPE,
            "linkname": str(victim),
        },
        "'c' links to no file in it: '/etc'": {"name": "c", "type": tarfile.SYMTYPE, "linkname": "/etc"},
        "'c/1.jpg' is a device or pipe": {"name": "c/1.jpg", "type": tarfile.FIFOTYPE},
    }
    for reason, member in bad.items():
        with tarfile.open(tmp_path / "x.tar", "w") as packed:
            for name, data in FILES.items():
                add(packed, name, data)
            add(packed, member.pop("name"), **member)
        line = f"--source=archive:{tmp_path}/x.tar: {tmp_path}/x.tar is not safe to unpack: {reason}"
        with pytest.raises(TrainerError, match=f"^{re.escape(line)}$"):
            open_source(f"archive:{tmp_path}/x.tar", options)
        assert archives(options) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "victim.jpg", "x.tar"]


@pytest.mark.parametrize(
    ("name", "reason"), [("../evil.jpg", "leads out"), ("/evil.jpg", "absolute"), ("C:/e.jpg", "absolute")]
)
def test_unsafe_zips_are_refused(tmp_path, options, name, reason):
    path = write_zip(tmp_path / "x.zip", {**FILES, name: b"x"})
    with pytest.raises(TrainerError, match=f"is not safe to unpack: '{re.escape(name)}' .*{reason}"):
        open_source(f"archive:{path}", options)
    assert not (tmp_path / "cache/evil.jpg").exists()


def test_a_link_in_a_zip_is_refused(tmp_path, options):
    path = write_zip(tmp_path / "x.zip", FILES)
    with zipfile.ZipFile(path, "a") as packed:
        info = zipfile.ZipInfo("roses/link.jpg")
        info.external_attr = 0o120777 << 16
        packed.writestr(info, "/etc/passwd")
    with pytest.raises(TrainerError, match=r"not safe to unpack: 'roses/link.jpg' is a link$"):
        open_source(f"archive:{path}", options)


@pytest.mark.parametrize("write", [write_tgz, write_zip])
def test_bombs_are_refused_while_they_go_off(tmp_path, options, monkeypatch, write):
    monkeypatch.setattr(unpack, "FREE_BYTES", 10**6)
    path = write(tmp_path / "bomb", {"a/1.jpg": bytes(4 * 10**6), "b/1.jpg": b""})
    with pytest.raises(
        TrainerError, match=r"not safe to unpack: more than 1,000,000 bytes come out of [\d,]+$"
    ):
        open_source(f"archive:{path}", options)
    monkeypatch.setattr(unpack, "FREE_BYTES", 10**9)
    monkeypatch.setattr(unpack, "MAX_FILES", 1)
    with pytest.raises(TrainerError, match=r"not safe to unpack: more than 1 files$"):
        open_source(f"archive:{path}", options)
    assert archives(options) == []


def damage(data: bytes, how: str) -> bytes:
    if how == "half":
        return data[: len(data) // 2]
    if how == "empty":
        return b""
    if how == "text":
        return b"<html>Sign in to the network</html>" * 50
    return data[:-40] + bytes([data[-40] ^ 1]) + data[-39:] if how == "bit" else data


@pytest.mark.parametrize("how", ["half", "empty", "text"])
@pytest.mark.parametrize("kind", ["tgz", "tar", "zip"])
def test_damaged_archives_are_refused(tmp_path, options, kind, how):
    path = tmp_path / f"x.{kind}"
    if kind == "tar":
        with tarfile.open(path, "w") as packed:
            for name, data in FILES.items():
                add(packed, name, data)
    else:
        (write_tgz if kind == "tgz" else write_zip)(path, FILES)
    path.write_bytes(damage(path.read_bytes(), how))
    with pytest.raises(
        TrainerError, match=f"{re.escape(str(path))} is damaged or no .tgz, .tar or .zip: "
    ) as error:
        open_source(f"archive:{path}", options)
    assert "\n" not in str(error.value)
    assert archives(options) == []


@pytest.mark.parametrize("kind", ["tgz", "tar"])
def test_a_flipped_bit_in_a_header_does_not_end_the_archive_early(tmp_path, options, kind):
    path = tmp_path / "x"
    with tarfile.open(path, "w") as packed:
        for name, data in FILES.items():
            add(packed, name, data)
    spoilt = bytearray(path.read_bytes())
    spoilt[spoilt.index(b"daisy/0.jpg") + 148] ^= 1  # The checksum of the header.
    if kind == "tgz":
        path.write_bytes(gzip.compress(bytes(spoilt)))
    else:
        path.write_bytes(bytes(spoilt))
    with pytest.raises(TrainerError, match=r"damaged or no .tgz, .tar or .zip: data after the end$"):
        open_source(f"archive:{path}", options)


def test_a_full_disk(tmp_path, options, monkeypatch):
    def full():
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "sync", full)
    path = write_tgz(tmp_path / "x.tgz", FILES)
    with pytest.raises(
        TrainerError, match=r"cannot unpack \S+ into \S+: No space left on device; --cache_dir chooses"
    ):
        open_source(f"archive:{path}", options)
    assert archives(options) == []
