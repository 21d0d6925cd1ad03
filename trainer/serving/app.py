"""The page of `serve` and its two questions, with their limits: a WSGI application."""

import base64
import ipaddress
import logging
import secrets
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from flask import Flask, Response, abort, g, jsonify, render_template, request
from werkzeug.exceptions import (
    ClientDisconnected,
    HTTPException,
    RequestEntityTooLarge,
    RequestTimeout,
    ServiceUnavailable,
)

from trainer.values import TrainerError

_log = logging.getLogger("trainer")
MOST_WAITING = 8
"""Requests that wait for the one that is being answered; more are sent away."""
MOST_READING = 64
"""Requests whose pictures are arriving at the same time; more are sent away."""
_FIELD = "picture"
T = TypeVar("T")
# What a form puts around a file.
_ENVELOPE_BYTES = 16 * 2**10


class RefusedError(TrainerError):
    """A picture, or the class asked about, cannot be used. The line is for whoever sent it."""


@dataclass(frozen=True)
class Overlay:
    """What speaks for a class, drawn over a picture."""

    label: str
    probability: float
    png: bytes


@dataclass(frozen=True)
class Network:
    """What the page asks. The functions are called one at a time, from any thread."""

    about: Mapping[str, str]
    """What the page says of the network: {what: which}."""
    predict: Callable[[bytes], list[tuple[str, float]]]
    """An encoded picture -> (class, probability) of all classes, the most probable one first."""
    explain: Callable[[bytes, str], Overlay]
    """An encoded picture and a class, '' for the most probable one -> what speaks for it."""
    method: str
    """How it is explained; '' where it cannot be."""
    thresholds: Mapping[str, float] | None = None
    """Where a picture may have any number of classes, {class: from which probability on it is predicted}."""
    decide: Callable[[Mapping[str, float]], Collection[str]] | None = None
    """{class: probability} -> the classes that are predicted, where no threshold says it; None: the most
    probable one."""


