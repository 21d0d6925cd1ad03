"""What turns features into logits, and initial weights that depend on no process and no global seed."""

from typing import Annotated

import tensorflow as tf
import tf_keras

from trainer.cli.options import ZERO
from trainer.model.dropout import Draws, dropout
from trainer.model.layers import HEAD, Layer
from trainer.registry import Bounds, Registry
from trainer.values import UsageError

_KERNELS = (
    ("kernel", "kernel_initializer"),
    ("depthwise_kernel", "depthwise_initializer"),
    ("pointwise_kernel", "pointwise_initializer"),
)


def reseed(network: tf_keras.Model, *, seed: int) -> None:
    """Draws the kernels of a network anew from each layer's own initializer, with fixed seeds.

    Setting the global seeds before building would do the same, but change every later draw of
    the program.
    """
    position = 0
    for layer in (part for outer in network.layers for part in (outer, *outer.submodules)):
        for attribute, initializer_name in _KERNELS:
            kernel = getattr(layer, attribute, None)
            initializer = getattr(layer, initializer_name, None)
            if kernel is None or initializer is None:
                continue
            config = initializer.get_config()
            if "seed" in config:
                # Equal seeds would give layers of one shape the same weights.
                config["seed"] = seed * 100_003 + position
                kernel.assign(type(initializer).from_config(config)(kernel.shape, dtype=kernel.dtype))
            position += 1


HEADS: Registry[list[int]] = Registry("head", flag="--head")


@HEADS.register(f"{ZERO}linear")
@HEADS.register("linear")
def linear() -> list[int]:
    """Features straight to logits."""
    return []


@HEADS.register(f"{ZERO}mlp")
@HEADS.register("mlp")
def mlp(*widths: Annotated[int, Bounds(at_least=1, at_most=1_000_000)]) -> list[int]:
    """Hidden layers of these widths, each with ReLU, before the logits."""
    if not widths:
        raise UsageError("there must be a width, as in mlp(1024,512)")
    return list(widths)


class Head(tf_keras.layers.Layer):
    """Dense-ReLU layers, dropout, and a dense layer of logits.

    Variables are called `head/dense_0/kernel` ... `head/logits/bias`. Kernels start as Keras's
    Glorot uniform by (seed, layer), biases at zero.
    """

    def __init__(self, text: str, *, num_logits: int, dropout: float, seed: int):
        """Makes the head that `text`, e.g. `mlp(512)`, names.

        Args:
          text: of `HEADS`, such as `mlp(512)`; of one that begins with `zero_`, the kernel of the logits
            starts at zero, so that training begins with all classes equally likely (BiT, Kolesnikov et al.
            2020, arXiv 1912.11370).
          num_logits: K; one, z, stands for the two classes with the logits 0 and z (see `Classifier`).
          dropout: share of the last features dropped in training.
          seed: of the kernels.

        Raises:
          UsageError: there is no such head.
        """
        super().__init__(name="head")
        choice = HEADS.choose(text)
        widths = choice()

        def dense(i: int, units: int, name: str, activation: str | None) -> tf_keras.layers.Dense:
            initializer = tf_keras.initializers.GlorotUniform(seed=(1000 * seed + i) % 2**63)
            return tf_keras.layers.Dense(units, activation, kernel_initializer=initializer, name=name)

        self.hidden = [dense(i, width, f"dense_{i}", "relu") for i, width in enumerate(widths)]
        self.logits = dense(len(widths), num_logits, "logits", None)
        if choice.name.startswith(ZERO):
            self.logits.kernel_initializer = tf_keras.initializers.Zeros()
        self.dropout = dropout

    def build(self, input_shape: tf.TensorShape) -> None:
        width = input_shape[-1]
        for layer in (*self.hidden, self.logits):
            layer.build([None, width])
            width = layer.units
        super().build(input_shape)

    def call(self, features: tf.Tensor, *, draws: Draws | None = None) -> tf.Tensor:
        """Maps features [B, D] to logits [B, K], float32.

        Args:
          features: of the backbone.
          draws: of dropout, while training; None leaves it out.
        """
        for layer in self.hidden:
            features = layer(features)
        if self.dropout and draws is not None:
            features = dropout(features, rate=self.dropout, draws=draws)
        return self.logits(features)

    def named_variables(self) -> dict[str, tf.Variable]:
        """Returns {'head/LAYER/WEIGHT': variable}."""
        return {
            f"{HEAD}{layer.name}/{weight}": getattr(layer, weight)
            for layer in (*self.hidden, self.logits)
            for weight in ("kernel", "bias")
        }

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Dense layers with their ReLU, dropout where there is any, and the logits, in this order."""

        def dense(layer: tf_keras.layers.Dense) -> Layer:
            name = f"{HEAD}{layer.name}"
            return Layer(name, (f"{name}/kernel", f"{name}/bias"))

        dropped = [Layer(f"{HEAD}dropout")] if self.dropout else []
        return (*map(dense, self.hidden), *dropped, dense(self.logits))
