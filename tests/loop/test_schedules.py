"""Learning-rate schedules, by tables worked out by hand."""

import numpy as np
import pytest
import tensorflow as tf

from trainer.loop.schedules import SCHEDULES, Plateau, along, choose_schedule, plateau_of
from trainer.values import UsageError


def make_schedule(text, *, warmup_steps, num_steps):
    choice = choose_schedule(text, warmup=warmup_steps > 0)
    return along(choice, warmup_steps=warmup_steps, num_steps=num_steps)


# cos(0), cos(pi / 4), ... lifted to 1 ... 0.
WAVE = [1.0, 0.8535533906, 0.5, 0.1464466094, 0.0]
# Of the formula of OneCycleLR: the peak is update 0.5 * 10 - 1 = 4 and the end 9, counted from 0.
# Up: 1 - 0.9 * WAVE. Down: 0.001 + 0.999 * (1 + cos(pi k / 5)) / 2.
ONE_CYCLE = [
    0.1, 0.2318019485, 0.55, 0.8681980515, 1.0, 0.9046039886, 0.6548539886, 0.3461460114, 0.0963960114, 0.001,
]  # fmt: skip
# With its defaults: the peak is update 0.3 * 10 - 1 = 2. Down: 4e-6 + 0.999996 * (1 + cos(pi k / 7)) / 2.
ONE_CYCLE_DEFAULT = [
    0.04, 0.52, 1.0, 0.9504846320, 0.8117456539, 0.6112620219, 0.3887419781, 0.1882583461, 0.0495193680, 4e-6,
]  # fmt: skip

# (text, steps of warm-up, factors of all updates of the phase, factor at its end)
TABLES = [
    ("constant", 0, [1, 1, 1, 1], 1),
    ("constant", 2, [0.5, 1, 1, 1], 1),
    ("constant", 4, [0.25, 0.5, 0.75, 1], 1),
    ("cosine", 0, WAVE[:4], 0),
    ("cosine", 2, [0.5, 1, *WAVE[:4]], 0),
    ("cosine", 4, [0.25, 0.5, 0.75, 1], 1),
    ("cosine", 0, [1], 0),
    ("cosine(0.2)", 0, [1, 0.8828427125, 0.6, 0.3171572875], 0.2),
    ("linear", 0, [1, 0.75, 0.5, 0.25], 0),
    ("linear(0.2)", 0, [1, 0.8, 0.6, 0.4], 0.2),
    ("linear(0.2)", 3, [1 / 3, 2 / 3, 1, 1, 0.8, 0.6, 0.4], 0.2),
    ("step", 0, [1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01], 0.01),
    ("step", 0, [1, 1, 0.1, 0.01], 0.01),
    ("step", 2, [0.5, 1, 1, 0.1, 0.01], 0.01),
    ("step(0.5,0.75,0.9)", 2, [0.5, 1, 1, 1, 0.1, 0.01], 0.001),
    # 0.28 * 25 is above 7.
    ("step(0.28)", 0, [1] * 7 + [0.1] * 18, 0.1),
    ("exponential", 0, [1, 0.3162277660, 0.1, 0.0316227766], 0.01),
    ("exponential(0.0625)", 1, [1, 1, 0.5, 0.25, 0.125], 0.0625),
    ("exponential(1e8)", 0, [1, 1e2, 1e4, 1e6], 1e8),
    ("exponential(16)", 2, [0.5, 1, 1, 2, 4, 8], 16),
    ("one_cycle(0.5,10,100)", 0, ONE_CYCLE, 0.001),
    ("one_cycle", 0, ONE_CYCLE_DEFAULT, 4e-6),
    ("one_cycle", 0, [1, 4e-6], 4e-6),
    ("one_cycle", 0, [1], 1),
    ("plateau", 0, [1, 1, 1], 1),
    ("plateau(0.5,2)", 2, [0.5, 1, 1], 1),
]


def test_every_schedule_has_a_table():
    assert {text.partition("(")[0] for text, *_ in TABLES} == set(SCHEDULES)


