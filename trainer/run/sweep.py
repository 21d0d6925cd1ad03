"""A sweep: trials with options that a study chooses, until there are enough; then the best ones again."""

import dataclasses
import functools
import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from optuna.trial import TrialState

from trainer.cli.config import Config
from trainer.cli.search import Space, apply, check_space, describe, sweepless
from trainer.loop.metrics import is_less_better
from trainer.loop.standard_callbacks import NonFinite
from trainer.metrics.repeats import Spread, spread_of
from trainer.plugins import PluginFailure, failures_named, load_plugins
from trainer.record.summaries import Summaries
from trainer.record.workdir import Workdir
from trainer.run.head_trials import HeadTrials, Outcome
from trainer.run.scoring import require_metric
from trainer.run.study import VALUES, Study, Taken, make_sampler
from trainer.store.lock import file_lock
from trainer.tasks import make_task
from trainer.values import (
    CommonError,
    Interrupted,
    MachineError,
    TrainerError,
    UsageError,
    in_words,
    lacks_memory,
)

_log = logging.getLogger("trainer")
REPEATED = 3
"""How many of the best trials are repeated with other seeds."""
_LOOK_EVERY_SECS = 1.0


class Trainer(Protocol):
    """Trains a run of its own for a trial; `commands.sweep` has it."""

    def __call__(
        self, config: Config, *, told: Callable[[int, Mapping[str, float]], str], requested: Callable[[], str]
    ) -> Outcome: ...


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a sweep is of."""

    config: Config
    """With the options that are not searched, and those of the sweep."""
    given: Mapping[str, Any]
    """The options that were set by hand."""
    space: Space

    @property
    def metric(self) -> str:
        return self.config.sweep.metric.removeprefix("validation_")

    @functools.cached_property
    def maximize(self) -> bool:
        # --metrics and --task may be searched, too.
        ends = check_space(self.config, self.given, self.space)
        pairs = {(end.update.metrics, end.data.task) for end in ends}
        return not any(is_less_better(self.metric, text, task=make_task(task)) for text, task in pairs)

    @property
    def folder(self) -> Path:
        return Workdir(self.config.run.workdir).root

    def of_trial(self, texts: Mapping[str, str], workdir: Path, **others: Any) -> Config:
        """Returns the options of a trial, as they would be asked for of `train`."""
        own = {"workdir": str(workdir), "assert_accuracy_at_least": 0.0, "assert_at_least": "", **others}
        kept = {} if "keep_checkpoints" in self.given else {"keep_checkpoints": 1}
        return sweepless(apply(self.config, self.given, texts)).replace(**own, **kept)

    def digest(self) -> dict[str, Any]:
        """Returns what another sweep differs in: what trials are, and how they are chosen."""
        sweep, run = self.config.sweep, self.config.run
        return {
            "options": self.config.identity(),
            VALUES: self.config.identity_values(),
            "search": describe(self.space),
            "metric": sweep.metric,
            "sampler": sweep.sampler,
            "pruner": sweep.pruner,
            # By what they are, as runs know theirs, not by where they lie.
            "plugins": [f"SHA-256 {plugin.sha256}" for plugin in load_plugins(run.plugin)],
        }


class Sweep:
    """One process's part in a sweep."""

    def __init__(
        self, asked: Asked, *, heads: HeadTrials | None, train: Trainer, requested: Callable[[], str]
    ):
        """Opens the study.

        Args:
          asked: what it is of.
          heads: trains heads over kept features; None: each trial is a run of its own.
          train: trains such a run.
          requested: why all work is to stop; empty: it is not.
        """
        self._asked, self._heads, self._train, self._requested = asked, heads, train, requested
        sweep = asked.config.sweep
        sampler = make_sampler(sweep.sampler, asked.space, seed=asked.config.run.seed)
        self._count = min(sweep.trials, sampler.count or sweep.trials)
        # The last trial, if it failed before it had begun: its number, and why.
        self._failed_early: tuple[int, str] | None = None
        # Repeats that failed here by what may pass: another start of the sweep makes them.
        self._not_repeated: set[tuple[int, int]] = set()
        self.study = Study(
            asked.folder,
            sweep.study,
            sampler=sampler,
            pruner=sweep.pruner,
            maximize=asked.maximize,
            asked=asked.digest(),
        )

    def work(self) -> None:
        """Does trials until there are enough, and waits for those that others are at.

        Raises:
          Interrupted: it was asked to stop; the trial under way goes on when the sweep does.
          TrainerError: what all trials need cannot be had.
        """
        told = 0.0
        while True:
            self._leave_if_asked("")
            with self.study.take(self._count) as taken:
                if taken is not None:
                    self._do(taken)
                    continue
            others = self.study.trials(TrialState.RUNNING)
            if not others:
                return
            if time.monotonic() - told > 60:
                told, numbers = time.monotonic(), ", ".join(str(trial.number) for trial in others)
                _log.info("sweep:       waiting for trials that others are at: %s", numbers)
            time.sleep(_LOOK_EVERY_SECS)

    def _do(self, taken: Taken) -> None:
        began, asked = time.monotonic(), self._asked
        texts = taken.texts(asked.space)
        taken.note(options=texts)
        if taken.is_lost:
            return
        shown = ", ".join(f"{name}={_short(text)}" for name, text in texts.items())
        has_pruner = asked.config.sweep.pruner != "none"

        def told(count: int, values: Mapping[str, float]) -> str:
            value = _value(values, asked.metric)
            return "pruned" if has_pruner and math.isfinite(value) and taken.report(count, value) else ""

        def requested() -> str:
            if why := self._requested():
                # Whatever ends this process now is no fault of the trial.
                taken.leave()
            return why

        try:
            config = asked.of_trial(texts, self.study.folder_of(taken.number))
            outcome = self._outcome(config, told, requested)
            value = _value(outcome.best, asked.metric)
            self._show(config, texts, outcome)
        except TrainerError as error:
            self._leave_if_all_fail(taken, error)
            self._fail(taken, shown, str(error))
            return
        self._failed_early = None
        if not math.isfinite(value):
            self._fail(taken, shown, f"{asked.config.sweep.metric} is no number")
            return
        taken.note(
            values=_finite(outcome.best), step=outcome.step, seconds=round(time.monotonic() - began, 3)
        )
        taken.finish(value, pruned=bool(outcome.ended))
        if taken.is_lost:
            return
        ended = " (ended early)" if outcome.ended else ""
        _log.info(
            "trial %d of %d: %s %.4f%s with %s",
            taken.number + 1,
            self._count,
            asked.metric,
            value,
            ended,
            shown,
        )

    def _leave_if_all_fail(self, taken: Taken, error: TrainerError) -> None:
        """Ends the sweep where not the options of a trial are in the way, but what all trials need.

        So it is where the machine is, and where two trials one after another fail with the same words before
        they have begun. These count no more, and are made again when the sweep goes on.

        Raises:
          TrainerError: it is so.
        """
        folder, before = self.study.folder_of(taken.number), self._failed_early
        is_of_options = isinstance(error, UsageError | NonFinite) or Workdir(str(folder)).run_json.exists()
        words = str(error).replace(str(folder), "")
        self._failed_early = None if is_of_options else (taken.number, words)
        if isinstance(error, MachineError):
            told = "this one counts no more"
        elif before and not is_of_options and before[1] == words:
            self.study.make_again(before[0])
            told = f"this one, trial {taken.number + 1}, and trial {before[0] + 1} count no more"
        else:
            return
        raise TrainerError(
            f"{error}. Every other trial would fail, too, so the sweep ends here, and {told}. When that is "
            "mended, run the same command to continue"
        )

    def _fail(self, taken: Taken, shown: str, why: str) -> None:
        taken.note(why=why)
        taken.finish(None)
        _log.warning("trial %d of %d failed with %s: %s", taken.number + 1, self._count, shown, why)

    def _outcome(
        self,
        config: Config,
        told: Callable[[int, Mapping[str, float]], str],
        requested: Callable[[], str],
    ) -> Outcome:
        try:
            train = self._heads.run if self._heads else self._train
            with failures_named():
                return train(config, told=told, requested=requested)
        except Interrupted as stopped:
            # Of a single run, it says how to go on with that one.
            self._leave_if_asked(str(stopped).partition(":")[0])
            raise
        except Exception as error:
            # What is too large is so by the options of this trial.
            if lacks_memory(error):
                raise TrainerError(in_words(error)) from error
            raise

    def _leave_if_asked(self, why: str) -> None:
        if why := self._requested() or why:
            done = len(self.study.trials(TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL))
            raise Interrupted(
                f"{why}: stopped after {done} of {self._count} trials; everything is saved. Run the same "
                "command to continue"
            )

    def _show(self, config: Config, texts: Mapping[str, str], outcome: Outcome) -> None:
        """Writes what TensorBoard's HPARAMS tab shows of a trial that leaves no run."""
        if self._heads is None or outcome.ended:
            return
        summaries = Summaries(Workdir(config.run.workdir))
        Path(config.run.workdir).mkdir(parents=True, exist_ok=True)
        summaries.cut_back(None)
        summaries.hparams({**texts, "seed": config.run.seed})
        best = _finite(outcome.best)
        final = {f"validation_{name}": value for name, value in best.items() if "/" not in name}
        summaries.final(final, step=outcome.step)
        summaries.close()

    def repeat(self) -> None:
        """Does the best trials again with other seeds, each of which one process does."""
        left = self._to_repeat()
        while left:
            self._leave_if_asked("")
            is_done = False
            for number, seed in left:
                lock = self.study.folder_of(number).with_name(f"{number:04d}-seed-{seed}.lock")
                with file_lock(lock, wait=False) as ours:
                    if ours and _repeat_name(number, seed) not in self.study.facts():
                        self._repeat(number, seed)
                        is_done = True
            left = self._to_repeat()
            if left and not is_done:
                time.sleep(_LOOK_EVERY_SECS)

    def _to_repeat(self) -> list[tuple[int, int]]:
        """Returns [(number of a trial, seed)] of what is to be repeated and has not been."""
        facts, config = self.study.facts(), self._asked.config
        seeds = [config.run.seed + 1 + i for i in range(config.sweep.repeat_seeds)]
        numbers = [trial.number for trial in self._best()]
        wanted = [(number, seed) for seed in seeds for number in numbers]
        return [
            pair for pair in wanted if _repeat_name(*pair) not in facts and pair not in self._not_repeated
        ]

    def _repeat(self, number: int, seed: int) -> None:
        asked = self._asked
        texts = next(trial.user_attrs["options"] for trial in self.ranked() if trial.number == number)
        folder = self.study.folder_of(number).with_name(f"{number:04d}-seed-{seed}")
        try:
            config = asked.of_trial({**texts, "seed": str(seed)}, folder)
            outcome = self._outcome(config, lambda count, values: "", self._requested)
            self._show(config, texts, outcome)
            value: float | None = _value(outcome.best, asked.metric)
            value = value if value is not None and math.isfinite(value) else None
        except MachineError:
            raise
        except TrainerError as error:
            value = None
            _log.warning("trial %d with --seed=%d failed: %s", number + 1, seed, error)
            if not self._comes_again(error, folder):
                self._not_repeated.add((number, seed))
                return
        self.study.note(_repeat_name(number, seed), value)
        if value is not None:
            _log.info("trial %d again, with --seed=%d: %s %.4f", number + 1, seed, asked.metric, value)

    def _comes_again(self, error: TrainerError, folder: Path) -> bool:
        """Returns whether a repeat fails by its options, so that it would at every start of the sweep."""
        if isinstance(error, PluginFailure):
            return self._heads is not None or Workdir(str(folder)).run_json.exists()
        is_memory = error.__cause__ is not None and lacks_memory(error.__cause__)
        return is_memory or isinstance(error, UsageError | NonFinite | CommonError)

    def ranked(self) -> list[Any]:
        """Returns the trials that came to their end, the best first."""
        found = self.study.trials(TrialState.COMPLETE)
        sign = -1 if self._asked.maximize else 1
        return sorted(found, key=lambda trial: (sign * trial.value, _tie(trial), trial.number))

    def _best(self) -> list[Any]:
        """Returns the trials that are repeated: the best ones, of those with the same options the first."""
        found: dict[str, Any] = {}
        for trial in self.ranked():
            # Repeats have seeds of their own.
            options = {**trial.user_attrs["options"], "seed": ""}
            found.setdefault(json.dumps(options, sort_keys=True), trial)
        return list(found.values())[:REPEATED]

    def result(self) -> "Result":
        """Returns what all trials came to.

        Raises:
          TrainerError: none came to its end.
        """
        ranked, facts, config = self.ranked(), self.study.facts(), self._asked.config
        if not ranked:
            failed = self.study.trials(TrialState.FAIL)
            why = failed[0].user_attrs.get("why", "") if failed else ""
            raise TrainerError(f"no trial came to its end; trial 1: {why}")
        seeds = [config.run.seed + 1 + i for i in range(config.sweep.repeat_seeds)]
        repeats = {}
        for trial in self._best():
            values = [facts.get(_repeat_name(trial.number, seed)) for seed in seeds]
            repeats[trial.number] = [value for value in values if value is not None]
        spread = spread_of(list(repeats.values()), maximize=self._asked.maximize)
        best = ranked[0].number
        if spread is not None:
            best = list(repeats)[spread.best]
        return Result(self._asked, self.study.trials(), best, repeats, spread)


