"""What training imports of other packages, as its files say. Standard library only."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

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
