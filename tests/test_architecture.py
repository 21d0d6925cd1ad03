"""Who may import whom, and what only one file may name. A room is a folder of trainer/ or a file in it."""

import ast
import functools
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

TRAINER = Path(__file__).parent.parent / "trainer"
ALLOWED = {
    "version": set(),
    "values": set(),
    "paths": {"values"},
    "registry": {"values"},
    "register": {"registry"},
    "applications": {"values"},
    "stated": {"values", "registry", "register", "cli"},
    "plugins": {"values", "paths", "registry", "register"},
    "runtime": {"values"},
    "cli": {"values", "paths", "registry"},
    "store": {"values", "version", "paths"},
    "metrics": {"values"},
    "tasks": {"values", "registry", "metrics"},
    "serving": {"values"},
    "precision": {"values", "runtime", "store"},
    "data": {"tasks", "values", "paths", "registry", "runtime", "cli", "store"},
    "model": {"tasks", "values", "paths", "registry", "cli", "store", "precision", "applications"},
    "loop": {"tasks", "values", "registry", "runtime", "cli", "precision", "model"},
    "record": {"tasks", "values", "paths", "cli", "store"},
    "report": {"tasks", "values", "paths", "cli", "store", "metrics", "record"},
    "export": {"runtime", "tasks", "values", "paths", "registry", "store", "data", "model", "record"},
    "doctor": {
        *("values", "version", "paths", "runtime", "cli", "store", "precision", "record", "report"),
    },
    "run": {
        *("values", "paths", "runtime", "registry", "register", "plugins", "cli", "store", "metrics"),
        *("tasks", "precision", "data", "model", "loop", "record", "report"),
    },
    "commands": {
        *("values", "version", "paths", "runtime", "register", "plugins", "cli", "store", "metrics"),
        "stated",
        *("tasks", "precision", "data", "model", "loop", "record", "report"),
        *("export", "serving", "doctor", "run"),
    },
    "api": {"values", "paths", "plugins", "cli", "data", "record", "report", "export", "run", "commands"},
    "main": {"values", "runtime", "cli", "commands"},
    "__init__": {"values", "version", "register", "cli"},
}
# What a room may import inside a function, to offer it under its own name: `trainer.load`.
ON_DEMAND = {"__init__": {"api", "run"}}
# Only a session hands callbacks and the loop what they need; a command may look at what they raise.
WIRED_BY_RUN = {"loop.standard_callbacks", "loop.best_and_stop", "loop.loop"}
# The door reads flags; whoever works takes a configuration.
OF_THE_DOOR = {"cli.flags"}
ONLY_IN = {
    "absl.flags": {"cli/flags.py", "main.py"},
    # There is no other public way to what the precision rewriter did.
    "tf.summary": {"record/summaries.py", "precision/rewriter.py"},
    # Where `~` cannot be expanded, a folder of that name would be made.
    "expanduser": {"paths.py"},
    # What not every file system does, or not every system has.
    "flock": {"store/lock.py"},
    "fsync": {"store/files.py"},
    "chmod": {"store/files.py"},
    "sched_getaffinity": {"runtime.py"},
    # It writes what nobody can tell from a damaged one; `record/checkpoints.py` has a record of each.
    "CheckpointManager": set(),
    "a strategy made": {"runtime.py"},
    "an import by name": {"commands/__init__.py", "plugins.py", "register.py", "stated.py"},
    # `store/unpack.py` has limits on what may come out, and its own checks of where it goes.
    "an archive unpacked": set(),
    # It needs pkg_resources for a line, which a stand-in has.
    "tensorflow_hub": {"model/hub.py"},
    # It takes seconds, and has to be told to compute by TensorFlow.
    "Keras 3": {"model/keras3.py"},
    # No public name has what these use, and each goes on without it, or says what is missing.
    "private parts of TensorFlow": {
        "precision/call_options.py",
        "model/graphs.py",
        "export/frozen.py",
        "precision/rewriter.py",
    },
}
# How logits become probabilities and these predictions is asked of the task (`trainer/tasks/`), or scored by
# `metrics` and shown by the report: nobody else names what follows for one kind of label.
MEANINGS = ("argmax", "softmax", "sigmoid", "onehot", "categoricalcrossentropy", "binarycrossentropy")
MAY_NAME_MEANINGS = ("tasks/", "metrics/", "report/")
# Whose use of these words is about no label.
NO_LABELS = {
    "data/pipeline.py": "the first row of a batch that is no padding",
    "data/sources/synthetic/picture.py": "the place for a blossom that is farthest from the others",
    "model/graphs.py": "an activation inside of a network that was exported by others",
    "precision/rewriter.py": "what TensorFlow's rewriter makes of graphs, in words",
}
# A file is as long as its subject; a function fits a screen.
MAX_FUNCTION_LINES = 60
MAX_PARAMETERS = 8
# Larger than that when the rule came; the list only gets shorter.
STILL_TOO_LARGE: set[str] = set()


