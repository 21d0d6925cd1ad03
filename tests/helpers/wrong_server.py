"""A web server on this machine that misbehaves in the ways that servers and networks do."""

import contextlib
import http.server
import socket
import struct
import threading
from collections.abc import Callable, Iterator

Behaviour = Callable[["Handler", bytes], None]


class Server(http.server.ThreadingHTTPServer):
    """Answers each path with `bodies[path]` in the way of `behaviours[path]`, by default a good one."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.bodies: dict[str, bytes] = {}
        self.behaviours: dict[str, Behaviour] = {}
        self.asked: list[str] = []
        self.reached = threading.Semaphore(0)
        """Released whenever an answer stalls."""
        self.closing = threading.Event()

    def handle_error(self, *_):
        """Clients that leave in the middle are what it is for."""


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        path = self.path.split("?")[0]
        self.server.asked.append(path)
        self.server.behaviours.get(path, good)(self, self.server.bodies.get(path, b""))

    def log_message(self, *_):
        pass

    def begin(self, **headers: object) -> None:
        self.send_response(200)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def stall(self) -> None:
        self.wfile.flush()
        self.server.reached.release()
        self.server.closing.wait(60)


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        thread.join()
        server.server_close()


def good(handler: Handler, body: bytes) -> None:
    handler.begin(Content_Length=len(body))
    handler.wfile.write(body)


def status(code: int) -> Behaviour:
    return lambda handler, body: handler.send_error(code)


def says(data: bytes) -> Behaviour:
    """Sends the same whatever is asked for."""
    return lambda handler, body: good(handler, data)


def stalls(handler: Handler, body: bytes) -> None:
    handler.stall()


def stalls_midway(handler: Handler, body: bytes) -> None:
    handler.begin(Content_Length=len(body))
    handler.wfile.write(body[: len(body) // 2])
    handler.stall()


def drips(handler: Handler, body: bytes, parts: int = 5) -> None:
    """Sends all, slowly."""
    handler.begin(Content_Length=len(body))
    step = len(body) // parts + 1
    for start in range(0, len(body), step):
        handler.wfile.write(body[start : start + step])
        handler.wfile.flush()
        handler.server.closing.wait(0.05)


def tells_no_size(handler: Handler, body: bytes) -> None:
    handler.begin()
    handler.wfile.write(body)


def breaks_off(handler: Handler, body: bytes) -> None:
    """Promises all and sends half."""
    handler.begin(Content_Length=len(body))
    handler.wfile.write(body[: len(body) // 2])


def resets(handler: Handler, body: bytes) -> None:
    """Sends half of it, and then what a crash of the server sends."""
    handler.begin(Content_Length=len(body))
    handler.wfile.write(body[: len(body) // 2])
    _reset(handler)


def resets_at_once(handler: Handler, body: bytes) -> None:
    _reset(handler)


def ends_chunks_early(handler: Handler, body: bytes) -> None:
    handler.protocol_version = "HTTP/1.1"
    handler.begin(Transfer_Encoding="chunked")
    half = body[: len(body) // 2]
    handler.wfile.write(b"%x\r\n%s\r\n" % (len(half), half))
    handler.close_connection = True


def speaks_no_http(handler: Handler, body: bytes) -> None:
    handler.wfile.write(b"220 mail.example.com ESMTP ready\r\n")


def redirects(to: str) -> Behaviour:
    def redirect(handler: Handler, body: bytes) -> None:
        handler.send_response(302)
        handler.send_header("Location", to)
        handler.end_headers()

    return redirect


def redirects_on(handler: Handler, body: bytes) -> None:
    """Leads on and on, to another address each time."""
    handler.server.behaviours[handler.path + "x"] = redirects_on
    redirects(handler.path + "x")(handler, body)


def _reset(handler: Handler) -> None:
    handler.wfile.flush()
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()
