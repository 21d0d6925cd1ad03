"""The page of `serve` in headless Chromium: a picture is dropped, and what it says is read and looked at."""

import base64
import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import trainer
from tests.conftest import call_main, make_flower_folder

pytestmark = pytest.mark.browser
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# A class whose name would do something if it were taken for markup.
RED = "<img src=x onerror=document.title='owned'>"


@pytest.fixture(scope="module")
def served(tmp_path_factory, tiny_backbone):
    root = tmp_path_factory.mktemp("browser")
    source, workdir = make_flower_folder(root / "source"), root / "run"
    (source / "red").rename(source / RED)
    arguments = [
        f"--source=folder:{source}", f"--backbone=savedmodel:{tiny_backbone}", "--image_size=8",
        "--head=linear", "--splits=50%,50%", "--batch_size=4", "--schedule=frozen", "--precision=float32",
        "--frozen_for=10epochs", "--frozen_learning_rate=0.1", f"--workdir={workdir}",
    ]  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        assert call_main("train", *arguments) == 0
    command = [sys.executable, "-m", "trainer.main", "serve", f"--workdir={workdir}", "--port=0"]
    program = subprocess.Popen(
        [*command, "--max_upload_mb=1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        line = program.stdout.readline()
        url = re.search(r"http://\S+", line)
        assert url, (line, *program.communicate())
        yield SimpleNamespace(url=url[0], workdir=workdir, pictures=source)
    finally:
        program.kill()
        program.wait()


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM:
        pytest.skip("there is no Chromium")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(params=["light", "dark"])
def page(served, browser, request):
    """The page, freshly opened. Nothing may be said on its console, and no other server be asked."""
    context = browser.new_context(viewport={"width": 1100, "height": 900}, color_scheme=request.param)
    opened, said, asked = context.new_page(), [], []
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("request", lambda one: asked.append(one.url))
    opened.goto(served.url)
    yield opened
    assert [text for text in said if not text.startswith("Failed to load resource")] == []
    assert [url for url in asked if not url.startswith((served.url, f"blob:{served.url}", "data:"))] == []
    context.close()


def drop(page, path: Path, *, name: str = ""):
    """Drops a file on the page, as a mouse would."""
    data = base64.b64encode(path.read_bytes()).decode()
    transfer = page.evaluate_handle(
        """([data, name]) => {
          const transfer = new DataTransfer();
          const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
          transfer.items.add(new File([bytes], name, {type: "image/jpeg"}));
          return transfer;
        }""",
        [data, name or path.name],
    )
    page.dispatch_event("#drop", "dragenter", {"dataTransfer": transfer})
    page.dispatch_event("#drop", "drop", {"dataTransfer": transfer})


def answered(page):
    """Waits for the overlay, and returns {class: what stands beside it}, in order."""
    page.wait_for_selector("#why:not(.waiting) #overlay[src^='data:image/png']")
    names, shares = (page.locator(f"#bars {part}").all_text_contents() for part in (".name", ".share"))
    return dict(zip(names, shares, strict=True))


def told(share):
    """Returns a probability as the page does."""
    if 0 < share < 0.001:
        return "< 0.1 %"
    return "> 99.9 %" if 0.999 < share < 1 else f"{100 * share:.1f} %"


def test_a_picture_is_dropped(served, page, tmp_path):
    path = served.pictures / RED / "000.jpg"
    drop(page, path, name="<b>red</b>.jpg")
    found = answered(page)
    [wanted] = trainer.load(served.workdir).predict([path])
    ordered = sorted(wanted.probabilities.items(), key=lambda pair: -pair[1])
    assert list(found.items()) == [(name, told(p)) for name, p in ordered]
    assert next(iter(found)) == RED
    assert page.locator("#name").text_content() == "<b>red</b>.jpg"
    assert "What is on it?" in page.title()
    assert page.evaluate("[picture, overlay].map((image) => image.naturalWidth)") == [12, 480]
    shots = Path(os.environ.get("SHOTS_FOLDER", tmp_path))
    page.screenshot(path=shots / "serve.png", full_page=True)
    assert (shots / "serve.png").stat().st_size > 10_000


def test_another_class_is_explained_by_the_keyboard_alone(served, page):
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
    chooser.value.set_files(served.pictures / "green" / "000.jpg")
    first, second, *_ = answered(page)
    assert first == "green"
    before = page.get_attribute("#overlay", "src")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_function("(before) => overlay.src !== before", arg=before)
    assert f"What speaks for {second}" in page.locator("#why-title").text_content()
    pressed = page.locator("#bars [aria-pressed=true] .name").all_text_contents()
    assert pressed == [second]


def test_errors_are_told_in_words_and_the_next_picture_works(served, page, tmp_path):
    cut, large = tmp_path / "cut.jpg", tmp_path / "large.jpg"
    picture = served.pictures / "blue" / "000.jpg"
    cut.write_bytes(picture.read_bytes()[:-30])
    large.write_bytes(bytes(2**20 + 1))
    for path, wanted in ((cut, "it ends in the middle"), (large, "large.jpg has 1.0 MiB, and 1 are taken")):
        drop(page, path)
        page.wait_for_selector("#status.bad")
        assert wanted.lower() in page.locator("#status").text_content().lower()
        assert page.locator("#answer").is_hidden()
    drop(page, picture)
    assert next(iter(answered(page))) == "blue"
    assert page.locator("#status").text_content() == ""


def test_a_server_that_has_gone_is_told(served, page):
    """Nothing is killed: the page is kept from asking."""
    page.context.set_offline(True)
    drop(page, served.pictures / "blue" / "000.jpg")
    page.wait_for_selector("#status.bad")
    assert "has the server been stopped" in page.locator("#status").text_content()
    page.context.set_offline(False)
