"""Downloads one file whole or not at all."""

import logging
import os
import tempfile
import urllib.request
from pathlib import Path

from tqdm import tqdm

from trainer.files import PART_PREFIX, require_room, sync
from trainer.network import NetworkError, open_url
from trainer.values import TrainerError

_CHUNK = 1 << 18
_log = logging.getLogger("trainer")


def download(url: str, target: Path, *, name: str, key: str = "") -> None:
    """Downloads to a temporary name beside `target` and renames when all has come and is on disk.

    Args:
      url: an http: or https: address.
      target: the file; its folder exists.
      name: what messages call the source.
      key: a part of the temporary name.

    Raises:
      TrainerError: no network, refused by the server, it came incomplete, or the disk cannot take it;
        the message says what was tried and the ways out.
    """
    part = ""
    try:
        handle, part = tempfile.mkstemp(prefix=f"{PART_PREFIX}{key}-", dir=target.parent)
        with os.fdopen(handle, "wb") as out:
            _log.info("%s: downloading %s to %s", name, url, target)
            _fetch(url, out, folder=target.parent)
            out.flush()
            os.fsync(out.fileno())
        os.chmod(part, 0o644)
        os.replace(part, target)
        part = ""
        sync(target.parent)
    except NetworkError as error:
        raise TrainerError(
            f"--source={name}: could not download {url}: {error}. Ways out: correct the address, download it "
            "by hand and give --source=archive:PATH, or point --cache_dir to the cache folder of a machine "
            "that has it"
        ) from None
    except TrainerError as error:  # Too little room.
        raise TrainerError(f"--source={name}: {error}; make room there, or set --cache_dir") from None
    except OSError as error:
        raise TrainerError(
            f"--source={name}: cannot write to {target.parent}: {error.strerror}; set --cache_dir"
        ) from None
    finally:
        if part:
            Path(part).unlink(missing_ok=True)


def _fetch(url: str, out, *, folder: Path) -> None:
    # Some servers refuse the name that urllib gives itself.
    request = urllib.request.Request(url, headers={"User-Agent": "Mozilla/5.0 (hub-trainer)"})
    with open_url(request) as coming:
        require_room(folder, coming.size or 0, what="the archive")
        # disable=None: a bar on a terminal only.
        with tqdm(total=coming.size, unit="B", unit_scale=True, desc=Path(url).name, disable=None) as bar:
            while chunk := coming.read(_CHUNK):
                out.write(chunk)
                bar.update(len(chunk))
