"""What a phase of training is asked to be: `--phase` read, and what `--schedule` stands for.

`loop/phases.py` turns these into steps.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trainer.values import Call, Calls, Duration, UsageError, as_number, close_names, is_it, parse_calls

SCHEDULES = ("recommended", "frozen", "finetune", "two_phase", "gradual(N)", "auto", "fit")
BN_MODES = ("frozen", "batch")
MOST_PHASES = 100
# Beyond it, products of two are no longer safe in float32.
LARGEST = 1e30
WAYS_TO_TRAIN = ("train", "from_layer", "unfreeze_top_layers")

# What --schedule=auto says of its one phase; from_layer and unfreeze_top_layers it refuses by itself.
RULED = (
    "frozen_for", "finetune_for", "frozen_learning_rate", "finetune_learning_rate", "finetune_train",
    "lr_schedule", "warmup", "optimizer", "momentum", "nesterov", "weight_decay", "augment",
)  # fmt: skip


# What has no effect with --schedule=fit, whose one update changes nothing.
UNFIT = (*RULED, "from_layer", "unfreeze_top_layers", "bn", "average")
_FIT = {
    "for": "1steps", "lr": "0", "train": "head", "lr_schedule": "constant", "warmup": "0steps",
    "optimizer": "sgd", "momentum": "0", "nesterov": "false", "weight_decay": "0", "bn": "frozen",
    "augment": "", "average": "",
}  # fmt: skip


@dataclass(frozen=True)
class PhaseSpec:
    """One phase as it was asked for, before lengths are turned into steps.

    `train` holds patterns that `model/freezing.py` reads: regexes over variable names, or layers.
    """

    name: str
    duration: Duration
    train: tuple[str, ...]
    learning_rate: float
    lr_schedule: Call
    warmup: Duration
    optimizer: Call
    momentum: float
    nesterov: bool
    weight_decay: float
    bn: str
    augment: Calls
    average: Call | None


def is_auto(plan: Any) -> bool:
    """Returns whether BiT-HyperRule says what the phases are, once the pictures are known."""
    return plan.schedule == "auto" and not plan.phase


def phase_specs(plan: Any) -> list[PhaseSpec]:
    """Returns the phases of a run: those of --phase, or what --schedule stands for.

    None for auto; those of recommended are as far as they are set by hand.

    Args:
      plan: a `config.PlanConfig`, whose options are also the defaults of what a --phase leaves out.

    Raises:
      UsageError: a --phase cannot be read; the message names the part.
    """
    if plan.phase:
        specs = [_parse_phase(text, i, plan) for i, text in enumerate(plan.phase, 1)]
        names = [spec.name for spec in specs]
        for i, name in enumerate(names, 1):
            if name in names[: i - 1]:
                raise UsageError(f"--phase {i}: name={name} is the name of an earlier phase, too")
        return specs
    wanted = _scheduled(plan)
    specs = []
    for name, values in wanted.items():
        try:
            specs.append(_phase_spec(name, values, plan))
        except UsageError as error:
            raise UsageError(f"{name} phase of --schedule={plan.schedule}: {error}") from None
    return specs


def phase_text(spec: PhaseSpec) -> str:
    """Returns the value of --phase that says a phase in full, whatever the other options are."""
    way, equals, value = spec.train[0].partition("=")
    # What stands between parts, a regex can say otherwise.
    is_alone = equals and way in WAYS_TO_TRAIN and len(spec.train) == 1
    what = {way: value} if is_alone else {"train": " ".join(spec.train)}
    values = {
        "name": spec.name,
        "for": spec.duration,
        **{key: text.replace(";", r"\x3b") for key, text in what.items()},
        "lr": repr(spec.learning_rate),
        "lr_schedule": spec.lr_schedule,
        "warmup": spec.warmup,
        "optimizer": spec.optimizer,
        "momentum": repr(spec.momentum),
        "nesterov": str(spec.nesterov).lower(),
        "weight_decay": repr(spec.weight_decay),
        "bn": spec.bn,
        "augment": spec.augment,
        "average": spec.average or "",
    }
    return "; ".join(f"{key}={value}" for key, value in values.items())


def _scheduled(plan: Any) -> dict[str, dict[str, Any]]:
    """Returns {name of a phase: its part of what a --phase would say}."""
    calls = parse_calls(plan.schedule, flag="--schedule", such_as="two_phase or gradual(4)")
    call = calls[0] if len(calls) == 1 else Call("")
    frozen = {"for": plan.frozen_for, "lr": plan.frozen_learning_rate, "train": "head", "bn": "frozen"}
    finetune = {"for": plan.finetune_for, "lr": plan.finetune_learning_rate, **_finetune_train(plan)}
    plain = {
        "frozen": {"frozen": frozen},
        "finetune": {"finetune": finetune},
        "two_phase": {"frozen": frozen, "finetune": finetune},
        "recommended": {"frozen": frozen, "finetune": finetune},
        "auto": {},
        # All that comes after an update, such as an evaluation and a checkpoint, comes after this one, too.
        "fit": {"fit": _FIT},
    }
    if call.name in plain and not call.args:
        if plan.schedule != call.name:
            raise UsageError(
                f"--schedule={plan.schedule}: write --schedule={call.name}, and nothing behind it"
            )
        if call.name in ("frozen", "auto", "fit") and (plan.from_layer or plan.unfreeze_top_layers):
            raise UsageError(
                "--from_layer and --unfreeze_top_layers say what trains in fine-tuning, and "
                f"--schedule={call.name} has no such phase"
            )
        return plain[call.name]
    if call.name != "gradual":
        close = close_names(call.name, (name.partition("(")[0] for name in SCHEDULES), n=1)
        raise UsageError(f"--schedule={plan.schedule} is not one of {', '.join(SCHEDULES)}{is_it(close)}")
    number = call.args[0] if len(call.args) == 1 else None
    if call.named or not isinstance(number, int) or not 2 <= number <= MOST_PHASES:
        raise UsageError(f"--schedule={plan.schedule}: how many phases, 2 to {MOST_PHASES}, as in gradual(4)")
    if _finetune_train(plan) != {"train": "all"}:
        raise UsageError(
            f"--schedule={plan.schedule} opens the network from the top by itself: leave --finetune_train, "
            "--from_layer and --unfreeze_top_layers away"
        )
    whole = Duration.parse(plan.finetune_for, flag="--finetune_for")
    each = str(Duration(whole.amount / (number - 1), whole.unit))
    opened = {
        f"gradual{i + 1}": {**finetune, "for": each, "train": f"top_share={i / (number - 1):.6g}"}
        for i in range(1, number)
    }
    return {"frozen": frozen, **opened}


def _finetune_train(plan: Any) -> dict[str, str]:
    given = {
        "train": plan.finetune_train if plan.finetune_train != "all" else "",
        "from_layer": plan.from_layer,
        "unfreeze_top_layers": str(plan.unfreeze_top_layers or ""),
    }
    given = {key: value for key, value in given.items() if value}
    if len(given) > 1:
        flags = " and ".join(f"--{'finetune_' if key == 'train' else ''}{key}" for key in given)
        raise UsageError(f"{flags} both say what trains in fine-tuning: give one")
    return given or {"train": "all"}


def _parse_phase(text: str, number: int, plan: Any) -> PhaseSpec:
    values: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in text.split(";"))):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or key not in _PHASE_KEYS:
            raise UsageError(f"--phase {number}: {part!r} is not one of {'=, '.join(_PHASE_KEYS)}=")
        if key in values:
            raise UsageError(f"--phase {number}: {key}= is given twice")
        values[key] = value
    if not values.get("for"):
        raise UsageError(f"--phase {number}: for= is missing, as in 'for=5epochs; train=head'")
    ways = [key for key in WAYS_TO_TRAIN if values.get(key)]
    if not ways:
        raise UsageError(f"--phase {number}: train= is missing, as in 'for=5epochs; train=head'")
    if len(ways) > 1:
        raise UsageError(f"--phase {number}: {'= and '.join(ways)}= both say what trains: give one")
    name = values.get("name", f"phase{number}")
    # It becomes a part of tags in TensorBoard.
    if not re.fullmatch(r"[\w.+-]*\w[\w.+-]*", name, re.ASCII):
        raise UsageError(f"--phase {number}: name={name} must be of letters, digits and _ . + -")
    try:
        return _phase_spec(name, values, plan)
    except UsageError as error:
        raise UsageError(f"--phase {number}: {error}") from None


_PHASE_KEYS = (
    "name", "for", "train", "from_layer", "unfreeze_top_layers", "lr", "lr_schedule", "warmup", "optimizer",
    "momentum", "nesterov", "weight_decay", "bn", "augment", "average",
)  # fmt: skip


def _phase_spec(name: str, values: dict[str, Any], plan: Any) -> PhaseSpec:

    def choice(key: str, default: str, choices: Sequence[str]) -> str:
        value = values.get(key, default)
        if value not in choices:
            raise UsageError(f"{key}={value} is not one of {', '.join(choices)}")
        return value

    def number(key: str, default: float) -> float:
        try:
            value = as_number(str(values.get(key, default)))
        except ValueError:
            raise UsageError(f"{key}={values[key]} is not a number") from None
        if not 0 <= value < float("inf"):
            raise UsageError(f"{key}={value:g} must be a number, 0 or more")
        if value > LARGEST:
            raise UsageError(f"{key}={value:g} must be {LARGEST:g} or less")
        return value

    def calls(key: str, default: str) -> Calls:
        try:
            return parse_calls(values.get(key, default))
        except UsageError as error:
            raise UsageError(f"{key}={error}") from None

    def call(key: str, default: str) -> Call | None:
        found = calls(key, default)
        if len(found) > 1:
            raise UsageError(f"{key}={found} is more than one")
        return found[0] if found else None

    def one(key: str, default: str) -> Call:
        if found := call(key, default):
            return found
        raise UsageError(f"{key}= is empty")

    momentum, weight_decay = number("momentum", plan.momentum), number("weight_decay", plan.weight_decay)
    if momentum > 1:
        raise UsageError(f"momentum={momentum:g} must be 1 or less")
    nesterov = choice("nesterov", str(plan.nesterov).lower(), ("true", "false")) == "true"
    duration = Duration.parse(values["for"], flag="for")
    if duration.unit == "%" or duration.amount <= 0:
        raise UsageError(f"for={values['for']} must be more than 0 epochs, steps or examples")
    return PhaseSpec(
        name=name,
        duration=duration,
        train=_train_patterns(values),
        learning_rate=number("lr", plan.finetune_learning_rate),
        lr_schedule=one("lr_schedule", plan.lr_schedule),
        warmup=Duration.parse(values.get("warmup", plan.warmup), flag="warmup"),
        optimizer=one("optimizer", plan.optimizer),
        momentum=momentum,
        nesterov=nesterov,
        weight_decay=weight_decay,
        bn=choice("bn", plan.bn, BN_MODES),
        augment=calls("augment", plan.augment),
        average=call("average", plan.average),
    )


def _train_patterns(values: dict[str, Any]) -> tuple[str, ...]:
    for key in WAYS_TO_TRAIN[1:]:
        if text := values.get(key):
            if key == "unfreeze_top_layers" and not re.fullmatch("[1-9][0-9]{0,8}", text):
                raise UsageError(f"{key}={text} must be a whole number, 1 or more")
            return (f"{key}={text}",)
    if values["train"].startswith("top_share="):
        return (values["train"],)
    patterns = tuple({"all": ".*", "head": "head/"}.get(p, p) for p in values["train"].split())
    for pattern in patterns:
        try:
            re.compile(pattern.removeprefix("not:"))
        except re.error as error:
            raise UsageError(f"train={pattern}: not a regular expression ({error})") from None
    if not patterns:
        raise UsageError("train= names no variables; train=head, train=all, or regexes")
    return patterns
