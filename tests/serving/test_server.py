"""The socket: addresses, names, and what cannot be had."""

import socket
import threading
import urllib.request

import pytest

from trainer.serving.server import Listener
from trainer.values import TrainerError, UsageError

# No proxy that the machine, or another test, has set.
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@pytest.mark.parametrize(
    ("bind", "is_local", "is_any"),
    [
        ("127.0.0.1", True, False),
        ("127.0.0.2", True, False),
        ("localhost", True, False),
        ("0.0.0.0", False, True),
    ],
)
def test_who_can_connect(bind, is_local, is_any):
    listener = Listener(bind, 0)
    assert (listener.is_local, listener.is_any) == (is_local, is_any)
    assert {"localhost", "127.0.0.1", "::1", bind} <= listener.names
    assert (socket.gethostname().lower() in listener.names - {"localhost"}) is is_any
    assert listener.url == f"http://{'localhost' if is_any else listener.host}:{listener.port}"
    assert listener.port > 0


def test_requests_wait_until_they_are_answered_and_each_has_a_thread():
    listener, both = Listener("127.0.0.1", 0), threading.Barrier(2, timeout=60)

    def app(environ, start):
        both.wait()
        start("200 OK", [("Content-Length", "2")])
        return [b"ok"]

    def get():
        with OPENER.open(listener.url, timeout=60) as response:
            return response.read(), response.headers["Server"].strip()

    found = []
    clients = [threading.Thread(target=lambda: found.append(get())) for _ in range(2)]
    for client in clients:
        client.start()
    threading.Thread(target=listener.serve, args=(app,), daemon=True).start()
    for client in clients:
        client.join(60)
    assert found == [(b"ok", "hub-trainer")] * 2


def test_a_port_is_for_one():
    first = Listener("127.0.0.1", 0)
    with pytest.raises(TrainerError, match=rf"^--port={first.port} is in use by another program.*--port=0"):
        Listener("127.0.0.1", first.port)


@pytest.mark.parametrize(
    "bind", ["no.such.host.invalid", "203.0.113.7", "a" * 70 + ".com", "..", "300.1.1.1"]
)
def test_no_address_of_this_machine(bind):
    with pytest.raises(UsageError, match=r"^--bind=.* is no address of this machine"):
        Listener(bind, 0)
    with pytest.raises(UsageError, match="--bind is empty"):
        Listener("", 0)
