"""Code from outside: loading it, knowing what it was, and keeping a copy with the run.

A plugin is code that the user chose to run. That of a run is loaded from its copy in the workdir, which is
said each time: whoever opens a run that somebody else sent runs their code.
"""

import ast
import contextlib
import hashlib
import importlib.util
import linecache
import logging
import sys
import textwrap
import threading
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer import register
from trainer.paths import local_path
from trainer.registry import Origin, registering, see, versions
from trainer.registry import apart as registries_apart
from trainer.values import TrainerError, UsageError

_log = logging.getLogger("trainer")
# Of a plugin that two threads want, the second one takes what the first one has loaded.
_loading = threading.RLock()


@dataclass(frozen=True)
class Plugin:
    """A file of code. `name` is that of the file, by which a run knows it; `source` is what was loaded."""

    name: str
    path: Path
    source: bytes

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.source).hexdigest()

    @property
    def origin(self) -> Origin:
        """What its entries are registered with: several versions of a file may be in use at once."""
        return Origin(self.name, self.sha256)


loaded: dict[Origin, Plugin] = {}
"""Those of this process, also of other threads; `registry.versions` says which ones are seen."""

# Of each file that --plugin named, what the command has read: an edit under way is for the next command.
_of_command: ContextVar[dict[Path, Plugin] | None] = ContextVar("_of_command", default=None)


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """In the block, and in its thread, only those plugins are seen that the block loads, read once each."""
    token = _of_command.set({})
    try:
        with registries_apart():
            yield
    finally:
        _of_command.reset(token)


def load_plugins(texts: Sequence[str], *, copies: Path | None = None) -> list[Plugin]:
    """Loads what --plugin names, each once, in order; in a command (`apart`), as it was read the first time.

    Args:
      texts: files or modules.
      copies: the folder of copies of the run in --workdir. The flagfile of a run that was moved names them
        where they were.

    Raises:
      UsageError: there is no such file or module, it is more than one file, two have one name, or it fails
        when it is run.
    """
    plugins: list[Plugin] = []
    for text in texts:
        flag = f"--plugin={text}"
        plugin = _found(text, flag=flag, copies=copies)
        if any(other.name == plugin.name for other in plugins):
            raise UsageError(f"{flag}: there is another plugin called {plugin.name}: give one another name")
        plugins.append(plugin)
        with _loading:
            _load(plugin, module="" if _is_path(text) else text, flag=flag)
    return plugins


def load_copies(folder: Path, recorded: Iterable[dict[str, Any]]) -> list[Plugin]:
    """Loads the plugins of a run from its workdir, and says so.

    Args:
      folder: of the copies.
      recorded: [{"name", "sha256"}], what the run recorded.

    Raises:
      TrainerError: a copy is missing, or is not what was recorded.
    """
    plugins = []
    for one in recorded:
        path = folder / Path(one["name"]).name
        if not path.is_file():
            raise TrainerError(f"{path} is missing, a plugin that the run was trained with")
        plugin = Plugin(path.name, path, path.read_bytes())
        if plugin.sha256 != one["sha256"]:
            raise TrainerError(f"{path} is not the plugin that the run was trained with: it was changed")
        if loaded.get(plugin.origin) != plugin:
            _log.info("plugin:      %s, code that came with the run, is loaded", path)
        with _loading:
            _load(plugin, module="", flag=str(path))
        plugins.append(plugin)
    return plugins


def sources(*kinds: str) -> list[bytes]:
    """Returns the sources of the loaded plugins that register something of these kinds, for keys.

    Of what a notebook or a script registers nobody knows all of the source: that is another one each time.
    """
    entries = [
        registry[name]
        for kind, registry in register.registries().items()
        if kind in kinds
        for name in registry
    ]
    origins = {entry.origin for entry in entries if entry.plugin}
    tokens = sorted(entry.token.encode() for entry in entries if entry.is_loose)
    return [*(loaded[origin].source for origin in sorted(origins)), *tokens]


def _is_path(text: str) -> bool:
    return text.endswith(".py") or "/" in text


def _found(text: str, *, flag: str, copies: Path | None) -> Plugin:
    path = local_path(text, flag=flag) if _is_path(text) else _file_of_module(text, flag=flag)
    read = _of_command.get()
    if read is not None and path in read:
        return read[path]
    try:
        place = path
        if copies and path.parent.name == copies.name and not path.exists() and (copies / path.name).exists():
            place = copies / path.name
            _log.info("plugin:      %s is gone, %s is taken", path, place)
        plugin = Plugin(path.name, place, place.read_bytes())
    except OSError as error:
        raise UsageError(f"{flag}: {error.strerror}") from None
    # The copy that a run keeps is one file, of no package.
    if not _is_path(text) and (needs := _import_of_package(plugin)):
        raise _of_several_files(flag, needs)
    if read is not None:
        read[path] = plugin
    return plugin


