"""Downloads one file whole or not at all."""

import http.client
import logging
import os
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

from trainer.values import TrainerError

TIMEOUT_S = 30.0
"""How long the other side may stay silent."""
_CHUNK = 1 << 18
_log = logging.getLogger("trainer")


def download(url: str, target: Path, *, name: str) -> None:
    """Downloads to a temporary name beside `target` and renames when all has come and is on disk.

    Raises:
      TrainerError: no network, refused by the server, or it came incomplete; the message says what
        was tried and the ways out.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(prefix=".part-", dir=target.parent)
    except OSError as error:
        raise TrainerError(
            f"--source={name}: cannot write to {target.parent}: {error.strerror}; set --cache_dir"
        ) from None
    try:
        with os.fdopen(handle, "wb") as out:
            _log.info("%s: downloading %s to %s", name, url, target)
            _fetch(url, out)
            out.flush()
            os.fsync(out.fileno())
        os.chmod(part, 0o644)
        os.replace(part, target)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise TrainerError(
            f"--source={name}: could not download {url} to {target.parent}: {_reason(error)}. Ways out: "
            "download it by hand and give --source=archive:PATH, or point --cache_dir to the cache folder "
            "of a machine that has it"
        ) from None
    finally:
        Path(part).unlink(missing_ok=True)


def _fetch(url: str, out) -> None:
    # Some servers refuse the name that urllib gives itself.
    request = urllib.request.Request(url, headers={"User-Agent": "Mozilla/5.0 (hub-trainer)"})
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
        length = response.headers.get("Content-Length")
        expected = int(length) if length else None
        got = 0
        # disable=None: a bar on a terminal only.
        with tqdm(total=expected, unit="B", unit_scale=True, desc=Path(url).name, disable=None) as bar:
            while chunk := response.read(_CHUNK):
                out.write(chunk)
                got += len(chunk)
                bar.update(len(chunk))
    # urllib ends a broken connection like a finished one.
    if expected is not None and got != expected:
        raise OSError(f"only {got:,} of {expected:,} bytes came")


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server says {error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError):
        error = error.reason if isinstance(error.reason, Exception) else error
    if isinstance(error, TimeoutError):
        return f"no answer within {TIMEOUT_S:g} s"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())
