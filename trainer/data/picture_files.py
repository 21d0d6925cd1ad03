"""Pictures by their paths: files, folders, patterns and lists, in the order given and each once."""

import glob
import os
import re
import stat
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.data.class_folders import EXPECTED, holds_results, picture_kinds
from trainer.data.inspect.bad_pictures import BadPictureError
from trainer.data.inspect.kinds import DECODABLE, kind_by_name, reason_of
from trainer.paths import expanded
from trainer.store.system_names import is_system

# No decoder takes more; a file with a hole in it can be as large as it likes.
_MAX_BYTES = 2**31 - 1
_LISTED = "-"
_FILE = "file://"
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_COPIES_WITH = {"http": "curl -O", "https": "curl -O", "gs": "gcloud storage cp", "s3": "aws s3 cp"}


@dataclass(frozen=True)
class Found:
    """A path, and why there can be no picture; empty where only a look into the file can tell.

    `path` is as `os` gives it: bytes that are not UTF-8 are surrogates. Of a picture that is no file, it is a
    name, and `data` the encoded picture.
    """

    path: str
    problem: str = ""
    data: bytes | None = None


def find_pictures(paths: Iterable[str], *, lines: Iterable[bytes] = ()) -> Iterator[Found]:
    """Yields what paths name, in their order; a path that is met again is passed over.

    A folder stands for the pictures in it and in the folders below it, in code-point order of their
    paths, as a source of class folders takes them; what cannot be decoded is named. A pattern such as
    `a/*.jpg` or `a/**/*.jpg` stands for what a shell would make of it, sorted.

    Args:
      paths: `~` is expanded, and file:///x is /x; `-` stands for `lines`.
      lines: paths of files and folders, one a line, read when their turn comes; taken as they are.
    """
    seen = set()
    for path in paths:
        for found in _listed(lines) if path == _LISTED else _named(_as_path(path)):
            whole = os.path.abspath(found.path)
            if whole not in seen:
                seen.add(whole)
                yield found


def read_file(path: str) -> bytes:
    """Reads a regular file as `read_regular` does, and takes whatever fails for the picture's fault.

    Raises:
      BadPictureError: it is none, is too large, or cannot be read.
    """
    try:
        return read_regular(path, name=path)
    except OSError as error:
        raise BadPictureError(path, str(error.strerror or error), lasting=False) from None
    except ValueError:
        raise BadPictureError(path, "its name holds a zero byte: a list has one path a line") from None


def read_regular(path: str, *, name: str) -> bytes:
    """Reads a regular file; what has become a pipe or a device since it was listed is not waited for.

    Raises:
      BadPictureError: it is none, or is too large; the message begins with `name`.
      OSError: it cannot be read.
    """
    with open(path, "rb", buffering=0, opener=_open_at_once) as file:
        info = os.fstat(file.fileno())
        if not stat.S_ISREG(info.st_mode):
            raise BadPictureError(name, "not a regular file")
        if info.st_size > _MAX_BYTES:
            raise BadPictureError(name, f"a file of {info.st_size} bytes")
        return file.read()


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def _listed(lines: Iterable[bytes]) -> Iterator[Found]:
    for line in lines:
        if path := os.fsdecode(line.removesuffix(b"\n").removesuffix(b"\r")):
            yield from _at(path)


def _as_path(text: str) -> str:
    # What a file manager hands over; one with another host in it stays an address.
    if text.startswith((f"{_FILE}/", f"{_FILE}localhost/")) and not os.path.lexists(text):
        return urllib.request.url2pathname(text.removeprefix(_FILE).removeprefix("localhost"))
    return expanded(text, flag=text)


def _named(path: str) -> Iterator[Found]:
    # An address may hold a question mark, too.
    if _ADDRESS.match(path) or not glob.has_magic(path) or os.path.lexists(path):
        yield from _at(path)
        return
    matches = sorted(glob.iglob(path, recursive=True))
    if not matches:
        yield Found(path, "no file has a name like this")
    for match in matches:
        yield from _at(match)


def _at(path: str) -> Iterator[Found]:
    if (address := _ADDRESS.match(path)) and not os.path.lexists(path):
        tool = _COPIES_WITH.get(address[1].lower())
        how = f", as with {tool} {path}" if tool else ""
        yield Found(path, f"an address, and only files are read: download it first{how}")
    elif not os.path.isdir(path):
        yield Found(path)
    elif kind_by_name(path):
        yield Found(path, "a folder, not a picture")
    else:
        empty = True
        for found in _below(path):
            empty = False
            yield found
        if empty:
            yield Found(path, f"a folder without pictures: {EXPECTED}")


def _below(folder: str) -> Iterator[Found]:
    # What is still to come, the next one last; a folder with those that it lies in. No recursion, as
    # folders may be nested as deep as a path is long.
    waiting: list[Found | tuple[str, tuple[Any, ...]]] = [(folder, ())]
    while waiting:
        following = waiting.pop()
        if isinstance(following, Found):
            yield following
            continue
        path, above = following
        try:
            info = os.stat(path)
            with os.scandir(path) as entries:
                listed = [entry for entry in entries if not is_system(entry.name)]
                found = _sorted_entries(listed)
        except OSError as error:
            yield Found(path, f"this folder cannot be listed: {error.strerror}")
            continue
        identity = (info.st_dev, info.st_ino)
        if identity in above:
            yield Found(path, "a link to a folder that it lies in")
            continue
        if above and holds_results(str(path)):
            # What a report shows is no new picture.
            continue
        for key, problem in reversed(found):
            entry_path = os.path.join(path, key.removesuffix("/"))
            if not key.endswith("/"):
                waiting.append(Found(entry_path, problem))
            elif kind_by_name(key.removesuffix("/")):
                waiting.append(Found(entry_path, "a folder, not a picture"))
            else:
                waiting.append((entry_path, (*above, identity)))


def _sorted_entries(entries: Sequence[os.DirEntry[str]]) -> list[tuple[str, str]]:
    """Returns names, sorted, without what is no picture, and why they are none that can be decoded.

    There is a slash behind those of folders, so that they sort like the paths below them.
    """
    kinds = picture_kinds(entries)
    folders = [(f"{entry.name}/", "") for entry in entries if entry.name not in kinds]
    return sorted(
        [*folders]
        + [(name, "" if kind in DECODABLE else reason_of(kind)) for name, kind in kinds.items() if kind]
    )
