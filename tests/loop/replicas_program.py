"""Trains and scores on one device and on several; prints both as JSON. Run by test_replicas.py.

A program of its own, because the number of devices must be set before TensorFlow starts.
"""

import json
import sys

import numpy as np
import tensorflow as tf
import tf_keras

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * int(sys.argv[2])
)

from tests.loop.test_gradients import a_network  # noqa: E402
from tests.loop.toys import dataset_of, plan_of, random_batches, run_of, state_of  # noqa: E402
from trainer.loop.evaluator import Evaluator  # noqa: E402
from trainer.loop.optimizers import make_optimizer  # noqa: E402
from trainer.loop.phases import PhaseSchedule  # noqa: E402
from trainer.model.backbones import open_backbone  # noqa: E402
from trainer.model.backbones.keras import KerasBackbone  # noqa: E402
from trainer.runtime import make_strategy  # noqa: E402


def run(strategy, tiny, recipe, *, dropout=0.0, num_parts=1, network=None):
    batches = random_batches(3, size=12, side=6)
    # The second half of the devices gets nothing but padding.
    batches[2]["mask"][:] = [1] * 5 + [0] * 7
    with strategy.scope():
        if network is None:
            backbone = open_backbone(f"savedmodel:{tiny}", image_size=6)
        else:
            backbone = KerasBackbone("keras:Toy", a_network(**network), tf.identity, size_px=6)
        state = state_of(f"for=9steps; {recipe}", backbone=backbone, dropout=dropout)
        iterator = iter(strategy.experimental_distribute_dataset(dataset_of(*batches)))
        run_of(state, strategy=strategy, num_parts=num_parts)(iterator, tf.constant(3))
        with state.averaged():
            scored = Evaluator(state.classifier, strategy=strategy)(dataset_of(*batches))
    local = strategy.experimental_local_results
    return {
        "replicas": strategy.num_replicas_in_sync,
        "variables": {name: v.numpy().tolist() for name, v in state.classifier.named_variables.items()},
        "train": state.metrics.read(),
        "spread": max(
            float(np.abs(part.numpy() - parts[0].numpy()).max())
            for parts in map(local, state.classifier.named_variables.values())
            for part in parts
        ),
        "step": state.step,
        "scored": {"loss": scored.loss, "accuracy": scored.metrics["accuracy"]},
        "ids": scored.ids.tolist(),
        "labels": scored.labels.tolist(),
        "logits": scored.logits.tolist(),
    }


def adam(strategy, fused):
    """Twenty updates by our Adam or by tf_keras's; returns a variable and its moments on each device."""
    [phase] = plan_of("for=20steps; train=head; lr=0.01; lr_schedule=cosine; warmup=4steps").phases
    random = np.random.default_rng(0)
    with strategy.scope():
        variable = tf.Variable(random.normal(size=[6, 5]).astype(np.float32))
        if fused:
            optimizer = make_optimizer(phase, {"v": variable})
        else:
            optimizer = tf_keras.optimizers.Adam(learning_rate=PhaseSchedule(phase), jit_compile=False)
            optimizer.build([variable])

    @tf.function
    def update(gradient):
        def apply():
            optimizer.apply_gradients([(gradient, variable)], skip_gradients_aggregation=True)

        strategy.run(apply)

    for _ in range(20):
        update(tf.constant(random.normal(size=[6, 5]), tf.float32))
    local = strategy.experimental_local_results
    return [[part.numpy().tolist() for part in local(v)] for v in (variable, *optimizer.variables[1:])]


TOY, SGD = {"drop": 0.4}, "lr=0.1; optimizer=sgd"
CASES = {
    "head": {"recipe": f"train=head; {SGD}"},
    "all": {"recipe": "train=all; lr=0.01"},
    "dropout": {"recipe": f"train=head; {SGD}; average=ema(0.3)", "dropout": 0.5},
    "parts": {"recipe": "train=all; lr=0.01", "dropout": 0.5, "num_parts": 3},
    "batch statistics": {"recipe": f"train=all; bn=batch; {SGD}", "network": TOY},
    "statistics": {"recipe": f"train=head; bn=batch; {SGD}", "network": TOY, "num_parts": 3},
    "statistics of a module": {"recipe": f"train=head; bn=batch; {SGD}"},
}
if __name__ == "__main__":
    strategies = {kind: make_strategy(kind) for kind in ("one", "mirrored")}
    assert make_strategy("mirrored") is strategies["mirrored"]
    found = {
        name: {kind: run(strategy, sys.argv[1], **CASES[name]) for kind, strategy in strategies.items()}
        for name in sys.argv[3:]
    }
    if "head" in found:
        rules = ("fused", "keras")
        found["adam"] = {rule: adam(strategies["mirrored"], rule == "fused") for rule in rules}
    print(json.dumps(found))
