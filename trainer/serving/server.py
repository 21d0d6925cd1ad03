"""A socket on this machine, and werkzeug's threaded server behind it."""

import errno
import io
import ipaddress
import logging
import socket
import time
from typing import Any

from werkzeug.serving import WSGIRequestHandler, make_server

from trainer.values import TrainerError, UsageError

_log = logging.getLogger("trainer")
_BACKLOG = 64
# How long a client may stay silent in the middle of a request, and take for all of it.
_SILENT_SECS = 30.0
_REQUEST_SECS = 60.0


class Listener:
    """A socket that listens: what connects before `serve` waits for it.

    `host` is the address it is bound to, `port` its port.
    """

    def __init__(self, bind: str, port: int):
        """Begins to listen.

        Args:
          bind: a name or an address of this machine.
          port: 0: any that is free.

        Raises:
          UsageError: there is no such address.
          TrainerError: the port cannot be had.
        """
        if not bind:
            raise UsageError("--bind is empty: 127.0.0.1 is for this machine only, 0.0.0.0 for all addresses")
        self.bind = bind
        try:
            family, _, _, _, address = socket.getaddrinfo(bind, port, type=socket.SOCK_STREAM)[0]
            self._socket = socket.create_server(address[:2], family=family, backlog=_BACKLOG)
        except (socket.gaierror, UnicodeError) as error:
            raise UsageError(f"--bind={bind} is no address of this machine: {error}") from None
        except OSError as error:
            raise _refusal(bind, port, error) from None
        self.host, self.port = self._socket.getsockname()[:2]

    @property
    def is_local(self) -> bool:
        """Whether only this machine can connect."""
        return ipaddress.ip_address(self.host).is_loopback

    @property
    def is_any(self) -> bool:
        """Whether it listens at all addresses of this machine."""
        return ipaddress.ip_address(self.host).is_unspecified

    @property
    def names(self) -> set[str]:
        """What requests may be for, in lower case."""
        local = {"localhost", "127.0.0.1", "::1"}
        own = {socket.gethostname().lower(), socket.getfqdn().lower()} if self.is_any else set()
        return {*local, *own, self.host, self.bind.lower()}

    @property
    def url(self) -> str:
        """Where this machine finds it."""
        host = "localhost" if self.is_any else self.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    def serve(self, app: Any) -> None:
        """Answers requests with a WSGI application, each in a thread, until Ctrl-C."""
        server = make_server(
            self.host,
            self.port,
            app,
            threaded=True,
            request_handler=_Handler,
            fd=self._socket.fileno(),
        )
        self._socket.close()  # The server has a copy.
        # It returns at Ctrl-C, and does not wait for the threads of requests.
        server.serve_forever()


class _Request(io.RawIOBase):
    """What a client sends, as long as it takes neither too long in between nor for all of it."""

    def __init__(self, connection: socket.socket):
        self._connection, self._ends_at = connection, time.monotonic() + _REQUEST_SECS

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self._ends_at - time.monotonic()
        if left <= 0:
            raise TimeoutError("the request is not whole in time")
        self._connection.settimeout(min(left, _SILENT_SECS))
        try:
            return self._connection.recv_into(buffer)
        finally:
            # The answer is given its own time.
            self._connection.settimeout(_SILENT_SECS)


class _Handler(WSGIRequestHandler):
    timeout = _SILENT_SECS
    server_version, sys_version = "hub-trainer", ""

    def setup(self) -> None:
        super().setup()
        # A connection is for one request: werkzeug closes it after the answer.
        self.rfile = io.BufferedReader(_Request(self.connection))

    def log(self, type: str, message: str, *args: Any) -> None:
        """Says nothing of requests; what fails in one is told by the application."""


def _refusal(bind: str, port: int, error: OSError) -> TrainerError:
    if error.errno == errno.EADDRINUSE:
        return TrainerError(
            f"--port={port} is in use by another program: take another port, or --port=0 for any that is free"
        )
    if error.errno == errno.EACCES:
        return TrainerError(f"--port={port} is for the administrator only: take one from 1024 on")
    if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
        return UsageError(f"--bind={bind} is no address of this machine")
    return TrainerError(f"--bind={bind} --port={port}: {error.strerror}")
