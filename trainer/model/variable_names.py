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
    """Returns the names of `network.variables` as in a fresh process, without ':0'.

    Keras numbers layers that have no name of their own through the whole process: `conv2d_94` in a
    second InceptionV3 is `conv2d` in the first.
    """
    numbers: dict[str, list[int]] = {}
    automatic: dict[str, tuple[str, int]] = {}
    for layer in network.submodules:
        if not isinstance(layer, tf_keras.layers.Layer):
            continue
        # As tf_keras makes a layer's name from its class.
        base = re.sub(r"(.)([A-Z][a-z0-9]+)", r"\1_\2", type(layer).__name__)
        base = re.sub(r"([a-z])([A-Z])", r"\1_\2", base).lower()
        match = re.fullmatch(rf"{base}(?:_(\d+))?", layer.name)
        if match:
            automatic[layer.name] = (base, int(match[1] or 0))
            numbers.setdefault(base, []).append(int(match[1] or 0))

    def rename(part: str) -> str:
        if part not in automatic:
            return part
        base, number = automatic[part]
        number -= min(numbers[base])
        return f"{base}_{number}" if number else base

    return ["/".join(map(rename, v.name.removesuffix(":0").split("/"))) for v in network.variables]
