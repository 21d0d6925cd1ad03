"""Python, the packages that setup.py asks for and that training imports, and the encoding of text."""

import ast
import locale
import platform
import shlex
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from trainer.doctor.findings import Finding, ok, problem, warning
from trainer.version import __version__

_ROOT = Path(__file__).resolve().parents[1]
_START = "trainer.commands.train"


def imported_by_training() -> dict[str, list[str]]:
    """Returns {package: import statements}, of all files that training may come to.

    What it imports late, in a function, is among them; what a file does without, in a `try`, is not.
    """
    found: dict[str, list[str]] = {}
    seen: set[Path] = set()
    waiting = list(_files(_START))
    while waiting:
        file = waiting.pop()
        if file in seen:
            continue
        seen.add(file)
        for node in _imports(ast.parse(file.read_text(encoding="utf-8"))):
            modules = (
                [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            )
            for module in modules:
                package = module.partition(".")[0]
                if package == "trainer":
                    names = [] if isinstance(node, ast.Import) else [alias.name for alias in node.names]
                    waiting += [path for name in ("", *names) for path in _files(f"{module}.{name}")]
                elif package not in sys.stdlib_module_names:
                    statements = found.setdefault(package, [])
                    if (statement := ast.unparse(node)) not in statements:
                        statements.append(statement)
    return dict(sorted(found.items()))


def _files(module: str) -> Iterator[Path]:
    """Yields the files that importing a module of ours runs, if there is one of that name."""
    parts = module.rstrip(".").split(".")[1:]
    for depth in range(len(parts) + 1):
        place = _ROOT.joinpath(*parts[:depth])
        for file in (place / "__init__.py", place.with_suffix(".py")):
            if file.is_file():
                yield file


def _imports(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield node
    # What is tried may be missing.
    tried = node.body if isinstance(node, ast.Try) and node.handlers else []
    for part in ast.iter_child_nodes(node):
        if part not in tried:
            yield from _imports(part)


DISTRIBUTION = "hub-trainer"
# Without these, all but one thing works.
NEEDED_ONLY_BY = {
    "flask": "serve",
    "werkzeug": "serve",
    "flatbuffers": "export, which writes into TFLite files what they are",
    "ai-edge-litert": "export, which checks TFLite files in it",
}
# Of the packages that others bring along, the ones that are at fault most often.
OFTEN_AT_FAULT = ("protobuf",)


def check_packages(requirements: Sequence[str] | None = None) -> list[Finding]:
    """Compares what is installed with what this package, and each package that it needs, asks for.

    Args:
      requirements: such as `numpy>=1.26`; by default those of this package as it is installed.
    """
    python = f"Python {platform.python_version()}, {sys.executable}"
    if requirements is None:
        try:
            about = metadata.distribution(DISTRIBUTION)
        except metadata.PackageNotFoundError:
            advice = pip_install("-e", str(Path(__file__).resolve().parents[2]))
            text = f"trainer {__version__} is not installed as a package: what it needs is not known"
            return [ok(python), warning(text, advice)]
        requirements = about.requires or []
        wanted = about.metadata["Requires-Python"] or ""
    else:
        wanted = ""
    try:
        from packaging.requirements import Requirement
        from packaging.specifiers import SpecifierSet
    except ImportError:
        return [ok(python), warning("packaging is missing: no version is compared", pip_install("packaging"))]
    fits = SpecifierSet(wanted).contains(platform.python_version(), prereleases=True)
    first = ok(python) if fits else problem(f"{python}: wanted {wanted}", f"use a Python {wanted}")
    asked = [Requirement(text) for text in requirements]
    asked = [one for one in asked if one.marker is None or one.marker.evaluate({"extra": ""})]
    found = [_check_package(one) for one in asked]
    return [first, ok(f"trainer {__version__}"), *found, *_check_needs_of([one.name for one in asked])]


def _check_package(asked: Any) -> Finding:
    """Looks for what a Requirement asks for."""
    wanted = f"wanted {asked.specifier}" if asked.specifier else "any version"
    try:
        found = metadata.version(asked.name)
    except metadata.PackageNotFoundError:
        advice = pip_install(f"{asked.name}{asked.specifier}")
        if asked.name in NEEDED_ONLY_BY:
            return warning(f"{asked.name} is missing: needed by {NEEDED_ONLY_BY[asked.name]}", advice)
        return problem(f"{asked.name} is missing ({wanted})", advice)
    if not asked.specifier.contains(found, prereleases=True):
        return warning(f"{asked.name} {found} ({wanted})", pip_install(f"{asked.name}{asked.specifier}"))
    return ok(f"{asked.name} {found} ({wanted})")


def _check_needs_of(names: Sequence[str]) -> list[Finding]:
    """Compares what packages ask for with what is there; names what does not fit, and `OFTEN_AT_FAULT`."""
    from packaging.requirements import InvalidRequirement, Requirement

    found: dict[str, Finding] = {}
    for name in names:
        try:
            about = metadata.distribution(name)
            needs = [Requirement(text) for text in about.requires or []]
        except (metadata.PackageNotFoundError, InvalidRequirement):
            continue
        for need in needs:
            if need.marker is not None and not need.marker.evaluate({"extra": ""}):
                continue
            try:
                version = metadata.version(need.name)
            except metadata.PackageNotFoundError:
                version = ""
            wanted = f"{name} {about.version} wants {need.specifier or 'it'}"
            if not version or not need.specifier.contains(version, prereleases=True):
                what = f"{need.name} {version or 'is missing'}: {wanted}"
                found[f"{name} {need.name}"] = warning(what, pip_install(f"{need.name}{need.specifier}"))
            elif need.name in OFTEN_AT_FAULT:
                found.setdefault(need.name, ok(f"{need.name} {version} ({wanted})"))
    return list(found.values())


def pip_install(*arguments: str) -> str:
    """Returns a command line, as a shell takes it."""
    return shlex.join([sys.executable, "-m", "pip", "install", *arguments])


def check_encodings() -> list[Finding]:
    """Looks at what names of files, and what is printed, are encoded in."""
    names, text = sys.getfilesystemencoding(), locale.getpreferredencoding(False)
    printed = getattr(sys.stdout, "encoding", None) or "none"
    told = f"names of files in {names}, text in {text}, standard output in {printed}"
    if all(kind.lower().replace("-", "") == "utf8" for kind in (names, text, printed)):
        return [ok(told)]
    return [
        warning(
            f"{told}: names with other letters are shown wrongly, or fail",
            "set LANG=C.UTF-8, or PYTHONUTF8=1, and leave PYTHONIOENCODING unset",
        )
    ]
