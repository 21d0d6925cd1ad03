"""--phase read, and what --schedule stands for."""

import re

import pytest

from trainer.config import Config, PlanConfig
from trainer.phase_specs import LR_SCHEDULES, SCHEDULES, PhaseSpec, phase_specs
from trainer.values import Duration, UsageError


def specs(*phases, **plan):
    return phase_specs(PlanConfig(phase=phases, **plan))


def test_schedules():
    plan = {
        "frozen_for": "4epochs", "finetune_for": "2epochs", "frozen_learning_rate": 0.01,
        "finetune_learning_rate": 0.001, "finetune_train": "not:.*gamma all", "bn": "batch",
        "optimizer": "sgd", "momentum": 0.8, "weight_decay": 0.1, "lr_schedule": "cosine",
        "warmup": "10%", "augment": "flip",
    }  # fmt: skip
    common = {
        "lr_schedule": "cosine", "warmup": Duration(10, "%"), "optimizer": "sgd", "momentum": 0.8,
        "weight_decay": 0.1, "augment": "flip",
    }  # fmt: skip
    frozen = PhaseSpec(
        name="frozen",
        duration=Duration(4, "epochs"),
        train=("head/",),
        learning_rate=0.01,
        bn="frozen",  # Whatever --bn says: nothing of the backbone may move.
        **common,
    )
    finetune = PhaseSpec(
        name="finetune",
        duration=Duration(2, "epochs"),
        train=("not:.*gamma", ".*"),
        learning_rate=0.001,
        bn="batch",
        **common,
    )
    wanted = {"frozen": [frozen], "finetune": [finetune], "two_phase": [frozen, finetune]}
    assert set(wanted) == set(SCHEDULES)
    for schedule, phases in wanted.items():
        assert specs(schedule=schedule, **plan) == phases


def test_a_phase_takes_what_it_leaves_out_from_the_options():
    (spec,) = specs(
        "for=3steps;train=head", finetune_learning_rate=0.5, lr_schedule="step", warmup="1steps",
        optimizer="rmsprop", momentum=0.7, bn="batch", augment="crop(0.5)",
    )  # fmt: skip
    assert spec == PhaseSpec(
        name="phase1",
        duration=Duration(3, "steps"),
        train=("head/",),
        learning_rate=0.5,
        lr_schedule="step",
        warmup=Duration(1, "steps"),
        optimizer="rmsprop",
        momentum=0.7,
        weight_decay=0.0,
        bn="batch",
        augment="crop(0.5)",
    )


def test_a_phase_overrides_every_option():
    (first, second) = specs(
        " name = top ; for = 20 examples; train=not:.*bias head backbone/conv[12]/.* ; lr=1e-2; "
        "lr_schedule=cosine; warmup=25%; optimizer=sgd; momentum=0; weight_decay=0.5; bn=batch; "
        "augment=flip,crop(0.6);",
        "for=1epochs; train=all; augment=",
        optimizer="adamw",
        weight_decay=0.25,
        augment="flip",
        schedule="frozen",
    )
    assert first == PhaseSpec(
        name="top",
        duration=Duration(20, "examples"),
        train=("not:.*bias", "head/", "backbone/conv[12]/.*"),
        learning_rate=0.01,
        lr_schedule="cosine",
        warmup=Duration(25, "%"),
        optimizer="sgd",
        momentum=0.0,
        weight_decay=0.5,
        bn="batch",
        augment="flip,crop(0.6)",
    )
    assert (second.name, second.train, second.augment) == ("phase2", (".*",), "")
    assert (second.optimizer, second.weight_decay) == ("adamw", 0.25)


@pytest.mark.parametrize(
    ("phase", "message"),
    [
        ("train=head", "for= is missing, as in 'for=5epochs; train=head'"),
        ("for=5epochs", "train= is missing, as in 'for=5epochs; train=head'"),
        ("", "for= is missing, as in 'for=5epochs; train=head'"),
        ("for=; train=head", "for= is missing, as in 'for=5epochs; train=head'"),
        (
            "for=1steps; train=head; colour=red",
            "'colour=red' is not one of name=, for=, train=, lr=, .*augment=",
        ),
        ("for=1steps; train=head; flip", "'flip' is not one of name=, .*"),
        ("for=1steps; train=head; for=2steps", "for= is given twice"),
        ("for=5; train=head", "for=5: a length needs a number and a unit: .*"),
        ("for=10%; train=head", "for=10% must be more than 0 epochs, steps or examples"),
        ("for=0steps; train=head", "for=0steps must be more than 0 epochs, steps or examples"),
        ("for=1steps; train=head; lr=fast", "lr=fast is not a number"),
        ("for=1steps; train=head; lr=-1", "lr=-1 must be 0 or more"),
        ("for=1steps; train=head; lr=nan", "lr=nan must be 0 or more"),
        ("for=1steps; train=head; lr=inf", "lr=inf must be 0 or more"),
        ("for=1steps; train=head; momentum=x", "momentum=x is not a number"),
        ("for=1steps; train=head; momentum=1.5", r"momentum=1\.5 must be 1 or less"),
        ("for=1steps; train=head; weight_decay=x", "weight_decay=x is not a number"),
        (
            "for=1steps; train=head; weight_decay=0.1",
            r"weight_decay=0\.1: adam has none; use adamw or sgd, or 0",
        ),
        ("for=1steps; train=head; optimizer=lamb", "optimizer=lamb is not one of adam, adamw, sgd, rmsprop"),
        ("for=1steps; train=head; lr_schedule=up", f"lr_schedule=up is not one of {', '.join(LR_SCHEDULES)}"),
        ("for=1steps; train=head; bn=off", "bn=off is not one of frozen, batch"),
        ("for=1steps; train=head; warmup=5", "warmup=5: a length needs a number and a unit: .*"),
        ("for=1steps; train=head; augment=crop(", r"'crop\(' is not a list of names with arguments, .*"),
        ("for=1steps; train=head/(", r"train=head/\(: not a regular expression \(.*\)"),
        ("for=1steps; train=not:(", r"train=not:\(: not a regular expression \(.*\)"),
    ],
)
def test_phases_refused(phase, message):
    # As the second of two, so that the number counts.
    with pytest.raises(UsageError) as error:
        specs("for=1steps; train=head", phase)
    assert re.fullmatch(f"--phase 2: {message}", str(error.value)), str(error.value)
    with pytest.raises(UsageError):
        Config().replace(phase=[phase])


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"frozen_for": "0steps"}, "frozen phase of --schedule=two_phase: for=0steps must be more than 0 .*"),
        ({"finetune_for": "10"}, "finetune phase of --schedule=two_phase: for=10: a length needs .*"),
        ({"frozen_learning_rate": -1.0}, "frozen phase of --schedule=two_phase: lr=-1 must be 0 or more"),
        ({"finetune_train": " "}, "finetune phase .*: train= names no variables; train=head, .* or regexes"),
        ({"finetune_train": "["}, r"finetune phase .*: train=\[: not a regular expression \(.*\)"),
        (
            {"weight_decay": 0.1, "schedule": "frozen"},
            "frozen phase of --schedule=frozen: weight_decay=0.1: .*",
        ),
        (
            {"warmup": "x", "schedule": "finetune"},
            "finetune phase of --schedule=finetune: warmup=x: a length .*",
        ),
    ],
)
def test_schedules_refused(plan, message):
    with pytest.raises(UsageError) as error:
        Config().replace(**plan)
    assert re.fullmatch(message, str(error.value)), str(error.value)
