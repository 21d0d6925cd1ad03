"""Sums and counts of what is measured of examples."""

import tensorflow as tf

from trainer.loop.metrics import sums_of


def test_what_numpy_computes_is_a_number_for_each_example_until_it_runs():
    @tf.function
    def sums(values):
        found = tf.numpy_function(lambda x: 2 * x, [values], tf.float32)
        return sums_of({"twice": found}, mask=tf.ones([3]))["twice"]

    assert [float(value) for value in sums(tf.constant([1.0, 2.0, 3.0]))] == [12.0, 3.0]
