"""The record of a sweep: Optuna's study, joined by any number of processes, and what becomes of dead trials.

By default it is a journal beside the trials; each process holds a lock for the trial it is at, and whose lock
is free is dead. In a database that many machines share, Optuna's heartbeat tells of those whose locks are
elsewhere.
"""

import bisect
import contextlib
import functools
import hashlib
import itertools
import json
import logging
import math
import os
import threading
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import optuna
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import FrozenTrial, Trial, TrialState

from trainer.cli.search import Range, Space, all_of, pick
from trainer.record.workdir import Workdir
from trainer.store.files import read_json, write_json
from trainer.store.lock import Holder, file_lock
from trainer.values import MachineError, TrainerError, UsageError

_log = logging.getLogger("trainer")
HEARTBEAT_SECS = 30
GRACE_SECS = 90
PATIENCE_SECS = 600.0
"""How long a database may not answer."""
BEGINNINGS = 3
"""How often a trial is begun whose process dies each time without having come further."""
REDUCTION = 3
"""Hyperband lets one trial of so many go on, each so many times as long as it was up to there."""
LOSSES = 10
"""How often a trial is begun anew by another machine, which finds nothing of what it had come to."""
ASKED = "asked.json"
VALUES = "values"
"""Of what a study is asked for: what says more of something else in it, and makes it no other study."""
T = TypeVar("T")


class _ByNumber(BaseSampler):
    """Draws as another sampler would that knows nothing but the seed, the trial and the name.

    So a trial is a function of those before it: who is killed while choosing goes on to choose the same.
    """

    count = 0
    """How many trials there are; 0: no end of them."""

    def __init__(self, kind: str, seed: int):
        self._kind, self._seed = kind, seed

    def _of(self, study: optuna.Study, trial: FrozenTrial, name: str) -> BaseSampler:
        text = json.dumps([self._seed, _place(study, trial), name])
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")
        return RandomSampler(seed) if self._kind == "random" else TPESampler(seed=seed)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self._of(study, trial, "").infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._of(study, trial, "").sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        sampler = self._of(study, trial, param_name)
        return sampler.sample_independent(study, trial, param_name, param_distribution)


class _Grid(_ByNumber):
    """Takes all trials of a space one after another."""

    def __init__(self, all_trials: Sequence[Mapping[str, Any]]):
        super().__init__("random", 0)
        self._all, self.count = all_trials, len(all_trials)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._all[_place(study, trial) % len(self._all)][param_name]


def _slot(trial: FrozenTrial) -> int:
    """Returns the number of a trial; of one that is made again, that of the first."""
    return int(trial.system_attrs.get("failed_trial", trial.number))


def _place(study: optuna.Study, trial: FrozenTrial) -> int:
    """Returns how many trials were begun before one, of which those that are made again count once."""
    slots = {_slot(other) for other in study.get_trials(deepcopy=False)}
    return sum(slot < _slot(trial) for slot in slots)


