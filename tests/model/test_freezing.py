"""Which variables train: tables known by hand."""

import pytest
import tensorflow as tf

from trainer.model.freezing import format_table, freezing_table, summary, trained
from trainer.model.layers import Layer
from trainer.values import UsageError

SHAPES = {
    "backbone/conv1/kernel": (3, 3, 3, 4),
    "backbone/bn1/gamma": (4,),
    "backbone/bn1/moving_mean": (4,),
    "backbone/conv2/kernel": (1, 1, 4, 8),
    "head/logits/kernel": (8, 5),
    "head/logits/bias": (5,),
}
LAYERS = (
    Layer("conv1", ("backbone/conv1/kernel",)),
    Layer("bn1", ("backbone/bn1/gamma", "backbone/bn1/moving_mean")),
    Layer("relu"),
    Layer("conv2", ("backbone/conv2/kernel",)),
    Layer("head/dropout"),
    Layer("head/logits", ("head/logits/kernel", "head/logits/bias")),
)


@pytest.fixture(scope="module")
def variables():
    return {
        name: tf.Variable(tf.zeros(shape), trainable="moving" not in name) for name, shape in SHAPES.items()
    }


def states(variables, *patterns):
    """One letter a variable: t(rain), f(rozen), s(tatistics)."""
    rows = freezing_table(variables, patterns, layers=LAYERS)
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
        (["from_layer=bn1"], "ftsttt"),
        (["from_layer=1"], "ftsttt"),
        (["from_layer=relu"], "ffsttt"),
        (["from_layer=-2"], "ffsttt"),
        (["from_layer=0"], "ttsttt"),
        (["unfreeze_top_layers=2"], "ffsftt"),
        (["unfreeze_top_layers=3"], "ffsttt"),
        (["top_share=0.5"], "ftsttt"),
        (["top_share=0.1"], "ffsttt"),
        (["not:.*bn1", "from_layer=0"], "tfsttt"),
        (["not:from_layer=conv2", ".*"], "ttsfff"),
        (["backbone/conv1", "unfreeze_top_layers=1"], "tfsftt"),
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
        ([".*", "from_layer=conv2"], "train=from_layer=conv2 matches only what earlier ones matched"),
        (["not:from_layer=0", "head/"], "train=head/ matches only what earlier ones matched"),
        (["not:from_layer=0"], "trains nothing"),
        (["head/", "from_layer=conv3"], "from_layer=conv3: no layer has that name"),
    ],
)
def test_a_pattern_without_effect_is_an_error_with_names(variables, patterns, message):
    with pytest.raises(UsageError) as caught:
        freezing_table(variables, patterns, layers=LAYERS)
    assert message in str(caught.value)


@pytest.mark.parametrize("pattern", ["from_layer=conv2", "unfreeze_top_layers=2", "not:top_share=0.5"])
@pytest.mark.parametrize(
    ("names", "example"),
    [
        (["backbone/conv/kernel", "backbone/bn/beta", "backbone/bn/mean", "head/bias"], "head/ backbone/bn/"),
        (["backbone/a/b.1/conv/kernel", "backbone/a/b.2/conv/bias", "head/bias"], r"head/ backbone/a/b\.2/"),
        (["backbone/a/b/kernel", "head/bias"], "head/ backbone/a/b/kernel"),
        (["backbone/kernel", "backbone/bias", "head/bias"], "head/ backbone/bias"),
        (["backbone/kernel", "backbone/mean", "head/bias"], "head/ backbone/kernel"),
        (["head/bias"], "head/"),
    ],
)
def test_without_an_order_of_layers_regexes_are_shown(pattern, names, example):
    variables = {name: tf.Variable(0.0, trainable="mean" not in name) for name in names}
    with pytest.raises(UsageError, match="the order of layers in a hub module is not recorded") as caught:
        freezing_table(variables, [pattern])
    assert f"--finetune_train='{example}'" in str(caught.value)
    assert freezing_table(variables, example.split())


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


def test_factors_on_the_learning_rate_are_shown_where_they_act(variables):
    rows = freezing_table(variables, ["not:backbone/conv1", ".*"])
    factors = dict.fromkeys(SHAPES, 0.1) | {"backbone/conv2/kernel": 0.0625, "head/logits/bias": 1.0}
    lines = format_table(rows, multipliers=factors).splitlines()
    assert [line.split()[4:] for line in lines] == [[], ["x0.1"], [], ["x0.0625"], ["x0.1"], []]
    assert format_table(rows, multipliers={}) == format_table(rows)
