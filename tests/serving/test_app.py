"""The page and its questions, with a network that knows its answers by heart."""

import base64
import io
import re
import threading
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest

from trainer.serving.app import MOST_WAITING, Network, Overlay, RefusedError, make_app
from trainer.values import TrainerError

NAMES = ["roses", "<script>alert(1)</script>"]
LIMIT = 100_000


class Known:
    """Says of every picture the same, and keeps what it was asked."""

    def __init__(self):
        self.asked = []
        self.before = lambda data: None

    def predict(self, data):
        self.asked.append(data)
        self.before(data)
        return [(NAMES[0], 0.75), (NAMES[1], 0.25)]

    def explain(self, data, label):
        self.asked.append((data, label))
        self.before(data)
        return Overlay(label or NAMES[0], 0.75, b"\x89PNG")


def app_of(known, *, method="Grad-CAM", hosts=("localhost",), any_address=False):
    about = {"run": "</title><script>", "network": "tiny"}
    network = Network(about, known.predict, known.explain, method)
    return make_app(network, max_upload_bytes=LIMIT, hosts=hosts, any_address=any_address)


@pytest.fixture
def served():
    known = Known()
    app = app_of(known)
    return SimpleNamespace(known=known, app=app, client=app.test_client())


def test_a_picture_as_body_or_as_form(served):
    wanted = {
        "predictions": [
            {"label": NAMES[0], "probability": 0.75},
            {"label": NAMES[1], "probability": 0.25},
        ]
    }
    for content_type in ("application/octet-stream", "image/jpeg", "application/x-www-form-urlencoded"):
        response = served.client.post("/predict", data=b"a=picture&", content_type=content_type)
        assert (response.status_code, response.json) == (200, wanted)
    form = {"picture": (io.BytesIO(b"a=picture&"), "../../a.jpg")}
    response = served.client.post("/predict", data=form, content_type="multipart/form-data")
    assert (response.status_code, response.json) == (200, wanted)
    assert served.known.asked == [b"a=picture&"] * 4


def test_of_any_number_of_labels_it_says_which_are_predicted():
    known = Known()
    thresholds = {NAMES[0]: 0.8, NAMES[1]: 0.25}
    network = Network({}, known.predict, known.explain, "", thresholds)
    app = make_app(network, max_upload_bytes=LIMIT, hosts=("localhost",), any_address=False)
    response = app.test_client().post("/predict", data=b"picture")
    assert [one["predicted"] for one in response.json["predictions"]] == [False, True]


@pytest.mark.parametrize("decided", NAMES)
def test_where_a_task_decides_for_another_class_that_one_comes_first_and_says_so(decided):
    known = Known()
    network = Network({}, known.predict, known.explain, "", decide=lambda probabilities: (decided,))
    app = make_app(network, max_upload_bytes=LIMIT, hosts=("localhost",), any_address=False)
    rows = app.test_client().post("/predict", data=b"picture").json["predictions"]
    assert rows[0]["label"] == decided
    said = [] if decided == NAMES[0] else [True, False]
    assert [row["predicted"] for row in rows if "predicted" in row] == said


def test_an_explanation_is_a_picture_in_json(served):
    response = served.client.post("/explain", query_string={"class": NAMES[1]}, data=b"picture")
    image = "data:image/png;base64," + base64.b64encode(b"\x89PNG").decode()
    assert response.json == {"label": NAMES[1], "probability": 0.75, "method": "Grad-CAM", "overlay": image}
    assert served.client.post("/explain", data=b"picture").json["label"] == NAMES[0]
    assert served.known.asked == [(b"picture", NAMES[1]), (b"picture", "")]


def test_a_network_that_cannot_be_explained():
    client = app_of(Known(), method="").test_client()
    response = client.post("/explain", data=b"picture")
    assert (response.status_code, response.json["error"]) == (404, "this network cannot be explained")
    assert "what speaks for it" not in client.get("/").text
    assert client.post("/predict", data=b"picture").status_code == 200


def raise_(error):
    raise error


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (RefusedError("it ends in the middle"), 400, "it ends in the middle"),
        (TrainerError("TensorFlow failed: no memory"), 500, "TensorFlow failed: no memory"),
        (KeyError("secret"), 500, "something went wrong here; the terminal of the server has more"),
    ],
)
def test_errors_are_told_in_words(served, error, status, told):
    served.known.before = lambda data: raise_(error)
    for path in ("/predict", "/explain") * (1 + MOST_WAITING):
        response = served.client.post(path, data=b"picture")
        assert (response.status_code, response.json) == (status, {"error": told})
    # Another request is let through.
    served.known.before = lambda data: None
    assert served.client.post("/predict", data=b"picture").status_code == 200


@pytest.mark.parametrize(
    ("data", "content_type"),
    [
        (b"", "image/png"),
        ({"picture": (io.BytesIO(), "empty.png")}, "multipart/form-data"),
        ({"file": (io.BytesIO(b"picture"), "a.png")}, "multipart/form-data"),
        ({"picture": "no file"}, "multipart/form-data"),
        (b"no form", "multipart/form-data; boundary=x"),
        (b"no form", "multipart/form-data"),
    ],
)
def test_no_picture(served, data, content_type):
    response = served.client.post("/predict", data=data, content_type=content_type)
    assert response.status_code == 400
    assert re.match("no picture was sent|the form has no file in its field 'picture'", response.json["error"])
    assert served.known.asked == []


