"""What can be asked for by name, read from the code without running it.

The rooms whose functions are registered import TensorFlow, and who has mistyped a name should not have to
wait for that. But names and typed parameters stand in their text: `@LOSSES.register("focal")` above
`def focal(gamma: float = 2.0, ...)`. Of each such function an empty one with the same positional parameters
is made, and registered in a registry of the same kind, which then says what the real one would say. What
cannot be read so is left to the real one.
"""

import ast
import contextlib
import copy
import functools
import importlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

from trainer.cli.config import Config
from trainer.register import loaded, places
from trainer.registry import AddressRegistry, Registry
from trainer.values import parse_calls

_ROOT = Path(__file__).parent
# What the text of a registration may need, and what imports no TensorFlow.
_LIGHT = ("typing", "math", "trainer.registry", "trainer.values", "trainer.paths", "trainer.cli.options",
          "trainer.applications")  # fmt: skip
_KINDS = {"Registry": Registry, "AddressRegistry": AddressRegistry}


def check_names(config: Config, given: Collection[str]) -> None:
    """Makes sure that what some options name is there, where that can be said without TensorFlow.

    Whether it goes with the other options shows later. For command lines without plugins, which add names.

    Args:
      config: all options.
      given: names of those that were set.

    Raises:
      UsageError: it is not, or its arguments are wrong; the message says what there is.
    """
    values = config.flat()
    for kind, option in _OPTIONS.items():
        if option in given and values[option] != Config().flat()[option]:
            _check(loaded(kind) or stated_registry(kind), values[option], flag=f"--{option}")
    for spec in config.phases if "phase" in given else ():
        for kind, option in _OF_PHASES.items():
            text = str(getattr(spec, option) or "")
            _check(loaded(kind) or stated_registry(kind), text, flag=f"phase {spec.name}: {option}")


# {kind: the option that names one, or several}. Of a source, `data.sources.base.check_source` says more.
_OF_PHASES = {
    "optimizer": "optimizer",
    "schedule": "lr_schedule",
    "augmentation": "augment",
    "average": "average",
}
_OPTIONS = {
    "backbone": "backbone", "head": "head", "task": "task", "loss": "loss", "objective": "objective",
    "gradient_rule": "gradient_rule", "metric": "metrics", "callback": "callbacks", "saliency": "saliency",
    "export_form": "formats",
    **_OF_PHASES,
}  # fmt: skip


def names_of_options() -> dict[str, list[str]]:
    """Returns {option: what can be asked for by it}, without what needs an address or comes with plugins."""
    found: dict[str, list[str]] = {}
    for kind, option in _OPTIONS.items():
        if registry := stated_registry(kind):
            needs = isinstance(registry, AddressRegistry)
            found[option] = [name for name in registry if not (needs and registry[name].parameters)]
    return found


def _check(registry: Registry[Any] | None, value: str, *, flag: str) -> None:
    if isinstance(registry, AddressRegistry):
        registry.choose(value, flag=flag).check()
    elif registry is not None:
        for call in parse_calls(value, flag=flag):
            registry.choose(call, flag=flag)


@functools.cache
def stated_registry(kind: str) -> Registry[Any] | None:
    """Returns what the code registers of a kind, without what plugins add; None where its text does not say.

    Its entries say how they are to be asked for. Calling one gives None.
    """
    module, _, name = places()[kind].partition(":")
    try:
        return _read(module, name)
    except Exception:
        # Whatever it is that a line of code is too clever for: the real registry answers, a little later.
        return None


class _Unclear(Exception):
    """The text alone does not say what is registered."""


