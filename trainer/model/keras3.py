"""Keras 3 and keras-hub, to be imported from here only, and late: they take seconds and are an extra.

The rest of the framework uses Keras 2 (tf_keras), beside which Keras 3 is a library like any other: its
layers make TensorFlow operations, and its variables hold tf.Variables.
"""

import contextlib
import os
import random
import shlex
import sys
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

from trainer.values import TrainerError

EXTRA = "hub-trainer[kerashub]"


class Libraries(NamedTuple):
    """The two modules."""

    keras: Any
    keras_hub: Any

    def versions(self) -> dict[str, str]:
        """Returns their versions by the names of their packages."""
        return {"keras": str(self.keras.__version__), "keras-hub": str(self.keras_hub.__version__)}


def keras3(wanted_by: str) -> Libraries:
    """Imports both, with TensorFlow as what Keras 3 computes by.

    Args:
      wanted_by: what the user wrote, for messages, such as `--backbone=kerashub:dinov2_small`.

    Raises:
      TrainerError: they are not installed, or the process has Keras 3 computing by something else.
    """
    before = os.environ.get("KERAS_BACKEND")
    # Read once, when Keras is imported; a keras.json in the home folder may say jax or torch.
    os.environ["KERAS_BACKEND"] = "tensorflow"
    try:
        import keras
        import keras_hub
    except ImportError as error:
        raise TrainerError(
            f"{wanted_by} needs keras-hub ({error}): {shlex.quote(sys.executable)} -m pip install "
            f"{shlex.quote(EXTRA)}"
        ) from error
    finally:
        if before is None:
            del os.environ["KERAS_BACKEND"]
        else:
            os.environ["KERAS_BACKEND"] = before
    if keras.backend.backend() != "tensorflow":
        raise TrainerError(
            f"{wanted_by}: this process uses Keras 3 with {keras.backend.backend()}; set "
            "KERAS_BACKEND=tensorflow before it begins"
        )
    return Libraries(keras, keras_hub)


@contextlib.contextmanager
def building(keras: Any) -> Iterator[None]:
    """Has networks that are built in a block be the same each time, whatever the process has set before.

    The order of axes and the precision are not those of a keras.json, and the weights that are drawn go by a
    fixed seed: initializers without a seed of their own take one from Python's generator.
    """
    data_format, state = keras.config.image_data_format(), random.getstate()
    policy, floatx = keras.config.dtype_policy(), keras.config.floatx()
    random.seed(0)
    keras.config.set_image_data_format("channels_last")
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")
    try:
        with warnings.catch_warnings():
            # Of how keras-hub builds its layers, which nobody here can change.
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        random.setstate(state)
        keras.config.set_image_data_format(data_format)
        keras.config.set_floatx(floatx)
        keras.config.set_dtype_policy(policy)
