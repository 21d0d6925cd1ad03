"""Which variables train: tables known by hand."""

import pytest
import tensorflow as tf

from trainer.model.freezing import format_table, freezing_table, summary, trained
from trainer.values import UsageError

SHAPES = {
    "backbone/conv1/kernel": (3, 3, 3, 4),
    "backbone/bn1/gamma": (4,),
    "backbone/bn1/moving_mean": (4,),
    "backbone/conv2/kernel": (1, 1, 4, 8),
    "head/logits/kernel": (8, 5),
    "head/logits/bias": (5,),
}


@pytest.fixture(scope="module")
def variables():
    return {
        name: tf.Variable(tf.zeros(shape), trainable="moving" not in name) for name, shape in SHAPES.items()
    }


def states(variables, *patterns):
    """One letter a variable: t(rain), f(rozen), s(tatistics)."""
    rows = freezing_table(variables, patterns)
    assert [row.name for row in rows] == list(SHAPES)
    assert [row.shape for row in rows] == list(SHAPES.values())
    return "".join(row.state[0] for row in rows)


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["head/"], "ffsftt"),
        ([".*"], "ttsttt"),
        (["backbone/"], "ttstff"),
        ([".*bias"], "ffsfft"),
        (["not:backbone/conv1", ".*"], "ftsttt"),
        ([".*kernel", "not:backbone/", ".*"], "tfsttt"),
        (["not:backbone/", ".*"], "ffsftt"),
        (["backbone/conv2", "not:.*conv", "head/"], "ffsttt"),
        (["head/logits/kernel"], "ffsftf"),
    ],
)
def test_the_first_match_decides(variables, patterns, expected):
    assert states(variables, *patterns) == expected


def test_patterns_match_from_the_start_of_a_name(variables):
    with pytest.raises(UsageError, match="train=logits matches no variable"):
        freezing_table(variables, ["logits"])


def test_statistics_never_train(variables):
    rows = freezing_table(variables, ["backbone/bn1/"])
    assert [row.state for row in rows if "bn1" in row.name] == ["train", "statistics"]
    with pytest.raises(UsageError, match="trains nothing"):
        freezing_table(variables, ["backbone/bn1/moving_mean"])


def test_trained_are_the_very_variables_in_order(variables):
    chosen = trained(variables, freezing_table(variables, [".*kernel"]))
    assert list(chosen) == [name for name in SHAPES if name.endswith("kernel")]
    assert all(chosen[name] is variables[name] for name in chosen)


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["body/"], "train=body/ matches no variable; names are such as backbone/conv1/kernel, "),
        (["head/", "not:body/"], "train=not:body/ matches no variable"),
        ([".*", "head/"], "train=head/ matches only what earlier ones matched"),
        (["not:.*"], "trains nothing"),
        (["not:head/", "head/"], "matches only what earlier ones matched"),
    ],
)
def test_a_pattern_without_effect_is_an_error_with_names(variables, patterns, message):
    with pytest.raises(UsageError) as caught:
        freezing_table(variables, patterns)
    assert message in str(caught.value)


def test_summary_counts_variables_and_parameters(variables):
    # 108 + 4 + 4 + 32 + 40 + 5 = 193 parameters.
    head = freezing_table(variables, ["head/"])
    assert summary(head) == "45 of 193 parameters train, in 2 of 6 variables (0 of the backbone)"
    everything = freezing_table(variables, [".*"])
    assert summary(everything) == "189 of 193 parameters train, in 5 of 6 variables (3 of the backbone)"


def test_the_table_has_a_line_per_variable(variables):
    scalar = {**variables, "head/temperature": tf.Variable(1.0)}
    lines = format_table(freezing_table(scalar, ["not:backbone/conv1", ".*"])).splitlines()
    assert [line.split() for line in lines] == [
        ["frozen", "backbone/conv1/kernel", "3x3x3x4", "108"],
        ["train", "backbone/bn1/gamma", "4", "4"],
        ["statistics", "backbone/bn1/moving_mean", "4", "4"],
        ["train", "backbone/conv2/kernel", "1x1x4x8", "32"],
        ["train", "head/logits/kernel", "8x5", "40"],
        ["train", "head/logits/bias", "5", "5"],
        ["train", "head/temperature", "scalar", "1"],
    ]
