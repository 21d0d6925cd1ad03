"""Every path under --workdir, written so that a crash leaves the old file or the new one."""

import contextlib
import hashlib
import json
import re
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trainer.cli.config import LENGTHS, Config
from trainer.cli.declare import NETWORK, PICTURES, RECOMMENDED, RUN, SPLITS
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
from trainer.values import CONTRACT_SHAPE, TrainerError, UsageError, close_names, composed, is_it

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
    "left_out?": [str],
    "code": {str: object},
    "code_changes": [{str: object}],
    "rollbacks": [{"what": str, "step": int}],
    "extensions?": [{"step": int}],
    "plugins?": [{"name": str, "sha256": str}],
    "layers?": int,
    "network?": {str: str},
    "first_names?": {str: object},
    "init_from?": {str: object},
    "pretrained?": {str: {str: object}},
    "assumed_prevalence?": {"why": str, "classes": {str: {"train": float, "assumed": float}}},
    "began?": str,
    "finished?": {"step": int, "best_step": int},
    "in_vain?": {"step": int, "told": str},
}
_SCORE = {"split": str, "step": int, "accuracy": float, "num_correct": int, "num_examples": int}
_COUNTED = re.compile("(not:)?(from_layer=-?|unfreeze_top_layers=)[0-9]+")
_SPLITS = {"format": int, "splits": {str: [(str, str, str)]}, "order?": str, "how?": str, "weights?": str}


def if_moved(error: Exception) -> str:
    """Returns a message about the pictures of a run with what to do where they have gone."""
    told = str(error)
    end = "" if told.endswith("?") else "."
    return f"{told}{end} There the run had its pictures; if they are elsewhere now: --source=folder:PATH"


