"""Downloads one file whole or not at all."""

import logging
import os
import ssl
import tempfile
import urllib.request
from pathlib import Path
from typing import IO

from tqdm import tqdm

from trainer.files import PART_PREFIX, move, require_room, set_mode, sync, sync_file, told_size
from trainer.network import Coming, NetworkError, open_url
from trainer.values import TrainerError

MAX_BYTES = 20 * 10**9
"""Of one file: as much as an archive may unpack to."""
_CHUNK = 1 << 18
_log = logging.getLogger("trainer")


def download(
    url: str,
    target: Path,
    *,
    flag: str,
    what: str = "the archive",
    key: str = "",
    max_bytes: int = MAX_BYTES,
    context: ssl.SSLContext | None = None,
) -> None:
    """Downloads to a temporary name beside `target` and renames when all has come and is on disk.

    Args:
      url: an http: or https: address.
      target: the file; its folder exists.
      flag: what messages begin with, such as `--source=archive:URL`.
      what: what messages call the file.
      key: a part of the temporary name.
      max_bytes: more is not written.
      context: how certificates are checked; None: as Python does it.

    Raises:
      NetworkError: no network, refused by the server, too large, or it came incomplete.
      TrainerError: the disk cannot take it; the message says the ways out.
    """
    part = ""
    try:
        handle, part = tempfile.mkstemp(prefix=f"{PART_PREFIX}{key}-", dir=target.parent)
        with os.fdopen(handle, "wb") as out:
            _log.info("%s: downloading %s to %s", flag.partition("=")[2], url, target)
            # Some servers refuse the name that urllib gives itself.
            request = urllib.request.Request(url, headers={"User-Agent": "Mozilla/5.0 (hub-trainer)"})
            with open_url(request, context=context) as coming:
                if (coming.size or 0) <= max_bytes:
                    require_room(target.parent, coming.size or 0, what=what)
                _write(coming, out, max_bytes=max_bytes, name=Path(url).name)
            sync_file(out, target)
        set_mode(part, 0o644)
        move(part, target)
        part = ""
        sync(target.parent)
    except TrainerError as error:  # Too little room.
        raise TrainerError(f"{flag}: {error}; make room there, or set --cache_dir") from None
    except OSError as error:
        raise TrainerError(
            f"{flag}: cannot write to {target.parent}: {error.strerror}; set --cache_dir"
        ) from None
    finally:
        if part:
            Path(part).unlink(missing_ok=True)


def _write(coming: Coming, out: IO[bytes], *, max_bytes: int, name: str) -> None:
    # A server need not promise a size, or keep to it.
    if (coming.size or 0) > max_bytes:
        raise NetworkError(f"it has {told_size(coming.size or 0)}, more than {told_size(max_bytes)}")
    # disable=None: a bar on a terminal only.
    with tqdm(total=coming.size, unit="B", unit_scale=True, desc=name, disable=None) as bar:
        while chunk := coming.read(_CHUNK):
            if coming.got > max_bytes:
                raise NetworkError(f"it has more than {told_size(max_bytes)}")
            out.write(chunk)
            bar.update(len(chunk))
