"""How far a run is, for a person: a bar on a terminal, plain lines elsewhere."""

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tqdm import tqdm

from trainer.record.time_left import PhaseLength, TimeLeft

_log = logging.getLogger("trainer")
PLAIN_EVERY_SECS = 10.0


@contextlib.contextmanager
def counting(kind: str, what: str, total: int, *, unit: str = "pictures") -> Iterator[Callable[[int], None]]:
    """Shows how far work on `total` pictures, or whatever the unit is, has come, while the block lasts.

    Yields a function that is told how many more are done.
    """
    begun = spoken = time.monotonic()
    done = 0
    hidden = not _wants_bar(kind)
    bar = tqdm(total=total, desc=what, unit=unit, file=sys.stderr, disable=hidden, leave=False)

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
    secs = time.monotonic() - begun
    _log.info("%s: %s %s in %.1f s, %.0f a second", what, f"{done:,}", unit, secs, done / max(secs, 1e-9))


def _wants_bar(kind: str) -> bool:
    # Who calls this from Python, and has not turned logging on, wants to see nothing.
    return kind == "bar" or (kind == "auto" and sys.stderr.isatty() and _log.isEnabledFor(logging.INFO))


class Progress:
    """Shows step, epoch, images a second, loss, accuracy and the time left."""

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
        if _wants_bar(kind):
            layout = (
                # Not tqdm's own {remaining}, which knows one kind of step.
                "{desc} {percentage:3.0f}%|{bar}| step {n_fmt}/{total_fmt} [{elapsed}{postfix}]"
            )
            self._bar = tqdm(
                total=total_steps, initial=start_step, bar_format=layout, file=sys.stderr, dynamic_ncols=True
            )

    def at(self, step: int, train: Mapping[str, float]) -> None:
        """Tells where the run is, with loss and accuracy since the last log."""
        epoch = f"epoch {step / self._per_epoch:.1f}"
        speed = f"{train['images_per_second']:,.0f} images/s" if "images_per_second" in train else "starting"
        numbers = f"loss {train['loss']:.4f}, accuracy {train['accuracy']:.3f}"
        self._time_left.at(step)
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
        """Tells loss, accuracy and, where there is one, AUC of the validation split."""
        self._time_left.evaluated(step)
        auc = f", AUC {validation['auc']:.4f}" if "auc" in validation else ""
        self.say(
            f"step {step}/{self._total} ({self._phase_of(step)}, epoch {step / self._per_epoch:.1f}): "
            f"validation loss {validation['loss']:.4f}, accuracy {validation['accuracy']:.4f}{auc}"
        )

    def say(self, line: str) -> None:
        """Prints a line above the bar."""
        if self._bar is not None:
            try:
                tqdm.write(line, file=sys.stdout)
            except OSError:
                # The log knows what to do where nobody can read it.
                _log.info("%s", line)
        else:
            _log.info("%s", line)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
