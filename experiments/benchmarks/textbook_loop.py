"""The plain TensorFlow loop of the tutorials: tf_flowers on a TensorFlow Hub module. An opponent.

    python experiments/benchmarks/textbook_loop.py --epochs=10 --test --output=textbook.json
    python experiments/benchmarks/textbook_loop.py --trainable --learning_rate=1e-5 --max_steps=20

It is written as TensorFlow's "quickstart for experts" and its course notebook on flowers and TensorFlow
Hub (l06c03) write it: tfds.load as it comes, take/skip on decoded pictures, shuffle, map, batch,
prefetch(1), hub.KerasLayer in a Sequential, and a tf.function step that Python calls once a batch. The last
batch of an epoch is smaller, so the step is traced twice. Nothing is cached by this program, and
arithmetic is float32. Of this project it takes nothing but how to import hub.

--tuned_input resizes with AUTOTUNE, as TensorFlow's guide on tf.data performance says, for machines on which
the network is faster than the pictures. $TFDS_DATA_DIR and $TFHUB_CACHE_DIR say where the downloads are.
"""

import argparse
import importlib.metadata
import json
import os
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

START = time.perf_counter()
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf  # noqa: E402  (its import is part of what a user waits for)
import tensorflow_datasets as tfds  # noqa: E402
import tf_keras  # noqa: E402

from trainer.model.hub import hub  # noqa: E402

HANDLE = "https://tfhub.dev/google/imagenet/inception_v3/feature_vector/4"
SHUFFLE_BUFFER = 1000
SKIPPED_STEPS = 3  # They trace and warm up; where there is one epoch only, speed is that of the others.


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--hub_module", default=HANDLE, help="handle, or a folder with a SavedModel")
    parser.add_argument("--image_size", type=int, default=299, help="px")
    parser.add_argument("--value_range", default="0,1", help="of the pixels that the module wants")
    parser.add_argument("--trainable", action="store_true", help="train the module, too")
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--take_examples", type=int, default=0, help="only the first pictures; 0: all")
    parser.add_argument("--max_steps", type=int, default=0, help="most batches of a split; 0: all")
    parser.add_argument("--test", action="store_true", help="score the test split at the end")
    parser.add_argument("--tuned_input", action="store_true", help="AUTOTUNE in map and prefetch")
    parser.add_argument("--logdir", help="event files; default: a temporary folder")
    parser.add_argument("--output", help="JSON with what was measured")
    return parser.parse_args()


