"""Unpacking what somebody else packed: unsafe, damaged and exploding archives, and a full disk."""

import base64
import gzip
import os
import re
import shutil
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import pytest

from tests.data.trees import FILES, add, write_tgz, write_zip
from trainer.data.sources import SourceOptions, open_source
from trainer.store import unpack
from trainer.store import unpack as packed_module
from trainer.values import TrainerError


def archives(options: SourceOptions) -> list[str]:
    return sorted(os.listdir(Path(options.cache_dir) / "archives"))


TRUST = " If you trust it, unpack it by hand and give --source=folder:PATH"


def write_tar(path: Path, *members: dict, mode: str = "w", format: int = tarfile.GNU_FORMAT) -> Path:
    """Writes a tar of the usual files and of `members`, each {"name": ..., "data": ..., fact: ...}."""
    with tarfile.open(path, mode, format=format) as packed:
        for name, data in FILES.items():
            add(packed, name, data)
        for member in members:
            add(packed, **member)
    return path


def assert_not_unpacked(path: Path, options: SourceOptions, reason: str) -> None:
    line = f"--source=archive:{path}: {path} is not unpacked: {reason}.{TRUST}"
    with pytest.raises(TrainerError, match=f"^{re.escape(line)}$"):
        open_source(f"archive:{path}", options)
    assert archives(options) == []


def symlink(name: str, to: str) -> dict:
    return {"name": name, "type": tarfile.SYMTYPE, "linkname": to}


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_links_inside_become_copies(tmp_path, options, mode):
    with tarfile.open(tmp_path / "x.tar", mode) as packed:
        # A link may come before its file, lead to another link, or to what is itself left out.
        add(packed, **symlink("b/0.jpg", "2.jpg"))
        add(packed, "a/1.jpg", b"one")
        add(packed, "b/1.jpg", type=tarfile.LNKTYPE, linkname="./a/1.jpg")
        add(packed, **symlink("b/2.jpg", "../a/1.jpg"))
        add(packed, ".store/7f3a", b"two")
        add(packed, **symlink("b/3.jpg", "../.store/7f3a"))
    source = open_source(f"archive:{tmp_path}/x.tar", options)
    assert source.ids == ["a/1.jpg", "b/0.jpg", "b/1.jpg", "b/2.jpg", "b/3.jpg"]
    assert [source.read(k) for k in range(5)] == [b"one"] * 4 + [b"two"]
    assert not any(path.is_symlink() for path in source.root.rglob("*"))


DEFLATE64 = (  # Written by inflate64; the file a/1.jpg is 30 times the word "picture".
    "UEsDBBQAAAAJAAAAIQDhs6dgXwAAANIAAAAHAAAAYS8xLmpwZwXBsQ0AAAABsGPFYBPhf62FLrTQhRa60EIXWuhCC11ooQstdKGFLrTQ"
    "hRa60EIXWuhCC11ooQstdKGFLrTQhRa60EIXWuhCC11ooQstdKGFLrTQhRa60EIXWuhCC114UEsBAhQDFAAAAAkAAAAhAOGzp2BfAAAA"
    "0gAAAAcAAAAAAAAAAAAAAIABAAAAAGEvMS5qcGdQSwUGAAAAAAEAAQA1AAAAhAAAAAAA"
)


def test_a_zip_of_a_method_that_python_does_not_know_says_which(tmp_path, options):
    path = tmp_path / "x.zip"
    path.write_bytes(base64.b64decode(DEFLATE64))
    line = (
        f"--source=archive:{path}: {path} is not unpacked: 'a/1.jpg' is compressed with Deflate64, which "
        "Python cannot read. Unpack it by hand and give --source=folder:PATH"
    )
    with pytest.raises(TrainerError, match=f"^{re.escape(line)}$"):
        open_source(f"archive:{path}", options)
    # What is left out anyway may be packed as it likes.
    data = path.read_bytes().replace(b"a/1.jpg", b".x.jpg.")
    path.write_bytes(data)
    with zipfile.ZipFile(path, "a") as packed:
        for name in ("a/1.jpg", "b/1.jpg"):
            packed.writestr(name, FILES["daisy/0.jpg"])
    assert open_source(f"archive:{path}", options).ids == ["a/1.jpg", "b/1.jpg"]


