"""--phase read, and what --schedule stands for."""

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.cli.config import Config, PlanConfig
from trainer.cli.phase_specs import SCHEDULES, PhaseSpec, is_auto, phase_specs, phase_text
from trainer.values import Call, Duration, UsageError, parse_calls


def specs(*phases, **plan):
    return phase_specs(PlanConfig(phase=phases, **plan))


def test_schedules():
    plan = {
        "frozen_for": "4epochs", "finetune_for": "2epochs", "frozen_learning_rate": 0.01,
        "finetune_learning_rate": 0.001, "finetune_train": "not:.*gamma all", "bn": "batch",
        "optimizer": "sgd", "momentum": 0.8, "weight_decay": 0.1, "lr_schedule": "cosine",
        "warmup": "10%", "augment": "flip", "nesterov": True, "average": "ema",
    }  # fmt: skip
    common = {
        "lr_schedule": Call("cosine"), "warmup": Duration(10, "%"), "optimizer": Call("sgd"), "momentum": 0.8,
        "nesterov": True, "weight_decay": 0.1, "augment": parse_calls("flip"), "average": Call("ema"),
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
    wanted = {
        "frozen": [frozen],
        "finetune": [finetune],
        "two_phase": [frozen, finetune],
        # Before anything is chosen.
        "recommended": [frozen, finetune],
    }
    assert {*wanted, "gradual(N)", "auto", "fit"} == set(SCHEDULES)
    for schedule, phases in wanted.items():
        assert specs(schedule=schedule, **plan) == phases


PATTERNS = ["head", "all", "not:.*bias head", "a;b .*=c", "top_share=0.5", "  backbone/x  head/ "]


def plans():
    """Options that phases are made of, as validation takes them."""
    lengths = st.builds(
        "{}{}".format,
        st.integers(1, 10**15 - 1) | st.just("0.5"),
        st.sampled_from(["epochs", "steps", "examples"]),
    )
    numbers = st.floats(0, 1e30)
    optimizer = st.fixed_dictionaries(
        {"optimizer": st.sampled_from(["adam", "rmsprop"])}
    ) | st.fixed_dictionaries(
        {
            "optimizer": st.just("sgd"),
            "momentum": st.floats(1e-9, 1),
            "nesterov": st.booleans(),
            "weight_decay": numbers,
        }
    )
    trains = st.fixed_dictionaries(
        {"schedule": st.sampled_from(["finetune", "two_phase"])},
    ).flatmap(
        lambda schedule: st.one_of(
            st.fixed_dictionaries({"finetune_train": st.sampled_from(PATTERNS)}),
            st.fixed_dictionaries({"from_layer": st.sampled_from(["-8", "block 3/conv"])}),
            st.fixed_dictionaries({"unfreeze_top_layers": st.integers(1, 99)}),
        ).map(lambda more: schedule | more)
    )
    schedules = trains | st.fixed_dictionaries(
        {"schedule": st.sampled_from(["frozen", "gradual(2)", "gradual(7)"])}
    )
    common = st.fixed_dictionaries(
        {
            "frozen_for": lengths, "finetune_for": lengths, "frozen_learning_rate": numbers,
            "finetune_learning_rate": numbers, "bn": st.sampled_from(["frozen", "batch"]),
            "lr_schedule": st.sampled_from(["constant", "step(0.3,0.7)", " cosine "]),
            "warmup": st.sampled_from(["0steps", "12.5%", "3epochs"]),
            "augment": st.sampled_from(["", "flip, crop(0.5)", " flip"]),
            "average": st.sampled_from(["", "ema(0.9)", "swa"]),
        }
    )  # fmt: skip
    return st.tuples(schedules, optimizer, common).map(lambda parts: parts[0] | parts[1] | parts[2])


@settings(max_examples=200, deadline=None)
@given(plan=plans())
def test_a_phase_that_is_written_in_full_is_the_same_phase(plan):
    wanted = specs(**plan)
    written = [phase_text(spec) for spec in wanted]
    assert specs(*written) == specs(*written, optimizer="lion", average="swa", bn="batch", augment="zoom")
    regexes = [tuple(text.replace(";", r"\x3b") for text in spec.train) for spec in wanted]
    assert specs(*written) == [
        replace(spec, train=train) for spec, train in zip(wanted, regexes, strict=True)
    ]


def test_a_phase_that_is_written_in_full_has_all_that_trains_beside_a_layer():
    for train in ("unfreeze_top_layers=20 .*/gamma .*/beta", "from_layer=block_13_expand backbone/Conv1"):
        (spec,) = specs(schedule="finetune", finetune_train=train)
        assert spec.train == tuple(train.split())
        (written,) = specs(phase_text(spec))
        assert written == spec


@pytest.mark.parametrize(
    "text",
    ["auto()", "auto ", " recommended", "recommended()", "two_phase(frozen_for=3)", "fit()"],
)
def test_a_schedule_that_takes_nothing_is_written_as_it_is_called(text):
    name = text.strip().partition("(")[0]
    with pytest.raises(UsageError) as caught:
        specs(schedule=text)
    assert str(caught.value) == f"--schedule={text}: write --schedule={name}, and nothing behind it"
    with pytest.raises(UsageError, match="how many phases, 2 to"):
        specs(schedule="gradual(4,n=3)")


def test_a_phase_takes_what_it_leaves_out_from_the_options():
    (spec,) = specs(
        "for=3steps;train=head", finetune_learning_rate=0.5, lr_schedule="step", warmup="1steps",
        optimizer="rmsprop", momentum=0.7, bn="batch", augment="crop(0.5)", average="swa",
    )  # fmt: skip
    assert spec == PhaseSpec(
        name="phase1",
        duration=Duration(3, "steps"),
        train=("head/",),
        learning_rate=0.5,
        lr_schedule=Call("step"),
        warmup=Duration(1, "steps"),
        optimizer=Call("rmsprop"),
        momentum=0.7,
        nesterov=False,
        weight_decay=0.0,
        bn="batch",
        augment=parse_calls("crop(0.5)"),
        average=Call("swa"),
    )


def test_a_phase_overrides_every_option():
    (first, second) = specs(
        " name = top ; for = 20 examples; train=not:.*bias head backbone/conv[12]/.* ; lr=1e-2; "
        "lr_schedule=cosine; warmup=25%; optimizer=sgd; momentum=0.5; weight_decay=0.5; bn=batch; "
        "augment=flip,crop(0.6); nesterov=true; average=ema(0.9)",
        "for=1epochs; train=all; augment=; average=",
        optimizer="adamw",
        weight_decay=0.25,
        augment="flip",
        average="swa",
        schedule="frozen",
    )
    assert first == PhaseSpec(
        name="top",
        duration=Duration(20, "examples"),
        train=("not:.*bias", "head/", "backbone/conv[12]/.*"),
        learning_rate=0.01,
        lr_schedule=Call("cosine"),
        warmup=Duration(25, "%"),
        optimizer=Call("sgd"),
        momentum=0.5,
        nesterov=True,
        weight_decay=0.5,
        bn="batch",
        augment=parse_calls("flip,crop(0.6)"),
        average=Call("ema", (0.9,)),
    )
    assert (second.name, second.train, second.augment, second.average) == ("phase2", (".*",), (), None)
    assert (second.optimizer, second.weight_decay) == (Call("adamw"), 0.25)


@pytest.mark.parametrize(
    ("phase", "message"),
    [
        ("train=head", "for= is missing, as in 'for=5epochs; train=head'"),
        ("for=5epochs", "train= is missing, as in 'for=5epochs; train=head'"),
        ("", "for= is missing, as in 'for=5epochs; train=head'"),
        ("for=; train=head", "for= is missing, as in 'for=5epochs; train=head'"),
        (
            "for=1steps; train=head; colour=red",
            "'colour=red' is not one of name=, for=, train=, from_layer=, .*average=",
        ),
        ("for=1steps; train=head; flip", "'flip' is not one of name=, .*"),
        ("for=1steps; train=head; for=2steps", "for= is given twice"),
        ("for=5; train=head", "for=5: a length needs a number and a unit: .*"),
        ("for=10%; train=head", "for=10% must be more than 0 epochs, steps or examples"),
        ("for=0steps; train=head", "for=0steps must be more than 0 epochs, steps or examples"),
        ("for=1steps; train=head; lr=fast", "lr=fast is not a number"),
        ("for=1steps; train=head; lr=-1", "lr=-1 must be a number, 0 or more"),
        ("for=1steps; train=head; lr=nan", "lr=nan must be a number, 0 or more"),
        ("for=1steps; train=head; lr=inf", "lr=inf must be a number, 0 or more"),
        ("for=1steps; train=head; momentum=x", "momentum=x is not a number"),
        ("for=1steps; train=head; momentum=1.5", r"momentum=1\.5 must be 1 or less"),
        ("for=1steps; train=head; weight_decay=x", "weight_decay=x is not a number"),
        ("for=1steps; train=head; lr_schedule=up(", r"lr_schedule='up\(' is not a list of names .*"),
        ("for=1steps; train=head; lr_schedule=step,cosine", "lr_schedule=step,cosine is more than one"),
        ("for=1steps; train=head; average=ema,swa", "average=ema,swa is more than one"),
        ("for=1steps; train=head; nesterov=yes", "nesterov=yes is not one of true, false"),
        ("for=1steps; train=head; from_layer=3", "train= and from_layer= both say what trains: give one"),
        ("for=1steps; unfreeze_top_layers=-3", "unfreeze_top_layers=-3 must be a whole number, 1 or more"),
        ("for=1steps; unfreeze_top_layers=0", "unfreeze_top_layers=0 must be a whole number, 1 or more"),
        ("for=1steps; train=head; name=a/b", "name=a/b must be of letters, digits and _ . [+] -"),
        ("for=1steps; train=head; name=..", "name=.. must be of letters, digits and _ . [+] -"),
        ("for=1steps; train=head; name=phase1", "name=phase1 is the name of an earlier phase, too"),
        ("for=1steps; train=head; bn=off", "bn=off is not one of frozen, batch"),
        ("for=1steps; train=head; warmup=5", "warmup=5: a length needs a number and a unit: .*"),
        (
            "for=1steps; train=head; augment=crop(",
            r"augment='crop\(' is not a list of names with arguments, .*",
        ),
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
        Config().replace(phase=["for=1steps; train=head", phase])


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (
            {"frozen_for": "0steps"},
            "frozen phase of --schedule=recommended: for=0steps must be more than 0 .*",
        ),
        (
            {"frozen_learning_rate": -1.0},
            "frozen phase of --schedule=recommended: lr=-1 must be a number, 0 or more",
        ),
        ({"finetune_train": " "}, "finetune phase .*: train= names no variables; train=head, .* or regexes"),
        ({"finetune_train": "["}, r"finetune phase .*: train=\[: not a regular expression \(.*\)"),
        ({"schedule": "sideways"}, re.escape(f"--schedule=sideways is not one of {', '.join(SCHEDULES)}")),
        ({"schedule": "frozen,finetune"}, "--schedule=frozen,finetune is not one of .*"),
        ({"schedule": "frozen(2)"}, r"--schedule=frozen\(2\) is not one of .*"),
        (
            {"schedule": "frozen", "from_layer": "3"},
            "--from_layer and --unfreeze_top_layers say what trains .*, and --schedule=frozen has no .*",
        ),
        ({"schedule": "auto", "unfreeze_top_layers": 3}, ".* and --schedule=auto has no such phase"),
        ({"schedule": "gradual"}, "--schedule=gradual: how many phases, 2 to 100, as in gradual.*"),
        ({"schedule": "gradual(1)"}, r"--schedule=gradual\(1\): how many phases, 2 to 100, .*"),
        (
            {"schedule": "gradual(3)", "from_layer": "3"},
            r"--schedule=gradual\(3\) opens the network from the top by itself: leave .* away",
        ),
        (
            {"from_layer": "3", "unfreeze_top_layers": 2},
            "--from_layer and --unfreeze_top_layers both say what trains in fine-tuning: give one",
        ),
        (
            {"from_layer": "3", "finetune_train": "head"},
            "--finetune_train and --from_layer both say what trains in fine-tuning: give one",
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


def test_gradual_opens_the_network_from_the_top():
    first, *others = specs(schedule="gradual(4)", frozen_for="4epochs", finetune_for="6epochs", bn="batch")
    assert (first.name, first.train, first.duration, first.bn) == (
        "frozen", ("head/",), Duration(4, "epochs"), "frozen",
    )  # fmt: skip
    assert [spec.name for spec in others] == ["gradual2", "gradual3", "gradual4"]
    assert [spec.train for spec in others] == [
        ("top_share=0.333333",), ("top_share=0.666667",), ("top_share=1",),
    ]  # fmt: skip
    assert {spec.duration for spec in others} == {Duration(2, "epochs")}
    assert {(spec.learning_rate, spec.bn) for spec in others} == {(1e-4, "batch")}


def test_what_trains_in_finetuning_may_be_named_by_layer():
    assert specs(from_layer="block_3_expand")[1].train == ("from_layer=block_3_expand",)
    assert specs(unfreeze_top_layers=8)[1].train == ("unfreeze_top_layers=8",)
    assert specs(finetune_train="head backbone/x")[1].train == ("head/", "backbone/x")
    (spec,) = specs("for=1steps; from_layer=-3")
    assert spec.train == ("from_layer=-3",)
    (spec,) = specs("for=1steps; unfreeze_top_layers=3")
    assert spec.train == ("unfreeze_top_layers=3",)


def test_auto_has_no_phases_yet():
    plan = PlanConfig(schedule="auto")
    assert is_auto(plan)
    assert phase_specs(plan) == []
    with_phases = PlanConfig(schedule="auto", phase=("for=1steps; train=head",))
    assert not is_auto(with_phases)
    assert len(phase_specs(with_phases)) == 1
