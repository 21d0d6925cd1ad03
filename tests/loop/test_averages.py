"""Averages of weights, by hand; run as a program, on two devices."""

import contextlib
import json

import numpy as np
import pytest
import tensorflow as tf

from tests.helpers.processes import run_program
from trainer.loop.averages import AVERAGES, Shadows, make_average
from trainer.values import UsageError


def averaged(text, course, *, num_steps=100, steps_per_epoch=10, start=1.0):
    """Returns the average after each update, of a weight that goes from `start` through a course."""
    average = make_average(text, num_steps=num_steps, steps_per_epoch=steps_per_epoch)
    weight = tf.Variable(start)
    shadows = Shadows(average, {"w": weight})

    @tf.function
    def update(step, value):
        weight.assign(value)
        shadows.update(step)

    seen = []
    for step, value in enumerate(course):
        update(tf.constant(step, tf.int64), tf.constant(value, tf.float32))
        seen.append(float(shadows.variables()["w"]))
    return seen


def test_no_average_is_asked_for():
    assert make_average("", num_steps=1, steps_per_epoch=1) is None


def test_ema_after_three_steps():
    # Shares 1/10, then the smaller one of 0.15 and 2/11, then of 0.15 and 3/12.
    expected = [0.1 * 1 + 0.9 * 2, 0.15 * 1.9 + 0.85 * 4, 0.15 * 3.685 + 0.85 * 8]
    assert averaged("ema(0.15)", [2, 4, 8]) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("text", ["ema", "ema(0.3)"])
def test_ema_is_that_of_tensorflow(text):
    course = np.random.default_rng(0).normal(size=12)
    weight, number = tf.Variable(1.0), tf.Variable(0)
    theirs = tf.train.ExponentialMovingAverage(0.999 if text == "ema" else 0.3, num_updates=number)
    # Made by a first call, which must change nothing.
    theirs.apply([weight])
    expected = []
    for step, value in enumerate(course):
        number.assign(step)
        weight.assign(value)
        theirs.apply([weight])
        expected.append(float(theirs.average(weight)))
    assert averaged(text, course) == pytest.approx(expected, rel=1e-5)


# In a phase of so many steps, the steps after which the average is new; up to the first it is the weight.
ENDS = {
    ("swa(0.5)", 10): [6, 8, 10],
    ("swa(0.5)", 11): [6, 8, 10],
    ("swa", 20): [16, 18, 20],
    ("swa", 6): [4, 6],
    ("swa(1)", 6): [2, 4, 6],
}


@pytest.mark.parametrize(("text", "num_steps"), ENDS)
def test_swa_is_the_mean_over_the_ends_of_epochs(text, num_steps):
    ends = ENDS[text, num_steps]
    course = [float(step**2) for step in range(1, num_steps + 1)]
    expected = [
        course[done - 1] if done <= ends[0] else np.mean([end**2 for end in ends if end <= done])
        for done in range(1, num_steps + 1)
    ]
    found = averaged(text, course, num_steps=num_steps, steps_per_epoch=2)
    assert found == pytest.approx(expected, rel=1e-6)
    assert found[: ends[0]] == course[: ends[0]]


def test_between_the_ends_of_epochs_nothing_is_computed():
    # Zero times infinity would be no number.
    assert averaged("swa(1)", [1, 2, np.inf, 4], num_steps=4, steps_per_epoch=2) == [1, 2, 2, 3]


def shadows_of(weights, share):
    return Shadows(lambda step: tf.constant(share), weights)


def bits(variable):
    return variable.numpy().tobytes()


ODD = np.array([1e-45, -0.0, np.inf, 0.1, 3e38], np.float32)


@pytest.mark.parametrize("fails", [False, True])
def test_swapped_puts_back_the_very_same_weights(fails):
    # A signalling NaN, which arithmetic would change.
    odd = np.append(ODD, np.array([0x7F800001], np.uint32).view(np.float32))
    weight = tf.Variable(np.zeros(6, np.float32))
    shadows = shadows_of({"w": weight}, 0.5)
    weight.assign(odd)
    with contextlib.suppress(KeyError), shadows.swapped():
        np.testing.assert_array_equal(weight, np.zeros(6))
        # What happens to the weights in the block changes neither what they were, nor the averages.
        weight.assign_add(tf.ones(6))
        if fails:
            raise KeyError
    assert bits(weight) == odd.tobytes()
    np.testing.assert_array_equal(shadows.variables()["w"], np.zeros(6))


