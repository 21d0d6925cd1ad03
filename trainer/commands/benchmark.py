"""`benchmark`: how fast an experiment is here, part by part, without leaving a run behind."""

import logging
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from trainer.cli.flags import CommandLine
from trainer.loop.phases import Phase
from trainer.loop.stopwatch import Stopwatch, timed
from trainer.model.backbones import libraries_of
from trainer.paths import local_path
from trainer.precision import apart, in_precision
from trainer.record.workdir import Workdir
from trainer.run.experiment import Experiment
from trainer.run.new_pictures import named_pictures
from trainer.run.session import make_stages
from trainer.run.stages import Stages
from trainer.runtime import machine, peak_memory_mb
from trainer.store.files import require_place, write_json
from trainer.store.provenance import versions
from trainer.values import TrainerError
from trainer.version import __version__

_log = logging.getLogger("trainer")
FORMAT = 1
# One measurement repeats its work until it has taken this long.
AT_LEAST_SECS = 0.5
# What takes longer than this is measured once, whatever --repeats says.
ONCE_SECS = 60.0
ENDLESS = 2**31


def run(line: CommandLine) -> int:
    """Measures every phase of the plan, prints a table, writes --output, and returns the exit status.

    The JSON has `format`, `machine`, `versions`, `peak_memory_mb`, `flagfile`, `precision` (what auto
    measured) and `measured`: for each phase and thing the median, lowest and highest milliseconds of
    a step and the median pictures a second; for an epoch also its seconds and the share of them spent
    waiting for input.
    """
    config = line.config
    if config.run.workdir:
        config = Workdir(config.run.workdir).or_run(config, line.given)
    text = config.benchmark.output
    output = local_path(text, flag=f"--output={text}") if text else None
    if output:
        require_place(output, flag=f"--output={text}")
    experiment = Experiment(config)
    with named_pictures(experiment.source, experiment.scan), experiment.strategy.scope():
        stages = make_stages(experiment, decided={})
        rows: list[dict[str, Any]] = []
        for phase in experiment.plan.phases:
            stages.state.jump(phase.start_step)
            rows += _measure_phase(stages, phase, repeats=config.benchmark.repeats)
    report = {
        "format": FORMAT,
        "trainer": __version__,
        "machine": machine(),
        "versions": {**versions(), **libraries_of(experiment.backbone)},
        "peak_memory_mb": round(peak_memory_mb()),
        "flagfile": config.flagfile().splitlines(),
        "precision": stages.arithmetic.decided,
        "measured": rows,
    }
    print(table(report), end="")
    if output:
        write_json(output, report)
        _log.info("written to %s", output)
    return 0


def _measure_phase(stages: Stages, phase: Phase, *, repeats: int) -> list[dict[str, Any]]:
    experiment, stage = stages.experiment, stages.current()
    train, augment = experiment.splits.indices["train"], experiment.augment(phase.spec)
    per_epoch = experiment.plan.steps_per_epoch
    rows = []

    def add(what: str, work: Callable[[int], int], *, steps: int = 1) -> dict[str, Any]:
        found = measure(work, repeats=repeats)
        secs = [one.secs for one in found]
        row = {
            "phase": phase.spec.name,
            "what": what,
            "pictures_per_second": statistics.mean(one.pictures for one in found) / statistics.median(secs),
            "step_ms": 1e3 * statistics.median(secs) / steps,
            "step_ms_low": 1e3 * min(secs) / steps,
            "step_ms_high": 1e3 * max(secs) / steps,
            "times_measured": len(secs),
        }
        rows.append(row)
        return row

    inputs = experiment.pipeline.training(train, start_step=0, stop_step=ENDLESS, augment=augment)
    add("input alone", _taking(inputs))
    add(f"forward, {stage.precision}", _forward(experiment, stage.precision))
    cut = stage.cut_of("train")
    precision = stage.step_precision if cut else stage.precision
    updates = _Updates(stages, phase)
    add(f"train step, {precision}{f', from {cut.name}' if cut else ''}", updates)
    begun, updates.waiting_secs = time.perf_counter(), 0.0
    epoch = add("epoch", lambda count: updates(count * per_epoch), steps=per_epoch)
    epoch["epoch_secs"] = epoch["step_ms"] * per_epoch / 1e3
    epoch["input_wait_share"] = updates.waiting_secs / (time.perf_counter() - begun)
    return rows


def _taking(dataset: tf.data.Dataset) -> Callable[[int], int]:
    """Returns what takes a number of batches; the iterator's threads end with it."""
    batches = iter(dataset)
    return lambda count: round(sum(next(batches)["mask"].numpy().sum() for _ in range(count)))