@dataclasses.dataclass(frozen=True)
class Result:
    """What a sweep came to: all trials, the number of the best, and how much of it is noise.

    `repeats` is {number of a trial: its values with other seeds}.
    """

    asked: Asked
    trials: list[Any]
    best: int
    repeats: dict[int, list[float]]
    spread: Spread | None

    def texts(self, number: int) -> dict[str, str]:
        """Returns the options of a trial that were searched."""
        return next(dict(one.user_attrs["options"]) for one in self.trials if one.number == number)

    def value(self, number: int) -> float:
        """Returns the value of a trial that came to its end."""
        return float(next(one.value for one in self.trials if one.number == number))


def _repeat_name(number: int, seed: int) -> str:
    return f"repeat {number} seed {seed}"


def _value(values: Mapping[str, float], metric: str) -> float:
    """Returns what a trial is judged by.

    Raises:
      UsageError: there is no such number.
    """
    if values:
        require_metric(metric, values)
    return float(values.get(metric, math.nan))


def _finite(values: Mapping[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if math.isfinite(value)}


def _tie(trial: Any) -> float:
    """Returns what tells trials of the same value apart: the loss."""
    return float(trial.user_attrs.get("values", {}).get("loss", math.inf))


def _short(text: str) -> str:
    """Returns a number as people read it; any other text as it is."""
    try:
        return f"{float(text):.4g}"
    except ValueError:
        return text
