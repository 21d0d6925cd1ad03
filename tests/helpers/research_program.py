"""Trains with the ideas of experiments/research on one device and on two; prints both as JSON.

A program of its own, run by test_research.py, because the number of devices must be set before TensorFlow
starts.
"""

import json
import sys

import tensorflow as tf

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)

from tests.helpers.research import make_objective, make_rule, objective_state  # noqa: E402
from tests.loop.test_gradients import a_network  # noqa: E402
from tests.loop.toys import dataset_of, random_batches, run_of  # noqa: E402
from trainer.loop.gradient_rules import plain  # noqa: E402
from trainer.model.backbones.keras import KerasBackbone  # noqa: E402
from trainer.runtime import make_strategy  # noqa: E402

CASES = {
    "sam": ("supervised", "sam(0.1)", "train=all"),
    "sam, statistics of the batch": ("supervised", "sam(0.1)", "train=all; bn=batch"),
    "distillation": ("distillation('a run')", "plain", "train=all"),
    "contrast": ("supervised_contrastive(0.7)", "plain", "train=all"),
    "contrast, statistics of the batch": ("supervised_contrastive(0.7)", "plain", "train=all; bn=batch"),
}
COVERED = ("sam", "contrast")
"""Left out where most cases are enough."""


def run(strategy, objective, rule, recipe):
    batches = random_batches(3, size=12, side=6)
    # The second device gets nothing but padding.
    batches[2]["mask"][:] = [1] * 5 + [0] * 7
    with strategy.scope():
        backbone = KerasBackbone("keras:Toy", a_network(), tf.identity, size_px=6)
        made = make_objective(objective, num_examples=12)
        recipe = f"for=9steps; lr=0.1; optimizer=sgd; {recipe}"
        state = objective_state(made, recipe, backbone=backbone)
        iterator = iter(strategy.experimental_distribute_dataset(dataset_of(*batches)))
        gradient_rule = plain() if rule == "plain" else make_rule(rule)
        update = run_of(state, strategy=strategy, objective=made, gradient_rule=gradient_rule)
        update(iterator, tf.constant(3))
    return {
        "replicas": strategy.num_replicas_in_sync,
        "variables": {name: v.numpy().tolist() for name, v in state.classifier.named_variables.items()},
        "train": state.metrics.read(),
    }


if __name__ == "__main__":
    strategies = {kind: make_strategy(kind) for kind in ("one", "mirrored")}
    found = {
        name: {kind: run(strategy, *case) for kind, strategy in strategies.items()}
        for name, case in CASES.items()
        if name not in COVERED or sys.argv[1] == "all"
    }
    print(json.dumps(found))
