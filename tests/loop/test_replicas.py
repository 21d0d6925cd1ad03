"""Several devices give what one gives, up to rounding."""

import json

import numpy as np
import pytest

from tests.helpers.processes import run_program

SAME = {
    2: ("head", "all", "dropout", "parts", "batch statistics"),
    4: ("batch statistics",),
}
# BatchNorm normalises each part, and in a module each device, by itself: what is above it differs.
STATISTICS = {2: ("statistics",), 4: ("statistics of a module",)}
# What `make test` has: the objective in parts, statistics that move, and Adam, which comes with the head.
FAST = {(2, "head"), (2, "parts"), (2, "batch statistics")}


class Found:
    """found(number of devices, case): what came of it; all fast cases are of one process, all slow ones."""

    def __init__(self, backbone):
        self._backbone, self._known = backbone, {}

    def __call__(self, count, case):
        key = count, (count, case) in FAST or case == "adam"
        if key not in self._known:
            cases = [one for one in (*SAME[count], *STATISTICS[count]) if ((count, one) in FAST) == key[1]]
            arguments = [self._backbone, count, *cases]
            result = run_program(arguments, module="tests.loop.replicas_program")
            assert result.returncode == 0, result.stderr[-2000:]
            self._known[key] = json.loads(result.stdout.splitlines()[-1])
        return self._known[key][case]


@pytest.fixture(scope="module")
def found(tiny_backbone):
    return Found(tiny_backbone)


def all_of(cases):
    return [
        pytest.param(count, case, marks=[pytest.mark.slow] * ((count, case) not in FAST))
        for count, names in cases.items()
        for case in names
    ]


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_there_were_several(found, count):
    case = found(count, "batch statistics")
    assert {kind: ran["replicas"] for kind, ran in case.items()} == {"one": 1, "mirrored": count}


@pytest.mark.parametrize(("count", "case"), all_of(SAME))
def test_training_gives_the_same_weights_and_metrics(found, count, case):
    one, several = found(count, case)["one"], found(count, case)["mirrored"]
    assert one["step"] == several["step"] == 3
    assert list(one["variables"]) == list(several["variables"])
    for name, value in one["variables"].items():
        np.testing.assert_allclose(several["variables"][name], value, rtol=0, atol=2e-6, err_msg=name)
    assert several["train"] == pytest.approx(one["train"], rel=2e-5)


@pytest.mark.parametrize(("count", "case"), all_of(STATISTICS))
def test_stored_statistics_are_those_of_one_device(found, count, case):
    one, several = (found(count, case)[kind]["variables"] for kind in ("one", "mirrored"))
    moved = [name for name in one if "moving" in name]
    assert moved
    for name in moved:
        assert np.abs(one[name]).max() > 0.1
        np.testing.assert_allclose(several[name], one[name], rtol=0, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(("count", "case"), all_of(SAME) + all_of(STATISTICS))
def test_all_devices_hold_the_same_to_the_last_digit(found, count, case):
    assert found(count, case)["mirrored"]["spread"] == 0
    assert all(np.isfinite(value).all() for value in found(count, case)["mirrored"]["variables"].values())


@pytest.mark.slow
def test_dropout_did_something(found):
    with_dropout, without = (
        found(2, case)["mirrored"]["variables"]["head/logits/kernel"] for case in ("dropout", "head")
    )
    assert np.abs(np.subtract(with_dropout, without)).max() > 1e-3


@pytest.mark.parametrize(("count", "case"), all_of(SAME))
def test_each_example_is_scored_once_in_order(found, count, case):
    one, two = found(count, case)["one"], found(count, case)["mirrored"]
    # Batches of 12, 11 and 5 real examples.
    assert one["ids"] == two["ids"] == [*range(12), *range(11), *range(5)]
    assert one["labels"] == two["labels"]
    np.testing.assert_allclose(two["logits"], one["logits"], rtol=0, atol=1e-5)
    assert two["scored"] == pytest.approx(one["scored"], rel=1e-5)


def test_adam_by_one_kernel_is_that_of_keras_on_each_device(found):
    # The variable, then its two moments; the second one as in test_optimizers.py.
    fused, keras = found(2, "adam")["fused"], found(2, "adam")["keras"]
    for got, expected, rounding in zip(fused, keras, (1e-6, 1e-6, 1.5e-5), strict=True):
        assert len(got) == len(expected) == 2
        assert got[0] == got[1]
        np.testing.assert_allclose(got, expected, rtol=rounding, atol=rounding * np.abs(expected).max())
