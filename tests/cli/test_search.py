"""What --search and --space may say, which trials follow from it, and how it is refused."""

import pytest

from trainer.cli import flags
from trainer.cli.search import all_of, apply, check_space, corners, describe, pick, read_space
from trainer.values import UsageError


def space(*search, file=""):
    return read_space(search, file)


def line(*more):
    return flags.parse(["trainer", "sweep", "--workdir=w", "--schedule=frozen", *more])


def first(name, part):
    return part.ends()[0]


def last(name, part):
    return part.ends()[-1]


def test_lists_ranges_and_alternatives():
    found = space("dropout=0,0.2", "batch_size=logint(8,64)", "loss=cross_entropy|focal(uniform(0,5))")
    assert pick(found, first) == {"dropout": "0", "batch_size": "8", "loss": "cross_entropy"}
    assert pick(found, last) == {"dropout": "0.2", "batch_size": "64", "loss": "focal(5.0)"}


def test_commas_of_arguments_and_of_a_value_with_a_range_divide_nothing():
    assert describe(space("head=linear,mlp(8,4)")) == ["head=linear|mlp(8,4)"]
    assert pick(space("augment=flip,rotate(uniform(0,0.3))"), last) == {"augment": "flip,rotate(0.3)"}
    assert pick(space("augment=|flip,hue"), last) == {"augment": "flip,hue"}


def test_what_is_drawn_has_a_name_of_its_own():
    asked = []
    pick(space("head=mlp(int(8,16),int(2,4))", "dropout=0,0.5"), lambda *a: asked.append(a[0]) or first(*a))
    assert asked == ["head=mlp(?,_)", "head=mlp(_,?)", "dropout"]


@pytest.fixture
def conditional(tmp_path):
    file = tmp_path / "space.yaml"
    file.write_text(
        "optimizer:\n  adam:\n  sgd:\n    momentum: [0, 0.9]\n    nesterov: [true, false]\n"
        "label_smoothing: log(0.01, 0.1)\n"
    )
    return space(file=str(file))


def test_a_file_has_options_that_are_searched_beside_one_value_of_another(conditional):
    assert pick(conditional, first) == {"optimizer": "adam", "label_smoothing": "0.01"}
    assert pick(conditional, last) == {
        "optimizer": "sgd", "momentum": "0.9", "nesterov": "false", "label_smoothing": "0.1",
    }  # fmt: skip


def test_every_end_of_every_range_is_tried_where_it_can_be_drawn(conditional):
    seen = [set(texts.items()) for texts in corners(conditional)]
    wanted = [("optimizer", "adam"), ("momentum", "0"), ("momentum", "0.9"), ("nesterov", "true")]
    wanted += [("label_smoothing", "0.01"), ("label_smoothing", "0.1")]
    assert all(any(pair in texts for texts in seen) for pair in wanted)


def test_a_grid_has_all_combinations_and_only_those():
    found = space("dropout=0,0.5", "batch_size=int(4,12,4)")
    assert [tuple(one.values()) for one in all_of(found)] == [
        ("0", 4), ("0", 8), ("0", 12), ("0.5", 4), ("0.5", 8), ("0.5", 12),
    ]  # fmt: skip


def test_a_grid_goes_into_alternatives(tmp_path):
    file = tmp_path / "space.yaml"
    file.write_text("optimizer:\n  adam:\n  sgd:\n    momentum: [0, 0.5, 0.9]\n")
    # Adam once, sgd with each momentum.
    assert len(all_of(space(file=str(file)))) == 4


def test_options_come_to_what_a_command_line_would_say():
    base = line("--phase=name=a; for=1epochs; train=head; lr=1e-3", "--search=dropout=0,0.5")
    found = apply(
        base.config, base.given, {"dropout": "0.5", "phase.a.lr": "0.02", "phase.1.warmup": "2steps"}
    )
    assert (found.model.dropout, found.phases[0].learning_rate) == (0.5, 0.02)
    assert str(found.phases[0].warmup) == "2steps"


