"""Archives that nobody should unpack, and that the program must not; each is small itself."""

import copy
import gzip
import io
import os
import tarfile
import zipfile
from pathlib import Path

VICTIM = "victim.jpg"
"""A file beside the archives, which some of them are after. They count on a cache folder beside it, too."""


def save_wrong_archives(root: Path, pictures: Path) -> dict[str, Path]:
    """Returns {name: archive}, each of good class folders and something else."""
    (root / VICTIM).write_bytes(b"mine")
    outside = f"../../../../{VICTIM}"
    links = {
        "tar_symlink": (tarfile.SYMTYPE, outside),
        "tar_symlink_absolute": (tarfile.SYMTYPE, str(root / VICTIM)),
        "tar_hardlink": (tarfile.LNKTYPE, outside),
        "tar_hardlink_absolute": (tarfile.LNKTYPE, str(root / VICTIM)),
    }
    found = {name: _tar(root / f"{name}.tar", pictures, "red/new.jpg", *link) for name, link in links.items()}
    found["tar_above"] = _tar(root / "tar_above.tar", pictures, f"red/{outside}")
    found["tar_absolute"] = _tar(root / "tar_absolute.tar", pictures, str(root / VICTIM))
    found["tar_pipe"] = _tar(root / "tar_pipe.tar", pictures, "red/new.jpg", tarfile.FIFOTYPE)
    found["tar_twice"] = _tar(root / "tar_twice.tar", pictures, "./red/000.jpg")
    found["tar_file_and_folder"] = _tar(root / "tar_file_and_folder.tar", pictures, "red/000.jpg/1.jpg")
    found["tar_cut"] = root / "tar_cut.tgz"
    found["tar_cut"].write_bytes(gzip.compress(found["tar_twice"].read_bytes())[:-500])
    found["tgz_bomb"] = _tgz_bomb(root / "tgz_bomb.tgz", pictures)
    found["zip_above"] = _zip(root / "zip_above.zip", pictures, f"..\\..\\..\\{VICTIM}")
    found["zip_bomb"] = _zip_bomb(root / "zip_bomb.zip", pictures)
    found["zip_link"] = _zip(root / "zip_link.zip", pictures, "red/new.jpg", 0o120777)
    found["zip_locked"] = _zip(root / "zip_locked.zip", pictures, "red/new.jpg")
    data = bytearray(found["zip_locked"].read_bytes())
    for mark, flags in ((b"PK\1\2", 8), (b"PK\3\4", 6)):
        data[data.index(mark) + flags] |= 1
    found["zip_locked"].write_bytes(data)
    found["loose_tar"] = root / "loose.tar"
    with tarfile.open(found["loose_tar"], "w") as tar:
        tar.add(pictures / "red", arcname="")
    found["page"] = root / "page.tgz"
    found["page"].write_text("<!DOCTYPE html><html><body>Sign in to go on</body></html>")
    found["pipe"] = root / "pipe.tgz"
    os.mkfifo(found["pipe"])
    return found


def assert_unharmed(root: Path) -> None:
    assert (root / VICTIM).read_bytes() == b"mine"
    assert list(root.rglob(VICTIM)) == [root / VICTIM]


def _tar(path: Path, pictures: Path, name: str, type: bytes = tarfile.REGTYPE, linkname: str = "") -> Path:
    with tarfile.open(path, "w") as tar:
        tar.add(pictures, arcname="")
        member = tarfile.TarInfo(name)
        member.type, member.linkname = type, linkname
        tar.addfile(member)
    return path


def _tgz_bomb(path: Path, pictures: Path, num_parts: int = 150, part_bytes: int = 8 * 10**6) -> Path:
    """Writes a gzip of more than a gigabyte of zeros, in parts that are packed once."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.add(pictures, arcname="")
        member = tarfile.TarInfo("red/zero.jpg")
        member.size = num_parts * part_bytes
        start = buffer.getvalue() + member.tobuf()
    packed = [gzip.compress(start)]
    packed += [gzip.compress(bytes(part_bytes), 1)] * num_parts
    path.write_bytes(b"".join([*packed, gzip.compress(bytes(1024))]))
    return path


def _zip(path: Path, pictures: Path, name: str, mode: int = 0o100644) -> Path:
    with zipfile.ZipFile(path, "w") as packed:
        info = zipfile.ZipInfo(name)
        info.external_attr = mode << 16
        packed.writestr(info, f"../../{VICTIM}")
        for picture in sorted(pictures.rglob("*.jpg")):
            packed.write(picture, picture.relative_to(pictures))
    return path


def _zip_bomb(path: Path, pictures: Path, num_copies: int = 300) -> Path:
    """Writes a zip whose directory has one file of zeros again and again, all of the same bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for picture in sorted(pictures.rglob("*.jpg")):
            packed.write(picture, picture.relative_to(pictures))
        packed.writestr("red/zero.jpg", bytes(8 * 10**6))
        for number in range(num_copies):
            again = copy.copy(packed.filelist[-1])
            again.filename = f"red/zero{number}.jpg"
            packed.filelist.append(again)
    return path
