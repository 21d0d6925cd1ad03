"""What turns features into logits."""

from typing import Annotated

import tensorflow as tf
import tf_keras

from trainer.cli.options import ZERO
from trainer.model.dropout import Draws, dropout
from trainer.model.layers import HEAD, Layer
from trainer.registry import Bounds, Registry
from trainer.values import UsageError

HEADS: Registry[list[int]] = Registry("head", flag="--head")


@HEADS.register(f"{ZERO}linear")
@HEADS.register("linear")
def linear() -> list[int]:
    """Features straight to logits; with `zero_` in front, the logits are zero at first."""
    return []


@HEADS.register(f"{ZERO}mlp")
@HEADS.register("mlp")
def mlp(*widths: Annotated[int, Bounds(at_least=1, at_most=1_000_000)]) -> list[int]:
    """Hidden layers of these widths, each with ReLU, before logits; with `zero_` these are zero at first."""
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
          num_logits: as the task says; it makes logits [B, K] of them.
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
