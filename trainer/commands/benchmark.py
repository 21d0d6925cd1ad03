"""`benchmark`: how fast an experiment is here, part by part, without leaving a run behind."""

import logging
import statistics
import time
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from trainer import __version__
from trainer.commands.evaluate import make_stages
from trainer.commands.picture_errors import named_pictures
from trainer.experiment import Experiment
from trainer.files import require_place, write_json
from trainer.flags import CommandLine, to_flagfile
from trainer.loop.phases import Phase
from trainer.machine import machine, peak_memory_mb
from trainer.paths import local_path
from trainer.precision import in_precision
from trainer.provenance import versions
from trainer.stages import Stages

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
        "versions": versions(),
        "peak_memory_mb": round(peak_memory_mb()),
        "flagfile": to_flagfile(config).splitlines(),
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
    train, augment = experiment.splits.indices["train"], phase.spec.augment
    batch_size, per_epoch = experiment.config.plan.batch_size, experiment.plan.steps_per_epoch
    rows = []

    def add(what: str, work: Callable[[int], object], *, steps: int = 1, pictures: int = batch_size) -> dict:
        secs = measure(work, repeats=repeats)
        row = {
            "phase": phase.spec.name,
            "what": what,
            "pictures_per_second": pictures / statistics.median(secs),
            "step_ms": 1e3 * statistics.median(secs) / steps,
            "step_ms_low": 1e3 * min(secs) / steps,
            "step_ms_high": 1e3 * max(secs) / steps,
            "times_measured": len(secs),
        }
        rows.append(row)
        return row

    inputs = experiment.pipeline.training(train, start_step=0, stop_step=ENDLESS, augment=augment)
    batch = _measure_input(inputs, add)["image"]
    forward = in_precision(tf.function(experiment.classifier.call, autograph=False), stage.precision)
    add(f"forward, {stage.precision}", lambda count: [forward(batch).numpy() for _ in range(count)])

    update, cut = stage.make_run(), stage.cut_of("train")
    iterator = iter(stage.training(0, ENDLESS))
    waited = [0.0]

    def steps(count: int) -> None:
        waited[0] += float(update(iterator, tf.constant(count)))

    precision = stage.step_precision if cut else stage.precision
    add(f"train step, {precision}{f', from {cut.name}' if cut else ''}", steps)
    begun, waited[0] = time.perf_counter(), 0.0
    epoch = add("epoch", lambda count: steps(count * per_epoch), steps=per_epoch, pictures=len(train))
    epoch["epoch_secs"] = epoch["step_ms"] * per_epoch / 1e3
    epoch["input_wait_share"] = waited[0] / (time.perf_counter() - begun)
    return rows


def _measure_input(dataset: tf.data.Dataset, add: Callable[..., object]) -> dict[str, tf.Tensor]:
    """Measures and returns a batch; the iterator's threads end with it, and do not disturb the rest."""
    batches = iter(dataset)
    add("input alone", lambda count: [next(batches) for _ in range(count)])
    return next(batches)


def measure(work: Callable[[int], object], *, repeats: int) -> list[float]:
    """Returns the seconds of a unit of work, measured `repeats` times over half a second or more.

    Args:
      work: does a number of units; called once before, as it traces and compiles.
      repeats: how many numbers are wanted; what takes over a minute is measured once.
    """

    def timed(count: int) -> float:
        start = time.perf_counter()
        work(count)
        return (time.perf_counter() - start) / count

    work(1)
    first = timed(1)
    if first > ONCE_SECS:
        return [first]
    count = max(1, round(AT_LEAST_SECS / max(first, 1e-6)))
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
