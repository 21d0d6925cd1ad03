"""The pages of docs/ that are made from the code, and where links lead."""

import re
import runpy
from pathlib import Path

import pytest

import trainer
from tests.helpers import pages
from trainer import register

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_the_reference_is_current():
    reference = runpy.run_path(str(ROOT / "docs" / "reference.py"))
    # Where it is not, `make docs` writes it.
    assert (ROOT / "docs" / "reference.md").read_text() == reference["page"]()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\((?!https?:)([\w./-]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / link).exists(), link


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_each_block_says_what_it_is_and_each_exception_why(page):
    """`make test-docs` runs them; a block of another kind, or a misspelt note, would be passed over."""
    text = page.read_text()
    found = pages.blocks(text)
    # Each fence is one of a pair.
    assert 2 * len(found) == len(re.findall(r"^ *```", text, re.MULTILINE))
    for block in found:
        assert block.kind in pages.KINDS, block.text
        assert {*block.notes} <= {*pages.NOTES}, block.text
        assert len(block.notes.get("not run", "a reason")) > 5
    notes = [what for block in found for what, text in block.notes.items() for _ in text.splitlines()]
    assert len(notes) == len(re.findall(r"^ *<!--", text, re.MULTILINE))


def test_every_public_symbol_is_on_the_page_of_the_api():
    """What `trainer` offers, what registers, and what plugins may import."""
    shown = set(re.findall(r"^::: ([\w.]+)$", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE))
    last = {name.rpartition(".")[2] for name in shown}
    assert {*trainer.__all__} - {"__version__", "Options", "register"} <= last
    assert {f"trainer.register.{kind}" for kind in register.KINDS} <= shown
    text = (ROOT / "docs" / "extending.md").read_text()
    for module, names in re.findall(r"^\| `(trainer\.[\w.]+)` \| (.*) \|$", text, re.MULTILINE):
        assert {*re.findall(r"`(\w+)`", names)} <= last, module
    assert len(last) > 50