def module_name(file: str) -> str:
    """Returns e.g. 'loop.state' for loop/state.py; '' for __init__.py."""
    parts = Path(file).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    return module.split(".")[0] or "__init__"


def imports(file: str, text: str, modules: set[str]) -> tuple[set[str], set[str], set[str]]:
    """Returns the modules of trainer that a file imports: anywhere, when it runs, and when it is imported.

    Args:
      file: from trainer/ on.
      text: of the file.
      modules: all there are, as `module_name` gives them.
    """
    anywhere, running, at_once = set(), set(), set()
    for node, place in _import_statements(text):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            base = _absolute(node, file)
            # What is imported may be a module or a name in one.
            names = [f"{base}.{alias.name}" for alias in node.names]
            names = [n if n.removeprefix("trainer.") in modules else base for n in names]
        ours = {n.removeprefix("trainer").lstrip(".") for n in names if n.split(".")[0] == "trainer"}
        anywhere |= ours
        running |= ours if place != "for types" else set()
        at_once |= ours if place == "" else set()
    return anywhere, running, at_once


def with_packages(imported: str, importing: str) -> set[str]:
    """Returns a module and the packages around it, which it runs first, but not those that run already."""
    around = {imported.rsplit(".", count)[0] for count in range(imported.count(".") + 1)}
    return {name for name in around if not f"{importing}.".startswith(f"{name}.")} | {imported}


@functools.cache
def _import_statements(text: str) -> list[tuple[ast.Import | ast.ImportFrom, str]]:
    """Returns [(statement, "" or where it stands: "in a function", or "for types" alone)]."""
    return [
        (node, place)
        for node, place in _nodes(ast.parse(text), "")
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]


def _nodes(tree: ast.AST, place: str):
    for node in ast.iter_child_nodes(tree):
        yield node, place
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            inside = "for types"
        else:
            inside = place or "in a function" * isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        yield from _nodes(node, inside)


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
                found |= {"Keras 3"} if name.startswith(("keras.", "keras_hub.")) else set()
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