def test_what_is_set_by_hand_is_noted_where_a_trial_goes_by_what_is_recommended():
    base = flags.parse(["trainer", "sweep", "--workdir=w", "--image_size=96", "--dropout=0"])
    by_hand = ("image_size", "dropout")
    assert base.config.plan.by_hand == by_hand
    for texts, noted in (
        ({"head": "linear"}, ("image_size", "head", "dropout")),
        ({"head": "probe"}, ()),
        ({"schedule": "two_phase"}, ()),
        ({"schedule": "recommended"}, by_hand),
    ):
        assert apply(base.config, base.given, texts).plan.by_hand == noted


@pytest.mark.parametrize(
    ("search", "message"),
    [
        (["dropout=0,1.5"], "--search: --dropout=1.5 must be 0 or more and below 1"),
        (["dropuot=0,1"], "--search: Unknown command line flag 'dropuot'. Did you mean: dropout ?"),
        (["batch_size=log(8,64)"], "it must be a whole number, in digits"),
        (["dropout=0.1"], "0.1 is one value: give several, or a range"),
        (["dropout=log(0,1)"], "log(0,1): both ends must be above 0"),
        (["dropout=uniform(1,0)"], "the first end must be below the second"),
        (["dropout=uniform(a,1)"], "its ends must be numbers"),
        (["batch_size=int(8,20,5)"], "steps of 5 do not lead from 8 to 20"),
        (["workdir=a,b"], "--workdir cannot be searched"),
        (["optimizer"], "is not OPTION=VALUES"),
        (["batch_size=8,8"], "a value is given twice"),
        (["dropout=0,1", "dropout=0,0.5"], "it is searched twice"),
        (["phase.1.lr=1,2"], "phase.1.lr is no field of a --phase, such as phase.1.lr: there is no --phase"),
        (
            ["phase=lr=1|lr=2", "phase.1.lr=1,2"],
            "--phase is searched whole, so phase.1.lr cannot be searched besides",
        ),
        ([], "sweep needs --search=OPTION=VALUES"),
    ],
)
def test_what_is_refused(search, message):
    with pytest.raises(UsageError) as refused:
        check_space(line().config, line().given, space(*search))
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dropout: [0.1]", "dropout: one value is no search"),
        ("optimizer: {}", "optimizer: it has no values, such as `adam:` and `sgd:` a line each"),
        ("dropout: {0: {optimizer: {}}}", "optimizer: it has no values"),
        ("- 1", "it must have options and their values"),
        ("a: [1", "is no YAML: "),
    ],
)
def test_a_file_that_is_refused(tmp_path, text, message):
    file = tmp_path / "space.yaml"
    file.write_text(text)
    with pytest.raises(UsageError, match=r"^--space=.*space.yaml") as refused:
        space(file=str(file))
    assert message in str(refused.value)


def test_a_phase_is_searched_whole_or_by_its_fields_in_a_file_too(tmp_path):
    file = tmp_path / "space.yaml"
    file.write_text("dropout: {0: {phase.1.lr: [1, 2]}, 0.1: }\n")
    with pytest.raises(UsageError, match=r"^--phase is searched whole, so phase\.1\.lr cannot be"):
        space("phase=lr=1|lr=2", file=str(file))


def test_a_phase_is_searched_whole_beside_one_value_and_by_its_fields_beside_another(tmp_path):
    file = tmp_path / "space.yaml"
    file.write_text("dropout: {0: {phase.1.lr: [1, 2]}, 0.1: {phase: [lr=1, lr=2]}}\n")
    assert len(all_of(space(file=str(file)))) == 4
    # Neither is beside the first value, and one trial has both.
    file.write_text(
        "dropout: {0: , 0.1: {phase.1.lr: [1, 2]}}\nseed: {0: , 1: {momentum: {0: , 1: {phase: [a, b]}}}}\n"
    )
    with pytest.raises(UsageError, match=r"^--phase is searched whole, so phase\.1\.lr cannot be"):
        space(file=str(file))


def test_a_grid_refuses_what_has_no_end():
    with pytest.raises(UsageError, match="--sampler=grid tries all values, and dropout has no end of them"):
        all_of(space("dropout=uniform(0,0.5)"))
