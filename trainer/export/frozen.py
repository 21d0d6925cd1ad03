"""The network as one function without variables: what all exported models are made of."""

import math
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from trainer.data.decode import scale
from trainer.model.classifier import Classifier
from trainer.values import TrainerError

# Graphs, and .tflite files, are messages of at most 2 GiB, and their structure needs some room, too.
MAX_WEIGHT_BYTES = 2**31 - 2**26


def _with_constants(function: Any) -> Any:
    """Returns a ConcreteFunction with the values of variables in it.

    Raises:
      TrainerError: this TensorFlow cannot do it.
    """
    try:
        # No public name has it, but TensorFlow's own converters use it.
        from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2
    except ImportError as error:
        raise TrainerError(
            f"export makes constants of weights, which TensorFlow {tf.__version__} cannot do ({error}): use "
            "the version in constraints.txt"
        ) from None
    return convert_variables_to_constants_v2(function)


def frozen_network(classifier: Classifier, *, batch_size: int | None) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns the function from pixels to probabilities with its weights as constants.

    BatchNorm is folded where `model.folding` can; all that depends on weights alone is then computed once,
    when whoever runs the model optimizes its graph, instead of with each picture.

    Args:
      classifier: with the weights to export.
      batch_size: B; None leaves it open.

    Returns:
      images [B, H, W, 3] float32 in [0, 1] -> probabilities [B, K] float32. To be called in a graph.

    Raises:
      TrainerError: the network is too large, or holds what no constant can.
    """
    contract = classifier.backbone.contract
    size = sum(math.prod(v.shape) * v.dtype.size for v in classifier.named_variables.values())
    if size > MAX_WEIGHT_BYTES:
        raise TrainerError(
            f"{classifier.backbone.name} has {size / 1e9:.1f} GB of weights: exported models hold 2 at most"
        )

    def probabilities(images: tf.Tensor) -> tf.Tensor:
        return classifier.task.activation(tf.cast(classifier(scale(images, contract)), tf.float32))

    spec = tf.TensorSpec([batch_size, *contract.image_shape], tf.float32, name="images")
    traced = tf.function(probabilities, autograph=False).get_concrete_function(spec)
    frozen = _with_constants(traced)
    if len(frozen.inputs) != 1:
        names = ", ".join(tensor.name for tensor in frozen.inputs[1:])
        raise TrainerError(
            f"{classifier.backbone.name} cannot be exported: besides variables it holds what cannot become a "
            f"constant ({names})"
        )
    width = traced.outputs[0].shape[-1]
    return lambda images: tf.ensure_shape(frozen(images)[0], [batch_size, width])
