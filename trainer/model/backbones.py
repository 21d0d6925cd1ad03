"""Pretrained networks behind one interface: `hub:`, `savedmodel:`, `keras:`, `efficientnet_lite0`."""

from typing import Protocol

import tensorflow as tf

from trainer.values import Contract


class Backbone(Protocol):
    """A pretrained network from images to features, with the contract of its input."""

    name: str
    contract: Contract
    variables: dict[str, tf.Variable]
    """{lasting name without ':0': variable}, in a fixed order; names are unique."""

    def __call__(self, images: tf.Tensor, *, training: bool, bn_batch: bool) -> tf.Tensor:
        """Maps images [B, H, W, 3] in the contract's range to features [B, D] float32.

        Args:
          images: as the contract says.
          training: whether any of its variables is being trained.
          bn_batch: whether BatchNorm uses, and moves towards, the statistics of the batch.
        """
        ...

    def regularization_losses(self) -> list[tf.Tensor]:
        """Returns the scalar penalties the network brings for being trained; may be empty."""
        ...
