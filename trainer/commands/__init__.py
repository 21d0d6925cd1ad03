"""The verbs of the command line, a file each: wiring only. The rooms do the work.

A new verb is a file here with `run(line) -> exit status`, and a line in `flags.COMMANDS`. Those in
`STOPPABLE` have a state to save when they are told to stop.
"""

import contextlib
import importlib
import logging
import shlex
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from trainer import plugins, register
from trainer.cli.flags import CommandLine
from trainer.cli.search import check_space, read_space
from trainer.data.sources.base import check_apart, check_source
from trainer.data.sources.joined import parts_of
from trainer.paths import settle_home
from trainer.record.workdir import Workdir
from trainer.run.team import settled
from trainer.runtime import (
    StopSignal,
    has_joined,
    named_cluster,
    require_one_machine,
    start_tensorflow,
    unsupported_system,
)
from trainer.stated import check_names
from trainer.values import TrainerError, UsageError, called

_log = logging.getLogger("trainer")
# They read files, or try TensorFlow in a process of its own.
WITHOUT_TENSORFLOW = ("compare", "doctor", "recipes", "completion")
TRAINING = ("train", "cross_validate", "find_lr", "benchmark", "learning_curve", "audit", "sweep", "features")
# They save and stop when they are told to.
STOPPABLE = ("train", "cross_validate", "sweep")
NEED_NO_WORKDIR = ("inspect", "benchmark", "compare", "doctor", "features", "recipes", "completion")
# Whoever asks for nothing at all has just installed it.
_FIRST_TRY = (
    f"A first try, which needs no data: {called()} recipes demo, then "
    f"{called()} --flagfile=experiments/demo.flags --workdir=runs/demo"
)


def run(line: CommandLine) -> int:
    """Runs a command and returns the exit status; it sees the plugins that it loads, and no others."""
    with plugins.failures_named(), plugins.apart():
        return _run(line)


def _run(line: CommandLine) -> int:
    if line.command not in STOPPABLE:
        return opened(line).run(line)
    _check(line)
    run = line.config.run
    signals = [name for name in run.stop_signals.split(",") if name]
    # Before TensorFlow, whose import takes seconds in which a signal may come, too.
    with StopSignal.installed(signals, max_minutes=run.max_minutes) as stop:
        room = start(line.command)
        plugins.load_plugins(run.plugin, copies=_copies(line))
        return room.run(line, stop)


def opened(line: CommandLine) -> ModuleType:
    """Returns the module of a command that is about to work: TensorFlow has started, plugins are loaded.

    Raises:
      UsageError: the command lacks something, or a plugin cannot be loaded.
      TrainerError: this machine cannot run it, or a plugin of the run is not what it was.
    """
    _check(line)
    room = start(line.command)
    if line.command not in WITHOUT_TENSORFLOW:
        _load_plugins(line)
    return room


def _check(line: CommandLine) -> None:
    workdir = line.config.run.workdir
    needs_none = line.command in NEED_NO_WORKDIR or (line.command == "predict" and line.config.predict.model)
    if line.command == "train":
        settled(line.config)
    elif line.command in TRAINING:
        require_one_machine(line.command)
    elif line.command not in WITHOUT_TENSORFLOW:
        _tell_alone(line.command)
    if line.command == "sweep":
        sweep = line.config.sweep
        check_space(line.config, line.given, read_space(sweep.search, sweep.space))
    # Before TensorFlow, whose import takes seconds. What a plugin adds is known after that.
    of_plugins = line.config.run.plugin or (workdir and Workdir(workdir).plugins.exists())
    if "source" in line.given and line.command in (*TRAINING, "inspect", "evaluate") and not of_plugins:
        check_source(line.given["source"])
    if workdir and line.command in TRAINING:
        scheme, _, address = line.config.data.source.partition(":")
        joined = parts_of(address, flag="--source") if scheme == "joined" else [f"{scheme}:{address}"]
        for one in joined:
            check_apart(one, Workdir(workdir).root)
    if not of_plugins:
        check_names(line.config, line.given)
    if not workdir and not needs_none:
        raise UsageError(_needs_workdir(line))
    if line.command == "predict" and workdir and (source := line.given.get("source")):
        _require_own_source(Workdir(workdir), source)
    if line.command == "predict" and not line.paths and (sys.stdin is None or sys.stdin.isatty()):
        raise UsageError(
            "predict needs pictures: files, folders or patterns behind the options, or a list of paths on "
            "standard input"
        )