@pytest.mark.parametrize(("text", "warmup_steps", "factors", "end"), TABLES)
def test_factors(text, warmup_steps, factors, end):
    schedule = make_schedule(text, warmup_steps=warmup_steps, num_steps=len(factors))
    expected = [*factors, end, end, end]
    steps = [*range(len(factors) + 2), 10 * len(factors) + 10]
    eager = [schedule(step) for step in steps]
    assert {(factor.shape, factor.dtype) for factor in eager} == {(tf.TensorShape([]), tf.float32)}
    np.testing.assert_allclose(eager, expected, rtol=2e-6, atol=1e-7)
    given = [schedule(kind(step)) for step in steps for kind in (float, tf.constant, tf.Variable)]
    np.testing.assert_array_equal(given, np.repeat(eager, 3))
    # A graph divides by a constant with another rounding.
    in_graph = tf.function(schedule)
    np.testing.assert_allclose(
        [in_graph(tf.constant(step, tf.int64)) for step in steps], eager, rtol=1e-6, atol=1e-7
    )


@pytest.mark.parametrize("num_steps", [123, 147])
def test_a_graph_falls_at_the_same_update(num_steps):
    # Where multiplying by the reciprocal of their number would come out below 1/3.
    schedule = make_schedule("step", warmup_steps=0, num_steps=num_steps)
    factors = tf.function(schedule)(tf.range(num_steps, dtype=tf.int64))
    expected = np.repeat([1, 0.1, 0.01], num_steps // 3)
    np.testing.assert_allclose(factors, expected, rtol=1e-5)


def test_plateau_has_its_numbers_in_the_text():
    choose = SCHEDULES.choose
    assert plateau_of(choose("plateau")) == Plateau(factor=0.1, patience=5)
    assert plateau_of(choose("plateau(0.5)")) == Plateau(factor=0.5, patience=5)
    assert plateau_of(choose("plateau(patience=2,factor=0.5)")) == Plateau(factor=0.5, patience=2)
    assert plateau_of(choose("cosine(0.5)")) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", " is not one of constant, cosine, linear, step, exponential, one_cycle, plateau"),
        ("cosin", "plateau: is it cosine?"),
        ("one_cycl", "plateau: is it one_cycle?"),
        ("one-cycle", " is not one of"),
        ("cosine,linear", " is not one of"),
        ("cosine(x)", " is not one of"),
        ("constant(1)", ": constant takes no arguments, and there is 1 besides"),
        ("cosine(0,1)", ": cosine takes final=0.0 (a number from 0 to 1), and there is 1 besides"),
        ("cosine('a')", ": final='a' must be a number from 0 to 1"),
        ("step('a')", ": falls='a' must be a number above 0 and below 1"),
        ("linear(True)", ": final=True must be a number from 0 to 1"),
        ("exponential(1e999)", ": final=inf must be a number from 1e-30 to 1e+30"),
        ("plateau(0.1,1,1)", "and there is 1 besides"),
        ("cosine(1.5)", ": final=1.5 must be a number from 0 to 1"),
        ("linear(-0.1)", ": final=-0.1 must be a number from 0 to 1"),
        ("step(0.5,0.4)", ": each share must be above the last"),
        ("step(0.5,0.5)", ": each share must be above the last"),
        ("step(0.5,1)", ": falls=1 must be a number above 0 and below 1"),
        ("exponential(0)", ": final=0 must be a number from 1e-30 to 1e+30"),
        ("one_cycle(1)", ": rise=1 must be a number above 0 and below 1"),
        ("one_cycle(0.3,0.5)", ": div=0.5 must be a number 1 or more"),
        ("one_cycle(0.3,25,0)", ": final_div=0 must be a number 1 or more"),
        ("plateau(1)", ": factor=1 must be a number above 0 and below 1"),
        ("plateau(0.1,0)", ": patience=0 must be a whole number 1 or more"),
        ("plateau(0.1,1.5)", ": patience=1.5 must be a whole number 1 or more"),
    ],
)
def test_what_is_refused(text, reason):
    with pytest.raises(UsageError) as caught:
        choose_schedule(text, warmup=False)
    assert str(caught.value).startswith(f"lr_schedule={text}")
    assert reason in str(caught.value)


def test_only_one_cycle_refuses_a_warm_up():
    for text in set(SCHEDULES) - {"one_cycle"}:
        choose_schedule(text, warmup=True)
    choose_schedule("one_cycle", warmup=False)
    message = r"^lr_schedule=one_cycle\(0.2\) rises by itself: leave the warm-up away"
    with pytest.raises(UsageError, match=message):
        choose_schedule("one_cycle(0.2)", warmup=True)
