"""Backbone and head as one Keras model with float32 logits: the only model we define."""

import tensorflow as tf
import tf_keras

from trainer.model.backbones import Backbone
from trainer.model.cuts import Cut
from trainer.model.dropout import drawing_from
from trainer.model.heads import Head


class Classifier(tf_keras.Model):
    """Maps pictures to logits.

    `named_variables` is {'backbone/...' or 'head/...': variable}: the names that --phase's regexes
    match, that `inspect` shows and that checkpoints hold.
    """

    def __init__(self, backbone: Backbone, head: Head):
        super().__init__(name="classifier")
        self.backbone, self.head = backbone, head
        head.build(tf.TensorShape([None, backbone.contract.feature_width]))
        self.named_variables = {
            **{f"backbone/{name}": variable for name, variable in backbone.variables.items()},
            **head.named_variables(),
        }

    def call(
        self,
        images: tf.Tensor,
        *,
        cut: Cut | None = None,
        backbone_trains: bool = False,
        bn_batch: bool = False,
        dropout_seed: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Maps images [B, H, W, 3] in the contract's range to logits [B, K] float32.

        Args:
          images: as the backbone's contract says; with a cut, [B, *cut.shape]: what lies below it gave.
          cut: where to begin instead of at the pictures.
          backbone_trains: whether gradients of backbone variables will be taken.
          bn_batch: whether BatchNorm uses and moves towards the batch's statistics.
          dropout_seed: [2] int32 while training: all dropout is drawn from it, that inside a Keras
            backbone, which bn_batch switches on, too. None means no dropout.
        """
        network = cut.above if cut else self.backbone
        with drawing_from(dropout_seed):
            features = network(images, training=backbone_trains, bn_batch=bn_batch)
        return tf.cast(self.head(features, dropout_seed=dropout_seed), tf.float32)
