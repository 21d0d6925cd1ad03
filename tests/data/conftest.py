"""What the tests of sources share: options with empty caches, and a web server."""

import http.server
import threading

import pytest

from trainer.data.sources import SourceOptions


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def options(tmp_path) -> SourceOptions:
    return SourceOptions(
        cache_dir=str(tmp_path / "cache"), data_dir=str(tmp_path / "tfds"), synthetic_examples=12
    )


class Server:
    """A web server on this machine, whose answers a test may spoil."""

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.status = 200
        self.missing_bytes = 0
        self.silent = threading.Event()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.asked.append(self.path)
                if outer.silent.is_set():
                    outer.stop_waiting.wait(5)
                    return
                if outer.status != 200 or self.path not in outer.files:
                    self.send_error(outer.status if outer.status != 200 else 404)
                    return
                data = outer.files[self.path]
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data[: len(data) - outer.missing_bytes])

            def log_message(self, *args):
                pass

        self.stop_waiting = threading.Event()
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        ).start()

    def close(self):
        self.stop_waiting.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def server():
    made = Server()
    yield made
    made.close()