def _forward(experiment: Experiment, precision: str) -> Callable[[int], int]:
    """Returns what runs the network a number of times on the first batch, divided over the devices.

    As in the step, only the backbone computes in `precision`.
    """
    strategy, size = experiment.strategy, experiment.config.plan.batch_size
    first = experiment.splits.indices["train"][:size]
    [batch] = strategy.experimental_distribute_dataset(experiment.pipeline.once(first))
    classifier = experiment.classifier

    def logits(images: tf.Tensor) -> tf.Tensor:
        return apart(classifier.logits, classifier.features(images))

    network = tf.function(lambda images: strategy.run(logits, args=(images,)), autograph=False)
    forward = in_precision(network, precision)

    def work(count: int) -> int:
        for _ in range(count):
            for part in strategy.experimental_local_results(forward(batch["image"])):
                part.numpy()
        return count * len(first)

    return work


class _Updates:
    """Does a number of updates and returns how many examples they had, without padding.

    `waiting_secs` is the time spent waiting for input.

    Raises:
      TrainerError: one of them made numbers that training does not go on with, and so were none after it.
    """

    def __init__(self, stages: Stages, phase: Phase):
        stage = stages.current()
        self._state, self._phase = stages.state, phase
        self._max_loss = stages.experiment.config.guard.max_loss
        self._update = stage.make_run()
        self._iterator = iter(stage.training(0, ENDLESS))
        self.waiting_secs = 0.0
        # The first scale of float16's losses is too high for some updates, which are left out.
        while not self._do(1):
            pass

    def __call__(self, count: int) -> int:
        if (made := self._do(count)) < count:
            _log.warning(
                "phase %s: loss scaling left out %d of %d updates that were measured",
                self._phase.spec.name, count - made, count,
            )  # fmt: skip
        return self._state.stopwatch.num_examples

    def _do(self, count: int) -> int:
        """Returns how many of the updates were made."""
        state = self._state
        state.stopwatch = Stopwatch()
        state.metrics.reset()
        before = int(state.optimizer.iterations.numpy())
        timed(self._update, state, self._iterator, count)
        self.waiting_secs += state.stopwatch.waiting_secs
        if what := state.unfit.describe(max_loss=self._max_loss):
            at = f"step {int(state.unfit.step.numpy())} of phase {self._phase.spec.name}"
            raise TrainerError(
                f"nothing can be measured from {at} on: {what}, and training ends there. Try a lower "
                "learning rate or a warm-up, or another --max_loss"
            )
        return int(state.optimizer.iterations.numpy()) - before


class Measured(NamedTuple):
    """The seconds of a unit of work, and how many pictures there were in it."""

    secs: float
    pictures: float


def measure(work: Callable[[int], int], *, repeats: int) -> list[Measured]:
    """Measures a unit of work `repeats` times over half a second or more.

    Args:
      work: does a number of units and returns how many pictures these had; called once before, as it
        traces and compiles.
      repeats: how many numbers are wanted; what takes over a minute is measured once.
    """

    def timed(count: int) -> Measured:
        start = time.perf_counter()
        pictures = work(count)
        return Measured((time.perf_counter() - start) / count, pictures / count)

    work(1)
    first = timed(1)
    if first.secs > ONCE_SECS:
        return [first]
    count = max(1, round(AT_LEAST_SECS / max(first.secs, 1e-6)))
    return [timed(count) for _ in range(repeats)]


def table(report: dict[str, Any]) -> str:
    """Returns the report for a terminal."""
    here, gpus = report["machine"], ", ".join(report["machine"]["gpus"])
    lines = [
        f"{here['processor']}, {here['cores']} cores ({', '.join(here['instruction_sets'])}), "
        f"{gpus or 'no GPU'}, TensorFlow {report['versions']['tensorflow']}",
        f"{'phase':<11} {'what':<42} {'pictures/s':>10} {'ms/step':>10} {'low':>10} {'high':>10} times",
    ]
    for row in report["measured"]:
        lines.append(
            f"{row['phase']:<11} {row['what']:<42} {row['pictures_per_second']:>10,.1f} "
            f"{row['step_ms']:>10,.2f} {row['step_ms_low']:>10,.2f} {row['step_ms_high']:>10,.2f} "
            f"{row['times_measured']:>5}"
        )
    for row in report["measured"]:
        if "epoch_secs" in row:
            lines.append(
                f"{row['phase']}: an epoch takes {row['epoch_secs']:,.2f} s; "
                f"{row['input_wait_share']:.1%} of it is waiting for input"
            )
    return "\n".join([*lines, f"peak memory: {report['peak_memory_mb']:,} MB"]) + "\n"
