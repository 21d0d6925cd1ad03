"""Backbone and head as one Keras model with float32 logits: the only model we define."""

from collections.abc import Sequence

import tensorflow as tf
import tf_keras

from trainer.model import freezing
from trainer.model.backbones import Backbone
from trainer.model.cuts import Cut
from trainer.model.dropout import Draws, drawing_from
from trainer.model.heads import Head, NeighbourHead
from trainer.model.layers import Layer
from trainer.tasks import SINGLE_LABEL, Task


class Classifier(tf_keras.Model):
    """Maps pictures to logits, whose meaning `task` knows.

    `named_variables` is {'backbone/...' or 'head/...': variable}: the names that --phase's regexes
    match, that `inspect` shows and that checkpoints hold.
    """

    def __init__(self, backbone: Backbone, head: Head | NeighbourHead, task: Task = SINGLE_LABEL):
        super().__init__(name="classifier")
        self.backbone, self.head, self.task = backbone, head, task
        head.build(tf.TensorShape([None, backbone.contract.feature_width]))
        self.named_variables = {
            **{f"backbone/{name}": variable for name, variable in backbone.variables.items()},
            **head.named_variables(),
        }

    @property
    def named_layers(self) -> tuple[Layer, ...]:
        """The layers of backbone and head in order of depth, with names as in `named_variables`.

        There are none where the backbone does not know its own.
        """
        backbone = [
            Layer(layer.name, tuple(f"backbone/{name}" for name in layer.variables))
            for layer in self.backbone.layers
        ]
        return (*backbone, *self.head.layers) if backbone else ()

    def freezing_table(self, patterns: Sequence[str]) -> list[freezing.Row]:
        """Decides for every variable whether it trains; see `freezing.freezing_table`."""
        return freezing.freezing_table(self.named_variables, patterns, layers=self.named_layers)

    def call(self, images: tf.Tensor, *, cut: Cut | None = None) -> tf.Tensor:
        """Maps images to logits [B, K] float32 by what has been learned: `logits` of `features`."""
        return self.logits(self.features(images, cut=cut))

    def features(
        self,
        images: tf.Tensor,
        *,
        cut: Cut | None = None,
        backbone_trains: bool = False,
        bn_batch: bool = False,
        draws: Draws | None = None,
    ) -> tf.Tensor:
        """Maps images [B, H, W, 3] in the contract's range to features [B, D] float32.

        Args:
          images: as the backbone's contract says; with a cut, [B, *cut.shape]: what lies below it gave.
          cut: where to begin instead of at the pictures.
          backbone_trains: whether gradients of backbone variables will be taken.
          bn_batch: whether BatchNorm uses and moves towards the batch's statistics.
          draws: while training, the dropout inside a Keras backbone, which bn_batch switches on, is drawn
            from them. None means no dropout.
        """
        network = cut.above if cut else self.backbone
        with drawing_from(draws):
            return network(images, training=backbone_trains, bn_batch=bn_batch)

    def logits(self, features: tf.Tensor, *, draws: Draws | None = None) -> tf.Tensor:
        """Maps features [B, D] to logits [B, K] float32.

        Args:
          features: of the backbone.
          draws: while training, dropout is drawn from them. None means no dropout.
        """
        return self.task.logits(tf.cast(self.head(features, draws=draws), tf.float32))
