"""Files that come over http and https: whole, or an end in one clear line whatever the other side does.

Standard library only.
"""

import http.client
import logging
import os
import ssl
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NoReturn

from tqdm import tqdm

from trainer.store.files import PART_PREFIX, move, require_room, set_mode, sync, sync_file, told_size
from trainer.values import TrainerError

TIMEOUT_SECS = 30.0
"""How long the other side may stay silent."""
_MAX_REDIRECTS = 10


class NetworkError(Exception):
    """The other side did not send a file, or not all of it. One line, to be put in brackets."""


class Coming:
    """A file on its way. `size` is the number of bytes that the server promised, None if it did not."""

    def __init__(self, response: http.client.HTTPResponse):
        self.size: int | None = response.length
        self.got = 0
        self._response = response

    def read(self, size: int) -> bytes:
        """Returns the next bytes, at most `size`; none at the end.

        Raises:
          NetworkError: nothing more came, or less than was promised.
        """
        try:
            data = self._response.read(size)
        except TimeoutError:
            raise NetworkError(f"nothing came for {TIMEOUT_SECS:g} s, after {self._so_far()}") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise NetworkError(f"{_told(error)}, after {self._so_far()}") from None
        self.got += len(data)
        # http.client ends a connection that broke like one that is done.
        if size and not data and self.size is not None and self.got != self.size:
            raise NetworkError(f"the connection broke off after {self._so_far()}")
        return data

    def close(self) -> None:
        self._response.close()

    def __enter__(self) -> "Coming":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _so_far(self) -> str:
        return f"{self.got:,} bytes" if self.size is None else f"{self.got:,} of {self.size:,} bytes"


def open_url(url: str | urllib.request.Request, *, context: ssl.SSLContext | None = None) -> Coming:
    """Asks for a file; a redirect is followed to any host, but only over http and https.

    Args:
      url: an address, or a request with headers of its own.
      context: how certificates are checked; None: as Python does it.

    Raises:
      NetworkError: there is no such host, it does not answer, or it answers with anything but a file.
    """
    opener = urllib.request.build_opener(_Redirects, urllib.request.HTTPSHandler(context=context))
    try:
        return Coming(opener.open(url, timeout=TIMEOUT_SECS))
    except urllib.error.HTTPError as error:
        error.close()
        raise NetworkError(f"the server says {error.code} {' '.join(str(error.reason).split())}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise NetworkError(_told(error)) from None


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Never leads to another kind of address, which urllib would allow for ftp."""

    def http_error_302(self, req: Any, fp: Any, code: int, msg: str, headers: Any) -> Any:
        to = urllib.parse.urljoin(req.full_url, headers.get("location") or headers.get("uri") or "")
        seen = getattr(req, "redirect_dict", {})
        if urllib.parse.urlsplit(to).scheme not in ("http", "https"):
            _refuse(fp, f"the server redirects to {to}, and only http and https are followed")
        if to in seen or to == req.full_url:
            _refuse(fp, f"the server redirects in a circle, to {to} again")
        if len(seen) >= _MAX_REDIRECTS:
            _refuse(fp, f"the server redirects more than {_MAX_REDIRECTS} times")
        return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def _refuse(response: Any, reason: str) -> NoReturn:
    response.close()
    raise NetworkError(" ".join(reason.split()))


def _told(error: Exception) -> str:
    if isinstance(error, urllib.error.URLError):
        error = error.reason if isinstance(error.reason, Exception) else Exception(error.reason)
    if isinstance(error, TimeoutError):
        return f"no answer within {TIMEOUT_SECS:g} s"
    if isinstance(error, http.client.IncompleteRead):
        return "the connection broke off"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())


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
