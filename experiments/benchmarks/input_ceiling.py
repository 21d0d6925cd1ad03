"""Pictures a second per core that our input pipeline gives, beside bare decoding and resizing.

    python experiments/benchmarks/input_ceiling.py --source=tfds:tf_flowers --output=input.json

The ceiling is a tf.data map over encoded bytes in memory that decodes and resizes, with as many parallel
calls as there are cores, and nothing else: no order, batch, label, mask or scaling. Ours is
`trainer.data.pipeline.Pipeline`: an epoch of training batches in random order. Both are drained inside
tf.data, with no network, one after the other in each round.
"""

import argparse
import os
import time
from typing import Any

import measuring
import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf

from trainer.data.inspect.scan import scan
from trainer.data.pipeline import Pipeline
from trainer.data.sources import Source, SourceOptions, open_source
from trainer.values import Contract


def ceiling(source: Source, *, count: int, size_px: int, cores: int) -> tf.data.Dataset:
    """Returns the first `count` pictures of a source, decoded and resized."""
    encoded = tf.constant([source.read(index) for index in range(count)])

    def picture(data: tf.Tensor) -> tf.Tensor:
        pixels = tf.io.decode_image(data, channels=3, expand_animations=False)
        return tf.image.resize(pixels, (size_px, size_px))

    dataset = tf.data.Dataset.from_tensor_slices(encoded).map(picture, num_parallel_calls=cores)
    options = tf.data.Options()
    options.threading.max_intra_op_parallelism = 1
    options.threading.private_threadpool_size = cores
    return dataset.with_options(options)


def ours(source: Source, *, count: int, size_px: int, batch_size: int) -> tf.data.Dataset:
    """Returns the same pictures as an epoch of training batches."""
    contract = Contract(
        height_px=size_px, width_px=size_px, value_range=(0.0, 1.0), feature_width=1, any_size=True
    )
    pipeline = Pipeline(source, scan(source), contract=contract, batch_size=batch_size, seed=0)
    dataset = pipeline.training(np.arange(count), start_step=0, stop_step=-(-count // batch_size))
    return dataset.map(lambda batch: batch["image"])


def drain_secs(dataset: tf.data.Dataset) -> float:
    """Returns how long a dataset of images takes from its first to its last element."""
    began = time.perf_counter()
    dataset.reduce(tf.constant(0.0), lambda seen, image: seen + tf.reshape(image, [-1])[0]).numpy()
    return time.perf_counter() - began


def measure(options: argparse.Namespace) -> dict[str, Any]:
    source = open_source(options.source, SourceOptions(synthetic_examples=options.pictures))
    source.load()
    count, cores = min(options.pictures, len(source.ids)), len(os.sched_getaffinity(0))
    sides = {
        "decode and resize": ceiling(source, count=count, size_px=options.image_size, cores=cores),
        "our pipeline": ours(source, count=count, size_px=options.image_size, batch_size=options.batch_size),
    }
    for dataset in sides.values():
        drain_secs(dataset.take(2))
    per_core: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(options.rounds):
        for name, dataset in sides.items():
            per_core[name].append(count / drain_secs(dataset) / cores)
    return {"pictures": count, "cores": cores, "pictures_per_second_per_core": per_core}


def table(per_core: dict[str, list[float]]) -> str:
    """Returns the Markdown table of {side: pictures a second per core in each round}."""
    first, rows = next(iter(per_core)), []
    for name, numbers in per_core.items():
        middle, low, high = (measuring.show(v, kind="rate") for v in measuring.spread(numbers))
        by = measuring.better_by(per_core[first], numbers, kind="rate")
        share = "" if name == first else measuring.show_better(by, kind="rate")
        rows.append(["pictures a second per core", name, middle, f"{low} to {high}", share])
    return measuring.markdown(["quantity", "program", "median", "lowest to highest", "of the ceiling"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--source", default="tfds:tf_flowers", help="as the trainer's flag")
    parser.add_argument("--pictures", type=int, default=2000, help="at most so many of the source")
    parser.add_argument("--image_size", type=int, default=299, help="px")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", help="JSON with every round")
    options = parser.parse_args()
    measured = measure(options)
    print(f"{measured['pictures']} pictures of {options.source} to {options.image_size} px\n")
    print(table(measured["pictures_per_second_per_core"]))
    print(f"\n- {measuring.machine()}")
    measuring.write_json(options.output, {"options": vars(options), **measured})


if __name__ == "__main__":
    main()