def write_named_zip(path: Path, names: list[bytes], *, unicode_path: str = "") -> Path:
    """Writes a zip whose names are the bytes given, without a word of their encoding.

    Args:
      path: the file.
      names: of the files in it.
      unicode_path: what a field beside the last name says it is.
    """
    with zipfile.ZipFile(path, "w") as packed:
        for number, name in enumerate(names):
            info = zipfile.ZipInfo(chr(97 + number) * len(name))
            if unicode_path and name is names[-1]:
                about = struct.pack("<BL", 1, zlib.crc32(name)) + unicode_path.encode()
                info.extra = struct.pack("<HH", 0x7075, len(about)) + about
            packed.writestr(info, FILES["daisy/0.jpg"])
    data = path.read_bytes()
    for number, name in enumerate(names):
        data = data.replace(bytes([97 + number]) * len(name), name)
    path.write_bytes(data)
    return path


def test_zips_that_say_what_their_names_are(tmp_path, options, caplog):
    """Info-ZIP writes UTF-8 without saying so, or names in another encoding with UTF-8 beside them."""
    path = write_named_zip(
        tmp_path / "x.zip", ["向日葵/1.jpg".encode(), "Küchenschelle/1.jpg".encode(), b"rose/1.jpg"]
    )
    assert open_source(f"archive:{path}", options).class_names == ("Küchenschelle", "rose", "向日葵")
    path = write_named_zip(
        tmp_path / "y.zip", [b"rose/1.jpg", "玫瑰花园/1.jpg".encode("gbk")], unicode_path="玫瑰花园/1.jpg"
    )
    assert open_source(f"archive:{path}", options).class_names == ("rose", "玫瑰花园")
    assert not [line for line in caplog.messages if "encoding" in line]


def test_a_field_for_another_name_says_nothing(tmp_path, options):
    path = write_named_zip(
        tmp_path / "x.zip", ["玫瑰花园/1.jpg".encode("gbk")], unicode_path="玫瑰花园/1.jpg"
    )
    data = path.read_bytes()
    path.write_bytes(data.replace("瑰".encode("gbk"), "瑰".encode("gbk")[::-1]))
    with pytest.raises(TrainerError, match=r"is a name in an encoding that the zip does not tell"):
        open_source(f"archive:{path}", options)


@pytest.mark.parametrize("encoding", ["gbk", "shift_jis", "euc_kr", "cp1251"])
def test_names_in_an_encoding_that_nobody_tells_are_no_classes(tmp_path, options, encoding):
    name = {"gbk": "向日葵", "shift_jis": "ひまわり", "euc_kr": "해바라기", "cp1251": "подсолнух"}[encoding]
    raw = f"{name}/1.jpg".encode(encoding)
    path = write_named_zip(tmp_path / "x.zip", [raw, b"rose/11.jpg"])
    reason = (
        f"{raw.decode('cp437')!r} is a name in an encoding that the zip does not tell, such as GBK or Shift "
        "JIS (unzip -O gbk unpacks such). Unpack it by hand and give --source=folder:PATH"
    )
    with pytest.raises(TrainerError, match=re.escape(reason)):
        open_source(f"archive:{path}", options)
    assert archives(options) == []


def test_code_page_437_is_read_as_the_standard_says_with_a_word(tmp_path, options, caplog):
    path = write_named_zip(tmp_path / "x.zip", ["Gänseblümchen/1.jpg".encode("cp437"), b"rose/1.jpg"])
    assert open_source(f"archive:{path}", options).class_names == ("Gänseblümchen", "rose")
    (line,) = [line for line in caplog.messages if "code page 437" in line]
    assert "such as 'Gänseblümchen': if that is wrong, unpack it by hand" in line
    caplog.clear()
    # Of files alone, nobody sees the names.
    path = write_named_zip(tmp_path / "y.zip", [b"daisy/11.jpg", "rose/玫瑰.jpg".encode("gbk")])
    assert open_source(f"archive:{path}", options).class_names == ("daisy", "rose")
    assert not [line for line in caplog.messages if "code page" in line]


