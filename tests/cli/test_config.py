"""The tree of options, its validation, and what identifies a run."""

import dataclasses
import hashlib
import json
import re

import pytest

from trainer.cli.config import Config
from trainer.cli.flags import parse
from trainer.values import UsageError

FIELDS = {f.name: f for section in dataclasses.fields(Config) for f in dataclasses.fields(section.default)}
ENUMS = {name: f.metadata["choices"] for name, f in FIELDS.items() if f.metadata["choices"]}
# What may differ when a run is resumed: where things are, how often is looked, what is shown.
NOT_IDENTITY = {
    "data_dir", "checksum", "workdir", "log_every", "save_every", "keep_checkpoints",
    "strategy", "cache_dir", "progress", "eval_split", "checkpoint", "memory_budget_mb", "feature_cache",
    "picture_cache", "wait_for_workers_secs",
    "cache_limit_gb", "output", "repeats", "on_bad_image", "max_pixels", "save_every_secs", "max_minutes",
    "stop_signals", "on_nonfinite", "max_rollbacks", "max_loss", "assert_accuracy_at_least",
    "assert_at_least",
    "format", "top_k", "threshold", "find_lr_range", "find_lr_steps", "find_lr_phase", "report_dir", "model",
    "saliency", "explain_class", "ig_steps", "num_explained", "formats", "export_dir", "calibration_pictures",
    "max_accuracy_drop", "figures_every", "bind", "port", "max_upload_mb", "histograms_every",
    "profile_steps", "embeddings", "extend", "verbose", "plugin", "callbacks", "curve_shares", "curve_draws",
    "audit_folds", "audit_shown", "search", "space", "trials", "metric", "sampler", "pruner", "study", "jobs",
    "repeat_seeds", "shard",
}  # fmt: skip
# Another valid value than the default, where one cannot be guessed from the type.
OTHER = {
    "plugin": ("mine.py",),
    "phase": ("for=1steps; train=head",), "schedule": "frozen", "accumulate": 2, "loss": "focal(2)",
    "lr_multiplier": ("head/=2",), "layer_decay": 0.5, "average": "ema", "lr_schedule": "cosine",
    "class_weights": "balanced", "assert_accuracy_at_least": 0.5, "assert_at_least": "map=0.5",
    "splits": "50%,25%,25%", "head": "linear",
    "dropout": 0.5, "label_smoothing": 0.5,
    "augment": "flip", "frozen_for": "7steps", "finetune_for": "7steps", "finetune_train": "head",
    "warmup": "1steps", "log_every": "7steps", "evaluate_every": "7steps", "save_every": "7steps",
    "checkpoint": "latest", "stop_signals": "SIGUSR2", "momentum": 0.5, "weight_decay": 0.1,
    "budget": "5min", "by_hand": ("head", "augment"),
    "search": ("dropout=0,0.5",), "shard": "2/3",
    "features": "cls+mean", "curve_shares": "10%,50%,100%",
    "max_accuracy_drop": 0.5, "histograms_every": "7steps", "profile_steps": "3-7", "figures_every": "7steps",
}  # fmt: skip


def other_value(name):
    default = FIELDS[name].default
    if name in OTHER:
        return OTHER[name]
    if name in ENUMS:
        return next(choice for choice in ENUMS[name] if choice != default)
    if isinstance(default, bool):
        return not default
    return default + 1 if isinstance(default, int | float) else default + "x"


def changed(name):
    """A Config in which one option has another value; weight decay needs an optimizer that has it.

    Under --schedule=recommended, `by_hand` changes with many of them.
    """
    base = Config() if name in ("budget", "by_hand") else Config().replace(schedule="two_phase")
    base = base.replace(optimizer="sgd") if name in ("weight_decay", "nesterov") else base
    return base, base.replace(**{name: other_value(name)})


def test_flat_holds_every_option_once_and_from_flat_reads_it_back():
    flat = Config().flat()
    assert list(flat) == list(FIELDS)
    assert len(flat) == sum(len(dataclasses.fields(s.default)) for s in dataclasses.fields(Config))
    assert Config.from_flat(flat) == Config()
    assert Config.from_flat({}) == Config()


@pytest.mark.parametrize("name", FIELDS)
def test_every_option(name):
    base, config = changed(name)
    assert config != base
    assert config.flat() == {**base.flat(), name: other_value(name)}
    # Through JSON and back, as in a run's folder.
    assert Config.from_flat(json.loads(json.dumps(config.flat()))) == config
    assert Config.from_flat(json.loads(json.dumps(config.flat()))).identity() == config.identity()
    assert (config.identity() == base.identity()) == (name in NOT_IDENTITY)
    assert (name in config.identity_values()) == (name not in NOT_IDENTITY)


