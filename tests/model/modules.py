"""Tiny modules with answers known by hand, for the tests of backbones."""

import io
import tarfile
from pathlib import Path

import tensorflow as tf

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
