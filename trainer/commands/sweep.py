"""`sweep`: trains many runs with other options, and names the best one."""

import contextlib
import dataclasses
import importlib.util
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tensorflow as tf
import tf_keras

from trainer.cli.config import Config
from trainer.cli.declare import budget_secs
from trainer.cli.flags import CommandLine
from trainer.cli.search import check_space, corners, read_space
from trainer.commands import train
from trainer.plugins import failures_named
from trainer.record.workdir import Workdir
from trainer.run.combinations import check_options
from trainer.run.experiment import Experiment, told_pictures
from trainer.run.head_trials import OF_HEADS, HeadTrials, Outcome, Told, why_not_alone
from trainer.run.scoring import measure_names, require_metric
from trainer.runtime import StopSignal
from trainer.store.files import set_mode, write_text
from trainer.values import Interrupted, MachineError, TrainerError, UsageError, in_words, lacks_memory

if TYPE_CHECKING:
    from trainer.run.sweep import Asked

_log = logging.getLogger("trainer")
FLAGFILE = "sweep.flags"


def run(line: CommandLine, stop: StopSignal) -> int:
    """Does what is left of the trials, repeats the best, writes the page, and returns the exit status."""
    if not importlib.util.find_spec("optuna"):
        raise TrainerError("sweep needs Optuna: pip install 'hub-trainer[sweep]'")
    from trainer.run.sweep import Asked, Sweep  # Late: Optuna is an extra, and takes a second.
    from trainer.run.sweep_results import write_results

    config = line.config
    workdir = Workdir(config.run.workdir)
    if workdir.run_json.exists():
        raise TrainerError(f"--workdir={workdir.root} holds a run: sweep needs a folder of its own")
    if budget_secs(budget := config.plan.budget):
        raise UsageError(
            f"--budget={budget}: each trial would measure for itself what fits into it, and come to another "
            "recipe. Set lengths for all of them, such as --finetune_for=2epochs, or take --budget=quick"
        )
    space = read_space(config.sweep.search, config.sweep.space)
    for end in check_space(config, line.given, space):
        check_options(end)
    asked = Asked(config, line.given, space)
    workdir.make()
    gpus = tf.config.list_physical_devices("GPU")
    if config.sweep.jobs > 1 and len(gpus) > 1:
        # The others are those of the other jobs.
        tf.config.set_visible_devices(gpus[:1], "GPU")
    with stop.deferred():
        experiment = _first_that_begins(asked)
        _check_metric(asked, experiment)
        heads = _heads(asked, experiment)
        # Where options of the pictures are searched, trials are not of the same ones.
        pictures = None if _searches_pictures(asked) else experiment.told_pictures()
        if heads is None:
            # Trials open their own.
            del experiment
            tf_keras.backend.clear_session()

        def require(now: Mapping[str, Sequence[Any]]) -> None:
            if pictures is not None:
                sweep.study.require_pictures(now)

        train_run = _Runs(line.given, stop, require)
        sweep = Sweep(asked, heads=heads, train=train_run, requested=stop.requested)
        require(pictures or {})
        # What is set by hand there is what is set by hand here: trials differ by it.
        write_text(workdir.root / FLAGFILE, config.flags_of([name for name in line.given if name != "jobs"]))
        # The address of a database may have a password in it.
        set_mode(workdir.root / FLAGFILE, 0o600)
        with _helpers(config, workdir.root, stop, num_gpus=len(gpus)):
            sweep.work()
        sweep.repeat()
        write_results(sweep.result())
    return 0


def _heads(asked: "Asked", experiment: Experiment) -> HeadTrials | None:
    """Returns what trains heads over kept features, if all trials are of that kind."""
    options = {dimension.option.partition(".")[0] for dimension in _dimensions(asked.space)}
    why = ""
    if others := sorted(options - OF_HEADS):
        why = f"--{others[0]} is searched"
    elif not all(_trains_head(end) for end in check_space(asked.config, asked.given, asked.space)):
        why = "they, or some of them, train the network, change pictures or fit a head"
    else:
        why = why_not_alone(experiment)
    if why:
        _log.info("sweep:       each trial is a run of its own, in trials/, as %s", why)
        return None
    _log.info("sweep:       trials are heads over kept features, in this process")
    return HeadTrials(experiment, decided={})


def _trains_head(config: Config) -> bool:
    """Returns whether a trial trains a head and nothing else, on pictures as they are, and fits none."""
    return not config.fitted_head and all(
        spec.train == ("head/",) and spec.bn == "frozen" and not spec.augment for spec in config.phases
    )


def _first_that_begins(asked: "Asked") -> Experiment:
    """Opens pictures and network of a trial, so that what is wrong with all trials is told before the first.

    A corner that cannot be opened, such as one whose weights are missing, is a trial that fails, as long as
    another one can be.

    Raises:
      MachineError: the machine is in the way.
      TrainerError: no end of the space can be opened; it is what is wrong with the first.
    """
    why: TrainerError | None = None
    for texts in corners(asked.space):
        try:
            with failures_named():
                return Experiment(asked.of_trial(texts, asked.folder / "trials" / "first"))
        except MachineError:
            raise
        except TrainerError as error:
            why = why or error
        except Exception as error:
            if not lacks_memory(error):
                raise
            # Of the error itself nothing is kept: it holds what there is too little memory for.
            why = why or TrainerError(in_words(error))
    assert why
    raise why


def _check_metric(asked: "Asked", experiment: Experiment) -> None:
    """Refuses a --metric that no trial will have, as far as it does not depend on the pictures of each.

    Raises:
      UsageError: it is one.
    """
    if _searches_pictures(asked):
        return
    ends = check_space(asked.config, asked.given, asked.space)
    found = [measure_names(experiment, metrics) for metrics in {end.update.metrics: None for end in ends}]
    names = list(dict.fromkeys(name for of_one in found for name in of_one))
    require_metric(asked.metric, names)


