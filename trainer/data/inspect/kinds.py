"""What kind of file a picture is, by its first bytes; by its name only where that leaves no doubt."""

import os
import re
import stat
from collections import Counter
from collections.abc import Collection, Iterable, Mapping

DECODABLE = ("JPEG", "PNG", "GIF", "BMP", "WebP")
PICTURE_ENDINGS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".webp")
NONE = "it is none of JPEG, PNG, GIF, BMP and WebP"
HEAD_BYTES = 512
"""So many of a file tell its kind."""

_BEGINNINGS = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"GIF8": "GIF",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL \r\n\x87\n": "JPEG XL",
    b"\0\0\0\x0cjP  \r\n\x87\n": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"IIRO": "RAW", b"IIRS": "RAW", b"MMOR": "RAW", b"IIU\0": "RAW", b"FUJIFILMCCD-RAW": "RAW",
    b"FOVb": "RAW", b"\0MRM": "RAW", b"II\x1a\0\0\0HEAPCCDR": "RAW",
    b"II*\0": "TIFF", b"MM\0*": "TIFF", b"II+\0": "TIFF", b"MM\0+": "TIFF",
    b"8BPS": "PSD",
    b"v/1\x01": "OpenEXR",
    b"#?RADIANCE": "Radiance HDR",
    b"DDS ": "DDS",
    b"qoif": "QOI",
    b"gimp xcf": "XCF",
}  # fmt: skip
# ISO base media files say what they are in the brand that comes first, or in those that follow.
_BRANDS = {b"avif": "AVIF", b"avis": "AVIF", b"crx ": "RAW"} | dict.fromkeys(
    (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"), "HEIC"
)
_RAW_ENDINGS = (
    ".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".fff", ".iiq", ".kdc", ".mef", ".mos",
    ".mrw", ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f",
)  # fmt: skip
# What the first bytes do not tell, or what is damaged.
_BY_ENDING = dict.fromkeys(_RAW_ENDINGS, "RAW") | {
    ".heic": "HEIC", ".heif": "HEIC", ".hif": "HEIC", ".avif": "AVIF", ".tif": "TIFF", ".tiff": "TIFF",
    ".svg": "SVG", ".svgz": "SVG", ".jxl": "JPEG XL", ".jp2": "JPEG 2000", ".j2k": "JPEG 2000",
    ".jpx": "JPEG 2000", ".psd": "PSD", ".ico": "ICO", ".exr": "OpenEXR", ".hdr": "Radiance HDR",
    ".tga": "TGA", ".dcm": "DICOM", ".ppm": "PNM", ".pgm": "PNM", ".pbm": "PNM", ".pnm": "PNM",
}  # fmt: skip
# Beside pictures there may be one for each: they are not opened.
_NO_PICTURES = {
    ".txt", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".toml", ".ini", ".cfg", ".md",
    ".rst", ".html", ".htm", ".css", ".js", ".pdf", ".doc", ".docx", ".xls", ".xlsx", ".ods", ".odt",
    ".ppt", ".pptx", ".py", ".pyc", ".ipynb", ".m", ".mat", ".npy", ".npz", ".pkl", ".pt", ".pth",
    ".h5", ".hdf5", ".tfrecord", ".parquet", ".db", ".sqlite", ".log", ".zip", ".tar", ".gz", ".tgz",
    ".bz2", ".xz", ".7z", ".rar", ".mp4", ".mov", ".avi", ".mkv", ".webm", ".mp3", ".wav", ".m4a",
    ".aae", ".xmp", ".thm", ".lnk", ".url", ".sha256", ".md5", ".part", ".crdownload", ".bak", ".orig",
}  # fmt: skip
_WAYS_OUT = "magick mogrify -format jpg FILES"
_TOOLS = {
    "HEIC": "heif-convert FILE FILE.jpg",
    "RAW": "darktable-cli FILE FILE.jpg",
    "SVG": "rsvg-convert FILE -o FILE.png",
}


def kind_of(head: bytes) -> str:
    """Returns what a file holds, one of `DECODABLE` or another kind of picture; '' where that is none known.

    Args:
      head: its first `HEAD_BYTES`, or all of it.
    """
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    if head[:2] == b"BM" and 12 <= int.from_bytes(head[14:18], "little") <= 124:
        return "BMP"
    if head[4:8] == b"ftyp":
        brands = [head[at : at + 4] for at in range(8, min(int.from_bytes(head[:4], "big"), len(head)), 4)]
        kinds = [_BRANDS[brand] for brand in brands if brand in _BRANDS]
        return "AVIF" if "AVIF" in kinds else kinds[0] if kinds else ""
    kind = next((kind for begins, kind in _BEGINNINGS.items() if head.startswith(begins)), "")
    if kind == "TIFF" and head[8:10] == b"CR":
        return "RAW"
    if not kind and re.match(rb"P[1-7]\s+[\d#]|P[Ff]\n|P7\n", head):
        return "PNM"
    if not kind and head[128:132] == b"DICM":
        return "DICOM"
    return kind or ("SVG" if re.search(rb"<svg[\s>]", head.lower()) else "")


def kind_by_name(name: str) -> str | None:
    """Returns what a file of this name is, '' for no picture; None where only a look into it can tell.

    What ends as pictures do is taken for one, JPEG for all of them: what is in it comes to light when it is
    read.
    """
    if name.lower().endswith(PICTURE_ENDINGS):
        return "JPEG"  # Most files by far: before what takes longer.
    ending = _ending(name)
    if ending in PICTURE_ENDINGS:
        return "JPEG"
    # Copies that an editor or exiftool keeps of what it changes would be the same picture once more.
    return "" if ending in _NO_PICTURES or name.endswith(("~", "_original")) else None


def kind_of_file(path: str, name: str) -> str:
    """Returns what a regular file is, as `kind_of` does; of one that cannot be read, what its name says.

    Args:
      path: of the file. No more than its first bytes are read, and only where its name leaves doubt.
      name: its last part.
    """
    kind = kind_by_name(name)
    if kind is not None:
        return kind
    try:
        kind = kind_of(_head(path))
    except OSError:
        # Without an ending it may be a picture, and reading it will say what is wrong.
        return _BY_ENDING.get(_ending(name), "" if "." in name else "JPEG")
    by_name = _BY_ENDING.get(_ending(name), "")
    return by_name if not kind or (kind == "TIFF" and by_name == "RAW") else kind


def kinds_in(folder: Iterable[os.DirEntry[str]]) -> dict[str, str]:
    """Returns {name: kind} of the files of a folder; of all that are no pictures, ''.

    What cannot be decoded is no loss, and counts as no picture, where the same picture lies beside it as one
    that can: cameras write RAW and JPEG, and who has converted HEIC keeps both.
    """
    kinds = {entry.name: kind_of_file(entry.path, entry.name) for entry in folder}
    others = [name for name, kind in kinds.items() if kind and kind not in DECODABLE]
    if others:
        stems = {_stem(name) for name, kind in kinds.items() if kind in DECODABLE}
        # a.heic is beside a.jpg, or beside a.heic.jpg.
        kinds |= {name: "" for name in others if not stems.isdisjoint((_stem(name), name.casefold()))}
    return kinds


def _stem(name: str) -> str:
    return os.path.splitext(name)[0].casefold()


def reason_of(kind: str) -> str:
    """Returns why a picture of a kind that is not `DECODABLE` cannot be used, and what to do."""
    return f"{NONE}, but {kind}: convert it, as with {_way_out([kind])}"


def told_kinds(kinds: Mapping[str, int]) -> str:
    """Returns how many there are of each kind that cannot be decoded, and what to do."""
    counts = ", ".join(f"{count:,} {kind}" for kind, count in Counter(kinds).most_common())
    return f"{counts}. Convert them to JPEG or PNG, as with {_way_out(kinds)}"


def _way_out(kinds: Collection[str]) -> str:
    tools = [f"{_TOOLS[kind]} for {kind}" for kind in kinds if kind in _TOOLS]
    return " or ".join([_WAYS_OUT, *tools])


def _ending(name: str) -> str:
    """Returns how a name ends, in small letters, without what addresses have behind it, as in x.jpg?w=640."""
    return os.path.splitext(re.split(r"[?&]", name, maxsplit=1)[0])[1].lower()


def _head(path: str) -> bytes:
    # What has become a pipe since it was listed is not waited for.
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return os.read(handle, HEAD_BYTES) if stat.S_ISREG(os.fstat(handle).st_mode) else b""
    finally:
        os.close(handle)
