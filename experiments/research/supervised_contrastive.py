"""Supervised contrastive learning of the features (Khosla et al. 2020, arXiv 2004.11362)."""

from typing import Annotated

import tensorflow as tf

import trainer
from trainer.loop.objectives import Terms
from trainer.register import Bounds
from trainer.values import UsageError


def contrast(features, labels, places, everyone, temperature: float) -> tf.Tensor:
    """Returns L_out of the paper, [b] float32, for some examples of a batch; 0 for one without a positive.

    They have features [b, D] of length 1, labels [b], and places [b] in the batch. `everyone` has features
    [B, D], labels [B] and mask [B], 0 for padding, of the whole batch.
    """
    others = (places[:, None] != tf.range(tf.size(everyone[2]))) & (everyone[2] > 0)
    positive = tf.cast((labels[:, None] == everyone[1]) & others, tf.float32)
    # Finite, as there may be no others.
    similar = tf.where(others, tf.matmul(features, everyone[0], transpose_b=True) / temperature, -1e9)
    log_shares = similar - tf.reduce_logsumexp(similar, axis=1, keepdims=True)
    return -tf.math.divide_no_nan(tf.reduce_sum(positive * log_shares, 1), tf.reduce_sum(positive, 1))


@trainer.register.objective("supervised_contrastive", source="arXiv 2004.11362")
class SupervisedContrastive:
    """Learns the labels, and features that are alike within a class: (1 - weight) loss + weight L_out.

    The paper trains the network with L_out alone on two views of each picture, through a projection that is
    thrown away, then a linear classifier on it. Here there is one view and no projection, and both terms are
    trained together, as in Gunel et al. 2021 (arXiv 2011.01403). All devices are compared with one another.
    """

    metric_names = ("contrastive",)

    def __init__(self, weight: Annotated[float, Bounds(above=0, at_most=1)] = 0.5,
                 temperature: Annotated[float, Bounds(above=0)] = 0.1, *, loss, experiment):  # fmt: skip
        self._weight, self._temperature, self._loss = weight, temperature, loss
        phases = [phase.spec for phase in experiment.plan.phases]
        if not any(experiment.trained_in_backbone(spec) for spec in phases):
            raise UsageError("no phase trains the network below the features, so nothing would come of it")
        if experiment.config.update.accumulate > 1:
            raise UsageError("examples would be compared within the parts of --accumulate only: leave it out")
        if mixed := [s for s in phases if (augment := experiment.augment(s)) and augment.mixes]:
            raise UsageError(f"phase {mixed[0].name} mixes pictures, which then have no class of their own")

    def __call__(self, forward, batch, seed):
        def terms(features, labels):
            return (logits := forward.logits(features)), self._loss(logits, labels, None)

        features, labels = forward.features(batch["image"]), tf.cast(batch["label"], tf.float32)
        logits, losses = forward.float32(terms, features, batch["label"])
        unit = tf.math.l2_normalize(features, axis=-1)
        everyone = [forward.gather(x, batch) for x in (unit, labels, batch["mask"])]
        own = (unit, labels, batch["place"], everyone, self._temperature)
        apart = forward.float32(lambda _: contrast(*own), features)
        return Terms((1 - self._weight) * losses + self._weight * apart, logits, {"contrastive": apart})
