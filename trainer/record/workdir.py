"""Every path under --workdir, written so that a crash leaves the old file or the new one."""

import contextlib
import hashlib
import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.cli.config import Config
from trainer.cli.options import SPLIT_ORDERS
from trainer.cli.phase_specs import PhaseSpec
from trainer.paths import local_path
from trainer.store.files import (
    Shape,
    make_folder,
    read_json,
    remove_parts,
    require_shape,
    write_bytes,
    write_json,
    write_text,
)
from trainer.store.lock import file_lock
from trainer.values import CONTRACT_SHAPE, TrainerError, UsageError

# Of run.json and splits.json. 2: a checkpoint counts by its record.
FORMAT = 3
LOCK = "lock"
_RUN = {"format": int, "config": {str: object}}
_FACTS = _RUN | {
    "identity": str,
    "class_names": [str],
    "contract": CONTRACT_SHAPE,
    "precision": {
        str: {
            "precision": str,
            "step_secs": {str: float},
            "what": str,
            "machine": {str: object},
            "measured_at": str,
        }
    },
    "code": {str: object},
    "code_changes": [{str: object}],
    "rollbacks": [{"what": str, "step": int}],
    "extensions?": [{"step": int}],
    "plugins?": [{"name": str, "sha256": str}],
    "layers?": int,
}
_COUNTED = re.compile("(not:)?(from_layer=-?|unfreeze_top_layers=)[0-9]+")
_SPLITS = {"format": int, "splits": {str: [(str, str, str)]}, "order?": str}


