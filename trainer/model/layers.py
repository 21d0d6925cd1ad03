"""The layers of a network in order of depth, and the ways to name a part of them: `LAYER_PATTERNS`."""

import difflib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import tensorflow as tf
import tf_keras

from trainer.model.variable_names import lasting_layer_names
from trainer.values import UsageError, as_number

HEAD = "head/"
"""What names of the head's layers and variables begin with."""


class Layer(NamedTuple):
    """A layer, and the names of the variables that it has; a ReLU has none."""

    name: str
    variables: tuple[str, ...] = ()


def network_layers(network: tf_keras.Model, *, variables: Mapping[str, tf.Variable]) -> tuple[Layer, ...]:
    """Returns all layers of a Keras network in Keras's order and count, named as in a fresh process.

    Args:
      network: what Keras made; the layers of a network inside it count as one.
      variables: {name: variable} of the network.
    """
    lasting = lasting_layer_names(network)
    names = {id(variable): name for name, variable in variables.items()}

    def name_of(layer: tf_keras.layers.Layer) -> str:
        # Keras numbers inputs through the whole process, too, and a network of ours has one.
        if isinstance(layer, tf_keras.layers.InputLayer) and re.fullmatch(r"input_\d+", layer.name):
            return "input_1"
        return lasting.get(layer.name, layer.name)

    return tuple(
        Layer(name_of(layer), tuple(names[id(weight)] for weight in layer.weights))
        for layer in network.layers
    )


def from_layer(value: str, layers: Sequence[Layer]) -> Sequence[Layer]:
    """A layer and all after it: by its exact name, or by its index in the backbone.

    An index counts from 0, or, negative, from the end of the backbone, as in Keras's `network.layers`.

    Raises:
      UsageError: there is no such layer; the message says which there are.
    """
    names = [layer.name for layer in layers]
    if re.fullmatch("-?[0-9]{1,9}", value):
        count = sum(not name.startswith(HEAD) for name in names)
        if not -count <= int(value) < count:
            raise UsageError(
                f"from_layer={value}: the backbone has layers 0 to {count - 1}, from its end -1 to -{count}"
            )
        return layers[int(value) % count :]
    if value not in names:
        raise UsageError(f"from_layer={value}: no layer has that name; {_likely(value, names)}")
    return layers[names.index(value) :]


def _likely(value: str, names: Sequence[str]) -> str:
    longer = [name for name in names if name.startswith(value)]
    if longer:
        count = f"{len(longer)} layers begin" if len(longer) > 1 else "one layer begins"
        return f"{count} with it: did you mean from_layer={longer[0]}?"
    near = difflib.get_close_matches(value, names, n=3)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"names are such as {', '.join((names[0], names[len(names) // 2], names[-1]))}"


def unfreeze_top_layers(value: str, layers: Sequence[Layer]) -> Sequence[Layer]:
    """The last N layers, counted over backbone and head as in a functional Keras model of both.

    Raises:
      UsageError: N is not between 1 and their number.
    """
    count = int(value) if re.fullmatch("[0-9]{1,9}", value) else 0
    if not 1 <= count <= len(layers):
        raise UsageError(
            f"unfreeze_top_layers={value} must be a whole number from 1 to {len(layers)}, the number of "
            "layers of backbone and head"
        )
    return layers[-count:]


def top_share(value: str, layers: Sequence[Layer]) -> Sequence[Layer]:
    """The head, and the top share of the backbone's layers that have variables.

    Their number is rounded half up, and at least one.

    Raises:
      UsageError: the share is not above 0 and at most 1.
    """
    try:
        share = as_number(value)
    except ValueError:
        share = math.nan
    if not 0 < share <= 1:
        raise UsageError(f"top_share={value} must be a number above 0 and at most 1, which is all layers")
    backbone = [layer for layer in layers if layer.variables and not layer.name.startswith(HEAD)]
    count = max(1, math.floor(share * len(backbone) + 0.5))
    return [*backbone[-count:], *(layer for layer in layers if layer.name.startswith(HEAD))]


LAYER_PATTERNS: dict[str, Callable[[str, Sequence[Layer]], Sequence[Layer]]] = {
    "from_layer": from_layer,
    "unfreeze_top_layers": unfreeze_top_layers,
    "top_share": top_share,
}
"""{NAME of a pattern NAME=VALUE: function from VALUE and the layers of backbone and head to some of them}."""
