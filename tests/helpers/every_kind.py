"""A plugin with one idea of each kind; it imports what the extension API offers and nothing else of ours."""

from typing import Annotated

import numpy as np
import tensorflow as tf
import tf_keras
from tf_keras import layers

import trainer
from trainer.data.augment import Change
from trainer.data.sources import MemorySource
from trainer.loop.callbacks import Callback
from trainer.loop.gradient_rules import moved
from trainer.loop.objectives import Terms
from trainer.model.backbones import KerasBackbone, reseed
from trainer.model.saliency import Saliency


@trainer.register.source("noise", address="COUNT")
def noise(count: str, *, name):
    """Pictures of noise, brighter from class to class."""
    labels = np.arange(int(count)) % 3
    pixels = (
        np.random.default_rng(0).integers(80, size=(int(count), 10, 12, 3)) + 80 * labels[:, None, None, None]
    )
    encoded = [tf.io.encode_png(image).numpy() for image in pixels.astype(np.uint8)]
    ids = [f"{i:03d}.png" for i in range(int(count))]
    return MemorySource(name, ("dark", "grey", "bright"), ids, labels, encoded, stamped=count)


@trainer.register.backbone("tiny", address="WIDTH")
def tiny(width: str = "4", *, name, image_size):
    """Averages of one convolution."""
    images = tf_keras.Input([image_size, image_size, 3])
    x = layers.BatchNormalization(name="bn")(layers.Conv2D(int(width), 3, name="conv")(images))
    network = tf_keras.Model(images, layers.GlobalAveragePooling2D(name="pool")(layers.ReLU(name="relu")(x)))
    reseed(network, seed=0)
    return KerasBackbone(name, network, tf.identity, size_px=image_size, value_range=(-1.0, 1.0))


@trainer.register.loss("squared")
def squared(scale: Annotated[float, trainer.register.Bounds(above=0)] = 1.0):
    """Squared difference of the probabilities from the label's."""

    def loss(logits, labels, targets):
        shares = tf.one_hot(labels, logits.shape[-1]) if targets is None else targets
        return scale * tf.reduce_sum((tf.nn.softmax(logits) - shares) ** 2, axis=-1)

    return loss


@trainer.register.objective("learnt_scale", source="nobody")
class LearntScale:
    """The loss times a factor that is learnt, with a count of the calls."""

    metric_names = ("scaled",)

    def __init__(self, weight: float = 1.0, *, loss):
        self._loss, self._weight = loss, weight
        first = tf.VariableAggregation.ONLY_FIRST_REPLICA
        self.variables = {
            "calls": tf.Variable(0, trainable=False, dtype=tf.int64, aggregation=first),
            "log_scale": tf.Variable(0.5),
        }

    def __call__(self, forward, batch, seed):
        self.variables["calls"].assign_add(1)

        def score(features, labels):
            logits = forward.logits(features)
            return logits, self._loss(logits, labels, None)

        features = forward.features(batch["image"])
        # Another draw each update.
        features += 0.01 * tf.random.stateless_normal(tf.shape(features), seed)
        logits, losses = forward.float32(score, features, batch["label"])
        scale = self.variables["log_scale"]
        scaled = self._weight * tf.exp(-scale) * losses + scale
        return Terms(scaled, logits, {"scaled": scaled})


@trainer.register.gradient_rule("sam", source="arXiv 2010.01412")
class Sam:
    """Gradients where the loss nearby is largest, with noise that becomes smaller from update to update."""

    metric_names = ("sharpness",)

    def __init__(self, rho: Annotated[float, trainer.register.Bounds(above=0)] = 0.05, noise: float = 0.0):
        self._rho, self._noise = rho, noise
        first = tf.VariableAggregation.ONLY_FIRST_REPLICA
        self.variables = {"updates": tf.Variable(0.0, trainable=False, aggregation=first)}

    def __call__(self, compute, variables):
        first = compute()
        norm = tf.linalg.global_norm(first.gradients) + 1e-12
        worst = moved(variables, [self._rho / norm * gradient for gradient in first.gradients], compute)
        gradients = worst.gradients
        if self._noise:
            gradients = [g + noise for g, noise in zip(gradients, self.drawn(first), strict=True)]
        (here, count), (there, _) = first.sums["loss"], worst.sums["loss"]
        return first._replace(gradients=gradients, sums={**first.sums, "sharpness": (there - here, count)})

    def drawn(self, computed):
        """The noise of an update, for each variable."""
        self.variables["updates"].assign_add(1.0)
        scale, gradients = self._noise / self.variables["updates"], computed.gradients
        seeds = [tf.random.experimental.stateless_fold_in(computed.seed, i) for i in range(len(gradients))]
        return [
            scale * tf.random.stateless_normal(gradient.shape, seed)
            for gradient, seed in zip(gradients, seeds, strict=True)
        ]


@trainer.register.gradient_rule("walking")
class Walking(Sam):
    """As `sam`, with noise that goes on from where it was, and begins anew in each phase."""

    def slots(self, variables):
        return {"walk": [tf.zeros(variable.shape) for variable in variables]}

    def __call__(self, compute, variables, slots):
        self._slots = slots
        return super().__call__(compute, variables)

    def drawn(self, computed):
        for walk, noise in zip(self._slots["walk"], super().drawn(computed), strict=True):
            walk.assign_add(noise)
        return [walk.read_value() for walk in self._slots["walk"]]


@trainer.register.metric("top")
def top(k: int = 2):
    """Share of examples whose label is among the k largest logits."""
    return lambda logits, batch: tf.cast(tf.math.in_top_k(batch["label"], logits, k), tf.float32)


@trainer.register.augmentation("dim")
def dim(most: float = 0.5):
    """Darkens pictures by up to `most`."""
    return Change(1, lambda images, draws: images * (1 - most * draws[:, :, None, None]))


@trainer.register.schedule("saw")
def saw(depth: float = 0.5):
    """Falls by `depth` at every second update."""
    return lambda step, num_steps: 1.0 - depth * tf.math.floormod(step, 2.0)


@trainer.register.head("narrow")
def narrow():
    """One hidden layer of four."""
    return [4]


@trainer.register.callback("kernel_norm", before_save=True)
class KernelNorm(Callback):
    """The norm of the logits' kernel, every few steps."""

    def __init__(self, every_steps: int = 2, *, run):
        self._every_steps, self._run = every_steps, run

    def next_due(self, step):
        return (step // self._every_steps + 1) * self._every_steps

    def __call__(self, state):
        if state.step % self._every_steps == 0:
            kernel = state.classifier.named_variables["head/logits/kernel"]
            self._run.scalar("kernel_norm", float(tf.norm(kernel)), state.step)


@trainer.register.saliency("brightness", title="Brightness")
def brightness(power: int = 1, *, classifier):
    """What is bright, whatever the class."""
    low, high = classifier.backbone.contract.value_range
    return lambda pixels, label: Saliency(((pixels.mean(axis=2) - low) / (high - low)) ** power)


@trainer.register.export_form("grey", file="grey.csv")
def grey(*, file, exporting):
    """Probabilities of a grey picture, a line for each class."""
    [probabilities] = exporting.network()(tf.fill([1, *exporting.about.contract.image_shape], 0.5)).numpy()
    rows = zip(exporting.about.class_names, probabilities, strict=True)
    file.write_text("".join(f"{name},{p:.6f}\n" for name, p in rows))
