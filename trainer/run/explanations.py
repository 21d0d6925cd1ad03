"""What a run says of a picture, and what it goes by: for `explain` and `serve`."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from trainer.cli.config import Config
from trainer.data.decode import decode, filled_part, seen_part
from trainer.data.inspect.headers import inspect_picture
from trainer.data.inspect.jpeg_check import cleaned
from trainer.data.inspect.trial import require_whole
from trainer.model.saliency import Explainer, Saliency
from trainer.run.finished_run import Network, RunModel
from trainer.run.inference import Inference
from trainer.values import Contract, UsageError, composed

SHOWN_SIDE_PX = 480


@dataclass(frozen=True)
class Explanation:
    """What speaks for a class, and the picture to show it on."""

    picture: np.ndarray
    """[h, w, 3] float32 in [0, 1]: upright and in its own aspect, the longer side SHOWN_SIDE_PX."""
    saliency: Saliency
    """Its heat is of the whole picture: 0 where the network does not see it."""


class Explanations:
    """The network of a run, asked about encoded pictures.

    `class_names` are in the order of its outputs, `method` is the name of a saliency method,
    and `method_title` what people call it.
    """

    def __init__(self, network: Network, config: Config, *, batch_size: int):
        """Chooses the method.

        Args:
          network: of the run.
          config: says how pictures are read, and --saliency.
          batch_size: of what the network gets at least; the last bits of probabilities depend on it.

        Raises:
          UsageError: --saliency does not go with the network.
        """
        self.class_names, self.task = network.class_names, network.task
        self._inference, self._data = Inference(RunModel(network, batch_size=batch_size), config), config.data
        options = config.explain
        self._explainer = Explainer(network.classifier, asked=options.saliency, steps=options.ig_steps)
        self.method, self.method_title = self._explainer.method, self._explainer.title

    def rehearse(self) -> None:
        """Predicts and explains a grey picture: the first time, TensorFlow traces what it does.

        Raises:
          TrainerError: the network cannot be explained.
        """
        contract = self._inference.contract
        grey = np.full(contract.image_shape, np.mean(contract.value_range), "f4")
        self.probabilities([grey])
        self._explainer.explain(grey, 0)

    def pixels(self, data: bytes, *, name: str) -> np.ndarray:
        """Returns [H, W, 3] float32 in the contract's size and range: what `predict` makes of the same file.

        Raises:
          BadPictureError: it is no picture, or one that training would refuse.
          TrainerError: there is too little memory for it.
        """
        return self._inference.pixels(data, name=name)

    def probabilities(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
        """Maps n times [H, W, 3], as of `pixels`, to [n, K] float64: what `predict` says of the same."""
        return self._inference.probabilities(pixels)

    def told(self, probabilities: np.ndarray) -> tuple[str, float]:
        """Returns how the prediction of a row [K] is written, and its probability."""
        [told] = self._inference.told(probabilities[None])
        return told

    def explain(self, data: bytes, pixels: np.ndarray, label: int) -> Explanation:
        """Explains a class of a picture.

        Args:
          data: the encoded picture.
          pixels: what `pixels` made of it.
          label: number of the class.

        Raises:
          TrainerError: the network gives no gradient, or TensorFlow fails.
        """
        picture, shape = self._shown(data)
        saliency = self._explainer.explain(pixels, label)
        heat = over_picture(saliency.heat, shape, picture.shape[:2], self._inference.contract)
        return Explanation(picture, dataclasses.replace(saliency, heat=heat))

    def _shown(self, data: bytes) -> tuple[np.ndarray, tuple[int, int]]:
        """Returns the picture to show, and the height and width of the whole one in px."""
        info = inspect_picture(data, name="it", max_pixels=self._data.max_pixels)
        data = cleaned(data, require_whole(data, info, name="it"))
        turn = info.orientation if self._data.exif == "apply" else 1
        with tf.device("/CPU:0"):
            image = decode(tf.constant(data), tf.constant(turn))
            height, width = image.shape[:2]
            share = SHOWN_SIDE_PX / max(height, width)
            size = [max(1, round(height * share)), max(1, round(width * share))]
            shown = tf.image.resize(image, size, antialias=True).numpy()
            return np.clip(shown / 255, 0, 1), (height, width)


def over_picture(
    heat: np.ndarray, shape: tuple[int, int], shown: tuple[int, int], contract: Contract
) -> np.ndarray:
    """Lays heat of what a network sees over the picture that this was made of.

    Args:
      heat: [H, W] float32, of the contract's size.
      shape: height and width of the picture in px, upright.
      shown: height and width of the picture as it is shown, in px.
      contract: of the network.

    Returns:
      [h, w] float32 to be stretched over the whole picture, whose bars are cut off where it was padded. Where
      it was cropped, `shown` in size, and 0 outside of what was seen.
    """
    if contract.fit == "pad":
        top, left, height, width = filled_part(tf.constant(shape), contract).numpy().tolist()
        return heat[top : top + height, left : left + width]
    if contract.fit != "crop":
        return heat
    part = seen_part(tf.constant(shape), contract).numpy()
    begin = np.round(part[:2] * np.divide(shown, shape)).astype(int)
    begin = np.minimum(begin, np.array(shown) - 1)
    end = np.round((part[:2] + part[2:]) * np.divide(shown, shape)).astype(int)
    (top, left), (bottom, right) = begin, np.maximum(end, begin + 1)
    laid = np.zeros(shown, np.float32)
    seen = tf.image.resize(heat[..., None], [bottom - top, right - left], antialias=True)
    laid[top:bottom, left:right] = seen.numpy()[..., 0]
    return laid


def label_of(name: str, class_names: Sequence[str], *, flag: str) -> int:
    """Returns the number of a class.

    Raises:
      UsageError: there is none of that name.
    """
    places = {composed(known): place for place, known in enumerate(class_names)}
    if composed(name) not in places:
        raise UsageError(f"{flag}={name} is none of the classes of this run: {', '.join(class_names)}")
    return places[composed(name)]
