"""Tiny modules with answers known by hand, for the tests of backbones."""

import io
import tarfile
from pathlib import Path

import tensorflow as tf

from trainer.model.dropout import Draws

KERNEL = [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]  # Features: red + blue, green + blue.
PENALTY = 0.5


class TinyModule(tf.Module):
    """1x1 convolution, a BatchNorm of the mean only, and global average pooling."""

    def __init__(
        self,
        *,
        image_size=None,
        batch=None,
        dtype=tf.float32,
        output="features",
        repeat_name=False,
        kernel=KERNEL,
    ):
        super().__init__()
        kernel = tf.Variable(kernel, name="conv/kernel")
        beta = tf.Variable(tf.zeros([2]), name="conv/kernel" if repeat_name else "bn/beta")
        mean = tf.Variable(tf.zeros([2]), trainable=False, name="bn/moving_mean")
        self.variables_ = [kernel, beta, mean]

        def call(inputs, training=False):
            maps = tf.tensordot(tf.cast(inputs, tf.float32), kernel, 1)
            if training:
                batch_mean = tf.reduce_mean(maps, [0, 1, 2])
                mean.assign(0.5 * mean + 0.5 * batch_mean)
                maps = maps - batch_mean + beta
            else:
                maps = maps - mean + beta
            features = tf.reduce_mean(maps, [1, 2])
            outputs = {"features": features, "maps": maps, "dict": {"b": features, "a": maps}}
            return {**outputs, "squares": features**2}[output]

        self.call_ = tf.function(call)
        spec = tf.TensorSpec([batch, image_size, image_size, 3], dtype, "inputs")
        for training in (True, False):
            self.call_.get_concrete_function(spec, training)

        self.loss_ = tf.function(lambda: PENALTY * tf.reduce_sum(kernel**2))
        self.loss_.get_concrete_function()


def draws(seed, size):
    """Of dropout, for a whole batch; seed is [2]."""
    return Draws(tf.constant(seed, tf.int32), tf.range(size), size)


def save_tiny(folder: Path, **kwargs) -> Path:
    tiny = TinyModule(**kwargs)
    module = tf.train.Checkpoint()
    module.__call__ = tiny.call_
    module.variables = tiny.variables_
    module.trainable_variables = tiny.variables_[:2]
    module.regularization_losses = [tiny.loss_]
    tf.saved_model.save(module, str(folder))
    return folder


def save_with_signature(folder: Path, *, inputs: int = 1, kernel=KERNEL) -> Path:
    """A SavedModel that cannot be called, only served."""
    module = tf.Module()
    module.kernel = tf.Variable(kernel)
    specs = [tf.TensorSpec([None, 8, 8, 3], tf.float32, f"picture_{i}") for i in range(inputs)]

    @tf.function(input_signature=specs)
    def serve(*pictures):
        return {"embedding": tf.reduce_mean(tf.tensordot(sum(pictures), module.kernel, 1), [1, 2])}

    tf.saved_model.save(module, str(folder), signatures=serve)
    return folder


def save_keras_3_export(folder: Path) -> Path:
    """What model.export() of Keras 3 writes: variables are listed, but nothing can be called with them."""
    import keras

    layers = [
        keras.layers.Conv2D(2, 3),
        keras.layers.BatchNormalization(),
        keras.layers.GlobalAveragePooling2D(),
    ]
    keras.Sequential([keras.layers.Input((8, 8, 3)), *layers]).export(folder, verbose=False)
    return folder


def save_of_tensorflow_1(folder: Path) -> Path:
    """A module of TensorFlow 1: a graph with a signature, its variables in a collection."""
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        images = v1.placeholder(tf.float32, [None, 8, 8, 3])
        kernel = v1.get_variable("kernel", initializer=tf.constant(KERNEL))
        features = tf.reduce_mean(tf.tensordot(images, kernel, 1), [1, 2])
        session.run(v1.global_variables_initializer())
        signature = v1.saved_model.predict_signature_def({"images": images}, {"default": features})
        builder = v1.saved_model.Builder(str(folder))
        builder.add_meta_graph_and_variables(session, ["serve"], {"serving_default": signature})
        builder.save()
    return folder


def save_disconnected(folder: Path, *, parts: int, training: bool = True) -> Path:
    """A module that lists two kernels, of which gradients reach one or none; see `parts`.

    Args:
      folder: where.
      parts: how many kernels gradients reach.
      training: whether it has an argument `training`.
    """
    kernels = [tf.Variable(KERNEL, name=name) for name in ("a/kernel", "b/kernel")]

    def features(inputs):
        used = [kernel if k < parts else tf.stop_gradient(kernel) for k, kernel in enumerate(kernels)]
        return tf.reduce_mean(tf.tensordot(inputs, used[0] + used[1], 1), [1, 2])

    spec = tf.TensorSpec([None, 8, 8, 3], tf.float32, "inputs")
    module = tf.train.Checkpoint()
    module.variables = module.trainable_variables = kernels
    if training:
        module.__call__ = tf.function(lambda inputs, training=False: features(inputs))
        for value in (True, False):
            module.__call__.get_concrete_function(spec, value)
    else:
        module.__call__ = tf.function(features, input_signature=[spec])
    tf.saved_model.save(module, str(folder))
    return folder


def save_with_asset(folder: Path) -> Path:
    """A module that brings a file, `assets/names.txt`."""
    names = folder.with_name("names.txt")
    names.write_text("red\ngreen\n")
    module = tf.Module()
    module.names = tf.saved_model.Asset(str(names))
    tf.saved_model.save(module, str(folder))
    names.unlink()
    return folder


def pack(folder: Path) -> bytes:
    """Returns a SavedModel as the .tar.gz that a hub server sends."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        tar.add(folder, arcname=".")
    return buffer.getvalue()
