"""`--precision=auto`: which arithmetic is the fastest, measured, and remembered for the next run."""

import contextlib
import dataclasses
import datetime
import hashlib
import json
import logging
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.precision import openvino
from trainer.precision.rewriter import in_precision, supported
from trainer.runtime import machine as hardware
from trainer.store.files import read_json, require_shape, write_json
from trainer.store.places import cache_root
from trainer.values import ENGINES, PRECISIONS, TrainerError

logger = logging.getLogger("trainer")

Make = Callable[[str], Callable[[], object]]
"""precision -> a function that does one step and returns when it is done."""

# Rounding to 16 bits is a cost: a gain below a tenth does not pay for it.
LARGEST_SHARE = 0.9
MIN_ROUNDS = 2
# What takes less than half the time of every other needs no further rounds.
CLEAR_SHARE = 0.5
MAX_ROUNDS = 20
BUDGET_SECS = 3.0
_SHAPE = {
    "precision": str,
    "step_secs": {str: float},
    "what": str,
    "machine": {str: object},
    "measured_at": str,
}
# Noted with what is remembered: what was measured in another way, and wrong at times, is not taken.
# 2: every step that is timed is known to have been made.
MEASUREMENT = 2
# What may be chosen without having been measured.
ALONE = ("float32", *(f"{engine}-{precision}" for engine in ENGINES for precision in PRECISIONS))
ENVIRONMENT = ("TF_ENABLE_ONEDNN_OPTS", "ONEDNN_MAX_CPU_ISA", "OMP_NUM_THREADS", "TF_XLA_FLAGS")


