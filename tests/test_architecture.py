"""Who may import whom, and what only one file may name. A room is a folder of trainer/ or a file in it."""

import ast
import functools
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

TRAINER = Path(__file__).parent.parent / "trainer"
BELOW = {"values", "registry", "paths", "caches", "files", "file_lock", "phase_specs", "options", "config"}
ALLOWED = {
    "__init__": {"register", "options", "values"},
    "register": {"registry"},
    "plugins": {"values", "paths", "registry", "register"},
    "values": set(),
    "registry": {"values"},
    "paths": {"values"},
    "caches": {"paths"},
    "files": {"values"},
    "file_lock": {"files"},
    "phase_specs": {"values"},
    "options": {"values", "registry", "phase_specs"},
    "config": {"values", "registry", "phase_specs", "options"},
    "machine": set(),
    "provenance": {"__init__"},
    "network": set(),
    "hub": set(),
    "downloads": {"values", "files", "network"},
    "archives": {"values", "files", "file_lock"},
    "runtime": {"values"},
    "call_options": set(),
    "precision": {"values", "caches", "files", "machine", "provenance", "call_options"},
    "measures": {"values"},
    "data": BELOW | {"machine", "network", "downloads", "archives", "provenance"},
    "model": BELOW | {"network", "hub", "downloads", "archives", "call_options"},
    "record": BELOW | {"measures"},
    "export": {*BELOW, "measures", "precision", "data", "model", "record"},
    "serving": {"values", "files"},
    "doctor": {
        "__init__",
        "values",
        "paths",
        "caches",
        "files",
        "hub",
        "file_lock",
        "phase_specs",
        "machine",
        "precision",
        "record",
        "runtime",
    },
    "loop": {"values", "registry", "phase_specs", "options", "config", "precision", "model"},
    "bit_rule": {"phase_specs", "options", "config"},
    "combinations": {"values", "phase_specs", "config", "data", "model", "loop"},
    "experiment": {
        "plugins",
        "values",
        "caches",
        "bit_rule",
        "combinations",
        "phase_specs",
        "config",
        "runtime",
        "precision",
        "data",
        "model",
        "loop",
    },
    "arithmetic": {
        *BELOW,
        "register",
        "plugins",
        "provenance",
        "precision",
        "experiment",
        "data",
        "model",
        "loop",
    },
    "feature_cache": {*BELOW, "plugins", "experiment", "data", "model"},
    "stages": {*BELOW, "precision", "arithmetic", "feature_cache", "experiment", "data", "model", "loop"},
    "flags": {"values", "paths", "options", "config"},
    "commands": {
        *BELOW,
        "__init__",
        "register",
        "plugins",
        "runtime",
        "machine",
        "provenance",
        "flags",
        "precision",
        "experiment",
        "arithmetic",
        "feature_cache",
        "stages",
        "data",
        "model",
        "loop",
        "record",
        "measures",
        "export",
        "serving",
        "doctor",
    },
    "api": {"values", "paths", "options", "flags", "commands", "experiment", "data", "record", "export"},
    "main": {"values", "machine", "flags", "runtime", "commands"},
}
# What a room may import inside a function, to offer it under its own name: `trainer.load`.
ON_DEMAND = {"__init__": {"api", "experiment"}}
# Only commands hands callbacks and the loop what they need.
WIRED_BY_COMMANDS = {"loop.guard", "loop.standard_callbacks", "loop.judges", "loop.loop"}
ONLY_IN = {
    "absl.flags": {"flags.py", "main.py"},
    # There is no other public way to what the precision rewriter did.
    "tf.summary": {"record/summaries.py", "precision/rewriter.py"},
    # Where `~` cannot be expanded, a folder of that name would be made.
    "expanduser": {"paths.py"},
    # What not every file system does, or not every system has.
    "flock": {"file_lock.py"},
    "fsync": {"files.py"},
    "chmod": {"files.py"},
    "sched_getaffinity": {"machine.py"},
    # It writes what nobody can tell from a damaged one; `record/checkpoints.py` has a record of each.
    "CheckpointManager": set(),
    "a strategy made": {"runtime.py"},
    "an import by name": {"commands/__init__.py", "plugins.py", "register.py"},
    # trainer.archives has limits on what may come out, and its own checks of where it goes.
    "an archive unpacked": set(),
    # It needs pkg_resources for a line, which a stand-in has.
    "tensorflow_hub": {"hub.py"},
    # No public name has what these use, and each goes on without it, or says what is missing.
    "private parts of TensorFlow": {
        "call_options.py",
        "model/inference_graphs.py",
        "export/frozen.py",
        "precision/rewriter.py",
    },
}
# A file is as long as its subject; a function fits a screen.
MAX_FUNCTION_LINES = 60
MAX_PARAMETERS = 8
# Larger than that when the rule came; the list only gets shorter.
STILL_TOO_LARGE = {
    "record/report/writer.py:write_report",
    "serving/app.py:make_app",
}