def meanings(text: str) -> list[str]:
    """Returns which of MEANINGS a file names, in its words as in its code."""
    letters = text.lower().replace("_", "")
    return [word for word in MEANINGS if word in letters]


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
        anywhere, running, at_once = imports(file, text, modules)
        for imported in sorted(anywhere):
            on_demand = ON_DEMAND.get(room, set()) if imported not in at_once else set()
            if room_of(imported) not in {room, *ALLOWED[room], *on_demand}:
                found.append(f"{file}: {room} may not import {imported or 'trainer'}")
            if imported in WIRED_BY_RUN and room not in ("run", "commands", "loop"):
                found.append(f"{file}: only run may import {imported}")
            if imported in OF_THE_DOOR and room not in ("main", "api", "commands", "cli"):
                found.append(f"{file}: only the door may import {imported}")
        graph[module] = {one for name in running for one in with_packages(name, module)} - {module}
        found += [
            f"{file}: {thing} belongs only in {', '.join(sorted(ONLY_IN[thing])) or 'no file'}"
            for thing in sorted(named(text))
            if file not in ONLY_IN[thing]
        ]
        if not file.startswith(MAY_NAME_MEANINGS) and file not in NO_LABELS:
            found += [
                f"{file}: {word} belongs only in {', '.join(MAY_NAME_MEANINGS)}: ask the task"
                for word in meanings(text)
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


def test_no_file_may_name_what_it_does_not():
    assert [file for file in NO_LABELS if not meanings(texts()[file])] == []


def test_no_exception_from_the_size_of_functions_is_left_over():
    large = {f"{file}:{name}" for file, text in texts().items() for name in too_large(text)}
    assert large == STILL_TOO_LARGE


WRONG = {
    "__init__.py": [("from trainer import commands", "__init__.py: __init__ may not import commands")],
    "values.py": [("from trainer import paths", "values.py: values may not import paths")],
    "runtime.py": [
        ("from trainer.cli.config import Config", "runtime.py: runtime may not import cli.config")
    ],
    "store/places.py": [
        ("import trainer.cli.config", "store/places.py: store may not import cli.config"),
        ("from trainer.data import sources", "store/places.py: store may not import data.sources"),
    ],
    "store/downloads.py": [
        ("tarfile.open('x').extractall()", "store/downloads.py: an archive unpacked belongs only in no file"),
        ("shutil.unpack_archive('x')", "store/downloads.py: an archive unpacked belongs only in no file"),
    ],
    "cli/phase_specs.py": [
        ("from trainer.cli.config import Config", "circle: cli.config > cli.phase_specs"),
        (
            "def f():\n    from trainer.cli.config import Config",
            "imports go in a circle: cli.config > cli.phase_specs",
        ),
    ],
    "cli/config.py": [
        ("from trainer.runtime import versions", "cli/config.py: cli may not import runtime"),
        ("from ..data import sources", "cli/config.py: cli may not import data.sources"),
    ],
    "precision/rewriter.py": [
        (
            "from trainer.cli.config import Config",
            "precision may not import cli.config",
        ),
    ],
    "data/pipeline.py": [
        ("import os\nos.path.expanduser('~')", "data/pipeline.py: expanduser belongs only in paths.py"),
        ("import fcntl\nfcntl.flock(1, 2)", "data/pipeline.py: flock belongs only in store/lock.py"),
        ("import os\nos.fsync(1)", "data/pipeline.py: fsync belongs only in store/files.py"),
    ],
    "data/sources/folder.py": [
        ("import tensorflow_hub as hub", "folder.py: tensorflow_hub belongs only in model/hub.py"),
        (
            "def f():\n    from tensorflow.python.eager import context",
            "folder.py: private parts of TensorFlow belongs only in export/frozen.py, model/graphs.py",
        ),
        ("from trainer.model.heads import Head", "folder.py: data may not import model.heads"),
        ("def f():\n    import trainer.loop.phases as p", "folder.py: data may not import loop.phases"),
        ("from ...record import workdir", "folder.py: data may not import record.workdir"),
        ("from trainer.cli import flags", "folder.py: only the door may import cli.flags"),
        ("from absl import flags", "folder.py: absl.flags belongs only in cli/flags.py, main.py"),
        ("from absl import app", "folder.py: absl.flags belongs only in cli/flags.py, main.py"),
        ("import absl.flags as f", "folder.py: absl.flags belongs only in cli/flags.py, main.py"),
        (
            "import importlib\nimportlib.import_module('x')",
            "folder.py: an import by name belongs only in commands",
        ),
    ],
    "data/sources/synthetic/drawing.py": [
        (
            "from trainer.data.sources.synthetic import picture",
            "circle: data.sources.synthetic.drawing > data.sources.synthetic.picture",
        )
    ],
    "commands/serve.py": [
        ("label = int(probabilities.argmax())", "commands/serve.py: argmax belongs only in tasks/"),
    ],
    "loop/losses.py": [
        ("tf.nn.log_softmax(logits)", "loop/losses.py: softmax belongs only in tasks/"),
        ("tf.one_hot(labels, 3)", "loop/losses.py: onehot belongs only in tasks/"),
        (
            "tf_keras.losses.SparseCategoricalCrossentropy()",
            "loop/losses.py: categoricalcrossentropy belongs",
        ),
    ],
    "export/frozen.py": [("tf.math.sigmoid(logits)", "export/frozen.py: sigmoid belongs only in tasks/")],
    "model/backbones/kerashub.py": [
        ("def f():\n    import keras_hub", "kerashub.py: Keras 3 belongs only in model/keras3.py"),
        ("from keras import layers", "kerashub.py: Keras 3 belongs only in model/keras3.py"),
    ],
    "model/heads.py": [
        ("class A:\n    from trainer.data import splits", "model/heads.py: model may not import data.splits"),
        ("if True:\n    from trainer import commands", "model/heads.py: model may not import commands"),
    ],
    "report/writer.py": [
        (
            "from trainer.loop.evaluator import Evaluation",
            "report may not import loop.evaluator",
        ),
        ("import tensorflow as tf\ntf.summary.scalar", "tf.summary belongs only in precision/rewriter.py"),
        ("from tensorflow import summary", "tf.summary belongs only in precision/rewriter.py"),
        (
            "import tensorflow as tf\ntf.compat.v1.summary",
            "tf.summary belongs only in precision/rewriter.py",
        ),
        ("x.train.CheckpointManager()", "CheckpointManager belongs only in no file"),
        ("from tensorflow.train import CheckpointManager", "CheckpointManager belongs only in no file"),
    ],
    "loop/state.py": [
        ("from trainer.run.arithmetic import Arithmetic", "loop may not import run.arithmetic"),
        ("from trainer.record.summaries import Summaries", "loop may not import record.summaries"),
        ("from trainer.data import pipeline", "loop/state.py: loop may not import data.pipeline"),
        ("import trainer", "loop/state.py: loop may not import trainer"),
        (
            "tf.distribute.MirroredStrategy()",
            "loop/state.py: a strategy made belongs only in runtime.py",
        ),
    ],
    "loop/loop.py": [
        ("def f():\n    pass" + "\n" * 59 + "    pass", "loop/loop.py: f has 61 lines and 0 parameters"),
        ("def g(a, b, *, c, d, e, f, g, h, i): pass", "loop/loop.py: g has 1 lines and 9 parameters"),
    ],
    "export/models.py": [
        ("from trainer.loop.loop import train", "export/models.py: only run may import loop.loop"),
    ],
    "run/experiment.py": [
        ("from trainer import commands", "run/experiment.py: run may not import commands"),
    ],
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


def test_tests_stand_where_what_they_test_stands():
    """A folder of tests is a room; `helpers` holds none."""
    tests = Path(__file__).parent
    rooms = {path.relative_to(TRAINER).as_posix() for path in TRAINER.rglob("*") if path.is_dir()}
    folders = {path.parent.relative_to(tests).as_posix() for path in tests.rglob("test_*.py")} - {"."}
    assert folders <= rooms