@pytest.mark.parametrize("name", FIELDS)
def test_every_option_is_described(name):
    field = FIELDS[name]
    assert field.metadata["help"].endswith((".", ")"))
    assert field.metadata["help"][0].isupper()
    assert type(field.default) in (str, int, float, bool, tuple)
    assert not field.metadata["choices"] or field.default in field.metadata["choices"]


def test_identity_is_lasting():
    assert re.fullmatch("[0-9a-f]{16}", Config().identity())
    assert Config().identity() == Config.from_flat(dict(reversed(Config().flat().items()))).identity()


def test_options_that_came_later_leave_hashes_as_they_were():
    """A hash over what there was before them, where they are as it was then."""
    config = Config().replace(seed=3)
    values = config.identity_values()
    for name in (
        *("resize", "antialias", "budget", "by_hand", "features", "image_column", "label_column"),
        *("split_column", "group_column", "weight_column", "image_root", "groups", "folds", "fold"),
        *("near_duplicates", "relabel", "sampling", "engine"),
    ):
        del values[name]
    text = json.dumps(values, sort_keys=True)
    assert config.identity() == hashlib.sha256(text.encode()).hexdigest()[:16]
    others = (
        {}, {"resize": "pad"}, {"resize": "stretch"}, {"antialias": True}, {"features": "cls"},
        {"budget": "best"},
    )  # fmt: skip
    assert len({config.replace(**new).identity() for new in others}) == 6


def test_options_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().run.seed = 1


@pytest.mark.parametrize(("name", "value"), [(n, value) for n, choices in ENUMS.items() for value in choices])
def test_every_value_of_every_enum_is_taken(name, value):
    assert Config().replace(**{name: value}).flat()[name] == value


@pytest.mark.parametrize("name", ENUMS)
def test_another_value_of_an_enum_is_refused(name):
    with pytest.raises(UsageError) as error:
        Config().replace(**{name: "123"})
    assert str(error.value) == f"--{name}=123 is not one of {', '.join(ENUMS[name])}"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"colour": "red"}, "unknown option 'colour'"),
        ({"batch_size": 0}, "--batch_size=0 must be 1 or more"),
        ({"image_size": -1}, "--image_size=-1 must be from 0 to 10000"),
        ({"synthetic_examples": 0}, "--synthetic_examples=0 must be 1 or more"),
        ({"keep_checkpoints": 0}, "--keep_checkpoints=0 must be 1 or more"),
        ({"seed": -1}, "--seed=-1 must be 0 or more"),
        ({"split_seed": -1}, "--split_seed=-1 must be 0 or more"),
        ({"synthetic_seed": -1}, "--synthetic_seed=-1 must be 0 or more"),
        ({"dropout": 1.0}, "--dropout=1 must be 0 or more and below 1"),
        ({"dropout": -0.1}, "--dropout=-0.1 must be 0 or more and below 1"),
        ({"dropout": float("nan")}, "--dropout=nan must be a number 0 or more and below 1"),
        ({"layer_decay": 0.0}, "--layer_decay=0 must be above 0 and at most 1"),
        ({"layer_decay": 1.5}, "--layer_decay=1.5 must be above 0 and at most 1"),
        ({"assert_accuracy_at_least": 95.0}, "--assert_accuracy_at_least=95 must be from 0 to 1"),
        ({"accumulate": 3}, "--accumulate=3 must divide --batch_size=32 into equal parts"),
        ({"patience": 0}, "--patience=0 must be 1 or more"),
        ({"clip_norm": 1.0, "clip_value": 1.0}, "--clip_norm and --clip_value both limit the gradients: .*"),
        (
            {"phase": ("for=1steps; train=head",), "from_layer": "3"},
            "--from_layer and --unfreeze_top_layers are of --schedule: a --phase has its own",
        ),
        ({"loss": "focal("}, r"--loss=focal\( is not a list of names with .* as cross_entropy or focal\(2\)"),
        ({"log_every": "0steps"}, "--log_every=0steps must be more than 0"),
        ({"evaluate_every": "0epochs"}, "--evaluate_every=0epochs must be more than 0"),
        ({"save_every": "0%"}, "--save_every=0% must be more than 0"),
        ({"log_every": "10"}, "--log_every=10: a length needs a number and a unit: .*"),
        ({"checkpoint": "newest"}, "--checkpoint=newest is not best, latest or a step number"),
        (
            {"head": "mlp(5"},
            r"--head=mlp\(5 is not a list of names with arguments, such as linear or mlp\(512\)",
        ),
        ({"workdir": "a\nb"}, r"--workdir='a\\nb' must be on one line, and hold no zero byte"),
        ({"phase": ("for=1steps;\ntrain=head",)}, r"--phase=.* must be on one line, and hold no zero byte"),
    ],
)
def test_values_out_of_range(values, message):
    with pytest.raises(UsageError) as error:
        Config().replace(**values)
    assert re.fullmatch(message, str(error.value))


