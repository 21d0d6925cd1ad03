"""Digests of what a network computes, apart from the values of its variables."""

import hashlib
import json
from typing import Any

import tf_keras


def network_fingerprint(network: tf_keras.Model, *, name: str) -> str:
    """Returns the hex SHA-256 of a functional network: its layers, how they connect, and its input's size.

    Names of layers do not count, since Keras numbers them through the whole process; the version of
    tf_keras does, since layers may change with it.

    Args:
      network: what is digested.
      name: stands for what comes before the network, such as its preprocessing.
    """
    # Through JSON, as a config holds arrays and shapes.
    config = _unnamed(json.loads(network.to_json()), {})
    text = json.dumps([tf_keras.__version__, name, config], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _unnamed(config: Any, numbers: dict[str, str]) -> Any:
    """Returns a config with the layers' names replaced by their order in it.

    A name stands under the key "name", and first in [name, index of the call, index of the output].
    """
    if isinstance(config, dict):
        return {
            key: numbers.setdefault(value, f"#{len(numbers)}")
            if key == "name" and isinstance(value, str)
            else _unnamed(value, numbers)
            for key, value in config.items()
        }
    if isinstance(config, list):
        is_reference = len(config) >= 3 and isinstance(config[0], str) and config[0] in numbers
        head = [numbers[config[0]]] if is_reference else []
        return head + [_unnamed(value, numbers) for value in config[len(head) :]]
    return config
