"""What a frozen network makes of pictures: by TensorFlow, by OpenVINO as `--engine=openvino` does, and bare.

    python experiments/benchmarks/engines.py --source=folder:DATA

By turns in one process. "Bare" is a loop of OpenVINO's own over pictures that are decoded already, as many
requests at a time as it asks for: what cannot be beaten. Ours read, decode and resize the pictures meanwhile.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")

import numpy as np
import tensorflow as tf

from trainer.cli.config import Config
from trainer.data.features import compute_features
from trainer.precision import in_precision, openvino, supported
from trainer.run.engines import compiled, over_devices
from trainer.run.experiment import Experiment

NETWORKS = {
    "EfficientNet-Lite0, 224 px": {"backbone": "efficientnet_lite0"},
    "MobileNetV2, 160 px": {"backbone": "keras:MobileNetV2", "image_size": 160},
    "InceptionV3, 299 px": {"backbone": "keras:InceptionV3"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--source", required=True)
    parser.add_argument("--networks", default="", help="such as MobileNetV2,InceptionV3; default all")
    parser.add_argument("--pictures", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--weights", default="none", help="of the Keras networks: none, or imagenet")
    parser.add_argument("--precision", default="float32", choices=openvino.precisions(), help="of OpenVINO")
    parser.add_argument("--output", help="file for the numbers as JSON")
    options = parser.parse_args()
    found = {}
    wanted = tuple(options.networks.split(","))
    for name, chosen in NETWORKS.items():
        if not name.startswith(wanted):
            continue
        weights = {"weights": options.weights} if "keras:" in chosen["backbone"] else {}
        found[name] = measure(options, {**chosen, **weights})
        print(row(name, found[name]), flush=True)
    if options.output:
        Path(options.output).write_text(json.dumps(found, indent=2))


def measure(options: argparse.Namespace, chosen: dict) -> dict:
    with tempfile.TemporaryDirectory() as cache:
        experiment = Experiment(
            Config().replace(source=options.source, schedule="frozen", cache_dir=cache, **chosen)
        )
        contract, strategy = experiment.backbone.contract, experiment.strategy
        indices = np.sort(np.concatenate([*experiment.splits.indices.values()]))[: options.pictures]
        cut = experiment.cut(experiment.plan.phases[0].spec)
        in_float32 = tf.function(
            cut.below, autograph=False, input_signature=[tf.TensorSpec([None, *contract.image_shape])]
        )
        ours = compiled(
            cut.below,
            f"openvino-{options.precision}",
            shape=contract.image_shape,
            value_range=contract.value_range,
        )
        pictures = np.concatenate([batch["image"].numpy() for batch in experiment.pipeline.once(indices)])

        def features(below) -> np.ndarray:
            batches = experiment.pipeline.once(indices)
            return np.concatenate([*compute_features(batches, below, strategy=strategy)])

        ways = {
            f"TensorFlow, {precision}": partial(features, in_precision(in_float32, precision))
            for precision in supported()
        }
        ways["ours with OpenVINO"] = partial(features, over_devices(ours, strategy))
        ways["the same, pictures decoded before"] = partial(ours, pictures[: len(indices)])
        ways["bare OpenVINO"] = bare(ours, pictures[: len(indices)])
        made = {name: way() for name, way in ways.items()}
        speeds = {name: [] for name in ways}
        for _ in range(options.rounds):
            for name, way in ways.items():
                begun = time.perf_counter()
                way()
                speeds[name].append(len(indices) / (time.perf_counter() - begun))
    theirs, other = made["TensorFlow, float32"], made["ours with OpenVINO"]
    lengths = np.linalg.norm(theirs, axis=1) * np.linalg.norm(other, axis=1)
    return {
        "pictures_per_second": speeds,
        "largest_difference": float(np.abs(theirs - other).max()),
        "largest_feature": float(np.abs(theirs).max()),
        "least_cosine": float(((theirs.astype(np.float64) * other).sum(axis=1) / lengths).min()),
    }


def bare(ours: openvino.Compiled, pictures: np.ndarray):
    """Returns a loop over one picture a request, written as OpenVINO's documentation does."""
    import openvino as library

    model = ours.compiled
    queue = library.AsyncInferQueue(model)
    features = np.empty([len(pictures), *tuple(model.output(0).shape)[1:]], np.float32)
    queue.set_callback(lambda request, at: np.copyto(features[at], request.get_output_tensor(0).data[0]))

    def run() -> np.ndarray:
        for at in range(len(pictures)):
            queue.start_async({0: library.Tensor(pictures[at : at + 1], shared_memory=True)}, at)
        queue.wait_all()
        return features

    return run


def row(name: str, found: dict) -> str:
    speeds = found["pictures_per_second"]
    reference = speeds["bare OpenVINO"]
    told = []
    for way, values in speeds.items():
        ratios = [value / best for value, best in zip(values, reference, strict=True)]
        told.append(
            f"{way}: {statistics.median(values):.1f}/s, {statistics.median(ratios):.2f} of bare "
            f"({min(ratios):.2f} to {max(ratios):.2f})"
        )
    ours = speeds["ours with OpenVINO"]
    best = max((v for w, v in speeds.items() if w.startswith("TensorFlow")), key=statistics.median)
    gains = [a / b for a, b in zip(ours, best, strict=True)]
    told.append(
        f"OpenVINO over TensorFlow {statistics.median(gains):.2f} ({min(gains):.2f} to {max(gains):.2f})"
    )
    told.append(
        f"largest difference {found['largest_difference']:.1e} of {found['largest_feature']:.1e}, "
        f"least cosine {found['least_cosine']:.9f}"
    )
    return "\n  ".join([name, *told])


if __name__ == "__main__":
    main()
