"""The files of an export, by the names that --formats gives them."""

from collections.abc import Generator, Sequence
from pathlib import Path

from trainer.export import preprocess, tflite
from trainer.export.folder import PREPROCESS
from trainer.export.frozen import frozen_network
from trainer.export.metadata import LABELS_NAME, NAME, About
from trainer.export.onnx import require_converter, write_onnx
from trainer.export.saved_model import write_saved_model
from trainer.model.classifier import Classifier
from trainer.store.files import write_bytes, write_text
from trainer.values import UsageError

SAVED_MODEL, ONNX = "saved_model", "onnx"
FORMATS = (SAVED_MODEL, *tflite.FORMATS, ONNX)


def parse_formats(text: str) -> tuple[str, ...]:
    """Reads a list such as `saved_model,int8`; returns each format once, in the order of `FORMATS`.

    Raises:
      UsageError: the list is empty, names something else, or a format that needs what is not installed.
    """
    asked = [name.strip() for name in text.split(",") if name.strip()]
    strange = [name for name in asked if name not in FORMATS]
    if strange or not asked:
        what = f"{strange[0]!r} is not one of" if strange else "there must be one or more of"
        raise UsageError(f"--formats={text}: {what} {', '.join(FORMATS)}")
    if ONNX in asked:
        require_converter()
    return tuple(name for name in FORMATS if name in asked)


def file_of(form: str) -> str:
    """Returns the name of the file, or folder, of one of `FORMATS`."""
    return {SAVED_MODEL: SAVED_MODEL, ONNX: "model.onnx"}.get(form, f"{form}.tflite")


def write_models(
    folder: Path,
    classifier: Classifier,
    *,
    about: About,
    formats: Sequence[str],
    pictures: tflite.Pictures,
) -> Generator[Path, None, None]:
    """Writes models one after another, and yields the path of each when it is there.

    Beside them lie labels.txt and export.json, which each of them holds, too, and preprocess.py.

    Args:
      folder: an empty one.
      classifier: with the weights to export.
      about: goes into each model.
      formats: some of `FORMATS`.
      pictures: representative ones, for int8.

    Raises:
      TrainerError: the network cannot be exported, or not in a format.
      OSError: something cannot be written.
    """
    write_text(folder / NAME, about.to_json())
    write_text(folder / LABELS_NAME, about.labels())
    write_text(folder / PREPROCESS, Path(preprocess.__file__).read_text())
    if {SAVED_MODEL, ONNX} & set(formats):
        network = frozen_network(classifier, batch_size=None)
    if SAVED_MODEL in formats:
        write_saved_model(folder / SAVED_MODEL, network, about=about, about_json=folder / NAME)
        yield folder / SAVED_MODEL
    if ONNX in formats:
        write_onnx(folder / file_of(ONNX), network, about=about)
        yield folder / file_of(ONNX)
    of_tflite = [form for form in formats if form in tflite.FORMATS]
    if of_tflite:
        network = frozen_network(classifier, batch_size=1)
        with tflite.Converter(network, about=about, folder=folder) as converter:
            for form in of_tflite:
                file = folder / file_of(form)
                write_bytes(file, converter.convert(form, pictures=pictures))
                yield file