class Workdir:
    """The folder of one run.

    flagfile.flags   re-runs it
    run.json         configuration, contract, versions
    splits.json      every example of every split with the digest of its bytes
    metrics.jsonl    one line per log or evaluation: what the event files hold, without times
    train/ validation/ test/   event files
    checkpoints/     the latest ones; best/ below it
    report/          the evaluation of a split
    plugins/         copies of the code that --plugin named
    """

    def __init__(self, path: str):
        self.root = local_path(path, flag=f"--workdir={path}")
        self.flagfile = self.root / "flagfile.flags"
        self.run_json = self.root / "run.json"
        self.splits_json = self.root / "splits.json"
        self.metrics_jsonl = self.root / "metrics.jsonl"
        self.checkpoints = self.root / "checkpoints"
        self.report = self.root / "report"
        self.plugins = self.root / "plugins"

    def make(self) -> None:
        """Creates the folder.

        Raises:
          TrainerError: it cannot be created or written to.
        """
        make_folder(self.root, flag=f"--workdir={self.root}", wrong="is a file, or lies below one")

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the folder for this process; the system frees it when the process dies.

        Where the file system cannot lock, a warning says so, and only a process that is known to live keeps
        others out.

        Raises:
          TrainerError: another process holds it; the message says which. Or it cannot be written.
        """
        with file_lock(self.root / LOCK, wait=False, stays=True) as lock:
            if lock.holder:
                raise TrainerError(f"--workdir={self.root} is in use by {lock.holder}")
            if lock.error:
                raise TrainerError(f"--workdir={self.root} cannot be locked: {lock.error.strerror}: {LOCK}")
            yield

    def read_config(self) -> Config:
        """Returns the configuration the run was started with.

        Raises:
          TrainerError: there is no run here, or one of another format.
        """
        run = self._read_run()
        try:
            return Config.from_flat(run["config"])
        except UsageError as error:
            raise TrainerError(f"{self.run_json} does not fit this version: {error}") from None

    def check_same_run(self, config: Config) -> None:
        """Makes sure that this folder is empty or holds a run of the same identity.

        Under --extend the phases may have other lengths.

        Raises:
          TrainerError: it holds another run; the message names the options that differ.
        """
        if not self.run_json.exists():
            return
        # An option that is newer than the run was at its default.
        old, new = {**Config().flat(), **self._read_run()["config"]}, config.flat()
        changed = [
            f"--{name} was {_shown(_jsonable(old[name]))}, now {_shown(_jsonable(new[name]))}"
            for name in config.identity_values()
            if _jsonable(old[name]) != _jsonable(new[name])
        ]
        only_lengths = bool(changed) and config.only_lengths_differ(self.read_config())
        if changed and not (only_lengths and config.run.extend):
            other = shlex.quote(f"--init_from={self.root}")
            way_on = "Longer phases may begin with the same steps: --extend goes on with it where they do. "
            raise TrainerError(
                f"{self.root} holds a run with other options: {'; '.join(changed)}. "
                f"{way_on if only_lengths else ''}Choose another --workdir; {other} begins with the weights "
                "of this run"
            )

    def keep_plugins(self, plugins: Mapping[str, bytes]) -> list[dict[str, str]]:
        """Writes copies of {name: source}; returns what is to be recorded of them.

        Raises:
          TrainerError: the run began with others.
        """
        now = [
            {"name": name, "sha256": hashlib.sha256(source).hexdigest()} for name, source in plugins.items()
        ]
        was = self.read_facts().get("plugins", [] if self.run_json.exists() else now)
        if was != now:
            names = [f"{one['name']} {one['sha256'][:8]}" for one in was]
            others = [f"{one['name']} {one['sha256'][:8]}" for one in now]
            raise TrainerError(
                f"{self.root} holds a run with other plugins: {', '.join(names) or 'none'}, now "
                f"{', '.join(others) or 'none'}. Those it began with are in {self.plugins}; choose another "
                "--workdir for others"
            )
        for name, source in plugins.items():
            write_bytes(self.plugins / name, source)
        return now

    def check_layers(self, count: int, phases: Sequence[PhaseSpec]) -> None:
        """Makes sure that layers which a phase counts are those that the run began with.

        Args:
          count: how many layers backbone and head have now.
          phases: of the plan.

        Raises:
          TrainerError: they are others; the message names the phase.
        """
        facts = self.read_facts()
        if not facts:
            return
        was = facts.get("layers")
        if was is None:
            # The only one that was counted otherwise before: without layers that have no variables.
            was = count if facts["config"].get("backbone") != "efficientnet_lite0" else "others"
        counted = [spec for spec in phases if any(map(_COUNTED.fullmatch, spec.train))]
        if counted and was != count:
            there = "counted others" if was == "others" else f"had {was}"
            raise TrainerError(
                f"{self.root} holds a run of another version: phase {counted[0].name} trains "
                f"{' '.join(counted[0].train)}, and of {count} layers these are not those that it trained "
                f"(the version that began it {there}). Use that version, or another --workdir; "
                f"{shlex.quote(f'--init_from={self.root}')} begins with the weights of this run"
            )

    def note_code(self, code: dict[str, Any], *, step: int) -> list[str]:
        """Records that the run goes on under other code than before; returns what differs, in words."""
        run = self.read_facts()
        changed = {name: [was, code.get(name)] for name, was in run["code"].items() if was != code.get(name)}
        if changed:
            notes = [*run["code_changes"], {"step": step, "changed": changed}]
            self.amend_run(code=code, code_changes=notes)
        return [f"{name} {was} -> {now}" for name, (was, now) in changed.items()]

    def remove_unfinished(self) -> None:
        """Removes what a process left behind that died in the middle of writing a file here."""
        for folder in (self.root, self.report):
            remove_parts(folder)

    def forget(self) -> None:
        """Removes what makes the folder that of a certain run."""
        for path in (self.run_json, self.splits_json):
            path.unlink(missing_ok=True)

    def write_run(self, config: Config, *, flagfile: str, **facts: Any) -> None:
        """Writes the configuration, the flagfile that re-runs it, and facts about the run."""
        write_text(self.flagfile, flagfile)
        flat = {name: _jsonable(value) for name, value in config.flat().items()}
        run = {"format": FORMAT, "identity": config.identity(), "config": flat, **facts}
        write_json(self.run_json, run)

    def amend_run(self, **facts: Any) -> None:
        """Adds facts to those that `write_run` wrote, or replaces them."""
        write_json(self.run_json, {**self._read_run(), **facts})

    def read_facts(self) -> dict[str, Any]:
        """Returns what is recorded of the run; empty before there is one.

        Raises:
          TrainerError: it is damaged, or of another format.
        """
        return self._read_run(_FACTS) if self.run_json.exists() else {}

    def read_splits(self) -> dict[str, list[list[str]]]:
        """Returns {split: [[id, class name, SHA-256 of the bytes]]}, as it was recorded.

        Raises:
          TrainerError: there is no record, or it is damaged or of another format.
        """
        if not self.splits_json.exists():
            raise TrainerError(f"{self.root} has no {self.splits_json.name}, which train writes")
        return self._read(self.splits_json, _SPLITS)["splits"]

    def split_order(self, asked: str) -> str:
        """Returns what --split_order asks for: of a run, `auto` is what it was when it began.

        Raises:
          TrainerError: the record is damaged or of another format.
        """
        if asked != "auto" or not self.splits_json.exists():
            return asked
        # Runs that do not say it are of when there was no stratified order.
        order = self._read(self.splits_json, _SPLITS).get("order", "take_skip")
        if order not in ("take_skip", *SPLIT_ORDERS):
            raise TrainerError(f"{self.splits_json} is damaged: order is {order!r}")
        return str(order)

    def write_or_check_splits(self, splits: dict[str, list[tuple[str, str, str]]], **facts: Any) -> None:
        """Writes who is in which split, or compares with what an earlier start wrote.

        Args:
          splits: {split: [(id, class name, SHA-256 of the bytes)]} in order.
          **facts: what else to record beside it.

        Raises:
          TrainerError: the pictures are no longer those that the run began with.
        """
        # Through JSON and back, so that both sides have the same types.
        new = json.loads(json.dumps({"format": FORMAT, "splits": splits, **facts}))
        if not self.splits_json.exists():
            write_json(self.splits_json, new, indent=None)
            return
        old = self.read_splits()
        for name in sorted({*old, *new["splits"]}):
            was, now = old.get(name, []), new["splits"].get(name, [])
            if was != now:
                raise TrainerError(
                    f"the pictures are not those this run began with: {_difference(name, was, now)} "
                    f"(recorded in {self.splits_json}). Restore them, or choose another --workdir"
                )

    def _read_run(self, shape: Shape = _RUN) -> dict[str, Any]:
        if not self.run_json.exists():
            raise TrainerError(f"--workdir={self.root} holds no run (no {self.run_json.name} in it)")
        return self._read(self.run_json, shape)

    @staticmethod
    def _read(path: Path, shape: Shape) -> dict[str, Any]:
        content = read_json(path)
        found = content.get("format") if isinstance(content, dict) else None
        if type(found) is not int:
            raise TrainerError(f"{path} is damaged: it does not say its format")
        if found != FORMAT:
            age = "newer" if found > FORMAT else "older"
            raise TrainerError(
                f"{path} has format {found}, {age} than the {FORMAT} that this version reads: use the "
                "version that wrote it, or another --workdir"
            )
        try:
            require_shape(content, shape)
        except ValueError as error:
            raise TrainerError(f"{path} is damaged: {error}") from None
        return content


def _difference(split: str, was: Sequence[Sequence[str]], now: Sequence[Sequence[str]]) -> str:
    if len(was) != len(now):
        return f"{split} had {len(was):,} pictures, now {len(now):,}"
    old, new = next((a, b) for a, b in zip(was, now, strict=True) if a != b)
    if old[0] != new[0]:
        return f"{split} had {old[0]} where there is now {new[0]}"
    return f"{old[0]} in {split} has changed"


def _jsonable(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _shown(value: Any) -> str:
    return repr(value) if value in ("", None) or isinstance(value, list | tuple) else str(value)
