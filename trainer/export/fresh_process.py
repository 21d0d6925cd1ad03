"""Exported models run over pictures, each in a fresh process that does not have this package."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from trainer.export import check_model
from trainer.tasks import SINGLE_LABEL
from trainer.values import TrainerError

BATCH_SIZE = 32
# {how the name of a file ends: what `check_model` calls its kind}; a SavedModel is a folder.
KINDS = {"": "saved_model", ".tflite": "tflite", ".onnx": "onnx"}
# To load a model, or to take the next pictures. A process that needs longer hangs.
PATIENCE_SECS = 600.0

Picture = tuple[bytes, np.ndarray]
"""As it is encoded, and [H, W, 3] float32 in [0, 1]."""


@dataclass(frozen=True)
class Answers:
    """What one way into a model gave: probabilities [N, K] float32, classes [N] int64, and its speed."""

    probabilities: np.ndarray
    class_ids: np.ndarray
    images_per_second: float


def is_known(model: Path) -> bool:
    """Tells whether `run_model` can run such a model: without an ending, only if it is a SavedModel."""
    return model.suffix in KINDS and (bool(model.suffix) or (model / "saved_model.pb").is_file())


def run_model(
    model: Path,
    pictures: Iterable[Picture],
    *,
    size_px: tuple[int, int],
    decide: Callable[[np.ndarray], np.ndarray] = SINGLE_LABEL.decisions,
    watch: Callable[[int], None] = lambda count: None,
    patience_secs: float = PATIENCE_SECS,
) -> dict[str, Answers]:
    """Runs a model over pictures on the processor, in the runtime that its user has.

    Pictures go there as they come: never more than some of them are in memory.

    Args:
      model: a SavedModel folder, or a .tflite or .onnx file, beside which preprocess.py and export.json lie.
      pictures: at least one.
      size_px: height and width of their pixels.
      decide: probabilities [N, K] -> predictions [N], for models that give probabilities alone.
      watch: is told how many more were given.
      patience_secs: how long the process may show no progress.

    Returns:
      {way into the model: answers}, in the order of the pictures.

    Raises:
      TrainerError: the process fails or hangs, or does not answer each picture.
    """
    kind = KINDS[model.suffix]
    with tempfile.TemporaryDirectory(prefix="trainer-check-") as folder:
        output = Path(folder) / "answers.npz"
        sizes = [*map(str, size_px), str(BATCH_SIZE)]
        command = [
            sys.executable,
            "-I",
            # preprocess.py beside a model is imported from there.
            "-B",
            check_model.__file__,
            kind,
            str(model.absolute()),
            *sizes,
            str(output),
        ]
        with open(Path(folder) / "said", "w+b") as said:
            with python_starts():
                process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=said, stderr=said, cwd=folder, env=_environment()
                )
            count, hangs = _feed(process, pictures, watch, patience_secs)
            said.seek(0)
            lines = said.read().decode(errors="replace").strip().splitlines()
        if problem := _problem(process.returncode, lines, patience_secs if hangs else 0.0):
            raise TrainerError(f"{model.name} does not run in a process of its own: {problem}")
        answers = _read(output, decide)
    for name, answer in answers.items():
        if len(answer.class_ids) != count:
            raise TrainerError(
                f"{model.name} ({name}) answers {len(answer.class_ids):,} of {count:,} pictures"
            )
    return answers


@contextlib.contextmanager
def python_starts() -> Iterator[None]:
    """Says what it is when Python cannot be started: whoever writes files would take it for one of them.

    Raises:
      TrainerError: so it is.
    """
    try:
        yield
    except OSError as error:
        raise TrainerError(
            f"Python cannot be started as a process of its own, in which models are made and checked: "
            f"{error.strerror or error}: {sys.executable}"
        ) from None


def _feed(
    process: subprocess.Popen[Any],
    pictures: Iterable[Picture],
    watch: Callable[[int], None],
    patience_secs: float,
) -> tuple[int, bool]:
    """Writes all pictures to a process, waits for its end, and returns their number and whether it hung."""
    count = 0
    with _killed_when_idle(process, patience_secs) as progress:
        # Whose reader has ended has a status, and has said why.
        with contextlib.suppress(BrokenPipeError), process.stdin as stream:  # type: ignore[union-attr]
            for encoded, pixels in pictures:
                _write(stream, encoded, pixels)
                count += 1
                progress.note()
                watch(1)
        process.wait()
    return count, progress.killed


def _write(stream: IO[bytes], encoded: bytes, pixels: np.ndarray) -> None:
    stream.write(len(encoded).to_bytes(4, "little"))
    stream.write(encoded)
    stream.write(np.ascontiguousarray(pixels, "<f4").tobytes())


class _Progress:
    """When something was last done, and whether that was too long ago for a process to live."""

    def __init__(self) -> None:
        self.noted_at = time.monotonic()
        self.killed = False

    def note(self) -> None:
        self.noted_at = time.monotonic()


@contextlib.contextmanager
def _killed_when_idle(process: subprocess.Popen[Any], secs: float) -> Iterator[_Progress]:
    """Kills a process that shows no progress for so long; it has ended when the block has."""
    progress, over = _Progress(), threading.Event()

    def look() -> None:
        while not over.wait(min(1.0, secs / 2)):
            if time.monotonic() - progress.noted_at > secs:
                progress.killed = True
                process.kill()

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield progress
    finally:
        over.set()
        thread.join()
        process.kill()
        process.wait()


def _environment() -> dict[str, str]:
    """Returns this process's, without what is set for this package."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "TF_"))}
    # This process holds all memory of the GPU.
    return {**kept, "TF_CPP_MIN_LOG_LEVEL": "2", "CUDA_VISIBLE_DEVICES": "-1"}


def _problem(status: int, lines: list[str], idle_secs: float) -> str:
    """Returns why a process failed, or '' if it did not."""
    if idle_secs:
        return f"nothing happened for {idle_secs:g} s"
    if status < 0:
        name = signal.Signals(-status).name
        return f"killed by {name}" + (": too little memory, it seems" if name == "SIGKILL" else "")
    if status:
        return lines[-1][:300] if lines else f"exit status {status}"
    return ""


def _read(output: Path, decide: Callable[[np.ndarray], np.ndarray]) -> dict[str, Answers]:
    with np.load(output, allow_pickle=False) as found:
        answers = {}
        for key in found:
            if name := key.removesuffix("_probabilities") if key.endswith("_probabilities") else "":
                said, ids = found[key], f"{name}_class_ids"
                speed = float(found[f"{name}_images_per_second"])
                answers[name] = Answers(said, found[ids] if ids in found else decide(said), speed)
        return answers
