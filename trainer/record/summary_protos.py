"""What event files hold that `tf.summary` writes slowly, or not at all, as TensorBoard's protocol buffers."""

import struct
from collections.abc import Collection, Mapping

import numpy as np
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.histogram import metadata as histogram_metadata
from tensorboard.plugins.hparams import api as hparams_api
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.plugins.image import metadata as image_metadata
from tensorboard.util.tensor_util import make_tensor_proto

NUM_BINS = 30


def hparams_config(names: Collection[str], *, changed: Collection[str], metrics: Mapping[str, str]) -> bytes:
    """Returns the summary that says what the HPARAMS tab has columns for.

    Args:
      names: of the options.
      changed: those that come first; the tab shows the first five unless asked for others.
      metrics: {tag of a scalar beside the options: what its column is called}.
    """
    summary = hparams_api.hparams_config_pb(
        hparams=[hparams_api.HParam(name) for name in names],
        metrics=[hparams_api.Metric(tag, display_name=name) for tag, name in metrics.items()],
    )
    plugin_data = summary.value[0].metadata.plugin_data
    data = HParamsPluginData.FromString(plugin_data.content)
    for info in data.experiment.hparam_infos:
        info.differs = info.name in changed
    plugin_data.content = data.SerializeToString()
    return summary.SerializeToString()


def image_summary(tag: str, png: bytes) -> bytes:
    """Returns one event's summary with a picture, as it is: `tf.summary.image` would encode it anew."""
    width, height = struct.unpack(">II", png[16:24])
    summary = Summary()
    summary.value.add(
        tag=tag,
        metadata=image_metadata.create_summary_metadata(display_name=None, description=None),
        tensor=make_tensor_proto([str(width).encode(), str(height).encode(), png]),
    )
    return summary.SerializeToString()


def histogram_summary(values: Mapping[str, np.ndarray]) -> bytes:
    """Returns one event's summary with a histogram of each array.

    What `tf.summary.histogram` writes, array by array, of hundreds of variables in the time of a few.

    Args:
      values: {tag: array of any shape}. Values that are not finite are left out, and arrays with none else.
    """
    summary = Summary()
    for tag, array in values.items():
        numbers = np.asarray(array, np.float64).ravel()
        if not np.isfinite(numbers).all():
            numbers = numbers[np.isfinite(numbers)]
        if not numbers.size:
            continue
        summary.value.add(
            tag=tag,
            metadata=histogram_metadata.create_summary_metadata(display_name=None, description=None),
            tensor=make_tensor_proto(_histogram(numbers)),
        )
    return summary.SerializeToString()


def _histogram(numbers: np.ndarray) -> np.ndarray:
    """Returns [NUM_BINS, 3] float64: left edge, right edge and count of each bin, from lowest to highest."""
    low, high = numbers.min(), numbers.max()
    counts, edges = np.zeros(NUM_BINS), np.linspace(low, high, NUM_BINS + 1)
    if edges[1] > edges[0] and edges[-1] > edges[-2]:
        counts, edges = np.histogram(numbers, NUM_BINS, range=(low, high))
    else:
        # All the same, or as good as that: as TensorBoard has it, all are in the last bin.
        counts[-1] = numbers.size
    return np.stack([edges[:-1], edges[1:], counts], axis=-1)
