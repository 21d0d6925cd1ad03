"""`serve` as a real process: what it prints, answers and refuses, and how it ends."""

import base64
import io
import json
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import trainer
from trainer.model.saliency import Explainer
from trainer.serving.server import Listener
from trainer.values import TrainerError

# No proxy that the machine, or another test, has set.
pytestmark = pytest.mark.usefixtures("figures_undrawn")

OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))

NAMES = ["blue", "green", "red"]
MAX_PIXELS = 10_000


@pytest.fixture(scope="module")
def trained(colours, tmp_path_factory):
    """A run on three colours whose pictures are gone; `pictures` is a copy of them."""
    root = tmp_path_factory.mktemp("serve")
    with colours.pictures_away(root) as pictures:
        yield SimpleNamespace(workdir=colours.copy(root), pictures=pictures)


@pytest.fixture(scope="module")
def served(trained):
    """The program, serving. At the end Ctrl-C ends it, without a word and with status 0."""
    command = [sys.executable, "-m", "trainer.main", "serve", f"--workdir={trained.workdir}", "--port=0"]
    options = ["--max_upload_mb=1", f"--max_pixels={MAX_PIXELS}"]
    program = subprocess.Popen(
        [*command, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell lets what it starts in the background ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        line = program.stdout.readline()
        found = re.fullmatch(r"serving (http://127\.0\.0\.1:\d+) \(Ctrl-C ends it\)\n", line)
        assert found, (line, *program.communicate())
        yield SimpleNamespace(url=found[1], **vars(trained))
        program.send_signal(signal.SIGINT)
        out, err = program.communicate(timeout=60)
        assert (program.returncode, out, err) == (0, "", "")
    finally:
        program.kill()
        program.wait()


def ask(url, data=None, **headers):
    """Returns (status, body) of a GET, or of a POST of data."""
    request = urllib.request.Request(url, data, {"Content-Type": "application/octet-stream", **headers})
    try:
        with OPENER.open(request, timeout=60) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def test_the_page_and_its_address(served):
    status, body = ask(served.url)
    assert status == 200
    assert b"integrated gradients" in body
    assert ask(served.url, Host="rebound.example")[0] == 403
    assert ask(f"{served.url}/predict", b"x", Origin="http://evil.example")[0] == 403


@pytest.mark.parametrize("name", ["red/000.jpg", "green/001.jpg", "blue/002.jpg"])
def test_probabilities_are_those_of_predict(served, name):
    path = served.pictures / name
    status, body = ask(f"{served.url}/predict", path.read_bytes())
    [wanted] = trainer.load(served.workdir).predict([path])
    found = {one["label"]: one["probability"] for one in json.loads(body)["predictions"]}
    assert status == 200
    assert found == pytest.approx(wanted.probabilities, rel=1e-5)
    assert next(iter(found)) == name.split("/")[0]
    assert list(found.values()) == sorted(found.values(), reverse=True)


def test_the_overlay_is_bright_where_the_class_is(served):
    pixels = np.zeros((60, 80, 3), np.uint8)
    pixels[:, :40, 0] = pixels[:, 40:, 1] = 220
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    for label, left_is_hot in (("red", True), ("green", False)):
        status, body = ask(f"{served.url}/explain?class={label}", file.getvalue())
        answer = json.loads(body)
        assert (status, answer["label"], answer["method"]) == (200, label, "integrated gradients")
        start, _, image = answer["overlay"].partition(",")
        assert start == "data:image/png;base64"
        overlay = np.asarray(Image.open(io.BytesIO(base64.b64decode(image))).convert("L"), float)
        assert overlay.shape == (360, 480)
        left, right = overlay[:, :240].mean(), overlay[:, 240:].mean()
        assert (left > 1.3 * right) == left_is_hot
        assert (right > 1.3 * left) != left_is_hot
    status, body = ask(f"{served.url}/explain?class=mauve", file.getvalue())
    assert (status, json.loads(body)["error"]) == (
        400,
        "class=mauve is none of the classes of this run: blue, green, red",
    )


def test_bad_pictures_are_told_in_words(served):
    good = (served.pictures / "red" / "000.jpg").read_bytes()
    large = io.BytesIO()
    Image.new("RGB", (MAX_PIXELS // 10, 11)).save(large, "PNG")
    for data, status, told in (
        (good[:-30], 400, "this picture cannot be read: it ends in the middle"),
        (b"text", 400, "this picture cannot be read: it is none of JPEG, PNG, GIF, BMP and WebP"),
        (large.getvalue(), 400, "1000x11"),
        (bytes(2**20 + 1), 413, "larger than the 1 MiB that are taken"),
        (bytes(5 * 2**20), 413, "larger than the 1 MiB that are taken"),
        (b"", 400, "no picture was sent"),
    ):
        for path in ("/predict", "/explain"):
            found, body = ask(served.url + path, data)
            assert (found, told in json.loads(body)["error"]) == (status, True), body
    assert ask(f"{served.url}/predict", good)[0] == 200


def test_what_is_no_request_harms_nothing(served):
    host, port = served.url.removeprefix("http://").split(":")
    for data in (
        b"",
        b"\x16\x03\x01\x02\x00",
        b"GET\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
    ):
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            assert b"Traceback" not in b"".join(iter(lambda c=connection: c.recv(65536), b""))
    assert ask(served.url)[0] == 200


def test_a_port_that_is_taken(served, run_main):
    port = served.url.rsplit(":", 1)[1]
    status, _, err = run_main("serve", f"--workdir={served.workdir}", f"--port={port}")
    wanted = "is in use by another program: take another port, or --port=0 for any that is free"
    assert (status, err) == (1, f"trainer: --port={port} {wanted}\n")


@pytest.mark.parametrize("bind", ["", "no.such.host.invalid", "203.0.113.7"])
def test_an_address_that_is_none(trained, run_main, bind):
    status, _, err = run_main("serve", f"--workdir={trained.workdir}", f"--bind={bind}", "--port=0")
    assert (status, err.count("\n")) == (2, 1)
    assert err.startswith(f"trainer: --bind{'=' if bind else ' '}{bind}")


@pytest.mark.parametrize("bind", ["127.0.0.1", "localhost", "0.0.0.0"])
def test_it_warns_where_others_can_use_it(trained, run_main, monkeypatch, bind):
    monkeypatch.setattr(Listener, "serve", lambda self, app: None)
    status, out, err = run_main("serve", f"--workdir={trained.workdir}", f"--bind={bind}", "--port=0")
    *warning, line = out.splitlines()
    assert (status, err) == (0, "")
    assert re.fullmatch(r"serving http://(localhost|127\.0\.0\.1|\[::1\]):\d+ \(Ctrl-C ends it\)", line)
    told = [f"--bind={bind}: anybody on the network can use this page"]
    assert warning == (told if bind == "0.0.0.0" else [])


def test_a_network_that_cannot_be_explained_is_served_without(trained, run_main, monkeypatch):
    apps = []
    monkeypatch.setattr(Listener, "serve", lambda self, app: apps.append(app))
    monkeypatch.setattr(Explainer, "explain", lambda *_: raise_(TrainerError("it has no gradient")))
    status, out, _ = run_main("serve", f"--workdir={trained.workdir}", "--port=0")
    assert (status, out.splitlines()[0]) == (0, "the page will not say why: it has no gradient")
    data = (trained.pictures / "red" / "000.jpg").read_bytes()
    client = apps[0].test_client()
    assert client.post("/predict", data=data).status_code == 200
    assert client.post("/explain", data=data).status_code == 404


def raise_(error):
    raise error
