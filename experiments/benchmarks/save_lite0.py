"""EfficientNet-Lite0 as a reusable SavedModel, for programs that take their network from TensorFlow Hub.

    python experiments/benchmarks/save_lite0.py FOLDER

https://www.tensorflow.org/hub/reusable_saved_models says what such a module has.
"""

import sys

import tensorflow as tf

from trainer.model.backbones.efficientnet_lite import build_network, load_torch_weights, set_weights


def main() -> None:
    network = build_network()
    set_weights(network, load_torch_weights())

    def extract_features(inputs, training=False):
        return network(inputs, training=training)

    # Only the function and the variables are attached: with the Keras model, each of its layers
    # would be traced and saved once more.
    module = tf.train.Checkpoint()
    module.__call__ = tf.function(extract_features)
    module.variables = list(network.variables)
    module.trainable_variables = list(network.trainable_variables)
    module.regularization_losses = []
    # A SavedModel keeps only what was traced. No trace may have a fixed batch size: hub.KerasLayer
    # would pick it and fail on other batches.
    images = tf.TensorSpec([None, None, None, 3], tf.float32, "inputs")
    for training in (True, False):
        module.__call__.get_concrete_function(images, training)
    tf.saved_model.save(module, sys.argv[1])


if __name__ == "__main__":
    main()