class _Hyperband(BasePruner):
    """Hyperband (Li et al., 2018), asynchronous as Optuna's, that keeps nothing anywhere.

    How long trials are it takes from the first that came to its end, and what others came to at a rung from
    their values. So who is asked twice of an evaluation says the same, which one that notes who has passed a
    rung does not, and samplers see the trials of all brackets.
    """

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        trials = study.get_trials(deepcopy=False)
        done = [
            (other.datetime_complete, other.number, other.last_step)
            for other in trials
            if other.state == TrialState.COMPLETE and other.datetime_complete and other.last_step
        ]
        if not done or trial.last_step is None:
            return False
        num_brackets = _num_rungs(min(done)[2] + 1)

        def bracket_of(other: FrozenTrial) -> int:
            return _bracket(f"{study.study_name}_{other.number}", num_brackets)

        bracket, now = bracket_of(trial), trial.last_step
        before = max((step for step in trial.intermediate_values if step < now), default=0)
        others = [one for one in trials if one.number != trial.number and bracket_of(one) == bracket]
        sign = 1 if study.direction == optuna.study.StudyDirection.MAXIMIZE else -1
        own = sign * trial.intermediate_values[now]
        # Rungs that were passed before are decided.
        for rung in (REDUCTION**n for n in range(bracket, _num_rungs(now))):
            if rung > before:
                values = [sign * value for other in others for value in _at(rung, other)]
                values = sorted([*values, own], reverse=True)
                if own < values[max(len(values) // REDUCTION - 1, 0)]:
                    return True
        return False


def _num_rungs(last: int) -> int:
    """Returns how many powers of `REDUCTION`, beginning with 1, are not above a number of evaluations."""
    return next(n for n in itertools.count() if REDUCTION**n > last)


def _bracket(name: str, count: int) -> int:
    """Returns in which of the brackets a trial is: of those that judge early, more trials are."""
    shares = [math.ceil(count * REDUCTION**left / (left + 1)) for left in reversed(range(count))]
    place = zlib.crc32(name.encode()) % sum(shares)
    return bisect.bisect_right([*itertools.accumulate(shares)], place)


def _at(rung: int, trial: FrozenTrial) -> list[float]:
    """Returns the value of a trial at a rung, if it has come so far."""
    values = trial.intermediate_values
    return [values[min(steps)]] if (steps := [step for step in values if step >= rung]) else []


class Taken:
    """A trial that this process is at."""

    def __init__(self, study: "Study", trial: Trial, trial_id: int):
        self._study, self._trial, self.trial_id = study, trial, trial_id
        self.number = trial.number
        self.is_lost = False
        """Whether it was given to another process, for which this one was dead."""
        self._is_left = False

    def texts(self, space: Space) -> dict[str, str]:
        """Returns the options of the trial, chosen now as far as they have not been."""
        return self._unless_lost(lambda: pick(space, self._draw)) or {}

    def _draw(self, name: str, part: Range) -> Any:
        if part.kind == "choice":
            return self._trial.suggest_categorical(name, part.choices)
        low, high = part.low, part.high
        if part.is_whole:
            step = part.step
            return self._trial.suggest_int(name, int(low), int(high), step=step, log=part.is_log)
        return self._trial.suggest_float(name, low, high, log=part.is_log)

    def report(self, count: int, value: float) -> bool:
        """Records the value of an evaluation; returns whether the trial is not worth going on with."""

        def tell() -> bool:
            frozen = self._study.storage.get_trial(self.trial_id)
            known, ended = frozen.intermediate_values, frozen.user_attrs.get("ended")
            if ended is not None or count < max(known, default=0):
                # What was decided before a process died is decided so again.
                return ended is not None and count >= int(ended)
            if count not in known:
                self._trial.report(value, count)
            if is_over := self._trial.should_prune():
                self._trial.set_user_attr("ended", count)
            return is_over

        return self._unless_lost(tell) is not False

    def note(self, **facts: Any) -> None:
        """Records something about the trial."""
        for name, fact in facts.items():
            self._unless_lost(functools.partial(self._trial.set_user_attr, name, fact))

    def begin(self, size: int) -> str:
        """Notes that it is begun; returns why it is not to be, if its process has died too often.

        Args:
          size: of what its folder tells of how far it came.
        """
        frozen = patiently(lambda: self._study.storage.get_trial(self.trial_id))
        begun, reached, number = (*frozen.user_attrs.get("begun", (0, 0)), self.number)[:3]
        if number != self.number or size > reached:
            # Of a trial that another machine was at, the folder is elsewhere: how far it came is not known.
            begun, reached = 0, size
        losses = len(frozen.system_attrs.get("retry_history", ()))
        if begun < BEGINNINGS and losses < LOSSES:
            self.note(begun=[begun + 1, reached, self.number])
            return ""
        times = f"killed {begun} times, each time before it had come further"
        if losses >= LOSSES:
            times = f"lost {losses} times, each time with its machine"
        return f"its process was {times}: there may be too little memory for its options"

    def leave(self) -> None:
        """Takes back that it was begun, once, as far as the record can be reached at once."""
        if self._is_left:
            return
        self._is_left = True
        with contextlib.suppress(Exception):
            begun, *rest = self._study.storage.get_trial(self.trial_id).user_attrs["begun"]
            self._trial.set_user_attr("begun", [begun - 1, *rest])

    def finish(self, value: float | None, *, pruned: bool = False) -> None:
        """Records how the trial ended; no value, and not pruned: it failed."""
        state = TrialState.PRUNED if pruned else TrialState.COMPLETE if value is not None else TrialState.FAIL
        values = None if state != TrialState.COMPLETE else value
        tell = self._study.optuna.tell
        self._unless_lost(lambda: tell(self.number, values, state=state, skip_if_finished=True))

    def _unless_lost(self, call: Callable[[], T]) -> T | None:
        """Returns what a call gives, as long as the trial is this process's."""
        try:
            return None if self.is_lost else patiently(call)
        except optuna.exceptions.UpdateFinishedTrialError:
            self.is_lost = True
            _log.warning(
                "trial %d was given to another process, which was told that we are dead", self.number + 1
            )
            return None


class Study:
    """What is known of all trials, in whatever storage."""

    def __init__(
        self,
        folder: Path,
        url: str,
        *,
        sampler: BaseSampler,
        pruner: str,
        maximize: bool,
        asked: Mapping[str, Any],
    ):
        """Opens the study, or begins it.

        Args:
          folder: of the sweep.
          url: of a database; empty: a journal in the folder.
          sampler: of `make_sampler`.
          pruner: value of --pruner.
          maximize: whether more is better.
          asked: what a study is of; one that was begun of something else is another. `VALUES` in it has
            {name: value} of the options, of which "options" is the digest.

        Raises:
          TrainerError: there is another study, or the database does not answer.
        """
        self._folder, self._url = folder, url
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        # Some of what is used is called experimental, and says so each time.
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        # Which would send the heartbeats; here `_beating` does.
        warnings.filterwarnings("ignore", message="Heartbeat of storage is supposed to be used with")
        known = {name: value for name, value in asked.items() if name != VALUES}
        digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:12]
        with file_lock(folder / "study.lock", stays=True):
            _check_same(folder / ASKED, asked)
            storage = _storage(folder, url)
            self.optuna = patiently(
                lambda: optuna.create_study(
                    storage=storage,
                    # Of a database, others may have parts of their own.
                    study_name=f"sweep {digest}",
                    sampler=sampler,
                    pruner=_pruner(pruner),
                    direction="maximize" if maximize else "minimize",
                    load_if_exists=True,
                )
            )
        self.storage = storage
        _answers.begin()
        (folder / "trials").mkdir(exist_ok=True)

    @contextlib.contextmanager
    def take(self, count: int) -> Iterator[Taken | None]:
        """Gives a trial to do, and holds it: a dead one, or a new one as long as there are less than `count`.

        None: there is nothing to do now; others may be at trials yet.
        """
        with contextlib.ExitStack() as held:
            with file_lock(self._folder / "ask.lock", stays=True):
                trial = self._next(held, count)
            with self._beating(trial):
                try:
                    yield trial
                except BaseException:
                    # It is left by a process that lives to say so.
                    if trial is not None:
                        trial.leave()
                    raise

    def _next(self, held: contextlib.ExitStack, count: int) -> Taken | None:
        """Takes a trial; those whose process died each time have failed, and are not."""
        while taken := self._dead(held) or self._new(held, count):
            # What a run has written down tells how far it came; a head has nothing, and begins anew.
            metrics = Workdir(str(self.folder_of(taken.number))).metrics_jsonl
            if not (why := taken.begin(metrics.stat().st_size if metrics.exists() else 0)):
                return taken
            taken.note(why=why)
            taken.finish(None)
            _log.warning("trial %d failed: %s", taken.number + 1, why)
        return None

    def _dead(self, held: contextlib.ExitStack) -> Taken | None:
        for frozen in self.trials(TrialState.RUNNING):
            if self._is_ours_to_judge(frozen) and held.enter_context(
                file_lock(self._lock(frozen.number), wait=False)
            ):
                trial_id = self._id_of(frozen.number)
                # It may have been finished since it was looked at.
                if patiently(lambda: self.storage.get_trial(trial_id)).state == TrialState.RUNNING:  # noqa: B023
                    trial = patiently(lambda: Trial(self.optuna, trial_id))  # noqa: B023
                    self._sign(trial)
                    return Taken(self, trial, trial_id)
        # Whose heartbeats could not be written may be alive.
        if self._url and _answers.long_enough():
            patiently(lambda: optuna.storages.fail_stale_trials(self.optuna))
        return None

    def _is_ours_to_judge(self, frozen: FrozenTrial) -> bool:
        """Returns whether a free lock says that a trial is dead."""
        holder = frozen.user_attrs.get("holder")
        if not self._url or holder == self._holder():
            return True
        began = frozen.datetime_start.timestamp() if frozen.datetime_start else 0.0
        return holder is None and _answers.long_enough() and time.time() - began > GRACE_SECS

    def _holder(self) -> list[str]:
        return [Holder.this_process().host, str(self._folder.resolve())]

    def _sign(self, trial: Trial) -> None:
        if self._url:
            patiently(lambda: trial.set_user_attr("holder", self._holder()))

    def _new(self, held: contextlib.ExitStack, count: int) -> Taken | None:
        trials = self.trials()
        is_waiting = any(trial.state == TrialState.WAITING for trial in trials)
        if not is_waiting and len({_slot(trial) for trial in trials}) >= count:
            return None
        trial = patiently(self.optuna.ask)
        held.enter_context(file_lock(self._lock(trial.number), wait=True))
        self._sign(trial)
        return Taken(self, trial, self._id_of(trial.number))

    def _id_of(self, number: int) -> int:
        """Returns what the storage calls a trial."""
        study = patiently(lambda: self.storage.get_study_id_from_name(self.optuna.study_name))
        return patiently(lambda: self.storage.get_trial_id_from_study_id_trial_number(study, number))

    @contextlib.contextmanager
    def _beating(self, taken: Taken | None) -> Iterator[None]:
        """Tells a database that this process lives, as long as the block lasts."""
        if taken is None or not isinstance(self.storage, RDBStorage):
            yield
            return
        storage, trial_id, ended = self.storage, taken.trial_id, threading.Event()

        def beat() -> None:
            while True:
                # Whether the database answers is found out, and told, where its answer is needed.
                try:
                    storage.record_heartbeat(trial_id)
                except Exception:
                    _answers.begin()
                if ended.wait(HEARTBEAT_SECS):
                    return

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """Returns all trials, or those in some states; of one that was made again, the last."""
        found = patiently(lambda: self.optuna.get_trials(deepcopy=False))
        last = {_slot(trial): trial for trial in sorted(found, key=lambda trial: trial.number)}
        return [trial for trial in last.values() if not states or trial.state in states]

    def make_again(self, number: int) -> None:
        """Has a trial that has failed made again, with the same options, as if it had not been."""
        failed = next(trial for trial in self.trials(TrialState.FAIL) if trial.number == number)
        again = optuna.create_trial(
            state=TrialState.WAITING,
            params=failed.params,
            distributions=failed.distributions,
            system_attrs={**failed.system_attrs, "failed_trial": _slot(failed)},
        )
        patiently(lambda: self.optuna.add_trial(again))

    def facts(self) -> dict[str, Any]:
        """Returns what `note` has recorded."""
        return dict(patiently(lambda: self.optuna.user_attrs))

    def note(self, name: str, fact: Any) -> None:
        """Records something about the whole study."""
        patiently(lambda: self.optuna.set_user_attr(name, fact))

    def require_pictures(self, pictures: Mapping[str, Sequence[Any]]) -> None:
        """Records what pictures there are, or makes sure that they are those that the study began with.

        Args:
          pictures: {split: [how many, digest]}.

        Raises:
          MachineError: they are others, as they are for all trials; the message names the splits.
        """
        now = {name: list(of_split) for name, of_split in pictures.items()}
        with file_lock(self._folder / "study.lock", stays=True):
            was = self.facts().get("pictures")
            if was is None:
                self.note("pictures", now)
                return
        if changed := _changed(was, now):
            counts = [(name, *((pair or [0])[0] for pair in both)) for name, both in changed.items()]
            told = "; ".join(
                f"{name} has {b:,}" + (f", and had {a:,}" if a != b else ", but not the same")
                for name, a, b in counts
            )
            raise MachineError(
                f"the pictures are not those that the sweep in {self._folder} began with: {told}. Restore "
                "them, or choose another --workdir"
            )

    def folder_of(self, number: int) -> Path:
        """Returns the folder of a trial."""
        return self._folder / "trials" / f"{number:04d}"

    def _lock(self, number: int) -> Path:
        return self._folder / "trials" / f"{number:04d}.lock"


def make_sampler(kind: str, space: Space, *, seed: int) -> _ByNumber:
    """Returns what chooses options.

    Raises:
      UsageError: of a grid, a range has no end of values.
    """
    return _Grid(all_of(space)) if kind == "grid" else _ByNumber(kind, seed)


def _pruner(kind: str) -> BasePruner:
    if kind == "median":
        return optuna.pruners.MedianPruner()
    return _Hyperband() if kind == "hyperband" else optuna.pruners.NopPruner()


def _storage(folder: Path, url: str) -> BaseStorage:
    if not url:
        path = folder / "study.journal"
        lock = _Lock(str(path))
        if path.exists():
            lock.acquire()
            lock.release()
        return JournalStorage(JournalFileBackend(str(path), lock))
    try:
        return patiently(lambda: _database(url))
    except ImportError as error:
        raise UsageError(f"--study={_public(url)} needs a driver that is not installed: {error}") from None
    except ValueError as error:
        raise UsageError(f"--study={_public(url)}: {error}") from None
    except Exception as error:
        if type(error).__name__ in ("ArgumentError", "NoSuchModuleError"):
            raise UsageError(
                f"--study={_public(url)} is no URL of a database, such as postgresql+psycopg://user@host/name"
            ) from None
        raise


def _database(url: str) -> RDBStorage:
    """Opens a database. Of several that find none, all but one fail to make its tables, and try again."""
    again = RetryHeartbeatStaleTrialCallback()
    beats: dict[str, Any] = {"heartbeat_interval": HEARTBEAT_SECS, "grace_period": GRACE_SECS}
    for attempts_left in reversed(range(10)):
        try:
            return RDBStorage(
                url, engine_kwargs={"pool_pre_ping": True}, heartbeat_stale_trial_callback=again, **beats
            )
        except Exception as error:
            if not attempts_left or type(error).__name__ not in ("IntegrityError", "ProgrammingError"):
                raise
        time.sleep(1.0)
    raise AssertionError


def _public(url: str) -> str:
    """Returns a URL without its password."""
    before, at, after = url.rpartition("@")
    return f"{before.rpartition(':')[0]}:***@{after}" if at and before.count(":") > 1 else url


class _Lock(JournalFileSymlinkLock):
    """The lock of a journal, which cuts off a last line that somebody who is gone has left half written.

    Otherwise the next line would be one with it, which nobody can read: a full disk leaves half a line, and a
    lost machine does, also while others go on.
    """

    def __init__(self, path: str):
        super().__init__(path)
        self._path = Path(path)

    def acquire(self) -> bool:
        held = super().acquire()
        try:
            self._mend()
        except BaseException:
            self.release()
            raise
        return held

    def _mend(self) -> None:
        with open(self._path, "r+b") as journal:
            if not journal.seek(0, os.SEEK_END):
                return
            journal.seek(-1, os.SEEK_END)
            if journal.read(1) == b"\n":
                return
            journal.seek(0)
            journal.truncate(journal.read().rfind(b"\n") + 1)


def _check_same(path: Path, asked: Mapping[str, Any]) -> None:
    """Writes down what a sweep is of, or makes sure that it is the one whose folder this is.

    Raises:
      TrainerError: it is another; the message names what differs.
    """
    now = json.loads(json.dumps(asked))
    if not path.exists():
        write_json(path, now)
        return
    was = read_json(path, {str: object})
    changed = _changed(was, now)
    if changed.pop(VALUES, None) and VALUES in was and "options" in changed:
        options = _changed(was[VALUES], now[VALUES])
        # It names options that are named themselves.
        options = {name: pair for name, pair in options.items() if name != "by_hand"} or options
        changed["options"] = tuple(
            " ".join(f"--{name}={_told(pair[at])}" for name, pair in options.items()) for at in (0, 1)
        )
    if changed:
        told = "; ".join(f"{name} was {_told(a)}, now {_told(b)}" for name, (a, b) in changed.items())
        raise TrainerError(f"{path.parent} holds a sweep of something else: {told}. Choose another --workdir")


def _changed(was: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Returns {name: (what it was, what it is)} of what differs."""
    names = [name for name in {**was, **now} if was.get(name) != now.get(name)]
    return {name: (was.get(name), now.get(name)) for name in names}


def _told(value: Any) -> str:
    return (", ".join(map(str, value)) or "none") if isinstance(value, list) else str(value)


class _Answers:
    """Since when the database answers, as far as this process knows."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Notes that it has not answered before, or that nobody knows."""
        self._since = time.monotonic()

    def long_enough(self) -> bool:
        """Returns whether all that live have been able to say so."""
        return time.monotonic() - self._since > GRACE_SECS


_answers = _Answers()


def patiently(call: Callable[[], T]) -> T:
    """Returns what a call gives, made again as long as the database does not answer.

    Raises:
      MachineError: it has not for `PATIENCE_SECS`.
    """
    began, told = time.monotonic(), False
    while True:
        try:
            return call()
        except Exception as error:
            if not _is_away(error):
                raise
            _answers.begin()
            if time.monotonic() - began > PATIENCE_SECS:
                raise MachineError(f"the database of --study does not answer: {_short(error)}") from None
            if not told:
                _log.warning("study:       the database does not answer (%s); waiting for it", _short(error))
                told = True
        time.sleep(1.0)


def _is_away(error: BaseException | None) -> bool:
    """Returns whether an error is that of a database which cannot be reached, or of a broken connection."""
    while error is not None:
        if type(error).__module__.startswith("sqlalchemy") and type(error).__name__ in (
            "OperationalError", "InterfaceError", "DBAPIError", "PendingRollbackError", "ResourceClosedError",
        ):  # fmt: skip
            return True
        error = error.__cause__ or error.__context__
    return False


def _short(error: BaseException) -> str:
    text = str(error.__cause__ or error).strip().splitlines()
    return text[0][:200] if text else type(error).__name__