@pytest.mark.parametrize(
    ("values", "unused"),
    [
        ({"schedule": "frozen", "finetune_for": "7steps", "bn": "batch"}, ["finetune_for", "bn"]),
        ({"schedule": "finetune", "frozen_for": "7steps", "finetune_for": "7steps"}, ["frozen_for"]),
        ({"finetune_for": "7steps", "warmup": "1steps", "batch_size": 8}, []),
        (
            {"phase": ["for=1steps; train=head; lr=1"], "frozen_for": "7steps", "momentum": 0.5},
            ["frozen_for"],
        ),
        ({"phase": ["for=1steps; train=head"], "schedule": "frozen"}, ["schedule"]),
        ({"schedule": "auto", "average": "ema"}, []),
        # Its phases are those of the default as they are written, and not as they are filled in.
        ({"schedule": "two_phase", "finetune_for": "7steps"}, []),
        # What is the default says nothing.
        ({"schedule": "frozen", "finetune_for": "5epochs"}, []),
        # The head alone has no fine-tuning, and its pictures and weights are as they are.
        (
            {
                "budget": "quick",
                "finetune_for": "7steps",
                "augment": "flip",
                "average": "ema",
                "momentum": 0.5,
            },
            ["finetune_for", "augment", "average"],
        ),
        ({"budget": "quick", "frozen_for": "7steps", "frozen_learning_rate": 0.5, "warmup": "1steps"}, []),
        ({"budget": "5min", "finetune_for": "7steps"}, []),
    ],
)
def test_options_that_change_no_phase(values, unused):
    assert Config().replace(**values).unused(values) == unused


def test_flags_of_some_options_give_these_and_no_others(tmp_path):
    given = ["--head=linear", "--dropout=0.0", "--search=dropout=0,0.5", "--search=seed=1,2", "--noantialias"]
    line = parse(["trainer", "sweep", "--workdir=here", "--jobs=3", *given])
    assert "head" in line.config.plan.by_hand
    (tmp_path / "some.flags").write_text(line.config.flags_of([*line.given.keys() - {"jobs"}]))
    again = parse(["trainer", "sweep", f"--flagfile={tmp_path / 'some.flags'}"])
    assert (again.config, again.given) == (line.config.replace(jobs=1), {
        name: value for name, value in line.given.items() if name != "jobs"
    })  # fmt: skip
    assert line.config.flags_of(()).strip() == ""


def test_a_flagfile_of_what_was_changed():
    config = Config().replace(seed=3, frozen_for="3epochs", phase=["for=1steps; train=head"], nesterov=True)
    wanted = {"--seed=3", "--frozen_for=3epochs", "--phase=for=1steps; train=head", "--nesterov"}
    assert set(config.flagfile(changed_only=True).splitlines()) == wanted
    assert Config().flagfile(changed_only=True).strip() == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mAP=0.5", "--assert_at_least=mAP=0.5: 'mAP' is not one of accuracy, map, macro_f1"),
        ("map=2", "--assert_at_least=map=2: map needs a number from 0 to 1, as in map=0.8"),
        ("accuracy=0.5,map", "--assert_at_least=accuracy=0.5,map: map needs a number from 0 to 1"),
    ],
)
def test_least_scores_that_cannot_be_read(text, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        Config().replace(assert_at_least=text)


def test_a_flagfile_says_in_comments_what_a_rule_chose(tmp_path):
    asked = Config()
    chosen = {"schedule": "frozen", "head": "mlp(64)", "batch_size": 16, "frozen_for": "7epochs"}
    told = asked.filled_in(chosen).chosen_beside(asked)
    first, *lines = told.splitlines()
    assert first == "# What --schedule=recommended chose for these pictures:"
    assert {"# --head=mlp(64)", "# --batch_size=16"} < {*lines}
    assert any(line.startswith("# --phase=name=frozen; for=7epochs; train=head") for line in lines)
    assert not any("frozen_for" in line for line in lines)
    assert asked.chosen_beside(asked) == ""
    # Whoever takes the marks off has the phases without the rule.
    path = tmp_path / "chosen.flags"
    path.write_text("\n".join(line.removeprefix("# ") for line in lines))
    assert parse(["trainer", f"--flagfile={path}"]).config.phases == asked.filled_in(chosen).phases
    path.write_text(told)
    assert parse(["trainer", f"--flagfile={path}"]).config == parse(["trainer"]).config