def _searches_pictures(asked: "Asked") -> bool:
    """Returns whether an option is searched that says which pictures there are, or how they are divided."""
    of_pictures = {field.name for field in dataclasses.fields(asked.config.data)}
    return bool(of_pictures & {dimension.option for dimension in _dimensions(asked.space)})


def _dimensions(space: Any) -> Iterator[Any]:
    for dimension in space:
        yield dimension
        for one in dimension.alternatives:
            yield from _dimensions(one.then)


class _Runs:
    """Trains a trial as a run of its own, which goes on where it was stopped."""

    def __init__(
        self,
        given: Mapping[str, Any],
        stop: StopSignal,
        require: Callable[[Mapping[str, Sequence[Any]]], None],
    ):
        """Notes what all runs have in common; `require` refuses pictures that are not those of the sweep."""
        self._given, self._stop, self._require = given, stop, require

    def __call__(self, config: Config, *, told: Told, requested: Callable[[], str]) -> Outcome:
        workdir = Workdir(config.run.workdir)
        is_checked = False

        def asked() -> str:
            nonlocal is_checked
            if not is_checked and workdir.run_json.exists():
                # Early: as long as there is no checkpoint, the folder is not one of these pictures.
                self._require(_pictures_of(workdir))
                is_checked = True
            return requested()

        watch = _Watch(self._stop, workdir.metrics_jsonl, told, asked)
        _log.info("trial:       %s", workdir.root)
        try:
            line = CommandLine("train", config, dict(self._given))
            train.run(line, watch, is_one_of_many=True)
        except Interrupted:
            if not watch.ended:
                raise
        finally:
            # A trial leaves its graphs behind.
            tf_keras.backend.clear_session()
        self._require(_pictures_of(workdir))
        values = _validations(workdir.metrics_jsonl)
        if watch.ended:
            step = max(values)
            return Outcome(values[step], step, watch.ended)
        step = workdir.read_facts()["finished"]["best_step"]
        return Outcome(values[step], step)


def _pictures_of(workdir: Workdir) -> dict[str, tuple[int, str]]:
    """Returns what `told_pictures` says of those of a run."""
    names, weights = workdir.read_facts()["class_names"], workdir.read_weights_digest()
    return told_pictures(workdir.read_splits(), class_names=names, weights=weights)


class _Watch:
    """A stop signal that also ends a run when what is told of its evaluations says so."""

    def __init__(self, stop: StopSignal, metrics: Path, told: Told, requested: Callable[[], str]):
        self._stop, self._metrics, self._told, self._asked = stop, metrics, told, requested
        self._size, self._count = -1, 0
        self.ended = ""

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        # The sweep around it has deferred signals already, and hears of them between trials.
        yield

    def received(self) -> str:
        return self._stop.received()

    def requested(self) -> str:
        self.ended = self.ended or self._look()
        return self._asked() or self.ended

    def _look(self) -> str:
        """Tells of evaluations that nobody has been told of, and returns why the run is to end."""
        size = self._metrics.stat().st_size if self._metrics.exists() else 0
        if size == self._size:
            return ""
        self._size = size
        for values in list(_validations(self._metrics).values())[self._count :]:
            self._count += 1
            if why := self._told(self._count, values):
                return why
        return ""


def _validations(metrics: Path) -> dict[int, dict[str, float]]:
    """Returns {step: numbers of validation} of a run, in order."""
    found = {}
    for text in metrics.read_text().splitlines() if metrics.exists() else ():
        line = json.loads(text)
        if line.pop("split") == "validation":
            step = line.pop("step")
            found[step] = {name: value for name, value in line.items() if name not in ("epoch", "phase")}
    return found


@contextlib.contextmanager
def _helpers(config: Config, folder: Path, stop: StopSignal, *, num_gpus: int) -> Iterator[None]:
    """Runs all of --jobs but this one, which work on the same study, and ends them when this one is ended."""
    children = []
    for number in range(1, config.sweep.jobs):
        log = folder / f"job-{number + 1}.log"
        environment = dict(os.environ)
        if num_gpus > 1:
            environment["CUDA_VISIBLE_DEVICES"] = _gpu_of(number, num_gpus)
        command = [sys.executable, "-m", "trainer.main", "sweep", f"--flagfile={folder / FLAGFILE}"]
        with open(log, "ab") as out:
            how: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": out}
            # In a group of its own: of Ctrl-C it hears from here.
            children.append(subprocess.Popen(command, **how, env=environment, process_group=0))
        _log.info("job:         process %d, %s", children[-1].pid, log)
    is_told = False
    try:
        yield
    except BaseException:
        is_told = True
        _tell(children)
        raise
    finally:
        while any(child.poll() is None for child in children):
            if stop.requested() and not is_told:
                is_told = True
                _tell(children)
            time.sleep(0.2)
        for number, child in enumerate(children, 2):
            if child.returncode not in (0, 75, -signal.SIGTERM):
                _log.warning("job %d ended with status %d: see job-%d.log", number, child.returncode, number)


def _gpu_of(number: int, num_gpus: int) -> str:
    """Returns what CUDA calls the GPU of a job: one of those that this process may see."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = [name.strip() for name in visible.split(",")] if visible.strip() else [*map(str, range(num_gpus))]
    return names[number % num_gpus]


def _tell(children: Sequence[subprocess.Popen[bytes]]) -> None:
    """Tells processes to save and stop."""
    for child in children:
        child.send_signal(signal.SIGTERM)