def _read(module: str, name: str) -> Registry[Any]:
    path = _ROOT.parent / Path(*module.split("."))
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
    texts = [text for file in files if name in (text := file.read_text(encoding="utf-8"))]
    trees = [ast.parse(text) for text in texts]
    [made] = [call for tree in trees if (call := _making(tree, name))]
    registry: Registry[Any] = _KINDS[ast.unparse(made.func)](
        *map(ast.literal_eval, made.args), **{str(k.arg): ast.literal_eval(k.value) for k in made.keywords}
    )
    for tree in trees:
        _register(registry, tree, name)
    return registry


def _making(tree: ast.Module, name: str) -> ast.Call | None:
    """Returns the call of `LOSSES: Registry[Loss] = Registry(...)`, if it is here."""
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == name:
            return node.value if isinstance(node.value, ast.Call) else None
    return None


def _register(registry: Registry[Any], tree: ast.Module, name: str) -> None:
    calls = {id(node) for node in ast.walk(tree) if _registers(node, name)}
    known = _known(tree)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            # The decorator next to the function is the first to register.
            for call in filter(lambda one: id(one) in calls, reversed(node.decorator_list)):
                _add(registry, call, _emptied(node, known), known)
                calls.remove(id(call))
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and id(node.value.func) in calls:
            # `TASKS.register("single_label")(SingleLabel)`: a class from elsewhere.
            [made] = node.value.args
            home, found = _definition(tree, ast.unparse(made))
            _add(registry, node.value.func, _emptied(found, _known(home)), known)
            calls.remove(id(node.value.func))
    if calls:
        raise _Unclear(f"{name} has entries that are made as the program runs")


def _definition(tree: ast.Module, name: str) -> tuple[ast.Module, ast.FunctionDef | ast.ClassDef]:
    """Returns the module in which what a module calls by a name is defined, and the definition."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return tree, node
        if isinstance(node, ast.ImportFrom) and node.module and name in [one.name for one in node.names]:
            path = (_ROOT.parent / Path(*node.module.split("."))).with_suffix(".py")
            return _definition(ast.parse(path.read_text(encoding="utf-8")), name)
    raise _Unclear(f"where {name} is defined")


def _registers(node: ast.AST, name: str) -> bool:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "register"
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == name
    )


def _add(registry: Registry[Any], call: Any, make: Any, known: dict[str, Any]) -> None:
    [name] = [_value(one, known) for one in call.args]
    facts = {}
    for one in call.keywords:
        # Such as a check that needs TensorFlow.
        with contextlib.suppress(NameError, AttributeError):
            facts[one.arg] = _value(one.value, known)
    registry.register(name, **facts)(make)


def _known(tree: ast.Module) -> dict[str, Any]:
    """Returns what names of a module stand for, as far as that needs nothing heavy."""
    known: dict[str, Any] = {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module in _LIGHT:
            module = importlib.import_module(node.module)
            known |= {one.asname or one.name: getattr(module, one.name) for one in node.names}
        elif isinstance(node, ast.Assign):
            with contextlib.suppress(Exception):
                exec(compile(ast.Module([node], []), "<stated>", "exec"), known)
    return known


def _emptied(node: ast.FunctionDef | ast.ClassDef, known: dict[str, Any]) -> Any:
    """Returns a function with the positional parameters of another, or of a class, that does nothing."""
    if isinstance(node, ast.ClassDef):
        own = [one for one in node.body if isinstance(one, ast.FunctionDef) and one.name == "__init__"]
        if not own:
            return lambda: None
        found = own[0]
    else:
        found = node
    empty = copy.deepcopy(found)
    empty.body, empty.decorator_list, empty.returns = [ast.Pass()], [], None
    empty.args.kwonlyargs, empty.args.kw_defaults, empty.args.kwarg = [], [], None
    empty.args.args = empty.args.args[found is not node :]
    names = dict(known)
    exec(compile(ast.fix_missing_locations(ast.Module([empty], [])), "<stated>", "exec"), names)
    return names[found.name]


def _value(node: ast.expr, known: dict[str, Any]) -> Any:
    return eval(compile(ast.Expression(node), "<stated>", "eval"), dict(known))