def test_start_and_commit():
    weight = tf.Variable([1.0, 2.0])
    shadows = shadows_of({"w": weight}, 0.5)
    shadow = shadows.variables()["w"]
    np.testing.assert_array_equal(shadow, [1, 2])
    weight.assign([5.0, 5.0])
    np.testing.assert_array_equal(shadow, [1, 2])
    shadows.start()
    np.testing.assert_array_equal(shadow, [5, 5])
    weight.assign_add([1.0, 1.0])
    np.testing.assert_array_equal(shadow, [5, 5])
    shadows.commit()
    np.testing.assert_array_equal(weight, [5, 5])
    weight.assign_add([2.0, 2.0])
    shadows.update(tf.constant(0, tf.int64))
    np.testing.assert_array_equal(shadow, [6, 6])


def test_only_real_numbers_have_averages():
    weights = {"w": tf.Variable(1.0), "count": tf.Variable(3)}
    shadows = shadows_of(weights, 0.0)
    assert list(shadows.variables()) == ["w"]
    with shadows.swapped():
        assert int(weights["count"]) == 3


WRONG = {
    "median": r"not one of ema, swa",
    "ema,swa": r"not one of ema, swa",
    "ema(": r"not one of ema, swa",
    "ema(0.9,2)": "and there is 2 besides",
    "ema(1)": "decay=1 must be a number above 0 and below 1",
    "ema('fast')": "above 0 and below 1",
    "swa(0)": "above 0",
    "swa(1.5)": "at most 1",
    "swa": r"the last 25% of a phase of 20 steps hold 1 ends of epochs of 10 steps",
    "swa(0.01)": "needs 2",
}


@pytest.mark.parametrize("text", WRONG)
def test_what_cannot_be_averaged_is_refused(text):
    with pytest.raises(UsageError) as error:
        make_average(text, num_steps=20, steps_per_epoch=10)
    assert str(error.value).startswith(f"average={text}")
    error.match(WRONG[text])


def test_a_phase_of_less_than_an_epoch_has_no_mean():
    with pytest.raises(UsageError, match=r"^average=swa\(1\): .* hold 0 ends"):
        make_average("swa(1)", num_steps=5, steps_per_epoch=10)


def test_all_names_cite_where_they_are_from():
    assert all(AVERAGES[name].source for name in AVERAGES)


def on_two_devices():
    """Returns what is in weights and averages of two devices, before, in and after a swap."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        weight = tf.Variable(1.0)
        # As the statistics of Keras's BatchNorm.
        moving = tf.Variable(
            0.0,
            trainable=False,
            synchronization=tf.VariableSynchronization.ON_READ,
            aggregation=tf.VariableAggregation.MEAN,
        )
        weights = {"weight": weight, "moving": moving}
        shadows = Shadows(make_average("ema(0.15)", num_steps=9, steps_per_epoch=1), weights)

    def change(value):
        # In a train step the optimizer does this.
        tf.distribute.get_replica_context().merge_call(
            lambda strategy: strategy.extended.update(weight, lambda v: v.assign(value))
        )
        # 0.1 and 0.3 of the value: 0.2 on average.
        number = tf.cast(tf.distribute.get_replica_context().replica_id_in_sync_group, tf.float32)
        moving.assign(value * (0.1 + 0.2 * number))

    @tf.function
    def update(step, value):
        strategy.run(change, args=(value,))
        shadows.update(step)

    def parts(variables):
        local = strategy.experimental_local_results
        return {name: [float(part) for part in local(v)] for name, v in variables.items()}

    for step, value in enumerate([2.0, 4.0, 8.0]):
        update(tf.constant(step, tf.int64), tf.constant(value))
    found = {"averages": parts(shadows.variables()), "before": parts(weights)}
    with shadows.swapped():
        found["in"] = parts(weights)
    found["after"] = parts(weights)
    shadows.commit()
    found["committed"] = parts(weights)
    weight.assign(5.0)
    shadows.start()
    found["started"] = parts(shadows.variables())
    return found


def test_two_devices_have_one_average():
    result = run_program([], module="tests.loop.test_averages")
    assert result.returncode == 0, result.stderr[-2000:]
    found = json.loads(result.stdout.splitlines()[-1])
    averages = {"weight": 7.35275, "moving": 0.15 * (0.15 * 0.9 * 0.4 + 0.85 * 0.8) + 0.85 * 1.6}
    for name, value in averages.items():
        first, second = found["averages"][name]
        assert first == second == pytest.approx(value, rel=1e-6)
    assert found["before"] == {"weight": [8, 8], "moving": pytest.approx([0.8, 2.4])}
    assert found["in"] == found["committed"] == found["averages"]
    assert found["after"] == found["before"]
    assert found["started"] == {"weight": [5, 5], "moving": found["averages"]["moving"]}


if __name__ == "__main__":
    print(json.dumps(on_two_devices()))