def load_splits(options: argparse.Namespace) -> tuple[list[tf.data.Dataset], list[int]]:
    """Returns train, validation and test as batches, and the number of pictures of each."""
    dataset, info = tfds.load("tf_flowers", split="train", as_supervised=True, with_info=True)
    total = info.splits["train"].num_examples
    if options.take_examples:
        total = min(total, options.take_examples)
        dataset = dataset.take(total)
    num_train = total // 2
    num_validation = (total - num_train + 1) // 2
    low, high = map(float, options.value_range.split(","))

    def format_image(image: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        image = tf.image.convert_image_dtype(image, tf.float32)
        image = tf.image.resize(image, (options.image_size, options.image_size))
        return low + image * (high - low), label

    calls = tf.data.AUTOTUNE if options.tuned_input else None
    ahead = tf.data.AUTOTUNE if options.tuned_input else 1

    def batches(split: tf.data.Dataset) -> tf.data.Dataset:
        split = split.map(format_image, num_parallel_calls=calls).batch(options.batch_size)
        return (split.take(options.max_steps) if options.max_steps else split).prefetch(ahead)

    train = dataset.take(num_train).shuffle(SHUFFLE_BUFFER)
    validation = dataset.skip(num_train).take(num_validation)
    test = dataset.skip(num_train + num_validation)
    sizes = [num_train, num_validation, total - num_train - num_validation]
    return [batches(train), batches(validation), batches(test)], sizes


def build_model(options: argparse.Namespace, num_classes: int = 5) -> tf_keras.Model:
    shape = (options.image_size, options.image_size, 3)
    return tf_keras.Sequential(
        [
            hub.KerasLayer(options.hub_module, trainable=options.trainable, input_shape=shape),
            tf_keras.layers.Dense(512, activation="relu"),
            tf_keras.layers.Dense(num_classes),
        ]
    )


def train(options: argparse.Namespace, logdir: str) -> dict[str, Any]:
    """Trains, validates after each epoch, and returns what was measured."""
    tf_keras.utils.set_random_seed(options.seed)
    (train_ds, validation_ds, test_ds), sizes = load_splits(options)
    model = build_model(options)
    loss_object = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = tf_keras.optimizers.Adam(options.learning_rate)

    train_loss = tf_keras.metrics.Mean(name="train_loss")
    train_accuracy = tf_keras.metrics.SparseCategoricalAccuracy(name="train_accuracy")
    test_loss = tf_keras.metrics.Mean(name="test_loss")
    test_accuracy = tf_keras.metrics.SparseCategoricalAccuracy(name="test_accuracy")
    train_writer = tf.summary.create_file_writer(os.path.join(logdir, "train"))
    validation_writer = tf.summary.create_file_writer(os.path.join(logdir, "validation"))

    @tf.function
    def train_step(images: tf.Tensor, labels: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            logits = model(images, training=True)
            loss = loss_object(labels, logits)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        train_loss(loss)
        train_accuracy(labels, logits)

    @tf.function
    def test_step(images: tf.Tensor, labels: tf.Tensor) -> None:
        logits = model(images, training=False)
        test_loss(loss_object(labels, logits))
        test_accuracy(labels, logits)

    def evaluate(dataset: tf.data.Dataset) -> dict[str, float]:
        test_loss.reset_state()
        test_accuracy.reset_state()
        for images, labels in dataset:
            test_step(images, labels)
        return {"loss": float(test_loss.result()), "accuracy": float(test_accuracy.result())}

    measured: dict[str, Any] = {"split_sizes": sizes, "epochs": []}
    for epoch in range(options.epochs):
        began, num_images = time.perf_counter(), 0
        train_loss.reset_state()
        train_accuracy.reset_state()
        for step, (images, labels) in enumerate(train_ds):
            train_step(images, labels)
            num_images += len(labels)
            if epoch == 0 and step == 0:
                train_loss.result().numpy()  # A GPU computes while Python goes on: wait for it.
                measured["seconds_to_first_step"] = time.perf_counter() - START
            if epoch == 0 and step + 1 == SKIPPED_STEPS:
                train_loss.result().numpy()
                warm = (time.perf_counter(), num_images)
        of_train = {"loss": float(train_loss.result()), "accuracy": float(train_accuracy.result())}
        trained = time.perf_counter()
        with train_writer.as_default():
            for name, value in of_train.items():
                tf.summary.scalar(name, value, step=epoch)
        of_validation = evaluate(validation_ds)
        with validation_writer.as_default():
            for name, value in of_validation.items():
                tf.summary.scalar(name, value, step=epoch)
        measured["epochs"].append(
            {
                "train": of_train,
                "validation": of_validation,
                "train_images": num_images,
                "train_seconds": trained - began,
                "validation_seconds": time.perf_counter() - trained,
            }
        )
        if epoch == 0 and num_images > SKIPPED_STEPS * options.batch_size:
            measured["images_per_second"] = (num_images - warm[1]) / (trained - warm[0])
            measured["images_per_second_of"] = f"steps after the first {SKIPPED_STEPS}"
        print(f"epoch {epoch + 1}: train {of_train}, validation {of_validation}", flush=True)
    train_writer.close()
    validation_writer.close()
    later = measured["epochs"][1:]
    if later:
        seconds = sum(epoch["train_seconds"] for epoch in later)
        measured["images_per_second"] = sum(epoch["train_images"] for epoch in later) / seconds
        measured["images_per_second_of"] = "epochs after the first"
    if options.test:
        began = time.perf_counter()
        measured["test"] = evaluate(test_ds)
        measured["test_seconds"] = time.perf_counter() - began
        print(f"test {measured['test']}")
    measured["trained_parameters"] = sum(v.shape.num_elements() for v in model.trainable_variables)
    print(f"{measured['trained_parameters']:,} parameters train")
    return measured


def main() -> None:
    options = parse_arguments()
    with tempfile.TemporaryDirectory() as temporary:
        measured = train(options, options.logdir or temporary)
    packages = ("tensorflow", "tf_keras", "tensorflow-hub", "tensorflow-datasets")
    measured |= {
        "options": vars(options),
        "seconds_in_all": time.perf_counter() - START,
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }
    if options.output:
        Path(options.output).write_text(json.dumps(measured, indent=2) + "\n")


if __name__ == "__main__":
    main()