def test_unsafe_tars_are_refused_and_leave_nothing(tmp_path, options):
    victim = tmp_path / "victim.jpg"
    victim.write_bytes(b"mine")
    evil, hard = str(tmp_path / "evil.jpg"), {"name": "c/1.jpg", "type": tarfile.LNKTYPE}
    odd = "is a device, a pipe or stored with holes"
    bad = {
        f"'{evil}' is an absolute path": {"name": evil},
        "'C:/evil.jpg' is an absolute path": {"name": "C:/evil.jpg"},
        "'../../../evil.jpg' leads out of the folder": {"name": "../../../evil.jpg"},
        "'c/../../e.jpg' leads out of the folder": {"name": "c/../../e.jpg"},
        "'../d' leads out of the folder": {"name": "../d", "type": tarfile.DIRTYPE},
        f"'c/1.jpg' links to no file in it: '{victim}'": symlink("c/1.jpg", str(victim)),
        "'c/1.jpg' links to no file in it: '../../victim.jpg'": symlink("c/1.jpg", "../../victim.jpg"),
        "'c/1.jpg' links to no file in it: '../victim.jpg'": {**hard, "linkname": "../victim.jpg"},
        f"'c/2.jpg' links to no file in it: '{victim}'": {**hard, "name": "c/2.jpg", "linkname": str(victim)},
        "'c' links to no file in it: '/etc'": symlink("c", "/etc"),
        "'c' links to no file in it: 'roses'": symlink("c", "roses"),
        "'c/3.jpg' links to no file in it: '3.jpg'": symlink("c/3.jpg", "3.jpg"),
        f"'c/1.jpg' {odd}": {"name": "c/1.jpg", "type": tarfile.FIFOTYPE},
        f"'c/4.jpg' {odd}": {"name": "c/4.jpg", "type": tarfile.GNUTYPE_SPARSE},
        "'roses/10.jpg' is in it twice": {"name": "./roses//10.jpg"},
        "'roses/10.jpg' is both a file and a folder": {"name": "roses/10.jpg/1.jpg"},
        "'roses' is both a file and a folder": {"name": "roses"},
        "'c/a\\u202egpj.exe\\n.jpg' links to no file in it: 'x'": symlink("c/a\u202egpj.exe\n.jpg", "x"),
    }
    for reason, member in bad.items():
        assert_not_unpacked(write_tar(tmp_path / "x.tar", member), options, reason)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "victim.jpg", "x.tar"]
    assert victim.read_bytes() == b"mine"


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_names_that_no_file_can_have_are_refused(tmp_path, options, kind):
    name = f"roses/{'x' * 300}.jpg"
    if kind == "tar":
        path = write_tar(tmp_path / "x.tar", {"name": name})
    else:
        path = write_zip(tmp_path / "x.zip", {**FILES, name: b""})
    shown = f"'{name[:90]}'... (310 characters)"
    assert_not_unpacked(path, options, f"{shown} cannot be a file here (File name too long)")


