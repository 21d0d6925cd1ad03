"""What is written, digested and put back where three devices hold the statistics of BatchNorm."""

import json
import tempfile

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from tests.helpers.processes import run_program
from trainer.data.features import digest_variables
from trainer.loop.monitoring import real_values
from trainer.model.weights import values_digest, weights_sha256
from trainer.record.checkpoint_values import read_values, write_values


def on_three_devices():
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 3)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1", "CPU:2"])
    with strategy.scope():
        layer = tf_keras.layers.BatchNormalization()
        layer.build([None, 999])
        total = tf_keras.metrics.Mean().total
    values = np.random.default_rng(0).normal(size=999).astype(np.float32)
    variables = {"mean": layer.moving_mean, "total": total}
    layer.moving_mean.assign(values)
    total.assign(6.0)
    prefix = tempfile.mkdtemp() + "/ckpt"
    write_values(variables, prefix)
    written = read_values(prefix, variables)
    means = {"mean": layer.moving_mean}
    found = {
        "is rounded as a whole": bool((layer.moving_mean.numpy() != values).any()),
        "is written": bool((written["mean"] == values).all()),
        "is shown": bool((real_values(means)["mean"] == values).all()),
        "total": float(written["total"]),
        "digest": values_digest(means) == weights_sha256({"mean": values}),
        "feature digest": digest_variables(means) == digest_variables({"mean": tf.Variable(values)}),
    }
    layer.moving_mean.assign(written["mean"])
    parts = strategy.experimental_local_results(layer.moving_mean)
    return found | {"is put back": [bool((part.numpy() == values).all()) for part in parts]}


@pytest.mark.slow
def test_statistics_of_three_devices_stay_to_the_last_bit():
    result = run_program([], module="tests.record.test_several_devices")
    assert result.returncode == 0, result.stderr[-2000:]
    assert json.loads(result.stdout.splitlines()[-1]) == {
        "is rounded as a whole": True,
        "is written": True,
        "is shown": True,
        "total": 6.0,
        "digest": True,
        "feature digest": True,
        "is put back": [True] * 3,
    }


if __name__ == "__main__":
    print(json.dumps(on_three_devices()))
