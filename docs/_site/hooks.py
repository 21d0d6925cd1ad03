"""Hooks of MkDocs.

Links of a page to files outside docs/ lead to pages that show these files. They are made when the site is
built, so that it has no dead links and needs no address of a repository. Nothing is loaded from elsewhere.
"""

import json
import os
import posixpath
import re
from pathlib import Path

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)\s#]+)(#[^)\s]*)?\)")
FENCES = {".py": "python", ".flags": "ini", ".html": "html", ".json": "json", ".yml": "yaml"}
SHOWN = "source"
ELSEWHERE = "https://unpkg.com/iframe-worker/shim"
_found: dict[str, str] = {}


def on_files(files: Files, config) -> Files:
    """Adds a page for each file that is linked to, and for those that these link to."""
    _found.clear()
    waiting = [
        (f"docs/{file.src_uri}", Path(file.abs_src_path).read_text(encoding="utf-8"))
        for file in files.documentation_pages()
    ]
    while waiting:
        path, text = waiting.pop()
        for match in LINK.finditer(text):
            target = _target(path, match[1])
            if target.startswith(("docs/", "..")) or target in _found or not (ROOT / target).exists():
                continue
            _found[target] = _page_of(target)
            page = _content(target)
            files.append(File.generated(config, _found[target], content=_without_search(page)))
            if target.endswith(".md") or (ROOT / target).is_dir():
                waiting.append((_place(target), page))
    return files


def on_page_markdown(markdown: str, page, config, files) -> str:
    """Turns links of the repository into those of the site."""
    places = {shown: _place(target) for target, shown in _found.items()}
    path = places.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    here = posixpath.dirname(page.file.src_uri)

    def replaced(match: re.Match[str]) -> str:
        target = _target(path, match[1])
        shown = _found.get(target, target.removeprefix("docs/"))
        if shown == target and not target.startswith("docs/"):
            return match[0]
        return f"]({posixpath.relpath(shown, here or '.')}{match[2] or ''})"

    return LINK.sub(replaced, markdown)


def on_post_page(output: str, page, config) -> str:
    """Takes our own script for the one by which Material searches in pages that were opened from files."""
    root = posixpath.relpath(".", posixpath.dirname(page.url) or ".")
    changed = output.replace(ELSEWHERE, f"{root}/file_search.js")
    if loaded := re.search(r"<(?:script|img|iframe)[^>]* src=\"https?://[^>]*>", changed):
        raise PluginError(f"{page.file.src_uri} would load {loaded[0]} from elsewhere")
    return changed


def on_post_template(output: str, template_name: str, config) -> str:
    """Does the same for the page of addresses that are not there."""
    return output.replace(ELSEWHERE, "/file_search.js")


def _target(path: str, link: str) -> str:
    """Returns where a link of a file leads, from the root of the repository."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), link))


def _place(target: str) -> str:
    """Returns a path in the folder from which the links of a file, or of the page of a folder, lead."""
    return f"{target}/x.md" if (ROOT / target).is_dir() else target


def _page_of(target: str) -> str:
    if (ROOT / target).is_dir():
        return f"{SHOWN}/{target}/files.md"
    if target.endswith("README.md"):
        return f"{SHOWN}/{target.removesuffix('README.md')}about.md"
    return f"{SHOWN}/{target.removesuffix('.md')}.md"


def _content(target: str) -> str:
    path = ROOT / target
    if path.is_dir():
        shown = [one for one in sorted(path.iterdir()) if one.suffix in (".py", ".flags", ".md")]
        lines = [f"- [{one.name}]({one.name})" for one in shown]
        return "\n".join([f"# {target}/", "", *lines]) + "\n"
    text = path.read_text(encoding="utf-8")
    if target.endswith(".md"):
        return text
    if path.suffix == ".ipynb":
        cells = ["".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
        return f"# {target}\n\n" + "\n".join(f"```python\n{cell}\n```\n" for cell in cells)
    kind = FENCES.get(path.suffix, "text")
    return f"# {target}\n\n````{kind}\n{text}````\n"


def _without_search(page: str) -> str:
    return f"---\nsearch:\n  exclude: true\n---\n\n{page}"


assert os.sep == "/", "pages are named by their paths"
