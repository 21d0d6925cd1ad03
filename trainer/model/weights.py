"""The weights of a checkpoint for whoever only runs the network: no optimizer, no plan."""

import hashlib
from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from trainer.model.backbones.base import Backbone
from trainer.model.classifier import Classifier
from trainer.values import TrainerError, of_one_device


def weights_sha256(values: Mapping[str, np.ndarray]) -> str:
    """Returns 64 hex digits of {name: value}, whatever its order."""
    digest = hashlib.sha256()
    for name in sorted(values):
        value = np.ascontiguousarray(values[name])
        digest.update(f"{name} {value.dtype} {value.shape}\0".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def values_digest(variables: Mapping[str, tf.Variable]) -> str:
    """Returns 64 hex digits of {name: variable}, by the values as they are."""
    return weights_sha256(
        {name: tf.convert_to_tensor(of_one_device(one)).numpy() for name, one in variables.items()}
    )


def network_digests(backbone: Backbone) -> dict[str, str]:
    """Returns what tells a network from others, wherever it was opened from: its function and its weights."""
    return {"function": backbone.fingerprint, "weights": values_digest(backbone.variables)}


def scored_weights(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns {name as the classifier calls it: value} of a checkpoint's values: what was scored.

    That is 'average/NAME' where there is one, else 'model/NAME'; what is neither, such as 'step' and the
    slots of an optimizer, is left aside.
    """
    weights = {
        name.removeprefix("model/"): value for name, value in values.items() if name.startswith("model/")
    }
    return {name: values.get(f"average/{name}", value) for name, value in weights.items()}


def assign_weights(classifier: Classifier, values: Mapping[str, np.ndarray]) -> None:
    """Puts the weights of a checkpoint into a network: the averaged ones of those that are averaged.

    Args:
      classifier: every variable of it gets a value.
      values: {name: value} of a checkpoint.

    Raises:
      TrainerError: a variable has no value or one of another shape, or a 'model/' value has no variable;
        the message names the first. No variable has changed.
    """
    variables = classifier.named_variables
    found = scored_weights(values)
    for name in sorted({*found, *variables}):
        was = list(found[name].shape) if name in found else "missing"
        now = variables[name].shape.as_list() if name in variables else "missing"
        if was != now:
            raise TrainerError(
                f"the checkpoint does not fit the network: {name} is {was} in the checkpoint and {now} here; "
                "the network that the run was trained with must be at its place"
            )
    for name, variable in variables.items():
        variable.assign(found[name])
