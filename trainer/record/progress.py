"""How far a run is, for a person: a bar on a terminal, plain lines elsewhere, and the time left."""

import contextlib
import dataclasses
import hashlib
import json
import logging
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from trainer.store.files import write_json

FORMAT = 1
# A measurement of fewer steps is not worth remembering.
MIN_STEPS = 3
# To score a batch takes a third of the time of an update if all of a network trains, and nearly all of it if
# only little does.
EVALUATION_SHARE = 0.5


@dataclass(frozen=True)
class Speed:
    """How long the parts of a phase take, in seconds; None: not known.

    `step_secs` is that of a step with all that comes between two, `evaluation_secs` of an evaluation, and
    `start_secs` of all that happens once, such as tracing.
    """

    step_secs: float | None = None
    evaluation_secs: float | None = None
    start_secs: float | None = None

    def or_else(self, other: "Speed") -> "Speed":
        """Returns it with what is not known taken from another."""
        mine, others = dataclasses.asdict(self), dataclasses.asdict(other)
        return Speed(**{name: others[name] if mine[name] is None else mine[name] for name in mine})


@dataclass(frozen=True)
class PhaseLength:
    """The steps [start_step, stop_step) of a phase, and what is known of them before they are made.

    `evaluations_after` maps a step to the number of evaluations of the phase after it, of
    `evaluation_batches` batches each; `least_step_secs` returns what a step takes at least.
    """

    start_step: int
    stop_step: int
    expected: Speed = Speed()
    evaluations_after: Callable[[int], int] = lambda step: 0
    evaluation_batches: int = 0
    least_step_secs: Callable[[], float] = lambda: 0.0


@dataclass
class _Seen:
    """What was measured of a phase in this process."""

    start_secs: float | None = None
    steps: int = 0
    steps_secs: float = 0.0
    evaluations_secs: list[float] = field(default_factory=list)