def module_name(file: str) -> str:
    """Returns e.g. 'loop.judges' for loop/judges.py; '' for __init__.py."""
    parts = Path(file).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    return module.split(".")[0] or "__init__"


def imports(file: str, text: str, modules: set[str]) -> tuple[set[str], set[str]]:
    """Returns the modules of trainer that a file imports: anywhere in it, and when it is itself imported.

    Args:
      file: from trainer/ on.
      text: of the file.
      modules: all there are, as `module_name` gives them.
    """
    anywhere, at_once = set(), set()
    for node, nested in _import_statements(text):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            base = _absolute(node, file)
            # What is imported may be a module or a name in one.
            names = [f"{base}.{alias.name}" for alias in node.names]
            names = [n if n.removeprefix("trainer.") in modules else base for n in names]
        ours = {n.removeprefix("trainer").lstrip(".") for n in names if n.split(".")[0] == "trainer"}
        anywhere |= ours
        at_once |= set() if nested else ours
    return anywhere, at_once


@functools.cache
def _import_statements(text: str) -> list[tuple[ast.Import | ast.ImportFrom, bool]]:
    """Returns [(statement, whether it is in a function, or for type checkers alone)]."""
    return [
        (node, nested)
        for node, nested in _nodes(ast.parse(text), False)
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]


def _nodes(tree: ast.AST, nested: bool):
    for node in ast.iter_child_nodes(tree):
        yield node, nested
        never = isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        inside = never or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        yield from _nodes(node, nested or inside)


def _absolute(node: ast.ImportFrom, file: str) -> str:
    if not node.level:
        return node.module or ""
    package = ("trainer", *Path(file).parts)[: -node.level]
    return ".".join([*package, *([node.module] if node.module else [])])


