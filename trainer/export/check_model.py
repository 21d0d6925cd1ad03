"""Runs an exported model as its user would: a program of its own, that knows nothing of this package.

usage: python -I check_model.py KIND MODEL HEIGHT WIDTH BATCH_SIZE OUTPUT < PICTURES

KIND is saved_model, tflite or onnx, which need NumPy and TensorFlow, ai-edge-litert or onnxruntime; beside
the latter two lies preprocess.py, which needs Pillow, too. PICTURES is a row of pictures: four bytes with
the length of the encoded picture, least significant first; the encoded picture; HEIGHT x WIDTH x 3 numbers,
float32 from 0 to 1. To OUTPUT goes an .npz file, which for each way into the model has NAME_probabilities
[N, K] float32, NAME_images_per_second [] and, where the model itself says them, NAME_class_ids [N].
"""

import importlib.util
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import IO, Any

import numpy as np

# Speed is measured when all is done, and whoever feeds this program is idle.
TIMED_PICTURES = 64
TIMED_SECS = 2.0

Answer = tuple[np.ndarray, np.ndarray | None]
"""Probabilities [B, K] float32, and predictions [B] where the model says them."""
Way = Callable[[list[bytes], np.ndarray], Answer]


def main(argv: list[str]) -> None:
    """Reads all pictures, and writes what the model says of them."""
    kind, model, height, width, batch_size, output = argv
    ways = {"saved_model": saved_model, "tflite": tflite, "onnx": onnx}[kind](model)
    kept: dict[str, list[Answer]] = {name: [] for name in ways}
    first: list[tuple[list[bytes], np.ndarray]] = []
    for encoded, pixels in batches(sys.stdin.buffer, (int(height), int(width), 3), int(batch_size)):
        if sum(len(batch) for batch, _ in first) < TIMED_PICTURES:
            first.append((encoded, pixels))
        for name, way in ways.items():
            kept[name].append(way(encoded, pixels))
    found: dict[str, Any] = {}
    for name, answers in kept.items():
        found[f"{name}_probabilities"] = np.concatenate([probabilities for probabilities, _ in answers])
        said = [classes for _, classes in answers if classes is not None]
        if said:
            found[f"{name}_class_ids"] = np.concatenate(said)
        found[f"{name}_images_per_second"] = images_per_second(ways[name], first)
    np.savez(output, **found)


def saved_model(folder: str) -> dict[str, Way]:
    """Returns the ways into a SavedModel."""
    import tensorflow as tf

    signatures = tf.saved_model.load(folder).signatures
    by_bytes, by_pixels = signatures["serving_default"], signatures["images"]

    def answer(values: Any) -> Answer:
        return values["probabilities"].numpy(), values["class_ids"].numpy()

    return {
        "serving_default": lambda encoded, pixels: answer(by_bytes(image_bytes=tf.constant(encoded))),
        "images": lambda encoded, pixels: answer(by_pixels(images=tf.constant(pixels))),
    }


def tflite(file: str) -> dict[str, Way]:
    """Returns the ways into a TFLite file, which takes one picture at a time."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=file, num_threads=os.cpu_count())
    interpreter.allocate_tensors()
    [taken], [given] = interpreter.get_input_details(), interpreter.get_output_details()
    takes_bytes = bool(taken["quantization"][0])

    def run(batch: np.ndarray) -> np.ndarray:
        interpreter.set_tensor(taken["index"], batch)
        interpreter.invoke()
        scale, zero = given["quantization"]
        values = interpreter.get_tensor(given["index"])[0]
        return (values.astype(np.float32) - zero) * np.float32(scale) if scale else values

    def by_pixels(image: np.ndarray) -> np.ndarray:
        if takes_bytes:
            scale, zero = taken["quantization"]
            image = np.clip(np.round(image / scale) + zero, 0, 255).astype(taken["dtype"])
        return run(image[None])

    return {
        "files": from_files(file, run, as_bytes=takes_bytes, num_classes=int(given["shape"][-1])),
        "images": lambda encoded, pixels: answer_of([by_pixels(image) for image in pixels]),
    }


def onnx(file: str) -> dict[str, Way]:
    """Returns the ways into an ONNX file."""
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

    def run(pixels: np.ndarray) -> np.ndarray:
        [probabilities] = session.run(["probabilities"], {"images": pixels})
        return probabilities

    [given] = session.get_outputs()
    return {
        "files": from_files(file, lambda batch: run(batch)[0], as_bytes=False, num_classes=given.shape[-1]),
        "images": lambda encoded, pixels: answer_of(run(pixels)),
    }


def from_files(
    model: str, run: Callable[[np.ndarray], np.ndarray], *, as_bytes: bool, num_classes: int
) -> Way:
    """Returns the way from encoded pictures that preprocess.py beside a model opens.

    Args:
      model: its path.
      run: a batch of one picture, as the model takes it -> probabilities [K].
      as_bytes: whether it takes bytes.
      num_classes: K.
    """
    path = os.path.join(os.path.dirname(model), "preprocess.py")
    spec: Any = importlib.util.spec_from_file_location("preprocess", path)
    preprocess: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(preprocess)

    def one(data: bytes) -> np.ndarray:
        try:
            batch = preprocess.read_picture(data, as_bytes=as_bytes)
        except (OSError, ValueError, SyntaxError):  # What Pillow raises where TensorFlow finds a picture.
            return np.full([num_classes], np.nan, np.float32)
        return run(batch)

    return lambda encoded, pixels: answer_of([one(data) for data in encoded])


def answer_of(rows: Any) -> Answer:
    """Returns probabilities [B, K], which are given in any form, of a model that says nothing else."""
    return np.asarray(rows), None


def batches(
    stream: IO[bytes], shape: tuple[int, int, int], size: int
) -> Iterator[tuple[list[bytes], np.ndarray]]:
    """Yields up to `size` pictures at a time: as they are encoded, and [B, H, W, 3] float32."""
    encoded, pixels = [], []
    while head := stream.read(4):
        encoded.append(stream.read(int.from_bytes(head, "little")))
        pixels.append(np.frombuffer(stream.read(int(np.prod(shape)) * 4), "<f4").reshape(shape))
        if len(encoded) == size:
            yield encoded, np.array(pixels)
            encoded, pixels = [], []
    if encoded:
        yield encoded, np.array(pixels)


def images_per_second(way: Way, given: list[tuple[list[bytes], np.ndarray]]) -> float:
    """Returns the speed of a model that is warm, over all that is given or for some seconds."""
    count, begun = 0, time.perf_counter()
    for encoded, pixels in given:
        way(encoded, pixels)
        count += len(encoded)
        if time.perf_counter() - begun > TIMED_SECS:
            break
    return count / (time.perf_counter() - begun)


if __name__ == "__main__":
    main(sys.argv[1:])