def _require_own_source(workdir: Workdir, source: str) -> None:
    """Tells who names new pictures as a run's own were named where they belong."""
    if workdir.run_json.exists() and workdir.read_config().data.source != source:
        path = shlex.quote(source.removeprefix("folder:"))
        raise UsageError(
            f"--source={source}: what is to be predicted stands behind the options: predict "
            f"--workdir={shlex.quote(str(workdir.root))} {path}"
        )


def _needs_workdir(line: CommandLine) -> str:
    """Returns what to say to who has not said where the results go, or which run is meant."""
    told = f"{line.command} needs --workdir=FOLDER"
    if line.command in ("serve", "explain", "evaluate") and line.given.get("model"):
        return f"{told}, the folder of the run: an exported model is taken by predict --model alone"
    if line.command in TRAINING:
        first_try = f". {_FIRST_TRY}" if line.command == "train" and not line.given else ""
        return f"{told}, where its results go, such as --workdir=runs/mine{first_try}"
    run = next((path for path in line.paths if Workdir(path).run_json.exists()), "RUN")
    return f"{told}, the folder of a run: {line.command} --workdir={run}"


def _tell_alone(command: str) -> None:
    """Warns where others seem to be meant to take part."""
    with contextlib.suppress(UsageError):
        cluster = named_cluster()
        if cluster and cluster.named_by == "TF_CONFIG":
            count = len(cluster.addresses)
            _log.warning("TF_CONFIG lists %d workers, and %s works on this machine alone", count, command)


def _load_plugins(line: CommandLine) -> None:
    """Loads what --plugin names, and what the run was trained with: of a dry run, what `train` would."""
    plugins.load_plugins(line.config.run.plugin, copies=_copies(line))
    workdir = Workdir(line.config.run.workdir)
    if line.config.run.workdir and workdir.run_json.exists() and not line.is_dry:
        plugins.load_copies(workdir.plugins, workdir.read_facts().get("plugins", []))


def _copies(line: CommandLine) -> Path | None:
    """Returns where the run in --workdir, if any is asked for, keeps its plugins."""
    return Workdir(line.config.run.workdir).plugins if line.config.run.workdir else None


def named_help(argv: Sequence[str], *, about: str = "") -> str:
    """Returns what can be asked for by name, that of the plugins in a command line included.

    Args:
      argv: the command line.
      about: an option whose values are told; empty: all.
    """
    start("inspect")
    plugins.load_plugins([text.partition("=")[2] for text in argv if text.startswith("--plugin=")])
    lines: list[str] = []
    for registry in register.registries().values():
        if about not in ("", registry.flag.removeprefix("--")):
            continue
        lines += ["", f"{registry.what} (--{registry.flag.removeprefix('--')}):"]
        for name in registry:
            entry = registry[name]
            plugin = f"[plugin {entry.plugin}]" if entry.plugin else ""
            text = " ".join(filter(None, [entry.help, entry.source, plugin]))
            lines += [
                f"  {registry.usage(name)}",
                *(f"      {line}" for line in textwrap.wrap(text, width=78)),
            ]
    return "\n".join(lines) + "\n"


def start(command: str) -> ModuleType:
    """Starts TensorFlow where a command needs it, once a process, and returns the command's module.

    Raises:
      TrainerError: this machine cannot run it.
    """
    if problem := unsupported_system():
        raise TrainerError(problem)
    settle_home()
    if command not in WITHOUT_TENSORFLOW:
        # First of all, because whatever imports TensorFlow settles how loud it is.
        start_tensorflow()
    return importlib.import_module(f"trainer.commands.{command}")


def has_the_run() -> bool:
    """Returns whether the folder of a run that has just ended is here: of several workers, at the chief."""
    cluster = named_cluster()
    return not has_joined() or cluster is None or cluster.index == 0