def test_a_file_system_that_does_not_tell_two_names_apart(tmp_path, options, monkeypatch):
    def lower(path: Path, flags: str):
        return open(str(path).lower(), flags)

    monkeypatch.setattr(unpack, "open", lower, raising=False)
    path = write_tar(tmp_path / "x.tar", {"name": "roses/A.JPEG"})
    assert_not_unpacked(path, options, "'roses/A.JPEG' cannot be a file here (File exists)")


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_odd_names_and_modes_do_no_harm(tmp_path, options, format):
    path = write_tar(
        tmp_path / "x.tar",
        {"name": "roses/\udcff.jpg", "data": b"not UTF-8"},
        {"name": "roses/" + "y" * 200 + ".jpg", "data": b"long"},
        {"name": "roses/run.jpg", "mode": 0o7777},
        {"name": "roses/folder.jpg", "type": tarfile.DIRTYPE},
        {"name": "roses/C:\\..\\..\\evil.jpg"},
        format=format,
    )  # fmt: skip
    source = open_source(f"archive:{path}", options)
    assert len(source.ids) == len(FILES) + 4
    files = [file for file in source.root.rglob("*") if file.is_file()]
    assert {file.stat().st_mode & 0o7000 for file in files} == {0}
    assert not (source.root / "roses" / "run.jpg").stat().st_mode & 0o111
    assert not (source.root / "roses" / "folder.jpg").exists()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("../evil.jpg", "leads out of the folder"),
        ("..\\evil.jpg", "leads out of the folder"),
        ("/evil.jpg", "is an absolute path"),
        ("C:/e.jpg", "is an absolute path"),
        ("\\\\host\\e.jpg", "is an absolute path"),
        ("roses/10.jpg/1.jpg", "is both a file and a folder"),
    ],
)
def test_unsafe_zips_are_refused(tmp_path, options, name, reason):
    path = write_zip(tmp_path / "x.zip", {**FILES, name: b"x"})
    said = repr("roses/10.jpg" if "both" in reason else name.replace("\\", "/"))
    assert_not_unpacked(path, options, f"{said} {reason}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "x.zip"]


def test_a_link_in_a_zip_is_refused(tmp_path, options):
    path = write_zip(tmp_path / "x.zip", FILES)
    with zipfile.ZipFile(path, "a") as packed:
        info = zipfile.ZipInfo("roses/link.jpg")
        info.external_attr = 0o120777 << 16
        packed.writestr(info, "/etc/passwd")
    assert_not_unpacked(path, options, "'roses/link.jpg' is a link")


def patched(path: Path, *changes: tuple[bytes, int, bytes]) -> Path:
    """Overwrites bytes at (after a mark, this many bytes on)."""
    data = bytearray(path.read_bytes())
    for mark, offset, new in changes:
        at = data.index(mark) + offset
        data[at : at + len(new)] = new
    path.write_bytes(data)
    return path


def with_size(path: Path, name: bytes, size: bytes) -> None:
    """Writes another size, and the checksum to it, into a header of a tar."""
    data = bytearray(path.read_bytes())
    at = data.index(name)
    data[at + 124 : at + 136] = size
    data[at + 148 : at + 156] = b"%06o\0 " % (
        sum(data[at : at + 148]) + 8 * ord(" ") + sum(data[at + 156 : at + 512])
    )
    path.write_bytes(data)


def test_an_encrypted_zip_is_refused(tmp_path, options):
    path = patched(write_zip(tmp_path / "x.zip", FILES), (b"PK\1\2", 8, b"\1"), (b"PK\3\4", 6, b"\1"))
    line = f"{path} is not unpacked: 'roses/10.jpg' is encrypted. Unpack it by hand and give --source="
    with pytest.raises(TrainerError, match=re.escape(line)):
        open_source(f"archive:{path}", options)


def test_a_zip_whose_files_share_bytes_is_refused(tmp_path, options):
    path = write_zip(tmp_path / "x.zip", FILES)
    with zipfile.ZipFile(path) as packed:
        first, second = packed.infolist()[:2]
    # The directory says that the first file goes on into the second.
    patched(path, (b"PK\1\2", 20, (first.compress_size + 100).to_bytes(4, "little")))
    assert_not_unpacked(path, options, f"'{first.filename}' and '{second.filename}' share bytes")


def test_sizes_that_headers_lie_about(tmp_path, options):
    path = write_zip(tmp_path / "x.zip", {"a/1.jpg": bytes(10**6), "b/1.jpg": b""})
    # Fewer bytes than come out: the reader stops there, and the checksum does not hold.
    patched(path, (b"PK\1\2", 24, (10).to_bytes(4, "little")))
    with pytest.raises(TrainerError, match=r"is damaged or no .tgz, .tar or .zip: Bad CRC-32 for file"):
        open_source(f"archive:{path}", options)
    patched(path, (b"PK\1\2", 24, (2**32 - 2).to_bytes(4, "little")))
    size = f"{path.stat().st_size:,}"
    assert_not_unpacked(path, options, f"its {size} bytes unpack to more than 1,000,000,000")
    path = write_tar(tmp_path / "x.tar")
    with_size(path, b"roses/10.jpg", b"77777777777\0")
    size = f"{path.stat().st_size:,}"
    assert_not_unpacked(path, options, f"its {size} bytes unpack to more than 1,000,000,000")


def test_a_header_that_leads_back_to_itself_ends(tmp_path, options):
    """See CVE-2025-8194: tarfile would read it for ever."""
    path = write_tar(tmp_path / "x.tar")
    with_size(path, b"roses/9.jpg", b"\xff" * 10 + (-512).to_bytes(2, "big", signed=True))
    with pytest.raises(TrainerError, match=r"or .zip: a header that leads backwards; get it anew"):
        open_source(f"archive:{path}", options)


def test_a_header_as_large_as_a_bomb_is_not_read(tmp_path, options):
    path = tmp_path / "x.tgz"
    with tarfile.open(path, "w:gz", format=tarfile.PAX_FORMAT) as packed:
        for name, data in FILES.items():
            add(packed, name, data, pax_headers={"comment": "x" * 10**6})
    with pytest.raises(TrainerError, match=r"or .zip: a header of 1,000,448 bytes; get it anew"):
        open_source(f"archive:{path}", options)


@pytest.mark.parametrize("write", [write_tgz, write_zip])
def test_bombs_are_refused_before_anything_is_written(tmp_path, options, monkeypatch, write):
    monkeypatch.setattr(packed_module, "FREE_BYTES", 10**6)
    monkeypatch.setattr(unpack, "write_file", None)
    path = write(tmp_path / "bomb", {"a/1.jpg": bytes(4 * 10**6), "b/1.jpg": b""})
    size = f"{path.stat().st_size:,}"
    assert_not_unpacked(path, options, f"its {size} bytes unpack to more than 1,000,000")
    monkeypatch.setattr(packed_module, "FREE_BYTES", 10**9)
    monkeypatch.setattr(packed_module, "MAX_FILES", 1)
    assert_not_unpacked(path, options, "it holds more than 1 files")


@pytest.mark.parametrize("write", [write_tgz, write_zip])
def test_an_archive_exchanged_while_it_is_read_writes_no_more_than_was_looked_through(
    tmp_path, options, monkeypatch, write
):
    path = write(tmp_path / "x", {"a/1.jpg": bytes(1000), "b/1.jpg": bytes(10)})
    large = write(tmp_path / "large", {"a/1.jpg": bytes(10**6), "b/1.jpg": bytes(10)}).read_bytes()
    for kind in ("tar", "zip"):
        name = f"look_through_{kind}"
        look_through = getattr(unpack, name)

        def exchange(archive, look_through=look_through):
            contents = look_through(archive)
            archive.write_bytes(large)
            return contents

        monkeypatch.setattr(unpack, name, exchange)
    most = []
    write_file = unpack.write_file

    def watched(folder, first, chunks, *, limit_bytes):
        try:
            return write_file(folder, first, chunks, limit_bytes=limit_bytes)
        finally:
            most.append((folder / first).stat().st_size)

    monkeypatch.setattr(unpack, "write_file", watched)
    name = ("flower_photos/" if write is write_tgz else "") + "a/1.jpg"
    assert_not_unpacked(path, options, f"'{name}' is larger than the archive says")
    assert max(most) <= 1010


def test_copies_count(tmp_path, options, monkeypatch):
    monkeypatch.setattr(packed_module, "FREE_BYTES", 10**6)
    links = [symlink(f"b/{k}.jpg", "../a/1.jpg") for k in range(11)]
    path = write_tar(tmp_path / "x.tgz", {"name": "a/1.jpg", "data": bytes(10**5)}, *links, mode="w:gz")
    size = f"{path.stat().st_size:,}"
    assert_not_unpacked(path, options, f"its {size} bytes unpack to more than 1,000,000")


def test_zeros_after_the_end_are_not_read_for_ever(tmp_path, options, monkeypatch):
    monkeypatch.setattr(packed_module, "FREE_BYTES", 10**6)
    path = write_tgz(tmp_path / "x.tgz", FILES)
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + bytes(2 * 10**6)))
    size = f"{path.stat().st_size:,}"
    assert_not_unpacked(path, options, f"its {size} bytes unpack to more than 1,000,000")


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
    path = write_tar(tmp_path / "x")
    spoilt = bytearray(path.read_bytes())
    spoilt[spoilt.index(b"daisy/0.jpg") + 148] ^= 1  # The checksum of the header.
    path.write_bytes(gzip.compress(bytes(spoilt)) if kind == "tgz" else bytes(spoilt))
    with pytest.raises(TrainerError, match=r"no .tgz, .tar or .zip: a header in it is damaged; get it anew"):
        open_source(f"archive:{path}", options)