def make_app(network: Network, *, max_upload_bytes: int, hosts: Collection[str], any_address: bool) -> Flask:
    """Returns the application: GET / is the page, POST /predict and /explain answer in JSON.

    A picture is the body of the request, or the field `picture` of a form. Whatever is wrong is told as
    {"error": "..."}: 400 a bad picture, 413 one that is too large, 403 a request that another site's page
    may have made, 408 one that arrives too slowly, 503 too many at once.

    Args:
      network: what is asked.
      max_upload_bytes: the largest picture that is taken.
      hosts: names and addresses, in lower case, that requests may be for. Another name that leads to this
        machine may be somebody's who wants a browser here to tell him the answers (DNS rebinding).
      any_address: whether any address will do that is no name.
    """
    app = Flask("trainer.serving", template_folder=str(Path(__file__).parent), static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = max_upload_bytes + _ENVELOPE_BYTES
    _guard(app, hosts=hosts, any_address=any_address)
    _answer(app, network, max_upload_bytes)
    _tell_errors(app, max_upload_bytes)
    return app


def _guard(app: Flask, *, hosts: Collection[str], any_address: bool) -> None:
    """Refuses what other sites' pages may have asked for, and tells browsers what the page may do."""

    @app.before_request
    def check() -> None:
        g.nonce = secrets.token_urlsafe(16)
        if not _is_known(request.headers.get("Host", ""), hosts=hosts, any_address=any_address):
            abort(403, "this name is not the server's: use the address that it printed")
        origin = request.headers.get("Origin")
        if request.method == "POST" and origin is not None and urlsplit(origin).netloc != request.host:
            abort(403, "a page of another site asked: only the server's own may")

    @app.after_request
    def guard(response: Response) -> Response:
        response.headers["Content-Security-Policy"] = (
            f"default-src 'none'; script-src 'nonce-{g.nonce}'; style-src 'nonce-{g.nonce}'; "
            "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
            "frame-ancestors 'none'"
        )
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers["Cache-Control"] = "no-store"
        return response


def _answer(app: Flask, network: Network, max_upload_bytes: int) -> None:
    """Adds the page and its two questions."""
    turn = _Turn()

    @app.get("/")
    def page() -> str:
        return render_template(
            "page.html",
            nonce=g.nonce,
            about=network.about,
            method=network.method,
            max_upload_bytes=max_upload_bytes,
        )

    @app.post("/predict")
    def predict() -> Response:
        answer = turn.answer(max_upload_bytes, network.predict)
        rows: list[dict[str, Any]] = [{"label": label, "probability": p} for label, p in answer]
        if (thresholds := network.thresholds) is not None:
            rows = [{**row, "predicted": row["probability"] >= thresholds[row["label"]]} for row in rows]
        elif network.decide is not None and (said := set(network.decide(dict(answer)))) != {answer[0][0]}:
            rows = [{**row, "predicted": row["label"] in said} for row in rows]
            rows.sort(key=lambda row: not row["predicted"])
        return jsonify(predictions=rows)

    @app.post("/explain")
    def explain() -> Response:
        if not network.method:
            abort(404, "this network cannot be explained")
        wanted = request.args.get("class", "")
        overlay = turn.answer(max_upload_bytes, lambda data: network.explain(data, wanted))
        image = "data:image/png;base64," + base64.b64encode(overlay.png).decode()
        return jsonify(
            label=overlay.label, probability=overlay.probability, method=network.method, overlay=image
        )


def _tell_errors(app: Flask, max_upload_bytes: int) -> None:
    """Makes every error a line of JSON."""

    @app.errorhandler(HTTPException)
    def told(error: HTTPException) -> tuple[Response, int]:
        return jsonify(error=_words(error, max_upload_bytes)), error.code or 500

    @app.errorhandler(TrainerError)
    def told_failure(error: TrainerError) -> tuple[Response, int]:
        return jsonify(error=str(error)), 400 if isinstance(error, RefusedError) else 500

    @app.errorhandler(Exception)
    def told_bug(error: Exception) -> tuple[Response, int]:
        _log.error("a request failed: %s: %s", type(error).__name__, error)
        return jsonify(error="something went wrong here; the terminal of the server has more"), 500


class _Turn:
    """Answers requests one at a time. Who is slow to send a picture keeps nobody waiting."""

    def __init__(self) -> None:
        self._alone = threading.Lock()
        self._reading = threading.BoundedSemaphore(MOST_READING)
        self._waiting = threading.BoundedSemaphore(1 + MOST_WAITING)

    def answer(self, max_upload_bytes: int, ask: Callable[[bytes], T]) -> T:
        """Returns what `ask` says of the picture that the request brings.

        Raises:
          ServiceUnavailable: too many are sending, or waiting.
        """
        with _place(self._reading, f"{MOST_READING} pictures are being sent already: try again in a moment"):
            data = _picture(max_upload_bytes)
        full = f"{MOST_WAITING} pictures are waiting already: try again in a moment"
        with _place(self._waiting, full), self._alone:
            return ask(data)


@contextmanager
def _place(places: threading.BoundedSemaphore, otherwise: str) -> Iterator[None]:
    """Holds one of some places; raises ServiceUnavailable where there is none."""
    if not places.acquire(blocking=False):
        raise ServiceUnavailable(otherwise)
    try:
        yield
    finally:
        places.release()


def _picture(max_upload_bytes: int) -> bytes:
    """Returns the picture that the request brings."""
    try:
        return _read_picture(max_upload_bytes)
    except ClientDisconnected:
        raise RequestTimeout("the picture had not arrived in time") from None


def _read_picture(max_upload_bytes: int) -> bytes:
    if request.mimetype == "multipart/form-data":
        file = request.files.get(_FIELD)
        if file is None:
            raise RefusedError(f"the form has no file in its field {_FIELD!r}")
        data = file.read()
    else:
        data = request.get_data(cache=False)
    if not data:
        raise RefusedError("no picture was sent, or an empty file")
    if len(data) > max_upload_bytes:
        raise RequestEntityTooLarge
    return data


def _is_known(host: str, *, hosts: Collection[str], any_address: bool) -> bool:
    """Returns whether a Host header, a name or address with or without a port, is the server's."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    return name in hosts or (any_address and _is_address(name))


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _words(error: HTTPException, max_upload_bytes: int) -> str:
    if isinstance(error, RequestEntityTooLarge):
        limit = f"{max_upload_bytes / 2**20:g} MiB"
        return f"the picture is larger than the {limit} that are taken: --max_upload_mb allows more"
    return error.description or error.name
