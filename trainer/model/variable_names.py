"""Names of variables that last from process to process, for regexes and checkpoints."""

import re
from collections.abc import Sequence

import tensorflow as tf
import tf_keras


def unique_names(
    variables: Sequence[tf.Variable], *, names: Sequence[str] | None = None
) -> dict[str, tf.Variable]:
    """Returns {name without ':0': variable} in order; the n-th of a name becomes 'name~n'."""
    named: dict[str, tf.Variable] = {}
    for name, variable in zip(names or [v.name for v in variables], variables, strict=True):
        base = name.removesuffix(":0")
        unique, count = base, 1
        while unique in named:
            count += 1
            unique = f"{base}~{count}"
        named[unique] = variable
    return named


def lasting_names(network: tf_keras.Model) -> list[str]:
    """Returns the names of `network.variables` as in a fresh process, without ':0'."""
    lasting = lasting_layer_names(network)
    return [
        "/".join(lasting.get(part, part) for part in v.name.removesuffix(":0").split("/"))
        for v in network.variables
    ]


def lasting_layer_names(network: tf_keras.Model) -> dict[str, str]:
    """Returns {name: name in a fresh process} of the layers that have no name of their own.

    Keras numbers those through the whole process: `conv2d_94` in a second InceptionV3 is `conv2d` in
    the first.
    """
    numbers: dict[str, list[int]] = {}
    automatic: dict[str, tuple[str, int]] = {}
    for layer in network.submodules:
        if not isinstance(layer, tf_keras.layers.Layer):
            continue
        base = _automatic_name(layer)
        match = re.fullmatch(rf"{re.escape(base)}(?:_(\d+))?", layer.name)
        if match:
            automatic[layer.name] = (base, int(match[1] or 0))
            numbers.setdefault(base, []).append(int(match[1] or 0))

    def rename(base: str, number: int) -> str:
        number -= min(numbers[base])
        return f"{base}_{number}" if number else base

    return {name: rename(*parts) for name, parts in automatic.items()}


def _automatic_name(layer: tf_keras.layers.Layer) -> str:
    """Returns what tf_keras calls a layer of its class, without the number."""
    symbol = getattr(layer, "symbol", None)
    if symbol:  # A function of TensorFlow used like a layer.
        return f"tf.{symbol}"
    base = re.sub(r"(.)([A-Z][a-z0-9]+)", r"\1_\2", type(layer).__name__)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", base).lower()
