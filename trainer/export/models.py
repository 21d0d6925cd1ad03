"""The files of an export, by the names that --formats gives them: each form is a registered function."""

import logging
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, Protocol, TypeVar

import tensorflow as tf

from trainer.export import preprocess, tflite
from trainer.export.folder import PREPROCESS
from trainer.export.frozen import frozen_network
from trainer.export.metadata import LABELS_NAME, NAME, About
from trainer.export.onnx import require_converter, write_onnx
from trainer.export.saved_model import write_saved_model
from trainer.model.classifier import Classifier
from trainer.registry import Registry
from trainer.store.files import write_bytes, write_text
from trainer.values import UsageError

_log = logging.getLogger("trainer")
T = TypeVar("T")


class Exporting:
    """What a form is written from, and what several forms share."""

    def __init__(self, folder: Path, classifier: Classifier, *, about: About, pictures: tflite.Pictures):
        """Notes what there is.

        Args:
          folder: where the files go.
          classifier: with the weights to export.
          about: goes into each model.
          pictures: representative ones, for whoever measures ranges.
        """
        self.folder, self.about, self.pictures = folder, about, pictures
        self._classifier = classifier
        self._networks: dict[int | None, Callable[[tf.Tensor], tf.Tensor]] = {}
        self._shared: dict[Any, Any] = {}
        self._stack = ExitStack()

    def network(self, *, batch_size: int | None = None) -> Callable[[tf.Tensor], tf.Tensor]:
        """Returns images [N, H, W, 3] float32 in [0, 1] -> probabilities [N, K] float32, without variables.

        Args:
          batch_size: N, where it must be known; None: any.

        Raises:
          TrainerError: the network cannot be exported.
        """
        if batch_size not in self._networks:
            self._networks[batch_size] = frozen_network(self._classifier, batch_size=batch_size)
        return self._networks[batch_size]

    def shared(self, make: Callable[["Exporting"], AbstractContextManager[T]]) -> T:
        """Returns what `make` gives, entered when it is first asked for, and left when all is written."""
        if make not in self._shared:
            self._shared[make] = self._stack.enter_context(make(self))
        found: T = self._shared[make]
        return found

    def close(self) -> None:
        self._stack.close()


class Form(Protocol):
    """Writes one model, `file`, a path that is not there yet.

    Raises:
      TrainerError: the network cannot be had in this form.
      OSError: it cannot be written.
    """

    def __call__(self, *, file: Path, exporting: Exporting) -> None: ...


FORMS: Registry[None] = Registry("form of an export", flag="--formats")
"""Facts: `file` is the name of the file or folder; `require` raises UsageError where something lacks."""


@FORMS.register("saved_model", file="saved_model")
def saved_model(*, file: Path, exporting: Exporting) -> None:
    """A SavedModel, from encoded pictures or from pixels to probabilities."""
    about_json = exporting.folder / NAME
    write_saved_model(file, exporting.network(), about=exporting.about, about_json=about_json)


def _converter(exporting: Exporting) -> tflite.Converter:
    return tflite.Converter(exporting.network(batch_size=1), about=exporting.about, folder=exporting.folder)


def _convert(form: str, file: Path, exporting: Exporting) -> None:
    write_bytes(file, exporting.shared(_converter).convert(form, pictures=exporting.pictures))


@FORMS.register("float32", file="float32.tflite")
def float32(*, file: Path, exporting: Exporting) -> None:
    """TFLite. As trained."""
    _convert("float32", file, exporting)


@FORMS.register("float16", file="float16.tflite")
def float16(*, file: Path, exporting: Exporting) -> None:
    """TFLite. Weights in 16 bits: half the size."""
    _convert("float16", file, exporting)


@FORMS.register("dynamic_range", file="dynamic_range.tflite")
def dynamic_range(*, file: Path, exporting: Exporting) -> None:
    """TFLite. Weights in 8 bits: a quarter of the size; activations rounded as they come, or float32."""
    _convert("dynamic_range", file, exporting)


@FORMS.register("int8", file="int8.tflite")
def int8(*, file: Path, exporting: Exporting) -> None:
    """TFLite. Everything in 8 bits, kernels with a scale for each channel; bytes in, bytes out."""
    _convert("int8", file, exporting)


@FORMS.register("onnx", file="model.onnx", require=require_converter)
def onnx(*, file: Path, exporting: Exporting) -> None:
    """ONNX, from pixels to probabilities; needs tf2onnx, onnx and onnxruntime."""
    write_onnx(file, exporting.network(), about=exporting.about)


def parse_formats(text: str) -> tuple[str, ...]:
    """Reads a list such as `saved_model,int8`; returns each form once, in the order of `FORMS`.

    Raises:
      UsageError: the list is empty, names something else, or a form that needs what is not installed.
    """
    asked = [name.strip() for name in text.split(",") if name.strip()]
    strange = [name for name in asked if name not in list(FORMS)]
    if strange or not asked:
        what = f"{strange[0]!r} is not one of" if strange else "there must be one or more of"
        raise UsageError(f"--formats={text}: {what} {', '.join(FORMS)}")
    forms = tuple(name for name in FORMS if name in asked)
    for name in forms:
        if require := FORMS[name].facts.get("require"):
            require()
    return forms


def file_of(form: str) -> str:
    """Returns the name of the file, or folder, of one of `FORMS`."""
    name: str = FORMS[form].facts["file"]
    return name


def write_models(
    folder: Path,
    classifier: Classifier,
    *,
    about: About,
    formats: Sequence[str],
    pictures: tflite.Pictures,
) -> Generator[Path, None, None]:
    """Writes models one after another, and yields the path of each when it is there.

    Beside them lie labels.txt and export.json, which each of ours holds, too, and preprocess.py.

    Args:
      folder: an empty one.
      classifier: with the weights to export.
      about: goes into each model.
      formats: some of `FORMS`.
      pictures: representative ones, for int8.

    Raises:
      TrainerError: the network cannot be exported, or not in a form.
      OSError: something cannot be written.
    """
    write_text(folder / NAME, about.to_json())
    write_text(folder / LABELS_NAME, about.labels())
    write_text(folder / PREPROCESS, Path(preprocess.__file__).read_text())
    exporting = Exporting(folder, classifier, about=about, pictures=pictures)
    try:
        for form in formats:
            file = folder / file_of(form)
            _log.info("model:       writes %s", file.name)
            FORMS.choose(form)(file=file, exporting=exporting)
            yield file
    finally:
        exporting.close()
