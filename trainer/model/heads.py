"""What turns features into logits."""

from collections.abc import Callable
from typing import Annotated

import tensorflow as tf
import tf_keras

from trainer.cli.options import FITTED, ZERO
from trainer.model.dropout import Draws, dropout
from trainer.model.fits import (
    Fitted,
    Labelled,
    Neighbours,
    Probe,
    fit_probe,
    most_pictures,
    require_one_class,
)
from trainer.model.layers import HEAD, Layer
from trainer.registry import Bounds, Choice, Registry
from trainer.tasks import Task
from trainer.values import UsageError

HEADS: Registry[list[int] | Probe | Neighbours] = Registry("head", flag="--head")


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


@HEADS.register("probe", source="arXiv 2202.10054")
def probe(strength: Annotated[float, Bounds(at_least=0)] = 0.0) -> Probe:
    """A linear head that is fitted, not trained; scikit-learn's C, or 0: validation chooses it.

    L-BFGS on what the network makes of train, before the first update. It is also a start for fine-tuning
    (LP-FT, Kumar et al., 2022, arXiv 2202.10054).
    """
    return Probe(float(strength))


@HEADS.register("knn", source="arXiv 2104.14294")
def knn(
    k: Annotated[int, Bounds(at_least=1, at_most=10_000)] = 20,
    temperature: Annotated[float, Bounds(at_least=1e-3, at_most=1e3)] = 0.07,
) -> Neighbours:
    """Votes of the k training pictures with the most similar features; nothing is trained.

    The vote of a picture of cosine similarity s weighs exp(s / temperature), as in the evaluation of DINO
    (Caron et al., 2021, arXiv 2104.14294, after Wu et al., 2018, arXiv 1805.01978).
    """
    return Neighbours(k, float(temperature))


def choose_head(text: str) -> tuple[Choice[list[int] | Probe | Neighbours], bool]:
    """Returns the head that a text names, and whether its logits start at zero, as `zero_` in front says.

    It may stand in front of the head of a plugin, which knows nothing of it.

    Raises:
      UsageError: there is no such head.
    """
    name = text.partition("(")[0].strip()
    plain = name.removeprefix(ZERO)
    if name not in HEADS and plain in HEADS and plain not in FITTED:
        return HEADS.choose(text.strip().removeprefix(ZERO)), True
    return HEADS.choose(text), name.startswith(ZERO)


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
        choice, starts_at_zero = choose_head(text)
        made = choice()
        self.fits = made if isinstance(made, Probe) else None
        """How the logits are fitted before the first update; None: they begin as they are drawn."""
        widths = made if isinstance(made, list) else []

        def dense(i: int, units: int, name: str, activation: str | None) -> tf_keras.layers.Dense:
            initializer = tf_keras.initializers.GlorotUniform(seed=(1000 * seed + i) % 2**63)
            return tf_keras.layers.Dense(units, activation, kernel_initializer=initializer, name=name)

        self.hidden = [dense(i, width, f"dense_{i}", "relu") for i, width in enumerate(widths)]
        self.logits = dense(len(widths), num_logits, "logits", None)
        if starts_at_zero:
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

    def fit(
        self, train: Labelled, validation: Labelled, *, task: Task, fit: Callable[..., Fitted] = fit_probe
    ) -> str:
        """Gives the logits the weights that `fits` asks for, and returns in words how they were found.

        Args:
          train: what is fitted.
          validation: what chooses how closely.
          task: what the labels mean.
          fit: does what `fit_probe` does.

        Raises:
          UsageError: it cannot be fitted to them; the message says why.
        """
        assert self.fits
        one = task.excludes and self.logits.units == 1
        found = fit(self.fits, train, validation, num_classes=2 if one else self.logits.units, task=task)
        kernel, bias = found.kernel, found.bias
        if one:
            kernel, bias = kernel[:, 1:] - kernel[:, :1], bias[1:] - bias[:1]
        self.logits.kernel.assign(kernel)
        self.logits.bias.assign(bias)
        chosen = "" if self.fits.strength else ", chosen by validation"
        return f"logistic regression, C={found.strength:g}{chosen}, on {found.num_fitted:,} pictures"

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


