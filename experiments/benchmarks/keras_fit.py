"""tf_keras `fit` on MobileNetV2, as in TensorFlow's tutorial on transfer learning. An opponent.

    python experiments/benchmarks/keras_fit.py --epochs=4 --output=fit.json
    python experiments/benchmarks/keras_fit.py --frozen --weights=imagenet

From "Transfer learning and fine-tuning" on tensorflow.org: pictures of 160 px mapped to [-1, 1], a network
without its top called with training=False, global average pooling, Dropout(0.2), a Dense layer, RMSprop at
1e-5, batches of 32 with prefetch(AUTOTUNE), float32. The tutorial freezes `base_model.layers[:100]`; layer
100 is block_11_expand_relu, which --from_layer names. It augments (flip, rotation); this program does not.
The pictures are the same take/skip splits of tf_flowers as in textbook_loop.py, and are not cached.
It uses nothing of this project. $TFDS_DATA_DIR says where the data are.
"""

import argparse
import importlib.metadata
import json
import os
import resource
import time
from pathlib import Path
from typing import Any

START = time.perf_counter()
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf  # noqa: E402  (its import is part of what a user waits for)
import tensorflow_datasets as tfds  # noqa: E402
import tf_keras  # noqa: E402

SHUFFLE_BUFFER = 1000
SKIPPED_STEPS = 3  # They trace and warm up; where there is one epoch only, speed is that of the others.
RATES = {True: 1e-4, False: 1e-5}  # The tutorial's, by whether the network is frozen.


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--weights", default="none", help="imagenet, none (random) or a file")
    parser.add_argument("--image_size", type=int, default=160, help="px")
    parser.add_argument("--from_layer", default="block_11_expand_relu", help="first layer that trains")
    parser.add_argument("--frozen", action="store_true", help="train the head only")
    parser.add_argument("--optimizer", choices=("rmsprop", "adam"), default="rmsprop")
    parser.add_argument("--learning_rate", type=float, help="default 1e-5, or 1e-4 with --frozen")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--take_examples", type=int, default=0, help="only the first pictures; 0: all")
    parser.add_argument("--max_steps", type=int, default=0, help="most batches of a split; 0: all")
    parser.add_argument("--test", action="store_true", help="score the test split at the end")
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

    def resize(image: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return tf.image.resize(image, (options.image_size, options.image_size)), label

    def batches(split: tf.data.Dataset) -> tf.data.Dataset:
        split = split.map(resize, num_parallel_calls=tf.data.AUTOTUNE).batch(options.batch_size)
        return (split.take(options.max_steps) if options.max_steps else split).prefetch(tf.data.AUTOTUNE)

    train = dataset.take(num_train).shuffle(SHUFFLE_BUFFER)
    validation = dataset.skip(num_train).take(num_validation)
    test = dataset.skip(num_train + num_validation)
    sizes = [num_train, num_validation, total - num_train - num_validation]
    return [batches(train), batches(validation), batches(test)], sizes


def build_model(options: argparse.Namespace, num_classes: int = 5) -> tf_keras.Model:
    shape = (options.image_size, options.image_size, 3)
    weights = None if options.weights == "none" else options.weights
    base_model = tf_keras.applications.MobileNetV2(input_shape=shape, include_top=False, weights=weights)
    base_model.trainable = not options.frozen
    if not options.frozen:
        fine_tune_at = [layer.name for layer in base_model.layers].index(options.from_layer)
        for layer in base_model.layers[:fine_tune_at]:
            layer.trainable = False
    inputs = tf_keras.Input(shape=shape)
    x = tf_keras.applications.mobilenet_v2.preprocess_input(inputs)
    x = base_model(x, training=False)
    x = tf_keras.layers.GlobalAveragePooling2D()(x)
    x = tf_keras.layers.Dropout(0.2)(x)
    outputs = tf_keras.layers.Dense(num_classes)(x)
    model = tf_keras.Model(inputs, outputs)
    kinds = {"rmsprop": tf_keras.optimizers.RMSprop, "adam": tf_keras.optimizers.Adam}
    model.compile(
        optimizer=kinds[options.optimizer](options.learning_rate or RATES[options.frozen]),
        loss=tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


class Stopwatch(tf_keras.callbacks.Callback):
    """Times epochs, their training apart from their validation. Expects validation after each epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.epochs: list[dict[str, Any]] = []
        self.first_step = 0.0
        self.warm: tuple[float, int] | None = None

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.began, self.steps = time.perf_counter(), 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.steps += 1
        self.first_step = self.first_step or time.perf_counter()
        if not self.epochs and self.steps == SKIPPED_STEPS:
            self.warm = (time.perf_counter(), self.steps)

    def on_test_begin(self, logs: Any = None) -> None:
        self.trained = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Any) -> None:
        ended = time.perf_counter()
        self.epochs.append(
            {
                "train": {name: float(logs[name]) for name in ("loss", "accuracy")},
                "validation": {name: float(logs[f"val_{name}"]) for name in ("loss", "accuracy")},
                "steps": self.steps,
                "train_seconds": self.trained - self.began,
                "validation_seconds": ended - self.trained,
            }
        )

    def images_per_second(self, num_images: int, batch_size: int) -> dict[str, Any]:
        """Returns the speed of the epochs after the first, or of the later steps of the only one.

        Args:
          num_images: that train in an epoch.
          batch_size: images of a step.
        """
        if len(self.epochs) > 1:
            seconds = sum(epoch["train_seconds"] for epoch in self.epochs[1:])
            speed = (len(self.epochs) - 1) * num_images / seconds
            return {"images_per_second": speed, "images_per_second_of": "epochs after the first"}
        if self.warm and self.epochs[0]["steps"] > SKIPPED_STEPS:
            seconds = self.epochs[0]["train_seconds"] - (self.warm[0] - self.began)
            speed = (num_images - self.warm[1] * batch_size) / seconds
            return {
                "images_per_second": speed,
                "images_per_second_of": f"steps after the first {SKIPPED_STEPS}",
            }
        return {}


def main() -> None:
    options = parse_arguments()
    tf_keras.utils.set_random_seed(options.seed)
    (train_ds, validation_ds, test_ds), sizes = load_splits(options)
    model = build_model(options)
    trained_parameters = sum(v.shape.num_elements() for v in model.trainable_variables)
    print(f"{trained_parameters:,} parameters train", flush=True)
    watch = Stopwatch()
    model.fit(train_ds, epochs=options.epochs, validation_data=validation_ds, callbacks=[watch], verbose=2)
    most = options.max_steps * options.batch_size or sizes[0]
    packages = ("tensorflow", "tf_keras", "tensorflow-datasets")
    measured: dict[str, Any] = {
        "options": vars(options),
        "split_sizes": sizes,
        "trained_parameters": trained_parameters,
        "epochs": watch.epochs,
        "seconds_to_first_step": watch.first_step - START,
        **watch.images_per_second(min(sizes[0], most), options.batch_size),
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }
    if options.test:
        loss, accuracy = model.evaluate(test_ds, verbose=0)
        measured["test"] = {"loss": loss, "accuracy": accuracy}
    measured["seconds_in_all"] = time.perf_counter() - START
    measured["peak_rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if options.output:
        Path(options.output).write_text(json.dumps(measured, indent=2) + "\n")


if __name__ == "__main__":
    main()