class TimeLeft:
    """Is told where a run is, and tells how long it takes to its end.

    What happens once, such as features that are computed and kept, is no part of any speed.
    """

    def __init__(
        self,
        phases: Sequence[PhaseLength],
        *,
        end_secs: float = 0.0,
        once_secs: Callable[[], float] = lambda: 0.0,
        once_secs_left: Callable[[], float] = lambda: 0.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Starts to measure.

        Args:
          phases: of the run, in their order.
          end_secs: how long it takes from the last step to the end.
          once_secs: how much time went into what happens once, since the start of the process.
          once_secs_left: how much more will.
          clock: seconds.
        """
        self._phases, self._seen = phases, [_Seen() for _ in phases]
        self._end_secs, self._once_secs, self._once_secs_left = end_secs, once_secs, once_secs_left
        self._clock = clock
        self._step = self._evaluated = -1
        self._last_secs = self._now()

    def at(self, step: int) -> None:
        """Notes that an update to `step` is done, and what came before it."""
        seen, secs = self._seen[self._at(step)], self._lap()
        if seen.start_secs is None:
            seen.start_secs = secs
        else:
            seen.steps += step - self._step
            seen.steps_secs += secs
        self._step = step

    def evaluated(self, step: int) -> None:
        """Notes that the evaluation of a step is done."""
        seen, secs = self._seen[self._at(step)], self._lap()
        # Before the first update of a process, it is part of the start of it.
        if seen.start_secs is not None:
            seen.evaluations_secs.append(secs)
        self._evaluated = step

    def describe(self) -> str:
        """Returns such as `01:30 left`, or `at least 01:30 left` where something is not known yet."""
        secs, is_known = self.estimate()
        return f"{'' if is_known else 'at least '}{tqdm.format_interval(round(secs))} left"

    def estimate(self) -> tuple[float, bool]:
        """Returns the seconds from the last step that was told to the end, and whether all are known."""
        secs, is_known = self._end_secs + self._once_secs_left(), True
        now = self._at(self._step)
        for number, phase in enumerate(self._phases):
            if number < now:
                continue
            speed = self.speed(number)
            step, after = phase.start_step, phase.start_step
            if number == now:
                step = self._step
                # That of this very step may be still to come.
                after = step if self._evaluated == step else step - 1
            elif speed.start_secs is None:
                is_known = False
            else:
                secs += speed.start_secs
            steps = phase.stop_step - step
            if steps and speed.step_secs is None:
                is_known = False
            secs += steps * (phase.least_step_secs() if speed.step_secs is None else speed.step_secs)
            secs += phase.evaluations_after(after) * (speed.evaluation_secs or 0.0)
        return secs, is_known

    def speed(self, number: int) -> Speed:
        """Returns that of a phase: measured where it was, else as expected."""
        phase, seen = self._phases[number], self._seen[number]
        step_secs = seen.steps_secs / seen.steps if seen.steps else phase.expected.step_secs
        evaluation_secs = phase.expected.evaluation_secs
        at_most = phase.evaluation_batches * step_secs if step_secs is not None else math.inf
        first, *later = seen.evaluations_secs or [math.inf]
        if later:
            evaluation_secs = statistics.fmean(later)
        elif evaluation_secs is None and first < math.inf:
            # The first one traces.
            evaluation_secs = min(first, at_most)
        elif evaluation_secs is None and at_most < math.inf:
            evaluation_secs = EVALUATION_SHARE * at_most
        start_secs = phase.expected.start_secs if seen.start_secs is None else seen.start_secs
        return Speed(step_secs, evaluation_secs, start_secs)

    def measured(self, number: int) -> Speed | None:
        """Returns what is worth remembering of a phase, or None."""
        seen, speed = self._seen[number], self.speed(number)
        if seen.steps < MIN_STEPS:
            return None
        if seen.evaluations_secs and speed.start_secs is not None and speed.evaluation_secs is not None:
            traced_secs = max(seen.evaluations_secs[0] - speed.evaluation_secs, 0.0)
            return dataclasses.replace(speed, start_secs=speed.start_secs + traced_secs)
        return speed

    def _at(self, step: int) -> int:
        """Returns the number of the phase of the update to a step."""
        return next((n for n, p in enumerate(self._phases) if step <= p.stop_step), len(self._phases) - 1)

    def _now(self) -> float:
        return self._clock() - self._once_secs()

    def _lap(self) -> float:
        """Returns the seconds since it was asked last."""
        before, self._last_secs = self._last_secs, self._now()
        return self._last_secs - before


def remembered(folder: Path, key: Mapping[str, Any]) -> Speed:
    """Returns what `remember` was given last; a file that cannot be read, or holds anything else, is none."""
    try:
        found = json.loads(_path(folder, key).read_text())
        values = {one.name: found[one.name] for one in dataclasses.fields(Speed)}
        usable = found["format"] == FORMAT and all(
            value is None or (type(value) is float and 0 <= value < math.inf) for value in values.values()
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return Speed()
    return Speed(**values) if usable else Speed()


def remember(folder: Path, key: Mapping[str, Any], speed: Speed) -> None:
    """Keeps a speed.

    Args:
      folder: where; one that cannot be written is no failure.
      key: everything that the speed depends on, as JSON takes it.
      speed: what was measured.
    """
    with contextlib.suppress(OSError):
        write_json(_path(folder, key), {"format": FORMAT, **dataclasses.asdict(speed), "key": dict(key)})


def _path(folder: Path, key: Mapping[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps(dict(key), sort_keys=True).encode()).hexdigest()
    return folder / f"{digest[:32]}.json"


_log = logging.getLogger("trainer")
PLAIN_EVERY_SECS = 10.0


@contextlib.contextmanager
def counting(
    kind: str, what: str, total: int, *, unit: str = "pictures", tells_end: bool = True
) -> Iterator[Callable[[int], None]]:
    """Shows how far work on `total` pictures, or whatever the unit is, has come, while the block lasts.

    Yields a function that is told how many more are done. At the end a line says how long it took, unless
    whoever did the work has more to say than that.
    """
    begun = spoken = time.monotonic()
    done = 0
    hidden = not _wants_bar(kind)
    bar = tqdm(total=total, desc=what, unit=unit, file=_Shown(), disable=hidden, leave=False)

    def more(count: int) -> None:
        nonlocal done, spoken
        done += count
        bar.update(count)
        now = time.monotonic()
        if hidden and now - spoken >= PLAIN_EVERY_SECS:
            spoken = now
            left = tqdm.format_interval((now - begun) / done * (total - done))
            _log.info("%s: %s of %s %s, %s left", what, f"{done:,}", f"{total:,}", unit, left)

    with bar:
        yield more
    if not tells_end:
        return
    secs = time.monotonic() - begun
    speed = done / max(secs, 1e-9)
    told = f"{speed:,.0f}" if speed >= 10 else f"{speed:.2g}"
    _log.info("%s: %s %s in %.1f s, %s a second", what, f"{done:,}", unit, secs, told)


def _wants_bar(kind: str) -> bool:
    # Who calls this from Python, and has not turned logging on, wants to see nothing.
    return kind == "bar" or (kind == "auto" and sys.stderr.isatty() and _log.isEnabledFor(logging.INFO))


class _Shown:
    """Standard error, for a bar. That its terminal or reader is gone is no error."""

    def __init__(self) -> None:
        self._stream = sys.stderr

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            self._stream.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __eq__(self, other: object) -> bool:
        # By this tqdm knows which bars a line is to be written above.
        return other is self._stream


def _beside_loss(values: Mapping[str, float]) -> tuple[str, float]:
    """Returns the first metric behind the loss: it is the task's own."""
    return next((name, value) for name, value in values.items() if name != "loss")


class Progress:
    """Shows step, epoch, images a second, the loss and the metric that comes next, and the time left."""

    def __init__(
        self,
        kind: str,
        *,
        start_step: int,
        total_steps: int,
        steps_per_epoch: int,
        phase_of: Callable[[int], str],
        time_left: TimeLeft | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Starts the display.

        Args:
          kind: bar, plain, or auto for a bar where standard error is a terminal.
          start_step: where this process begins.
          total_steps: where the run ends.
          steps_per_epoch: to tell epochs.
          phase_of: step -> name of the phase that made the update to it.
          time_left: estimates it; None: all steps are of one kind, and there is nothing else.
          clock: seconds, for tests.
        """
        self._total, self._per_epoch = total_steps, steps_per_epoch
        self._phase_of, self._clock = phase_of, clock
        self._time_left = time_left or TimeLeft([PhaseLength(0, total_steps)], clock=clock)
        self._begun, self._spoke = False, clock()
        self._bar: Any = None
        self._wants_bar, self._start = _wants_bar(kind), start_step

    def _show(self) -> None:
        """Begins the bar. Not before training does: what is logged until then would stand on its line."""
        if self._bar is None and self._wants_bar:
            layout = (
                # Not tqdm's own {remaining}, which knows one kind of step.
                "{desc} {percentage:3.0f}%|{bar}| step {n_fmt}/{total_fmt} [{elapsed}{postfix}]"
            )
            shown: dict[str, Any] = {"file": _Shown(), "bar_format": layout, "dynamic_ncols": True}
            self._bar = tqdm(total=self._total, initial=self._start, **shown)

    def at(self, step: int, train: Mapping[str, float]) -> None:
        """Tells where the run is, with loss and metric since the last log."""
        epoch = f"epoch {step / self._per_epoch:.1f}"
        speed = f"{train['images_per_second']:,.0f} images/s" if "images_per_second" in train else "starting"
        name, value = _beside_loss(train)
        numbers = f"loss {train['loss']:.4f}, {name} {value:.3f}"
        self._time_left.at(step)
        self._show()
        left = self._time_left.describe()
        if self._bar is not None:
            self._bar.set_description_str(self._phase_of(step), refresh=False)
            self._bar.set_postfix_str(f"{left}, {epoch}, {speed}, {numbers}", refresh=False)
            self._bar.update(step - self._bar.n)
            self._bar.refresh()
            return
        now = self._clock()
        begun, self._begun = self._begun, True
        # Not of the first step, which traces and compiles.
        if begun and now - self._spoke >= PLAIN_EVERY_SECS:
            self._spoke = now
            _log.info(
                "step %d/%d (%s, %s): %s, %s, %s",
                step, self._total, self._phase_of(step), epoch, numbers, speed, left,
            )  # fmt: skip

    def evaluated(self, step: int, validation: Mapping[str, float]) -> None:
        """Tells loss, metric and, where there is one, AUC or mAP of the validation split."""
        self._time_left.evaluated(step)
        name, value = _beside_loss(validation)
        known = [(key, told) for key, told in (("auc", "AUC"), ("map", "mAP")) if key in validation]
        ranking = "".join(f", {told} {validation[key]:.4f}" for key, told in known)
        self.say(
            f"step {step}/{self._total} ({self._phase_of(step)}, epoch {step / self._per_epoch:.1f}): "
            f"validation loss {validation['loss']:.4f}, {name} {value:.4f}{ranking}"
        )

    def say(self, line: str) -> None:
        """Prints a line above the bar."""
        if self._bar is not None:
            try:
                tqdm.write(line, file=sys.stdout)
                sys.stdout.flush()
            except OSError:
                # The log knows what to do where nobody can read it.
                _log.info("%s", line)
        else:
            _log.info("%s", line)
            self._show()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