class Workdir:
    """The folder of one run.

    flagfile.flags   re-runs it
    run.json         configuration, contract, versions
    splits.json      every example of every split with the digest of its bytes
    metrics.jsonl    one line per log or evaluation: what the event files hold, without times
    train/ validation/ test/ options/   event files
    checkpoints/     the latest ones; best/ below it
    report/          the evaluation of a split
    relabel.csv      a copy of the table of --relabel
    near_duplicates/ pairs of pictures that are one, where --near_duplicates looks for them
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
        self.relabel_csv = self.root / "relabel.csv"
        self._made: list[Path] = []

    def make(self) -> None:
        """Creates the folder.

        Raises:
          TrainerError: it cannot be created or written to.
        """
        self._made = [folder for folder in (self.root, *self.root.parents) if not folder.exists()]
        make_folder(self.root, flag=f"--workdir={self.root}", wrong="is a file, or lies below one")

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the folder for this process; the system frees it when the process dies.

        Of what was refused before it was a run nothing stays: no lock, and no folder that `make` has made.

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
            try:
                yield
            finally:
                if not self.run_json.exists():
                    self._remove_made()

    def _remove_made(self) -> None:
        # In this order, as long as nothing else is in them.
        with contextlib.suppress(OSError):
            (self.root / LOCK).unlink()
            for folder in self._made:
                folder.rmdir()

    def read_config(self) -> Config:
        """Returns the configuration the run was started with.

        Raises:
          TrainerError: there is no run here, or one of another format.
        """
        run = self._read_run()
        try:
            return Config.from_flat(Config.of_record(run["config"]))
        except UsageError as error:
            raise TrainerError(f"{self.run_json} does not fit this version: {error}") from None

    def check_same_run(self, config: Config, *, found_out: Collection[str] = ()) -> None:
        """Makes sure that this folder is empty or holds a run of the same identity.

        Under --extend the phases may have other lengths.

        Args:
          config: as it was asked for.
          found_out: kinds of things (`declare.option`) that may have other names: if they mean the same, the
            caller finds out by `write_or_check_splits`, `check_network` or `check_start`.

        Raises:
          TrainerError: it holds another run; the message names the options that differ.
        """
        differing = self._changed(config)
        changed = [name for name in differing if not self._is_found_out(config, name, found_out)]
        only_lengths = False
        if changed and LENGTHS.issuperset(changed):
            only_lengths = config.only_lengths_differ(self.read_config())
        can_grow = only_lengths and not config.is_recommended
        if changed and not (can_grow and config.run.extend):
            way_on = ""
            if can_grow:
                way_on = (
                    "Longer phases may begin with the same steps: --extend goes on with it where they do. "
                )
            elif config.run.extend and config.is_recommended:
                way_on = (
                    "--extend cannot go on with it: --schedule=recommended lets the learning rate fall to "
                    "the end, so that a longer run has other updates from its start. "
                )
            # With those that might turn out to mean the same: whoever reads it is to see all that is other.
            raise self._other_run(config, differing, way_on=way_on)

    def _is_found_out(self, config: Config, name: str, found_out: Collection[str]) -> bool:
        kind = Config.naming().get(name)
        # Names without a path are of different networks, and to open one of them may take a download.
        is_place = "/" in f"{self._read_run()['config'].get(name)}{config.flat()[name]}"
        return kind in found_out and (is_place or kind != NETWORK)

    def _changed(self, config: Config) -> list[str]:
        """Returns the options of the identity that a run here has with other values."""
        if not self.run_json.exists():
            return []
        return self._as_chosen(config).differing(self._read_run()["config"])

    def _as_chosen(self, config: Config) -> Config:
        """Returns options without those that are set by hand to what a rule chose for the run here."""
        chosen = self.read_chosen() if config.is_recommended and self._read_run().get("chosen") else {}
        recorded = Config.of_record(self._read_run()["config"])
        values, noted = config.flat(), config.plan.by_hand
        same = {
            name: recorded[name]
            for name, value in chosen.items()
            if name in noted and name not in recorded["by_hand"] and values[name] == value
        }
        left = tuple(name for name in noted if name not in same)
        return config.replace(**same, by_hand=left) if same else config

    def _other_run(
        self, config: Config, changed: Sequence[str], *, why: str = "", way_on: str = ""
    ) -> TrainerError:
        # What a rule chose is what people were told; which options are set by hand follows from the others.
        recorded = self._read_run()
        was, now = Config.of_record(recorded["config"]), self._as_chosen(config).flat()
        ruled = {*RECOMMENDED} - {*was["by_hand"]}
        was |= {name: value for name, value in recorded.get("chosen", {}).items() if name in ruled}
        others = [name for name in changed if _jsonable(was[name]) != _jsonable(now[name])]
        changed = [name for name in others if name != "by_hand"] or others or changed
        told = "; ".join(
            f"--{name} was {_shown(_jsonable(was[name]))}, now {_shown(_jsonable(now[name]))}"
            for name in changed
        )
        other = shlex.quote(f"--init_from={self.root}")
        return TrainerError(
            f"{self.root} holds a run with other options: {told}{why}. {way_on}Choose another --workdir; "
            f"{other} begins with the weights of this run"
        )

    def check_network(self, config: Config, found: Mapping[str, str]) -> None:
        """Makes sure that --backbone and --weights mean the network the run began with, however it is named.

        Args:
          config: as it was asked for.
          found: digests of what they mean now, by names of which run.json has some or all under `network`.

        Raises:
          TrainerError: it is another one, or the run does not say which it had.
        """
        naming = Config.naming()
        changed = [name for name in self._changed(config) if naming.get(name) == NETWORK]
        was = self.read_facts().get("network", {}) if changed else {}
        if changed and (not was or any(was.get(name) != digest for name, digest in found.items())):
            raise self._other_run(config, changed)

    def network_function(self) -> str:
        """Returns the fingerprint of the network the run began with; empty: it does not say."""
        return str(self.read_facts().get("network", {}).get("function", ""))

    def check_start(self, config: Config) -> None:
        """Makes sure that --init_from means the run whose weights this one began with, wherever it is now.

        Raises:
          TrainerError: it is another one.
        """
        naming = Config.naming()
        changed = [name for name in self._changed(config) if naming.get(name) == RUN]
        if changed:
            was = self.read_facts().get("init_from", {}).get("identity", "none")
            path = config.model.init_from
            if not path or Workdir(path).read_facts().get("identity") != was:
                raise self._other_run(config, changed)

    def first_names(self, config: Config) -> dict[str, Any]:
        """Returns {option: its value when the run began} of those that name something otherwise now."""
        if not self.run_json.exists():
            return {}
        run, now = self._read_run(), config.flat()
        first = {**run["config"], **run.get("first_names", {})}
        return {
            name: first[name]
            for name in Config.naming()
            if name in first and first[name] != _jsonable(now[name])
        }

    def note_names(self, config: Config) -> None:
        """Records what things of the run, and its folder, are called now; the rest stays as it is."""
        run, first, flat = self._read_run(), self.first_names(config), config.flat()
        names = {name: flat[name] for name in (*Config.naming(), "workdir")}
        # What was no option when the run began was as it is by default.
        recorded = Config.of_record(run["config"])
        if names != {name: recorded.get(name) for name in names}:
            now = Config.from_flat({**run["config"], **names})
            write_text(self.flagfile, now.flagfile())
            self.amend_run(config=run["config"] | names, **({"first_names": first} if first else {}))

    def keep_plugins(self, plugins: Mapping[str, bytes]) -> list[dict[str, str]]:
        """Writes copies of {name: source}; returns what is to be recorded of them.

        Raises:
          TrainerError: the run began with others.
        """
        now = self.check_plugins(plugins)
        for name, source in plugins.items():
            write_bytes(self.plugins / name, source)
        return now

    def check_plugins(self, plugins: Mapping[str, bytes]) -> list[dict[str, str]]:
        """Does as `keep_plugins`, but writes nothing."""
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
        first = self.first_names(config)
        named = {"first_names": first} if first else {}
        run = {"format": FORMAT, "identity": config.identity(**first), "config": flat, **named, **facts}
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

    def read_left_out(self) -> list[str] | None:
        """Returns what of a network stays float32 in a run in bfloat16; None: there is no run yet.

        Raises:
          TrainerError: the record is damaged, or of another format.
        """
        facts = self.read_facts()
        return list(facts.get("left_out", [])) if facts else None

    def read_chosen(self) -> dict[str, Any]:
        """Returns what --schedule=recommended chose for the run, by name of the option; empty: nothing.

        Raises:
          TrainerError: the record is damaged.
        """
        chosen = self.read_facts().get("chosen", {})
        if not isinstance(chosen, dict) or not {"schedule", *RECOMMENDED}.issuperset(chosen):
            raise TrainerError(f"{self.run_json} is damaged: chosen is {chosen!r}")
        return chosen

    def read_filled_in(self) -> Config:
        """Returns the configuration of the run, with what was chosen where options were left to a rule.

        Raises:
          TrainerError: there is no run here, one of another format, or it is damaged.
        """
        try:
            return self.read_config().filled_in(self.read_chosen())
        except UsageError as error:
            raise TrainerError(f"{self.run_json} is damaged: {error}") from None

    def read_for(self, given: Mapping[str, Any], *, found_out: Collection[str]) -> Config:
        """Returns the options of the run, as they came to be, for a command that was given some.

        Args:
          given: options of the command, which may not make it another run.
          found_out: see `check_same_run`.

        Raises:
          TrainerError: they do, or there is no run.
        """
        self.check_same_run(self.read_config().replace(**of_run(given)), found_out=found_out)
        return self.read_filled_in().replace(**given)

    def or_run(self, config: Config, given: Mapping[str, Any]) -> Config:
        """Returns the options of the run here, with those that a command was given in place of the run's.

        Args:
          config: all options of the command: where there is no run, they are what counts.
          given: those that it was given.

        Raises:
          UsageError: some have no effect beside the others.
          TrainerError: the record is damaged, or of another format.
        """
        if not self.run_json.exists():
            return config
        config = self.read_config().replace(**given)
        if not config.is_recommended:
            # These are of the rule that the run went by, and here another schedule was given.
            config = config.replace(**{"by_hand": (), "budget": "", **given})
        config = config.with_given(given)
        config.require_unruled(given)
        return config

    def as_begun(self, config: Config, given: Collection[str]) -> Config:
        """Returns options with those as they were when the run here began that mean the same.

        Such are those at a default that was another one then, and those set by hand to what a rule chose.

        Args:
          config: as it was asked for.
          given: the options that were set.
        """
        if config.plan.schedule != "recommended" or not self.run_json.exists():
            return config
        was = self._read_run()["config"]
        if "by_hand" in was:
            return self._as_chosen(config)
        # Of when there was no rule, and the default was another one.
        return config if "schedule" in given else config.replace(schedule=was["schedule"], by_hand=())

    def require_unnamed(self, source: str) -> None:
        """Makes sure that the run here is on `source`, which a command line without --source has.

        Raises:
          UsageError: it is on others; the message says how to name them.
        """
        if (was := self.read_config().data.source) != source:
            flagfile = shlex.quote(f"--flagfile={self.flagfile}")
            raise UsageError(
                f"{self.root} holds a run on --source={was}, and no --source is given: write it, or "
                f"{flagfile}, which has all options of the run"
            )

    def finished(self) -> dict[str, Any] | None:
        """Returns what the report of a finished run says; None where there is no end, or no whole report.

        Raises:
          TrainerError: what is recorded of the run is damaged.
        """
        end = self.read_facts().get("finished")
        with contextlib.suppress(OSError, TrainerError):
            report: dict[str, Any] = read_json(self.report / "metrics.json", _SCORE)
            return report if end and report["step"] == end["best_step"] else None
        return None

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

    def read_how(self) -> str:
        """Returns in words how the pictures were divided."""
        return str(self._read(self.splits_json, _SPLITS).get("how", ""))

    def read_weights_digest(self) -> str:
        """Returns a digest of what the pictures weigh; empty: they weigh the same."""
        return str(self._read(self.splits_json, _SPLITS).get("weights", ""))

    def read_num_shared(self) -> int:
        """Returns how many pictures were in two splits when the pictures were divided."""
        return len(self._read(self.splits_json, _SPLITS).get("shared", []))

    def require_found(
        self, found: Mapping[str, np.ndarray], recorded: Mapping[str, Sequence[Sequence[str]]], *, source: str
    ) -> None:
        """Makes sure that pictures of the run are there.

        Args:
          found: {split: positions, -1 for what is not there} of the splits that are needed.
          recorded: what `read_splits` returns.
          source: where they were looked for.

        Raises:
          TrainerError: one is not there; the message names the first.
        """
        lost = [
            (recorded[name][i][0], name)
            for name, positions in found.items()
            for i in np.flatnonzero(positions < 0).tolist()
        ]
        if lost:
            count = f"{len(lost):,} of the pictures" if len(lost) > 1 else "a picture"
            raise TrainerError(
                f"{source} has not {count} of this run: {lost[0][0]} in {lost[0][1]} is missing or has "
                f"changed (SHA-256 and class are recorded in {self.splits_json}). Restore it, or name with "
                "--source where the pictures are now"
            )

    def write_or_check_splits(
        self, splits: dict[str, list[tuple[str, str, str]]], *, config: Config | None = None, **facts: Any
    ) -> None:
        """Writes who is in which split, or compares with what an earlier start wrote.

        What a picture is called makes no difference: its bytes, its class and its place do, and its weight
        in the loss where `weights` is recorded, a digest of all.

        Args:
          splits: {split: [(id, class name, SHA-256 of the bytes)]} in order.
          config: that named the pictures.
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
            if [*map(_content, was)] != [*map(_content, now)]:
                told = f"{_difference(name, was, now)} (recorded in {self.splits_json})"
                naming, kinds = Config.naming(), (PICTURES, SPLITS)
                changed = [o for o in self._changed(config) if naming.get(o) in kinds] if config else []
                if config and changed:
                    raise self._other_run(config, changed, why=f", and these are other pictures: {told}")
                raise TrainerError(
                    f"the pictures are not those this run began with: {told}. Restore them, or choose "
                    "another --workdir"
                )
        weights = self._read(self.splits_json, _SPLITS).get("weights")
        if weights is not None and weights != new.get("weights"):
            column = f" in column {config.data.weight_column}" if config and config.data.weight_column else ""
            raise TrainerError(
                f"the weights of pictures{column} are not those this run began with (recorded in "
                f"{self.splits_json}). Restore them, or choose another --workdir"
            )

    def _read_run(self, shape: Shape = _RUN) -> dict[str, Any]:
        if not self.run_json.exists():
            runs = [path.parent.name for path in self.root.parent.glob(f"*/{self.run_json.name}")]
            near = is_it(close_names(self.root.name, runs, n=1))
            raise TrainerError(f"--workdir={self.root} holds no run (no {self.run_json.name} in it){near}")
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


def of_run(given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns those of some options that say which run it is: what runs its network may be another."""
    return {name: value for name, value in given.items() if name != "engine"}


def _content(row: Sequence[str]) -> tuple[str, str]:
    """Returns what a picture is, whatever it is called: its class and its bytes."""
    return composed(row[1]), row[2]


def _difference(split: str, was: Sequence[Sequence[str]], now: Sequence[Sequence[str]]) -> str:
    if len(was) != len(now):
        return f"{split} had {len(was):,} pictures, now {len(now):,}"
    old, new = next((a, b) for a, b in zip(was, now, strict=True) if _content(a) != _content(b))
    if old[0] != new[0]:
        return f"{split} had {old[0]} where there is now {new[0]}"
    return f"{old[0]} in {split} has changed"


def _jsonable(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _shown(value: Any) -> str:
    return repr(value) if value in ("", None) or isinstance(value, list | tuple) else str(value)
