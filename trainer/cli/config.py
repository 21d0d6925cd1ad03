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
    AuditConfig,
    BenchmarkConfig,
    EvaluateConfig,
    ExplainConfig,
    ExportConfig,
    FeaturesConfig,
    FindLrConfig,
    InspectConfig,
    LearningCurveConfig,
    PredictConfig,
    ServeConfig,
    SweepConfig,
)
from trainer.cli.declare import KINDS, QUICK, RECOMMENDED
from trainer.cli.options import (
    FITTED,
    NEVER_TRAINED,
    OF_OLDER_RUNS,
    DataConfig,
    GuardConfig,
    ModelConfig,
    PlanConfig,
    RunConfig,
    SpeedConfig,
    UpdateConfig,
)
from trainer.cli.phase_specs import (
    RULED,
    UNFIT,
    PhaseSpec,
    is_auto,
    phase_specs,
    phase_text,
)
from trainer.registry import Bounds
from trainer.values import AUTO, Calls, Duration, UsageError, close_names, is_it

_NEWER_THAN_RESIZE = "features"
"""What a record lacks if --resize=auto came after it."""
LENGTHS = {"frozen_for", "finetune_for", "phase"}
"""The options that say how long phases are."""
OF_NO_PHASE = {"batch_size", "budget", "by_hand"}


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
    learning_curve: LearningCurveConfig = LearningCurveConfig()
    audit: AuditConfig = AuditConfig()
    sweep: SweepConfig = SweepConfig()
    features_of: FeaturesConfig = FeaturesConfig()

    @functools.cached_property
    def phases(self) -> tuple[PhaseSpec, ...]:
        """What the phases are asked to be, read once; see `phase_specs`.

        Raises:
          UsageError: a --phase or --schedule cannot be read.
        """
        return tuple(phase_specs(dataclasses.replace(self.plan, schedule="fit") if self.fits else self.plan))

    @property
    def fits(self) -> bool:
        """Whether the head is fitted, and no update changes anything: so such a head is, unless asked."""
        plan = self.plan
        is_asked = plan.phase or plan.schedule not in ("fit", PlanConfig.schedule)
        return plan.schedule == "fit" or (not is_asked and self.fitted_head in FITTED)

    @property
    def is_recommended(self) -> bool:
        """Whether what nobody set is chosen once the pictures are known, see `filled_in`."""
        return self.plan.schedule == "recommended" and not self.plan.phase and not self.fits

    @property
    def is_quick(self) -> bool:
        """Whether what is recommended is the head alone, whatever the pictures are."""
        return self.is_recommended and self.plan.budget == QUICK

    @property
    def fitted_head(self) -> str:
        """The name of the head if it is fitted, else empty."""
        name = self.model.head.partition("(")[0].strip()
        return name if name in FITTED else ""

    @property
    def takes_head(self) -> bool:
        """Whether the run begins with the head of the one in --init_from."""
        return bool(self.model.init_from) and self.model.init_part == "all"

    @classmethod
    def declared(cls) -> list[dataclasses.Field[Any]]:
        """Returns all options, as they are declared."""
        return [field for _, field in cls()._fields()]

    def flat(self) -> dict[str, Any]:
        """Returns {flag name: value} over all sections."""
        return {f.name: getattr(section, f.name) for section, f in self._fields()}

    def identity_values(self) -> dict[str, Any]:
        """Returns the options that a resumed run must not change."""
        return {f.name: getattr(s, f.name) for s, f in self._fields() if f.metadata["identity"]}

    def compared_values(self, chosen: Mapping[str, Any]) -> dict[str, Any]:
        """Returns what runs are compared by: the options that a resumed run must not change.

        Args:
          chosen: what --schedule=recommended came to, see `filled_in`.
        """
        values = self.identity_values()
        found = {name: value for name, value in chosen.items() if name not in self.plan.by_hand}
        return {name: found.get(name, value) for name, value in values.items() if name != "by_hand"}

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
        flat, defaults, chosen = self.flat(), Config().flat(), self._chosen()
        names = [name for name in flat if name not in chosen]
        if changed_only:
            by_hand = self.plan.by_hand
            names = [name for name in names if flat[name] != defaults[name] or name in by_hand]
        return self.flags_of(names)

    def flags_of(self, names: Collection[str]) -> str:
        """Returns a flagfile of some options: whoever reads it takes these for set by hand, and no others."""
        lines: list[str] = []
        for name, value in self.flat().items():
            if name not in names:
                continue
            if isinstance(value, bool):
                lines.append(f"--{name}" if value else f"--no{name}")
            else:
                lines += [
                    f"--{name}={one}" for one in (value if isinstance(value, list | tuple) else (value,))
                ]
        return "\n".join(lines) + "\n"

    def chosen_beside(self, asked: "Config") -> str:
        """Returns comments of a flagfile: what the rule of a schedule chose; empty where there is none.

        Args:
          asked: what these options were before what the rule chose was filled in.
        """
        flat, before = self.flat(), asked.flat()
        of_phases = {one.name for one in dataclasses.fields(PlanConfig)} - {*OF_NO_PHASE, "phase"}
        names = {*RECOMMENDED, "phase"} - of_phases
        lines = self.flags_of([name for name in names if flat[name] != before[name]]).split("\n")[:-1]
        first = f"What --schedule={asked.plan.schedule} chose for these pictures:"
        return "".join(f"# {line}\n" for line in ([first, *lines] if any(lines) else []))

    def ruled(self) -> tuple[str, ...]:
        """Returns the options that have no effect because --schedule=auto or fit decides what they say."""
        return UNFIT if self.fits else RULED if is_auto(self.plan) else ()

    def _chosen(self) -> Collection[str]:
        """Returns the options whose values have no effect because a rule chooses them."""
        if self.is_recommended:
            return {*RECOMMENDED, "by_hand"} - {*self.plan.by_hand}
        return {*self.ruled(), "by_hand"}

    def with_given(self, given: Collection[str]) -> "Config":
        """Returns the options with it noted that some are set by hand, be it to their defaults."""
        if not self.is_recommended:
            return self
        return self.replace(by_hand=(*self.plan.by_hand, *(name for name in given if name in RECOMMENDED)))

    def filled_in(self, chosen: Mapping[str, Any]) -> "Config":
        """Returns the options of --schedule=recommended with what was chosen for the pictures.

        Args:
          chosen: values of options, by name; those that are set by hand stay as they are. `schedule` among
            them is the one that says what its phases train.

        Raises:
          UsageError: what is set by hand does not go with it.
        """
        if not self.is_recommended:
            return self
        by_hand = self.plan.by_hand
        whole: dict[str, Any] = {"finetune_train": "all", "from_layer": "", "unfreeze_top_layers": 0}
        values = {"schedule": "two_phase", **chosen}
        if values["schedule"] == "frozen":
            values |= whole  # What trains in fine-tuning says nothing of the head alone.
        config = self.replace(**{name: value for name, value in values.items() if name not in by_hand})
        # A network that does not change is kept, pictures that change are not: so the head's are as they are.
        specs = [
            dataclasses.replace(spec, augment=Calls(()), average=None) if spec.name == "frozen" else spec
            for spec in config.phases
        ]
        return config.replace(
            schedule="recommended",
            phase=tuple(phase_text(spec) for spec in specs),
            **whole,
        )

    def unused(self, given: Collection[str]) -> list[str]:
        """Returns which of some options of the plan change no phase, as they are set beside the others."""
        plan, found = self.plan, []
        for option in dataclasses.fields(PlanConfig):
            is_left = is_auto(plan) or self.fits
            # Without phases of one's own it always says something: the default is not what its phases are.
            is_left |= option.name == "schedule" and not plan.phase
            if option.name in given and option.name not in OF_NO_PHASE and not is_left:
                noted = tuple(name for name in plan.by_hand if name != option.name)
                default: dict[str, Any] = {option.name: option.default, "by_hand": noted}
                with contextlib.suppress(UsageError):
                    is_other = getattr(plan, option.name) != option.default
                    if is_other and self.replace(**default)._known_phases() == self._known_phases():
                        found.append(option.name)
        return found

    def _known_phases(self) -> tuple[PhaseSpec, ...]:
        """Returns the phases, those of the head alone where it is known that there are no others."""
        return self.filled_in({"schedule": "frozen"}).phases if self.is_quick else self.phases

    def require_unruled(self, given: Collection[str]) -> None:
        """Refuses options that were set and have no effect.

        Raises:
          UsageError: there is one.
        """
        if (self.plan.budget or self.plan.by_hand) and not self.is_recommended:
            name = "budget" if self.plan.budget else "by_hand"
            raise UsageError(
                f"--{name} is of --schedule=recommended: leave it away, or --schedule or --phase"
            )
        named = [f"--{name}" for name in self.ruled() if name in given]
        if named and self.fits:
            raise UsageError(
                f"{', '.join(named)}: --head={self.model.head} is fitted, and no update changes it: leave "
                "it away"
                + (
                    ""
                    if self.fitted_head == NEVER_TRAINED
                    else ", or train on from it with --schedule=finetune"
                )
            )
        if named:
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
        if config.is_recommended:
            config = dataclasses.replace(config, plan=_with_by_hand(config))
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
        told = f"--{field.name}={value} is not one of {', '.join(declared['choices'])}"
        raise UsageError(told + is_it(close_names(str(value), declared["choices"], n=1)))
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
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"--{name}={told} must be {f'a number {bounds}'.strip()}")
    if not bounds.allow(value):
        raise UsageError(f"--{name}={told} must be {bounds}")
    if isinstance(value, int) and value >= 2**63:
        raise UsageError(f"--{name}={told} must be below 2**63")


