"""The configuration of a run: all options, checked, hashed, to and from plain values.

`flags.py` makes the command line from it, `record/workdir.py` writes it as JSON, and everything below
`commands` receives plain values taken from it.
"""

import contextlib
import dataclasses
import difflib
import hashlib
import json
import math
import re
import signal
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from trainer.options import (
    BenchmarkConfig,
    DataConfig,
    EvaluateConfig,
    ExplainConfig,
    ExportConfig,
    FindLrConfig,
    GuardConfig,
    InspectConfig,
    ModelConfig,
    PlanConfig,
    PredictConfig,
    RunConfig,
    ServeConfig,
    SpeedConfig,
    UpdateConfig,
)
from trainer.phase_specs import LARGEST, RULED, is_auto, phase_specs
from trainer.values import Duration, UsageError, parse_calls


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

    def flat(self) -> dict[str, Any]:
        """Returns {flag name: value} over all sections."""
        return {f.name: getattr(section, f.name) for section, f in self._fields()}

    def identity_values(self) -> dict[str, Any]:
        """Returns the options that a resumed run must not change."""
        return {f.name: getattr(s, f.name) for s, f in self._fields() if f.metadata["identity"]}

    def identity(self) -> str:
        """Returns a hash of everything that changes the numbers of a run."""
        text = json.dumps(self.identity_values(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

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
                    if is_other and phase_specs(dataclasses.replace(plan, **default)) == phase_specs(plan):
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
        """Returns whether two runs differ in nothing but how long their phases are."""
        mine, others = self.identity_values(), other.identity_values()
        lengths = {"frozen_for", "finetune_for", "phase"}
        if any(mine[name] != others[name] for name in mine.keys() - lengths):
            return False
        same = Duration(1, "steps")
        specs = [
            [dataclasses.replace(spec, duration=same) for spec in phase_specs(config.plan)]
            for config in (self, other)
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
                    _check_type(field, taken[field.name])
            sections[section.name] = kind(**taken)
        if left:
            raise UsageError(f"unknown option {sorted(left)[0]!r}")
        config = cls(**sections)
        _validate(config)
        return config

    def _fields(self) -> list[tuple[Any, dataclasses.Field]]:
        sections = [getattr(self, section.name) for section in dataclasses.fields(self)]
        return [(section, f) for section in sections for f in dataclasses.fields(section)]


def _check_type(field: dataclasses.Field, value: Any) -> None:
    """Refuses what no flag could have given: values also come from files and from Python."""
    wanted = type(field.default)
    fits = type(value) is wanted or (wanted is float and type(value) is int)
    if wanted is tuple and fits:
        fits = all(isinstance(one, str) for one in value)
    if not fits:
        words = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
        raise UsageError(f"--{field.name}={value!r} must be {words.get(wanted, 'a list of texts')}")


def _validate(config: Config) -> None:
    for section, f in config._fields():
        value = getattr(section, f.name)
        if f.metadata["choices"] and value not in f.metadata["choices"]:
            wanted = ", ".join(f.metadata["choices"])
            raise UsageError(f"--{f.name}={value} is not one of {wanted}")
        # The flagfile of a run has one option a line.
        if any({"\n", "\0"} & set(text) for text in (value if isinstance(value, tuple) else (str(value),))):
            raise UsageError(f"--{f.name}={value!r} must be on one line, and hold no zero byte")
    for name, low in _AT_LEAST.items():
        value = config.flat()[name]
        if value < low:
            raise UsageError(f"--{name}={_told(value)} must be {low} or more")
        if not math.isfinite(value):
            raise UsageError(f"--{name}={value} must be a number, {low} or more")
        if isinstance(value, int) and value >= 2**63:
            raise UsageError(f"--{name}={value} must be below 2**63")
    for name, value in (
        ("dropout", config.model.dropout),
        ("label_smoothing", config.update.label_smoothing),
    ):
        if not 0 <= value < 1:
            raise UsageError(f"--{name}={value:g} must be from 0 up to, but not, 1")
    if not 0 < config.update.layer_decay <= 1:
        raise UsageError(f"--layer_decay={config.update.layer_decay:g} must be above 0 up to 1")
    for name in ("assert_accuracy_at_least", "threshold", "max_accuracy_drop"):
        if not 0 <= (share := config.flat()[name]) <= 1:
            raise UsageError(f"--{name}={share:g} must be from 0 up to 1")
    for name, high in _AT_MOST.items():
        if (value := config.flat()[name]) > high:
            raise UsageError(f"--{name}={_told(value)} must be {_told(high)} or less")
    for name in ("clip_norm", "clip_value"):
        if 0 < (limit := config.flat()[name]) < 1 / LARGEST:
            raise UsageError(f"--{name}={limit:g} must be {1 / LARGEST:g} or more, or 0 for no limit")
    for name in ("log_every", "evaluate_every", "save_every", "histograms_every", "figures_every"):
        if not config.flat()[name] and name in ("histograms_every", "figures_every"):
            continue  # Never.
        duration = Duration.parse(config.flat()[name], flag=f"--{name}")
        if duration.amount <= 0:
            raise UsageError(f"--{name}={duration} must be more than 0")
    checkpoint = config.evaluate.checkpoint
    if checkpoint not in ("best", "latest") and not re.fullmatch("[0-9]{1,18}", checkpoint):
        raise UsageError(f"--checkpoint={checkpoint} is not best, latest or a step number")
    if (steps := config.run.profile_steps) and not re.fullmatch("[0-9]{1,18}(-[0-9]{1,18})?", steps):
        raise UsageError(f"--profile_steps={steps} is not the number of an update, or two such as 100-110")
    _check_signals(config.run.stop_signals)
    for name, such_as in (("head", "linear or mlp(512)"), ("loss", "cross_entropy or focal(2)")):
        parse_calls(config.flat()[name], flag=f"--{name}", such_as=such_as)
    phase_specs(config.plan)
    _check_together(config)


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


def _told(value: float) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _check_signals(text: str) -> None:
    # SIGKILL and SIGSTOP reach no program, SIGINT is always one.
    known = sorted({s.name for s in signal.Signals} - {"SIGKILL", "SIGSTOP", "SIGINT"})
    for name in filter(None, text.split(",")):
        if name not in known:
            close = ", ".join(difflib.get_close_matches(name.upper(), known)) or "SIGTERM, SIGUSR1, SIGUSR2"
            raise UsageError(
                f"--stop_signals={text}: {name!r} is no signal that can be waited for; close: {close}"
            )


_AT_LEAST = {
    "batch_size": 1, "image_size": 0, "synthetic_examples": 1, "keep_checkpoints": 1, "seed": 0,
    "split_seed": 0, "synthetic_seed": 0, "memory_budget_mb": 0, "feature_views": 0, "cache_limit_gb": 0,
    "repeats": 1, "max_pixels": 1, "save_every_secs": 0, "max_minutes": 0, "max_rollbacks": 0, "max_loss": 0,
    "top_k": 1, "ig_steps": 1, "num_explained": 1, "calibration_pictures": 1, "port": 0, "max_upload_mb": 1,
    "embeddings": 0,
    "unfreeze_top_layers": 0, "accumulate": 1, "clip_norm": 0, "clip_value": 0, "patience": 1,
    "min_change": 0, "find_lr_steps": 10,
}  # fmt: skip
# Pixels of a side: ten times those of a large network, and no memory holds much more.
_AT_MOST = {
    "port": 65_535, "image_size": 10_000, "clip_norm": LARGEST, "clip_value": LARGEST, "max_loss": LARGEST,
}  # fmt: skip
