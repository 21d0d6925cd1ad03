"""Factors on learning rates, by rules over names and by depth."""

import pytest

from trainer.loop.optimizers import check_rules, multipliers
from trainer.model.layers import Layer
from trainer.values import UsageError

NAMES = ["backbone/stem/kernel", "backbone/block_1/kernel", "head/logits/kernel", "head/logits/bias"]
LAYERS = (
    Layer("input"),
    Layer("stem", ("backbone/stem/kernel",)),
    Layer("relu"),
    Layer("block_1", ("backbone/block_1/kernel",)),
    Layer("head/logits", ("head/logits/kernel", "head/logits/bias")),
)


def found(names=NAMES, *, rules=(), layer_decay=1.0, layers=LAYERS, all_names=NAMES):
    return multipliers(names, all_names=all_names, rules=rules, layer_decay=layer_decay, layers=layers)


def deep(count):
    layers = [Layer(f"l{i}", (f"backbone/l{i}/kernel", f"backbone/l{i}/bias")) for i in range(count)]
    return layers, [name for layer in layers for name in layer.variables]


def test_all_are_one_by_themselves():
    assert found() == dict.fromkeys(NAMES, 1.0)


def test_the_first_rule_that_matches_the_start_of_a_name_counts():
    assert found(rules=["backbone/stem=0.5", "backbone/=0.1"]) == {
        "backbone/stem/kernel": 0.5,
        "backbone/block_1/kernel": 0.1,
        "head/logits/kernel": 1.0,
        "head/logits/bias": 1.0,
    }


def test_what_matches_inside_a_name_does_not_count():
    names = ["head/bias", "backbone/head/bias"]
    assert found(names, rules=["head/=2"], all_names=names) == {"head/bias": 2.0, "backbone/head/bias": 1.0}


def test_the_last_equals_sign_separates():
    assert found(["head/a=b"], rules=["head/a=b=4"], all_names=["head/a=b"]) == {"head/a=b": 4.0}


def test_a_rule_may_match_what_does_not_train_but_not_nothing():
    assert found(["head/logits/bias"], rules=["backbone/=0.1"]) == {"head/logits/bias": 1.0}
    with pytest.raises(UsageError, match=r"^--lr_multiplier=stem=0\.1: matches no variable; .*backbone/stem"):
        found(rules=["stem=0.1"])


@pytest.mark.parametrize("rule", ["head/", "head/=", "=2", "head/=0", "head/=-1", "head/=nan", "head/=inf"])
def test_what_is_not_a_rule_is_refused(rule):
    with pytest.raises(UsageError, match=f"^--lr_multiplier={rule}: must be REGEX=FACTOR"):
        check_rules(["head/=1e-1", rule])


def test_a_regular_expression_that_cannot_be_read_is_refused():
    with pytest.raises(UsageError, match=r"^--lr_multiplier=head\(=2: .*not a regular expression"):
        check_rules(["head(=2"])


def test_twenty_eight_layers_in_twelve_groups():
    layers, names = deep(28)
    got = found(names, all_names=names, layer_decay=0.5, layers=layers)
    of_layers = [got[f"backbone/l{i}/kernel"] for i in range(28)]
    sizes = [of_layers.count(0.5**power) for power in range(12, 0, -1)]
    assert (sum(sizes), set(sizes), of_layers == sorted(of_layers)) == (28, {2, 3}, True)
    assert (of_layers[0], of_layers[-1]) == (0.5**12, 0.5)
    assert all(got[f"backbone/l{i}/bias"] == of_layers[i] for i in range(28))


def test_few_layers_make_a_group_each_and_those_without_variables_do_not_count():
    assert found(layer_decay=0.5) == {
        "backbone/stem/kernel": 0.25,
        "backbone/block_1/kernel": 0.5,
        "head/logits/kernel": 1.0,
        "head/logits/bias": 1.0,
    }


def test_what_trains_does_not_change_the_groups():
    assert found(["backbone/stem/kernel"], layer_decay=0.5) == {"backbone/stem/kernel": 0.25}


def test_both_together_are_the_product():
    assert found(["backbone/stem/kernel", "head/logits/bias"], rules=[".*=10"], layer_decay=0.5) == {
        "backbone/stem/kernel": 2.5,
        "head/logits/bias": 10.0,
    }


@pytest.mark.parametrize("layers", [(), LAYERS[:2]])
def test_depth_that_is_not_recorded_is_refused(layers):
    with pytest.raises(UsageError, match=r"^--layer_decay=0\.7: .*not recorded.*--lr_multiplier"):
        found(["head/logits/bias"], layer_decay=0.7, layers=layers)
    assert set(found(layers=layers).values()) == {1.0}
