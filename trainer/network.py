"""Files that come over http and https: whole, or an end in one clear line whatever the other side does.

Standard library only.
"""

import http.client
import ssl
import urllib.error
import urllib.parse
import urllib.request
from types import TracebackType
from typing import Any, NoReturn

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
