"""Two devices give what one gives, up to rounding."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

CASES = ("head", "all", "dropout", "average", "parts")


@pytest.fixture(scope="module")
def found(tiny_backbone):
    program = [sys.executable, "-m", "tests.loop.replicas_program", str(tiny_backbone)]
    root = Path(__file__).parents[2]
    result = subprocess.run(program, cwd=root, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    return json.loads(result.stdout.splitlines()[-1])


def test_there_were_two(found):
    assert {kind: found["head"][kind]["replicas"] for kind in ("one", "mirrored")} == {
        "one": 1,
        "mirrored": 2,
    }


@pytest.mark.parametrize("case", CASES)
def test_training_gives_the_same_weights_and_metrics(found, case):
    one, two = found[case]["one"], found[case]["mirrored"]
    assert one["step"] == two["step"] == 3
    assert list(one["variables"]) == list(two["variables"])
    for name, value in one["variables"].items():
        np.testing.assert_allclose(two["variables"][name], value, rtol=0, atol=1e-6, err_msg=name)
    assert two["train"] == pytest.approx(one["train"], rel=1e-5)


def test_dropout_did_something(found):
    with_dropout, without = (
        found[case]["mirrored"]["variables"]["head/logits/kernel"] for case in ("dropout", "head")
    )
    assert np.abs(np.subtract(with_dropout, without)).max() > 1e-3


@pytest.mark.parametrize("case", CASES)
def test_each_example_is_scored_once_in_order(found, case):
    one, two = found[case]["one"], found[case]["mirrored"]
    # Batches of 6, 5 and 2 real examples.
    assert one["ids"] == two["ids"] == [*range(6), *range(5), *range(2)]
    assert one["labels"] == two["labels"]
    np.testing.assert_allclose(two["logits"], one["logits"], rtol=0, atol=1e-5)
    assert two["scored"] == pytest.approx(one["scored"], rel=1e-5)


def test_adam_by_one_kernel_is_that_of_keras_on_each_device(found):
    # The variable, then its two moments; the second one as in test_optimizers.py.
    fused, keras = found["adam"]["fused"], found["adam"]["keras"]
    for got, expected, rounding in zip(fused, keras, (1e-6, 1e-6, 1.5e-5), strict=True):
        assert len(got) == len(expected) == 2
        assert got[0] == got[1]
        np.testing.assert_allclose(got, expected, rtol=rounding, atol=rounding * np.abs(expected).max())
