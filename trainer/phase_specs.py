"""What a phase of training is asked to be: `--phase` read, and what `--schedule` stands for.

`loop/phases.py` turns these into steps.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trainer.values import Duration, UsageError, parse_calls

SCHEDULES = ("frozen", "finetune", "two_phase")
OPTIMIZERS = ("adam", "adamw", "sgd", "rmsprop")
WITH_WEIGHT_DECAY = ("adamw", "sgd")
LR_SCHEDULES = ("constant", "cosine", "step")
BN_MODES = ("frozen", "batch")


@dataclass(frozen=True)
class PhaseSpec:
    """One phase as it was asked for, before lengths are turned into steps."""

    name: str
    duration: Duration
    train: tuple[str, ...]
    learning_rate: float
    lr_schedule: str
    warmup: Duration
    optimizer: str
    momentum: float
    weight_decay: float
    bn: str
    augment: str


def phase_specs(plan: Any) -> list[PhaseSpec]:
    """Returns the phases of a run: those of --phase, or what --schedule stands for.

    Args:
      plan: a `config.PlanConfig`, whose options are also the defaults of what a --phase leaves out.

    Raises:
      UsageError: a --phase cannot be read; the message names the part.
    """
    if plan.phase:
        return [_parse_phase(text, i, plan) for i, text in enumerate(plan.phase, 1)]
    frozen = {"for": plan.frozen_for, "lr": plan.frozen_learning_rate, "train": "head", "bn": "frozen"}
    finetune = {"for": plan.finetune_for, "lr": plan.finetune_learning_rate, "train": plan.finetune_train}
    wanted = {"frozen": (frozen,), "finetune": (finetune,), "two_phase": (frozen, finetune)}
    specs = []
    for values in wanted[plan.schedule]:
        name = "frozen" if values is frozen else "finetune"
        try:
            specs.append(_phase_spec(name, values, plan))
        except UsageError as error:
            raise UsageError(f"{name} phase of --schedule={plan.schedule}: {error}") from None
    return specs


def _parse_phase(text: str, number: int, plan: Any) -> PhaseSpec:
    values: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in text.split(";"))):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or key not in _PHASE_KEYS:
            raise UsageError(f"--phase {number}: {part!r} is not one of {'=, '.join(_PHASE_KEYS)}=")
        if key in values:
            raise UsageError(f"--phase {number}: {key}= is given twice")
        values[key] = value
    for key in ("for", "train"):
        if not values.get(key):
            raise UsageError(f"--phase {number}: {key}= is missing, as in 'for=5epochs; train=head'")
    try:
        return _phase_spec(values.get("name", f"phase{number}"), values, plan)
    except UsageError as error:
        raise UsageError(f"--phase {number}: {error}") from None


_PHASE_KEYS = (
    "name", "for", "train", "lr", "lr_schedule", "warmup", "optimizer", "momentum",
    "weight_decay", "bn", "augment",
)  # fmt: skip


def _phase_spec(name: str, values: dict[str, Any], plan: Any) -> PhaseSpec:

    def choice(key: str, default: str, choices: Sequence[str]) -> str:
        value = values.get(key, default)
        if value not in choices:
            raise UsageError(f"{key}={value} is not one of {', '.join(choices)}")
        return value

    def number(key: str, default: float) -> float:
        try:
            value = float(values.get(key, default))
        except ValueError:
            raise UsageError(f"{key}={values[key]} is not a number") from None
        if not 0 <= value < float("inf"):
            raise UsageError(f"{key}={value:g} must be 0 or more")
        return value

    optimizer = choice("optimizer", plan.optimizer, OPTIMIZERS)
    momentum, weight_decay = number("momentum", plan.momentum), number("weight_decay", plan.weight_decay)
    if momentum > 1:
        raise UsageError(f"momentum={momentum:g} must be 1 or less")
    if weight_decay and optimizer not in WITH_WEIGHT_DECAY:
        raise UsageError(
            f"weight_decay={weight_decay:g}: {optimizer} has none; use {' or '.join(WITH_WEIGHT_DECAY)}, or 0"
        )
    duration = Duration.parse(values["for"], flag="for")
    if duration.unit == "%" or duration.amount <= 0:
        raise UsageError(f"for={values['for']} must be more than 0 epochs, steps or examples")
    augment = values.get("augment", plan.augment)
    parse_calls(augment)
    return PhaseSpec(
        name=name,
        duration=duration,
        train=_train_patterns(values["train"]),
        learning_rate=number("lr", plan.finetune_learning_rate),
        lr_schedule=choice("lr_schedule", plan.lr_schedule, LR_SCHEDULES),
        warmup=Duration.parse(values.get("warmup", plan.warmup), flag="warmup"),
        optimizer=optimizer,
        momentum=momentum,
        weight_decay=weight_decay,
        bn=choice("bn", plan.bn, BN_MODES),
        augment=augment,
    )


def _train_patterns(text: str) -> tuple[str, ...]:
    patterns = tuple({"all": ".*", "head": "head/"}.get(p, p) for p in text.split())
    for pattern in patterns:
        try:
            re.compile(pattern.removeprefix("not:"))
        except re.error as error:
            raise UsageError(f"train={pattern}: not a regular expression ({error})") from None
    if not patterns:
        raise UsageError("train= names no variables; train=head, train=all, or regexes")
    return patterns