@pytest.mark.parametrize("kind", ["tgz", "tar"])
def test_a_tar_that_ends_between_two_files_is_not_taken_for_whole(tmp_path, options, kind):
    path = write_tar(tmp_path / "x")
    data = path.read_bytes()
    data = data[: data.index("tulips/ü.jpg".encode())]
    path.write_bytes(gzip.compress(data) if kind == "tgz" else data)
    with pytest.raises(TrainerError, match=r"no .tgz, .tar or .zip: it ends too early; get it anew"):
        open_source(f"archive:{path}", options)


def test_a_web_page_is_called_one(tmp_path, options):
    path = tmp_path / "x.tgz"
    path.write_bytes(b"\n <!DOCTYPE html><html>Sign in</html>")
    with pytest.raises(TrainerError, match=r"zip: it is a web page, perhaps one to sign in on; get it anew"):
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


@pytest.mark.parametrize("write", [write_tgz, write_zip])
def test_a_disk_with_too_little_room_is_told_before(tmp_path, options, monkeypatch, write):
    path = write(tmp_path / "x", {"a/1.jpg": bytes(10**6), "b/1.jpg": bytes(10**5)})
    free = shutil._ntuple_diskusage(10**9, 10**9, 10**5)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: free)
    monkeypatch.setattr(unpack, "write_file", None)
    folder = f"{options.cache_dir}/archives"
    line = (
        f"--source=archive:{path}: {path}, unpacked, needs 1.1 MB and {folder} has 100.0 kB left: 1.0 MB are "
        "missing; make room there, or set --cache_dir"
    )
    with pytest.raises(TrainerError, match=f"^{re.escape(line)}$"):
        open_source(f"archive:{path}", options)
    assert archives(options) == []