@functools.cache
def named(text: str) -> set[str]:
    """Returns which of the keys of ONLY_IN a file names."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            base = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            for alias in node.names:
                name = f"{base}.{alias.name}".lstrip(".") + "."
                # absl.app brings the flags of all libraries with it.
                found |= {"absl.flags"} if name.startswith(("absl.flags.", "absl.app.")) else set()
                is_summary = name.startswith("tensorflow.") and ".summary." in name
                found |= {"tf.summary"} if is_summary else set()
                found |= {"tensorflow_hub"} if name.startswith("tensorflow_hub.") else set()
                private = ("tensorflow.python.", "tensorflow_datasets.core.", "tf_keras.src.")
                found |= {"private parts of TensorFlow"} if name.startswith(private) else set()
                found |= {"CheckpointManager"} if alias.name == "CheckpointManager" else set()
        elif isinstance(node, ast.Attribute):
            found |= {node.attr} & ONLY_IN.keys()
            root = node
            while isinstance(root, ast.Attribute):
                root = root.value
            of_tensorflow = isinstance(root, ast.Name) and root.id in ("tf", "tensorflow")
            found |= {"tf.summary"} if node.attr == "summary" and of_tensorflow else set()
        elif isinstance(node, ast.Call):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            found |= {"a strategy made"} if called.endswith("Strategy") else set()
            found |= {"an archive unpacked"} if called in ("extractall", "unpack_archive") else set()
            found |= {"an import by name"} if called in ("import_module", "__import__") else set()
    return found


@functools.cache
def too_large(text: str) -> dict[str, str]:
    """Returns {function: its size in words} of those over a limit, nested ones included."""
    found = {}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            parameters = len([*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs])
            if lines > MAX_FUNCTION_LINES or parameters > MAX_PARAMETERS:
                found[node.name] = f"{lines} lines and {parameters} parameters"
    return found


@functools.cache
def texts() -> dict[str, str]:
    """Returns {file, from trainer/ on: its text}."""
    return {path.relative_to(TRAINER).as_posix(): path.read_text() for path in sorted(TRAINER.rglob("*.py"))}


def violations(files: dict[str, str]) -> list[str]:
    """Returns what breaks the rules in a tree of {file: text}, a line each."""
    found = []
    graph: dict[str, set[str]] = {}
    modules = {module_name(file) for file in files}
    for file, text in files.items():
        module = module_name(file)
        room = room_of(module)
        if room not in ALLOWED:
            found.append(f"{file}: {room} is in no room of the table")
            continue
        anywhere, at_once = imports(file, text, modules)
        for imported in sorted(anywhere):
            on_demand = ON_DEMAND.get(room, set()) if imported not in at_once else set()
            if room_of(imported) not in {room, *ALLOWED[room], *on_demand}:
                found.append(f"{file}: {room} may not import {imported or 'trainer'}")
            if imported in WIRED_BY_COMMANDS and room not in ("commands", "loop"):
                found.append(f"{file}: only commands may import {imported}")
        # Registries import their entries when asked for one; that is no cycle.
        graph[module] = at_once - {module}
        found += [
            f"{file}: {thing} belongs only in {', '.join(sorted(ONLY_IN[thing])) or 'no file'}"
            for thing in sorted(named(text))
            if file not in ONLY_IN[thing]
        ]
        found += [
            f"{file}: {name} has {size}"
            for name, size in sorted(too_large(text).items())
            if f"{file}:{name}" not in STILL_TOO_LARGE
        ]
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        found.append(f"imports go in a circle: {' > '.join(sorted(set(error.args[1])))}")
    return found


def test_the_rules_are_kept():
    assert violations(texts()) == []


def test_the_table_has_no_circle_and_no_room_that_is_not_there():
    TopologicalSorter({room: allowed - {room} for room, allowed in ALLOWED.items()}).prepare()
    assert set(ALLOWED) == {room_of(module_name(file)) for file in texts()}
    for file in set().union(*ONLY_IN.values()):
        assert (TRAINER / file).is_file()


def test_no_exception_from_the_size_of_functions_is_left_over():
    large = {f"{file}:{name}" for file, text in texts().items() for name in too_large(text)}
    assert large == STILL_TOO_LARGE


WRONG = {
    "__init__.py": [("from trainer import commands", "__init__.py: __init__ may not import commands")],
    "values.py": [("from trainer import config", "values.py: values may not import config")],
    "caches.py": [("import trainer.cli.config", "caches.py: caches may not import config")],
    "phase_specs.py": [("from trainer.cli.config import Config", "phase_specs may not import config")],
    "config.py": [
        ("from trainer.runtime import versions", "config.py: config may not import runtime"),
        ("from .data import sources", "config.py: config may not import data.sources"),
    ],
    "runtime.py": [("from trainer.cli.config import Config", "runtime.py: runtime may not import config")],
    "precision/rewriter.py": [
        ("from trainer.runtime import versions", "rewriter.py: precision may not import runtime"),
        ("from trainer.cli.config import Config", "rewriter.py: precision may not import config"),
    ],
    "data/order.py": [
        ("import os\nos.path.expanduser('~')", "data/order.py: expanduser belongs only in paths.py"),
        ("import fcntl\nfcntl.flock(1, 2)", "data/order.py: flock belongs only in file_lock.py"),
        ("import os\nos.fsync(1)", "data/order.py: fsync belongs only in files.py"),
    ],
    "data/folder.py": [
        ("import tensorflow_hub as hub", "data/folder.py: tensorflow_hub belongs only in hub.py"),
        (
            "def f():\n    from tensorflow.python.eager import context",
            "data/folder.py: private parts of TensorFlow belongs only in call_options.py, export/frozen.py",
        ),
        ("from trainer.model.heads import Head", "data/folder.py: data may not import model.heads"),
        ("def f():\n    import trainer.loop.phases as p", "data/folder.py: data may not import loop.phases"),
        ("from ..record import workdir", "data/folder.py: data may not import record.workdir"),
        ("from absl import flags", "data/folder.py: absl.flags belongs only in flags.py, main.py"),
        ("from absl import app", "data/folder.py: absl.flags belongs only in flags.py, main.py"),
        ("import absl.flags as f", "data/folder.py: absl.flags belongs only in flags.py, main.py"),
        (
            "import importlib\nimportlib.import_module('x')",
            "data/folder.py: an import by name belongs only in commands",
        ),
    ],
    "downloads.py": [
        ("tarfile.open('x').extractall()", "downloads.py: an archive unpacked belongs only in no file"),
        ("shutil.unpack_archive('x')", "downloads.py: an archive unpacked belongs only in no file"),
    ],
    "data/drawing.py": [("from trainer.data import blooms", "circle: data.blooms > data.drawing")],
    "model/heads.py": [
        ("class A:\n    from trainer.data import splits", "model/heads.py: model may not import data.splits"),
        ("if True:\n    from trainer import commands", "model/heads.py: model may not import commands"),
    ],
    "record/report/writer.py": [
        (
            "from trainer.loop.evaluator import Evaluation",
            "record/report/writer.py: record may not import loop.evaluator",
        ),
        (
            "import tensorflow as tf\ntf.summary.scalar",
            "tf.summary belongs only in precision/rewriter.py",
        ),
        ("from tensorflow import summary", "tf.summary belongs only in precision/rewriter.py"),
        (
            "import tensorflow as tf\ntf.compat.v1.summary",
            "tf.summary belongs only in precision/rewriter.py",
        ),
        ("x.train.CheckpointManager()", "CheckpointManager belongs only in no file"),
        ("from tensorflow.train import CheckpointManager", "CheckpointManager belongs only in no file"),
    ],
    "loop/judges.py": [
        ("from trainer.run.arithmetic import Arithmetic", "loop may not import arithmetic"),
        ("from trainer.record.summaries import Summaries", "loop may not import record.summaries"),
        (
            "from trainer.data import pipeline",
            "loop/judges.py: loop may not import data.pipeline",
        ),
        ("import trainer", "loop/judges.py: loop may not import trainer"),
        (
            "tf.distribute.MirroredStrategy()",
            "loop/judges.py: a strategy made belongs only in runtime.py",
        ),
    ],
    "loop/loop.py": [
        ("def f():\n    pass" + "\n" * 59 + "    pass", "loop/loop.py: f has 61 lines and 0 parameters"),
        ("def g(a, b, *, c, d, e, f, g, h, i): pass", "loop/loop.py: g has 1 lines and 9 parameters"),
    ],
    "experiment.py": [
        ("from trainer.record import workdir", "experiment.py: experiment may not import record.workdir"),
        (
            "from trainer.loop.standard_callbacks import Save",
            "experiment.py: only commands may import loop.standard_callbacks",
        ),
    ],
    "flags.py": [("from trainer import phase_specs", "flags.py: flags may not import phase_specs")],
    "main.py": [("from trainer.data import sources", "main.py: main may not import data.sources")],
    "news.py": [("", "news.py: news is in no room of the table")],
}


@pytest.mark.parametrize(
    ("file", "text", "message"), [(file, *case) for file, cases in WRONG.items() for case in cases]
)
def test_a_broken_rule_is_noticed(file, text, message):
    broken = {**texts(), file: f"{texts().get(file, '')}\n{text}\n"}
    assert [line for line in violations(broken) if message in line]


@pytest.mark.parametrize("module", ["trainer", "trainer.main", "trainer.cli.flags", "trainer.store.places"])
def test_the_door_loads_no_tensorflow(module):
    heavy = "{'tensorflow', 'numpy', 'tf_keras', 'tensorflow_hub', 'PIL'}"
    code = f"import sys, {module}; sys.exit(', '.join({heavy} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
