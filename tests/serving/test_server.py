"""The socket: addresses, names, and what cannot be had."""

import contextlib
import socket
import threading
import urllib.request

import pytest

from trainer.serving import server
from trainer.serving.app import MOST_WAITING, Network, make_app
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


@pytest.fixture
def answering(monkeypatch):
    """A server that tells how long each picture is; a request may take a second."""
    monkeypatch.setattr(server, "_REQUEST_SECS", 1.0)
    network = Network({}, lambda data: [(str(len(data)), 1.0)], lambda data, wanted: None, method="")
    listener = Listener("127.0.0.1", 0)
    app = make_app(network, max_upload_bytes=2**20, hosts=listener.names, any_address=False)
    threading.Thread(target=listener.serve, args=(app,), daemon=True).start()
    return listener


def head_of(listener, num_bytes):
    return f"POST /predict HTTP/1.1\r\nHost: {listener.host}\r\nContent-Length: {num_bytes}\r\n\r\n".encode()


def answer_to(client):
    client.settimeout(60)
    return b"".join(iter(lambda: client.recv(2**16), b""))


def test_slow_clients_keep_nobody_waiting(answering, monkeypatch):
    monkeypatch.setattr(server, "_REQUEST_SECS", 60.0)
    slow = [socket.create_connection((answering.host, answering.port)) for _ in range(2 * (1 + MOST_WAITING))]
    for i, client in enumerate(slow):
        # Half of them are slow from the first line on.
        client.sendall(head_of(answering, 10) + b"half" if i % 2 else b"POST /pre")
    with OPENER.open(f"{answering.url}/predict", data=b"picture", timeout=60) as response:
        assert response.status == 200
        assert b'"label":"7"' in response.read()
    # And they are answered when they are done.
    slow[1].sendall(b"a half")
    assert b'"label":"10"' in answer_to(slow[1])
    for client in slow:
        client.close()


@pytest.mark.parametrize("begun", ["POST /pre", "POST /predict HTTP/1.1\r\nHost: x\r\nX-"])
def test_a_request_that_never_ends_is_cut_off(answering, begun):
    with socket.create_connection((answering.host, answering.port)) as client:
        client.sendall(begun.encode())
        assert answer_to(client) == b""


def test_a_picture_that_drips_in_is_cut_off_though_it_is_never_silent(answering):
    with socket.create_connection((answering.host, answering.port)) as client:
        client.sendall(head_of(answering, 2**19))
        client.setblocking(False)
        found = b""
        while not found:
            with contextlib.suppress(OSError):
                client.sendall(b"x")
            with contextlib.suppress(BlockingIOError):
                found = client.recv(2**16)
            threading.Event().wait(0.02)
        assert found.startswith(b"HTTP/1.1 408 ")
        client.setblocking(True)
        assert b"had not arrived in time" in found + answer_to(client)
