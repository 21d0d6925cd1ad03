"""tf_keras `fit` on EfficientNet-Lite0, as in TensorFlow's tutorial on transfer learning, with pictures of a
folder. An opponent.

    python experiments/benchmarks/keras_tutorial.py --folder=FOLDER --epochs=8 --output=tutorial.json

FOLDER has train/ and valid/ with a folder for each class. From "Transfer learning and fine-tuning" on
tensorflow.org: flips and rotations, the network called with training=False, pooling, Dropout(0.2), a Dense
layer; the first half of the epochs Adam at 1e-4 with the network frozen, the second RMSprop at 1e-5 with
the upper third of its layers. Of this project it uses only the network with its weights; keras_fit.py is
the tutorial with its own network.
"""

import argparse
import json
import os
import time
from pathlib import Path

START = time.perf_counter()
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf  # noqa: E402  (its import is part of what a user waits for)
import tf_keras  # noqa: E402

from trainer.model.backbones.efficientnet_lite import (  # noqa: E402
    VALUE_RANGE,
    build_network,
    load_torch_weights,
    set_weights,
)

SIZE_PX = 224
TRAINED_SHARE = 1 / 3  # The tutorial trains MobileNetV2 from layer 100 of 154 on.


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--folder", required=True)
    parser.add_argument("--epochs", type=int, default=8, help="two or more")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", help="JSON with what was measured")
    return parser.parse_args()


def load_split(options: argparse.Namespace, name: str) -> tuple[tf.data.Dataset, int]:
    """Returns the batches of a split, and how many classes there are."""
    found = tf_keras.utils.image_dataset_from_directory(
        Path(options.folder, name), image_size=(SIZE_PX, SIZE_PX), batch_size=options.batch_size,
        shuffle=name == "train", seed=options.seed,
    )  # fmt: skip
    return found.prefetch(tf.data.AUTOTUNE), len(found.class_names)


def build_model(num_classes: int) -> tuple[tf_keras.Model, tf_keras.Model]:
    """Returns the model and the network inside it."""
    network = build_network()
    set_weights(network, load_torch_weights())
    low, high = VALUE_RANGE
    inputs = tf_keras.Input(shape=(SIZE_PX, SIZE_PX, 3))
    x = tf_keras.layers.RandomFlip("horizontal")(inputs)
    x = tf_keras.layers.RandomRotation(0.2)(x)
    x = tf_keras.layers.Rescaling((high - low) / 255, offset=low)(x)
    x = network(x, training=False)
    x = tf_keras.layers.Dropout(0.2)(x)
    return tf_keras.Model(inputs, tf_keras.layers.Dense(num_classes)(x)), network


def fit(model: tf_keras.Model, optimizer: tf_keras.optimizers.Optimizer, epochs: int, splits: tuple) -> list:
    """Trains, and returns what was measured of each epoch."""
    model.compile(
        optimizer, loss=tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"]
    )
    train, validation = splits
    told = model.fit(train, epochs=epochs, validation_data=validation, verbose=2).history
    return [
        {"validation": {"loss": loss, "accuracy": accuracy}}
        for loss, accuracy in zip(told["val_loss"], told["val_accuracy"], strict=True)
    ]


def main() -> None:
    options = parse_arguments()
    tf_keras.utils.set_random_seed(options.seed)
    (train, num_classes), (validation, _) = load_split(options, "train"), load_split(options, "valid")
    model, network = build_model(num_classes)
    network.trainable = False
    half = options.epochs // 2
    epochs = fit(model, tf_keras.optimizers.Adam(1e-4), half, (train, validation))
    network.trainable = True
    for layer in network.layers[: round(len(network.layers) * (1 - TRAINED_SHARE))]:
        layer.trainable = False
    epochs += fit(model, tf_keras.optimizers.RMSprop(1e-5), options.epochs - half, (train, validation))
    told = {"options": vars(options), "epochs": epochs, "seconds_in_all": time.perf_counter() - START}
    if options.output:
        Path(options.output).write_text(json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
    main()