@pytest.mark.parametrize("form", [False, True])
@pytest.mark.parametrize(("size", "status"), [(LIMIT, 200), (LIMIT + 1, 413), (10 * LIMIT, 413)])
def test_the_limit_on_uploads(served, form, size, status):
    data = {"picture": (io.BytesIO(bytes(size)), "a.png")} if form else bytes(size)
    response = served.client.post("/predict", data=data)
    assert response.status_code == status
    assert len(served.known.asked) == (status == 200)
    if status == 413:
        assert re.search(r"larger than the 0\.09\d+ MiB .*--max_upload_mb", response.json["error"])


def test_what_is_too_large_is_not_read(served):
    def post(size, **length):
        stream = io.BytesIO(bytes(size))
        environ = {"wsgi.input": stream, "wsgi.input_terminated": True, **length}
        status = served.client.post("/predict", environ_overrides=environ).status_code
        return status, stream.tell()

    # Without a length, as where it is sent in chunks.
    assert post(LIMIT) == (200, LIMIT)
    status, read = post(100 * LIMIT)
    assert (status, read < 3 * LIMIT) == (413, True)
    assert post(100 * LIMIT, CONTENT_LENGTH=str(100 * LIMIT)) == (413, 0)


@pytest.mark.parametrize(
    ("host", "known"),
    [
        ("localhost", True),
        ("localhost:8000", True),
        ("LOCALHOST:80", True),
        ("evil.com", False),
        ("evil.com:8000", False),
        ("localhost.evil.com", False),
        ("localhost@evil.com", False),
        ("evil.com#localhost", False),
        ("192.168.0.7:8000", False),
        ("[::1", False),
        ("", False),
    ],
)
def test_requests_for_other_names_are_refused(served, host, known):
    for method, path in (("GET", "/"), ("POST", "/predict"), ("GET", "/nothing")):
        response = served.client.open(path, method=method, data=b"picture", headers={"Host": host})
        assert (response.status_code == 403) is not known
    assert len(served.known.asked) == known


def test_at_all_addresses_any_will_do_that_is_no_name():
    client = app_of(Known(), any_address=True).test_client()
    status = {
        host: client.get("/", headers={"Host": host}).status_code
        for host in ("192.168.0.7:8000", "[fe80::1]:8000", "localhost", "evil.com", "192.168.0.7.evil.com")
    }
    assert list(status.values()) == [200, 200, 200, 403, 403]


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost:8000", 200),
        (None, 200),
        ("http://evil.com", 403),
        ("http://localhost", 403),
        ("http://localhost:8001", 403),
        ("null", 403),
    ],
)
def test_only_its_own_page_may_ask(served, origin, status):
    headers = {"Host": "localhost:8000"} | ({"Origin": origin} if origin else {})
    for path in ("/predict", "/explain"):
        assert served.client.post(path, data=b"picture", headers=headers).status_code == status


def test_headers_of_every_answer(served):
    for response in (
        served.client.get("/"),
        served.client.get("/nothing"),
        served.client.get("/predict"),
        served.client.post("/predict", data=b"picture"),
        served.client.post("/predict", data=bytes(10 * LIMIT)),
        served.client.get("/", headers={"Host": "evil.com"}),
    ):
        policy = response.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'nonce-")
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["Cache-Control"] == "no-store"
        if response.status_code != 200:
            assert list(response.json) == ["error"]
    first, second = (served.client.get("/") for _ in range(2))
    assert first.headers["Content-Security-Policy"] != second.headers["Content-Security-Policy"]


class _Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.texts.append(data)


def test_the_page_holds_all_it_needs_and_text_stays_text(served):
    response = served.client.get("/")
    assert response.content_type == "text/html; charset=utf-8"
    nonce = re.search(r"script-src 'nonce-([^']+)'", response.headers["Content-Security-Policy"])[1]
    page = _Page(response.text)
    assert "What is on it? · </title><script>" in page.texts
    assert [attributes for tag, attributes in page.tags if tag in ("script", "style")] == [
        {"nonce": nonce}
    ] * 2
    for _, attributes in page.tags:
        assert not {"style", "onclick", "onload", "onerror"} & set(attributes)
        assert attributes.get("href", "data:,") == "data:,"
        assert not attributes.get("src")
    assert "//" not in re.sub(r"^\s*// .*$", "", response.text, flags=re.MULTILINE)
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval"):
        assert way not in response.text


def test_one_at_a_time_some_wait_and_more_are_sent_away(served):
    going_on, begun = threading.Event(), threading.Semaphore(0)
    running = []

    def wait(data):
        running.append(data)
        begun.release()
        assert len(running) == 1
        assert going_on.wait(60)
        running.clear()

    served.known.before = wait
    results = []

    def post():
        response = served.app.test_client().post("/predict", data=b"picture")
        results.append((response.status_code, response.json))

    threads = [threading.Thread(target=post) for _ in range(1 + MOST_WAITING + 3)]
    for thread in threads:
        thread.start()
    assert begun.acquire(timeout=60)
    # All but those who have a place are sent away at once.
    for _ in range(6000):
        if len(results) == 3:
            break
        threading.Event().wait(0.01)
    assert [status for status, _ in results] == [503] * 3
    assert "8 pictures are waiting already" in results[0][1]["error"]
    going_on.set()
    for thread in threads:
        thread.join(60)
    assert sorted(status for status, _ in results) == [200] * (1 + MOST_WAITING) + [503] * 3
    assert results[-1][1]["predictions"][0]["label"] == "roses"