@dataclass(frozen=True)
class Choice:
    """An arithmetic, or an engine with one such as `openvino-float32`, and what was measured to choose it.

    `step_secs` is {precision: seconds a step}; empty if there was nothing to choose from. `what` says
    what a step was, for people. `measured_at` is ISO 8601 in UTC.
    """

    precision: str
    step_secs: dict[str, float]
    what: str
    machine: dict[str, Any]
    measured_at: str
    remembered: bool = field(default=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        """Returns what `from_json` reads."""
        return {k: v for k, v in dataclasses.asdict(self).items() if k != "remembered"}

    @classmethod
    def from_json(cls, data: Any) -> "Choice":
        """Reads a choice, as one that is remembered.

        Raises:
          ValueError: `data` is none.
        """
        require_shape(data, _SHAPE)
        if data.keys() != _SHAPE.keys():
            raise ValueError(f"not a choice of precision: {data}")
        choice = cls(**data, remembered=True)
        # Nothing is measured where there is nothing to choose from.
        usable = choice.precision in (choice.step_secs or ALONE)
        usable &= all(secs > 0 for secs in choice.step_secs.values())
        if not usable:
            raise ValueError(f"not a choice of precision: {data}")
        return choice

    @classmethod
    def recorded(cls, data: Any) -> "Choice":
        """Reads a choice that a run recorded.

        Raises:
          TrainerError: `data` is none.
        """
        try:
            return cls.from_json(data)
        except ValueError as error:
            raise TrainerError(f"the record of the run is damaged: {error}") from None

    def describe(self) -> str:
        """Returns it in a line, such as `bfloat16, measured 284 ms a step against 1,067 in float32 (...)`."""
        others = [p for p in self.step_secs if p != self.precision]
        if not others:
            return f"{self.precision}, the only one that works on this machine"
        against = " and ".join(f"{_ms(self.step_secs[p])} in {p}" for p in others)
        notes = [self.what]
        if min(self.step_secs, key=self.step_secs.__getitem__) != self.precision:
            is_engine = self.precision not in PRECISIONS
            notes.append(f"{'another one' if is_engine else '16 bits'} must save a tenth")
        if self.remembered:
            notes.append(f"remembered from {self.measured_at[:10]}")
        measured = f"measured {_ms(self.step_secs[self.precision])} ms a step against {against}"
        return f"{self.precision}, {measured} ({'; '.join(notes)})"


def _ms(secs: float) -> str:
    return f"{secs * 1e3:,.0f}" if secs >= 0.01 else f"{secs * 1e3:.3g}"


def choose(
    make: Make,
    *,
    what: str,
    key: Mapping[str, Any],
    cache_dir: str = "",
    clock: Callable[[], float] = time.perf_counter,
    candidates: Sequence[str] | None = None,
    agree: Callable[[str, Any], Any] = lambda what, value: value,
) -> Choice:
    """Returns the arithmetic to compute in: the remembered one, else the one that measures best.

    Args:
      make: as `measure` takes it; not called when a choice is remembered.
      what: what a step is, for people, such as `forward, batch 32`.
      key: everything of the run that the speed depends on, as JSON takes it; the machine is added.
      cache_dir: the value of --cache_dir. A file there that cannot be read or written is ignored.
      clock: in seconds; of several workers, one that shows the same to all.
      candidates: what all that compute the step can compute in; None: what this machine can.
      agree: (what, value) -> the value that all workers take.
    """
    candidates, here = candidates or supported(), machine()
    if len(candidates) == 1:
        return Choice(candidates[0], {}, what, here, _utc_now())
    own = remembered(key, cache_dir=cache_dir)
    own = own if own and own.precision in candidates else None
    if known := agree("the precision that was measured before", own and own.to_json()):
        return Choice.from_json(known)
    choice = measure(make, what=what, candidates=candidates, here=here, clock=clock)
    _write(_path(key, here, cache_dir), {**choice.to_json(), "measurement": MEASUREMENT, "key": dict(key)})
    return choice


def choose_engine(
    make: Callable[[str], Callable[[], object] | None],
    *,
    candidates: Sequence[str],
    what: str,
    key: Mapping[str, Any],
    cache_dir: str = "",
    clock: Callable[[], float] = time.perf_counter,
) -> Choice:
    """Returns the fastest of some engines: the first one, unless one of the others saves a tenth.

    Args:
      make: candidate -> a function that does one step and returns when it is done, or None where it cannot;
        not called when a choice is remembered, or there is none.
      candidates: in the order in which they are preferred, such as tensorflow-float32, openvino-float32.
      what: what a step is, for people.
      key: everything of the run that the speed depends on, as JSON takes it; the machine is added.
      cache_dir: the value of --cache_dir.
      clock: in seconds.
    """
    here = {**machine(), **openvino_version()}
    path = _path(key, here, cache_dir)
    known = read_choice(path)
    if known is not None and set(known.step_secs) == set(candidates):
        return known
    steps = {name: step for name in candidates if (step := make(name))} if len(candidates) > 1 else {}
    if len(steps) < 2:
        return Choice(next(iter(steps), candidates[0]), {}, what, here, _utc_now())
    for step in steps.values():
        step()
    step_secs = _timed(steps, budget_secs=BUDGET_SECS, clock=clock)
    best, *others = steps
    for name in others:
        best = name if step_secs[name] <= LARGEST_SHARE * step_secs[best] else best
    choice = Choice(best, step_secs, what, here, _utc_now())
    _write(path, {**choice.to_json(), "measurement": MEASUREMENT, "key": dict(key)})
    return choice


def openvino_version() -> dict[str, str]:
    """Returns {"openvino": its version}, for a description of a machine; empty where it is not installed."""
    return {openvino.NAME: openvino.version()} if openvino.version() else {}


def remembered(key: Mapping[str, Any], *, cache_dir: str = "") -> Choice | None:
    """Returns the choice that `choose` has kept on this machine; None: there is none. See there."""
    known = read_choice(_path(key, machine(), cache_dir))
    # Measured among others than this machine has by now, it says nothing.
    return known if known is not None and set(known.step_secs) == set(supported()) else None


def _path(key: Mapping[str, Any], here: Mapping[str, Any], cache_dir: str) -> Path:
    digest = hashlib.sha256(json.dumps([dict(key), here], sort_keys=True).encode()).hexdigest()
    return cache_root(cache_dir) / "precision" / f"{digest[:32]}.json"


def measure(
    make: Make,
    *,
    what: str,
    candidates: Sequence[str],
    here: Mapping[str, Any],
    budget_secs: float = BUDGET_SECS,
    clock: Callable[[], float] = time.perf_counter,
) -> Choice:
    """Runs steps in each arithmetic by turns and returns the fastest; float32 unless another saves a tenth.

    The first step of each, which traces and optimizes, does not count; then rounds are timed until
    `budget_secs` are over, from MIN_ROUNDS to MAX_ROUNDS, and the lower median of each decides. If one
    takes less than half the time of the others, MIN_ROUNDS are enough. One of 16 bits whose first step
    fails is left out.

    Args:
      make: precision -> a function of no arguments that does one step and returns when it is done.
        It is called in that arithmetic.
      what: what a step is, for people.
      candidates: of PRECISIONS; float32 must be one.
      here: what `machine` returned.
      budget_secs: for all rounds together.
      clock: in seconds.
    """
    steps = {}
    for precision in candidates:
        step = in_precision(make(precision), precision)
        if precision == "float32" or _works(step, precision):
            steps[precision] = step
    steps["float32"]()
    step_secs = _timed(steps, budget_secs=budget_secs, clock=clock)
    fastest = min(step_secs, key=step_secs.__getitem__)
    pays = step_secs[fastest] <= LARGEST_SHARE * step_secs["float32"]
    return Choice(fastest if pays else "float32", step_secs, what, dict(here), _utc_now())


def _timed(
    steps: Mapping[str, Callable[[], object]], *, budget_secs: float, clock: Callable[[], float]
) -> dict[str, float]:
    """Does steps by turns, each of which was done before; returns the lower median of the seconds of each."""
    taken: dict[str, list[float]] = {name: [] for name in steps}
    order, start = list(steps), clock()
    for number in range(MAX_ROUNDS):
        if number >= MIN_ROUNDS and (clock() - start >= budget_secs or _is_clear(taken)):
            break
        for name in order:
            before = clock()
            steps[name]()
            taken[name].append(clock() - before)
        order.reverse()  # A machine that gets slower or faster meanwhile favours none.
    # The lower one: of two times, the longer is the disturbed one.
    return {name: statistics.median_low(times) for name, times in taken.items()}


def _is_clear(taken: Mapping[str, Sequence[float]]) -> bool:
    first, *others = sorted(min(times) for times in taken.values())
    return bool(others) and first < CLEAR_SHARE * others[0]


def _works(step: Callable[[], object], precision: str) -> bool:
    import tensorflow as tf

    try:
        step()
    except tf.errors.OpError as error:
        logger.info(
            "precision:   %s is left out, its first step failed (%s)", precision, type(error).__name__
        )
        return False
    return True


def machine() -> dict[str, Any]:
    """Returns what the speed of TensorFlow depends on here: version, processors, threads, settings."""
    import tensorflow as tf

    # The numbers of threads are 0 until somebody sets them, in Python or here.
    names = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", *ENVIRONMENT)
    return {
        "tensorflow": tf.__version__,
        **{name: value for name, value in hardware().items() if name != "memory_gb"},
        "threads": [
            tf.config.threading.get_intra_op_parallelism_threads(),
            tf.config.threading.get_inter_op_parallelism_threads(),
        ],
        "environment": {name: os.environ[name] for name in names if name in os.environ},
    }


def _utc_now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def read_choice(path: Path) -> Choice | None:
    """Returns a measurement that is kept in a cache; None: there is none, or it is damaged or outdated."""
    try:
        data = read_json(path, _SHAPE | {"measurement": int, "key": {str: object}})
        if data["measurement"] != MEASUREMENT:
            return None
        return Choice.from_json({name: data[name] for name in _SHAPE})
    except (OSError, ValueError, TrainerError):
        return None


def _write(path: Path, data: dict[str, Any]) -> None:
    """Writes JSON; a cache that cannot be written is no failure."""
    with contextlib.suppress(OSError):
        write_json(path, data)
