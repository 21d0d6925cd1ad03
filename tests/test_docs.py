"""The pages of docs/ that are made from the code, and where links lead."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_reference_is_current():
    reference = runpy.run_path(str(ROOT / "docs" / "reference.py"))
    # Where it is not, `make docs` writes it.
    assert (ROOT / "docs" / "reference.md").read_text() == reference["page"]()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\((?!https?:)([\w./-]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / link).exists(), link
