"""Whether what is fetched from the internet can be reached from here."""

import http.client
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import NamedTuple

from trainer.doctor.findings import Finding, ok, warning

TIMEOUT_SECS = 3.0


class Address(NamedTuple):
    """What is fetched from somewhere, and what works without."""

    url: str
    what: str
    without: str


_NO_MODULES = "--backbone=efficientnet_lite0, hub:FOLDER and cached modules work without"
ADDRESSES = (
    Address("https://tfhub.dev/", "modules of TensorFlow Hub", _NO_MODULES),
    Address("https://www.kaggle.com/models", "the same modules", _NO_MODULES),
    Address(
        "https://storage.googleapis.com/tfds-data/",
        "tfds, weights of keras:",
        "--source=synthetic:flowers, folder:PATH and prepared data sets work without",
    ),
)


class Reach:
    """Asks all addresses at once, in the background."""

    def __init__(self, addresses: tuple[Address, ...] = ADDRESSES):
        self._addresses = addresses
        self._answers: dict[str, str] = {}
        self._until = time.monotonic() + TIMEOUT_SECS
        # Looking up a name has no limit of its own: who takes longer is left behind.
        self._threads = [
            threading.Thread(target=self._ask, args=(address.url,), daemon=True) for address in addresses
        ]
        for thread in self._threads:
            thread.start()

    def findings(self) -> list[Finding]:
        """Returns a line for each address, when all have answered or the time is up."""
        for thread in self._threads:
            thread.join(max(0.0, self._until - time.monotonic()))
        # A copy: a late answer does not count any more.
        answers, found = dict(self._answers), []
        for address in self._addresses:
            host = urllib.parse.urlsplit(address.url).netloc
            failure = answers.get(address.url, f"no answer within {TIMEOUT_SECS:g} s")
            if failure:
                found.append(
                    warning(f"{host} cannot be reached: {failure} ({address.what})", address.without)
                )
            else:
                found.append(ok(f"{host} answers ({address.what})"))
        proxies = _proxies(urllib.request.getproxies())
        return [*found, ok(f"through {proxies}")] if proxies else found

    def _ask(self, url: str) -> None:
        request = urllib.request.Request(url, method="HEAD", headers={"User-Agent": "hub-trainer"})
        try:
            # Not urlopen, which keeps the proxies of its first call.
            urllib.request.build_opener().open(request, timeout=TIMEOUT_SECS).close()
            self._answers[url] = ""
        except urllib.error.HTTPError as error:
            error.close()
            # Most answers show that somebody is there; these are of who stands between.
            between = error.code in (407, 502, 503, 504)
            self._answers[url] = f"{error.code} {error.reason}" if between else ""
        except (OSError, http.client.HTTPException, ValueError) as error:
            self._answers[url] = _told(error)


def _told(error: Exception) -> str:
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, Exception):
        error = error.reason
    if isinstance(error, TimeoutError):
        return f"no answer within {TIMEOUT_SECS:g} s"
    return " ".join((getattr(error, "strerror", None) or str(error) or type(error).__name__).split())


def _proxies(named: Mapping[str, str]) -> str:
    """Returns the proxies in words, without the names and passwords that may be in them."""
    told = []
    for kind in sorted({"http", "https", "all"} & set(named)):
        parts = urllib.parse.urlsplit(named[kind] if "//" in named[kind] else f"//{named[kind]}")
        told.append(f"the {kind} proxy {parts.netloc.rpartition('@')[2]}")
    return " and ".join(told)
