"""The configuration of a run: all options, checked, hashed, to and from plain values.

`flags.py` makes the command line from it, `record/workdir.py` writes it as JSON, and everything below
`commands` receives plain values taken from it.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from trainer.cli.command_options import (
    BenchmarkConfig,
    EvaluateConfig,
    ExplainConfig,
    ExportConfig,
    FindLrConfig,
    InspectConfig,
    PredictConfig,
    ServeConfig,
)
from trainer.cli.declare import KINDS
from trainer.cli.options import (
    OF_OLDER_RUNS,
    DataConfig,
    GuardConfig,
    ModelConfig,
    PlanConfig,
    RunConfig,
    SpeedConfig,
    UpdateConfig,
)
from trainer.cli.phase_specs import RULED, PhaseSpec, is_auto, phase_specs
from trainer.registry import Bounds
from trainer.values import AUTO, Duration, UsageError

_NEWER_THAN_RESIZE = "features"
"""What a record lacks if --resize=auto came after it."""
LENGTHS = {"frozen_for", "finetune_for", "phase"}
"""The options that say how long phases are."""


@dataclass(frozen=True)
class Config:
    """All options of a run. Field names are flag names, unique over all sections."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    plan: PlanConfig = PlanConfig()
    update: UpdateConfig = UpdateConfig()
    run: RunConfig = RunConfig()
    guard: GuardConfig = GuardConfig()
    speed: SpeedConfig = SpeedConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    predict: PredictConfig = PredictConfig()
    explain: ExplainConfig = ExplainConfig()
    export: ExportConfig = ExportConfig()
    serve: ServeConfig = ServeConfig()
    inspect: InspectConfig = InspectConfig()
    benchmark: BenchmarkConfig = BenchmarkConfig()
    find_lr: FindLrConfig = FindLrConfig()

    @functools.cached_property
    def phases(self) -> tuple[PhaseSpec, ...]:
        """What the phases are asked to be, read once; none under --schedule=auto.

        Raises:
          UsageError: a --phase or --schedule cannot be read.
        """
        return tuple(phase_specs(self.plan))

    def flat(self) -> dict[str, Any]:
        """Returns {flag name: value} over all sections."""
        return {f.name: getattr(section, f.name) for section, f in self._fields()}

    def identity_values(self) -> dict[str, Any]:
        """Returns the options that a resumed run must not change."""
        return {f.name: getattr(s, f.name) for s, f in self._fields() if f.metadata["identity"]}

    @classmethod
    def of_record(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Returns {flag name: value} of a run that recorded some; what is newer is as it was then."""
        known = {**cls().flat(), **OF_OLDER_RUNS, **values}
        # All networks of that time are stretched for by auto, too, which is the default now.
        if _NEWER_THAN_RESIZE not in values and known["resize"] == "stretch":
            known["resize"] = AUTO
        return known

    def differing(self, values: Mapping[str, Any]) -> list[str]:
        """Returns the options of the identity that a run recorded with other values.

        Args:
          values: {flag name: value}, as recorded.
        """
        was, now = self.of_record(values), self.identity_values()
        if _NEWER_THAN_RESIZE not in values and (was["resize"], now["resize"]) == (AUTO, "stretch"):
            now["resize"] = AUTO
        return [name for name in now if _listed(was[name]) != _listed(now[name])]

    @classmethod
    def naming(cls) -> dict[str, str]:
        """Returns {flag name: kind} of the options that only name something, of a kind in `declare`."""
        return {f.name: f.metadata["identity"] for _, f in cls()._fields() if f.metadata["identity"] in KINDS}

    def identity(self, **others: Any) -> str:
        """Returns a hash of everything that changes the numbers of a run.

        Args:
          **others: values that take the place of those of options.
        """
        values = {**self.identity_values(), **others}
        for name, before in OF_OLDER_RUNS.items():
            if values[name] == before:
                del values[name]
        text = json.dumps(values, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def flagfile(self, *, changed_only: bool = False) -> str:
        """Returns a flagfile that gives this configuration: every option that has an effect, one a line.

        Args:
          changed_only: whether those at their default are left out, which another version may have changed.
        """
        lines, defaults = [], Config().flat()
        for name, value in self.flat().items():
            if name in self.ruled() or (changed_only and value == defaults[name]):
                continue
            if isinstance(value, bool):
                lines.append(f"--{name}" if value else f"--no{name}")
            else:
                lines += [
                    f"--{name}={one}" for one in (value if isinstance(value, list | tuple) else (value,))
                ]
        return "\n".join(lines) + "\n"

    def ruled(self) -> tuple[str, ...]:
        """Returns the options that have no effect because --schedule=auto decides what they say."""
        return RULED if is_auto(self.plan) else ()

    def unused(self, given: Collection[str]) -> list[str]:
        """Returns which of some options of the plan change no phase, as they are set beside the others."""
        plan, found = self.plan, []
        for option in dataclasses.fields(PlanConfig):
            # The size of a batch is of no phase.
            if option.name in given and option.name != "batch_size" and not is_auto(plan):
                default: dict[str, Any] = {option.name: option.default}
                with contextlib.suppress(UsageError):
                    is_other = getattr(plan, option.name) != option.default
                    if is_other and self.replace(**default).phases == self.phases:
                        found.append(option.name)
        return found

    def require_unruled(self, given: Collection[str]) -> None:
        """Refuses options that were set and have no effect.

        Raises:
          UsageError: there is one.
        """
        if named := [f"--{name}" for name in self.ruled() if name in given]:
            raise UsageError(
                f"{', '.join(named)}: --schedule=auto decides this by the number and size of the pictures; "
                "leave it away, or use another --schedule or --phase"
            )

    def only_lengths_differ(self, other: "Config") -> bool:
        """Returns whether two runs differ in nothing but the lengths of their phases, and names of things."""
        mine, others = self.identity_values(), other.identity_values()
        if any(mine[name] != others[name] for name in mine.keys() - LENGTHS - self.naming().keys()):
            return False
        same = Duration(1, "steps")
        specs = [
            [dataclasses.replace(spec, duration=same) for spec in config.phases] for config in (self, other)
        ]
        return specs[0] == specs[1]

    def replace(self, **values: Any) -> "Config":
        """Returns a validated copy with options set by their flag names."""
        return Config.from_flat({**self.flat(), **values})

    @classmethod
    def from_flat(cls, values: dict[str, Any]) -> "Config":
        """Builds and validates a Config from {flag name: value}.

        Raises:
          UsageError: an option is unknown, or its value is out of range.
        """
        sections: dict[str, Any] = {}
        left = dict(values)
        for section in dataclasses.fields(cls):
            kind: Any = type(section.default)
            names = [f.name for f in dataclasses.fields(kind) if f.name in left]
            taken = {name: left.pop(name) for name in names}
            taken = {k: tuple(v) if isinstance(v, list) else v for k, v in taken.items()}
            for field in dataclasses.fields(kind):
                if field.name in taken:
                    _check(field, taken[field.name])
            sections[section.name] = kind(**taken)
        if left:
            raise UsageError(f"unknown option {sorted(left)[0]!r}")
        config = cls(**sections)
        _ = config.phases
        _check_together(config)
        return config

    def _fields(self) -> list[tuple[Any, dataclasses.Field[Any]]]:
        sections = [getattr(self, section.name) for section in dataclasses.fields(self)]
        return [(section, f) for section in sections for f in dataclasses.fields(section)]


def _check(field: dataclasses.Field[Any], value: Any) -> None:
    """Makes sure that a value is what an option was declared to take: it may come from a file, or Python.

    Raises:
      UsageError: it is not; the message begins with the flag and the value.
    """
    wanted, declared = type(field.default), field.metadata
    fits = type(value) is wanted or (wanted is float and type(value) is int)
    if wanted is tuple and fits:
        fits = all(isinstance(one, str) for one in value)
    if not fits:
        words = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
        raise UsageError(f"--{field.name}={value!r} must be {words.get(wanted, 'a list of texts')}")
    # The flagfile of a run has one option a line.
    if any({"\n", "\0"} & set(text) for text in (value if wanted is tuple else (str(value),))):
        raise UsageError(f"--{field.name}={value!r} must be on one line, and hold no zero byte")
    if declared["choices"] and value not in declared["choices"]:
        raise UsageError(f"--{field.name}={value} is not one of {', '.join(declared['choices'])}")
    if wanted in (int, float):
        _check_number(field.name, value, declared["bounds"])
    try:
        wrong = declared["check"](value) if declared["check"] else ""
    except UsageError as error:
        raise UsageError(f"--{field.name}={error}") from None
    if wrong:
        told = f"{value:g}" if wanted is float else value
        raise UsageError(f"--{field.name}={told}{wrong}")


def _check_number(name: str, value: float, bounds: Bounds) -> None:
    told = f"{value:g}" if isinstance(value, float) else str(value)
    if not math.isfinite(value):
        raise UsageError(f"--{name}={told} must be {f'a number {bounds}'.strip()}")
    if not bounds.allow(value):
        raise UsageError(f"--{name}={told} must be {bounds}")
    if isinstance(value, int) and value >= 2**63:
        raise UsageError(f"--{name}={told} must be below 2**63")


def _check_together(config: Config) -> None:
    plan, update = config.plan, config.update
    if plan.batch_size % update.accumulate:
        raise UsageError(
            f"--accumulate={update.accumulate} must divide --batch_size={plan.batch_size} into equal parts"
        )
    if update.clip_norm and update.clip_value:
        raise UsageError("--clip_norm and --clip_value both limit the gradients: give one")
    if plan.phase and (plan.from_layer or plan.unfreeze_top_layers):
        raise UsageError("--from_layer and --unfreeze_top_layers are of --schedule: a --phase has its own")


def _listed(value: Any) -> Any:
    """Returns a value as JSON gives it back."""
    return list(value) if isinstance(value, tuple) else value
