"""Files with the weights of a Keras network: `--weights=PATH`."""

import logging
from pathlib import Path

import h5py
import tf_keras

from trainer.model.saved_models import first_line
from trainer.paths import local_path
from trainer.values import TrainerError, UsageError

logger = logging.getLogger("trainer")

WEIGHTS_ENDINGS = (".h5", ".hdf5", ".keras")


def weights_path(weights: str) -> Path | None:
    """Returns the file that `--weights` names; None for `imagenet` and `none`.

    Raises:
      UsageError: it does not end like a weights file.
      TrainerError: there is no such file.
    """
    if weights in ("imagenet", "none"):
        return None
    path = local_path(weights, flag=f"--weights={weights}")
    if not path.name.endswith(WEIGHTS_ENDINGS):
        raise UsageError(
            f"--weights={weights} is neither imagenet, none, nor a file that ends with "
            f"{', '.join(WEIGHTS_ENDINGS)}"
        )
    if not path.is_file():
        raise TrainerError(f"--weights={weights}: there is no file {path}")
    return path


def load_weights(network: tf_keras.Model, *, path: Path, name: str) -> None:
    """Fills a network from a file; one that has the classifier, too, is read by layer names.

    Args:
      network: what is filled.
      path: a .h5, .weights.h5 or .keras file.
      name: of the network, for messages.

    Raises:
      TrainerError: the file does not fit the network.
    """
    try:
        extra = _unknown_layers(network, path)
        if extra:
            logger.info("%s: left out %s", path, ", ".join(extra))
            network.load_weights(str(path), by_name=True)
        else:
            network.load_weights(str(path))
    except Exception as error:  # h5py, zipfile, KeyError and ValueError, by what is wrong with it.
        raise TrainerError(
            f"--weights={path} does not fit {name}: {first_line(error)}; expected weights of this very "
            "model, saved with or without its classifier"
        ) from error


def _unknown_layers(network: tf_keras.Model, path: Path) -> list[str]:
    """Returns the layers with weights that only a legacy .h5 file has; [] for other files.

    Raises:
      ValueError: layers of the network are missing in the file, so that names cannot tell.
    """
    if path.name.endswith((".weights.h5", ".keras")):
        return []
    with h5py.File(path, "r") as file:
        group = file.get("model_weights", file)
        names = [n.decode() if isinstance(n, bytes) else n for n in group.attrs["layer_names"]]
        stored = {n for n in names if len(group[n].attrs["weight_names"])}
    wanted = {layer.name for layer in network.layers if layer.weights}
    if len(stored) == len(wanted):
        return []  # Keras matches them by order, as names given automatically differ.
    if missing := sorted(wanted - stored):
        raise ValueError(f"{len(missing)} layers are not in it, such as {missing[0]}")
    return sorted(stored - wanted)