def _file_of_module(text: str, *, flag: str) -> Path:
    spec = None
    with contextlib.suppress(ImportError, ValueError):
        spec = importlib.util.find_spec(text)
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        raise UsageError(f"{flag} is neither a file such as my_idea.py nor a module that can be imported")
    if spec.submodule_search_locations is not None:
        raise _of_several_files(flag, "is a package")
    return Path(spec.origin)


def _of_several_files(flag: str, needs: str) -> UsageError:
    return UsageError(
        f"{flag} {needs}, and a run keeps a copy of one file: write what it needs into a file that "
        "stands alone, and give that by its path, such as --plugin=my_idea.py"
    )


def _import_of_package(plugin: Plugin) -> str:
    """Returns in words what a module imports by where it is in a package; empty: nothing."""
    try:
        tree = ast.parse(plugin.source)
    except (SyntaxError, ValueError):
        return ""  # Who loads it tells that.
    relative = [one for one in ast.walk(tree) if isinstance(one, ast.ImportFrom) and one.level]
    first = min(relative, key=lambda one: one.lineno, default=None)
    return f"imports from its package ({ast.unparse(first)}, line {first.lineno})" if first else ""


def _load(plugin: Plugin, *, module: str, flag: str) -> None:
    before = versions().get(plugin.name)
    see(plugin.origin)
    if plugin.origin in loaded:
        return
    name = module or f"trainer_plugin_{plugin.path.stem}"
    # First what is ours: of a room that a plugin is the first to import, all would count as the plugin's.
    register.registries()
    try:
        with registering(plugin.origin):
            _execute(plugin, name)
    except Exception as error:
        forget(plugin.origin)
        see(Origin(plugin.name, before or ""))
        sys.modules.pop(name, None)
        if isinstance(error, UsageError):
            raise UsageError(f"{flag}: {error}") from None
        where = _line_of(error, plugin.path)
        raise UsageError(f"{flag} cannot be loaded: {type(error).__name__}: {error}{where}") from error
    loaded[plugin.origin] = plugin


def _execute(plugin: Plugin, name: str) -> None:
    """Runs what was read of a plugin, not what is in its file by now nor what is compiled of it."""
    code = compile(plugin.source, str(plugin.path), "exec", dont_inherit=True)
    text = importlib.util.decode_source(plugin.source)
    # Tracebacks, and AutoGraph, read the lines here; without a time they are not compared with the file.
    linecache.cache[str(plugin.path)] = (len(text), None, text.splitlines(keepends=True), str(plugin.path))
    spec: Any = importlib.util.spec_from_file_location(name, plugin.path)
    made = importlib.util.module_from_spec(spec)
    sys.modules[name] = made
    if package := spec.parent:
        setattr(sys.modules[package], name.rpartition(".")[2], made)
    exec(code, made.__dict__)


class PluginFailure(TrainerError):
    """What a plugin does not do is by its own code; exit status 1."""


@contextlib.contextmanager
def failures_named() -> Iterator[None]:
    """Has what fails in a block in a plugin told by the line of the plugin, and the rest as it was raised.

    Of what fails while TensorFlow traces, AutoGraph makes another error, whose message is the way to it.

    Raises:
      PluginFailure: a plugin failed; its cause has the whole traceback.
    """
    try:
        yield
    except (OSError, MemoryError):
        raise
    except Exception as error:
        raised = _as_raised(error)
        if isinstance(raised, TrainerError):
            raise raised from raised.__cause__
        paths = [str(plugin.path) for plugin in list(loaded.values())]
        if not (lines := [(name, line) for name, line in _lines(raised) if name in paths]):
            raise
        name, line = lines[-1]
        told = textwrap.shorten(f"{type(raised).__name__}: {raised}", 300, placeholder=" ...")
        raise PluginFailure(f"the plugin failed at {name}, line {line}: {told}") from error


def _as_raised(error: BaseException) -> BaseException:
    """Returns the error that AutoGraph has made another one of, or the error itself."""
    context = error.__context__
    if context and str(error).startswith("in user code:") and hasattr(context, "ag_error_metadata"):
        return _as_raised(context)
    return error


def _lines(error: BaseException) -> list[tuple[str, int | None]]:
    """Returns the files and lines on the way to an error, its own last."""
    # Where AutoGraph has rewritten a function, only it knows which lines these were.
    rewritten = getattr(getattr(error, "ag_error_metadata", None), "translated_stack", ())
    frames = [*reversed(rewritten), *traceback.extract_tb(error.__traceback__)]
    return [(frame.filename, frame.lineno) for frame in frames]


def forget(origin: Origin) -> None:
    """Takes what a plugin has registered out of the registries; it can be loaded anew."""
    for registry in register.registries().values():
        registry.forget(origin)
    loaded.pop(origin, None)


def _line_of(error: BaseException, path: Path) -> str:
    """Returns the line of the plugin at which it failed."""
    if isinstance(error, SyntaxError):
        return f" (line {error.lineno})"
    lines = [line for name, line in _lines(error) if name == str(path)]
    return f" (line {lines[-1]})" if lines else ""