class NeighbourHead(tf_keras.layers.Layer):
    """Keeps the features of N training pictures, and gives the votes of the k most similar ones.

    Variables are `head/neighbours/features` [N, D] float32, each row of length 1, `labels` [N] int64, and
    `temperature` [] float32, the only one that a gradient reaches. Probabilities are the shares of the votes,
    together with one more neighbour, of the weight of the most similar one, which votes for all classes alike
    (additive smoothing): none is 0, so that the loss of a picture is finite.
    """

    fits: Neighbours

    def __init__(self, fits: Neighbours, *, num_logits: int, num_examples: int):
        """Makes room for pictures.

        Args:
          fits: k, and the temperature.
          num_logits: as the task says: K, or 1 of two classes.
          num_examples: N.
        """
        super().__init__(name="head")
        self.fits, self._num_logits = fits, num_logits
        self._num_classes = max(num_logits, 2)
        self._num_examples, self._count = num_examples, min(fits.count, num_examples)

    def build(self, input_shape: tf.TensorShape) -> None:
        rows = [self._num_examples, input_shape[-1]]
        self.features = tf.Variable(tf.zeros(rows), trainable=False, name="features")
        self.classes = tf.Variable(tf.zeros(rows[:1], tf.int64), trainable=False, name="labels")
        self.temperature = tf.Variable(self.fits.temperature, dtype=tf.float32, name="temperature")
        super().build(input_shape)

    def call(self, features: tf.Tensor, *, draws: Draws | None = None) -> tf.Tensor:
        """Maps features [B, D] to logarithms of votes [B, K], or, of one logit, their difference."""
        similar = tf.matmul(_unit(features), self.features, transpose_b=True)
        nearest, at = tf.math.top_k(similar, self._count)
        # [B, k], relative to the most similar one, so that none is too large for float32.
        weights = tf.exp((nearest - nearest[:, :1]) / self.temperature)
        # [B, k, K], 1 for the class of each: rows of a table, as TFLite's own operation is wrong in 8 bits.
        says = tf.gather(tf.eye(self._num_classes), tf.gather(self.classes, at))
        votes = tf.reduce_sum(weights[:, :, None] * says, axis=1) + 1.0 / self._num_classes
        logits = tf.math.log(votes)
        return logits[:, 1:] - logits[:, :1] if self._num_logits == 1 else logits

    def fit(self, train: Labelled, validation: Labelled, *, task: Task) -> str:
        """Keeps the features of the training pictures; see `Head.fit`."""
        self.features.assign(_unit(tf.constant(train.features)))
        self.classes.assign(train.labels)
        return f"the {self._count} most similar of {len(train.labels):,} pictures"

    def named_variables(self) -> dict[str, tf.Variable]:
        """Returns {'head/neighbours/WEIGHT': variable}."""
        kept = {"features": self.features, "labels": self.classes, "temperature": self.temperature}
        return {f"{HEAD}neighbours/{name}": variable for name, variable in kept.items()}

    @property
    def layers(self) -> tuple[Layer, ...]:
        return (Layer(f"{HEAD}neighbours", tuple(self.named_variables())),)


def _unit(features: tf.Tensor) -> tf.Tensor:
    """Returns features [B, D] at length 1; what is 0 stays so, and is equally far from all."""
    # TFLite has one operation for this, which it can do in 8 bits.
    return tf.math.l2_normalize(features, axis=1, epsilon=1e-24)


def _require_logit_of_each(num_classes: int, num_logits: int) -> None:
    """Raises UsageError where logits are not one for each class, or one of two: nothing else is fitted."""
    if num_logits not in ([1, 2] if num_classes == 2 else [num_classes]):
        raise UsageError(
            f"it is fitted to a logit for each of {num_classes:,} classes, and this task has {num_logits:,}"
        )


MOST_KEPT_BYTES = 2**30


def make_head(
    text: str,
    *,
    num_classes: int,
    num_logits: int,
    dropout: float,
    seed: int,
    num_examples: int,
    width: int,
    task: Task,
) -> Head | NeighbourHead:
    """Makes the head that `text` names.

    Args:
      text: of `HEADS`.
      num_classes: K.
      num_logits: as the task says.
      dropout: share of the last features dropped in training.
      seed: of the kernels.
      num_examples: pictures in train.
      width: D, of a picture's features.
      task: what labels mean.

    Raises:
      UsageError: there is no such head, it would be too large, or the task needs one that is trained.
    """
    choice, _ = choose_head(text)
    made = choice()
    try:
        if isinstance(made, Probe | Neighbours):
            _require_logit_of_each(num_classes, num_logits)
        if isinstance(made, Neighbours):
            require_one_class(task)
        if isinstance(made, Probe):
            most_pictures(max(num_logits, 2), width)
    except UsageError as error:
        raise UsageError(f"{choice.said}: {error}") from None
    if not isinstance(made, Neighbours):
        return Head(text, num_logits=num_logits, dropout=dropout, seed=seed)
    if (size := 4 * num_examples * width) > MOST_KEPT_BYTES:
        raise UsageError(
            f"--head={text} keeps {width:,} features of each of {num_examples:,} training pictures in the "
            f"model: {size / 1e9:.1f} GB, and {MOST_KEPT_BYTES / 1e9:.1f} is the most; take --head=probe"
        )
    return NeighbourHead(made, num_logits=num_logits, num_examples=num_examples)
