"""The SavedModel: from encoded pictures, or from pixels, to probabilities, by TensorFlow's own operations."""

import errno
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

from trainer.data.decode import decode, to_contract
from trainer.export.metadata import About
from trainer.export.orientation import exif_orientation
from trainer.tasks import Task
from trainer.values import told_by_tensorflow

_PIXELS_AT_ONCE = 10


def write_saved_model(
    folder: Path, network: Callable[[tf.Tensor], tf.Tensor], *, about: About, about_json: Path
) -> None:
    """Writes a SavedModel with three signatures.

    serving_default: image_bytes [N] string, whole files -> probabilities [N, K] float32, class_ids [N]
      int64, class_names [N] string, those of the prediction (`Task.answers`)
    images: images [N, H, W, 3] float32 in [0, 1] -> the same
    class_names: -> class_names [K] string, in the order of the probabilities

    Args:
      folder: which must not be there.
      network: images [N, H, W, 3] float32 in [0, 1] -> probabilities [N, K] float32, without variables.
      about: of the model.
      about_json: a file of what it says, which becomes an asset.

    Raises:
      OSError: it cannot be written.
    """
    module = _Served(network, about, asset=str(about_json))
    signatures = {
        "serving_default": module.serving_default,
        "images": module.images,
        "class_names": module.class_names,
    }
    save(module, folder, signatures=signatures)


def save(module: tf.Module, folder: Path, *, signatures: Mapping[str, Any]) -> None:
    """Saves a module.

    Raises:
      OSError: it cannot be written.
    """
    try:
        tf.saved_model.save(module, str(folder), signatures=signatures)
    except tf.errors.OpError as error:
        raise OSError(errno.EIO, told_by_tensorflow(error), str(folder)) from None


class _Served(tf.Module):
    """What is saved. Its functions can be called as `loaded.images(...)` as well."""

    def __init__(self, network: Callable[[tf.Tensor], tf.Tensor], about: About, *, asset: str):
        super().__init__()
        self.about = tf.saved_model.Asset(asset)
        names, task = tf.constant(about.class_names), about.make_task()
        self.serving_default = tf.function(
            lambda image_bytes: _answers(task, network(_pixels(image_bytes, about)), names),
            input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")],
            autograph=False,
        )
        self.images = tf.function(
            lambda images: _answers(task, network(images), names),
            input_signature=[tf.TensorSpec([None, *about.contract.image_shape], tf.float32, name="images")],
            autograph=False,
        )
        self.class_names = tf.function(
            lambda: {"class_names": tf.identity(names)}, input_signature=[], autograph=False
        )


def _answers(task: Task, probabilities: tf.Tensor, names: tf.Tensor) -> dict[str, tf.Tensor]:
    return {"probabilities": probabilities, **task.answers(probabilities, names)}


def _pixels(image_bytes: tf.Tensor, about: About) -> tf.Tensor:
    """Returns [N, H, W, 3] float32 in [0, 1] of encoded pictures, as training made them."""
    contract = about.contract
    at_least = (contract.height_px, contract.width_px) if about.decoding == "scaled" else None

    def picture(encoded: tf.Tensor) -> tf.Tensor:
        with tf.control_dependencies([_refuse_animated_webp(encoded)]):
            encoded = tf.identity(encoded)
        turn = exif_orientation(encoded) if about.exif == "apply" else tf.constant(1)
        return to_contract(decode(encoded, turn, at_least=at_least), contract)

    # As in training. A GPU would decode nothing, and resize to other last bits.
    with tf.device("/CPU:0"):
        spec = tf.TensorSpec(contract.image_shape, tf.float32)
        return tf.map_fn(picture, image_bytes, fn_output_signature=spec, parallel_iterations=_PIXELS_AT_ONCE)


def _refuse_animated_webp(encoded: tf.Tensor) -> tf.Operation:
    """TensorFlow writes animations with alpha into memory that is too small for them."""
    head = tf.io.decode_raw(tf.strings.substr(encoded, 0, 21), tf.uint8, fixed_length=21)
    is_webp = tf.reduce_all(tf.equal(head[8:16], list(b"WEBPVP8X")))
    is_animated = tf.not_equal(tf.bitwise.bitwise_and(head[20], 0x02), 0)
    return tf.debugging.Assert(~(is_webp & is_animated), ["an animated WebP: save its first frame as PNG"])
