"""Measures a step of each phase on two devices, and prints {phase: whether it took any time} as JSON.

A program of its own, because the number of devices must be set before TensorFlow starts. Called by
test_mirrored.py with a folder to work in, and the network.
"""

import json
import sys
from pathlib import Path

from trainer.runtime import start_tensorflow

start_tensorflow()

import tensorflow as tf  # noqa: E402

ROOT, BACKBONE = Path(sys.argv[1]), sys.argv[2]
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)

from tests.conftest import make_flower_folder  # noqa: E402
from trainer.cli.config import Config  # noqa: E402
from trainer.run.experiment import Experiment  # noqa: E402
from trainer.run.foresight import foresee  # noqa: E402

experiment = Experiment(
    Config().replace(
        source=f"folder:{make_flower_folder(ROOT / 'pictures', n=4)}",
        backbone=f"savedmodel:{BACKBONE}",
        image_size=8,
        splits="8,4",
        batch_size=4,
        head="linear",
        precision="float32",
        strategy="mirrored",
        schedule="two_phase",
        cache_dir=str(ROOT / "cache"),
    )
)
found = foresee(experiment, decided={})
names = [phase.spec.name for phase in experiment.plan.phases]
print(json.dumps({name: speed.step_secs > 0 for name, speed in zip(names, found.speeds, strict=True)}))