def _with_by_hand(config: Config) -> PlanConfig:
    """Returns the plan with the options noted that are not at their default, which nobody else has set."""
    now, defaults, noted = config.flat(), Config().flat(), config.plan.by_hand
    by_hand = tuple(name for name in RECOMMENDED if name in noted or now[name] != defaults[name])
    return dataclasses.replace(config.plan, by_hand=by_hand)


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
    if config.is_quick and (plan.from_layer or plan.unfreeze_top_layers):
        raise UsageError(
            "--from_layer and --unfreeze_top_layers say what trains in fine-tuning, and --budget=quick has "
            "no such phase"
        )
    _check_fitted(config)


def _check_fitted(config: Config) -> None:
    """Refuses what makes no sense with a head that is fitted, or with a fit of one that is not."""
    head, plan, name = config.model.head, config.plan, config.fitted_head
    if plan.schedule == "fit" and plan.phase:
        raise UsageError("--schedule=fit has no updates, and --phase is one of updates: give one of them")
    if plan.schedule == "fit" and not name:
        raise UsageError(
            f"--schedule=fit: --head={head} is trained, not fitted; --head=probe and knn(20) are"
        )
    if name and is_auto(plan) and not config.fits:
        raise UsageError(f"--head={head}: --schedule=auto trains a head that starts at zero; leave one away")
    if name == NEVER_TRAINED and not config.fits:
        asked = "--phase" if plan.phase else f"--schedule={plan.schedule}"
        raise UsageError(
            f"--head={head} keeps features of the network as it is, and no update can change it: leave "
            f"{asked} away, or take --head=probe, which can be trained on"
        )
    if not config.fits:
        return
    defaults, given = UpdateConfig(), config.update
    without = [f.name for f in dataclasses.fields(UpdateConfig) if f.name != "metrics"]
    idle = [
        f"--{one}={getattr(given, one)}" for one in without if getattr(given, one) != getattr(defaults, one)
    ]
    idle += [f"--augment={plan.augment}"] if plan.augment else []
    idle += [f"--average={plan.average}"] if plan.average else []
    idle += [f"--weight_column={config.data.weight_column}"] if config.data.weight_column else []
    idle += [f"--dropout={config.model.dropout:g}"] if config.model.dropout else []
    if idle:
        raise UsageError(
            f"{', '.join(idle)}: --head={head} is fitted to pictures as they are, and no update changes it: "
            "leave it away"
        )


def _listed(value: Any) -> Any:
    """Returns a value as JSON gives it back."""
    return list(value) if isinstance(value, tuple) else value
